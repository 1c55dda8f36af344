"""For tools that look for this file; the metadata lives in pyproject.toml."""

from setuptools import setup

setup()
