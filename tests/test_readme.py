"""What README prints runs as printed, and what it points to is there."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from test_end_to_end import write_images

from wwgan.settings import make_config
from wwgan.training import train

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
COMMANDS = [line for kind, block in BLOCKS if kind == "sh" for line in block.replace("\\\n    ", "").splitlines()]
(TEN_LINES,) = [block for kind, block in BLOCKS if kind == "python"]
SMOKE = dict(size=16, width=4, latent_dim=4, batch_size=8, critic_steps=1, steps=1, device="cpu")


def test_every_block_is_of_a_kind_that_is_run():
    assert {kind for kind, _ in BLOCKS} == {"python", "sh"} and "    make" not in README


def test_python_runs_as_printed():
    torch.manual_seed(0)
    namespace = {}
    exec(TEN_LINES, namespace)
    assert namespace["penalty"].norm.shape == (8,) and namespace["loss"].isfinite()
    assert len([line for line in TEN_LINES.splitlines() if line.strip()]) <= 10


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder with pictures, and with data/cifar10 and a run where README has them."""
    for folder in (tmp_path / "my" / "pictures", tmp_path / "data" / "cifar10" / "train" / "cat"):
        write_images(folder, (64, 64), 16)
    return tmp_path


def run(command: str, folder: Path, *more: str) -> None:
    """The command as printed, in `folder`, with what makes it small; its programs are those of this environment."""
    words = shlex.split(command)
    programs = {name: shutil.which(name, path=Path(sys.executable).parent) for name in ("papermill", "torchrun")}
    words = [sys.executable if word == "python" else programs.get(word) or word for word in words]
    words = [str(ROOT / word) if word.startswith("nbs/") else word for word in words]
    environment = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    result = subprocess.run([*words, *more], cwd=folder, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, f"{command}: {(result.stdout + result.stderr)[-2000:]}"


def options(flag: str, **given) -> list[str]:
    """`flag` "--" or "-p " with each name and value."""
    return [word for name, value in given.items() for word in (*shlex.split(f"{flag}{name}"), str(value))]


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make")])
def test_make_knows_the_target(command):
    result = subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout, result.stderr


RUN = [command for command in COMMANDS if not command.startswith(("make", "sbatch", "source"))]
SLOW = pytest.mark.slow  # test_distributed.py trains with several processes


@pytest.mark.parametrize("command", [pytest.param(x, marks=SLOW) if x.startswith("torchrun") else x for x in RUN])
def test_command_runs_at_smoke_size(command, pictures):
    here = dict(data_dir=pictures / "data", run_dir=pictures / "run")
    if "--resume" in command:
        folder = re.search(r"--run_dir (\S+)", command).group(1)
        begun = SMOKE | here | dict(run_dir=pictures / folder, dataset=f"folder:{pictures / 'my' / 'pictures'}")
        train(make_config(**begun), progress=False)
        run(command, pictures, "--steps", "2")
        assert (pictures / folder / "samples" / "step_0000002.png").exists()
        return
    flag = "-p " if command.startswith("papermill") else "--"
    run(command, pictures, *options(flag, **SMOKE | here))
    assert (pictures / "run" / "samples" / "step_0000001.png").exists()


def test_the_environment_that_make_sets_up_is_the_one_to_activate():
    (command,) = [command for command in COMMANDS if command.startswith("source")]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert command == "source .venv/bin/activate" and "VENV   ?= .venv\n" in makefile


def test_the_command_for_a_scheduler_is_the_one_that_is_tested():
    """tests/test_study.py runs its parts."""
    (command,) = [command for command in COMMANDS if command.startswith("sbatch")]
    inner = "python -m wwgan.evidence.study study.json"
    assert f"'{inner} --only $({inner} --list | sed -n ${{SLURM_ARRAY_TASK_ID}}p)'" in command


def test_links_and_pictures_exist():
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert targets and not [target for target in targets if not (ROOT / target).exists()]


def test_reading_order_names_every_notebook_of_the_package():
    notebooks = {path.name for path in (ROOT / "nbs").glob("*.ipynb")}
    assert notebooks == set(re.findall(r"\(nbs/([^/)]+\.ipynb)\)", README))
