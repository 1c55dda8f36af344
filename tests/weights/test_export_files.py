"""Files for others: complete or absent, nobody's overwritten; what is refused."""

import sys
from dataclasses import replace
from pathlib import Path

import chex
import pytest
from helpers.exports import MEAN, STD, digits, images, written

from vicreg_jax import models
from vicreg_jax.weights import Encoder, export, loading


def test_a_failure_while_writing_leaves_everything_as_it_was(tmp_path, monkeypatch):
    written(digits(), tmp_path, "safetensors", size=8)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    other = digits()
    other.variables["params"]["conv1"]["kernel"] += 1

    def full(*args):
        Path(args[-1]).write_bytes(b"half of it")
        raise OSError("disk full")

    format = export.FORMATS["stablehlo"]._replace(write=full)
    monkeypatch.setitem(export.FORMATS, "stablehlo", format)
    with pytest.raises(OSError, match="disk full"):
        written(other, tmp_path, "safetensors", "stablehlo", size=8)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_earlier_export_is_replaced(tmp_path):
    written(digits(), tmp_path, "safetensors", size=8)
    other = digits()
    other.variables["params"]["conv1"]["kernel"] += 1
    written(other, tmp_path, "safetensors", size=8)
    chex.assert_trees_all_equal(loading.load(tmp_path).variables, other.variables)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"encoder.safetensors", "encoder.json"}


def test_another_format_of_the_same_weights_is_added(tmp_path):
    given = digits()
    written(given, tmp_path, "safetensors", size=8)
    written(given, tmp_path, "stablehlo", size=8)
    assert export.agreement(given, tmp_path, images(2, 8)).keys() == {
        "safetensors",
        "stablehlo",
    }


def test_a_file_that_would_be_left_with_other_weights_is_refused(tmp_path):
    given = digits()
    written(given, tmp_path, "safetensors", "stablehlo", size=8)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    given.variables["params"]["conv1"]["kernel"] += 1
    with pytest.raises(ValueError, match="holds encoder.stablehlo of other weights"):
        written(given, tmp_path, "safetensors", size=8)
    with pytest.raises(ValueError, match="holds encoder.stablehlo of other weights"):
        written(digits(), tmp_path, "safetensors", size=16)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["encoder.safetensors", "encoder.json"])
def test_other_peoples_files_are_not_overwritten(tmp_path, name):
    (tmp_path / name).write_text("[1]")
    with pytest.raises(ValueError, match=f"{name} was not written by an export"):
        written(digits(), tmp_path, "safetensors", size=8)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["[1]"]


@pytest.mark.parametrize(
    "module, formats, expected",
    [
        ("digits", ["onnx"], "no format 'onnx'; there are safetensors, torch"),
        ("digits", [], "no format given; there are"),
        ("digits", ["torch"], "torch has no counterpart of DigitsEncoder"),
        ("digits", ["detectron2"], "detectron2 has no counterpart of DigitsEnc"),
        ("resnet200", ["detectron2"], r"Detectron2 has .*got stages of \(3, 24"),
        ("cifar", ["detectron2"], "Detectron2 has .*with the stem 'cifar'"),
    ],
)
def test_formats_without_a_counterpart_are_refused(tmp_path, module, formats, expected):
    module = {
        "digits": models.create("digits"),
        "cifar": models.create("resnet18", stem="cifar"),
        "resnet200": models.create("resnet200"),
    }[module]
    given = Encoder(module, {}, mean=MEAN, std=STD)
    with pytest.raises(ValueError, match=expected):
        written(given, tmp_path / "out", *formats)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_written_is_refused_before_anything_is(tmp_path):
    given = digits()
    options = dict(formats=["safetensors"])
    for wrong in (dict(image_size=0), dict(mean=(0.5,)), dict(std=(1, 0, 1))):
        with pytest.raises(ValueError, match="expected image_size >= 1 and one mean"):
            replace(given, **wrong)
    with pytest.raises(ValueError, match="does not say of which size.*export.image_si"):
        export.write(replace(given, image_size=None), tmp_path / "out", **options)
    del given.variables["params"]["conv2"]
    with pytest.raises(ValueError, match="1 missing: params/conv2/kernel"):
        export.write(given, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").write_text("")
    with pytest.raises(ValueError, match="out is a file; expected a folder"):
        export.write(digits(), tmp_path / "out", **options)


@pytest.mark.parametrize(
    "name, command, written_as",
    [
        ("safetensors", '"safetensors"', "safetensors"),
        ("torch", r'"vicreg_jax\[torch\]"', "torch"),
        ("flatbuffers", '"flatbuffers"', "stablehlo"),
    ],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, name, command, written_as):
    monkeypatch.setitem(sys.modules, name, None)
    given = Encoder(models.create("resnet18"), {}, mean=MEAN, std=STD)
    with pytest.raises(ModuleNotFoundError, match=f"needs {name}, .*install {command}"):
        written(given, tmp_path / "out", written_as)
