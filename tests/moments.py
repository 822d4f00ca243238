"""All that a kill can leave of a run: copies of its folder at every write, and what of a run must not depend on it."""

import functools
import itertools
import os
import shutil
from pathlib import Path

import pytest
import torch

from wwgan import runs

DIFFERS = ("seconds", "logs", *runs.LOCAL)  # from run to run, or from machine to machine


def bits(value):
    """Plain values to be compared by ==: tensors by type, shape and bytes, without what differs."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.cpu().numpy().tobytes()
    if isinstance(value, dict):
        return {name: bits(entry) for name, entry in value.items() if name not in DIFFERS}
    return [bits(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def contents(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file() and path.name != ".lock"}


def edited(path, *keys, value):
    """Writes the checkpoint with another value at these keys, and a right checksum."""
    content = part = torch.load(path, weights_only=True)
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value(part[keys[-1]]) if callable(value) else value
    runs.save_checkpoint(path, content)


def what_a_run_left(run_dir):
    paths = list(run_dir.rglob("*"))
    return dict(
        newest=bits(runs.read_checkpoint(run_dir)),  # networks, EMA, optimisers, random state
        best=bits(runs.read_checkpoint(run_dir, best=True)),
        metrics=bits(runs.read_metrics(run_dir)),
        evaluations=bits(runs.read_evaluations(run_dir)),
        pictures={path.name: path.read_bytes() for path in paths if path.suffix == ".png"},
        names={path.relative_to(run_dir) for path in paths if "events" not in path.name and path.name != ".lock"},
    )


def shown_by_tensorboard(run_dir, name="distance"):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [(event.step, event.value) for event in EventAccumulator(str(run_dir)).Reload().Scalars(name)]


@functools.lru_cache(maxsize=4)
def _expected(run_dir):
    """Of a run that no test changes."""
    return what_a_run_left(run_dir)


def assert_equal_runs(run_dir, other):
    left, expected = what_a_run_left(run_dir), _expected(other)
    for part, value in expected.items():
        assert left[part] == value, (run_dir, part)


class _Recorder:
    """Copies of a run's folder: what a kill leaves, and what a power cut leaves of it at worst.

    At worst, a file holds what it held when it was last flushed, nothing if it never was; a folder names a file once
    the folder was flushed; and what is removed is gone at once.
    """

    def __init__(self, run_dir, copies):
        self.run_dir, self.copies, self.seen, self.copying = run_dir, copies, {}, False
        self.number = itertools.count()
        self.flushed, self.named, self.kept_open = {}, {}, []

    def flush(self, descriptor):
        self.kept_open.append(os.dup(descriptor))  # its inode is not given to another file
        inode = os.fstat(descriptor).st_ino
        paths = [path for path in (self.run_dir.parent, self.run_dir, *self.run_dir.rglob("*")) if path.exists()]
        (path,) = [path for path in paths if path.stat().st_ino == inode] or [None]
        if path and path.is_dir():
            self.named[path] = {entry.name: entry.stat().st_ino for entry in path.iterdir()}
        elif path:
            self.flushed[inode] = path.read_bytes()

    def rebuild(self, folder, target):
        """What a power cut leaves of a folder."""
        target.mkdir(parents=True)
        for name, inode in self.named.get(folder, {}).items():
            if (folder / name).is_dir():
                self.rebuild(folder / name, target / name)
            else:
                (target / name).write_bytes(self.flushed.get(inode, b""))

    def keep(self, kind, moment, make):
        """Has make(path) make a copy, in place of an earlier one that differs at most in temporaries."""
        copy = self.copies / f"{next(self.number):03d} {kind} {moment}"
        make(copy)
        paths = [path for path in sorted(copy.rglob("*")) if path.is_file() and path.name != ".lock"]
        plain = [path for path in paths if "events" not in path.name and path.suffix != ".part"]
        state = kind, hash(tuple((path.relative_to(copy), path.read_bytes()) for path in plain))
        if state in self.seen:
            shutil.rmtree(self.seen[state])
        self.seen[state] = copy

    def look(self, moment, cut=None):
        """Keeps both kinds of copies. cut: a file that is to end in half a line."""

        def killed(copy):
            shutil.copytree(self.run_dir, copy)
            if cut:
                (copy / cut).write_bytes((copy / cut).read_bytes()[:-9])

        self.copying = True
        if self.run_dir.exists():
            self.keep("kill", moment, killed)
        if self.run_dir.name in self.named.get(self.run_dir.parent, {}):
            self.keep("cut", moment, lambda copy: self.rebuild(self.run_dir, copy))
        self.copying = False

    def watched(self, name, act):
        def acting(*arguments, **options):
            if self.copying:
                return act(*arguments, **options)
            self.look(f"before {name}")
            result = act(*arguments, **options)
            if name == "fsync":
                self.flush(*arguments)
            if name == "unlink":
                self.named.get(Path(arguments[0]).parent, {}).pop(Path(arguments[0]).name, None)
            self.look(f"after {name}")
            return result

        return acting

    def appending(self, act):
        def acting(folder, name, line):
            folder._events.flush()
            act(folder, name, line)
            self.look(f"in {name}", cut=name)
            self.look(f"after {name}")

        return acting


def recorded(run, run_dir, copies):
    """Copies of `run_dir` before and after all that run() does to files in it, and amid each line that it appends."""
    copies.mkdir()
    recorder = _Recorder(run_dir, copies)
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((os, "fsync"), (os, "replace"), (os, "unlink"), (Path, "unlink")):
            patch.setattr(owner, name, recorder.watched(name, getattr(owner, name)))
        patch.setattr(runs.RunFolder, "_append", recorder.appending(runs.RunFolder._append))
        run()
    for descriptor in recorder.kept_open:
        os.close(descriptor)
    return sorted(copies.iterdir())
