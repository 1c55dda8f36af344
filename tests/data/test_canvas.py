"""Images cropped and resized on the device: canvases against finished crops."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vicreg_jax import config as configs
from vicreg_jax import train
from vicreg_jax.data import batches, plan
from vicreg_jax.data.augment import draw, on_device
from vicreg_jax.data.source import Arrays, How
from vicreg_jax.data.sources.folder import open_folder

POLICIES = [batches.policies(configs.Config())[1]._replace(blur=0.5)] * 2
SIZE, CANVAS = 24, 64


@pytest.fixture(params=["small", "large", "mixed"])
def images(request, tmp_path):
    """Pictures whose crops fit a canvas, do not, or both."""
    rng = np.random.default_rng(0)
    for i in range(12):
        large = request.param == "large" or (request.param == "mixed" and i % 2)
        height, width = (400 + i, 300 + 7 * i) if large else (40 + i, 64 - 2 * i)
        # Smooth, so that resizing is about shapes and not noise.
        small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
        picture = small.resize((width, height), Image.Resampling.BICUBIC)
        picture.save(tmp_path / f"{i:02d}.png")
    return open_folder(tmp_path)


def both(images, *, canvas=CANVAS, channels=3):
    indices = np.arange(len(images))
    uniforms = plan.uniforms(0, 0, (len(images), 2, draw.NUMBERS))
    given = indices, uniforms, POLICIES
    crops = images.views(*given, How("crops", SIZE, channels))
    return crops, images.views(*given, How("whole", SIZE, channels, canvas))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_device_makes_of_a_canvas_the_crops_of_the_host(images, channels):
    (crops, _), (canvases, parameters) = both(images, channels=channels)
    assert canvases.shape == (12, CANVAS, CANVAS, channels)
    for v in range(2):
        box = jnp.asarray(parameters.box[:, v])
        pictures = on_device.as_float(jnp.asarray(canvases))
        got = 255 * on_device.crop_resize(pictures, box, size=SIZE)
        # Pillow rounds to 8 bits after each of its two passes.
        np.testing.assert_allclose(got, crops[:, v], atol=1.5)


def test_a_canvas_holds_the_image_itself_or_the_finished_crops(images):
    (crops, drawn), (canvases, parameters) = both(images)
    fitted = 0
    for i in range(len(images)):
        whole = images.whole(i)
        for v in range(2):
            top, left, height, width = drawn.box[i, v].astype(int)
            y, x, h, w = parameters.box[i, v].astype(int)
            found = canvases[i, y : y + h, x : x + w]
            if (h, w) == (height, width):
                region = whole[top : top + height, left : left + width]
                np.testing.assert_array_equal(found, region)
                fitted += 1
            else:
                assert (y, x, h, w) == (0, v * SIZE, SIZE, SIZE)
                np.testing.assert_array_equal(found, crops[i, v])
    small = sum(max(images.whole(i).shape) <= CANVAS for i in range(len(images)))
    assert fitted >= 2 * small


def test_everything_but_the_boxes_is_the_same(images):
    (_, drawn), (_, parameters) = both(images)
    for name in draw.Parameters._fields:
        if name != "box":
            a, b = getattr(drawn, name), getattr(parameters, name)
            np.testing.assert_array_equal(a, b)


def test_a_broken_image_is_replaced_on_a_canvas_too(images):
    uniforms = plan.uniforms(0, 0, (2, 2, draw.NUMBERS))
    where = dict(policies=POLICIES, how=How("whole", SIZE, canvas=CANVAS))
    want = images.views(np.array([4, 7]), uniforms, **where)
    with open(images.names[3], "wb") as file:
        file.write(b"not an image")
    got = images.views(np.array([3, 7]), uniforms, **where)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)
    assert list(images.broken) == [3]


def test_the_canvas_is_as_large_as_most_images_but_bounded(images, tmp_path):
    longest = sorted(max(images.whole(i).shape) for i in range(len(images)))
    found = canvas_of(images, settings(tmp_path, "device"))
    assert found % 32 == 0 and found <= 512
    assert found >= longest[len(longest) * 9 // 10] - 10  # a percentile in between
    for count in (2, 3):  # room for the finished crops
        large = settings(tmp_path, "device", views=count, size=300)
        assert canvas_of(images, large) == 300 * count


def canvas_of(source, config):
    how = source.how(config, accelerator=jax.default_backend() != "cpu")
    assert (how.kind == "whole") == (how.canvas > 0) or how.kind == "held"
    return how.canvas


def settings(root, resize, size=SIZE, views=2, **augment):
    return configs.parse(
        dict(
            data=dict(name="folder", path=str(root), resize=resize, batch_size=8)
            | dict(image_size=size, views=views),
            augment=augment,
            model=dict(encoder="digits", expander=(16, 16)),
            optimizer=dict(warmup_epochs=0),
            every=dict(log_steps=1),
            epochs=1,
        )
    )


def test_the_config_says_where_images_are_resized(images, tmp_path):
    assert canvas_of(images, settings(tmp_path, "device")) >= 2 * SIZE
    assert canvas_of(images, settings(tmp_path, "host")) == 0
    assert canvas_of(images, settings(tmp_path, "auto")) == 0  # on a CPU
    arrays = Arrays(np.zeros((4, 8, 8, 3), np.uint8))
    assert canvas_of(arrays, settings("x", "device")) == 0


@pytest.mark.parametrize("images", ["small"], indirect=True)
def test_on_an_accelerator_the_device_resizes_unless_the_host_must(
    images, tmp_path, monkeypatch
):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    found = canvas_of(images, settings(tmp_path, "auto"))
    assert found == canvas_of(images, settings(tmp_path, "device")) > 0
    for bound in (dict(rotation=10.0), dict(shear=0.1), dict(colour="host")):
        config = settings(tmp_path, "auto", **bound)
        assert canvas_of(images, config) == 0


@pytest.mark.parametrize("images", ["small"], indirect=True)
@pytest.mark.parametrize("turn", [dict(rotation=10.0), dict(shear=0.1)])
def test_resizing_on_the_device_is_refused_where_crops_are_turned(
    images, tmp_path, turn
):
    with pytest.raises(ValueError, match="'device' would show .*; set data.resize=ho"):
        canvas_of(images, settings(tmp_path, "device", **turn))
    assert canvas_of(images, settings(tmp_path, "host", **turn)) == 0
    arrays = Arrays(np.zeros((4, 8, 8, 3), np.uint8))  # are never cut before
    assert canvas_of(arrays, settings(tmp_path, "device", **turn)) == 0


@pytest.mark.parametrize("images", ["mixed"], indirect=True)
def test_a_run_that_resizes_on_the_device_starts_like_one_on_the_host(images, tmp_path):
    plain = dict(jitter=0.0, grey=0.0, blur=(0.0, 0.0), solarize=(0.0, 0.0))
    losses = []
    for resize in ("host", "device"):
        workdir = tmp_path / f"run_{resize}"
        train.run(settings(tmp_path, resize, **plain), workdir)
        losses.append(json.loads((workdir / "metrics.jsonl").read_text())["loss"])
    # Pixels differ by the rounding of 8 bits.
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
