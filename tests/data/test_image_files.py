"""Image files: what a folder holds, what is cut out, what happens to broken ones."""

import json
import os
import struct
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.pictures import POLICY, picture, pictures, uniforms
from PIL import Image

from vicreg_jax import config as configs
from vicreg_jax import train
from vicreg_jax.config import Config
from vicreg_jax.data import batches, image_files, plan
from vicreg_jax.data.augment import draw, on_device
from vicreg_jax.data.preparing import prepare
from vicreg_jax.data.source import How
from vicreg_jax.data.sources.folder import open_folder
from vicreg_jax.devices import sharding
from vicreg_jax.refusals import Refusal


def test_class_folders_are_labelled_in_alphabetic_order(tmp_path):
    images = open_folder(pictures(tmp_path))
    assert images.classes == ["a", "b"] and len(images) == 8
    assert images.labels.tolist() == [0] * 4 + [1] * 4
    names = [str(Path(x).relative_to(tmp_path)) for x in images.names]
    assert names == [f"{c}/{i}.png" for c in "ab" for i in range(4)]


def test_a_flat_folder_has_no_labels_and_other_files_are_passed_over(tmp_path):
    picture(0, 20, 30).save(tmp_path / "1.JPG", format="jpeg")
    picture(1, 20, 30).save(tmp_path / "0.png")
    (tmp_path / "notes.txt").write_text("no image")
    images = open_folder(tmp_path)
    assert [Path(x).name for x in images.names] == ["0.png", "1.JPG"]
    assert images.labels is None


def test_views_are_those_that_the_accelerator_would_cut_from_the_whole_image(tmp_path):
    images = open_folder(pictures(tmp_path))
    indices = np.array([5, 0, 3])
    crops, parameters = images.views(
        indices, uniforms(3), [POLICY] * 2, How("crops", 24)
    )
    assert crops.shape == (3, 2, 24, 24, 3) and crops.dtype == np.uint8
    for row, index in enumerate(indices):
        whole = jnp.asarray(images.whole(index))[None]
        for v in range(2):
            box = jnp.asarray(parameters.box[row : row + 1, v])
            want = on_device.crop_resize(on_device.as_float(whole), box, size=24)[0]
            # Pillow rounds to 8 bits after each of its two passes.
            np.testing.assert_allclose(crops[row, v], 255 * want, atol=1.5)


def test_rendered_crops_are_recoloured_like_whole_images(tmp_path):
    images = open_folder(pictures(tmp_path))
    crops, parameters = images.views(
        np.arange(4), uniforms(4), [POLICY] * 2, How("crops", 24)
    )
    view = jax.tree.map(lambda x: jnp.asarray(x[:, 0]), parameters)
    got = on_device.render_crops(jnp.asarray(crops[:, 0]), view, policy=POLICY)
    want = on_device.recolour(jnp.asarray(crops[:, 0]) / 255, view, policy=POLICY)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_grey_palette_and_transparent_files_become_rgb(tmp_path):
    for mode in ("L", "P", "RGBA", "CMYK"):
        ending = "jpg" if mode == "CMYK" else "png"
        picture(0, 30, 30).convert(mode).save(tmp_path / f"{mode}.{ending}")
    images = open_folder(tmp_path)
    crops, _ = images.views(np.arange(4), uniforms(4), [POLICY] * 2, How("crops", 8))
    assert crops.shape[-1] == 3 and not images.broken
    grey, _ = images.views(np.arange(4), uniforms(4), [POLICY] * 2, How("crops", 8, 1))
    assert grey.shape[-1] == 1


def test_a_broken_file_is_replaced_by_the_next_and_noted(tmp_path, monkeypatch):
    monkeypatch.setattr("vicreg_jax.data.image_files.BROKEN_AT_MOST", 0.5)
    images = open_folder(pictures(tmp_path, ending="jpg"))
    Path(images.names[1]).write_bytes(b"not an image")
    cut = Path(images.names[2])
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])  # its header is whole
    where = dict(policies=[POLICY] * 2, how=How("crops", 16))
    for _ in range(2):  # the second time they are known
        got, parameters = images.views(np.array([1, 6]), uniforms(2), **where)
        want, expected = images.views(np.array([3, 6]), uniforms(2), **where)
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(parameters.box, expected.box)
    assert sorted(images.broken) == [1, 2]
    assert "cannot identify" in images.broken[1] and "Truncated" in images.broken[2]


