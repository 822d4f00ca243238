"""Plots of a training run, and its report: one page that needs no network."""

import base64
import io
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .evaluation import FEATURES, main_score
from .files import read_json, write_atomically
from .runs import best_evaluation, is_finite, numbered_files, read_evaluations, read_metrics, sample_grids
from .settings import TrainConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_Item = TypeVar("_Item")
CURVES = {
    "E f(real) - E f(fake)": ("distance",),
    "loss": ("critic_loss", "generator_loss", "penalty"),
    "mean norm of the gradient": ("norm_euclidean", "norm_wasserstein", "norm"),
}
_STYLES = ("k-", "k--", "0.6")


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
        for name, style in zip(names, _STYLES):
            lines = [line for line in history if is_finite(line.get(name))]
            if lines:
                ax.plot([line["step"] for line in lines], [line[name] for line in lines], style, lw=1, label=name)
                ax.legend(fontsize=8)
        ax.set(xlabel="generator updates", ylabel=label)
        ax.xaxis.get_major_locator().set_params(integer=True)
    return figure


def plot_evaluations(evaluations: Sequence[Mapping[str, Any]]) -> "Figure":
    """The Frechet distance against generator updates; dashed, what as many real images score."""
    figure = _figure(5, 3)
    ax = figure.subplots()
    ax.plot([line["step"] for line in evaluations], [main_score(line) for line in evaluations], "ko-", ms=4)
    ax.axhline(main_score({**evaluations[0], "scores": evaluations[0]["floor"]}), color="0.5", ls="--")
    best = best_evaluation(evaluations)
    features = best["protocol"]["features"]
    ax.set(
        xlabel="generator updates",
        ylabel=FEATURES[features].frechet,
        title=f"best {main_score(best):.4g} after {best['step']:,}, {features} features",
    )
    return figure


def evenly(items: Sequence[_Item], most: int = 6) -> list[_Item]:
    """At most so many of them, spread evenly, the first and the last among them."""
    count = min(most, len(items))
    return [items[round(k * (len(items) - 1) / max(count - 1, 1))] for k in range(count)]


def step_of(picture: Path) -> int:
    """The generator update after which samples were drawn, from the file's name."""
    return int(picture.stem.removeprefix("step_"))


def plot_samples(pictures: Sequence[Path]) -> "Figure":
    """Sample grids side by side, each under the number of generator updates."""
    from PIL import Image

    figure = _figure(3 * len(pictures), 3.2)
    for ax, picture in zip(figure.subplots(1, len(pictures), squeeze=False)[0], pictures):
        with Image.open(picture) as image:
            ax.imshow(image)
        ax.set_title(f"update {step_of(picture):,}", fontsize=9)
        ax.axis("off")
    return figure


