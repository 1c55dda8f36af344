"""Small files of every kind that the program reads back, and their readers."""

import json
import sys
import zlib
from collections.abc import Callable
from operator import eq
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
import pytest

from helpers import exports, pages
from helpers.checkpoints import saved
from helpers.pictures import pictures
from helpers.runs import SMALL
from helpers.tfrecords import example, file_of
from helpers.torch_files import NO_TORCH, shapes_of
from vicreg_jax import config as configs
from vicreg_jax import models
from vicreg_jax.config import evaluation
from vicreg_jax.data.preparing import prepare
from vicreg_jax.data.source import Arrays
from vicreg_jax.data.sources.arrays import open_arrays
from vicreg_jax.data.sources.folder import open_folder
from vicreg_jax.data.sources.prepared import open_prepared, verify
from vicreg_jax.data.sources.tfrecord import open_tfrecords
from vicreg_jax.devices import sharding
from vicreg_jax.evaluate import features, supervised
from vicreg_jax.refusals import Refusal
from vicreg_jax.report import sections
from vicreg_jax.report.read import read_run
from vicreg_jax.run import checksums, goodput, metrics_file, result_file, workdirs
from vicreg_jax.run.checkpoints import Checkpoints
from vicreg_jax.weights import hub, loading, reading

CONFIG = configs.parse(SMALL)
RESULTS = pages.result()["results"]
JSON, LINES, BYTES = False, True, None


class Kind(NamedTuple):
    """A small file, and what the program makes of it."""

    make: Callable[[Path], Any]  # writes it, and what is beside it, into a folder
    file: str  # in the folder
    content: bool | None  # JSON, LINES or BYTES
    # Each of these reads it as a user meets it, and returns what it found.
    readers: list[Callable[[Path], Any]]
    free: bool = False  # nothing can tell another value
    gone: bool = False  # without the file there is nothing, or it is made anew
    same: Callable[[Any, Any], bool] = eq  # (found, whole)


# Runs and evaluations.


def a_run(folder):
    pages.make_run(folder, lines=[pages.line(step) for step in (1, 5, 9)])
    workdirs.write_config(folder, CONFIG)
    pages.fill(folder)
    result_file.write(folder / "eval" / "knn", pages.result(checkpoint=str(folder)))
    workdirs.write_config(folder / "eval" / "knn", evaluation.Evaluation())


def claim(folder):
    with workdirs.claimed(folder, CONFIG) as (_, before):
        return before


def claim_evaluation(folder):
    with workdirs.claimed(folder / "eval" / "knn", evaluation.Evaluation()):
        pass


def load_run(folder):
    try:
        loading.load(folder)
    except Refusal as error:
        if "checkpoint" not in str(error):  # it has none, which is found out last
            raise


def result(folder):
    found = result_file.read(folder / "eval" / "knn")
    return found and {name: found[name] for name in pages.result()}


def card(folder):
    """A model card leaves out what is no result of this run."""
    found = [result["results"] for result in hub.results(folder, folder)]
    assert found in ([], [RESULTS])


def report_on(name):
    """A reader of a file that the page only names where it cannot be read."""

    def read(folder):
        found = read_run(folder)
        sections.evaluation(found), sections.few_labels(found.few_labels)
        sections.head(found), sections.settings(found.config)
        assert found.unreadable in ([], [name])
        assert not found.results or found.results[0]["results"] == RESULTS

    return read


def record(folder):
    """Continues the record of a run, and counts what was dropped."""
    path, notes = folder / "metrics.jsonl", []
    before = path.read_bytes().splitlines() if path.is_file() else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorboardX", None)  # which is slow
        writer = metrics_file.Writer(folder, step=9, note=notes.append)
        writer.write(10, {"loss": 1.0})
        writer.close()
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    dropped = [int(note.split()[-3]) for note in notes if "dropped" in note]
    late = [line for line in kept if line["step"] > 10]
    assert not late and kept[-1] == {"step": 10, "loss": 1.0}
    assert len(kept) - 1 + sum(dropped) <= len(before)
    read_run(folder), supervised._maximum(folder, 0, 3)


