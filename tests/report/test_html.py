import base64
import hashlib
import io
import math
import os
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unimim.report import Cost, Curve, Panel, Picture, Skipped, html, pictures, render, write
from unimim.report.text import clean_line

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Tags with their attribute names in order, all attribute values, and the text outside <style> and <script>."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.shape: list[tuple[str, ...]] = []
        self.values: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.raw: dict[str, str] = {"style": "", "script": ""}
        self.open: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.shape.append((tag, *(name for name, _ in attrs)))
        self.values += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in self.raw:
            self.raw[self.open[-1]] += data
        else:
            self.text.append(data)

    def handle_comment(self, data):
        raise AssertionError(f"comment {data!r}")


HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><style>*{display:none}",
    "</title></textarea></pre></svg>",
    "{{ 7 * 7 }}{% raw %}",
    "<!-- <![CDATA[",
    "]]>",
    "javascript:alert(1)",
    "&lt;b&gt; &#60;",
    "{0} {x.__class__} %s",
    "url(https://example.org)",
    "a\x00b\x1b[31m\ud800\u202e",
    "\n\t x",
)
# Text without a printable character is absent in some places and present in others: the shape may then differ.
texts = (st.sampled_from(HOSTILE) | st.text(min_size=1) | st.text(alphabet="<>\"'&=/!-{}%; on", min_size=1)).filter(
    lambda text: clean_line(text) != ""
)


@settings(max_examples=100)
@given(texts)
def test_text_never_changes_the_structure_of_the_page(worded, name):
    page, benign = Page(render(worded(name))), Page(render(worded("benign")))
    assert page.shape == benign.shape
    assert page.raw == benign.raw


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_show_as_text(worded, name):
    words = " ".join(" ".join(Page(render(worded(name))).text).split())
    shown = " ".join(clean_line(name).split())
    assert words.count(shown) >= 20


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\x7f", "\x9b", "\ud800", "\u202e", "\r"])
def test_no_control_character_is_on_the_page(worded, character):
    page = render(worded(f"a{character}b"))
    assert character not in page
    assert page.encode("utf-8").decode("utf-8") == page


def test_page_loads_nothing_and_runs_nothing_but_its_own_script(worded):
    page = Page(render(worded("x")))
    for tag, name, value in page.values:
        assert not name.startswith("on")
        assert name not in {"srcset", "data", "action", "formaction", "poster", "background", "ping", "xlink:href"}
        if name == "href":
            assert re.fullmatch(r"#[a-z]+", value)
        if name == "src":
            assert tag == "img"
            assert value.startswith("data:image/png;base64,")
        if name == "style":
            assert "url" not in value
    assert "url(" not in page.raw["style"]
    assert "@import" not in page.raw["style"]
    assert not {"iframe", "object", "embed", "link", "base", "form", "audio", "video"} & {
        shape[0] for shape in page.shape
    }
    assert "://" not in render(worded("x"))


def test_security_policy_allows_exactly_the_script_of_the_page(worded):
    page = Page(render(worded("x")))
    policy = next(value for tag, name, value in page.values if name == "content" and "default-src" in value)
    digest = base64.b64encode(hashlib.sha256(page.raw["script"].encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_links_lead_to_sections_of_the_page(worded):
    values = Page(render(worded("x"))).values
    ids = [value for _, name, value in values if name == "id"]
    links = [value[1:] for _, name, value in values if name == "href"]
    assert len(ids) == len(set(ids))
    assert set(links) <= set(ids)
    assert len(links) == 8


def test_every_image_has_alternative_text_and_every_chart_a_label(worded):
    page = Page(render(worded("x")))
    alts = [value for tag, name, value in page.values if tag == "img" and name == "alt"]
    assert len(alts) == sum(shape[0] == "img" for shape in page.shape) > 0
    assert all(alts)
    charts = [shape for shape in page.shape if shape[0] == "svg" and "role" in shape]
    assert len(charts) == 9  # lead, relative loss, loss of two recipes, one task, one figure, three costs
    assert all("aria-label" in shape for shape in charts)


def test_same_report_gives_the_same_page(worded):
    assert render(worded("x")) == render(worded("x"))


def test_eight_recipes_with_galleries_stay_under_five_megabytes(recipe, linear, comparison):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (8, 8, 4, 28, 28, 3), dtype=np.uint8)
    fine = coarse.repeat(8, axis=3).repeat(8, axis=4)
    fine ^= rng.integers(0, 32, fine.shape, dtype=np.uint8)
    steps = tuple(range(5000))
    entries = [
        replace(
            recipe(f"r{i}", linear(50 + i)),
            curves=(Curve("loss", steps, tuple((1 + rng.random(5000) / (1 + np.arange(5000))).tolist())),),
            panels=tuple(Panel(f"p{k}", tuple(Picture("c", image) for image in row)) for k, row in enumerate(rows)),
            config_yaml="key: value\n" * 200,
        )
        for i, rows in enumerate(fine)
    ]
    assert len(render(comparison(*entries)).encode()) < 5_000_000


def test_pictures_within_the_budget_keep_every_pixel(recipe, comparison, picture):
    shown = picture(3, "cat", side=64)
    page = render(comparison(replace(recipe("a"), panels=(Panel("input", (shown,)),))))
    (uri,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(uri)))), shown.pixels)


@pytest.mark.parametrize("budget", [20_000, 60_000, 200_000])
def test_pictures_are_reduced_together_until_they_fit(picture, budget):
    found = [picture(i, "c", side=128) for i in range(4)]
    uris = pictures.fit(found, budget)
    sizes = {Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size for uri in uris.values()}
    assert sum(map(len, uris.values())) <= budget
    assert len(sizes) == 1
    assert len(uris) == 4


