"""The report of a run: a notebook of its pictures, numbers and settings, executed, as a page that needs no network."""

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .files import write_atomically
from .runs import checkpoints, read_config, read_evaluations, read_metrics, read_provenance, sample_grids

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 66rem; margin: 2rem auto; padding: 0 1rem }}
img {{ max-width: 100% }} pre {{ font-size: .85rem; white-space: pre-wrap; overflow-wrap: anywhere }}
.prompt, .anchor-link {{ display: none }}
</style></head><body>
{body}
</body></html>
"""
_FIRST_CELL = """%matplotlib inline
from dataclasses import asdict
from pathlib import Path

from wwgan import plots, runs

run_dir = Path({run_dir!r})"""


def _state(run_dir: Path) -> str:
    """How far the run came, in words, and how to go on."""
    steps = read_config(run_dir).steps
    step = max([0, *(line["step"] for line in read_metrics(run_dir)), *checkpoints(run_dir)])
    more = f" --steps {2 * steps}" if step >= steps else ""
    how = f"go on by `wwgan train --resume --run_dir {run_dir.resolve()}{more}`."
    return (f"Finished, {steps:,} generator updates; " if step >= steps else f"At update {step:,} of {steps:,}; ") + how


def cells(run_dir: Path) -> Iterator[tuple[str, str]]:
    """The notebook: kind and source of each cell, for what the run's folder holds."""
    config = read_config(run_dir)
    yield "markdown", f"# {config.dataset}, {config.penalty}\n\n{_state(run_dir)}"
    yield "code", _FIRST_CELL.format(run_dir=str(run_dir.resolve()))
    if sample_grids(run_dir):
        yield "markdown", "## Samples\n\nEach place in the grids is the same latent vector."
        yield "code", "plots.plot_samples(runs.sample_grids(run_dir)[-1:], width=5)"
        yield "code", "plots.plot_samples(plots.evenly(runs.sample_grids(run_dir)))"
    if read_metrics(run_dir):
        yield "markdown", "## Distance, losses and gradient norms\n\nThe penalty sets the unit of the distance."
        yield "code", "plots.plot_metrics(runs.read_metrics(run_dir))"
    if read_evaluations(run_dir):
        yield "markdown", "## Evaluation\n\nDashed, and `floor`: what as many real images score."
        yield "code", "plots.plot_evaluations(runs.read_evaluations(run_dir))"
        yield "code", "runs.best_evaluation(runs.read_evaluations(run_dir))"
    yield "markdown", "## Settings"
    yield "code", "asdict(runs.read_config(run_dir))"
    if (run_dir / "provenance.json").exists():
        read_provenance(run_dir)
        yield "markdown", "## Provenance"
        yield "code", "runs.read_provenance(run_dir)"


def write_report(run_dir: str | Path) -> Path:
    """Write a run's report.html anew from what its folder holds, also of a run that was killed.

    Raises FileNotFoundError or ValueError for a folder that holds no run, naming the file.
    """
    run_dir = Path(run_dir)
    sources = list(cells(run_dir))  # raises for a folder that holds no run
    import ipykernel  # noqa: F401
    import nbformat.v4 as nb
    from nbclient import NotebookClient
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    make: dict[str, Any] = dict(markdown=nb.new_markdown_cell, code=nb.new_code_cell)
    notebook = nb.new_notebook(cells=[make[kind](source) for kind, source in sources])
    NotebookClient(notebook, config=Config(KernelManager=dict(transport="ipc"))).execute()  # no port is opened
    exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_output_prompt=True)
    body, _ = exporter.from_notebook_node(notebook)
    page = _PAGE.format(title=html.escape(run_dir.resolve().name), body=body)
    write_atomically(run_dir / "report.html", lambda file: file.write(page.encode()))
    return run_dir / "report.html"
