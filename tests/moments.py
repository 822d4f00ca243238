"""All that a kill can leave of a run: copies of its folder at every write, and what of a run must not depend on it."""

import os
import re
import shutil
import threading
from pathlib import Path

import pytest
import torch

from wwgan import runs

DIFFERS = ("seconds", "images_per_second", *runs.LOCAL)  # from run to run, or from machine to machine


def bits(value):
    """Plain values to be compared by ==: tensors by type, shape and bytes, without what differs."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {name: bits(entry) for name, entry in value.items() if name not in DIFFERS}
    return [bits(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def what_a_run_left(run_dir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    paths = list(run_dir.rglob("*"))
    return dict(
        newest=bits(runs.read_checkpoint(run_dir)),  # networks, EMA, optimisers, random state
        best=bits(runs.read_checkpoint(run_dir, best=True)),
        metrics=bits(runs.read_metrics(run_dir)),
        evaluations=bits(runs.read_evaluations(run_dir)),
        pictures={path.name: path.read_bytes() for path in paths if path.suffix == ".png"},
        tensorboard=[
            (event.step, event.value) for event in EventAccumulator(str(run_dir)).Reload().Scalars("distance")
        ],
        names={path.relative_to(run_dir) for path in paths if "events" not in path.name and path.name != ".lock"},
    )


def assert_equal_runs(run_dir, other):
    left, expected = what_a_run_left(run_dir), what_a_run_left(other)
    for part, value in expected.items():
        assert left[part] == value, (run_dir, part)


class _Recorder:
    def __init__(self, run_dir, copies):
        self.run_dir, self.copies, self.seen, self.lock = run_dir, copies, set(), threading.RLock()

    def keep(self, moment, cut=None):
        """A copy of the folder, unless there is one of the same contents. cut: a file that is to end in half a line."""
        paths = list(self.run_dir.rglob("*"))
        plain = [path for path in paths if path.is_file() and "events" not in path.name and path.suffix != ".part"]
        names = {re.sub("[0-9a-f]{32}", "", str(path)) for path in paths}  # of temporaries, which are random
        state = hash((frozenset(names), tuple(sorted((path, path.read_bytes()) for path in plain)), cut))
        if paths and state not in self.seen:
            self.seen.add(state)
            copy = shutil.copytree(self.run_dir, self.copies / f"{len(self.seen):03d} {moment}")
            if cut:
                (copy / cut).write_bytes((copy / cut).read_bytes()[:-9])

    def watched(self, act):
        def acting(*arguments, **options):
            with self.lock:  # the other thread changes no file meanwhile
                self.keep(f"before {act.__name__}")
                result = act(*arguments, **options)
                self.keep(f"after {act.__name__}")
                return result

        return acting

    def appending(self, act):
        def acting(folder, name, line):
            with self.lock:
                folder._events.flush()
                act(folder, name, line)
                self.keep(f"in {name}", cut=name)
                self.keep(f"after {name}")

        return acting


def recorded(run, run_dir, copies):
    """Copies of `run_dir` before and after all that run() does to files in it, and amid each line that it appends."""
    copies.mkdir()
    recorder = _Recorder(run_dir, copies)
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((os, "fsync"), (os, "replace"), (os, "unlink"), (Path, "unlink")):
            patch.setattr(owner, name, recorder.watched(getattr(owner, name)))
        patch.setattr(runs.RunFolder, "_append", recorder.appending(runs.RunFolder._append))
        run()
    return sorted(copies.iterdir())