def test_panels_equal_for_all_recipes_are_shown_once(recipe, comparison, picture):
    shared = Panel("input", (picture(0, "cat"), picture(1, "dog")))
    entries = [
        replace(recipe(name), panels=(shared, Panel("prediction", (picture(i, "cat"), picture(i + 9, "dog")))))
        for i, name in enumerate("abc", start=2)
    ]
    page = Page(render(comparison(*entries)))
    alts = [value for tag, name, value in page.values if tag == "img" and name == "alt"]
    assert alts[:4] == ["input: cat", "input: dog", "A, prediction: cat", "A, prediction: dog"]
    assert len(alts) == 2 + 3 * 2
    assert page.text.count("cat") == 1


def test_axes_shared_by_all_recipes_are_muted(recipe, comparison):
    a, b = recipe("a"), recipe("b")
    b = replace(b, axes=replace(b.axes, teacher="pixel"))
    page = render(comparison(a, b))
    assert page.count('class="chip same"') == 2 * 4
    assert render(comparison(a)).count('class="chip same"') == 0


def test_best_score_and_those_level_with_it_are_bold(recipe, linear, comparison):
    page = render(comparison(recipe("a", linear(60)), recipe("b", linear(59.5)), recipe("c", linear(50))))
    assert page.count("score leads") == 2


def test_note_of_a_panel_is_shown(recipe, comparison, picture):
    panel = Panel("prediction", (picture(0, "cat"),), "uses the target's mean and variance")
    assert "uses the target's mean and variance" in Page(render(comparison(replace(recipe("a"), panels=(panel,))))).text


def incomplete(recipe, linear, comparison):
    nan, skipped = math.nan, (Skipped("beit", "no weights"),)
    steps = (0, 1, 2)
    yield "nothing", comparison()
    yield "only skipped", comparison(skipped=skipped)
    yield "bare recipe", comparison(replace(recipe("a"), axes=None))
    yield "NaN score", comparison(recipe("a", linear(nan, None)), recipe("b", linear(50)))
    yield "infinite interval", comparison(recipe("a", linear(50, math.inf)), recipe("b", linear(40)))
    yield "absurd score", comparison(recipe("a", linear(1e300)), recipe("b", linear(40)))
    yield "NaN loss", comparison(replace(recipe("a"), curves=(Curve("loss", steps, (nan, nan, nan)),)))
    yield "diverged", comparison(replace(recipe("a"), curves=(Curve("loss", steps, (1.0, math.inf, -math.inf)),)))
    yield "one step", comparison(replace(recipe("a"), curves=(Curve("loss", (0,), (0.0,)),)))
    yield "empty curve", comparison(replace(recipe("a"), curves=(Curve("loss", (), ()),)))
    yield "negative loss", comparison(replace(recipe("a"), curves=(Curve("loss", steps, (-0.1, -0.5, -0.9)),)))
    yield "extreme loss", comparison(replace(recipe("a"), curves=(Curve("loss", steps, (1e-300, 1e300, 5e-324)),)))
    yield "no cost values", comparison(replace(recipe("a"), cost=Cost()))
    yield "NaN cost", comparison(replace(recipe("a"), cost=Cost(nan, nan, math.inf, 0, 0)))
    yield "empty panel", comparison(replace(recipe("a"), panels=(Panel("input", ()),)))
    yield "only a baseline", comparison(replace(recipe("r", linear(30)), kind="random"))
    yield "task of a baseline only", comparison(recipe("a"), replace(recipe("r", linear(30)), kind="random"))


def test_missing_parts_render(recipe, linear, comparison):
    for name, report in incomplete(recipe, linear, comparison):
        page = Page(render(report))
        numbers = " ".join(value for _, attribute, value in page.values if attribute not in {"content", "aria-label"})
        assert not re.search(r"\b(nan|inf)\b", numbers), name
        assert "None" not in " ".join(page.text).replace("None.", ""), name


def test_write_replaces_the_file_and_creates_folders(comparison, recipe, tmp_path):
    path = tmp_path / "run" / "report.html"
    assert write(comparison(), path) == path
    write(comparison(recipe("a")), path)
    assert path.read_text(encoding="utf-8") == render(comparison(recipe("a")))
    assert os.listdir(path.parent) == ["report.html"]


def test_reader_of_the_old_file_is_not_disturbed(comparison, recipe, tmp_path):
    path = tmp_path / "report.html"
    write(comparison(), path)
    with path.open(encoding="utf-8") as reader:
        write(comparison(recipe("a")), path)
        assert reader.read() == render(comparison())


def test_interrupted_write_leaves_the_old_file(comparison, recipe, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    write(comparison(), path)

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(html.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write(comparison(recipe("a")), path)
    assert path.read_text(encoding="utf-8") == render(comparison())
    assert os.listdir(tmp_path) == ["report.html"]


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_meet_wcag_contrast(comparison, theme):
    style = Page(render(comparison())).raw["style"]
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", style.split(":root {")[1 + theme].split("}")[0]))

    def contrast(a: str, b: str) -> float:
        low, high = sorted((luminance(colors[a]), luminance(colors[b])))
        return (high + 0.05) / (low + 0.05)

    for word in ("ink", "soft", "faint", "warn"):
        assert min(contrast(word, "page"), contrast(word, "sunk")) >= 4.5, word
    for mark in ("series-0", "series-1", "series-2", "series-3", "series-4", "series-5", "series-6"):
        assert contrast(mark, "page") >= 3, mark
