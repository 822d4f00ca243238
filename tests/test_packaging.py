"""Source distribution and wheel hold all that they should, and every declared dependency is there."""

import configparser
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

import wwgan

SETTINGS = configparser.ConfigParser(delimiters=["="])
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")


@pytest.mark.parametrize("requirement", SETTINGS["DEFAULT"]["requirements"].split())
def test_what_is_declared_is_installed_and_what_is_imported_when_needed_is_there(requirement):
    """Some are imported in the middle of a run only, such as gdown, torchvision's downloader for CelebA."""
    name = re.split("[<>=]", requirement)[0]
    assert importlib.metadata.version(name), name
    module = dict(pillow="PIL", POT="ot", **{"scikit-learn": "sklearn"}).get(name, name.replace("-", "_"))
    assert importlib.util.find_spec(module), module


ORDER = [
    *"files distributed graph sweep metric points penalty".split(),
    *"sources data networks step evaluation settings".split(),
    *"checkpoints provenance runs plots report stopping training cli".split(),
    *"evidence.perturbation evidence.statistics evidence.cost evidence.study evidence.claims".split(),
]


def test_modules_import_only_those_before_them():
    paths = (path.relative_to(ROOT / "wwgan") for path in (ROOT / "wwgan").rglob("[!_]*.py"))
    modules = {".".join(path.with_suffix("").parts): (ROOT / "wwgan" / path).read_text() for path in paths}
    assert modules.keys() == {*ORDER}
    for name, text in modules.items():
        within = "evidence." if name.startswith("evidence.") else ""
        text = re.sub(r"^if TYPE_CHECKING:\n(?: +.*\n)+", "", text, flags=re.MULTILINE)  # names of types alone
        found = re.findall(r"^\s*from (wwgan)?(\.+)([\w.]+) import", text, flags=re.MULTILINE)
        imported = {within * (dots == "." and not package) + module for package, dots, module in found}
        assert imported <= {*ORDER[: ORDER.index(name)]}, name


def run(*command, **more) -> str:
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, **more)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def not_of_the_source(folder: str, names: list[str]) -> set[str]:
    """What a clean clone does not have."""
    if Path(folder) == ROOT / "data":
        return {*names} - {"README.md", "results"}
    return shutil.ignore_patterns(".venv", ".git", ".*_cache", "build", "_docs", "__pycache__", "*.egg-info")(
        folder, names
    )


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Path:
    """A folder with the source distribution, and the wheel built from it, not from this folder."""
    folder = tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, folder / "source", ignore=not_of_the_source)
    run(sys.executable, "-m", "build", "--outdir", folder, folder / "source")
    return folder


@pytest.mark.slow
def test_source_distribution_holds_what_it_takes_to_build_read_and_test(distributions):
    (archive,) = distributions.glob("wwgan-*.tar.gz")
    with tarfile.open(archive) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    assert {*tracked.stdout.split()} - held <= {".gitattributes"}


@pytest.mark.slow
def test_wheel_trains_in_an_empty_environment(distributions, tmp_path):
    """Installed with its dependencies from the registry and nothing else: none of the tools for working on it."""
    (wheel,) = distributions.glob("wwgan-*.whl")
    with zipfile.ZipFile(wheel) as file:
        assert "wwgan/py.typed" in file.namelist()
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    here = dict(cwd=tmp_path, env=environment)
    run(python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", wheel, **here)
    for tool in ("nbdev", "papermill", "jupyter", "pytest", "ruff", "mypy"):
        assert run(python, "-c", f"import importlib.util as u; print(u.find_spec({tool!r}))", **here) == "None\n", tool
    assert run(python, "-c", "import wwgan; print(wwgan.__version__)", **here).strip() == wheel.name.split("-")[1]
    run(python, "-m", "wwgan.training", "--preset", "smoke", "--run_dir", "run", **here)
    assert (tmp_path / "run" / "samples" / "step_0000004.png").exists()
    assert (tmp_path / "data" / "cache").is_dir()  # beside the run, not in anybody's repository


def test_version_is_said_in_one_place():
    assert wwgan.__version__ == SETTINGS["DEFAULT"]["version"]  # written by nbdev_export
    assert f"## {wwgan.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
