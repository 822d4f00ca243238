"""A progress bar moves on a terminal and leaves a few lines elsewhere."""

import io
import re

import pytest
import tqdm.std

from wwgan.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("file, least, most", [(Terminal(), 200, 1000), (io.StringIO(), 10, 20)])
def test_a_thousand_updates_of_a_second(monkeypatch, file, least, most):
    now = iter(range(100_000))
    monkeypatch.setattr(tqdm.std, "time", lambda: next(now) / 3)  # asked some three times for each update
    assert [*Progress(range(1000), file=file)] == [*range(1000)]
    shown = [int(done) for done in re.findall(r"(\d+)/1000", file.getvalue())]
    assert least <= len(shown) <= most and shown == sorted(shown) and shown[-1] == 1000
