"""The gate for notebooks: clean, formatted, exported, parameterised, and outputs only where the design wants them."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import ROOT

from wwgan.settings import TrainConfig

NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))
NOTEBOOKS = [path for path in NOTEBOOKS if ".ipynb_checkpoints" not in path.parts]
DERIVATIONS = [path for path in NOTEBOOKS if path.name[:2].isdigit()]
PARAMETERISED = [path for path in NOTEBOOKS if path not in DERIVATIONS and path.name != "index.ipynb"]
by_name = dict(ids=lambda path: str(path.relative_to(ROOT / "nbs")))


def tool(name: str, *arguments: str, cwd: Path) -> None:
    """Run a command of this environment, such as nbdev_clean, and fail with what it says."""
    result = subprocess.run([Path(sys.executable).parent / name, *arguments], cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def cells(path: Path, kind: str | None = None) -> list[dict]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if kind in (None, cell["cell_type"])]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def test_every_module_has_its_notebook_and_every_derivation_its_module():
    modules = {path.stem for path in (ROOT / "wwgan").glob("*.py")} - {"__init__", "_modidx"}
    assert modules == {path.stem[3:] for path in DERIVATIONS} and modules


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of what nbdev reads, cleaned and exported anew."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("settings.ini", "README.md"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "nbs", folder / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (folder / "wwgan").mkdir()
    tool("nbdev_export", cwd=folder)
    tool("nbdev_clean", cwd=folder)
    return folder


@pytest.mark.parametrize("path", NOTEBOOKS, **by_name)
def test_notebook_is_clean(path, copy):
    cleaned = copy / path.relative_to(ROOT)
    assert cleaned.read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), "run `make export`"


def test_export_is_in_sync(copy):
    exported = sorted((copy / "wwgan").glob("*.py"))
    assert len(exported) > len(DERIVATIONS)
    for path in exported:
        committed = ROOT / "wwgan" / path.name
        assert committed.exists() and path.read_text() == committed.read_text(), f"run `make export`: {path.name}"


def test_sources_are_formatted_and_linted():
    tool("ruff", "format", "--check", cwd=ROOT)
    tool("ruff", "check", cwd=ROOT)


def test_types_hold():
    tool("mypy", cwd=ROOT)


@pytest.mark.parametrize("path", NOTEBOOKS, **by_name)
def test_cell_ids_are_unique_and_say_something(path):
    ids = [cell["id"] for cell in cells(path)]
    assert len(set(ids)) == len(ids) and not any(name.isdigit() for name in ids)


@pytest.mark.parametrize("path", DERIVATIONS, **by_name)
def test_derivation_opens_with_title_and_sentence_and_is_committed_executed(path):
    first = source(cells(path)[0])
    assert first.startswith("# ") and "\n> " in first
    outputs = [cell for cell in cells(path, "code") if cell["outputs"]]
    assert outputs, "run `make notebooks`"
    assert not [output for cell in outputs for output in cell["outputs"] if output["output_type"] == "error"]


@pytest.mark.parametrize("path", PARAMETERISED, **by_name)
def test_parameterised_notebook_keeps_its_tag_and_is_committed_without_outputs(path):
    code = cells(path, "code")
    tagged = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    assert tagged == code[:1], "the first code cell, and no other, has the tag `parameters`"
    assert not any(cell["outputs"] for cell in code), "run `nbdev_clean --clear_all` on it, and give the tag back"


def test_train_notebook_offers_every_setting():
    namespace = {}
    exec(source(cells(ROOT / "nbs" / "train.ipynb", "code")[0]), namespace)
    offered = {name for name in namespace if not name.startswith("__")}
    assert offered == {f.name for f in fields(TrainConfig)} | {"preset"}
    assert all(namespace[name] is None for name in offered)


def test_repository_names_no_machine_paths():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in tracked.stdout.split("\n")[:-1]:
        path = ROOT / name
        if path.suffix in (".ipynb", ".py", ".md", ".ini", ".toml", ".json") and path != Path(__file__):
            text = path.read_text(encoding="utf-8")
            assert not re.search("/home/|/root/|/tmp/|site-packages/", text), name


def test_index_leads_to_every_notebook_with_a_picture_and_a_sentence():
    """Every link and picture is there, and no notebook is left out."""
    text = "\n".join(source(cell) for cell in cells(ROOT / "nbs" / "index.ipynb"))
    rows = re.findall(r'\| <img src="([^"]+)" width="\d+" alt=""> \| \[([^\]]+)\]\(([^)]+)\) \| ([^|]+\.) \|', text)
    assert {link for _, _, link, _ in rows} == {
        str(path.relative_to(ROOT / "nbs")) for path in NOTEBOOKS if path.name != "index.ipynb"
    }
    assert all(name + ".ipynb" == link for _, name, link, _ in rows)
    derivations = [link for _, _, link, _ in rows if link[0].isdigit()]
    assert derivations == sorted(derivations), "in reading order"
    assert all((ROOT / "nbs" / picture).exists() for picture, *_ in rows)
    assert (ROOT / "nbs" / "images" / "pipeline.svg").exists() and "(images/pipeline.svg)" in text
