"""Local views of their own size beside the global ones, wherever they are made."""

import jax
import numpy as np
import pytest
from helpers.pictures import picture, pictures
from PIL import Image

from vicreg_jax import config as configs
from vicreg_jax.data import batches, plan
from vicreg_jax.data.augment import draw
from vicreg_jax.data.source import Arrays
from vicreg_jax.data.sources.folder import open_folder
from vicreg_jax.devices import sharding

PLAIN = dict(jitter=0.0, grey=0.0, blur=(0.0, 0.0), solarize=(0.0, 0.0), flip=0.0)
MEAN = STD = (0.5, 0.5, 0.5)
B, V, L, SIZE, LOCAL = 4, 2, 3, 12, 5


class Lazy(Arrays):
    def __init__(self, images):
        super().__init__(images)
        self.array = None


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Returns a function that opens images of a kind."""
    root = pictures(tmp_path_factory.mktemp("pictures"))
    array = np.stack([np.asarray(picture(i, 40, 36)) for i in range(8)])
    kinds = {"held": lambda: Arrays(array), "whole": lambda: Lazy(array)}
    return lambda kind: kinds.get(kind, lambda: open_folder(root))()


def made(source, kind, local, **augment):
    """Returns the batch of a step, and what makes its views."""
    data = dict(name="folder", path="x", batch_size=B, image_size=SIZE, mean=MEAN)
    data |= dict(std=STD, local_views=local, local_size=LOCAL)
    data["resize"] = "device" if kind == "canvas" else "auto"
    colour = "host" if kind == "finished" else "device"
    augment = PLAIN | dict(colour=colour) | augment
    config = configs.parse(dict(data=data, augment=augment))
    found = batches.Batches(source, config, sharding.data_mesh(jax.devices()[:1]))
    planner = plan.Planner(
        seed=3, examples=len(source), batch_size=B, views=V, local_views=local,
        numbers=draw.NUMBERS,
    )  # fmt: skip
    batch = found.make(planner, 1, slice(None))

    def render():
        views, like = (
            found.render(found.resident(), batch),
            batches.views_like(config, B),
        )
        assert jax.tree.map(np.shape, views) == jax.tree.map(lambda x: x.shape, like)
        return views

    return batch, render


KINDS = ["held", "whole", "crops", "finished", "canvas"]


@pytest.mark.parametrize("kind", KINDS)
def test_global_views_are_the_same_with_local_ones_and_without(kind, source):
    if kind == "finished":
        pytest.importorskip("numba")
    colours = dict(flip=0.5, jitter=0.8, blur=(1.0, 0.1))
    without, _ = made(source(kind), kind, 0, **colours)
    batch, _ = made(source(kind), kind, L, **colours)
    for name, value in batch.parameters._asdict().items():
        if (kind, name) != ("canvas", "box"):  # moved by what all boxes cover
            expected = getattr(without.parameters, name)
            np.testing.assert_array_equal(value[:, :V], expected)
    (_, render), (_, render_all) = (made(source(kind), kind, x) for x in (0, L))
    views, (large, small) = render(), render_all()
    assert large.shape == (B, V, SIZE, SIZE, 3)
    assert small.shape == (B, L, LOCAL, LOCAL, 3)
    # A canvas begins elsewhere, and is resized with other roundings.
    atol = 1e-5 if kind == "canvas" else 0
    np.testing.assert_allclose(large, views, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
def test_local_views_are_small_crops_of_their_images(kind, source):
    if kind == "finished":
        pytest.importorskip("numba")
    images = source(kind)
    _, render = made(images, kind, L)
    _, small = render()
    indices = plan.Planner(
        seed=3, examples=len(images), batch_size=B, views=V, numbers=draw.NUMBERS
    )(1).indices
    numbers = plan.uniforms(3, 1, (B, V, draw.NUMBERS), local_views=L)
    for row, index in enumerate(indices):
        whole = images.array[index] if kind == "held" else None
        whole = images.images[index] if kind == "whole" else whole
        whole = images.whole(index) if whole is None else whole
        policy = batches.policies(configs.Config())[0]._replace(
            **PLAIN | dict(blur=0.0, solarize=0.0), crop_scale=(0.05, 0.14)
        )
        drawn = draw.parameters(
            numbers[row : row + 1, V:], np.array(whole.shape[:2]), [policy] * L
        )
        for view, box in enumerate(drawn.box[0].astype(int)):
            top, left, height, width = box.tolist()
            share = height * width / (whole.shape[0] * whole.shape[1])
            assert 0.03 < share < 0.18  # of whole pixels
            crop = Image.fromarray(whole).crop((left, top, left + width, top + height))
            want = np.asarray(crop.resize((LOCAL, LOCAL), Image.Resampling.BICUBIC))
            got = (np.asarray(small[row, view]) * 0.5 + 0.5) * 255
            # Pillow rounds to 8 bits after each of its two passes.
            np.testing.assert_allclose(got, want, atol=1.5)


def test_policies_take_turns_or_have_a_chance_for_each_view():
    def of(**given):
        data = dict(local_views=2)
        return batches.policies(configs.parse(dict(data=data, augment=given)))

    found = of(blur=(1.0, 0.1), crop_scale=(0.14, 1.0), local_scale=(0.05, 0.1))
    assert [x.blur for x in found] == [1.0, 0.1, 1.0, 0.1]
    wide, narrow = (0.14, 1.0), (0.05, 0.1)
    assert [x.crop_scale for x in found] == [wide, wide, narrow, narrow]
    found = of(blur=(1.0, 0.1, 0.5, 0.4))
    assert [x.blur for x in found] == [1.0, 0.1, 0.5, 0.4]


@pytest.mark.parametrize("local", [0, 1, 6, 10])
def test_finished_crops_have_room_on_a_canvas_and_do_not_overlap(local, tmp_path):
    for i in range(4):  # smooth, and much larger than any canvas
        small = np.random.default_rng(i).integers(0, 256, (5, 6, 3), np.uint8)
        Image.fromarray(small).resize((900, 700)).save(tmp_path / f"{i}.png")
    images = open_folder(tmp_path)
    data = dict(name="folder", path="x", image_size=224, resize="device")
    config = configs.parse(dict(data=data | dict(local_views=local)))
    how = images.how(config, accelerator=False)
    assert how.canvas == 512
    numbers = plan.uniforms(0, 0, (4, V, draw.NUMBERS), local_views=local)
    given = np.arange(4), numbers, batches.policies(config)
    crops, _ = images.views(*given, how._replace(kind="crops"))
    canvases, parameters = images.views(*given, how)
    placed = 0
    for view, wanted in enumerate(how.views_in(crops)):
        for row, crop in enumerate(wanted):
            top, left, height, width = parameters.box[row, view].astype(int)
            if (height, width) == crop.shape[:2]:  # else it shows the image itself
                found = canvases[row, top : top + height, left : left + width]
                np.testing.assert_array_equal(found, crop)
                placed += 1
    assert placed >= V + local
