"""The house is as its plan says, and source distribution and wheel hold all that they should."""

import ast
import configparser
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from test_readme import TEN_LINES

import wwgan

SETTINGS = configparser.ConfigParser(delimiters=["="])
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
DECLARED = [SETTINGS["DEFAULT"][f"{extra}requirements"] for extra in ("", "train_", "evidence_", "dev_", "docs_")]

ORDER = [
    *"files distributed checks graph sweep metric remembered points penalty".split(),
    *"progress sources data networks step evaluation settings".split(),
    *"checkpoints provenance runs plots report stopping training".split(),
    *"evidence.perturbation evidence.probe evidence.attack evidence.statistics evidence.baselines".split(),
    *"evidence.cost evidence.study evidence.records evidence.figures evidence.length evidence.gpu cli".split(),
]
# torch alone runs them, and metric but for some functions; networks for an exported generator
CORE = "graph sweep checks remembered points penalty networks"

package = ROOT / "wwgan"
PATHS = {".".join(path.relative_to(package).with_suffix("").parts): path for path in package.rglob("[!_]*.py")}


def module_of(requirement: str) -> str:
    name = Requirement(requirement).name
    return dict(pillow="PIL", POT="ot", **{"scikit-learn": "sklearn"}).get(name, name.replace("-", "_"))


def test_modules_import_only_those_before_them_and_at_once_nothing_heavy():
    """torchvision, SciPy, matplotlib and the like are imported in functions."""
    assert PATHS.keys() == {*ORDER}
    for name, path in PATHS.items():
        within = "evidence." if name.startswith("evidence.") else ""
        text = re.sub(r"^if TYPE_CHECKING:\n(?: +.*\n)+", "", path.read_text(), flags=re.M)  # names of types alone
        found = re.findall(r"^\s*from (wwgan)?(\.+)([\w.]+) import", text, flags=re.M)
        imported = {within * (dots == "." and not package) + module for package, dots, module in found}
        assert imported <= {*ORDER[: ORDER.index(name)]}, name
        statements = [
            ast.unparse(node) for node in ast.parse(text).body if isinstance(node, (ast.Import, ast.ImportFrom))
        ]
        at_once = {statement.split()[1].split(".")[0] for statement in statements} - sys.stdlib_module_names
        assert at_once <= {"torch", "numpy", "wwgan", "", "tqdm" if name == "progress" else ""}, name


@pytest.mark.parametrize("name", ORDER)
def test_modules_and_functions_are_small(name):
    """At most 400 lines a module, 40 a function."""
    text = PATHS[name].read_text()
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    large = {f"{name}.{node.name}" for node in functions if node.end_lineno - node.lineno >= 40}
    large |= {name} if len(text.splitlines()) > 400 else set()
    assert not large


TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()


def run(*command, **more) -> str:
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, **more)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


@pytest.fixture
def distributions(once) -> Path:
    """A folder with the source distribution of what git has, and the wheel built from it, not from this folder."""
    if not TRACKED:
        pytest.skip("not a git checkout")

    def make(folder: Path) -> None:
        for name in filter(lambda name: (ROOT / name).exists(), TRACKED):
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, folder / "source")

    return once("dist", make)


def test_source_distribution_holds_what_it_takes_to_build_read_and_test(distributions):
    (archive,) = distributions.glob("wwgan-*.tar.gz")
    with tarfile.open(archive) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    assert {*TRACKED} - held <= {".gitattributes"}


def test_wheel_declares_torch_alone_and_the_rest_as_extras(distributions):
    (wheel,) = distributions.glob("wwgan-*.whl")
    with zipfile.ZipFile(wheel) as file:
        assert "wwgan/py.typed" in file.namelist() and {"wwgan/evidence/cost.py"} <= {*file.namelist()}
        text = next(file.read(name).decode() for name in file.namelist() if name.endswith("METADATA"))
    required = map(Requirement, re.findall(r"^Requires-Dist: (.+)$", text, flags=re.M))
    extras = {extra: set() for extra in ["", "train", "evidence", "docs", "dev", "all"]}
    for requirement in required:
        extras[str(requirement.marker or "").partition('"')[2].rstrip('"')].add(requirement.name.lower())
    assert extras[""] == {"torch"} and {"torchvision", "numpy"} <= extras["train"] < extras["evidence"]
    assert extras["all"] == extras["evidence"] | extras["docs"] | extras["dev"]


ALONE = """
import sys
from importlib import import_module

folder, modules, code, *others = sys.argv[1:]
sys.path.insert(0, folder)
sys.modules.update(dict.fromkeys(others))  # None there makes an import fail
for name in modules.split():
    assert import_module(f"wwgan.{name}").__file__.startswith(folder)
exec(code)
"""


TRAIN = "from wwgan.training import main; main('--preset=smoke --device=cpu --run_dir=run --data_dir=data'.split())"


@pytest.mark.parametrize("extras, modules, code", [(1, CORE, TEN_LINES), (2, "training", TRAIN)], ids=["core", "train"])
def test_wheel_runs_on_what_it_declares(distributions, tmp_path, extras, modules, code):
    """The ten lines on torch, a training on the extra `train`: nothing else but the documentation's can be imported."""
    (wheel,) = distributions.glob("wwgan-*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "here")
    declared = [" ".join(part).split() for part in (DECLARED[:extras], DECLARED[extras:4])]
    needed = [importlib.metadata.requires(Requirement(one).name) or () for one in declared[0]]
    there = {module_of(one) for found in needed for one in found if "extra ==" not in one}
    others = {module_of(one) for one in declared[1]} - there
    said = run(sys.executable, "-I", "-c", ALONE, tmp_path / "here", modules, code, *others, cwd=tmp_path)
    assert said.startswith("tensor([") or (tmp_path / "run" / "samples" / "step_0000004.png").exists()


def test_version_is_said_in_one_place():
    version = SETTINGS["DEFAULT"]["version"]
    assert wwgan.__version__ == version  # written by nbdev_export
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_constraints_are_versions_that_wrote_records_and_satisfy_what_is_declared():
    text = (ROOT / "constraints.txt").read_text()
    pins = dict(line.split("==") for line in text.splitlines() if line and line[0] != "#")
    recorded = [json.loads(path.read_text())["versions"] for path in ROOT.glob("data/results/**/provenance.json")]
    versions = {(name, found[name]) for found in recorded for name in ("torch", "torchvision", "numpy")}
    others = versions - pins.items()  # of records made with other versions, which the heading names
    assert versions & pins.items() and not [one for one in others if " ".join(one) not in text]
    required = {Requirement(text) for declared in DECLARED for text in declared.split()}
    assert not [str(one) for one in required if pins[one.name.lower()] not in one.specifier]
