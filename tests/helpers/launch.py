"""The files of launch/, and the programs that check them."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from helpers.paths import ROOT

LAUNCH = ROOT / "launch"
MAIN = ("-u", "-m", "vicreg_jax.main")


def checker(name):
    """The path of a program from the registry of Python packages."""
    found = shutil.which(
        name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    if not found:
        pytest.skip(f"{name} is not installed")
    return found


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def documents(name):
    return list(yaml.safe_load_all((LAUNCH / name).read_text()))
