"""The record of a run: nothing lost, nothing twice; what follows it may fail."""

import json
import sys
from types import SimpleNamespace

import pytest

from vicreg_jax.refusals import NotInstalled
from vicreg_jax.run import metrics_file


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def writer(workdir, step=0, notes=None, **options):
    notes = [] if notes is None else notes
    return metrics_file.Writer(workdir, step=step, note=notes.append, **options)


def test_each_line_is_on_disk_when_written(tmp_path):
    with_record = writer(tmp_path)
    with_record.write(1, {"loss": 2.0})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 1,
        "loss": 2.0,
    }
    with_record.close()


def test_lines_beyond_the_restored_step_are_cut_and_half_a_line_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = [json.dumps({"step": s, "loss": 1.0}) for s in (1, 5, 10, 15)]
    path.write_text("\n".join(whole) + '\n{"step": 20, "lo')
    continued = writer(tmp_path, step=10)
    assert steps(path) == [1, 5, 10]
    assert continued.first["step"] == 1
    continued.write(15, {"loss": 1.0})
    continued.close()
    assert steps(path) == [1, 5, 10, 15]


def test_a_damaged_record_costs_its_damaged_lines_and_one_note(tmp_path):
    path, notes = tmp_path / "metrics.jsonl", []
    damages = (b"null", b"3", b'{"loss": 1.0}', b'{"step": "2"}', b"\xff\xfe\x00")
    damages += (b'{"step": 3, "loss": "x"}', b'{"step": null}', b'{"step": 4, "lo')
    path.write_bytes(b'{"step": 1}\n' + b"\n".join(damages) + b'\n{"step": 5}\n')
    continued = writer(tmp_path, 9, notes)
    continued.write(10, {"loss": 1.0})
    continued.close()
    assert steps(path) == [1, 5, 10]
    assert notes == [f"{path}: dropped {len(damages)} damaged lines"]


def test_a_last_line_that_was_never_ended_is_not_joined_to_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}')
    continued = writer(tmp_path, 1)
    continued.write(2, {})
    continued.close()
    assert steps(path) == [1, 2]


def test_the_first_line_is_remembered_for_judging_later_ones(tmp_path):
    new = writer(tmp_path)
    assert new.first is None
    new.write(1, {"embedding_std": 0.3})
    new.write(2, {"embedding_std": 0.2})
    assert new.first == {"step": 1, "embedding_std": 0.3}
    new.close()


def test_tensorboard_events_beyond_the_restored_step_are_purged(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, end in ((0, 6), (3, 5)):
        some = writer(tmp_path, start)
        for step in range(start + 1, end):
            some.write(step, {"loss": float(start)})
        some.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = [(e.step, e.value) for e in events.Scalars("loss")]
    assert shown == [(1, 0.0), (2, 0.0), (3, 0.0), (4, 3.0)]


@pytest.mark.parametrize("missing", [True, False])
def test_tensorboard_that_does_not_import_is_a_note(missing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    reason = "metrics for TensorBoard needs tensorboardX, which is not installed"
    if not missing:
        monkeypatch.delitem(sys.modules, "tensorboardX")
        broken = "raise TypeError('Descriptors cannot be\\ncreated directly')"
        (tmp_path / "tensorboardX.py").write_text(broken)
        monkeypatch.syspath_prepend(tmp_path)
        reason = "Descriptors cannot be created directly"
    notes = []
    some = writer(tmp_path, 0, notes)
    some.write(1, {"loss": 1.0})
    some.close()
    assert len(notes) == 1 and f"no TensorBoard events: {reason}" in notes[0]
    assert steps(tmp_path / "metrics.jsonl") == [1]


def test_what_no_longer_follows_is_dropped_with_one_note(tmp_path):
    def log(metrics, step):
        raise ConnectionError("the service\nis gone")

    notes = []
    some = writer(tmp_path, 0, notes, wandb_run=SimpleNamespace(log=log))
    for step in (1, 2, 3):
        some.write(step, {"loss": 1.0})
    some.close()
    assert steps(tmp_path / "metrics.jsonl") == [1, 2, 3]
    expected = "step 1: no more metrics to Weights & Biases: the service is gone"
    assert notes == [expected]


def test_weights_and_biases_must_be_installed_when_asked_for(monkeypatch):
    assert metrics_file.wandb_starter("")(None, {}, None) is None
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(NotInstalled, match="config.wandb='p' needs wandb.*pip install"):
        metrics_file.wandb_starter("p")


@pytest.mark.parametrize("offline", [True, False])
def test_weights_and_biases_out_of_reach_is_a_note(offline, tmp_path, monkeypatch):
    """As version 0.31 fails without network, key or project."""
    asked = []

    def init(mode="online", **options):
        asked.append((mode, options["id"]))
        if mode == "online" or not offline:
            raise RuntimeError(f"{mode}\nfails")
        return "a run"

    fake = SimpleNamespace(init=init, teardown=lambda: asked.append(("ended", "")))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    notes = []
    run = metrics_file.wandb_starter("p")(tmp_path, {"seed": 1}, notes.append)
    assert run == ("a run" if offline else None)
    assert [mode for mode, _ in asked] == ["online", "ended", "offline"]
    kept = f"what it would get is kept in {tmp_path / 'wandb'} for `wandb sync`"
    assert notes[0] == f"Weights & Biases: online fails; {kept}"
    failed = "nothing is kept for Weights & Biases: offline fails"
    assert notes[1:] == ([] if offline else [failed])


@pytest.mark.parametrize("known", ["", "\n", "a/b", "\x00", "0123abc\n"])
def test_a_run_on_weights_and_biases_is_continued_where_its_name_is_whole(
    known, tmp_path, monkeypatch
):
    given = []
    fake = SimpleNamespace(init=lambda **options: given.append(options["id"]))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    (tmp_path / "wandb_id.txt").write_text(known)
    for _ in range(2):
        metrics_file.wandb_starter("p")(tmp_path, {}, None)
    first, again = given
    assert first == again and first.isalnum()
    assert (first == "0123abc") == (known == "0123abc\n")
