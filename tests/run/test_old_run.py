"""A run that an older version made is continued, evaluated, loaded and reported."""

import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from helpers.paths import GOLDEN
from helpers.processes import environment
from helpers.records import lines, without_times

import vicreg_jax
from vicreg_jax.run import result_file

ARCHIVE = GOLDEN / "run_5c53f51.tar.xz"
CHANGES = (
    *("--config=digits", "--config.data.batch_size=128", "--config.evaluate.draws=0"),
    *("--config.model.expander=(16,16)", "--config.optimizer.warmup_epochs=1.0"),
    *("--config.every.log_steps=1", "--config.epochs=3"),
)
TERMS = ("loss", "invariance", "variance", "covariance", "grad_norm", "learning_rate")


@pytest.fixture
def folder(tmp_path):
    """A digits run of 2 epochs at step 22, and what the old version went on to get."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    run = tmp_path / "run"
    for path in [*run.glob("eval/*/config.json"), *run.glob("eval/*/result.json")]:
        path.write_text(path.read_text().replace('"RUN"', json.dumps(str(run))))
    return tmp_path


def begin(*flags):
    """Starts the program on one device, as the old version ran."""
    command = [sys.executable, "-m", "vicreg_jax.main", *flags]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=environment(), stdout=pipe, stderr=pipe, text=True
    )


def end(process):
    out, err = process.communicate(timeout=1500)
    assert process.returncode == 0, err
    return out, err


def parsed(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_old_run_is_continued_as_the_old_version_did(folder):
    run = folder / "run"
    old = lines(run)
    _, err = end(begin(*CHANGES, f"--workdir={run}"))
    assert f"continuing {run} at step 22 of 33" in err

    made = lines(run)
    wanted = parsed(folder / "whole_metrics.jsonl")
    assert made[:22] == old == wanted[:22]
    assert [line["step"] for line in made] == [line["step"] for line in wanted]
    for own, line in zip(made[22:], wanted[22:], strict=True):
        # One pass for both views where there were two: other rounding, which 11 steps
        # amplify. Seen: loss 1e-7, terms 2e-6, norm of the gradient 4e-4.
        seen, expected = ({name: x[name] for name in TERMS} for x in (own, line))
        assert seen == pytest.approx(expected, rel=1e-3), own["step"]
        later = {"embedding_std_least", "embedding_std_greatest"}
        assert set(own) == set(line) | later
    assert (run / "checkpoints" / "33").is_dir()


@pytest.mark.slow
def test_old_evaluations_are_shown_continued_and_reported(folder):
    run = folder / "run"
    assert not (run / "eval" / "knn" / "features").exists()
    checkpoint = f"--config.checkpoint={run}"
    knn = begin("--config=eval/knn", checkpoint, "--config.knn.neighbours=(5,)")
    head = ("--config.epochs=2", "--config.data.batch_size=128")
    linear = begin("--config=eval/linear", checkpoint, *head)
    out, _ = end(knn)
    assert "knn: digits, 360 test images, checkpoint of step 22" in out
    assert "84.2" in out
    assert not (run / "eval" / "knn" / "features").exists()

    _, err = end(linear)
    assert f"continuing {run}/eval/linear at step 11 of 22" in err
    made = result_file.read(run / "eval" / "linear")
    wanted = json.loads((folder / "linear_result.json").read_text())
    added = {name: made.pop(name) for name in ("variables", "images")}
    assert made == wanted | {"checkpoint": str(run)} and all(added.values())
    wanted = parsed(folder / "linear_metrics.jsonl")
    made, wanted = without_times(lines(run / "eval" / "linear")), without_times(wanted)
    for own, line in zip(made, wanted, strict=True):
        assert own == pytest.approx(line, rel=1e-5)  # of rounding, seen: none

    pytest.importorskip("matplotlib", reason="the extra report")
    pytest.importorskip("jinja2", reason="the extra report")
    _, err = end(begin("--config=report", f"--workdir={run}"))
    page = run / "report.html"
    assert f"{page} is written" in err
    assert "21.4" in page.read_text()  # of the linear evaluation


def test_old_run_is_loaded(folder):
    encoder = vicreg_jax.load(folder / "run")
    assert encoder.step == 22 and encoder.config.optimizer.name == "adamw"
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    features = np.asarray(encoder(images))
    assert features.shape == (4, 64)
    assert np.isfinite(features).all() and features.std(axis=0).max() > 0
    assert encoder.expander is not None
