"""Each command of `wwgan` from end to end on one small run, and how they refuse.

Those with a module of their own: train here, study in test_study.py, bench in test_cost.py.
"""

import json
import re
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch
from PIL import Image

from wwgan import cli, training
from wwgan.runs import best_evaluation, load_run
from wwgan.settings import TrainConfig, make_config
from wwgan.step import generate


@pytest.fixture
def wwgan(capsys):
    """wwgan(*arguments): exit code, output and errors."""

    def run(*arguments):
        capsys.readouterr()
        return cli.main(map(str, arguments)), *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["train", "--datset", "digits"], "did you mean 'dataset'"),
        (["train", "--run_dir", "-x"], "a value that begins with '-' is given as --NAME=VALUE"),
        (["train", "--steps", "-3"], "steps must be at least 1"),
        (["train", "--preset", "smoke", "--device", "cuda:77"], "device"),
        (["train", "--preset", "smoke", "--dataset", "folder:/nonexistent"], "no folder"),
        (["train", "--preset", "papers"], "did you mean 'paper'"),
        (["train", "--resume", "--run_dir", "/nonexistent/run"], "there is no run"),
        (["trian"], "did you mean 'train'"),
        (["sample", "/nonexistent/run", "--out", "/nonexistent/out"], "no checkpoints"),
        (["sample", "/nonexistent/run", "--out", "x", "--sed", "1"], "did you mean '--seed'"),
        (["sample", "/nonexistent/run", "--out", "x.png", "-n", "0"], "n must be at least 1"),
        (["sample", "/nonexistent/run", "--out", "x.png", "--interpolate", "1"], "interpolate must be at least 2"),
        (["sample", "/nonexistent/run", "--out", "x.JPG"], "a grid is written as .png"),
        (["evaluate", "/nonexistent/run"], "no checkpoints"),
        (["report", "/nonexistent/run"], "there is no run"),
        (["export", "/nonexistent/run", "/nonexistent/out"], "no checkpoints"),
        (["study", "/nonexistent/study.json"], "study.json"),
        (["bench", "--scale", "smok"], "did you mean 'smoke'"),
    ],
)
def test_what_is_wrong_is_refused_with_one_line_and_code_2(wwgan, arguments, words):
    code, out, err = wwgan(*arguments)
    assert code == 2 and err.startswith("error: ") and words in err and err.count("\n") == 1 and out == ""


def test_sample_writes_numbered_files_or_a_grid_that_follow_from_the_seed(wwgan, finished, tmp_path):
    one, two, grid = tmp_path / "one", tmp_path / "two", tmp_path / "new" / "grid.PNG"
    assert wwgan("sample", finished.run_dir, "-n", 5, "--out", one)[:2] == (0, f"{one}\n")
    assert wwgan("sample", finished.run_dir, "-n", 5, "--out", two, "--best", "--seed", 1)[0] == 0
    assert [path.name for path in sorted(one.iterdir())] == [f"{k:06d}.png" for k in range(5)]
    assert Image.open(one / "000000.png").size == (16, 16)
    assert (one / "000000.png").read_bytes() != (two / "000000.png").read_bytes()
    assert wwgan("sample", finished.run_dir, "-n", 9, "--out", grid)[0] == 0
    assert Image.open(grid).size == (3 * 17 + 1, 3 * 17 + 1)
    for there in (one, grid):
        code, _, err = wwgan("sample", finished.run_dir, "--out", there)
        assert code == 2 and "is not empty: name a new" in err


