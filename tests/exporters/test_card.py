"""The model card: YAML that the hub reads, and names that stay text."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import yaml
from huggingface_hub import ModelCard

from unimim import load
from unimim.exporters.base import Trained
from unimim.exporters.card import card
from unimim.exporters.hf import export_hf

RUN = {
    "data": {"spec": "/home/jo/secret/photos", "images": 1234, "fingerprint": "f1n9e4"},
    "command": "unimim train mae-micro --data /home/jo/secret/photos --out=/home/jo/runs/mae epochs=5",
    "versions": {"unimim": "0.1.0", "torch": "2.9.1"},
    "source": {"commit": "abc123", "dirty": True},
}
HOSTILE = "x|y\\|z\n---\nlicense: mit\n# <script>alert(1)</script> `a` ``` [l](http://e.vil) \"'{} \x1b[31m"


def record(folder: Path, run: dict[str, Any], scores: list[dict[str, Any]]) -> None:
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "eval.jsonl").write_text("".join(json.dumps(score) + "\n" for score in scores))


def score(made: Trained, **other: Any) -> dict[str, Any]:
    about = {"hash": made.recipe.hash, "data": "shapes", "fingerprint": "t3st", "test": 200, "task": "knn"}
    found = {"metric": "top-1", "value": 61.25, "unit": "%", "interval": [54.3, 67.9], "protocol": "cosine, k = 20"}
    return {**about, **found, **other}


def front(text: str) -> dict[str, Any]:
    """The YAML at the head, as the hub finds it: up to the first line ---."""
    assert text.startswith("---\n")
    found = yaml.safe_load(text.removeprefix("---\n").partition("\n---")[0])
    assert isinstance(found, dict)
    return found


def test_the_folder_for_the_hub(trained: Any, tmp_path: Path) -> None:
    made = trained()
    difference = export_hf(made, tmp_path)
    assert difference < 1e-4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).num_features == 32
    text = (tmp_path / "README.md").read_text()
    assert f"by at most {difference:.2g}" in text
    assert "model-index" not in front(text)
    assert "Not recorded" in text
    assert "None measured" in text
    with pytest.raises(ValueError, match=r"Use --to torch"):
        export_hf(trained(eps=1e-3), tmp_path)


def test_a_card_tells_axes_data_metrics_and_sources(trained: Any, tmp_path: Path) -> None:
    made = replace(trained(), source=tmp_path)
    no_interval = score(made, task="segmentation", metric="mIoU", value=31.4, interval=None)
    stale = [score(made, value=11.11), score(made, hash="another", task="linear", value=99.99)]
    stale.append(score(made, momentum=True, protocol="of the momentum copy", value=88.88))
    record(tmp_path, RUN, [*stale, score(made), no_interval])
    text = card(made, 1e-6)
    head = front(text)
    assert (head["library_name"], head["license"], head["datasets"]) == ("timm", "unknown", ["photos"])
    results = head["model-index"][0]["results"]
    assert [result["metrics"][0]["value"] for result in results] == [61.25, 31.4]
    read = ModelCard(text).data.eval_results
    assert read is not None
    assert [(found.metric_type, found.metric_value) for found in read] == [("accuracy", 61.25), ("mean_iou", 31.4)]
    rows = [line for line in text.splitlines() if line.startswith("|")]
    for axis in made.recipe.axes().values():
        assert any(line.endswith(f"| {axis} |") for line in rows), axis
    metrics = next(line for line in rows if line.startswith("| knn"))
    assert "54.3\u00a0to\u00a067.9" in metrics
    assert "| shapes | 200 | cosine, k = 20 |" in metrics
    assert "1234" in text
    assert "f1n9e4" in text
    assert "unimim train mae-micro --data photos --out=mae epochs=5" in text
    assert "`abc123` with changes" in text
    assert any(line.startswith("| `optimization.lr` | `") and "ours" in line for line in rows)
    for absent in ("11.11", "88.88", "99.99", "secret", "/home"):
        assert absent not in text


def test_the_weights_of_a_run_know_their_run(trained: Any, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    made = replace(trained(), source=tmp_path / "weights")
    record(tmp_path, RUN, [])
    (tmp_path / "weights" / "eval.jsonl").write_text(json.dumps(score(made)))
    assert front(card(made, 0.0))["model-index"]
    (tmp_path / "eval.jsonl").write_text("{")
    with pytest.raises(ValueError, match=r"eval.jsonl cannot be read .*move it away"):
        card(made, 0.0)


def test_hostile_names_stay_text(trained: Any, tmp_path: Path) -> None:
    recipe = load({**load("mae-micro").data(), "name": "a|b `c` <i> ---", "title": HOSTILE, "paper": HOSTILE})
    made = replace(trained(), source=tmp_path, recipe=recipe)
    run = {**RUN, "data": {"spec": HOSTILE, "images": HOSTILE, "fingerprint": HOSTILE}, "command": HOSTILE}
    words = dict.fromkeys(("data", "task", "metric", "unit", "protocol", "test"), HOSTILE)
    record(tmp_path, {**run, "versions": {HOSTILE: HOSTILE}}, [score(made, **words)])
    text = card(made, 0.0)
    plain, head = card(replace(made, source=tmp_path / "none"), 0.0), front(text)
    assert head["license"] == "unknown"
    assert head["model-index"][0]["name"] == recipe.name
    assert [*head] == ["license", "library_name", "pipeline_tag", "tags", "datasets", "model-index"]
    assert "\x1b" not in text
    outside = "\n".join(line for line in text.splitlines()[text.splitlines().index("---", 1) :])
    headings = [line for line in outside.splitlines() if line.startswith("#")]
    assert len(headings) == len([line for line in plain.splitlines() if line.startswith("#")])
    assert headings[0].startswith(r"# x\|y\\\|z --- license: mit # &lt;script&gt;")
    tables = outside.split("\n\n")
    for table in (part.splitlines() for part in tables if part.startswith("|")):
        cells = {re.sub(r"\\.", "", line).count("|") for line in table}
        assert len(cells) == 1, table
