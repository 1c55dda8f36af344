"""Images that come one after the other: every position as NumPy counts it."""

import shutil

import numpy as np
import pytest
from helpers.records import lines, without_times
from helpers.runs import SMALL, checkpoint_hash, images
from PIL import Image

from vicreg_jax import config as configs
from vicreg_jax import train
from vicreg_jax.data import batches, plan
from vicreg_jax.data.augment import draw
from vicreg_jax.data.source import Arrays, How
from vicreg_jax.data.streams import Stream, is_stream
from vicreg_jax.refusals import Refusal
from vicreg_jax.train import build

PIXELS = images(60)
LABELS = np.arange(60) % 10
VIEWS = np.stack([PIXELS, PIXELS[::-1]], axis=1)  # [n, v, h, w, c]
WHOLE = How("whole", 8, 1)


def parts(array, size):
    return [array[i : i + size] for i in range(0, len(array), size)]


class Again:
    """An iterable with a length, like a DataLoader."""

    def __init__(self, elements):
        self._elements = elements

    def __len__(self):
        return len(self._elements)

    def __iter__(self):
        return iter(self._elements)


FORMS = {
    "images": Again(list(PIXELS)),
    "images and labels": Again(list(zip(PIXELS, LABELS, strict=True))),
    "batches": Again(parts(PIXELS, 7)),
    "batches and labels": Again(
        [(x, y) for x, y in zip(parts(PIXELS, 7), parts(LABELS, 7), strict=True)]
    ),
    "large batches": Again(parts(PIXELS, 25)),
    "dicts": Again([{"image": x, "label": 3} for x in parts(PIXELS, 7)]),
    "function": lambda: iter(parts(PIXELS, 7)),
    "views": Again(parts(VIEWS, 7)),
    "pairs of batches": Again(
        [(x[:, 0], x[:, 1], y) for x, y in zip(parts(VIEWS, 7), range(9), strict=True)]
    ),
    "pairs of images": Again([(x[0], x[1]) for x in VIEWS]),
}


def take(source, step, count=16):
    numbers = plan.uniforms(0, step, (count, 2, draw.NUMBERS))
    policies = batches.policies(configs.Config())
    positions = np.arange(step * count, (step + 1) * count)
    return source.views(positions, numbers, policies, WHOLE)


@pytest.mark.parametrize("name", FORMS)
def test_rows_come_in_order_and_begin_again_whatever_the_elements(name):
    source = Stream(FORMS[name], examples=60)
    wanted = VIEWS if "views" in name or "pairs" in name else PIXELS
    twice = np.concatenate([wanted, wanted, wanted])
    for step in range(8):  # over the end of two epochs
        found, drawn = take(source, step)
        np.testing.assert_array_equal(found, twice[16 * step : 16 * step + 16])
        numbers = plan.uniforms(0, step, (16, 2, draw.NUMBERS))
        want = draw.parameters(
            numbers, np.array([8, 8]), batches.policies(configs.Config())
        )
        np.testing.assert_array_equal(drawn.box, want.box)
    np.testing.assert_array_equal(take(source, 5)[0], twice[80:96])  # back, by skipping


def test_tensorflows_and_pytorchs_own_are_read():
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices((PIXELS, LABELS))
    for given in (data, data.batch(7), data.repeat().batch(7)):
        source = Stream(given, examples=60)
        assert is_stream(given) and len(source) == 60
        for step in range(5):
            twice = np.concatenate([PIXELS, PIXELS])
            want = twice[16 * step : 16 * step + 16]
            np.testing.assert_array_equal(take(source, step)[0], want)
    assert len(Stream(data)) == 60  # which it says itself
    torch = pytest.importorskip("torch")
    loader = torch.utils.data.DataLoader(torch.from_numpy(PIXELS), batch_size=7)
    source = Stream(loader)
    assert is_stream(loader) and len(source) == 63  # full batches, as far as it tells
    np.testing.assert_array_equal(take(source, 1)[0], PIXELS[16:32])


