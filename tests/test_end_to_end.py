"""The training notebook as a user starts it, and the figures: from records, and measured anew at smoke size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from notebooks import execute
from PIL import Image

CIFAR10 = ROOT / "data" / "cifar10" / "train"


def write_images(folder: Path, size: tuple[int, int], n: int) -> None:
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for k in range(n):
        Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(folder / f"{k:06d}.jpg")


def papermill(folder: Path, **parameters) -> subprocess.CompletedProcess:
    """`papermill nbs/train.ipynb out.ipynb -p name value ...`, started in `folder`."""
    command = [Path(sys.executable).parent / "papermill", ROOT / "nbs" / "train.ipynb", "out.ipynb"]
    words = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
    environment = {name: value for name, value in os.environ.items() if name != "IN_TEST"}
    return subprocess.run([*command, *words], cwd=folder, capture_output=True, text=True, env=environment)


def test_papermill_trains_from_another_folder_and_stops_at_a_wrong_name(tmp_path, data_dir):
    run = tmp_path / "run"
    settings = dict(preset="smoke", data_dir=data_dir, run_dir=run, eval_interval=2, eval_features="pixels")
    result = papermill(tmp_path, **settings, eval_samples=40)
    assert result.returncode == 0, result.stderr[-3000:]
    names = {path.name for path in run.iterdir() if not path.name.startswith(("events", "."))}
    records = {"config.json", "provenance.json", "metrics.jsonl", "evaluations.jsonl"}
    assert names == records | {"samples", "checkpoints"}
    assert [len((run / name).read_text().splitlines()) for name in ("metrics.jsonl", "evaluations.jsonl")] == [4, 2]
    page = (tmp_path / "out.ipynb").read_text()
    outputs = [output for cell in json.loads(page)["cells"] for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 6
    assert str(run) in page and "floor_samples" in page
    result = papermill(tmp_path, _seed=3)
    assert result.returncode != 0 and "unknown parameter '_seed': did you mean 'seed'" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out.ipynb"}  # nothing else is written


def test_training_notebook_resumes(finished_copy):
    done = execute("train", run_dir=finished_copy, resume="true", steps=8, eval_interval=0)
    assert [line["step"] for line in done.names["run"].history] == list(range(1, 9))


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="no real CIFAR-10 in data/cifar10/train/<class>/*")
def test_training_notebook_on_real_cifar10(tmp_path):
    execute("train", preset="smoke", dataset="cifar10", size=32, run_dir=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["dataset_shape"] == [50_000, 3, 32, 32]


@pytest.mark.parametrize(
    "name, given, pictures, words",
    [
        ("samples", {}, 1, ""),
        ("idea", dict(reach=5), 1, ""),
        ("ground_metric", {}, 1, "strongest"),
        ("retrieval", {}, 1, "minus Euclidean"),
        ("perception", {}, 1, "unnormalised"),
        ("ablation", {}, 1, "chosen: 10"),
        ("length", {}, 1, "runs are recorded"),
    ],
)
def test_figure_is_drawn_from_records(tmp_path, name, given, pictures, words):
    done = execute(f"figures/{name}", save=tmp_path / "picture.png", **given)
    assert Image.open(tmp_path / "picture.png").width > 500 and done.pictures == pictures and words in done.text


def measured(name: str, path: Path, **given) -> dict:
    """The record that a figure's notebook measures at smoke size."""
    execute(f"figures/{name}", rerun="true", scale="smoke", **given)
    return json.loads(path.read_text())


def test_mass_term_study_reruns_at_smoke_size(tmp_path):
    results = tmp_path / "mass_term.json"
    execute("figures/mass_term", rerun="true", seeds=1, steps=2, results=results)
    recorded = json.loads(results.read_text())
    assert recorded["steps"] == 2 and all(len(scores) == 1 for scores in recorded["scores"].values())
    assert recorded["provenance"]["dataset_sha256"]


def test_cost_study_measures_at_smoke_size_and_draws(tmp_path):
    where = dict(device="cpu", results=tmp_path, save=tmp_path / "cost.png")
    recorded = measured("cost", tmp_path / "cost_cpu.json", **where)
    assert recorded["scale"] == "smoke" and recorded["provenance"]["device"].startswith("cpu")
    assert Image.open(tmp_path / "cost.png").width > 800


def test_study_of_the_length_reruns_at_smoke_size(tmp_path, data_dir):
    settings = dict(rerun="true", scale="smoke", results=tmp_path / "results", data_dir=data_dir)
    done = execute("figures/length", **settings, save=tmp_path / "picture.png")
    assert done.pictures == 1 and (tmp_path / "picture.png").exists() and "9 of 9 runs" in done.text
    assert len(list((tmp_path / "results").glob("*/outcomes.json"))) == 9
    assert "released over euclidean" in done.text and "samples" in done.text


def test_ground_metric_is_measured_at_smoke_size(tmp_path, data_dir):
    recorded = measured("ground_metric", tmp_path / "r.json", results=tmp_path / "r.json", data_dir=data_dir)
    digits = recorded["growth"]["digits"]
    assert len(digits["found"]["translation"]["wasserstein"]) == 2 and digits["provenance"]["dataset_sha256"]


@pytest.mark.slow  # prepares 70,000 images
def test_retrieval_is_measured_at_smoke_size(tmp_path, data_dir):
    path, given = tmp_path / "r.json", dict(results=tmp_path / "r.json", data_dir=data_dir)
    try:
        recorded = measured("retrieval", path, **given)
    except FileNotFoundError as error:
        pytest.skip(f"Fashion-MNIST is not there: {str(error).splitlines()[0]}")
    assert {size: len(found["hits"]) for size, found in recorded["found"].items()} == {"7": 10, "14": 10}
    recorded["found"]["7"]["hits"]["Euclidean"]["5"] = "0000"
    path.write_text(json.dumps(recorded))
    assert measured("retrieval", path, **given)["found"] == recorded["found"]  # what is recorded is not measured again


def test_perception_is_measured_at_smoke_size(tmp_path):
    for package in ("pycvvdp", "skimage"):
        pytest.importorskip(package)
    recorded = measured("perception", tmp_path / "r.json", results=tmp_path / "r.json")
    found = recorded["photos"]["astronaut"]
    assert len(found["visible"]) == 3 * len(found["changes"]) and max(found["visible"]) > 0


def test_ablation_is_measured_at_smoke_size(tmp_path, data_dir):
    recorded = measured("ablation", tmp_path / "ablation.json", results=tmp_path, data_dir=data_dir)
    assert len(recorded["runs"]) == 9 and recorded["provenance"]["dataset_sha256"]
    with pytest.raises(ValueError, match="another study"):
        execute("figures/ablation", results=tmp_path)