def test_strips_go_from_the_images_of_the_seed_to_others(wwgan, finished, tmp_path):
    """2 strips of 4: the ends are what the latent vectors give that are drawn without strips, in that order."""
    for name, more in dict(ends=("-n", 4), strips=("-n", 2, "--interpolate", 4)).items():
        assert wwgan("sample", finished.run_dir, "--out", tmp_path / name, *more)[0] == 0
    ends, strips = (
        [Image.open(path).convert("L") for path in sorted((tmp_path / name).iterdir())] for name in ("ends", "strips")
    )
    tiles = [strip.crop((17 * k + 1, 1, 17 * k + 17, 17)).tobytes() for strip in strips for k in range(4)]
    assert len(strips) == 2 and len({*tiles}) == 8 and [tiles[k] for k in (0, 4, 3, 7)] == [x.tobytes() for x in ends]
    wwgan("sample", finished.run_dir, "--out", tmp_path / "x.png", "-n", 2, "--interpolate", 4)
    assert Image.open(tmp_path / "x.png").size == (4 * 17 + 1, 2 * 17 + 1)


def test_evaluate_prints_the_scores_that_training_found(wwgan, finished, tmp_path):
    code, out, err = wwgan("evaluate", finished.run_dir, "--device", "cpu")
    assert code == 0, err
    found = json.loads(out)
    assert found["step"] == 6 and found["scores"] == pytest.approx(finished.evaluations[-1]["scores"])
    assert found["floor"] and found["protocol"]["samples"] == 40
    wwgan("sample", finished.run_dir, "-n", 20, "--out", tmp_path / "pictures")
    code, out, err = wwgan("evaluate", finished.run_dir, "--images", tmp_path / "pictures", "--samples", 10)
    assert code == 0, err
    assert "only 20 real images" in err and json.loads(out)["protocol"]["real_samples"] == 20
    assert json.loads(out)["protocol"]["samples"] == 10


@pytest.mark.parametrize("best", [[], ["--best"]], ids=["newest", "best"])
def test_an_exported_generator_makes_the_same_images_by_what_its_card_prints(
    wwgan, finished, tmp_path, monkeypatch, best
):
    """That this takes torch alone beside safetensors, tests/test_packaging.py shows of the imported module."""
    folder = tmp_path / "mine"
    assert wwgan("export", finished.run_dir, folder, *best)[:2] == (0, f"{folder}\n")
    monkeypatch.chdir(folder)
    card, names = Path("README.md").read_text(), {}
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.S)
    imported = re.findall(r"^(?:from|import) ([\w.]+)", code, flags=re.M)
    assert imported == ["torch", "safetensors.torch", "wwgan.networks"]
    exec(code.replace("with ", "torch.manual_seed(3)\nwith "), names)
    state = load_run(finished.run_dir, "cpu", bool(best)).state
    z = torch.randn(64, 16, generator=torch.Generator().manual_seed(3))
    assert torch.equal(names["images"], generate(state.ema, z)) and state.step == (
        best_evaluation(finished.evaluations)["step"] if best else 6
    )
    settings = json.loads(re.findall(r"```json\n(.*?)```", card, flags=re.S)[0])
    assert make_config(**settings) == make_config(**{name: asdict(finished.config)[name] for name in settings})
    assert str(finished.run_dir) not in card
    code, _, err = wwgan("export", finished.run_dir, folder)
    assert code == 2 and "is not empty: name a new folder" in err


@pytest.mark.parametrize("command, package", [("export", "safetensors.torch"), ("report", "nbconvert")])
def test_a_package_of_an_extra_that_is_missing_is_named(wwgan, finished_copy, tmp_path, monkeypatch, command, package):
    monkeypatch.setitem(sys.modules, package, None)
    code, out, err = wwgan(command, finished_copy, *[tmp_path / "new"] * (command == "export"))
    assert code == 1 and f"needs the package {package}: pip install 'wwgan[all]'" in err and out == ""
    assert not (finished_copy / "report.html").exists() and not (tmp_path / "new").exists()


def test_help_lists_every_command_and_every_setting_and_imports_little(capsys):
    heavy = "import sys; print([name for name in ('torch', 'matplotlib') if name in sys.modules])"
    code = f"import wwgan.cli; wwgan.cli.main(['--help']); {heavy}"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(f"  {name} " in shown for name in cli.COMMANDS) and shown.endswith("[]\n")
    with pytest.raises(SystemExit):
        training.main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"--{f.name}" in shown for f in fields(TrainConfig)) and "--preset" in shown
