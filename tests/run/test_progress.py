"""What a run shows of itself, where it can and where it cannot overwrite lines."""

import sys

import pytest

from vicreg_jax.run import progress


def in_terminal(monkeypatch):
    """Makes standard error, as it is captured, a terminal of no notebook."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    for name in (*progress.NOTEBOOKS, "MPLBACKEND"):
        monkeypatch.delenv(name, raising=False)


def test_outside_a_terminal_a_line_is_printed_now_and_then(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # by which rich would take it for one
    now = iter([0.0, 3.0, 6.0, 10.5, 11.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    bar = progress.Bar(total=5, done=0)
    bar.say("compiling")
    bar.note("a [note] of é")
    for step in range(1, 6):
        bar.step(step)
        bar.show(step, {"images_per_second": 7.2}, f"loss {step}")
    bar.close()
    assert capsys.readouterr().err.splitlines() == [
        "compiling",
        "a [note] of é",
        "step 1/5  7 images/s  loss 1",
        "step 4/5  7 images/s  loss 4",
        "step 5/5  7 images/s  loss 5",  # the last
    ]


def test_in_a_terminal_lines_are_overwritten_and_notes_stay(monkeypatch, capsys):
    in_terminal(monkeypatch)
    bar = progress.Bar(total=5, done=0)
    bar.say("compiling")
    bar.note("a [note]")
    bar.show(1, {}, "loss 1")
    bar.close()
    said = capsys.readouterr().err
    assert "a [note]\n" in said and "loss 1" in said
    assert "\x1b[1A" in said  # upwards, over what was there


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JPY_PARENT_PID", "7"),
        ("COLAB_RELEASE_TAG", "release"),
        ("KAGGLE_KERNEL_RUN_TYPE", "Interactive"),
        ("MPLBACKEND", "module://matplotlib_inline.backend_inline"),
    ],
)
def test_a_command_in_a_notebook_is_in_no_terminal(name, value, monkeypatch, capsys):
    in_terminal(monkeypatch)
    monkeypatch.setenv(name, value)
    bar = progress.Bar(total=5, done=0)
    bar.say("compiling")
    bar.close()
    assert capsys.readouterr().err == "compiling\n"
