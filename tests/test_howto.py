"""The how-to notebooks, run as a reader would: from another folder, on their own settings but for few updates."""

import difflib
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from notebooks import NBS, cells, execute, source
from test_end_to_end import write_images

EVERY = ["cluster", "own_data", "own_gan", "own_metric"]


def files_of_the_repository() -> set[Path]:
    """All but what Python, git and tools write by themselves."""
    passing = {"__pycache__", "api", "_docs", "build"}
    found = set()
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in passing and not name.startswith(".")]
        found |= {Path(folder, name) for name in names}
    return found


@pytest.mark.parametrize(
    "notebook, pictures, words",
    [
        ("own_gan", 2, ["+import wwgan.penalty as ww", "use penalty.loss", "must give one score for each"]),
        ("own_metric", 2, ["found by the search", "unknown penalty 'blurred'"]),
        ("cluster", 0, ["recorded: wgan-gp-seed1 wwgan-seed1", "| real images (200) |"]),
        ("own_data", 3, ["cannot be read as an image", "too small for size=16", "no images in", "labels [0, 0, 1, 1]"]),
    ],
)
def test_notebook_runs_and_leaves_nothing_behind(tmp_path, monkeypatch, notebook, pictures, words):
    before = files_of_the_repository()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(tmp_path)
    executed = execute(f"howto/{notebook}", steps=2, seed=1)
    assert executed.pictures == pictures
    assert not [word for word in words if word not in executed.text]
    executed.names.clear()  # as when the kernel ends
    gc.collect()
    assert files_of_the_repository() == before and not list(temporary.glob("tmp*/*"))
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]


@pytest.mark.parametrize("notebook", EVERY)
@pytest.mark.parametrize(
    "given, words",
    [(dict(step=3), "did you mean 'steps'"), (dict(steps="soon"), "steps must be an integer of 64 bits, got 'soon'")],
)
def test_unknown_and_bad_parameters_stop_the_notebook(notebook, given, words):
    with pytest.raises(ValueError, match=words):
        execute(f"howto/{notebook}", **given)


def test_the_penalty_takes_three_lines():
    sources = {cell["id"]: source(cell).splitlines() for cell in cells(NBS / "howto" / "own_gan.ipynb", "code")}
    plain, changed = ([line for line in sources[f"{kind}-training"] if line] for kind in ("plain", "changed"))
    difference = [line for line in difflib.ndiff(plain, changed) if line[0] in "+-"]
    assert [line[0] for line in difference].count("+") == 3 and [line[0] for line in difference].count("-") == 1
    without = "images-and-networks", "plain-penalty", "to-copy"
    assert not any("wwgan" in line or "ww." in line for name in without for line in sources[name])
    difference = list(difflib.ndiff(sources["plain-penalty"], sources["norm-alone"]))
    added = [line[2:].strip() for line in difference if line[0] == "+" and line[2:].strip()]
    assert len(added) == 4 and added[-1] == "norm = ground.norm(gradient.flatten(1), x)"  # import, metric, λ, norm


def test_the_penalty_to_copy_has_at_most_twelve_lines():
    (copied,) = [source(cell) for cell in cells(NBS / "howto" / "own_gan.ipynb", "code") if cell["id"] == "to-copy"]
    assert len(copied.splitlines()) <= 12


def row(code: dict) -> str:
    """A public code in the table of own_gan."""
    link = f"[{code['code']}](https://github.com/{code['code']}/blob/{code['commit'][:7]}/{code['file']})"
    ratio = "{:.2f} ({:.2f} to {:.2f})".format(code["ratio"], *code["ratio_quartiles"])
    lines, worked = f"{code['new_lines']} + {code['changed_lines']}", "yes" if code["worked_first_time"] else "no"
    return f"| {link} | {code['critic']} | {lines} | {worked} | {ratio} |"


def test_the_table_of_public_codes_shows_the_record():
    recorded = json.loads((ROOT / "data" / "results" / "public_codes.json").read_text())
    (page,) = [
        source(cell) for cell in cells(NBS / "howto" / "own_gan.ipynb", "markdown") if cell["id"] == "public-codes"
    ]
    shown = [line for line in page.splitlines() if line.startswith("| [")]
    assert shown == [row(code) for code in recorded["codes"]] and recorded["provenance"]["versions"]["torch"]


def test_a_folder_of_ones_own_keeps_its_run(tmp_path, monkeypatch):
    """As the command in the notebook: the run is where runs are kept, here because the working folder says so."""
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nlib_name = wwgan\n")
    write_images(tmp_path / "mine", (20, 24), 12)
    monkeypatch.chdir(tmp_path)
    execute("howto/own_data", folder="mine", size=16, steps=1)
    (made,) = (tmp_path / "data" / "runs").iterdir()
    assert (made / "samples" / "step_0000001.png").exists()


DDP = """
import torch
from torch.nn.parallel import DistributedDataParallel

import wwgan.penalty as ww

torch.distributed.init_process_group("gloo")
torch.manual_seed(0)
layers = torch.nn.Conv2d(1, 8, 4, 2, 1), torch.nn.LeakyReLU(0.2), torch.nn.Flatten(), torch.nn.Linear(8 * 64, 1)
critic = torch.nn.Sequential(*layers).double()
real, fake = torch.rand(2, 8, 1, 16, 16).double() * 2 - 1


def gradient(network, rows):
    critic.zero_grad()
    penalty = ww.gradient_penalty(network, real[rows], fake[rows], points="fake")
    (network(fake[rows]).mean() - network(real[rows]).mean() + penalty.loss).backward()
    return torch.cat([p.grad.flatten() for p in critic.parameters()])


first = 4 * torch.distributed.get_rank()
expected, mine = gradient(critic, slice(None)), slice(first, first + 4)
assert not torch.allclose(gradient(critic, mine), expected)
wrapped = DistributedDataParallel(critic)
for _ in range(2):
    torch.testing.assert_close(gradient(wrapped, mine), expected)
print("same gradient")
torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_a_wrapped_critic_gets_the_gradient_of_the_joint_batch(tmp_path):
    """What own_gan.ipynb says of DistributedDataParallel."""
    (tmp_path / "ddp.py").write_text(DDP)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "ddp.py"]
    environment = os.environ | dict(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and result.stdout.count("same gradient") == 2, result.stderr[-3000:]
