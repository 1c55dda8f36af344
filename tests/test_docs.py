"""The pages: what they say of the house is so."""

import re
import tomllib

import jax
import numpy as np
import pytest
from helpers.paths import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "launch/README.md",
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    inside = [link for link in links if "://" not in link]
    assert not [link for link in inside if not (page.parent / link).exists()]


def test_the_floors_of_the_architecture_are_those_that_the_linter_checks():
    with (ROOT / "pyproject.toml").open("rb") as file:
        (contract,) = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    page = (ROOT / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| (\d) \| ([^|]+) \|", page, flags=re.MULTILINE)
    assert [int(floor) for floor, _ in rows] == list(range(len(rows)))[::-1]
    told = [{*re.findall(r"`(\w+)(?:/|\.py)`", names)} for _, names in rows]
    assert told == [{*layer.split(" | ")} for layer in contract["layers"]]


def test_the_code_for_trajectories_is_what_numpy_makes_of_the_steps_that_count():
    (code,) = re.findall(
        "```python\n(.+?)```", (ROOT / "docs/trajectories.md").read_text(), re.DOTALL
    )
    found = {}
    with jax.numpy_dtype_promotion("standard"):  # as at home
        exec(code, found)
    z, where = (np.asarray(found[name], np.float64) for name in ("z", "where"))
    where = where.astype(bool)

    def hinge(rows):
        var = rows.var(axis=0, ddof=1) if len(rows) > 1 else 0 * rows[0]
        return np.mean(np.maximum(0, 1 - np.sqrt(var + 1e-4)))

    c = np.cov(z[where], rowvar=False)
    overlap = (np.sum(c**2) - np.sum(np.diag(c) ** 2)) / 16
    want = {
        "total": 25 * hinge(z[where]) + overlap,
        "at_each_step": [hinge(x[w]) for x, w in zip(z, where, strict=True)],
        "along_each": [hinge(z[where[:, i], i]) for i in range(32)],
    }
    for name, value in want.items():
        # Float32 against float64.
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6)
