"""Odd images, and malformed input at every entry point: a result, or one clear error; nothing half-made."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wwgan import runs, training
from wwgan.data import to_uint8
from wwgan.evaluation import frechet_distance, image_features, kernel_distance, manifold_precision_recall
from wwgan.evidence import perturbation
from wwgan.graph import PixelGraph
from wwgan.metric import WassersteinMetric, wasserstein2
from wwgan.networks import make_networks
from wwgan.penalty import GROUND_METRICS, gradient_penalty
from wwgan.runs import run_config
from wwgan.settings import TrainConfig, make_config

quiet = settings(
    max_examples=20, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def draw(*shape, seed=0):
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 1


IMAGES = {
    "constant": torch.full((2, 1, 16, 16), 0.3),
    "all black": torch.full((2, 3, 16, 16), -1.0),
    "all white": torch.ones(2, 1, 16, 16),
    "single pixel": draw(2, 1, 1, 1),
    "one row": draw(2, 3, 1, 7),
    "batch of one": draw(1, 3, 16, 16),
    "odd size": draw(2, 1, 7, 5),
    "two channels": draw(2, 2, 8, 8),
    "four channels": draw(2, 4, 8, 8),
    "no image": draw(0, 1, 16, 16),
    "no pixels": draw(2, 1, 0, 16),
    "not a number": torch.full((2, 1, 16, 16), float("nan")),
    "infinite": torch.full((2, 1, 16, 16), float("inf")),
    "out of range": 3 * torch.ones(2, 1, 16, 16),
}


def slope(x):
    """A critic with a gradient everywhere."""
    return (x * torch.linspace(-1, 1, x.shape[1:].numel()).view(x.shape[1:])).sum((1, 2, 3))


def ramp_of(x):
    return torch.linspace(-1, 1, x.numel()).view(x.shape)


def masses(x):
    """The first image's first channel as mass; of no image, none."""
    return (x[:1, :1].sum((0, 1)).double() + 1) / 2


FUNCTIONS = {
    "energy": lambda x: PixelGraph(*x.shape[-2:]).energy((x + 1) / 2, ramp_of(x)),
    "laplacian": lambda x: PixelGraph(*x.shape[-2:]).laplacian(masses(x)),
    "metric norm": lambda x: WassersteinMetric(PixelGraph(*x.shape[-2:])).norm(masses(x), 0 * masses(x)),
    "wasserstein2": lambda x: torch.tensor(wasserstein2(masses(x), masses(x).flip(0))),
    "displacement": lambda x: perturbation.displacement(x, x.flip(2)).wasserstein,
    "matched": lambda x: sum((m.images[0].sum() for m in perturbation.matched(x, [0.1]).values()), torch.zeros(())),
    "features": lambda x: image_features(to_uint8(x), "pixels", progress=False)["features"],
    "frechet_distance": lambda x: torch.tensor(frechet_distance(x.flatten(1), x.flatten(1))),
    "kernel_distance": lambda x: torch.tensor(kernel_distance(x.flatten(1), x.flatten(1))[0]),
    "precision_recall": lambda x: torch.tensor(manifold_precision_recall(x.flatten(1), x.flatten(1))),
    "critic": lambda x: make_networks("dcgan", 16, x.shape[1], 4, 4)[1](x),
}
for name, make in GROUND_METRICS.items():
    FUNCTIONS[f"penalty, {name}"] = lambda x, make=make: gradient_penalty(slope, x, x.flip(0), make()).norm
for name, kind in perturbation.PERTURBATIONS.items():
    FUNCTIONS[f"perturb, {name}"] = lambda x, name=name, kind=kind: perturbation.perturb(x, name, kind.strongest / 2)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_odd_images_give_a_finite_result_or_an_error_that_says_what_was_wrong(function, tally):
    for name, images in IMAGES.items():
        tally("inputs", "odd images")
        try:
            result = FUNCTIONS[function](images)
        except ValueError as error:
            assert 10 < len(str(error)) < 500 and "\n" not in str(error).strip(), (name, str(error))
            continue
        assert result.float().isfinite().all() or name in ("not a number", "infinite"), f"{name}: {result}"


NASTY = ["", " ", "1" * 400, "a\nb", "$(touch owned)", "`touch owned`", "; touch owned"]
NASTY += "nan inf -1 0 1e309 None [] {} ../../up /dev/full ü🙂 -- %s%n true".split()
NAMES = [*(f.name for f in fields(TrainConfig)), "stepz", "Steps", "run dir", "preset"]
TYPED = st.one_of(st.floats(), st.integers(), st.booleans(), st.lists(st.floats(), max_size=3), st.none())


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))


@settings(quiet, max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from(NAMES), st.one_of(st.sampled_from(NASTY), st.text(max_size=12), TYPED), min_size=1, max_size=4
    )
)
def test_malformed_options_are_refused_with_one_line_and_nothing_is_written(tmp_path, tally, capsys, options):
    """On the command line, where all are texts, and with their types, as papermill gives them."""
    before = listing(tmp_path)
    given = dict(dataset="folder:nowhere", run_dir="run", data_dir="data", steps="1") | options
    tally("inputs", "malformed options")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        code = training.main([f"--{name}={value}" for name, value in given.items()])
        error = capsys.readouterr().err
        assert code in (1, 2) and error.startswith("error: ") and "Traceback" not in error, (code, error)
        with pytest.raises((ValueError, FileNotFoundError), match="."):
            training.train(run_config(**given), progress=False)
        assert listing(tmp_path) == before


@pytest.mark.parametrize("dataset", ["folder:../../etc", "digits", "folder:a/../b"])
def test_automatic_names_of_runs_stay_in_data_runs(tmp_path, monkeypatch, dataset):
    monkeypatch.setattr(runs, "project_root", lambda: tmp_path)
    made = runs.make_run_folder(make_config("smoke", dataset=dataset, size=16))
    assert made.parent == tmp_path / "data" / "runs" and made.is_dir()
