"""Results and features are those of an encoder and of images, wherever these lie."""

import json
import shutil

import pytest
from helpers.pictures import picture, pictures

from vicreg_jax import train
from vicreg_jax.config import evaluation
from vicreg_jax.evaluate import tasks
from vicreg_jax.refusals import Refusal

SIZE = dict(image_size=8, batch_size=8)


def trained(root, workdir, seed):
    config = dict(
        epochs=1,
        seed=seed,
        data=dict(name="folder", path=str(root / "train"), **SIZE),
        model=dict(encoder="digits", expander=(8, 8)),
        optimizer=dict(warmup_epochs=0),
    )
    train.run(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Images, and two runs on them that differ by the seed."""
    root = tmp_path_factory.mktemp("same")
    pictures(root / "train", each=6)
    pictures(root / "test", each=3)
    for i in range(3):  # others than those of training
        for name in "ab":
            picture(77 + i, 30, 30).save(root / "test" / name / f"{i}.png")
    for seed in (0, 1):
        trained(root, root / f"run{seed}", seed)
    return root


@pytest.fixture
def here(made, tmp_path):
    shutil.copytree(made, tmp_path / "here")
    return tmp_path / "here"


def knn(root, run, out, **data):
    where = dict(name="folder", path=str(root / "train"), test_path=str(root / "test"))
    given = dict(
        checkpoint=str(root / run), data=where | SIZE | data, knn=dict(neighbours=(1,))
    )
    tasks.run(evaluation.parse(given), out, name="knn")
    return json.loads((out / "result.json").read_text())


def test_the_same_elsewhere_is_only_shown(here, tmp_path, capsys):
    first = knn(here, "run0", tmp_path / "out")
    written = (tmp_path / "out" / "result.json").stat().st_mtime_ns
    said = capsys.readouterr().err
    line = "knn of digits at step 1 from"
    assert line in said and "12 of 12 images in 2 classes for training, 6 im" in said
    here.rename(tmp_path / "there")
    assert knn(tmp_path / "there", "run0", tmp_path / "out") == first
    assert (tmp_path / "out" / "result.json").stat().st_mtime_ns == written
    assert line not in capsys.readouterr().err


def test_another_run_of_as_many_steps_at_the_path_is_refused(here, tmp_path):
    first = knn(here, "run0", tmp_path / "out")
    shutil.rmtree(here / "run0")
    (here / "run1").rename(here / "run0")
    with pytest.raises(Refusal, match="has the result of another encoder; choose ano"):
        knn(here, "run0", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == first


def replace(root):
    picture(99, 64, 64).save(root / "test" / "a" / "1.png")


def remove(root):
    (root / "train" / "b" / "5.png").unlink()


def relabel(root):
    (root / "test" / "a" / "2.png").rename(root / "test" / "b" / "7.png")


@pytest.mark.parametrize(
    "change, words",
    [
        (replace, "test sizes of files differ"),
        (remove, "choice of training images, training "),
        (relabel, "test names of files, test sizes of files, test labels differ"),
    ],
)
def test_other_images_are_refused_whether_it_had_ended_or_not(
    change, words, here, tmp_path
):
    knn(here, "run0", tmp_path / "out")
    change(here)
    with pytest.raises(Refusal, match=f"the result of other images .{words}"):
        knn(here, "run0", tmp_path / "out")
    (tmp_path / "out" / "result.json").unlink()  # as if it had been stopped before
    with pytest.raises(Refusal, match="holds features of another (data|rows)"):
        knn(here, "run0", tmp_path / "out")


def test_a_result_of_old_that_tells_nothing_is_shown(here, tmp_path):
    first = knn(here, "run0", tmp_path / "out")
    added = ("variables", "images", "checksum")
    old = {k: v for k, v in first.items() if k not in added}
    (tmp_path / "out" / "result.json").write_text(json.dumps(old))
    assert knn(here, "run0", tmp_path / "out") == old
