"""How a run is asked to stop, and says that it did."""

import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Stopped(KeyboardInterrupt):
    """A run was asked to stop, and stopped with its state saved. signal: which one asked, such as signal.SIGTERM."""

    def __init__(self, signal: int, step: int, run_dir: Path | str):
        super().__init__(
            f"stopped after generator update {step}, the state is saved; go on with resume=true and run_dir={run_dir}, "
            f"or: wwgan train --resume --run_dir {shlex.quote(str(run_dir))}"
        )
        self.signal = signal


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Yields a list to which SIGINT and SIGTERM add themselves instead of ending the process; a second one ends it.

    Outside the main thread, which alone gets signals, the list stays empty.
    """
    came: list[int] = []

    def note(number: int, frame: object) -> None:
        came.append(number)
        for name, handler in before.items():
            signal.signal(name, handler)

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        for name in before:
            signal.signal(name, note)
        yield came
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
