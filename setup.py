"""The packages of a wheel; all other metadata lives in pyproject.toml."""

from setuptools import find_namespace_packages, find_packages, setup

# The folder configs/ of a checkout is vicreg_jax/configs/ of a wheel, so that
# --config=NAME finds the recipes in both; they call each other `configs` (recipes.py).
recipes = ["configs", *find_namespace_packages(include=["configs.*"])]
setup(
    packages=[
        *find_packages(include=["vicreg_jax*"]),
        *(f"vicreg_jax.{name}" for name in recipes),
    ],
    package_dir={"vicreg_jax.configs": "configs"},
)
