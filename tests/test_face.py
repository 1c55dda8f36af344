"""The face of the package: what a user of `import vicreg_jax` finds."""

import importlib
import pkgutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import jax.numpy as jnp
import pytest
from helpers.paths import ROOT
from helpers.processes import environment

import vicreg_jax

PUBLIC = (
    *("losses", "methods", "models", "optim", "weights"),
    *("train", "evaluate", "report", "config"),
)
# What only some people need, or takes seconds to import.
HEAVY = ("tensorflow", "tensorflow_datasets", "sklearn", "torch", "matplotlib", "numba")


def modules():
    found = pkgutil.walk_packages(vicreg_jax.__path__, "vicreg_jax.")
    return ["vicreg_jax", *(module.name for module in found)]


def test_every_public_name_is_there_and_no_other():
    for name in PUBLIC:
        assert getattr(vicreg_jax, name) is importlib.import_module(
            f"vicreg_jax.{name}"
        )
    assert vicreg_jax.load is vicreg_jax.weights.load
    assert set(dir(vicreg_jax)) == {*PUBLIC, "load", "__version__"}
    with pytest.raises(AttributeError, match="'vicreg_jax' has no attribute 'loses'"):
        vicreg_jax.loses  # noqa: B018


def test_the_names_do_what_they_say():
    z = jnp.eye(4)
    assert float(vicreg_jax.losses.vicreg(z, z).invariance) == 0
    assert vicreg_jax.models.create("digits").width == 1
    assert vicreg_jax.optim.lars(0.1, weight_decay=0.0).init({"w": z}) is not None
    assert callable(vicreg_jax.train.run) and callable(vicreg_jax.train.make_train_step)


def test_the_version_is_that_of_the_package():
    assert vicreg_jax.__version__ == metadata.version("vicreg_jax")
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert "version" in tomllib.load(file)["project"]["dynamic"]


@pytest.mark.parametrize("name", ["", *(f".{name}" for name in PUBLIC)])
def test_importing_is_light(name):
    code = f"import sys, vicreg_jax{name}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {module.partition(".")[0] for module in done.stdout.split()}
    assert not loaded & {*HEAVY}, loaded & {*HEAVY}
    if not name:
        assert "jax" not in loaded


def test_every_module_says_what_it_offers_and_is_typed():
    without = [name for name in modules() if not offers(importlib.import_module(name))]
    assert not without
    assert (Path(vicreg_jax.__file__).parent / "py.typed").is_file()


def offers(module):
    """Tells a module whose names are listed, each once, and all there."""
    names = getattr(module, "__all__", None)
    if names is None:  # a folder whose modules are imported by their own names
        return hasattr(module, "__path__") and not [
            name for name, x in vars(module).items() if callable(x)
        ]
    return len(set(names)) == len(names) and all(hasattr(module, x) for x in names)
