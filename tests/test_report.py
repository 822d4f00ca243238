"""Every run leaves one page that a browser shows whole, without a network."""

import html
import json
import signal
import sys

import pytest
from PIL import Image

from wwgan import training
from wwgan.data import write_json
from wwgan.report import evenly, report_html, sample_grids
from wwgan.runs import write_report
from wwgan.settings import TrainConfig, make_config
from wwgan.training import train


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
    """A finished run with evaluations."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    evaluated = dict(eval_interval=2, eval_features="pixels", eval_samples=40)
    return train(make_config("smoke", run_dir=folder, data_dir=data_dir, device="cpu", steps=6, **evaluated))


def test_report_shows_every_setting_and_score(run):
    page = html.unescape(run.report.read_text(encoding="utf-8"))
    for name, field in TrainConfig.__dataclass_fields__.items():
        assert f"<td>{name}</td>" in page and f"<td>{field.metadata['help']}</td>" in page, name
    for name in run.evaluations[0]["scores"]:
        assert f"<td>{name}</td>" in page, name
    assert json.loads((run.run_dir / "provenance.json").read_text())["dataset_sha256"] in page


def test_report_in_a_browser(run, browser):
    """All pictures are there with the right sizes, the page asks for nothing else, and it does not overflow."""
    page = browser.new_page(viewport=dict(width=1000, height=800))
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(run.report.as_uri())
    sizes = page.evaluate("[...document.images].map(i => [i.naturalWidth, i.naturalHeight, i.clientWidth])")
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
    assert len(sizes) == 1 + len(evenly(run.samples)) + 2 and all(min(size) > 50 for size in sizes)
    assert sizes[0][:2] == [*Image.open(run.samples[-1]).size]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert "finished after 6 of 6" in page.inner_text("body")
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
    diverged = smoke("diverged", lr=1e30, steps=50)
    with pytest.raises(FloatingPointError):
        train(diverged, progress=False)
    for config, state in {stopped: "cut off after", diverged: "diverged"}.items():
        page = (sample_grids(config.run_dir)[0].parent.parent / "report.html").read_text(encoding="utf-8")
        assert state in page and f"of {config.steps:,} generator updates" in page


def _stop_after(step, state):
    if state.step == step:
        signal.raise_signal(signal.SIGTERM)


def test_without_matplotlib_training_goes_on(smoke, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run = train(smoke(), progress=False)
    assert not run.report.exists() and "no report: import of matplotlib.figure" in capsys.readouterr().err
    monkeypatch.undo()
    assert write_report(run.run_dir) == run.report and run.report.exists()
