"""Features of whole images: those of the encoder, in files that are whole or absent."""

from dataclasses import replace

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

from vicreg_jax.config import Data
from vicreg_jax.data.source import Arrays
from vicreg_jax.data.sources.folder import open_folder
from vicreg_jax.devices import sharding
from vicreg_jax.evaluate import features
from vicreg_jax.refusals import Refusal, Unusable
from vicreg_jax.weights import Encoder

DATA = Data(name="arrays", image_size=6, mean=(0.5,), std=(0.25,))


class Projected(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(5, name="dense")(x.reshape(len(x), -1))


def examples(n=21):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 6, 6, 1)).astype(np.uint8)
    return Arrays(images, np.arange(n) % 3)


@pytest.fixture(scope="module")
def variables():
    return Projected().init(jax.random.key(0), np.zeros((1, 6, 6, 1)), train=False)


def encoder(variables):
    return Encoder(Projected(), variables, mean=DATA.mean, std=DATA.std, image_size=6)


def apply(variables, views):
    y = Projected().apply(variables, views, train=False)
    return {"representations": y, "embeddings": y[:, :2]}


def numpy_features(variables, images):
    dense = jax.tree.map(np.asarray, variables["params"]["dense"])
    x = (images / 255 - 0.5) / 0.25
    return x.reshape(len(x), -1) @ dense["kernel"] + dense["bias"]


def extract(where, variables, *, rows=None, data="train", images=None, told=None):
    images = images or examples()
    found = features.parts(
        apply,
        variables,
        features.Whole(images, DATA, rows, 7),
        where,
        data={"names": data},
        mesh=sharding.data_mesh(),
        progress=(lambda done: None) if told is None else told.append,
    )
    return features.joined(found)


def test_features_are_those_of_the_encoder_with_labels_and_names(tmp_path, variables):
    rows = np.array([3, 0, 20])
    found = extract(tmp_path / "x", variables, rows=rows)
    want = numpy_features(variables, examples().array[rows])
    np.testing.assert_allclose(found.representations, want, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found.embeddings, found.representations[:, :2])
    assert found.labels.tolist() == [0, 0, 2] and found.names.tolist() == [
        "3",
        "0",
        "20",
    ]


def test_what_was_stopped_goes_on_and_ends_the_same(tmp_path, variables, monkeypatch):
    monkeypatch.setattr(features, "ROWS", 8)
    whole = extract(tmp_path / "x", variables)
    parts = sorted(tmp_path.glob("x/part-*.npz"))
    assert [p.name for p in parts] == [f"part-0000{i}.npz" for i in range(3)]
    parts[1].unlink()
    parts[1].with_suffix(".tmp").write_bytes(b"half")  # of a process that was killed
    kept = parts[0].stat().st_mtime_ns
    told = []
    again = extract(tmp_path / "x", variables, told=told)
    for a, b in zip(whole, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert parts[0].stat().st_mtime_ns == kept and told[-1] == 21


def test_a_damaged_file_is_made_again(tmp_path, variables):
    whole = extract(tmp_path / "x", variables)
    path = tmp_path / "x" / "part-00000.npz"
    good, rng = path.read_bytes(), np.random.default_rng(0)
    damaged = [b"", good[: len(good) // 2], bytes(len(good))]
    for place in rng.integers(0, len(good), 40).tolist():
        damaged.append(good[:place] + bytes([good[place] ^ 16]) + good[place + 1 :])
    for content in damaged:
        path.write_bytes(content)
        for a, b in zip(whole, extract(tmp_path / "x", variables), strict=True):
            np.testing.assert_array_equal(a, b)


def test_features_of_something_else_are_not_mixed(tmp_path, variables):
    extract(tmp_path / "x", variables)
    other = jax.tree.map(lambda p: p + 1, variables)
    for changed, message in (
        (dict(data="other"), "features of another data; remove it"),
        (dict(rows=np.arange(5)), "features of another rows, images; remove it"),
    ):
        with pytest.raises(ValueError, match=message):
            extract(tmp_path / "x", variables, **changed)
    with pytest.raises(ValueError, match="features of another variables; remove it"):
        extract(tmp_path / "x", other)


def test_files_are_seen_at_their_centre_and_one_device_sees_what_eight_see(
    tmp_path, variables
):
    rng = np.random.default_rng(1)
    for i in range(10):
        picture = rng.integers(0, 256, (12 + i, 30 - i)).astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    images = open_folder(tmp_path)
    centres = images.centres(np.arange(10), size=6, shorter=7, channels=1)
    want = numpy_features(variables, centres)
    for devices in (jax.devices(), jax.devices()[:1]):
        mesh = sharding.data_mesh(devices)
        got = features.encode(encoder(variables), images, shorter_side=7, mesh=mesh)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_a_file_that_cannot_be_read_is_named(tmp_path, variables):
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="b.png cannot be read"):
        features.encode(encoder(variables), open_folder(tmp_path))


def test_images_of_other_channels_and_rows_that_are_none_are_refused(variables):
    images = examples().array
    judged = encoder(variables)
    want = features.encode(judged, images)[[2, 0]]
    np.testing.assert_array_equal(
        features.encode(judged, images, rows=np.array([2, 0])), want
    )
    with pytest.raises(Refusal, match="takes images of 1 channel.*data have 3"):
        features.encode(judged, np.repeat(images, 3, axis=-1))
    for rows in ([], [True] * len(images), [0.0], [-1], [len(images)], [[0]], 0):
        with pytest.raises(Refusal, match="expected rows as one or more integers"):
            features.encode(judged, images, rows=np.array(rows))


def test_a_full_disk_is_a_refusal(tmp_path, variables, monkeypatch):
    def full(path, arrays):
        raise Unusable(f"{path} cannot be written: No space left on device")

    monkeypatch.setattr(features.files, "write_npz", full)
    with pytest.raises(Unusable, match="part-00000.npz cannot be written: No space"):
        extract(tmp_path / "x", variables)


def test_an_encoder_of_unknown_image_size_is_not_guessed_at(variables):
    unknown = replace(encoder(variables), image_size=None)
    with pytest.raises(ValueError, match="does not say of which size its images were"):
        features.encode(unknown, examples().array)
    got = features.encode(encoder(variables), examples().array)
    want = numpy_features(variables, examples().array)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
