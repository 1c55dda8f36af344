"""Pixels of more than 8 bits: read right where Pillow scales them, else refused."""

import struct
import zlib

import numpy as np
import pytest
from helpers.pictures import POLICY, pictures, uniforms
from helpers.refusals import refused

from vicreg_jax.data.preparing import prepare
from vicreg_jax.data.source import How
from vicreg_jax.data.sources.folder import open_folder
from vicreg_jax.refusals import Refusal

HEIGHT, WIDTH = 9, 7
# The pixels of each pass of an interlaced PNG: first row and column, and the steps.
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2))
PASSES += ((0, 1, 2, 2), (1, 0, 2, 1))


def pixels(channels, order):
    rng = np.random.default_rng(0)
    return rng.integers(0, 2**12, (HEIGHT, WIDTH, channels)).astype(order + "u2")


def png(kind, channels, *, interlaced):
    """A PNG of 16 bits per channel, which Pillow cannot write."""
    whole = pixels(channels, ">")
    parts = [whole[a::c, b::d] for a, b, c, d in PASSES] if interlaced else [whole]
    rows = [row.tobytes() for part in parts if part.size for row in part]
    raw = b"".join(b"\0" + row for row in rows)

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    sizes = WIDTH, HEIGHT, 16, kind, 0, 0, int(interlaced)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *sizes))
    rest = chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + rest


def tiff(channels, order, *, packed, apart):
    """A TIFF of 16 bits per channel, perhaps with each channel for itself."""
    whole = pixels(channels, order)
    planes = [whole[..., c] for c in range(channels)] if apart else [whole]
    parts = [plane.tobytes() for plane in planes]
    parts = [zlib.compress(part) for part in parts] if packed else parts
    starts = np.cumsum([8, *map(len, parts)]).tolist()
    body, entries, end = b"".join(parts), [], starts.pop()
    for tag, *values in (
        (256, WIDTH),
        (257, HEIGHT),
        (258, *[16] * channels),
        (259, 8 if packed else 1),
        (262, 2 if channels > 1 else 1),
        (273, *starts),
        (277, channels),
        (278, HEIGHT),
        (279, *map(len, parts)),
        (284, 2 if apart else 1),
        *([(338, 2)] if channels == 4 else []),
    ):
        held = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            held, body = struct.pack(f"{order}I", 8 + len(body)), body + held
        entries.append(struct.pack(f"{order}HHI", tag, 4, len(values)) + held)
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}H", 42)
    head += struct.pack(f"{order}I", 8 + len(body))
    table = struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)
    assert end <= 8 + len(body)
    return head + body + table


DEEP = {
    f"png of kind {kind}, {'interlaced' if interlaced else 'plain'}": png(
        kind, channels, interlaced=interlaced
    )
    for kind, channels in ((0, 1), (2, 3), (4, 2), (6, 4))
    for interlaced in (False, True)
}
DEEP |= {
    f"tiff, {channels} {order} {packed} {apart}": tiff(
        channels, order, packed=packed, apart=apart
    )
    for channels in (1, 3, 4)
    for order in "<>"
    for packed in (False, True)
    for apart in (False, True)
}


@pytest.mark.parametrize("name", DEEP)
def test_what_would_be_cut_to_8_bits_is_refused(tmp_path, name):
    file = f"0.{name.split()[0].strip(',')}"
    root = pictures(tmp_path / "data")
    (root / "a" / file).write_bytes(DEEP[name])
    images = open_folder(root)
    index = [x.endswith(file) for x in images.names].index(True)
    with refused(
        Refusal, rf"a/{file} cannot be read \(pixels of mode .* not of 8 bits"
    ):
        images.centres(np.array([index]), size=4, shorter=4)
    numbers = uniforms(2)
    images.views(np.array([index, 6]), numbers, [POLICY] * 2, How("crops", 8))
    assert list(images.broken) == [index] and "8 bits" in images.broken[index]


def test_an_image_of_16_bits_is_not_prepared(tmp_path):
    pytest.importorskip("array_record")
    root = pictures(tmp_path / "data", each=10)
    (root / "a" / "0.png").write_bytes(DEEP["png of kind 2, plain"])
    prepare(open_folder(root), tmp_path / "out", shards=2)
    assert "are not of 8 bits" in (tmp_path / "out" / "index.json").read_text()


@pytest.mark.parametrize("most", [1, 3, 100, 255, 256, 1023, 65_535])
@pytest.mark.parametrize("kind", ["P3", "P6"])
def test_a_colour_ppm_of_any_depth_is_scaled(tmp_path, kind, most):
    values = np.random.default_rng(1).integers(0, most + 1, (HEIGHT, WIDTH, 3))
    values[0, 0], values[0, 1] = 0, most
    head = f"{kind}\n{WIDTH} {HEIGHT}\n{most}\n".encode()
    data = " ".join(map(str, values.ravel())).encode()
    if kind == "P6":
        data = values.astype(">u2" if most > 255 else "u1").tobytes()
    (tmp_path / "0.ppm").write_bytes(head + data)
    found = open_folder(tmp_path).whole(0)
    assert found[0, :2].tolist() == [[0] * 3, [255] * 3]
    # To the nearest of 8 bits.
    np.testing.assert_allclose(found, values * (255 / most), rtol=0, atol=0.501)


def test_bitmaps_of_16_bits_a_pixel_are_read(tmp_path):
    header = struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, 16, 0, 4, 0, 0, 0, 0)
    data = b"BM" + struct.pack("<IHHI", 58, 0, 0, 54) + header + b"\xff\x7f\0\0"
    (tmp_path / "0.bmp").write_bytes(data)
    assert open_folder(tmp_path).whole(0)[0, :, 0].tolist() == [255, 0]
