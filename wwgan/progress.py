"""Progress bars that move on a terminal and leave a few lines where what they print is kept."""

from collections.abc import Iterable, Iterator
from typing import Any

try:
    from tqdm import tqdm
except ImportError:  # a machine that measures with torch and NumPy alone

    class tqdm:  # type: ignore[no-redef]
        """Goes through the items and shows nothing."""

        def __init__(self, items: Iterable[Any], *_: Any, **__: Any):
            self.items = items

        def __iter__(self) -> Iterator[Any]:
            return iter(self.items)


class Progress(tqdm):  # type: ignore[misc]  # without types
    """tqdm, which in a notebook, a log or a file comes back only after half as long again as it has taken so far."""

    _next = 0.0  # seconds

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, mininterval=1.0, miniters=1, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Show it, which `close` asks for with a position."""
        elapsed = self.format_dict["elapsed"]
        if pos is not None or elapsed >= self._next or self.fp.isatty():
            self._next = 1.5 * elapsed
            super().display(msg, pos)
