"""The record of a run: nothing lost, nothing twice."""

import json

import pytest

from vicreg_jax import log


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_each_line_is_on_disk_when_written(tmp_path):
    writer = log.Writer(tmp_path, step=0)
    writer.write(1, {"loss": 2.0})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 1,
        "loss": 2.0,
    }
    writer.close()


def test_lines_beyond_the_restored_step_are_cut_and_half_a_line_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = [json.dumps({"step": s, "loss": 1.0}) for s in (1, 5, 10, 15)]
    path.write_text("\n".join(whole) + '\n{"step": 20, "lo')
    writer = log.Writer(tmp_path, step=10)
    assert steps(path) == [1, 5, 10]
    assert writer.first["step"] == 1
    writer.write(15, {"loss": 1.0})
    writer.close()
    assert steps(path) == [1, 5, 10, 15]


def test_the_first_line_is_remembered_for_judging_later_ones(tmp_path):
    writer = log.Writer(tmp_path, step=0)
    assert writer.first is None
    writer.write(1, {"embedding_std": 0.3})
    writer.write(2, {"embedding_std": 0.2})
    assert writer.first == {"step": 1, "embedding_std": 0.3}
    writer.close()


def test_tensorboard_events_beyond_the_restored_step_are_purged(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, end in ((0, 6), (3, 5)):
        writer = log.Writer(tmp_path, step=start)
        for step in range(start + 1, end):
            writer.write(step, {"loss": float(start)})
        writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = [(e.step, e.value) for e in events.Scalars("loss")]
    assert shown == [(1, 0.0), (2, 0.0), (3, 0.0), (4, 3.0)]


def test_weights_and_biases_must_be_installed_when_asked_for():
    assert log.wandb_starter("")(None, {}) is None
    with pytest.raises(ModuleNotFoundError, match="'p', but.*pip install wandb"):
        log.wandb_starter("p")