def test_iterable_data_sets_of_pytorch_and_hugging_face_are_read():
    data = pytest.importorskip("torch").utils.data

    class Own(data.IterableDataset):
        def __iter__(self):
            return iter(PIXELS)

    hub = pytest.importorskip("datasets")
    colours = np.repeat(PIXELS, 3, axis=3)
    made = hub.Dataset.from_dict({"image": [Image.fromarray(x) for x in colours]})
    kept = made.cast_column("image", hub.Image()).to_iterable_dataset()
    for source, want in ((Own(), PIXELS), (kept, colours)):
        assert is_stream(source)
        found = take(Stream(source, examples=60), 1)[0]
        np.testing.assert_array_equal(found, want[16:32])


def test_what_has_positions_is_no_stream():
    assert not is_stream(PIXELS) and not is_stream(list(PIXELS))


def run(workdir, source, epochs=2, **data):
    given = SMALL | dict(epochs=epochs, data=SMALL["data"] | data)
    return train.run(given, workdir, source=source)


def test_a_run_stopped_and_continued_skips_what_it_has_seen(tmp_path):
    first = FORMS["batches and labels"]
    whole = run(tmp_path / "whole", first, examples=60)
    assert int(whole.state.step) == 6
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "6")
    run(tmp_path / "again", FORMS["function"], examples=60)  # the same rows
    assert checkpoint_hash(tmp_path / "again") == checkpoint_hash(tmp_path / "whole")
    again, record = (without_times(lines(tmp_path / x)) for x in ("again", "whole"))
    assert again == record


