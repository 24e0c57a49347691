"""The page in a real browser: it complains of nothing, asks nobody for anything, and shows hostile names as text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.report.browser import FOUND, Browser
from unimim.report import Report, write

pytestmark = pytest.mark.skipif(FOUND is None, reason="no Chromium on the PATH")

HOSTILE = '"><img src=http://example.org/x onerror=window.hit=1><script>window.hit=1</script></title></style><svg onload=hit=1>'


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as found:
        yield found


@pytest.fixture
def page(browser: Browser, worded: Callable[[str], Report], tmp_path: Path) -> Callable[[str], Browser]:
    def opened(name: str) -> Browser:
        browser.open(write(worded(name), tmp_path / "report.html"))
        return browser

    return opened


def test_hostile_names_are_text_and_nothing_is_asked_of_the_network(page: Callable[[str], Browser]) -> None:
    browser = page(HOSTILE)
    assert browser.complaints() == []
    assert browser.ask("typeof window.hit") == "undefined"
    assert browser.ask("[...document.images].every(image => image.src.startsWith('data:image/png;base64,'))")
    assert browser.ask("document.scripts.length") == 1
    assert browser.ask("document.querySelectorAll('[onerror], [onload], iframe, object, embed').length") == 0
    assert "onerror=window.hit=1" in browser.ask("document.querySelector('h1').textContent")
    assert browser.ask("performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length") == 0


def test_the_policy_of_the_page_refuses_what_a_bug_could_let_in(page: Callable[[str], Browser]) -> None:
    """The second wall, tried: a live tag that asks for a picture and runs a script gets neither."""
    browser = page("x")
    browser.ask("document.body.insertAdjacentHTML('beforeend', '<img src=https://example.org/x onerror=window.hit=1>')")
    browser.ask("new Promise(done => setTimeout(done, 200))")
    assert browser.ask("typeof window.hit") == "undefined"
    assert any("Content Security Policy" in complaint for complaint in browser.complaints())
    assert not any(complaint.startswith("response") for complaint in browser.complaints())


def test_dark_and_light_differ_and_neither_is_blank(page: Callable[[str], Browser]) -> None:
    browser = page("A recipe")
    light, dark = browser.look(1280, 900), browser.look(1280, 900, dark=True)
    assert light.mean() > 200
    assert dark.mean() < 60
    assert min(len(np.unique(shot.astype(int) @ (1, 256, 65536))) for shot in (light, dark)) > 50


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_is_never_wider_than_the_window(page: Callable[[str], Browser], width: int) -> None:
    browser = page("A-recipe-with-a-name-that-is-far-too-long-to-fit-anywhere-" * 3)
    browser.look(width, 800)
    assert browser.ask("document.documentElement.scrollWidth") <= width


def test_columns_are_sorted_and_commands_copied_by_hand(page: Callable[[str], Browser]) -> None:
    browser = page("x")
    click = "document.querySelector('#leaderboard thead button').click()"
    column = "[...document.querySelectorAll('#leaderboard tbody')][0].rows"
    values = f"[...{column}].map(row => Number(row.cells[1].dataset.value))"
    browser.ask(click)
    falling = browser.ask(values)
    browser.ask(click)
    assert falling == sorted(falling, reverse=True)
    assert browser.ask(values) == sorted(falling)
    browser.ask("document.querySelector('.copy').click()")
    assert browser.complaints() == []


def test_it_prints_in_light_colours_without_buttons(page: Callable[[str], Browser]) -> None:
    browser = page("A recipe")
    assert browser.look(800, 1000, dark=True, media="print").mean() > 200
    assert browser.ask("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert browser.print().startswith(b"%PDF")
