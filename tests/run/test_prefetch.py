"""Batches ahead of time: in order, on the device, errors where they are needed."""

import gc
import re
import threading
import time
import weakref

import jax
import numpy as np
import pytest

from vicreg_jax.devices import sharding
from vicreg_jax.run.prefetch import Feed


def test_batches_come_in_order_and_divided_over_the_devices(mesh):
    split = sharding.split(mesh)
    feed = Feed(lambda step: np.full(16, step), range(3, 8), sharding=split)
    steps, batches = zip(*feed, strict=True)
    assert [int(b[0]) for b in batches] == list(steps) == [3, 4, 5, 6, 7]
    assert all(isinstance(b, jax.Array) and b.sharding == split for b in batches)


def test_waiting_is_counted_when_the_data_is_late_and_not_when_it_is_ready(mesh):
    def late(step):
        time.sleep(0.05)
        return np.zeros(8)

    where = dict(steps=range(6), sharding=sharding.split(mesh))
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

    feed = Feed(make, range(5), sharding=sharding.split(mesh))
    seen = []
    with pytest.raises(OSError, match="disk"):
        for batch in feed:
            seen.append(batch)
    assert len(seen) == 2


def test_a_consumer_that_leaves_early_leaves_no_thread(mesh):
    feed = iter(
        Feed(lambda step: np.zeros(8), range(99), sharding=sharding.split(mesh))
    )
    next(feed)
    feed.close()
    for thread in threading.enumerate():
        if thread.name.startswith("feed"):
            thread.join(timeout=10)
            assert not thread.is_alive()


def test_no_more_batches_are_made_than_the_feed_may_hold(mesh):
    made = []
    feed = Feed(
        lambda step: made.append(step) or np.zeros(8),
        **dict(steps=range(20), sharding=sharding.split(mesh), ahead=2),
    )
    for consumed, _ in enumerate(feed, 1):
        time.sleep(0.01)  # the threads make what they may
        assert len(made) - consumed <= 2  # while the consumer works; 3 once it asks
    assert made == list(range(20))


def test_a_batch_that_was_sent_is_held_by_nobody_else(mesh):
    class Batch(np.ndarray):  # of which it can be told when it is gone
        pass

    alive = weakref.WeakValueDictionary()

    def make(step):
        batch = np.arange(8).view(Batch)
        alive[step] = batch
        return batch

    gc.freeze()  # what is there already need not be looked at
    try:
        for _ in Feed(make, range(20), sharding=sharding.split(mesh)):
            gc.collect()
            assert len(alive) <= 4  # three, and one that is about to be let go
    finally:
        gc.unfreeze()


def test_making_goes_on_while_a_batch_is_sent(mesh, monkeypatch):
    third = threading.Event()

    def make(step):
        if step == 2:
            third.set()
        return np.zeros(8)

    def send(sharding, batch):
        assert third.wait(
            timeout=1500
        )  # the first is not sent before the third is made
        return jax.device_put(batch, sharding)

    monkeypatch.setattr(jax, "make_array_from_process_local_data", send)
    assert len(list(Feed(make, range(4), sharding=sharding.split(mesh)))) == 4


def test_the_slowest_stage_is_named_with_what_to_do(mesh):
    seconds = {"read": 0.0, "decode": 0.0, "resize": 0.0}

    def make(step):
        time.sleep(0.02)
        seconds["decode"] += 0.015
        seconds["resize"] += 0.005
        return np.zeros(8)

    split = sharding.split(mesh)
    feed = Feed(make, range(5), sharding=split, seconds=seconds)
    list(feed)
    found = feed.bottleneck()
    assert found.startswith("decode is the slowest stage (decode ")
    assert "resize " in found and found.endswith("or store the images smaller")
    later = Feed(make, range(5), sharding=split, seconds=seconds)
    list(later)
    shares = [int(x) for x in re.findall(r"(\d+)%", later.bottleneck())]
    assert sum(shares) <= 102  # what others took before does not count
    plain = Feed(make, range(5), sharding=split)
    list(plain)
    assert plain.bottleneck().startswith("prepare is the slowest stage")


def test_the_global_batch_is_made_of_this_process_rows(mesh):
    rows = sharding.rows(16)
    assert rows == slice(0, 16)  # one process has them all
    split = sharding.split(mesh)
    ((_, batch),) = Feed(lambda s: np.arange(16)[rows], range(1), sharding=split)
    np.testing.assert_array_equal(batch, np.arange(16))
