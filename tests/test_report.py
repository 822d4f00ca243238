"""`wwgan report` makes a page of any run folder that a browser shows whole, without a network."""

import json

import pytest

from wwgan.cli import main
from wwgan.plots import evenly, plot_evaluations, plot_metrics, plot_samples
from wwgan.report import cells, write_report
from wwgan.runs import best_evaluation, read_evaluations, sample_grids


def test_figures_draw_the_numbers(finished):
    distance, losses, norms = plot_metrics(finished.history).axes
    assert [*distance.lines[0].get_ydata()] == [line["distance"] for line in finished.history]
    assert [*distance.lines[0].get_xdata()] == [line["step"] for line in finished.history]
    assert [line.get_label() for line in losses.lines] == ["critic_loss", "generator_loss", "penalty"]
    assert [line.get_label() for line in norms.lines] == ["norm_euclidean", "norm_wasserstein", "norm"]
    scores, floor = plot_evaluations(finished.evaluations).axes[0].lines
    assert [*scores.get_ydata()] == [line["scores"]["frechet"] for line in finished.evaluations]
    assert {*floor.get_ydata()} == {finished.evaluations[0]["floor"]["frechet"]}
    odd = [finished.history[0] | dict(distance=float("nan"), penalty=None), *finished.history[1:]]
    assert len(plot_metrics(odd).axes[0].lines[0].get_ydata()) == 5


def test_a_picture_that_cannot_be_read_leaves_a_gap_that_says_so(finished_copy):
    pictures = sample_grids(finished_copy)
    pictures[0].write_bytes(b"no picture")
    pictures[1].unlink()
    titles = [ax.get_title() for ax in plot_samples(evenly(pictures)).axes]
    assert titles == ["update 0: cannot be read", "update 2: cannot be read", "update 4", "update 6"]


def test_report_in_a_browser(finished_copy, browser):
    """Every setting, score and picture is there, the page asks for nothing else, and it does not overflow."""
    path = finished_copy / "report.html"
    assert main(["report", str(finished_copy)]) == 0
    page = browser.new_page(viewport=dict(width=1000, height=800))
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    sizes = page.evaluate("[...document.images].map(i => [i.naturalWidth, i.naturalHeight, i.clientWidth])")
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
    assert len(sizes) == 4 and all(min(size) > 50 for size in sizes)  # last samples, samples, curves, evaluations
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    text = page.inner_text("body")
    page.close()
    assert "Finished, 6 generator updates" in text and "--steps 12" in text
    stored = json.loads((finished_copy / "config.json").read_text()) | dict(betas=(0.5, 0.9))
    assert all(f"'{name}': {value!r}" in text for name, value in stored.items())
    assert json.loads((finished_copy / "provenance.json").read_text())["dataset_sha256"] in text
    best = best_evaluation(read_evaluations(finished_copy))
    assert all(repr(score) in text for score in best["scores"].values())


def test_a_stopped_run_has_a_report_too(finished_copy):
    config = finished_copy / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | dict(steps=1000)))  # as it is when stopped at 6
    head = next(cells(finished_copy))[1].replace("`", "")
    assert "At update 6 of 1,000" in head and f"wwgan train --resume --run_dir {finished_copy}." in head


@pytest.mark.parametrize("name, content", [("provenance.json", "[1]"), ("evaluations.jsonl", "{}\n")])
def test_what_holds_no_run_is_named_and_has_no_report(finished_copy, name, content):
    (finished_copy / name).write_text(content)
    with pytest.raises(ValueError, match=name):
        write_report(finished_copy)
    assert not (finished_copy / "report.html").exists()
