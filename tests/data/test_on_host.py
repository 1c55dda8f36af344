"""Pixels made on the host, against those of the accelerator and Pillow's pictures."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.paths import GOLDEN, ROOT
from helpers.processes import main
from helpers.records import lines
from PIL import Image

from vicreg_jax import config as configs
from vicreg_jax.config import Config
from vicreg_jax.data import batches, plan
from vicreg_jax.data.augment import draw, on_device, on_host
from vicreg_jax.data.source import Arrays, How
from vicreg_jax.data.sources.folder import open_folder
from vicreg_jax.devices import sharding

pytest.importorskip("numba", reason='needs pip install "vicreg_jax[data]"')

NUMBERS = np.load(GOLDEN / "augment.npz")
HALF_A_LEVEL = 0.5  # of 255: what rounding to 8 bits may do to a pixel


def as_picture(image):
    """uint8 [h, w, c] -> float32 [c, w, h], as the kernels want it."""
    return np.ascontiguousarray(image.T, dtype=np.float32) / np.float32(255)


def as_levels(picture):
    out = np.empty(picture.T.shape, np.uint8)
    on_host.finish(np.ascontiguousarray(picture), out)
    return out


def applied(name, image, parameter):
    """An operation of the host on an image: uint8 [h, w, c]."""
    picture = as_picture(image)
    operation = getattr(on_host, name)
    if name in ("grey", "solarize"):
        operation(picture)
    else:
        found = operation(picture, np.float32(parameter))
        picture = picture if found is None else found
    return as_levels(picture)


def noise(n=1, height=37, width=50, channels=3, seed=0):
    shape = (n, height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


OPERATIONS = {
    "brightness": (0.6, 1.4),
    "contrast": (0.6, 1.4),
    "saturation": (0.6, 1.4),
    "hue": (-0.5, -0.1, 0.003, 0.05, 0.5),
    "grey": (1,),
    "solarize": (1,),
    "blur": (0.1, 0.7, 1.0, 1.45, 2.0, 2.4),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_that_of_the_accelerator(name, channels):
    for image in (noise(channels=channels)[0], NUMBERS["image"][..., :channels]):
        for parameter in OPERATIONS[name]:
            got = applied(name, image, parameter)
            flag = name in ("grey", "solarize")
            values = jnp.asarray([True if flag else parameter])
            floats = on_device.as_float(jnp.asarray(image[None]))
            want = 255 * np.asarray(getattr(on_device, name)(floats, values)[0])
            # The same float32 arithmetic, then rounded: a quarter of a level.
            differences = np.abs(got - want)
            assert differences.mean() < 0.3
            # Where hue is cut to 8 bits, another rounding is worth 6 levels.
            assert np.mean(differences > HALF_A_LEVEL + 1e-3) < 0.001
            assert differences.max() < (6.5 if name == "hue" else HALF_A_LEVEL + 0.01)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_crop_is_that_of_the_accelerator(channels, interpolation):
    image = NUMBERS["image"][..., :channels]
    for *box, size in [
        *((0, 0, 120, 160, 32), (3, 5, 100, 150, 224), (10, 20, 30, 24, 24)),
        *((119, 0, 1, 160, 17), (0, 159, 120, 1, 16), (50, 60, 1, 1, 5)),
    ]:
        box = np.array(box, np.float32)
        for flip in (False, True):
            picture = on_host.crop_resize(
                image, box, size=size, interpolation=interpolation, flip=flip
            )
            want = on_device.crop_resize(
                on_device.as_float(jnp.asarray(image[None])),
                jnp.asarray(box[None]),
                size=size,
                interpolation=interpolation,
            )
            want = np.asarray(on_device.flip(want, jnp.asarray([flip])))[0]
            differences = 255 * np.abs(picture.T - want)
            if interpolation == "bilinear":  # sums of float32, in another order
                assert differences.max() < 2e-3
            else:
                # Rows before columns, and values are cut off in between: found 0.042
                # on average and 9.4 at the edges of this picture, which are hard.
                assert differences.mean() < 0.06 and differences.max() < 10


@pytest.mark.parametrize("crop", range(4))
def test_a_crop_is_that_of_pillow(crop):
    *box, size = NUMBERS[f"crop{crop}/box"].tolist()
    picture = on_host.crop_resize(NUMBERS["image"], np.array(box), size=size)
    differences = np.abs(255 * picture.T - NUMBERS[f"crop{crop}/bicubic"])
    # Pillow rounds to 8 bits after each of its two passes, half a level each; and rows
    # come before columns here, see above.
    assert differences.mean() < HALF_A_LEVEL and differences.max() < 10


@pytest.mark.parametrize(
    ("name", "largest"),
    [
        # As for the accelerator's, and half a level for the rounding here.
        ("brightness/0.6", 1.5),
        ("brightness/1.4", 1.5),
        ("contrast/0.6", 2),
        ("contrast/1.4", 2),
        ("saturation/0.6", 2),
        ("saturation/1.4", 2),
        ("hue/-0.1", 7),
        ("hue/0.05", 7),
        ("grayscale", 1),
        ("solarize/128", 0),
        ("blur/0.1", 3),
        ("blur/1.0", 3),
        ("blur/2.0", 3),
    ],
)
def test_an_operation_is_that_of_pillow(name, largest):
    operation, _, number = name.partition("/")
    operation = {"grayscale": "grey"}.get(operation, operation)
    got = applied(operation, NUMBERS["image"], float(number or 1))
    differences = np.abs(got.astype(int) - NUMBERS[name])
    # Pillow cuts off what is rounded here: half a level on average.
    assert differences.mean() < HALF_A_LEVEL + 0.05 and differences.max() <= largest


def test_a_chain_of_operations_is_that_of_pillow():
    numbers = dict(brightness=1.3, contrast=0.7, saturation=1.15, hue=0.06, sigma=1.2)
    one = {name: np.float32(x) for name, x in numbers.items()}
    view = neutral()._replace(**one, solarize=np.True_)
    got = as_levels(on_host.recolour(as_picture(NUMBERS["image"]), view))
    differences = np.abs(got.astype(int) - NUMBERS["chain"])
    # As for the accelerator's, and half a level for the rounding here.
    assert differences.mean() < 1.5 and differences.max() < 4.5


def neutral():
    """The parameters of a view that is the image."""
    one, zero, no = np.float32(1), np.float32(0), np.False_
    return draw.Parameters(
        box=np.array([0, 0, 12, 16], np.float32),
        **dict(flip=no, rotation=zero, shear=zero, brightness=one, contrast=one),
        **dict(saturation=one, hue=zero, order=np.arange(4), grey=no, sigma=zero),
        solarize=no,
    )


def test_a_view_for_which_nothing_was_drawn_is_the_image():
    image = noise(height=16, width=16)[0]
    picture = on_host.crop_resize(image, np.array([0, 0, 16, 16]), size=16)
    got = as_levels(on_host.recolour(picture, neutral()))
    np.testing.assert_array_equal(got, image)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_whole_view_is_that_of_the_accelerator(channels):
    policy = batches.policies(Config())[1]._replace(blur=0.5, solarize=0.3)
    n, size = 48, 24  # two of each order of the colours
    image = NUMBERS["image"][..., :channels]
    images = np.broadcast_to(image, (n, *image.shape))
    uniforms = np.random.default_rng(0).random((n, 1, draw.NUMBERS), np.float32)
    drawn = draw.parameters(uniforms, np.array(image.shape[:2]), [policy])
    view = draw.Parameters(*(x[:, 0] for x in drawn))
    want = jax.jit(on_device.render, static_argnames=("size", "policy"))(
        jnp.asarray(images), jax.tree.map(jnp.asarray, view), size=size, policy=policy
    )
    got = []
    for i in range(n):
        one = draw.Parameters(*(x[i] for x in view))
        where = dict(size=size, flip=one.flip)
        picture = on_host.crop_resize(images[i], one.box, **where)
        got.append(as_levels(on_host.recolour(picture, one)))
    differences = np.abs(np.stack(got) - 255 * np.asarray(want))
    # Found: a quarter of a level on average, from rounding; more where hue is cut to 8
    # bits or a pixel near 128 is solarized.
    assert differences.mean() < 0.3
    assert np.mean(differences > HALF_A_LEVEL + 0.1) < 0.01


@pytest.fixture
def files(tmp_path):
    """A folder of smooth colour pictures of several sizes."""
    rng = np.random.default_rng(0)
    (tmp_path / "files").mkdir()
    for i in range(16):
        small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
        picture = small.resize((60 - i, 50 + 2 * i), Image.Resampling.BICUBIC)
        picture.save(tmp_path / "files" / f"{i:02d}.png")
    return tmp_path / "files"


def settings(root, **groups):
    data = dict(name="folder", path=str(root), batch_size=16, image_size=24)
    return configs.parse(dict(data=data | groups.pop("data", {})) | groups)


def test_a_batch_is_the_same_wherever_colours_are_made(files):
    images, numbers = open_folder(files), dict(views=2, numbers=draw.NUMBERS)
    planner = plan.Planner(seed=0, examples=16, batch_size=16, **numbers)
    batch, rendered = {}, {}
    for colour in ("host", "device"):
        config = settings(files, augment=dict(colour=colour))
        made = batches.Batches(images, config, sharding.data_mesh(jax.devices()[:1]))
        batch[colour] = made.make(planner, 3, slice(None))
        rendered[colour] = made.render((), batch[colour])
    assert batch["host"].images.dtype == np.uint8
    assert batch["host"].images.shape == batch["device"].images.shape
    pairs = (batch[where].parameters for where in ("host", "device"))
    for a, b in zip(*pairs, strict=True):
        np.testing.assert_array_equal(a, b)  # the parameters
    levels = 255 * np.array(config.data.std, np.float32)
    # Rounding of 8 bits: once here, and for the device's colours before them.
    difference = np.asarray(rendered["host"]) - np.asarray(rendered["device"])
    assert ((np.abs(difference) * levels).mean(axis=(0, 2, 3, 4)) < HALF_A_LEVEL).all()


def test_what_the_host_did_with_colours_is_timed(files):
    images = open_folder(files)
    uniforms = plan.uniforms(0, 0, (2, 2, draw.NUMBERS))
    policies = batches.policies(Config())
    images.views(np.arange(2), uniforms, policies, How("crops", 8))
    assert images.seconds["colour"] == 0
    images.views(np.arange(2), uniforms, policies, How("finished", 8))
    assert images.seconds["colour"] > 0


@pytest.mark.long
def test_the_program_trains_alike_wherever_colours_are_made(files, tmp_path):
    flags = (
        *(f"--config={ROOT}/configs/folder.py", f"--config.data.path={files}"),
        *("--config.epochs=2", "--config.optimizer.warmup_epochs=0"),
        *("--config.data.batch_size=16", "--config.data.image_size=24"),
        *("--config.model.encoder=digits", "--config.model.expander=(16,16)"),
        *("--config.model.dtype=float32", "--config.every.log_steps=1"),
    )
    losses = []
    for colour in ("host", "device"):
        workdir = tmp_path / colour
        where = (f"--config.augment.colour={colour}", f"--workdir={workdir}")
        done = main(*flags, *where)
        assert done.returncode == 0, done.stderr
        losses.append([line["loss"] for line in lines(workdir)])
    # The same views but for their rounding to 8 bits.
    np.testing.assert_allclose(*losses, rtol=0.02)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (dict(augment=dict(rotation=5.0)), "cannot rotate or shear; set both to 0"),
        (dict(augment=dict(shear=0.1)), "cannot rotate or shear"),
        (dict(data=dict(resize="device")), "set data.resize=host, or augment.colour"),
    ],
)
def test_what_the_host_cannot_do_is_refused(files, groups, message):
    groups["augment"] = dict(groups.get("augment", {}), colour="host")
    with pytest.raises(ValueError, match=message) as refusal:
        given = settings(files, **groups)
        batches.Batches(open_folder(files), given, sharding.data_mesh())
    assert "\n" not in str(refusal.value)


def test_colours_of_arrays_stay_with_the_device():
    config = settings("FILE.npz", data=dict(name="arrays"), augment=dict(colour="host"))
    with pytest.raises(ValueError, match="is for image files .*'arrays' gives arrays"):
        source = Arrays(np.zeros((16, 8, 8, 3), np.uint8))
        batches.Batches(source, config, sharding.data_mesh())


def test_without_numba_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    on_host._compile.cache_clear()
    with pytest.raises(ModuleNotFoundError, match="needs numba.*pip install"):
        on_host.compile()
