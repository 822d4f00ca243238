"""A run and the terminal it was started from: how it is asked to stop, and streams that nobody reads."""

import io
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class _Forgiving(io.FileIO):
    """A stream that leads nowhere from the first write that fails on: its reader went away, or its disk is full."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(data)


def keep_streams() -> None:
    """From here on no stream of this process, whether closed, full, without a reader or ASCII, makes it fail."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the smallest number that is free: this one
    for number, name in enumerate(("stdout", "stderr"), 1):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):  # no notebook's, and not done before
            file = io.BufferedWriter(_Forgiving(number, "wb", closefd=False))
            encoding = stream.encoding if stream else "utf-8"
            setattr(sys, name, io.TextIOWrapper(file, encoding, "backslashreplace", line_buffering=True))


class Stopped(KeyboardInterrupt):
    """A run was asked to stop, and stopped with its state saved. signal: which one asked, such as signal.SIGTERM."""

    def __init__(self, signal: int, step: int, run_dir: Path):
        super().__init__(
            f"stopped after generator update {step}, the state is saved; go on with resume=true and the same run_dir, "
            f"or: wwgan train --resume --run_dir {shlex.quote(str(run_dir.absolute()))}"
        )
        self.signal = signal


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Yields a list to which SIGINT and SIGTERM add themselves instead of ending the process; a second one ends it.

    Outside the main thread, which alone gets signals, the list stays empty.
    """
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in numbers}

    def as_before() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: object) -> None:
        came.append(number)
        as_before()

    try:
        for number in numbers:
            signal.signal(number, note)
        yield came
    finally:
        as_before()
