"""Digests of code: what counts as another method, and what does not."""

import importlib
import shutil
import sys
import textwrap
from pathlib import Path

import pytest

from vicreg_jax import methods
from vicreg_jax.run import code

MINE = '''
from vicreg_jax import methods


class Mine(methods.Vicreg):
    """Says something."""

    def loss(self, outputs):
        return super().loss(outputs)
'''


@pytest.fixture
def digest(tmp_path, monkeypatch):
    """A function: the digest of the class Mine in a module with this content."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def of(content):
        name = f"module_of_mine_{len(made)}"
        made.append(name)
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(content))
        importlib.invalidate_caches()
        return code.of_class(importlib.import_module(name).Mine)

    yield of
    for name in made:
        del sys.modules[name]


def test_what_a_class_computes_counts_and_how_it_is_written_does_not(digest):
    first = digest(MINE)
    assert len(first) == 16 and first == digest(MINE)
    other = MINE.replace("Says something.", "Says more.").replace(
        "        return", "        # a comment\n\n        return"
    )
    assert digest(other) == first
    assert digest(MINE.replace("(outputs)\n", "(outputs) or {}\n")) != first
    base = MINE.replace("Mine(methods.Vicreg)", "Base(methods.Vicreg)")
    twice = [
        f"{base}\n\nclass Mine(Base):\n    weights = {{'variance': {x}}}\n"
        for x in "12"
    ]
    assert len({digest(x) for x in twice} | {first}) == 3


def test_a_class_of_this_package_has_none_and_one_without_source_its_name():
    assert code.of_class(methods.Vicreg) == ""
    names = [type(name, (methods.Vicreg,), {"__module__": "x"}) for name in "aba"]
    a, b, again = map(code.of_class, names)
    assert a == again != b


def test_a_change_of_any_module_changes_the_digest_of_the_package(
    tmp_path, monkeypatch
):
    root = Path(code.vicreg_jax.__file__).parent
    copy = tmp_path / "vicreg_jax"
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code.vicreg_jax, "__file__", str(copy / "__init__.py"))
    monkeypatch.setattr(code, "of_package", code.of_package.__wrapped__)
    before = code.of_package()
    assert before == code.of_package()
    with (copy / "losses" / "_vicreg.py").open("a") as file:
        file.write("\n")
    assert code.of_package() != before