def test_too_many_broken_files_stop_the_run(tmp_path):
    images = open_folder(pictures(tmp_path))
    for name in images.names[:3]:
        Path(name).write_bytes(b"")
    with pytest.raises(ValueError, match="3 of 8 images cannot be read, .*/0.png"):
        images.views(np.arange(8), uniforms(8), [POLICY] * 2, How("crops", 8))


def test_an_empty_or_missing_folder_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="no images below .*; expected files ending in"
    ):
        open_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        open_folder(tmp_path / "nowhere")


def test_other_formats_are_read_by_no_program_of_others(tmp_path, monkeypatch):
    root, called = pictures(tmp_path / "files"), tmp_path / "called"
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "gs"  # Ghostscript, which Pillow starts for PostScript
    program.write_text(f"#!/bin/sh\ntouch {called}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n"
    (root / "a" / "1.png").write_text(text + "showpage\n%%EOF\n")
    images = open_folder(root)
    images.views(np.array([1]), uniforms(1), [POLICY] * 2, How("crops", 8))
    assert "cannot identify" in images.broken[1]
    with pytest.raises(Refusal, match="1.png cannot be read .cannot identify"):
        images.centres(np.array([1]), size=8, shorter=8)
    prepare(images, tmp_path / "out", shards=1)
    assert not called.exists()


def test_only_regular_files_that_are_not_hidden_are_images(tmp_path):
    root = pictures(tmp_path)
    os.mkfifo(root / "b" / "pipe.png")  # who opens it waits for somebody to write
    os.symlink("/dev/zero", root / "b" / "zero.png")
    os.symlink("nowhere", root / "b" / "dangling.png")
    os.symlink("../a/0.png", root / "b" / "link.png")
    picture(0, 8, 8).save(root / "a" / "._0.png")
    (root / ".ipynb_checkpoints").mkdir()
    picture(0, 8, 8).save(root / ".ipynb_checkpoints" / "0.png")
    (root / "a" / "notes.txt").write_text("no image")
    (root / "c").mkdir()
    images = open_folder(root)
    assert len(images) == 9 and images.classes == ["a", "b", "c"]
    assert images.names[-1].endswith("b/link.png")
    assert images.skipped == {
        "hidden": 2,
        "no regular file": 3,
        ".txt": 1,
        "class folder without images": 1,
    }


def test_each_folder_is_read_once_wherever_links_lead(tmp_path):
    root = pictures(tmp_path / "x" / "data")
    pictures(tmp_path / "elsewhere", classes=("deep",))
    os.symlink("..", root / "a" / "up")
    os.symlink("../..", root / "b" / "upper")  # and down again
    os.symlink("../b", root / "a" / "b")  # a class of its own
    os.symlink(tmp_path / "elsewhere", root / "a" / "more")
    os.symlink(tmp_path / "elsewhere" / "deep", root / "a" / "same")
    images = open_folder(root)
    names = [os.path.relpath(name, root) for name in images.names]
    more = [f"a/more/deep/{i}.png" for i in range(4)]
    assert names == [*(f"a/{i}.png" for i in range(4)), *more] + [
        f"b/{i}.png" for i in range(4)
    ]
    assert images.labels.tolist() == [0] * 8 + [1] * 4
    assert images.skipped == {"folder that is read elsewhere": 4}


def test_a_pipe_that_takes_the_place_of_an_image_counts_as_broken(tmp_path):
    images = open_folder(pictures(tmp_path))
    os.remove(images.names[1])
    os.mkfifo(images.names[1])
    images.views(np.array([1, 6]), uniforms(2), [POLICY] * 2, How("crops", 16))
    assert "cannot be read: it is no regular file" in images.broken[1]


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(pictures(tmp_path / "home").parent))
    assert len(open_folder("~/home")) == 8


