"""The table of a study against NumPy and SciPy; the list of runs."""

import csv

import numpy as np
import pytest
import scipy.stats
from helpers.pages import Page, fill, line, make_run, write_json

from vicreg_jax.config import Study
from vicreg_jax.refusals import NotFound, Refusal

pytest.importorskip("matplotlib", reason="the extra report")
pytest.importorskip("jinja2", reason="the extra report")

from vicreg_jax.report import listing, study  # noqa: E402
from vicreg_jax.report.read import read_run  # noqa: E402
from vicreg_jax.report.study import Run  # noqa: E402


def some_runs():
    """Three seeds of two rows under two variations; one value is missing."""
    rng = np.random.default_rng(0)
    runs = [
        Run(row, variation, seed, {"healthy": 100.0 * (row == "a"), "x": rng.normal()})
        for seed in range(3)
        for variation in ("epochs=1", "epochs=2")
        for row in ("a", "b")
    ]
    del runs[-1].values["x"]
    return runs


def test_means_have_students_interval_and_count_what_is_there():
    runs = some_runs()
    table = study.means(runs, ["x"])
    for row, count in (("a", 6), ("b", 5)):
        x = np.array([r.values["x"] for r in runs if r.row == row and "x" in r.values])
        low, high = scipy.stats.t.interval(
            0.95, count - 1, x.mean(), scipy.stats.sem(x)
        )
        assert table[row]["x"] == pytest.approx((x.mean(), (high - low) / 2, count))


def test_gains_are_paired_by_variation_and_seed():
    runs = some_runs()
    (cell,) = study.gains(runs, ["healthy", "x"], "b")["a"].values()
    by = {(r.row, r.variation, r.seed): r.values.get("x") for r in runs}
    pairs = [
        x - by["b", variation, seed]
        for (row, variation, seed), x in by.items()
        if row == "a" and by["b", variation, seed] is not None
    ]
    assert cell.mean == pytest.approx(np.mean(pairs)) and cell.count == 5


def test_the_files_have_every_run_and_the_shares_of_healthy_ones(tmp_path):
    options = dict(rows=(("a",), ("b",)), columns=("healthy", "x"), baseline="b")
    config = Study.parse(options | dict(published={"a": 0.5}, published_as="top-1"))
    text = study.write(config, some_runs(), tmp_path)
    assert (tmp_path / "study.md").read_text() == text
    head, _, a, b = text.splitlines()[:4]
    assert head == "|  | healthy | x | published top-1 | runs |"
    low, high = scipy.stats.binomtest(6, 6).proportion_ci(method="wilson")
    assert a.startswith(f"| a | 6 of 6 ({100 * low:.0f}–{100 * high:.0f} %) | ")
    assert a.endswith(" | 0.5 | 6 |") and b.endswith(" |  | 6 |")
    assert "Less b, run by run:" in text
    with open(tmp_path / "study.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert (
        len(rows) == 12 and rows[-1]["x"] == "" and rows[0]["variation"] == "epochs=1"
    )
    page = Page((tmp_path / "study.html").read_text())
    assert "12 runs" in page.words and "http" not in page.words
    assert len(page.ids) == len(set(page.ids))


def test_a_column_that_no_run_has_is_refused_with_those_that_there_are(tmp_path):
    config = Study.parse(dict(rows=(("a",), ("b",)), columns=("knn",)))
    with pytest.raises(Refusal, match="no run has knn; there are healthy, x"):
        study.write(config, some_runs(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_values_of_a_run_are_those_of_its_files(tmp_path):
    run = make_run(tmp_path / "a")
    fill(run)
    seconds = dict.fromkeys(
        ("steps", "starting", "compiling", "waiting for data", "saving", "judging"),
        10.0,
    )
    start = dict(began="2026-01-01 00:00:00", first=0, last=500, seconds=seconds)
    write_json(run / "starts.jsonl", start)
    found = study.values(read_run(run))
    want = {"healthy": 100, "minutes": 1, "embedding_std at first": 0.34}
    want |= {"embedding_std": 0.61, "1-NN, all labels": 85, "knn: 20-NN top-1": 61.25}
    assert want | {"raw pixels: 1-NN, 1 labels": 52.0} == {
        k: found[k] for k in [*want, "raw pixels: 1-NN, 1 labels"]
    }


def test_runs_are_listed_the_best_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "b").mkdir()
    make_run(tmp_path / "b/one", lines=[line(1), line(500, embedding_std=0.01)])
    make_run(tmp_path / "a", lines=[line(1), line(1000, knn_top1=50.0)])
    make_run(tmp_path / "c", lines=[line(1), line(900, knn_top1=70.0)])
    write_json(tmp_path / "a/eval/knn/config.json", {"task": "knn"})
    listing.show(tmp_path)
    plain = capsys.readouterr().out
    assert [plain.index(f" {name} ") for name in ("a", "b/one", "c")] == sorted(
        plain.index(f" {name} ") for name in ("a", "b/one", "c")
    )
    assert "not healthy" in plain and "Step 900 of 1,000, not finished" in plain
    assert "knn/" not in plain and "eval" not in plain
    listing.show(tmp_path, by="knn_top1")
    by = capsys.readouterr().out
    assert by.index(" c ") < by.index(" a ") < by.index(" b/one ")
    with pytest.raises(Refusal, match="no run has 'top'; there are healthy,"):
        listing.show(tmp_path, by="top")
    with pytest.raises(NotFound, match="there is no run here"):
        listing.show(tmp_path / "a/eval")
