"""Evaluations, exports and reports as their users start them, in fresh processes."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import pages
from helpers.paths import ROOT
from helpers.processes import DIGITS, TINY, main
from helpers.records import lines
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from vicreg_jax import models
from vicreg_jax.config import evaluation
from vicreg_jax.data.sources.digits import load_digits
from vicreg_jax.evaluate import encode, tasks
from vicreg_jax.weights import loading, torch_names


def judge(name, run, *flags):
    config = f"--config={ROOT}/configs/eval/{name}.py"
    return main(config, f"--config.checkpoint={run}", *flags)


def result(run, name):
    return json.loads((run / "eval" / name / "result.json").read_text())


def test_nearest_neighbours_are_scikit_learns(run):
    done = judge("knn", run, "--config.knn.neighbours=(1,20)")
    assert done.returncode == 0, done.stderr
    found = result(run, "knn")
    loaded = loading.load(run)
    train, test = load_digits()
    a, b = (encode(loaded, part) for part in (train, test))
    votes = KNeighborsClassifier(
        20, metric="cosine", weights=lambda distances: np.exp(-distances / 0.07)
    )
    want = 100 * np.mean(votes.fit(a, train.labels).predict(b) == test.labels)
    assert found["results"]["20-NN top-1"] == pytest.approx(want, abs=1e-6)
    assert found["step"] == 56 and found["tested"] == 360 and found["data"] == "digits"
    assert f"{want:.1f}" in done.stdout and "published" not in done.stdout


def test_a_finished_evaluation_is_only_shown_and_another_is_refused(run):
    flags = ("--config.knn.neighbours=(3,)", "--config.data.test_split=")
    assert judge("knn", run, *flags, f"--workdir={run}/eval/three").returncode == 0
    written = (run / "eval" / "three" / "result.json").stat().st_mtime_ns
    again = judge("knn", run, *flags, f"--workdir={run}/eval/three")
    assert again.returncode == 0 and "3-NN top-1" in again.stdout
    assert (run / "eval" / "three" / "result.json").stat().st_mtime_ns == written
    other = judge("knn", run, f"--workdir={run}/eval/three")
    assert other.returncode == 2
    assert "knn.neighbours was [3], is [1, 20, 200]" in other.stderr


@pytest.mark.slow
def test_a_result_of_an_older_checkpoint_is_not_taken_for_the_new_one(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "eval", ignore_errors=True)
    three = "--config.knn.neighbours=(3,)"
    assert judge("knn", tmp_path / "run", three).returncode == 0
    more = (DIGITS, f"--workdir={tmp_path / 'run'}", *TINY, "--config.evaluate.draws=0")
    assert main(*more, "--config.epochs=5").returncode == 0
    done = judge("knn", tmp_path / "run", three)
    assert done.returncode == 2
    assert "has the result of step 56, the checkpoint is now at step 70" in done.stderr


@pytest.mark.slow
def test_linear_evaluation_and_fine_tuning_leave_results_and_a_record(run):
    bank = ("--config.head.rates=(0.1,1.0)", "--config.epochs=3")
    done = judge("linear_cifar", run, *bank)
    assert done.returncode == 0, done.stderr
    found = result(run, "linear_cifar")
    assert 25 < found["results"]["top-1"] < 100  # chance is 10
    assert "Of 2 heads: rate 1," in found["notes"][0]
    # 1437 without a tenth of each class makes 5 batches of 256.
    assert lines(run / "eval" / "linear_cifar")[-1]["step"] == 15
    few = ("--config.data.fraction=0.2", "--config.data.batch_size=64")
    done = judge("finetune", run, *few, "--config.epochs=2")
    assert done.returncode == 0, done.stderr
    found = result(run, "finetune")
    kept = sum(max(1, round(0.2 * n)) for n in np.bincount(load_digits().train.labels))
    assert found["notes"] == [f"Trained on {kept} of 1437 images."]


@pytest.mark.long
def test_logistic_regression_chooses_its_penalty_on_training_images(run):
    done = judge("logistic", run)
    assert done.returncode == 0, done.stderr
    found = result(run, "logistic")
    assert found["results"]["top-1"] > 80 and "C = " in found["notes"][0]


def test_features_and_embeddings_are_written_with_labels(run):
    done = judge("features", run, "--config.lidar.views=4")
    assert done.returncode == 0, done.stderr
    with np.load(run / "eval/features/features/test/part-00000.npz") as file:
        assert file["representations"].shape == (360, 64)
        assert file["embeddings"].shape == (360, 16)
        np.testing.assert_array_equal(file["labels"], load_digits().test.labels)
        assert file["names"][7] == "7"
    facts = json.loads((run / "eval/features/diagnostics.json").read_text())
    assert 1 <= facts["representation_rank"] <= 64
    assert len(facts["embedding_singular_values"]) == 16
    assert facts["images"] == 1437 and 1 <= facts["lidar"] <= 64


def test_support_vector_machines_judge_a_folder_like_that_of_voc(run, tmp_path):
    """Bright rows are the objects; an image may have several."""
    rng = np.random.default_rng(0)
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    for split, n in (("trainval", 40), ("test", 30)):
        present = rng.integers(0, 2, (n, 3))
        for i, objects in enumerate(present):
            picture = rng.integers(0, 90, (16, 16))
            for c in np.flatnonzero(objects):
                picture[5 * c + 1 : 5 * c + 5] += 150
            Image.fromarray(picture.astype(np.uint8)).save(
                tmp_path / "JPEGImages" / f"{split}{i}.jpg"
            )
        for c, name in enumerate(("cat", "cow", "dog")):
            text = "".join(
                f"{split}{i} {2 * int(present[i, c]) - 1}\n" for i in range(n)
            )
            (tmp_path / "ImageSets" / "Main" / f"{name}_{split}.txt").write_text(text)
    flags = (f"--config.data.path={tmp_path}", "--config.data.image_size=16")
    flags = (*flags, "--config.data.shorter_side=16", "--config.svm.costs=(0.1,1.0)")
    done = judge("voc07", run, *flags)
    assert done.returncode == 0, done.stderr
    found = result(run, "voc07")
    names = ["mean average precision", "cat", "cow", "dog"]
    assert list(found["results"]) == names and found["tested"] == 30
    precisions = [found["results"][name] for name in names]
    assert precisions[0] == pytest.approx(np.mean(precisions[1:]))
    assert precisions[0] > 80  # half of the images have an object
    missing = judge("voc07", run, "--config.data.path=", f"--workdir={tmp_path}/x")
    assert missing.returncode == 2 and "get it from host.robots.ox" in missing.stderr


def test_an_export_is_the_encoder_again(run, tmp_path):
    config = f"--config={ROOT}/configs/export.py"
    flags = (config, f"--config.checkpoint={run}", f"--workdir={tmp_path / 'out'}")
    done = main(*flags)
    assert done.returncode == 0, done.stderr
    assert "encoder.stablehlo" in done.stdout and "differs" not in done.stdout
    a, b = loading.load(run), loading.load(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, a.variables, b.variables)
    # Judged like the run itself.
    for source, workdir in ((run, tmp_path / "a"), (tmp_path / "out", tmp_path / "b")):
        where = (f"--workdir={workdir}", "--config.data.name=digits")
        size = "--config.data.image_size=8"
        assert judge("knn", source, *where, size).returncode == 0
    found = [json.loads((tmp_path / x / "result.json").read_text()) for x in "ab"]
    assert found[0]["results"] == found[1]["results"]


def test_a_report_has_the_run_and_its_evaluations(run, tmp_path):
    pytest.importorskip("matplotlib", reason="the figures need matplotlib")
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/eval/x").mkdir(parents=True, exist_ok=True)
    (tmp_path / "run/eval/x/result.json").write_text(
        json.dumps(
            pages.result(name="mine", data="digits", tested=360, published={})
            | dict(results={"7-NN top-1": 91.25})
        )
    )
    done = main(f"--config={ROOT}/configs/report.py", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "run" / "report.html").read_text()
    assert "7-NN top-1" in page and "91.2" in page
    assert list((tmp_path / "run" / "report").glob("*.png"))


MISTAKES = {
    "no_run": (("knn", "nowhere"), "there is no file or folder"),
    "typo": (
        ("knn", "RUN", "--config.knn.neighbors=(5,)"),
        "config.knn.neighbors is not a field; did you mean config.knn.neighbours?",
    ),
    "no_test_images": (
        ("linear", "RUN", "--config.data.name=folder", "--config.data.path=FOLDER"),
        "there are no labelled test images; give config.data.test_path",
    ),
    "no_blocks": (
        ("linear_bank", "RUN", "--config.epochs=1"),
        "config.head.layers asks for the last 2 residual blocks; the encoder has 0",
    ),
    "too_many_neighbours": (
        ("knn", "RUN", "--config.knn.neighbours=(2000,)"),
        "config.knn.neighbours asks for 2000; there are 1437 training images",
    ),
    "too_large_a_batch": (
        ("linear", "RUN", "--config.data.batch_size=1500"),
        "1437 examples, fewer than one batch of 1500",
    ),
    "no_data": (
        ("places205", "RUN"),
        "config.data.path is empty; data.name 'folder' needs the folder of images",
    ),
    "path_without_name": (
        ("knn", "RUN", "--config.data.path=FOLDER"),
        "did you mean data.name=folder?",
    ),
    "no_weights": (("knn", "TEXT"), "TEXT"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_refused_in_one_line(name, run, tmp_path):
    for c in "ab":
        (tmp_path / "folder" / c).mkdir(parents=True)
        Image.new("L", (9, 9)).save(tmp_path / "folder" / c / "x.png")
    (tmp_path / "notes.pth").write_text("no weights")
    known = {"RUN": run, "FOLDER": tmp_path / "folder", "TEXT": tmp_path / "notes.pth"}
    (config, source, *flags), expected = MISTAKES[name]

    def filled(text):
        for word, path in known.items():
            text = text.replace(word, str(path))
        return text

    workdir = tmp_path / "out"
    done = judge(config, filled(source), f"--workdir={workdir}", *map(filled, flags))
    assert done.returncode == 2, done.stderr
    said = [x for x in done.stderr.splitlines() if x.startswith("vicreg_jax: ")]
    assert len(said) == 1 and filled(expected) in said[0]
    assert not workdir.exists() or not list(workdir.iterdir())


def test_small_images_are_not_enlarged_for_want_of_their_size(tmp_path):
    files = pytest.importorskip("safetensors.numpy", reason="needs safetensors")
    encoder = models.create("resnet18", stem="cifar")
    shapes = jax.eval_shape(
        lambda: encoder.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    )
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    files.save_file(torch_names.to_torch(zeros), tmp_path / "encoder.safetensors")
    given = dict(task="knn", checkpoint=str(tmp_path / "encoder.safetensors"))
    with pytest.raises(ValueError, match="stem 'cifar' is for small ones; give config"):
        tasks.run(evaluation.parse(given), tmp_path / "out", name="knn")
    assert not (tmp_path / "out").exists()


def test_a_report_needs_a_run(tmp_path):
    done = main(f"--config={ROOT}/configs/report.py", f"--workdir={tmp_path}")
    assert done.returncode == 2 and "no config.json" in done.stderr
    done = main(f"--config={ROOT}/configs/report.py")
    assert done.returncode == 2 and "--workdir is missing: the folder of" in done.stderr
