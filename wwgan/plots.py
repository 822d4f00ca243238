"""Plots of a training run: what its notebook and its report show."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .evaluation import FEATURES, main_score
from .runs import best_evaluation, is_finite

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = {
    "E f(real) - E f(fake)": ("distance",),
    "loss": ("critic_loss", "generator_loss", "penalty"),
    "mean norm of the gradient": ("norm_euclidean", "norm_wasserstein", "norm"),
}


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plot_metrics(history: Sequence[Mapping[str, float]]) -> "Figure":
    """Distance, losses and gradient norms against generator updates, from the lines of metrics.jsonl.

    norm is the one that the run penalised, in its last critic update; the others are means over points between images.
    Values that are not finite leave gaps.
    """
    figure = _figure(12, 3)
    for ax, (label, names) in zip(figure.subplots(1, len(CURVES)), CURVES.items()):
        for name, style in zip(names, ("k-", "k--", "0.6")):
            if points := [(line["step"], line[name]) for line in history if is_finite(line.get(name))]:
                ax.plot(*zip(*points), style, lw=1, label=name)
                ax.legend(fontsize=8)
        ax.set(xlabel="generator updates", ylabel=label)
        ax.xaxis.get_major_locator().set_params(integer=True)
    return figure


def plot_evaluations(evaluations: Sequence[Mapping[str, Any]]) -> "Figure":
    """The Frechet distance against generator updates; dashed, what as many real images score."""
    figure = _figure(5, 3)
    ax = figure.subplots()
    ax.plot([line["step"] for line in evaluations], [main_score(line) for line in evaluations], "ko-", ms=4)
    ax.axhline(main_score(evaluations[0], "floor"), color="0.5", ls="--")
    best, features = best_evaluation(evaluations), evaluations[0]["protocol"]["features"]
    title = f"best {main_score(best):.4g} after {best['step']:,}, {features} features"
    ax.set(xlabel="generator updates", ylabel=FEATURES[features].frechet, title=title)
    return figure


def evenly(items: Sequence[Any], most: int = 6) -> list[Any]:
    """At most so many of them, spread evenly, the first and the last among them."""
    count = min(most, len(items))
    return [items[round(k * (len(items) - 1) / max(count - 1, 1))] for k in range(count)]


def step_of(picture: Path) -> int:
    """The generator update after which samples were drawn, from the file's name."""
    return int(picture.stem.removeprefix("step_"))


def plot_samples(pictures: Sequence[Path], width: float = 3.0) -> "Figure":
    """Sample grids side by side, each so many inches wide, under the number of generator updates.

    A file that is no picture leaves a gap that says so.
    """
    from PIL import Image

    figure = _figure(width * len(pictures), width + 0.2)
    for ax, picture in zip(figure.subplots(1, len(pictures), squeeze=False)[0], pictures):
        title = f"update {step_of(picture):,}"
        try:
            with Image.open(picture) as image:
                ax.imshow(image)
        except Exception:  # of many kinds
            title += ": cannot be read"
        ax.set_title(title, fontsize=9)
        ax.axis("off")
    return figure
