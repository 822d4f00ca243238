"""What README prints runs as printed, and what it points to is there."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from notebooks import NBS, execute
from test_end_to_end import write_images

from wwgan import cli, training
from wwgan.settings import make_config
from wwgan.training import train

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
COMMANDS = [line for kind, block in BLOCKS if kind == "sh" for line in block.replace("\\\n    ", "").splitlines()]
SMALLEST_EDIT, TEN_LINES = [block for kind, block in BLOCKS if kind == "python"]
SMOKE = dict(size=16, width=4, latent_dim=4, batch_size=8, critic_steps=1, steps=1, device="cpu")


def test_every_block_is_of_a_kind_that_is_run():
    assert {kind for kind, _ in BLOCKS} == {"python", "sh"} and "    make" not in README


def test_smallest_edit_runs_as_printed():
    namespace = dict(gradients=torch.ones(2, 3 * 8 * 8), images=torch.full((2, 3, 8, 8), -0.5))
    exec(SMALLEST_EDIT, namespace)
    before = namespace["gradients"].norm(2, dim=1)
    torch.testing.assert_close(namespace["norm"], before)  # a constant gradient moves no mass


def test_python_runs_as_printed():
    torch.manual_seed(0)
    namespace = {}
    exec(TEN_LINES, namespace)
    assert namespace["penalty"].norm.shape == (8,) and namespace["loss"].isfinite()
    assert len([line for line in TEN_LINES.splitlines() if line.strip()]) <= 10


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make")])
def test_make_knows_the_target(command):
    result = subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout, result.stderr


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The folder to work in, with pictures, and with data/cifar10 where README has it."""
    for folder in ("my/pictures", "data/cifar10/train/cat"):
        write_images(tmp_path / folder, (64, 64), 16)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", [command for command in COMMANDS if not command.startswith(("make", "source"))])
def test_command_runs_at_smoke_size(command, here):
    """Its notebook or module with its options, in this process; test_end_to_end.py starts papermill itself."""
    words, small = shlex.split(command), SMOKE | dict(data_dir=here / "data", run_dir=here / "run")
    if words[0] == "papermill":
        assert words[1:4] == ["nbs/train.ipynb", "out.ipynb", "-p"] and len(words) == 6
        execute("train", **{words[4]: words[5]} | small)
    elif "--resume" in words:
        folder = Path(words[words.index("--run_dir") + 1])
        train(make_config(**small | dict(run_dir=folder, dataset="folder:my/pictures")), progress=False)
        assert cli.main([*words[1:], "--steps", "2"]) == 0
        assert (folder / "samples" / "step_0000002.png").exists()
        return
    else:
        if words[:2] != ["wwgan", "train"]:
            words = words[words.index("-m") :]
            assert words[1] == "wwgan.training"
        assert training.main(words[2:] + [f"--{name}={value}" for name, value in small.items()]) == 0
    assert (here / "run" / "samples" / "step_0000001.png").exists()


def test_commands_for_a_run_are_commands_with_such_options(capsys):
    shown = re.findall(r"^\| `wwgan (\w+) <folder>(.*?)`", README, flags=re.M)
    assert {"report", "sample", "evaluate", "export"} == {name for name, _ in shown}
    for name, options in shown:
        assert cli.main([name, "nowhere", *shlex.split(options)]) == 2
        assert re.match("error: .*(no checkpoints|there is no run)", capsys.readouterr().err)


def test_the_command_for_a_scheduler_is_the_one_that_is_tested():
    """In the notebook that README names for it; tests/test_study.py runs its parts."""
    inner, page = "python -m wwgan.evidence.study study.json", NBS / "howto" / "cluster.ipynb"
    assert "(nbs/howto/cluster.ipynb)" in README and f"'{inner} --only $({inner} --list | sed -n" in page.read_text()


def test_links_and_pictures_exist():
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert targets and not [target for target in targets if not (ROOT / target).exists()]


def test_reading_order_names_every_notebook_of_the_package():
    notebooks = {path.name for path in (ROOT / "nbs").glob("*.ipynb")}
    assert notebooks == set(re.findall(r"\(nbs/([^/)]+\.ipynb)\)", README))