def test_ready_views_of_floats_are_what_the_network_sees(tmp_path, mesh):
    # Normalized by hand they are the views of uint8, which are normalized here.
    floats = ((VIEWS / np.float32(255) - np.float32(0.5)) / np.float32(0.5)).astype(
        np.float32
    )
    seen = []
    for views in (VIEWS, floats):
        config = configs.parse(SMALL | dict(data=SMALL["data"] | dict(examples=60)))
        source = build.images(config, Again(parts(views, 9))).train
        made = batches.Batches(source, config, mesh)
        batch = made.make(build.planner(config, source), 0, slice(0, 16))
        seen.append(np.asarray(made.render(made.resident(), batch)))
    np.testing.assert_allclose(seen[0], seen[1], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(seen[1], floats[:16])


BAD = {
    "empty": (Again([]), "gives nothing"),
    "floats": (
        Again([PIXELS[:7] / 255]),
        r"expected images .* got float64 \[7, 8, 8, 1\]",
    ),
    "text": (Again(["image"]), "expected images"),
    "a dict": (Again([{"pixels": PIXELS}]), "got a dict of pixels"),
    "pairs that differ": (
        Again([(PIXELS[:2], PIXELS[:3])]),
        r"got uint8 \[2, 8, 8, 1\], u",
    ),
    "no length": ((x for x in PIXELS), "nobody knows how many .* config.data.examples"),
    "flat": (Again([PIXELS[0, :, :, 0]]), r"got uint8 \[8, 8\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_refused_at_once(name, tmp_path):
    given, text = BAD[name]
    with pytest.raises(Refusal, match=text) as error:
        run(tmp_path / "run", given)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_what_does_not_fit_the_config_is_refused_at_once(tmp_path):
    channels_first = Again(parts(np.zeros((60, 3, 8, 8), np.uint8), 7))
    with pytest.raises(Refusal, match=r"shape \[3, 8, 8\];.*\.permute\(0, 2, 3, 1\)"):
        run(tmp_path / "run", channels_first)
    with pytest.raises(Refusal, match="gives 2 views of 8 x 8 pixels; .*views is 3"):
        run(tmp_path / "run", FORMS["views"], views=3)
    with pytest.raises(Refusal, match="there are none"):
        given = SMALL | dict(evaluate=dict(probe=True))
        train.run(given, tmp_path / "run", source=FORMS["images and labels"])
    assert not (tmp_path / "run").exists()


def test_an_iterator_that_ends_or_changes_is_one_line(tmp_path):
    once = (x for x in PIXELS)
    with pytest.raises(Refusal, match="ended after 60 images and cannot begin again"):
        run(tmp_path / "once", once, examples=60)
    odd = [*parts(PIXELS, 7)[:4], np.zeros((7, 9, 9, 1), np.uint8)]
    with pytest.raises(Refusal, match=r"\[8, 8, 1\] first and now uint8 \[9, 9, 1\]"):
        run(tmp_path / "odd", Again(odd), examples=60)
    source = Stream((x for x in PIXELS), examples=60)
    take(source, 1)
    with pytest.raises(Refusal, match="at image 32 and cannot go back to 0"):
        take(source, 0)


class Counted:
    """An iterator over batches of seven with a state, that counts what it reads."""

    def __init__(self, kind, read):
        self._at, self._kind, self._read = 0, kind, read

    def __iter__(self):
        return self

    def __next__(self):
        if self._at == 9:
            raise StopIteration
        self._at += 1
        self._read.append(self._at)
        return PIXELS[7 * self._at - 7 : 7 * self._at]

    def get_state(self):
        return b"%d" % self._at if self._kind == "bytes" else {"at": self._at}

    def set_state(self, state):
        self._at = int(state) if self._kind == "bytes" else state["at"]


@pytest.mark.parametrize("kind", ["bytes", "dict"])
@pytest.mark.parametrize("stop", [2, 3, 5])  # in an element, over the end, of epoch 2
def test_an_iterator_with_a_state_of_its_own_goes_on_without_reading(
    kind, stop, tmp_path
):
    read = []
    first = Stream(lambda: Counted(kind, read), examples=60, folder=tmp_path)
    for step in range(stop + 2):  # two are made ahead
        take(first, step)
    first.keep(16 * stop)
    want = take(first, stop)[0]
    del read[:]
    again = Stream(lambda: Counted(kind, read), examples=60, folder=tmp_path)
    np.testing.assert_array_equal(take(again, stop)[0], want)
    assert len(read) <= 1 + 4  # the first, and what 16 rows lie in
    twice = np.concatenate([PIXELS] * 3)[16 * stop :]
    np.testing.assert_array_equal(want, twice[:16])
    np.testing.assert_array_equal(take(again, stop + 1)[0], twice[16:32])


@pytest.mark.parametrize("damage", ["cut", "flip", "foreign", "gone", "refused"])
def test_a_state_that_is_damaged_or_refused_costs_time_alone(damage, tmp_path):
    first = Stream(lambda: Counted("dict", []), examples=60, folder=tmp_path)
    take(first, 2)
    first.keep(48)
    path = tmp_path / "stream_0.json"
    held = path.read_text()
    damaged = {
        "cut": held[:-9],
        "flip": held.replace('"at": ', '"at": 1'),
        "foreign": '{"states": {"48": {"x": 1}, "y": 2}}',
        "gone": "",
        "refused": held,
    }
    path.write_text(damaged[damage])

    class Refuses(Counted):
        def set_state(self, state):
            raise KeyError("another data set")

    made = Refuses if damage == "refused" else Counted
    again = Stream(lambda: made("dict", []), examples=60, folder=tmp_path)
    want = np.concatenate([PIXELS, PIXELS])[48:64]
    np.testing.assert_array_equal(take(again, 3)[0], want)


def test_a_run_goes_on_by_the_state_of_its_iterator(tmp_path):
    read = []
    whole = run(tmp_path / "whole", lambda: Counted("dict", read), examples=60)
    assert int(whole.state.step) == 6
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "6")
    del read[:]
    run(tmp_path / "again", lambda: Counted("dict", read), examples=60)
    assert checkpoint_hash(tmp_path / "again") == checkpoint_hash(tmp_path / "whole")
    assert read[0] == 1 and read[1] == 7  # the first to see what it is; from row 48 on


def test_streams_of_16_bits_train_as_arrays_of_them(mesh):
    deep = np.random.default_rng(0).integers(0, 65536, (60, 8, 8, 1), np.uint16)
    given = SMALL["data"] | dict(examples=60)
    config = configs.parse(SMALL | dict(data=given))
    source = build.images(config, Again(parts(deep, 7))).train
    made = batches.Batches(source, config, mesh)
    batch = made.make(build.planner(config, source), 0, slice(0, 16))
    assert batch.images.dtype == np.uint16
    found = np.asarray(made.render(made.resident(), batch))
    plain = batches.Batches(Arrays(deep[:16]), config, mesh)
    rows = type(batch)(np.arange(16), batch.parameters, "held")
    want = np.asarray(plain.render(plain.resident(), rows))
    np.testing.assert_array_equal(found, want)
