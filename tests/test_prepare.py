"""The task prepare, and a run on what it wrote, as users start them."""

import os

import numpy as np
import pytest
from helpers.paths import ROOT
from helpers.processes import main
from helpers.runs import checkpoint_hash
from PIL import Image

from vicreg_jax.run.lock import Lock

TRAIN = (
    *("--config.epochs=2", "--config.optimizer.warmup_epochs=1"),
    *("--config.model.encoder=digits", "--config.model.expander=(8,8)"),
    *("--config.data.batch_size=8", "--config.data.image_size=16"),
    *("--config.model.dtype=float32", "--config.augment.jitter=0"),
    *("--config.augment.blur=(0,0)", "--config.augment.solarize=(0,0)"),
)


def prepare(*flags):
    return main(f"--config={ROOT}/configs/prepare.py", *flags)


@pytest.mark.long
def test_a_run_on_prepared_images_is_the_run_on_the_folder(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(20):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = rng.integers(0, 256, (30 + i, 40, 3), np.uint8)
        Image.fromarray(picture).save(path)
    made, source = tmp_path / "made", f"--config.data.path={tmp_path}/images"
    for _ in range(2):  # the second time it is finished
        done = prepare(source, f"--workdir={made}", "--config.prepare.shards=3")
        assert done.returncode == 0, done.stderr
        assert "train with --config.data.name=prepared" in done.stderr
    train = f"--config={ROOT}/configs/folder.py"
    a = main(train, *TRAIN, source, f"--workdir={tmp_path}/a")
    prepared = ("--config.data.name=prepared", f"--config.data.path={made}")
    b = main(train, *TRAIN, *prepared, f"--workdir={tmp_path}/b")
    assert (a.returncode, b.returncode) == (0, 0), a.stderr + b.stderr
    assert checkpoint_hash(tmp_path / "a") == checkpoint_hash(tmp_path / "b")


def test_what_cannot_be_prepared_is_refused_in_one_line(tmp_path):
    workdir = f"--workdir={tmp_path}/made"
    for flags, message in (
        (["--config.data.name=digits"], "gives arrays, which are read as they are"),
        ([f"--config.data.path={tmp_path}"], "data.path: no images below"),
        ([], "config.data.path is empty; data.name 'folder' needs the folder"),
    ):
        done = prepare(*flags, workdir)
        assert done.returncode == 2 and message in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "made").exists()


def test_two_at_once_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "0.png")
    with Lock(tmp_path):
        done = prepare(f"--config.data.path={tmp_path}", f"--workdir={tmp_path}")
    assert done.returncode == 2
    assert f"{tmp_path} is held by process {os.getpid()} on " in done.stderr


def test_training_on_an_unfinished_preparation_is_refused(tmp_path):
    (tmp_path / "unfinished").mkdir()
    flags = ("--config.data.name=prepared", f"--config.data.path={tmp_path}")
    done = main(f"--config={ROOT}/configs/folder.py", *TRAIN, *flags)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "index.json" in done.stderr
