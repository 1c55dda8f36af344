"""The benchmark of gradients on several processes: what it measures, and its table."""

import json

import pytest
from helpers.paths import ROOT

from benchmarks import exactness


def test_ratio_and_angle_of_two_gradients():
    for gradient, reference, ratio, angle in (
        ([2.0, 0.0], [1.0, 0.0], 2, 0),
        ([0.0, 3.0], [6.0, 0.0], 0.5, 90),
        ([-1.0, -1.0], [1.0, 1.0], 1, 180),
    ):
        found = exactness.compare(gradient, reference)
        assert found == pytest.approx({"ratio": ratio, "angle": angle}, abs=1e-6)


def test_the_page_has_the_table_of_the_results():
    kept = json.loads((ROOT / "benchmarks/results/exactness.json").read_text())
    page = (ROOT / "docs/comparison.md").read_text()
    assert exactness.table(kept["libraries"]) in page
    for loss in kept["libraries"]["vicreg_jax"]["losses"].values():
        assert all(
            abs(x["ratio"] - 1) < 5e-4 and x["angle"] < 5e-3 for x in loss.values()
        )


def test_a_library_that_cannot_be_imported_has_a_row_that_says_so():
    absent = {"version": "not installed", "why_not": "not imported: no module"}
    last = exactness.table({"lightly": absent}).splitlines()[-1]
    assert last == "| lightly not installed | not imported: no module | | | |"


@pytest.mark.long
def test_ours_on_all_devices_is_float64_on_one():
    found = exactness.mine(0, 1, 0)["vicreg_jax"]
    for loss, want in found["float64"].items():
        got = exactness.compare(found["float32"][loss], want)
        # Float32: 1e-6 of a gradient, whose direction is off by as many radians.
        assert got == pytest.approx({"ratio": 1, "angle": 0}, abs=1e-3), loss