def test_a_folder_whose_images_are_all_broken_ends_however_many_may_be(tmp_path):
    images = open_folder(pictures(tmp_path))
    images.broken_at_most = 1.0
    for name in images.names:
        Path(name).write_bytes(b"")
    with pytest.raises(Refusal, match="8 of 8 images cannot be read"):
        images.views(np.arange(2), uniforms(2), [POLICY] * 2, How("crops", 8))


@pytest.mark.parametrize("kind", ["crops", "finished", "whole"])
def test_the_first_two_of_three_views_are_those_of_two(tmp_path, kind):
    images, numbers = (
        open_folder(pictures(tmp_path)),
        plan.uniforms(0, 0, (8, 3, draw.NUMBERS)),
    )
    config = configs.parse(run_config(tmp_path, colour="host"))
    seen = []
    for count in (2, 3):
        data = replace(config.data, views=count, batch_size=8)
        data = replace(data, resize="device" if kind == "whole" else "host")
        colour = "host" if kind == "finished" else "device"
        augment = replace(config.augment, colour=colour)
        given = replace(config, data=data, augment=augment)
        made = batches.Batches(images, given, sharding.data_mesh())
        planned = plan.Plan(np.arange(8), numbers[:, :count])
        batch = made.make(lambda step, planned=planned: planned, 0, slice(None))
        assert batch.kind == kind
        seen.append(np.asarray(made.render(made.resident(), batch)))
    assert seen[1].shape == (8, 3, 16, 16, 3)
    np.testing.assert_allclose(seen[1][:, :2], seen[0], rtol=0, atol=1e-6)
    assert not np.array_equal(seen[1][:, 2], seen[1][:, 0])