_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 66rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { font-size: 1.15rem; margin-top: 2.2rem }
img { max-width: 100%; display: block } .state { color: #666; margin-top: .2rem }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: 1rem }
.samples img { width: 100% } figure { margin: 0 } figcaption { color: #666; font-size: .85rem }
.samples img, .last img { image-rendering: pixelated } .last img { width: min(100%, 34rem) }
table { border-collapse: collapse; font-size: .88rem; width: 100% }
td, th { border-bottom: 1px solid #ddd; padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top }
td { overflow-wrap: anywhere } td:first-child, th:first-child { white-space: nowrap; width: 1% }
code, pre { font-size: .85rem; background: #f5f5f5; overflow-wrap: anywhere; white-space: pre-wrap }
</style>
</head>
<body>
{% macro table(rows) %}
<table>{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table>
{% endmacro %}
<h1>{{ title }}</h1>
<p class="state">{{ state }}</p>
{{ table(facts) }}
{% if pictures %}
<h2>Samples</h2>
<figure class="last"><img src="{{ pictures[-1].data }}" alt="samples after update {{ pictures[-1].step }}">
<figcaption>after {{ pictures[-1].step }} generator updates</figcaption></figure>
{% if pictures|length > 1 %}
<h2>Samples over time</h2>
<p>One fixed batch of latent vectors: each place in the grid is the same image growing.</p>
<div class="samples">{% for picture in pictures %}
<figure><img src="{{ picture.data }}" alt="samples after update {{ picture.step }}">
<figcaption>update {{ picture.step }}</figcaption></figure>{% endfor %}</div>
{% endif %}
{% endif %}
{% if unreadable %}<p>Pictures that cannot be read: {{ unreadable|join(", ") }}.</p>{% endif %}
<h2>Losses, distance and gradient norms</h2>
{% if curves %}<img src="{{ curves }}" alt="distance, losses and gradient norms against generator updates">
<p>The unit of the distance is set by the penalty: compare it within one ground metric only.</p>
{% else %}<p>No numbers were written yet.</p>{% endif %}
<h2>Evaluation</h2>
{% if evaluations %}<img src="{{ evaluations }}" alt="Frechet distance against generator updates">
<p>The best of {{ evaluated }} evaluations, after {{ best.step }} generator updates, beside what real images score.</p>
<table><tr><th>score</th><th>generated</th><th>real</th></tr>
{% for name, value in best.scores.items() %}
<tr><td>{{ name }}</td><td>{{ value|number }}</td><td>{{ best.floor.get(name, "")|number }}</td></tr>
{% endfor %}</table>
<h3>Protocol</h3>{{ table(best.protocol.items()) }}
{% else %}<p>None was asked for (<code>eval_interval</code>).</p>{% endif %}
<h2>Settings</h2>{{ table(settings) }}
<h2>Origin</h2>{{ table(origin) }}
<h2>Go on</h2>
{% if diverged %}<p>Resumed, the run would diverge again: begin a new one with a smaller <code>lr</code> or a larger
<code>weight</code>.</p>
{% else %}<pre>python -m wwgan.training --resume --run_dir {{ folder }}{{ further }}</pre>{% endif %}
</body>
</html>
"""


def _embedded(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _embedded_figure(figure: "Figure") -> str:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata=dict(Date=None))
    return _embedded(file.getvalue(), "svg+xml")


def _embedded_picture(path: Path, most: int = 1024) -> str:
    from PIL import Image

    with Image.open(path) as picture:
        picture.thumbnail((most, most))
        file = io.BytesIO()
        picture.save(file, format="png")
    return _embedded(file.getvalue(), "png")


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as rows "outer.inner", lists as JSON."""
    rows = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, json.dumps(value) if isinstance(value, list) else value))
    return rows


def _state(run_dir: Path, step: int, steps: int) -> tuple[str, bool]:
    """How far the run came, in words, and whether it diverged there."""
    diverged = numbered_files(run_dir / "checkpoints", "diverged", ".pt")
    if step < steps and max(diverged, default=-1) >= step:
        return f"diverged near update {step:,} of {steps:,}", True
    return (f"finished, {steps:,} generator updates" if step >= steps else f"at update {step:,} of {steps:,}"), False


def _facts(
    config: Mapping[str, Any], origin: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
) -> list[tuple[str, Any]]:
    """The rows at the head of the page."""
    last = history[-1] if history else {}
    names = [name for names in CURVES.values() for name in names if name in last]
    odd = sum(not is_finite(line[name]) for line in history for name in names if name in line)
    rows = [
        ("images", f"{config['dataset']}, {origin.get('dataset_shape', 'shape not recorded')}"),
        ("last numbers", ", ".join(f"{name} {_number(last[name])}" for name in names) or "none yet"),
        ("time", f"{last['seconds']:.0f} s" if is_finite(last.get("seconds")) else "not recorded"),
        ("code", origin.get("git_commit") or "no commit recorded"),
    ]
    return [*rows, ("not finite", f"{odd} of the numbers")] if odd else rows


def _pictures(grids: Sequence[Path]) -> tuple[list[dict[str, str]], list[str]]:
    """Step and embedded data of pictures, and the names of those that cannot be read."""
    found, unreadable = [], []
    for path in grids:
        try:
            found.append(dict(step=f"{step_of(path):,}", data=_embedded_picture(path)))
        except Exception:  # PIL raises many kinds
            unreadable.append(path.name)
    return found, unreadable


def _object_in(path: Path, what: str, **kinds: type) -> dict[str, Any]:
    """The JSON object in a file that holds `what`, with these keys of these types. ValueError naming the file else."""
    value = read_json(path)
    if not isinstance(value, dict) or not all(type(value.get(name)) is kind for name, kind in kinds.items()):
        raise ValueError(f"{path} does not hold {what}")
    return value


def report_html(run_dir: str | Path, meanings: Mapping[str, str] | None = None) -> str:
    """The page of the run in `run_dir`: settings, samples over time, curves, evaluation, origin; self-contained HTML.

    meanings: what each setting means, shown beside its value. Raises FileNotFoundError or ValueError for a folder that
    holds no run, naming the file; pictures that cannot be read are named on the page.
    """
    from jinja2 import Environment, StrictUndefined

    run_dir, meanings = Path(run_dir), meanings or {}
    config = _object_in(run_dir / "config.json", "the settings of a run", dataset=str, penalty=str, steps=int)
    path = run_dir / "provenance.json"
    origin = _object_in(path, "the origin of a run") if path.exists() else {}
    history, evaluations, grids = read_metrics(run_dir), read_evaluations(run_dir), sample_grids(run_dir)
    reached = [*map(step_of, grids), *numbered_files(run_dir / "checkpoints", "step", ".pt")]
    step = max([0, *(line["step"] for line in (*history, *evaluations)), *reached])
    state, diverged = _state(run_dir, step, config["steps"])
    pictures, unreadable = _pictures(evenly(grids))
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["number"] = _number
    return environment.from_string(_TEMPLATE).render(
        title=f"{config['dataset']}, {config['penalty']}",
        state=state,
        facts=_facts(config, origin, history),
        pictures=pictures,
        unreadable=unreadable,
        curves=_embedded_figure(plot_metrics(history)) if history else None,
        evaluations=_embedded_figure(plot_evaluations(evaluations)) if evaluations else None,
        evaluated=len(evaluations),
        best=best_evaluation(evaluations) if evaluations else None,
        settings=[(name, value, meanings.get(name, "")) for name, value in config.items()],
        origin=_flat(origin),
        folder=shlex.quote(str(run_dir.resolve())),
        diverged=diverged,
        further=f" --steps {2 * config['steps']}" if step >= config["steps"] else "",
    )


def write_report(run_dir: str | Path) -> Path | None:
    """Write a run's report.html anew from what its folder holds; None where matplotlib or Jinja is not installed.

    `train` does so at the end of each run. Raises FileNotFoundError or ValueError for a folder that holds no run.
    """
    try:
        page = report_html(run_dir, {f.name: f.metadata["help"] for f in fields(TrainConfig)})
    except ImportError as error:
        print(f"no report: {error}", file=sys.stderr)
        return None
    path = Path(run_dir) / "report.html"
    write_atomically(path, lambda file: file.write(page.encode()))
    return path
