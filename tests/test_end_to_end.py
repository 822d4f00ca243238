"""Papermill runs of the training notebook, as a user starts them: from another folder, with the package installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

CIFAR10 = ROOT / "data" / "cifar10" / "train"


def papermill(folder: Path, notebook: str = "train.ipynb", /, **parameters) -> subprocess.CompletedProcess:
    """`papermill nbs/<notebook> out.ipynb -p name value ...`, started in `folder`."""
    program = Path(sys.executable).parent / "papermill"
    command = [program, ROOT / "nbs" / notebook, folder / "out.ipynb", "--no-progress-bar"]
    for name, value in parameters.items():
        command += ["-p", name, str(value)]
    environment = {name: value for name, value in os.environ.items() if name != "IN_TEST"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


def pictures_in(notebook: Path) -> int:
    cells = json.loads(notebook.read_text())["cells"]
    return sum("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))


def write_images(folder: Path, size: tuple[int, int], n: int) -> None:
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for k in range(n):
        Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(folder / f"{k:06d}.jpg")


def make_digits(folder: Path) -> dict:
    return dict(data_dir=folder / "data")


def make_cifar10_folder(folder: Path) -> dict:
    for name in ("cat", "ship"):
        write_images(folder / "data" / "cifar10" / "train" / name, (32, 32), 20)
    return dict(dataset="cifar10", data_dir=folder / "data", size=32)


def make_celeba_folder(folder: Path) -> dict:
    write_images(folder / "data" / "celeba", (178, 218), 20)
    return dict(dataset="celeba", data_dir=folder / "data", size=64)


@pytest.mark.parametrize(
    "make_data, shape",
    [(make_digits, (1, 16, 16)), (make_cifar10_folder, (3, 32, 32)), (make_celeba_folder, (3, 64, 64))],
)
def test_training_notebook_runs(tmp_path, make_data, shape):
    parameters = make_data(tmp_path)
    result = papermill(tmp_path, preset="smoke", run_dir=tmp_path / "run", **parameters)
    assert result.returncode == 0, result.stderr[-3000:]
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir() if not path.name.startswith(("events", "."))} == {
        "config.json",
        "provenance.json",
        "metrics.jsonl",
        "samples",
        "checkpoints",
        "report.html",
    }
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4
    assert tuple(json.loads((run / "provenance.json").read_text())["dataset_shape"][1:]) == shape
    assert pictures_in(tmp_path / "out.ipynb") == 5  # real images, samples over time, last samples, curves, histograms
    grid = np.asarray(Image.open(run / "samples" / "step_0000004.png"))
    assert grid.shape == (8 * (shape[1] + 1) + 1, 8 * (shape[2] + 1) + 1, 3) and grid.std() > 0
    assert str(run) in (tmp_path / "out.ipynb").read_text()


def test_training_notebook_shows_evaluations(tmp_path):
    settings = dict(eval_interval=2, eval_features="pixels", eval_samples=40)
    result = papermill(tmp_path, preset="smoke", data_dir=tmp_path / "data", run_dir=tmp_path / "run", **settings)
    assert result.returncode == 0, result.stderr[-3000:]
    assert len((tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()) == 2
    assert pictures_in(tmp_path / "out.ipynb") == 6 and "floor_samples" in (tmp_path / "out.ipynb").read_text()


def test_training_notebook_resumes(tmp_path):
    parameters = dict(run_dir=tmp_path / "run")
    assert papermill(tmp_path, preset="smoke", steps=2, data_dir=tmp_path / "data", **parameters).returncode == 0
    result = papermill(tmp_path, resume="true", steps=4, **parameters)
    assert result.returncode == 0, result.stderr[-3000:]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "parameters, words",
    [
        (dict(datset="cifar10"), "did you mean 'dataset'"),
        (dict(penalty="wassertein"), "did you mean 'wasserstein'"),
        (dict(steps="soon"), "steps must be an integer, got 'soon'"),
    ],
)
def test_bad_parameters_stop_papermill(tmp_path, parameters, words):
    result = papermill(tmp_path, **parameters)
    assert result.returncode != 0 and words in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.ipynb"]  # nothing else is written


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="no real CIFAR-10 in data/cifar10/train/<class>/*")
def test_training_notebook_on_real_cifar10(tmp_path):
    result = papermill(tmp_path, preset="smoke", dataset="cifar10", size=32, run_dir=tmp_path / "run")
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["dataset_shape"] == [50_000, 3, 32, 32]


def test_figure_of_recorded_runs(tmp_path):
    result = papermill(tmp_path, "figures/samples.ipynb", save=tmp_path / "samples.png")
    assert result.returncode == 0, result.stderr[-3000:]
    assert Image.open(tmp_path / "samples.png").width > 500 and pictures_in(tmp_path / "out.ipynb") == 1
    assert "did you mean 'save'" in papermill(tmp_path, "figures/samples.ipynb", safe="x.png").stderr


def test_figure_of_the_idea(tmp_path):
    result = papermill(tmp_path, "figures/idea.ipynb", save=tmp_path / "idea.png", reach=5)
    assert result.returncode == 0, result.stderr[-3000:]
    assert Image.open(tmp_path / "idea.png").width > 500 and pictures_in(tmp_path / "out.ipynb") == 1
    assert "reach must be at least 1 pixel, got 0" in papermill(tmp_path, "figures/idea.ipynb", reach=0).stderr


def test_mass_term_study_reruns_at_smoke_size(tmp_path):
    results = tmp_path / "results" / "mass_term.json"
    result = papermill(tmp_path, "figures/mass_term.ipynb", rerun="true", seeds=1, steps=2, results=results)
    assert result.returncode == 0, result.stderr[-3000:]
    recorded = json.loads(results.read_text())
    assert recorded["steps"] == 2 and all(len(scores) == 1 for scores in recorded["scores"].values())
    assert recorded["provenance"]["dataset_sha256"]


def test_cost_study_measures_at_smoke_size_and_draws(tmp_path):
    settings = dict(rerun="true", scale="smoke", device="cpu", results=tmp_path / "results")
    result = papermill(tmp_path, "figures/cost.ipynb", **settings, save=tmp_path / "cost.png")
    assert result.returncode == 0, result.stderr[-3000:]
    recorded = json.loads((tmp_path / "results" / "cost_cpu.json").read_text())
    assert recorded["scale"] == "smoke" and recorded["provenance"]["device"].startswith("cpu")
    assert Image.open(tmp_path / "cost.png").width > 800 and pictures_in(tmp_path / "out.ipynb") == 1
    assert "| not measured |" in (tmp_path / "out.ipynb").read_text()


@pytest.mark.parametrize(
    "name, results, pictures, words",
    [
        ("fid", None, 2, "real images (2000)"),
        ("ground_metric", None, 1, "minus Euclidean"),
        ("robustness", None, 1, "response over gap"),
        ("robustness", "critics-cifar10", 1, "response over gap"),
        ("continuity", None, 2, "share above 1.1"),
        ("continuity", "critics-cifar10", 2, "share above 1.1"),
        ("interpolation", None, 1, "unevenness"),
        ("ablation", None, 1, "chosen: 10"),
    ],
)
def test_figure_is_drawn_from_records(tmp_path, name, results, pictures, words):
    where = dict(results=ROOT / "data" / "results" / results) if results else {}
    result = papermill(tmp_path, f"figures/{name}.ipynb", save=tmp_path / "picture.png", **where)
    assert result.returncode == 0, result.stderr[-3000:]
    assert Image.open(tmp_path / "picture.png").width > 700 and pictures_in(tmp_path / "out.ipynb") == pictures
    assert words in (tmp_path / "out.ipynb").read_text()


def test_main_study_reruns_at_smoke_size(tmp_path):
    where = dict(results=tmp_path / "results", data_dir=tmp_path / "data", device="cpu")
    result = papermill(tmp_path, "figures/fid.ipynb", rerun="true", scale="smoke", **where)
    assert result.returncode == 0, result.stderr[-3000:]
    assert len(list((tmp_path / "results").glob("*/evaluations.jsonl"))) == 9
    assert pictures_in(tmp_path / "out.ipynb") == 1
    assert "a place of their own" in papermill(tmp_path, "figures/fid.ipynb", scale="smoke").stderr


def test_ground_metric_is_measured_at_smoke_size(tmp_path):
    smoke = dict(rerun="true", scale="smoke", results=tmp_path / "results.json", data_dir=tmp_path / "data")
    result = papermill(tmp_path, "figures/ground_metric.ipynb", **smoke)
    assert result.returncode == 0, result.stderr[-3000:]
    recorded = json.loads((tmp_path / "results.json").read_text())
    assert set(recorded["retrieval"]["digits"]["precisions"]) == {"Euclidean", "Wasserstein-2", "linearised"}
    assert recorded["retrieval"]["digits"]["provenance"]["dataset_sha256"]


def test_critics_are_trained_and_measured_at_smoke_size(tmp_path):
    """Three notebooks measure the same six runs, which the first one trains."""
    smoke = dict(rerun="true", scale="smoke", results=tmp_path / "results", data_dir=tmp_path / "data")
    found, trained = {}, []
    for name in ("robustness", "continuity", "interpolation"):
        result = papermill(tmp_path, f"figures/{name}.ipynb", **smoke)
        assert result.returncode == 0, result.stderr[-3000:]
        found[name] = json.loads((tmp_path / "results" / f"{name}.json").read_text())
        trained.append({path: path.stat().st_mtime_ns for path in (tmp_path / "results").glob("*/config.json")})
    assert len(trained[0]) == 6 and trained[0] == trained[1] == trained[2]
    assert len(found["robustness"]["critics"]) == 6 and "translation" in found["robustness"]["perturbations"]
    assert {*found["continuity"]["lengths"]} == {"translation", "elastic", "cross-fade", "geodesic"}
    assert "latent" in found["continuity"]["critics"]["wasserstein-seed2"]["paths"]
    assert len(found["interpolation"]["generators"]) == 6 and (tmp_path / "results" / "interpolation.png").exists()


def test_ablation_is_measured_at_smoke_size(tmp_path):
    smoke = dict(rerun="true", scale="smoke", results=tmp_path / "results", data_dir=tmp_path / "data")
    result = papermill(tmp_path, "figures/ablation.ipynb", **smoke)
    assert result.returncode == 0, result.stderr[-3000:]
    recorded = json.loads((tmp_path / "results" / "ablation.json").read_text())
    assert len(recorded["runs"]) == 9 and recorded["provenance"]["dataset_sha256"]
    result = papermill(tmp_path, "figures/ablation.ipynb", results=tmp_path / "results")
    assert result.returncode == 1 and "another study" in result.stderr
