"""Refusals: each is one line that can be printed."""

import os

import pytest

from vicreg_jax.refusals import NotFound, NotInstalled, Refusal, Unusable, printable


@pytest.mark.parametrize("kind", [Refusal, NotFound, NotInstalled, Unusable])
def test_a_refusal_is_one_line_whatever_is_in_it(kind):
    name = os.fsdecode("a\nb\r\x1b[2J é ".encode() + b"\xff")
    assert str(kind(f"{name!s}: no")) == "a\\nb\\r\\x1b[2J é \\udcff: no"
    assert str(kind("as it is: ± “é”")) == "as it is: ± “é”"
    assert printable("犬") == "犬"
