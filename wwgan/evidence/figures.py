"""What the figure notebooks share: where their results are, what they measure on, how intervals are drawn."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import project_root, unknown_name
from .study import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis


def figure_source(
    usual: str, results: str | Path | None = None, rerun: bool | str | None = None, scale: str | None = None
) -> tuple[Path, bool]:
    """Where a figure's results are, and whether to make them again, from a figure notebook's parameters.

    usual: the place in data/results/ unless `results` names another. rerun: true or false. scale: None or smoke.
    Raises ValueError for other values, and for smoke results without a place of their own.
    """
    place = project_root() / "data" / "results" / usual
    if scale not in (None, "smoke"):
        raise unknown_name("scale", scale, ["smoke"])
    again = str(rerun).lower()
    if again not in ("true", "false", "none"):
        raise ValueError(f"rerun must be true or false, got {rerun!r}")
    if scale and not (results and again == "true" and Path(results).resolve() != place.resolve()):
        raise ValueError("smoke results are made in a place of their own: -p rerun true -p results <place>")
    return Path(results) if results else place, again == "true"


def smoke_study(settings: Mapping[str, Mapping[str, Any]]) -> Study:
    """A study of seconds, to see that a figure's notebook runs: three seeds, a few updates on digits."""
    common = dict(preset="smoke", eval_interval=2, eval_features="pixels", eval_samples=40)
    return Study(common, settings, [0, 1, 2])


def draw_intervals(
    ax: "Axes", at: Iterable[float], found: Sequence[Sequence[float]], horizontal: bool = False, **style: Any
) -> None:
    """Points with their intervals at these places. found: middle, low and high of each, such as an `Estimate`."""
    middle, low, high = np.array([[*one][:3] for one in found]).T
    spread, at = [middle - low, high - middle], [*at]
    ax.errorbar(middle, at, xerr=spread, **style) if horizontal else ax.errorbar(at, middle, spread, **style)


def plain_ticks(axis: "Axis", multiples: Sequence[int]) -> None:
    """Few and plain ticks on a logarithmic axis, at these multiples of powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    axis.set_major_locator(LogLocator(subs=multiples))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_formatter(NullFormatter())
