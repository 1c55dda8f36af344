"""What pip installs: the wheel alone, in an environment and a folder of its own."""

import os
import subprocess
import sys
import venv

import pytest
from helpers.paths import ROOT


def run(*command, cwd, **env):
    done = subprocess.run(
        command,
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | env,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.mark.slow
def test_the_wheel_trains_reports_and_exports_by_names_of_recipes(tmp_path):
    # Built from a copy, as setuptools leaves a folder build/ where it runs.
    source, empty = tmp_path / "source", tmp_path / "empty"
    empty.mkdir()
    tracked = run("git", "ls-files", "-z", cwd=ROOT).stdout.split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "benchmarks/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    build = (*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source)
    run(*build, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    bin = tmp_path / "venv" / "bin"
    install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(bin / "python", *install, f"vicreg_jax[demo] @ file://{wheel}", cwd=empty)

    program = (bin / "vicreg-jax",)
    digits = ("--config=digits", "--config.epochs=11", "--config.evaluate.draws=3")
    trained = run(*program, *digits, cwd=empty)
    assert (
        "VICReg" in trained.stdout and (empty / "runs/digits/few_labels.json").exists()
    )
    run(*program, "--config=report", "--workdir=runs/digits", cwd=empty)
    assert (empty / "runs/digits/report.html").stat().st_size > 100_000
    run(*program, "--config=export", "--config.checkpoint=runs/digits", cwd=empty)
    found = {x.suffix for x in (empty / "runs/export").iterdir()}
    assert {".safetensors", ".stablehlo", ".json"} <= found
    module = (bin / "python", "-m", "vicreg_jax.main")
    digits = (*digits, "--config.evaluate.draws=0")
    again = run(*module, *digits, cwd=empty)
    assert "has finished its 121 steps" in again.stderr
    said = run(*program, "--config=eval/semi_1percent", "--help", cwd=empty).stdout
    assert "--config.data.fraction=0.01" in said