@pytest.mark.long
def test_a_run_lists_the_files_that_it_had_to_replace(tmp_path):
    root = pictures(tmp_path / "data", each=10)
    (root / "a" / "7.png").write_bytes(b"")
    for epochs in (3, 5):  # the second continues and finds it again
        train.run(run_config(root) | dict(epochs=epochs), tmp_path / "run")
    (line,) = (tmp_path / "run" / "bad_examples.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert found["name"] == f"{root}/a/7.png"
    assert found["reason"].startswith("UnidentifiedImageError")


def run_config(root, **augment):
    return dict(
        epochs=1,
        data=dict(name="folder", path=str(root), batch_size=8, image_size=16),
        model=dict(encoder="digits", expander=(8, 8)),
        optimizer=dict(warmup_epochs=0),
        augment=augment,
    )


def test_a_run_on_a_folder_does_not_depend_on_the_number_of_threads(tmp_path):
    config = run_config(pictures(tmp_path / "data"))
    a = train.run(config, tmp_path / "a")
    source = open_folder(tmp_path / "data", threads=1)
    b = train.run(config, tmp_path / "b", source=source)
    for x, y in zip(jax.tree.leaves(a.state), jax.tree.leaves(b.state), strict=True):
        np.testing.assert_array_equal(x, y)


def test_images_beside_class_folders_are_taken_and_nothing_is_labelled(tmp_path):
    pictures(tmp_path)
    picture(0, 20, 30).save(tmp_path / "beside.png")
    files = open_folder(tmp_path)
    assert len(files) == 9 and files.labels is None and files.classes == []


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_pixels_of_more_than_8_bits_are_refused_before_training(tmp_path, mode):
    for i in range(4):
        ramp = np.linspace(0, 1, 900).reshape(30, 30) * (1 if mode == "F" else 60_000)
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        Image.fromarray(ramp.astype(kind)).save(tmp_path / f"{i}.tif")
    with pytest.raises(
        ValueError, match=r"4 of 4 images .*mode I;16|mode [IF] are not"
    ):
        train.run(run_config(tmp_path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_files_that_are_no_images_is_refused_before_training(tmp_path):
    for i in range(20):
        (tmp_path / f"{i}.jpg").write_text("no image")
    with pytest.raises(
        ValueError, match="20 of 20 images cannot be read, such as .*0.j"
    ):
        train.run(run_config(tmp_path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def bomb(width=60_000, height=60_000):
    """A PNG of a few bytes whose header claims 3.6 thousand million pixels."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("side", [10_000, 60_000])  # Pillow warns, Pillow refuses
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_that_claims_an_insane_size_counts_as_broken(tmp_path, side):
    images = open_folder(pictures(tmp_path))
    Path(images.names[1]).write_bytes(bomb(side, side))
    where = dict(policies=[POLICY] * 2, how=How("crops", 16))
    got, _ = images.views(np.array([1, 6]), uniforms(2), **where)
    want, _ = images.views(np.array([2, 6]), uniforms(2), **where)
    np.testing.assert_array_equal(got, want)
    assert list(images.broken) == [1]
    assert "more than" in images.broken[1] or "exceeds limit" in images.broken[1]


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_where_warnings_are_errors_an_insane_size_is_no_crash(tmp_path, side):
    images = open_folder(pictures(tmp_path))
    Path(images.names[1]).write_bytes(bomb(side, side))
    images.check(Config())
    assert list(images.broken) == [1]
    with pytest.raises(ValueError, match=r"1\.png cannot be read \(.*; mend or rem"):
        images.centres(np.array([1]), size=8, shorter=8)


def test_a_test_leaves_no_image_out(tmp_path):
    images = open_folder(pictures(tmp_path))
    Path(images.names[2]).write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"a/2\.png cannot be read \(cannot identify"):
        images.centres(np.arange(4), size=8, shorter=8)


def test_the_images_that_stand_for_broken_ones_are_known(tmp_path):
    images = open_folder(pictures(tmp_path))
    np.testing.assert_array_equal(images.chosen(np.arange(8)), np.arange(8))
    images.broken |= {2: "broken", 3: "broken", 7: "broken"}
    assert images.chosen(np.array([1, 2, 3, 4, 7])).tolist() == [1, 4, 4, 4, 0]


def test_what_views_shows_is_what_chosen_names(tmp_path):
    images = open_folder(pictures(tmp_path))
    Path(images.names[7]).write_bytes(b"not an image")
    where, indices = (
        dict(policies=[POLICY] * 2, how=How("crops", 16)),
        np.array([2, 7, 5]),
    )
    got, _ = images.views(indices, uniforms(3), **where)
    want, _ = images.views(images.chosen(indices), uniforms(3), **where)
    np.testing.assert_array_equal(got, want)


def test_threads_are_as_many_as_the_process_has_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files.os, "sched_getaffinity", lambda _: {3, 5, 7})
    images = open_folder(pictures(tmp_path))
    assert image_files.cores() == images.threads == images._threads._max_workers == 3


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_each_host_reads_its_share_of_a_batch_and_nothing_else(tmp_path, hosts):
    images = open_folder(pictures(tmp_path, each=10))
    read, reads = images.read, []
    images.read = lambda index: (reads.append(index), read(index))[1]
    numbers = dict(views=2, numbers=draw.NUMBERS)
    planner = plan.Planner(seed=0, examples=20, batch_size=16, **numbers)
    config = configs.parse(run_config(tmp_path))
    made = batches.Batches(images, config, sharding.data_mesh())
    reads.clear()  # of some it has looked whether they can be read
    share = 16 // hosts
    for host in range(hosts):
        rows = slice(host * share, (host + 1) * share)
        before = len(reads)
        made.make(planner, 0, rows)
        assert len(reads) - before == share
    assert Counter(reads) == Counter(planner(0).indices.tolist())


def test_a_run_with_all_colours_on_the_host_trains_and_refuses_what_it_cannot(tmp_path):
    root = pictures(tmp_path / "data", each=8)
    trained = train.run(run_config(root, colour="host"), tmp_path / "run")
    assert int(trained.state.step) == 2
    arrays = np.zeros((16, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="augment.colour"):
        train.run(run_config(root, colour="host"), tmp_path / "b", source=arrays)
    with pytest.raises(ValueError, match="cannot rotate or shear"):
        given = run_config(root, colour="host", rotation=10.0)
        train.run(given, tmp_path / "c")
    assert not (tmp_path / "b").exists() and not (tmp_path / "c").exists()
