"""What waits for a GPU, on the CPU at smoke size: it records, goes on where it stopped, and refuses a wrong device."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

from wwgan.evidence import gpu
from wwgan.evidence.cost import read_costs
from wwgan.files import read_json

NAME, CONFIG = next(iter(gpu.plan(smoke=True).items()))
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (32, 3, 32, 32), dtype=np.uint8))


@pytest.fixture(autouse=True)
def one_training(monkeypatch):
    monkeypatch.setattr(gpu, "plan", lambda smoke: {NAME: CONFIG})
    monkeypatch.setattr(gpu, "measure", lambda scale, device, parts: dict(scale=scale))
    monkeypatch.setattr(gpu, "LOG_INTERVAL", 2)


def log_of(folder):
    return [{**line, "seconds": 0} for line in read_json(folder / f"{NAME}.json")["log"]]


def test_goes_on_where_its_time_was_over(tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert gpu.run(IMAGES, whole, 10, smoke=True, device="cpu") == []
    with monkeypatch.context() as patched:
        clock = iter([0.0] * 6 + [100.0] * 10)  # late after some updates
        patched.setattr(gpu.time, "monotonic", lambda: next(clock))
        assert gpu.run(IMAGES, cut, 1, smoke=True, device="cpu") == [NAME]
    assert not (cut / f"{NAME}.json").exists()
    assert gpu.run(IMAGES, cut, 10, smoke=True, device="cpu") == []
    assert log_of(cut) == log_of(whole) and [line["step"] for line in log_of(cut)] == [2, 4]


def test_a_device_that_computes_something_else_records_nothing(tmp_path, monkeypatch, capsys):
    released = gpu.Wasserstein.released
    monkeypatch.setattr(gpu.Wasserstein, "released", lambda: released(radius=1))
    np.save(tmp_path / "images.npy", IMAGES.numpy())
    options = [str(tmp_path / "out"), "--images", str(tmp_path / "images.npy"), "--smoke", "--device", "cpu"]
    assert gpu.main(options) == 1
    assert "relative differences" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("array", [None, np.zeros((4, 32, 32, 3), np.uint8), np.zeros((4, 3, 32, 32))])
def test_images_that_are_missing_or_of_another_form_are_refused(array, tmp_path, capsys):
    if array is not None:
        np.save(tmp_path / "images.npy", array)
    assert gpu.main([str(tmp_path / "out"), "--images", str(tmp_path / "images.npy")]) == 2
    assert "uint8 (N, 3, 32, 32)" in capsys.readouterr().err or array is None


ALONE = """
import sys

missing = "tqdm torchvision scipy sklearn PIL matplotlib filelock joblib torch_fidelity"
sys.modules.update(dict.fromkeys(missing.split()))
from wwgan.evidence import gpu

gpu.plan = lambda smoke: {}
sys.exit(gpu.main([sys.argv[1], "--images", sys.argv[2], "--smoke", "--device", "cpu"]))
"""


def test_torch_and_numpy_are_enough(tmp_path):
    np.save(tmp_path / "images.npy", IMAGES.numpy())
    command = [sys.executable, "-c", ALONE, tmp_path / "out", tmp_path / "images.npy"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert read_costs(tmp_path)["GPU"]["scale"] == "smoke"  # where the table of costs looks for it
