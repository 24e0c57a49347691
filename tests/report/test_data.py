import subprocess
import sys

import numpy as np
import pytest

from unimim.report import Curve, Entry, Picture, Report, Score


def test_report_package_does_not_import_torch():
    code = "import sys, unimim.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)],
    ids=["float", "grey", "channels first", "empty"],
)
def test_picture_refuses_anything_but_rgb_bytes(pixels):
    with pytest.raises(ValueError, match=r"'cat'.*\(H, W, 3\) uint8"):
        Picture("cat", pixels)


def test_reversed_interval_is_refused():
    with pytest.raises(ValueError, match=r"'k-NN'.*low > high"):
        Score("k-NN", "top-1", 50.0, interval=(51.0, 49.0))


def test_curve_of_unequal_lengths_is_refused():
    with pytest.raises(ValueError, match=r"'loss': 2 steps but 1 values"):
        Curve("loss", (0, 1), (0.5,))


def test_entries_must_have_different_names():
    with pytest.raises(ValueError, match=r"\['mae'\]"):
        Report("t", "c", "d", "e", "f", entries=(Entry("mae", "MAE"), Entry("mae", "MAE again")))


def test_recipes_and_baselines_partition_the_entries():
    entries = (Entry("a", "A"), Entry("r", "R", kind="random"), Entry("p", "P", kind="pixels"), Entry("b", "B"))
    report = Report("t", "c", "d", "e", "f", entries=entries)
    assert [entry.name for entry in report.recipes] == ["a", "b"]
    assert [entry.name for entry in report.baselines] == ["r", "p"]
