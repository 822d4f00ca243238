"""Nothing is lost and nothing half-written, whatever happens to a run: kills, signals, damaged files, full disks."""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from filelock import FileLock

from wwgan import runs, step, training
from wwgan.runs import load_checkpoint, read_checkpoint, run_config, save_checkpoint
from wwgan.settings import make_config
from wwgan.training import load_run, train

SETTINGS = dict(preset="smoke", steps=8, width=4, ema=0.9, device="cpu", log_interval=1, checkpoint_interval=2)
SETTINGS |= dict(sample_interval=4, eval_interval=2, eval_features="pixels", eval_samples=40)
DIFFERS = ("seconds", "images_per_second", *runs.LOCAL)  # from run to run, or from machine to machine


def resume(run_dir, **changes):
    return train(run_config(resume=True, run_dir=run_dir, **changes), progress=False)


def bits(value):
    """Plain values to be compared by ==: tensors by type, shape and bytes, without what differs."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {name: bits(entry) for name, entry in value.items() if name not in DIFFERS}
    return [bits(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def contents(run_dir):
    return {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file() and path.name != ".lock"}


def what_a_run_left(run_dir):
    """All that must not depend on what happened on the way: states, logs, pictures."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    names = {str(path.relative_to(run_dir)) for path in Path(run_dir).rglob("*") if "events" not in path.name}
    return dict(
        newest=bits(read_checkpoint(run_dir)),
        best=bits(read_checkpoint(run_dir, best=True)),
        metrics=bits(runs.read_metrics(run_dir)),
        evaluations=bits(runs.read_evaluations(run_dir)),
        pictures={path.name: path.read_bytes() for path in Path(run_dir).glob("samples/*.png")},
        tensorboard=[(event.step, event.value) for event in EventAccumulator(str(run_dir)).Reload().Scalars("distance")],
        names=names - {".lock"},
    )


def assert_equal_runs(run_dir, other):
    left, expected = what_a_run_left(run_dir), what_a_run_left(other)
    for part, value in expected.items():
        assert left[part] == value, (run_dir, part)


class Recorder:
    """Copies a run's folder before and after all that changes its files: what a kill at any moment leaves."""

    def __init__(self, run_dir, copies, monkeypatch):
        self.run_dir, self.copies, self.seen, self.lock = run_dir, copies, set(), threading.RLock()
        for owner, name in ((os, "fsync"), (os, "replace"), (os, "unlink"), (Path, "unlink")):
            monkeypatch.setattr(owner, name, self.watched(getattr(owner, name), name))
        monkeypatch.setattr(runs.RunFolder, "_append", self.appending(runs.RunFolder._append))

    def keep(self, moment, cut=None):
        """A copy of the folder, unless there is one of the same contents. cut: a file that is to end in half a line."""
        names = [path.relative_to(self.run_dir) for path in self.run_dir.rglob("*")]
        left = {re.sub("[0-9a-f]{32}", "", str(name)): self.content(name) for name in names}
        state = hash((frozenset(left.items()), cut))
        if names and state not in self.seen:
            self.seen.add(state)
            copy = shutil.copytree(self.run_dir, self.copies / f"{len(self.seen):03d} {moment}")
            if cut:
                (copy / cut).write_bytes((copy / cut).read_bytes()[:-9])

    def content(self, name):
        events_or_half = "events" in name.name or name.suffix == ".part"
        return b"" if events_or_half or (self.run_dir / name).is_dir() else (self.run_dir / name).read_bytes()

    def watched(self, act, name):
        def acting(*arguments, **options):
            with self.lock:  # not while the other thread changes files
                self.keep(f"before {name}")
                result = act(*arguments, **options)
                self.keep(f"after {name}")
                return result

        return acting

    def appending(self, act):
        def acting(folder, name, line):
            with self.lock:
                folder._events.flush()
                self.keep(f"before {name}")
                act(folder, name, line)
                self.keep(f"in {name}", cut=name)
                self.keep(f"after {name}")

        return acting


def recorded(run, run_dir, copies):
    """Copies of the folder at all moments of a run."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        Recorder(run_dir, copies, monkeypatch)
        run()
    return sorted(copies.iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data_dir):
    """A run that nothing happened to, and copies of its folder at all moments."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "copies").mkdir()
    config = make_config(**SETTINGS, run_dir=folder / "run", data_dir=data_dir)
    return folder / "run", recorded(lambda: train(config, progress=False), folder / "run", folder / "copies")


def test_a_run_cut_off_at_any_moment_goes_on_and_ends_as_if_it_had_not_been(whole, data_dir):
    run_dir, copies = whole
    for copy in copies:
        if (copy / "config.json").exists():
            resume(copy)
        else:
            with pytest.raises(FileNotFoundError, match=r"there is no run: .*config.json does not exist"):
                resume(copy)
            train(make_config(**SETTINGS, run_dir=copy, data_dir=data_dir), progress=False)
        assert_equal_runs(copy, run_dir)
