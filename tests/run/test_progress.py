"""What a run shows of itself, where it can and where it cannot overwrite lines."""

import re
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
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = progress.Bar(total=5, done=0)
    bar.say("compiling")
    bar.note("a [note] of é")
    for step, at in enumerate((7.0, 10.0, 14.0, 17.5, 18.0), start=1):
        now[0] = at
        bar.step(step)
        bar.show(step, {"images_per_second": 7.2}, f"loss {step}")
    bar.close()
    said = capsys.readouterr().err.splitlines()
    assert said[:4] == [
        "compiling",
        "a [note] of é",
        "compiling took 7 s",
        "step 1/5  7 images/s  loss 1",
    ]
    assert re.fullmatch(
        r"step 4/5  7 images/s  \d:\d\d:\d\d left  loss 4", said[4]
    )  # by the clock of rich
    assert said[5:] == ["step 5/5  7 images/s  loss 5"]  # the last


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
def test_a_command_in_a_notebook_stays_on_its_line(name, value, monkeypatch, capsys):
    in_terminal(monkeypatch)
    monkeypatch.setenv(name, value)
    bar = progress.Bar(total=5, done=0)
    bar.say("compiling")
    bar._line._write(bar._words())  # as it does each second
    bar.note("a [note]")
    bar.step(2)
    bar.show(2, {"images_per_second": 7.2}, "loss 1")
    bar.close()
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert shown(said) == [
        "a [note]",
        "compiling took 0 s",
        "training 2/5  7 images/s  loss 1",
    ]
    assert "\rcompiling 0:00:00 0/5" in said


def shown(said):
    """Returns the lines that a notebook shows, in which \\r goes back to the start."""
    lines = []
    for line in said.removesuffix("\n").split("\n"):
        cells = []
        for part in line.split("\r"):
            cells[: len(part)] = part
        lines.append("".join(cells).rstrip())
    return lines


def test_a_file_of_a_notebooks_command_gets_lines(monkeypatch, capsys):
    monkeypatch.setenv("JPY_PARENT_PID", "7")
    bar = progress.Bar(total=5, done=0)
    bar.say("compiling")
    bar.close()
    assert capsys.readouterr().err == "compiling\n"


def test_who_is_silent_starts_nothing(monkeypatch, capsys):
    in_terminal(monkeypatch)
    monkeypatch.setenv("JPY_PARENT_PID", "7")
    bar = progress.Bar(total=5, done=0, silent=True)
    bar.say("compiling")
    bar.step(1)
    bar.note("a note")
    bar.close()
    assert capsys.readouterr().err == ""


def test_a_count_stays_on_its_line_in_a_notebook(monkeypatch, capsys):
    in_terminal(monkeypatch)
    monkeypatch.setenv("JPY_PARENT_PID", "7")
    with progress.counted("features", 30) as done:
        done(20)
        done(30)
    said = capsys.readouterr().err
    assert "\x1b" not in said and shown(said) == ["features 30/30"]
    with progress.counted("features", 30, silent=True) as done:
        done(30)
    assert capsys.readouterr().err == ""
