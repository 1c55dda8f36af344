"""One process at a time in a folder of a bucket: a stand-in for Cloud Storage."""

import json
import os
import time

import pytest
from helpers.refusals import refused

from vicreg_jax import files
from vicreg_jax.refusals import Refusal
from vicreg_jax.run import lock
from vicreg_jax.run.lock import Lease

ROOT = files.Place("gs://bucket/run")
FILE = f"run/{lock.NAME}"


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lock, "LEASE", 0.5)
    monkeypatch.setattr(lock, "SIGN", 0.05)


def elsewhere(bucket, sign=0):
    """Leaves the entry of a process on another machine."""
    found = dict(machine="far", host="far.example", process=7, since="then", sign=sign)
    bucket.objects[FILE] = json.dumps(found | {"id": "other"}).encode()


def test_a_folder_is_held_once_and_given_back(bucket):
    with Lease(ROOT):
        assert json.loads(bucket.objects[FILE])["process"] == os.getpid()
        with refused(Refusal, f"held by process {os.getpid()} on .*; wait for it"):
            Lease(ROOT).__enter__()
    assert not bucket.objects


def test_what_was_killed_on_this_machine_holds_nothing(bucket):
    with Lease(ROOT):
        left = json.loads(bucket.objects[FILE])
    bucket.objects[FILE] = json.dumps(left | {"started": "before"}).encode()
    with Lease(ROOT):
        assert json.loads(bucket.objects[FILE])["id"] != left["id"]


def test_one_elsewhere_loses_it_without_a_sign(bucket, quick, capfd):
    elsewhere(bucket)
    with Lease(ROOT):
        assert json.loads(bucket.objects[FILE])["process"] == os.getpid()
        signed = bucket.count + 2
        while bucket.count < signed:  # it gives signs itself
            time.sleep(0.01)
    assert (
        "is held by process 7 on far.example since then; wait" in capfd.readouterr()[1]
    )


def test_one_elsewhere_that_gives_a_sign_keeps_it(bucket, quick, monkeypatch):
    elsewhere(bucket)
    monkeypatch.setattr(lock.time, "sleep", lambda _: elsewhere(bucket, sign=1))
    with refused(Refusal, "held by process 7 on far.example since then; wait for it"):
        Lease(ROOT).__enter__()


def test_of_two_that_come_as_one_goes_the_first_gets_it(bucket, quick):
    """The second has seen the dead holder, too, and removes not the first."""
    elsewhere(bucket)
    dead, second = json.loads(bucket.objects[FILE]), Lease(ROOT)
    with Lease(ROOT):
        second._remove(dead)
        assert not second._made()
        with refused(Refusal, f"held by process {os.getpid()}"):
            second.__enter__()


def test_a_service_out_of_reach_is_one_line(bucket, once):
    bucket.always = 503
    with refused(files.Unreachable, "^gs://bucket/run/.lock.json cannot be read: "):
        Lease(ROOT).__enter__()
