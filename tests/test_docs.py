"""The pages: what they say of the house is so."""

import os
import re
import shlex
import subprocess
import sys
import tomllib

import jax
import numpy as np
import pytest
from helpers.paths import ROOT

from vicreg_jax import main
from vicreg_jax.command import usage
from vicreg_jax.config import Config, Evaluation, Study, fields
from vicreg_jax.refusals import Refusal

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


TERM = re.compile(r"loss\.\w+$")  # whose names are the method's


def code_blocks(text):
    """Yields the lines of fenced and indented code, where a backslash ends none."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"(?:^    .*\n)+", text, flags=re.MULTILINE)
    for block in (*fenced, *indented):
        yield from re.sub(r"\\\n\s*", " ", block).splitlines()


def commands(text):
    """Yields the words of each command of the program, without what follows it."""
    for line in code_blocks(text):
        if found := re.match(
            r"\s*(?:vicreg-jax|python -m vicreg_jax\.main) (.*)", line
        ):
            words = shlex.split(found[1], comments=True)
            if "..." not in found[1] and "--config" in found[1]:
                yield words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_is_one_of_the_program(page):
    for words in commands(page.read_text()):
        sorted_words = usage.sort([x for x in words if x not in ("&", "&&")])
        try:
            main.choose(sorted_words)
        except Refusal as error:
            # A recipe of the reader's own, in capitals or with a path, is not here.
            raise AssertionError(f"{' '.join(words)}: {error}") from error


def test_every_field_that_a_page_names_is_one():
    names = [x for kind in (Config, Evaluation, Study) for x in fields.flat(kind())]
    groups = {name.partition(".")[0] for name in names if "." in name}
    known = {*names, *groups, "loss"}
    known |= {"json", "field", "export.agreement"}  # a file, any field, a function
    for page in PAGES:
        text = page.read_text()
        named = re.findall(r"config\.([a-z_]+(?:\.[a-z_]+)*)(?![\w(/])", text)
        named += re.findall(rf"`((?:{'|'.join(groups)})\.[a-z_]+)\b(?![./(])", text)
        unknown = {x for x in named if x not in known and not TERM.match(x)}
        assert not unknown, (page.name, unknown)


def test_every_other_command_that_a_page_names_is_there():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page in PAGES:
        text = page.read_text()
        made = re.findall(r"(?:^    |`)make ([a-z]\w+)", text, re.MULTILINE)
        assert {*made} <= {*targets}, page.name
        for module in re.findall(r"python -m ((?:benchmarks|vicreg_jax)[\w.]*)", text):
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module


def test_a_command_that_is_none_is_found():
    text = "    vicreg-jax --config=digits \\\n        --config.data.pth=x  # so\n"
    (words,) = commands(text)
    with pytest.raises(Refusal, match="config.data.pth is not a field"):
        main.choose(usage.sort(words))


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    for module in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(module, reason="the extra docs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},  # of a banner
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "reference/index.html").read_text()
    for name in ("losses.vicreg", "train.run", "weights.load", "report.show"):
        assert f'id="vicreg_jax.{name}"' in reference
    start = (tmp_path / "index.html").read_text()
    assert 'href="data/"' in start and "blob/main/CONTRIBUTING.md" in start
