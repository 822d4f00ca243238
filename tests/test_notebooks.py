"""The gate for notebooks: clean, exported, parameterised, and outputs only where the design wants them."""

import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import ROOT
from notebooks import CHAPTERS, NBS, NOTEBOOKS, PARAMETERISED, by_name, cells, source

from wwgan.settings import TrainConfig

EXPORTING = [path for path in CHAPTERS if "#| default_exp" in path.read_text(encoding="utf-8")]
GENERATED = ["_modidx.py", *(f"{path.stem[3:]}.py" for path in EXPORTING)]


def names_of(paths) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A copy of what nbdev reads, cleaned and exported anew."""
    folder = tmp_path_factory.mktemp("made")
    for name in ("settings.ini", "README.md"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(NBS, folder / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copytree(ROOT / "wwgan", folder / "wwgan", ignore=shutil.ignore_patterns("__pycache__", *GENERATED))
    for tool in ("nbdev_export", "nbdev_clean"):
        result = subprocess.run([Path(sys.executable).parent / tool], cwd=folder, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_notebooks_are_clean(made):
    changed = [path for path in NOTEBOOKS if (made / path.relative_to(ROOT)).read_bytes() != path.read_bytes()]
    assert not names_of(changed), "run `make export`"


def test_export_is_in_sync(made):
    committed = {path.relative_to(ROOT): path.read_text() for path in (ROOT / "wwgan").rglob("*.py")}
    exported = {path.relative_to(made): path.read_text() for path in (made / "wwgan").rglob("*.py")}
    assert exported.keys() == committed.keys() and len(exported) > len(EXPORTING), "run `make export`"
    assert not [str(name) for name in exported if exported[name] != committed[name]], "run `make export`"


def test_every_notebook_has_one_runner():
    """Chapters: nbdev_test, told which by the Makefile. Parameterised ones: a test that names it."""
    (pattern,) = re.findall(r"--file_re '([^']+)'", (ROOT / "Makefile").read_text())
    assert [path for path in NOTEBOOKS if re.search(pattern, path.name)] == CHAPTERS
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    assert not [path.stem for path in PARAMETERISED if not re.search(rf"\b{path.stem}\b", tests)]


@pytest.mark.parametrize("path", CHAPTERS, **by_name)
def test_chapter_opens_with_title_and_sentence_and_is_committed_executed(path):
    first = source(cells(path)[0])
    assert first.startswith("# ") and "\n> " in first
    outputs = [output for cell in cells(path, "code") for output in cell["outputs"]]
    assert outputs and "error" not in {output["output_type"] for output in outputs}, "run `make notebooks`"


@pytest.mark.parametrize("path", PARAMETERISED, **by_name)
def test_parameterised_notebook_keeps_its_tag_and_is_committed_without_outputs(path):
    code = cells(path, "code")
    tagged = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    assert tagged == code[:1], "the first code cell, and no other, has the tag `parameters`"
    assert any("parameters_of(globals())" in source(cell) for cell in code), "it refuses unknown parameters"
    assert not any(cell["outputs"] for cell in code), "run `nbdev_clean --clear_all` on it, and give the tag back"


def test_train_notebook_offers_every_setting():
    namespace = {}
    exec(source(cells(NBS / "train.ipynb", "code")[0]), namespace)
    offered = {name: value for name, value in namespace.items() if not name.startswith("__")}
    assert offered == dict.fromkeys([*(field.name for field in fields(TrainConfig)), "preset"])


def test_repository_names_no_machine_paths():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    kinds = (".ipynb", ".py", ".md", ".ini", ".toml", ".json", ".yaml", ".yml")
    paths = [ROOT / name for name in tracked.stdout.splitlines() if name.endswith(kinds)]
    texts = {path: path.read_text(encoding="utf-8") for path in paths if path != Path(__file__)}
    assert not names_of(path for path in texts if re.search("/home/|/root/|/tmp/|site-packages/", texts[path]))


def test_index_leads_to_every_notebook_with_a_picture_and_a_sentence():
    """Every link and picture is there, chapters are in reading order, and no notebook is left out."""
    text = "\n".join(source(cell) for cell in cells(NBS / "index.ipynb"))
    rows = re.findall(r'\| <img src="([^"]+)" width="\d+" alt=""> \| \[([^\]]+)\]\(([^)]+)\) \| ([^|]+\.) \|', text)
    assert {link for _, _, link, _ in rows} == {str(path.relative_to(NBS)) for path in [*CHAPTERS, *PARAMETERISED]}
    assert all(name + ".ipynb" == link for _, name, link, _ in rows)
    chapters = [Path(link).name[:2] for _, _, link, _ in rows if Path(link).name[0].isdigit()]
    assert chapters == sorted(chapters)
    assert all((NBS / picture).exists() for picture, *_ in rows)
    assert (NBS / "images" / "pipeline.svg").exists() and "(images/pipeline.svg)" in text
