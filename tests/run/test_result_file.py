"""Results on disk: read as written; what is none is one line."""

import json

import pytest
from helpers.pages import result
from helpers.refusals import refused

from vicreg_jax.refusals import Unusable
from vicreg_jax.run import result_file


def test_a_result_is_read_as_it_was_written(tmp_path):
    assert result_file.read(tmp_path) is None
    result_file.write(tmp_path, result(step=None))
    assert result_file.read(tmp_path) == result(step=None)
    held = json.loads((tmp_path / "result.json").read_text())
    assert held.pop("checksum") and held == result(step=None)


def test_a_result_of_old_without_a_checksum_is_read(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(result()))
    assert result_file.read(tmp_path) == result()


@pytest.mark.parametrize(
    "changes",
    [
        {"results": {"top-1": "50"}},
        {"results": {"top-1": 100.5}},
        {"results": {"top-1": float("nan")}},
        {"published": {"top-1": None}},
        {"tested": 0},
        {"tested": True},
        {"notes": [None]},
        {"name": 3},
        {"step": 1.5},
    ],
)
def test_what_is_no_result_is_refused(changes, tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(result(**changes)))
    with refused(Unusable, "result.json is no result of an evaluation; remove it"):
        result_file.read(tmp_path)


def test_half_a_result_is_refused(tmp_path):
    result_file.write(tmp_path, result())
    path = tmp_path / "result.json"
    path.write_bytes(path.read_bytes()[:99])
    with refused(Unusable, "result.json is damaged: "):
        result_file.read(tmp_path)
