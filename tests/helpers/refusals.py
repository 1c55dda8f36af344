"""What every refusal has to be."""

from contextlib import contextmanager

import pytest


@contextmanager
def refused(kind, message):
    with pytest.raises(kind, match=message) as error:
        yield
    assert "\n" not in str(error.value)
