"""Every run leaves one page that a browser shows whole, without a network."""

import html
import json
import shutil
import signal
import sys
from pathlib import Path

import pytest
from PIL import Image

from wwgan import training
from wwgan.evidence.cost import main
from wwgan.files import write_json
from wwgan.plots import evenly, plot_evaluations, plot_metrics, report_html, write_report
from wwgan.runs import best_evaluation, sample_grids
from wwgan.settings import TrainConfig, make_config
from wwgan.training import train


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
    """A finished run with evaluations."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    evaluated = dict(eval_interval=2, eval_features="pixels", eval_samples=40)
    return train(make_config("smoke", run_dir=folder, data_dir=data_dir, device="cpu", steps=6, **evaluated))


def test_report_shows_every_setting_with_its_value_and_every_score(run):
    page = html.unescape(run.report.read_text(encoding="utf-8"))
    for name, value in json.loads((run.run_dir / "config.json").read_text()).items():
        meaning = TrainConfig.__dataclass_fields__[name].metadata["help"]
        assert f"<td>{name}</td><td>{value}</td><td>{meaning}</td>" in page, name
    best = best_evaluation(run.evaluations)
    for name, score in best["scores"].items():
        assert f"<td>{name}</td><td>{score:.4g}</td><td>{best['floor'][name]:.4g}</td>" in page, name
    assert json.loads((run.run_dir / "provenance.json").read_text())["dataset_sha256"] in page


def test_figures_draw_the_numbers(run):
    distance, losses, norms = plot_metrics(run.history).axes
    assert [*distance.lines[0].get_ydata()] == [line["distance"] for line in run.history]
    assert [*distance.lines[0].get_xdata()] == [line["step"] for line in run.history]
    assert [line.get_label() for line in losses.lines] == ["critic_loss", "generator_loss", "penalty"]
    assert [line.get_label() for line in norms.lines] == ["norm_euclidean", "norm_wasserstein", "norm"]
    scores, floor = plot_evaluations(run.evaluations).axes[0].lines
    assert [*scores.get_ydata()] == [line["scores"]["frechet"] for line in run.evaluations]
    assert {*floor.get_ydata()} == {run.evaluations[0]["floor"]["frechet"]}


def test_report_in_a_browser(run, browser):
    """All pictures are there with the right sizes, the page asks for nothing else, and it does not overflow."""
    page = browser.new_page(viewport=dict(width=1000, height=800))
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(run.report.as_uri())
    sizes = page.evaluate("[...document.images].map(i => [i.naturalWidth, i.naturalHeight, i.clientWidth])")
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
    assert len(sizes) == 1 + len(evenly(run.samples)) + 2 and all(min(size) > 50 for size in sizes)
    sources = page.evaluate("[...document.querySelectorAll('.samples img')].map(i => i.src)")
    assert len({*sources}) == len(evenly(run.samples)) > 2 and page.evaluate("document.images[0].src") == sources[-1]
    assert sizes[0][:2] == [*Image.open(run.samples[-1]).size]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert "finished, 6 generator updates" in page.inner_text(".state")
    page.close()


def test_pictures_of_any_size_are_scaled_to_fit(run, tmp_path):
    write_json(tmp_path / "config.json", dict(dataset="digits", penalty="euclidean", steps=1))
    (tmp_path / "samples").mkdir()
    Image.new("RGB", (3000, 2000)).save(tmp_path / "samples" / "step_0000001.png")
    small = len(report_html(tmp_path))
    Image.effect_noise((3000, 2000), 90).save(tmp_path / "samples" / "step_0000001.png")
    assert sample_grids(tmp_path)[0].stat().st_size > 4_000_000
    assert small < len(report_html(tmp_path)) < 3_000_000


def test_stopped_and_diverged_runs_have_a_report_too(smoke, monkeypatch):
    stopped = smoke("stopped", steps=1000)
    real = training.update
    monkeypatch.setattr(training, "update", lambda state, *rest: _stop_after(3, state) or real(state, *rest))
    with pytest.raises(training.Stopped):
        train(stopped, progress=False)
    monkeypatch.setattr(training, "update", real)
    diverged = smoke("other", lr=1e30, steps=50)
    with pytest.raises(FloatingPointError):
        train(diverged, progress=False)
    for config, state, advice in (
        (stopped, "at update 4 of 1,000", f"--run_dir {stopped.run_dir}</pre>"),
        (diverged, "diverged near update ", "begin a new one with a smaller"),
    ):
        page = (Path(config.run_dir) / "report.html").read_text(encoding="utf-8")
        assert f'<p class="state">{state}' in page and advice in page


def _stop_after(step, state):
    if state.step == step:
        signal.raise_signal(signal.SIGTERM)


def test_without_matplotlib_training_goes_on(smoke, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run = train(smoke(), progress=False)
    assert not run.report.exists() and "no report: import of matplotlib.figure" in capsys.readouterr().err
    monkeypatch.undo()
    assert write_report(run.run_dir) == run.report and run.report.exists()


@pytest.mark.parametrize("error", [OSError("disk full"), KeyError("distance")])
def test_a_page_that_cannot_be_written_costs_no_run_and_hides_no_error(smoke, monkeypatch, capsys, error):
    def broken(run_dir):
        raise error

    monkeypatch.setattr(training, "write_report", broken)
    assert train(smoke(), progress=False).state.step == 4
    assert f"no report: {error}" in capsys.readouterr().err
    with pytest.raises(FloatingPointError):
        train(smoke("other", lr=1e30, steps=50), progress=False)


def changed(run_dir, name, how):
    """Rewrite a file of a run folder: JSON, or one object a line."""
    path = run_dir / name
    lines = path.suffix == ".jsonl"
    text = path.read_text()
    content = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    content = how(content) or content
    path.write_text("".join(json.dumps(line) + "\n" for line in content) if lines else json.dumps(content))


@pytest.mark.parametrize(
    "name, how, words",
    [
        ("provenance.json", lambda content: [1], "does not hold the origin of a run"),
        ("config.json", lambda content: content.update(steps=None), "does not hold the settings of a run"),
        ("metrics.jsonl", lambda lines: lines[0].update(step="2"), "line 1 of .*metrics.jsonl"),
        ("evaluations.jsonl", lambda lines: lines[0].update(floor={}), "scores, floor and protocol"),
        ("evaluations.jsonl", lambda lines: lines[0]["protocol"].update(features="nose"), "scores, floor and protocol"),
    ],
)
def test_what_holds_no_run_is_named(run, tmp_path, capsys, name, how, words):
    folder = shutil.copytree(run.run_dir, tmp_path / "run")
    changed(folder, name, how)
    with pytest.raises(ValueError, match=f"{name}.*{words}|{words}"):
        write_report(folder)
    assert main([str(folder), str(run.run_dir)]) == 1
    told = capsys.readouterr()
    assert told.err.count("error: ") == 1 and told.out.strip() == str(run.report)


def test_odd_numbers_and_pictures_are_told_and_left_out(run, tmp_path):
    folder = shutil.copytree(run.run_dir, tmp_path / "run")
    changed(folder, "metrics.jsonl", lambda lines: lines[2].update(distance=float("nan"), penalty=None))
    changed(folder, "metrics.jsonl", lambda lines: [lines[-1].pop(name) for name in ("seconds", "norm")] and None)
    changed(folder, "evaluations.jsonl", lambda lines: [line["floor"].pop("recall") for line in lines] and None)
    (folder / "samples" / run.samples[0].name).write_bytes(b"no picture")
    (folder / "samples" / run.samples[1].name).unlink()
    (folder / "samples" / run.samples[1].name).mkdir()
    page = write_report(folder).read_text()
    assert "2 of the numbers" in page and page.count("data:image/svg") == 2
    assert f"cannot be read: {run.samples[0].name}, {run.samples[1].name}" in page
