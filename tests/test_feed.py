"""Batches ahead of time: in order, on the device, errors where they are needed."""

import threading
import time

import jax
import numpy as np
import pytest

from vicreg_jax import sharding
from vicreg_jax.data.feed import Feed


def test_batches_come_in_order_and_divided_over_the_devices(mesh):
    split = sharding.split(mesh)
    feed = Feed(lambda step: np.full(16, step), start=3, stop=8, sharding=split)
    batches = list(feed)
    assert [int(b[0]) for b in batches] == [3, 4, 5, 6, 7]
    assert all(isinstance(b, jax.Array) and b.sharding == split for b in batches)


def test_waiting_is_counted_when_the_data_is_late_and_not_when_it_is_ready(mesh):
    def late(step):
        time.sleep(0.05)
        return np.zeros(8)

    where = dict(start=0, stop=6, sharding=sharding.split(mesh))
    slow = Feed(late, **where)
    for _ in slow:
        pass
    assert slow.waited > 0.15  # six batches of 50 ms, nothing else to do meanwhile
    fast = Feed(lambda step: np.zeros(8), **where)
    for _ in fast:
        time.sleep(0.05)
    assert fast.waited < slow.waited / 2


def test_an_error_of_the_source_reaches_the_consumer_at_its_step(mesh):
    def make(step):
        if step == 2:
            raise OSError("disk")
        return np.zeros(8)

    feed = Feed(make, start=0, stop=5, sharding=sharding.split(mesh))
    seen = []
    with pytest.raises(OSError, match="disk"):
        for batch in feed:
            seen.append(batch)
    assert len(seen) == 2


def test_a_consumer_that_leaves_early_leaves_no_thread(mesh):
    feed = iter(
        Feed(lambda step: np.zeros(8), start=0, stop=99, sharding=sharding.split(mesh))
    )
    next(feed)
    feed.close()
    for thread in threading.enumerate():
        if thread.name.startswith("feed"):
            thread.join(timeout=10)
            assert not thread.is_alive()


def test_the_slowest_stage_is_named_with_what_to_do(mesh):
    seconds = {"read": 0.0, "decode": 0.0, "resize": 0.0}

    def make(step):
        time.sleep(0.02)
        seconds["decode"] += 0.015
        seconds["resize"] += 0.005
        return np.zeros(8)

    split = sharding.split(mesh)
    feed = Feed(make, start=0, stop=5, sharding=split, seconds=seconds)
    list(feed)
    found = feed.bottleneck()
    assert found.startswith("decode is the slowest stage (decode ")
    assert "resize " in found and found.endswith("or store the images smaller")
    plain = Feed(make, start=0, stop=5, sharding=split)
    list(plain)
    assert plain.bottleneck().startswith("prepare is the slowest stage")


def test_the_global_batch_is_made_of_this_process_rows(mesh):
    rows = sharding.rows(16)
    assert rows == slice(0, 16)  # one process has them all
    feed = Feed(
        lambda s: np.arange(16)[rows], start=0, stop=1, sharding=sharding.split(mesh)
    )
    np.testing.assert_array_equal(next(iter(feed)), np.arange(16))
