"""Shared by all tests: the repository's root, a data folder of their own, finished runs, processes, a browser."""

import json
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # tests import plain.py


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """A data folder of the tests' own, so that nothing is written into data/."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """once(name, make): a folder that make(folder) fills, once for all of pytest-xdist's workers."""

    def shared(name: str, make: Callable[[Path], None]) -> Path:
        mine = tmp_path_factory.getbasetemp()
        path = (mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) / name
        with FileLock(f"{path}.lock"):
            if not path.exists():
                make(mine / "unfinished" / name)
                (mine / "unfinished" / name).rename(path)
        return path

    return shared


# by the process that others are forked from
IMPORTED = ["pytest", "wwgan.training", "torchvision.utils", "torch.utils.tensorboard", "torch._dynamo"]


def call(files, function, arguments, environment):
    """In a process of its own: the exit code is what the function returns; interrupted as by default."""
    os.environ.update(environment)
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(function(*arguments))


@pytest.fixture
def fork(tmp_path):
    """fork(function, *arguments, **environment): calls it in a process that is there at once; ended with the test."""
    started = []
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)

    def begin(function, *arguments, **environment):
        files = [tmp_path / f"{len(started)}.{name}" for name in ("out", "err")]
        process = context.Process(target=call, args=(files, function, arguments, environment))
        process.files = files
        process.start()
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.join()


def ended(process, timeout=120):
    """The exit code of a process of `fork`, and what it said on standard output and standard error."""
    process.join(timeout)
    assert process.exitcode is not None, "the process does not end"
    return process.exitcode, *(file.read_text() for file in process.files)


@pytest.fixture
def smoke(tmp_path, data_dir):
    """Settings of a run that takes seconds, in a folder of its own."""
    from wwgan.settings import make_config

    def make(name="run", **changes):
        return make_config("smoke", **dict(run_dir=tmp_path / name, data_dir=data_dir, device="cpu") | changes)

    return make


@pytest.fixture(scope="session")
def finished(tmp_path_factory, data_dir):
    """A finished run of six updates with evaluations, shared by all tests that only look at a run."""
    from wwgan.settings import make_config
    from wwgan.training import train

    settings = dict(steps=6, eval_interval=2, eval_features="pixels", eval_samples=40, data_dir=data_dir, device="cpu")
    return train(make_config("smoke", run_dir=tmp_path_factory.mktemp("finished") / "run", **settings), progress=False)


@pytest.fixture
def finished_copy(finished, tmp_path) -> Path:
    """A copy of that run's folder, for tests that change it."""
    return shutil.copytree(finished.run_dir, tmp_path / "finished")


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, driven by Playwright: `browser.new_page()`."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if not program:
        pytest.skip(f"no browser: none of {', '.join(names)} is there")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program)
        yield chromium
        chromium.close()


def pytest_addoption(parser):
    parser.addoption("--reliability", type=Path, help="write there how many faults of which kind were tried")


@pytest.fixture(scope="session")
def tally(request):
    """tally(kind, what): counts faults that are tried, one or more; a failed test says that something was lost.

    If --reliability says where, the counts are written down at the end.
    """
    tried = defaultdict(Counter)
    yield lambda kind, what, count=1: tried[kind].update({what: count})
    if path := request.config.getoption("--reliability"):
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
        origin = dict(git_commit=commit or None, python=platform.python_version(), torch=version("torch"))
        origin |= dict(platform=f"{platform.system()} {platform.machine()}", finished=time.strftime("%Y-%m-%d"))
        faults = dict(faults=sum(counts.total() for counts in tried.values()), lost=request.session.testsfailed)
        path.write_text(json.dumps(faults | dict(tried=tried, provenance=origin), indent=1, sort_keys=True) + "\n")
