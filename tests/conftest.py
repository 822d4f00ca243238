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


@pytest.fixture
def smoke(tmp_path, data_dir):
    """Settings of a run that takes seconds, in a folder of its own."""
    from wwgan.training import make_config

    def make(name="run", **changes):
        return make_config("smoke", **dict(run_dir=tmp_path / name, data_dir=data_dir, device="cpu") | changes)

    return make
