"""CRC-32C: the vectors of its standard, and a loop over bytes."""

import sys

import numpy as np
import pytest
from helpers import tfrecords

from vicreg_jax.data import crc32c

VECTORS = {  # RFC 3720, B.4
    bytes(32): 0x8A9136AA,
    b"\xff" * 32: 0x62A8AB43,
    bytes(range(32)): 0x46DD794E,
    bytes(range(31, -1, -1)): 0x113FDB5C,
    b"123456789": 0xE3069283,
}


@pytest.fixture(params=["Numba", "NumPy"])
def masked(request, monkeypatch):
    if request.param == "Numba":
        pytest.importorskip("numba")
    else:
        monkeypatch.setitem(sys.modules, "numba", None)
    crc32c._kernel.cache_clear()
    assert (crc32c._kernel() is None) == (request.param == "NumPy")
    yield crc32c.masked
    crc32c._kernel.cache_clear()


@pytest.mark.parametrize("data", VECTORS)
def test_known_vectors(masked, data):
    unmasked = (masked(data) - 0xA282EAD8) % 2**32
    assert (unmasked >> 17 | unmasked << 15) % 2**32 == VECTORS[data]
    assert tfrecords.crc32c(data) == VECTORS[data]


def test_data_of_any_length_as_a_loop_over_its_bytes(masked):
    rng = np.random.default_rng(0)
    for length in [*range(40), 255, 256, 257, 4_099, 50_000]:
        data = rng.bytes(length)
        assert masked(data) == tfrecords.masked(data), length


@pytest.mark.parametrize("length", [0, 1, 4, 8, 13])
def test_rows_are_checked_each_for_itself(length):
    rows = np.random.default_rng(0).integers(0, 256, (7, length), np.uint8)
    want = [tfrecords.masked(row.tobytes()) for row in rows]
    assert crc32c.masked_rows(rows).tolist() == want
    assert crc32c.masked_rows(rows[:0]).tolist() == []