def bad_examples(folder):
    images = SimpleNamespace(broken={0: "no image"}, names=["a.jpg"])
    workdirs.list_broken(images, folder, lambda note: None)
    path = folder / "bad_examples.jsonl"
    assert [json.loads(line)["name"] for line in path.read_text().splitlines()]


def a_list_of_starts(folder):
    first = goodput.Goodput(folder, 0)
    first.write(5)
    goodput.Goodput(folder, 5).write(9)


def starts(folder):
    goodput.Goodput(folder, 9).write(12)
    found = goodput.read(folder)
    assert found[-1]["last"] == 12 and sum(goodput.shares(found).values()) < 1.001


def a_list_of_bad_examples(folder):
    lines = [{"name": name, "reason": "cut short"} for name in ("b.jpg", "é.jpg")]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "bad_examples.jsonl").write_text(text)


def wandb_run(folder):
    """The name that a run on Weights & Biases gets, twice."""
    given = []
    fake = SimpleNamespace(init=lambda **options: given.append(options["id"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wandb", fake)
        for _ in range(2):
            metrics_file.wandb_starter("p")(folder, {}, None)
    assert given[0] == given[1] and given[0].isalnum()


def record_of_a_checkpoint(folder):
    Checkpoints(folder, read_only=True).best()
    return checksums.read(folder / "2")


# Data.


def a_prepared_folder(folder):
    images = open_folder(pictures(folder / "files", each=2))
    prepare(images, folder / "out", shards=2)


def open_all(folder):
    """Labels and pixels of prepared images; of those that are broken nothing."""
    images = open_prepared(folder / "out")
    verify(folder / "out")
    return _pixels(images)


def _pixels(images):
    found = []
    for i in range(len(images)):
        try:
            pixels = images.whole(i).tobytes()
        except Exception:  # a run notes it and takes the next, an evaluation refuses
            pixels = None
        found.append((int(images.labels[i]), pixels))
    return found


def same_or_broken(found, whole):
    pairs = zip(found, whole, strict=True)
    return all(a == b or a[1] is None for a, b in pairs)


def begun(folder):
    """Prepares images and stops before the last file."""
    images = open_folder(pictures(folder / "files", each=2))
    with pytest.raises(KeyboardInterrupt):
        prepare(images, folder / "out", shards=2, progress=_stop)


def _stop(done, total):
    if done == 3:
        raise KeyboardInterrupt


def go_on(folder):
    prepare(open_folder(folder / "files"), folder / "out", shards=2)
    return _pixels(open_prepared(folder / "out"))


def arrays(folder, save=np.savez):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 4, 4, 1)).astype(np.uint8)
    save(folder / "a.npz", images=images, labels=np.arange(20) % 3)


def open_npz(folder):
    (train, test) = open_arrays(str(folder / "a.npz"))
    assert test is None
    return train.array.tobytes(), train.labels.tolist()


class Flat(nn.Module):
    """An encoder that only flattens."""

    def __call__(self, x, *, train):
        return x.reshape(len(x), -1)


def extract(folder):
    data = configs.Data(image_size=4, mean=(0.5,), std=(0.5,))
    rng = np.random.default_rng(0)
    images = Arrays(rng.integers(0, 256, (6, 4, 4, 1)).astype(np.uint8), np.arange(6))
    whole = features.Whole(images, data)
    where = folder / "features"
    options = dict(data={"names": "0"}, mesh=sharding.data_mesh())
    found = features.joined(features.parts(_flat, {}, whole, where, **options))
    return found.representations.tobytes(), found.labels.tolist(), found.names.tolist()


def _flat(variables, views):
    return {"representations": Flat().apply(variables, views, train=False)}


def records(folder):
    paths = sorted(pictures(folder / "files", each=2).rglob("*.png"))
    found = [example(path.read_bytes(), label) for label, path in enumerate(paths)]
    (folder / "train-0").write_bytes(file_of(found))


def open_records(folder):
    return _pixels(open_tfrecords(f"{folder}/train-*"))


# Weights.


def an_export(folder):
    exports.written(exports.digits(), folder, "safetensors", size=8)


def load_export(folder):
    found = loading.load(folder / "encoder.safetensors")
    loading.load(folder)
    flat = features.checksum(found.variables)
    return models.spec(found.module), found.mean, found.std, found.image_size, flat


def a_safetensors_file(folder):
    from safetensors.numpy import save_file

    zeros = {"conv1.weight": np.zeros((64, 3, 3, 3), np.float32)}
    save_file(zeros, folder / "a.safetensors")


def load_file(name):
    return lambda folder: loading.load(folder / name) and None


def a_torch_file(folder, **options):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    one = torch.tensor(0.5)
    shapes = shapes_of(models.create("resnet18"))
    state_dict = {k: one.expand(x.shape).clone() for k, x in list(shapes.items())[:5]}
    torch.save(state_dict, folder / "a.pth", **options)


def read_torch(folder):
    found = reading.tensors(folder / "a.pth", folder / "a.pth")
    return {name: zlib.crc32(np.ascontiguousarray(x)) for name, x in found.items()}


KINDS = {
    "config.json": Kind(
        a_run, "config.json", JSON, [claim, load_run, read_run], free=True
    ),
    "config.json of an evaluation": Kind(
        a_run, "eval/knn/config.json", JSON, [claim_evaluation], free=True
    ),
    "metrics.jsonl": Kind(a_run, "metrics.jsonl", LINES, [record], True, gone=True),
    "result.json": Kind(
        a_run,
        "eval/knn/result.json",
        JSON,
        [
            result,
            card,
            report_on("eval/knn/result.json"),
        ],
        gone=True,
    ),
    "few_labels.json": Kind(
        a_run, "few_labels.json", JSON, [report_on("few_labels.json")], True, True
    ),
    "environment.json": Kind(
        a_run, "environment.json", JSON, [report_on("environment.json")], True, True
    ),
    "diagnostics.json": Kind(
        a_run,
        "eval/features/diagnostics.json",
        JSON,
        [report_on("eval/features/diagnostics.json")],
        True,
        True,
    ),
    "bad_examples.jsonl": Kind(
        a_list_of_bad_examples, "bad_examples.jsonl", LINES, [bad_examples], True, True
    ),
    "starts.jsonl": Kind(a_list_of_starts, "starts.jsonl", LINES, [starts], True, True),
    "wandb_id.txt": Kind(
        lambda folder: (folder / "wandb_id.txt").write_text("0123abc"),
        "wandb_id.txt",
        BYTES,
        [wandb_run],
        free=True,
        gone=True,
    ),
    "record.json": Kind(
        lambda folder: saved(folder, 1, 2),
        "2/record.json",
        JSON,
        [record_of_a_checkpoint],
    ),
    "index.json of prepared images": Kind(
        a_prepared_folder, "out/index.json", JSON, [open_all, go_on]
    ),
    "labels.npy": Kind(a_prepared_folder, "out/labels.npy", BYTES, [open_all]),
    "ArrayRecord": Kind(
        a_prepared_folder,
        "out/images-00000-of-00002.array_record",
        BYTES,
        [open_all],
        same=same_or_broken,
    ),
    "note of a file that is prepared": Kind(
        begun, "out/unfinished/00000.json", JSON, [go_on], gone=True
    ),
    "settings.json": Kind(begun, "out/unfinished/settings.json", JSON, [go_on]),
    "npz of data": Kind(arrays, "a.npz", BYTES, [open_npz]),
    "compressed npz of data": Kind(
        lambda folder: arrays(folder, np.savez_compressed), "a.npz", BYTES, [open_npz]
    ),
    "TFRecord": Kind(records, "train-0", BYTES, [open_records], same=same_or_broken),
    "npz of features": Kind(
        extract, "features/part-00000.npz", BYTES, [extract], gone=True
    ),
    "index.json of features": Kind(extract, "features/index.json", JSON, [extract]),
    "encoder.json": Kind(an_export, "encoder.json", JSON, [load_export]),
    "encoder.safetensors": Kind(an_export, "encoder.safetensors", BYTES, [load_export]),
    "safetensors alone": Kind(
        a_safetensors_file, "a.safetensors", BYTES, [load_file("a.safetensors")], True
    ),
    "pth": Kind(a_torch_file, "a.pth", BYTES, [read_torch, load_file("a.pth")]),
    "pth of old": Kind(
        lambda folder: a_torch_file(folder, _use_new_zipfile_serialization=False),
        "a.pth",
        BYTES,
        [load_file("a.pth")],
        free=True,
    ),
}
