"""Shared by all tests: the repository's root, and a data folder of their own."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # tests import plain.py


@pytest.fixture
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """A data folder of the tests' own, so that nothing is written into data/."""
    return tmp_path_factory.mktemp("data")
