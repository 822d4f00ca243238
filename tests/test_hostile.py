"""Odd images, and malformed input at every entry point: a result, or one clear error; nothing half-made."""

import json
import os
import shutil
import tarfile
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import torchvision.datasets.utils as downloads
from conftest import ROOT
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from wwgan import runs, sources, training
from wwgan.data import load_images, to_float, to_uint8
from wwgan.evaluation import frechet_distance, image_features, kernel_distance, manifold_precision_recall
from wwgan.evidence import cost, perturbation, probe, study
from wwgan.graph import PixelGraph
from wwgan.metric import WassersteinMetric, wasserstein2
from wwgan.networks import make_networks
from wwgan.penalty import GROUND_METRICS, critic_gradient, gradient_penalty
from wwgan.points import intensity, penalty_points
from wwgan.runs import image_grid, load_checkpoint, run_config, save_checkpoint
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


def flat_critic(x):
    """A critic with none."""
    return (0 * x).sum((1, 2, 3))


def profile(x, path):
    return probe.path_profile(slope, path, torch.tensor(1.0), torch.ones(len(x), 2))


def ramp_of(x):
    return torch.linspace(-1, 1, x.numel()).view(x.shape)


def masses(x):
    """The first image's first channel as mass; of no image, none."""
    return (x[:1, :1].sum((0, 1)).double() + 1) / 2


FUNCTIONS = {
    "to_float": lambda x: to_float(to_uint8(x)),
    "intensity": intensity,
    "image_grid": image_grid,
    "energy": lambda x: PixelGraph(*x.shape[-2:]).energy((x + 1) / 2, ramp_of(x)),
    "apply": lambda x: PixelGraph(*x.shape[-2:]).apply((x + 1) / 2, ramp_of(x)),
    "laplacian": lambda x: PixelGraph(*x.shape[-2:]).laplacian(masses(x)),
    "metric norm": lambda x: WassersteinMetric(PixelGraph(*x.shape[-2:])).norm(masses(x), 0 * masses(x)),
    "wasserstein2": lambda x: torch.tensor(wasserstein2(masses(x), masses(x).flip(0))),
    "critic_gradient": lambda x: critic_gradient(slope, x),
    "penalty_points": lambda x: penalty_points(x, x.flip(0)),
    "penalty, zero gradient": lambda x: gradient_penalty(flat_critic, x, x, GROUND_METRICS["wasserstein"]()).norm,
    "displacement": lambda x: perturbation.displacement(x, x.flip(2)).wasserstein,
    "matched": lambda x: sum((m.images[0].sum() for m in perturbation.matched(x, [0.1]).values()), torch.zeros(())),
    "perturbation_path": lambda x: probe.perturbation_path(x, "translation", 1.0, 2),
    "cross_fade": lambda x: probe.cross_fade(x, x.flip(0)),
    "geodesic_path": lambda x: probe.geodesic_path(x[:, :, :8, :8], x[:, :, :8, :8].flip(2), 2),
    "piece_lengths": lambda x: probe.piece_lengths(probe.cross_fade(x, x.flip(2), 2)[:1].flatten(0, 1)),
    "response": lambda x: probe.response(slope, x, x.flip(2)),
    "response of a flat critic": lambda x: probe.response(flat_critic, x, x.flip(2)),
    "separation": lambda x: torch.tensor(probe.separation(slope, x, x.flip(2))),
    "path_profile": lambda x: profile(x, probe.cross_fade(x, x.flip(2), 2)).variation,
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
        tally["odd images"] += 1
        try:
            result = FUNCTIONS[function](images)
        except ValueError as error:
            assert 10 < len(str(error)) < 500 and "\n" not in str(error).strip(), (name, str(error))
            continue
        finite = result.float().isfinite().all()
        assert finite or name in ("not a number", "infinite"), f"{name}: {result}"


NASTY = ["", " ", "1" * 400, "a\nb", "$(touch owned)", "`touch owned`", "; touch owned"]
NASTY += "nan inf -1 0 1e309 None [] {} ../../up /dev/full ü🙂 -- %s%n true".split()
NAMES = [f.name for f in fields(TrainConfig)]


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))


@quiet
@given(
    st.dictionaries(
        st.one_of(st.sampled_from(NAMES), st.sampled_from(["stepz", "Steps", "run dir", "preset"])),
        st.one_of(st.sampled_from(NASTY), st.text(max_size=12)),
        min_size=1,
        max_size=4,
    )
)
def test_command_line_refuses_malformed_options_with_one_line_and_writes_nothing(tmp_path, tally, capsys, options):
    tally["malformed command lines"] += 1
    before, where = listing(tmp_path), os.getcwd()
    os.chdir(tmp_path)
    try:
        fixed = dict(dataset="folder:nowhere", run_dir="run", data_dir="data", steps="1")
        code = training.main([f"--{name}={value}" for name, value in (fixed | options).items()])
    finally:
        os.chdir(where)
    error = capsys.readouterr().err
    assert code in (1, 2) and error.startswith("error: ") and "Traceback" not in error, (code, error)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("module", [training, study, cost], ids=lambda module: module.__name__)
def test_modules_refuse_an_unknown_option(tmp_path, monkeypatch, capsys, module):
    monkeypatch.chdir(tmp_path)
    try:
        code = module.main(["--no-such-option"])
    except SystemExit as ended:  # so does argparse
        code = ended.code
    assert code == 2 and "error: " in capsys.readouterr().err and listing(tmp_path) == []


@quiet
@given(st.data())
def test_any_damage_to_a_checkpoint_is_noticed(finished, tmp_path, tally, data):
    tally["damaged checkpoints"] += 1
    for name in ("step_0000006.pt", "step_0000006.pt.sha256"):
        shutil.copy(finished.run_dir / "checkpoints" / name, tmp_path)
    path = tmp_path / "step_0000006.pt"
    assert load_checkpoint(path)["step"] == 6
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[position:]
    else:
        content[position] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with pytest.raises(ValueError, match="step_0000006.pt is damaged"):
        load_checkpoint(path)


PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)


@quiet
@given(PLAIN)
@example(dict(step=4, config=dict(lr="fast")))
@example(dict(config={}))
def test_foreign_checkpoints_with_a_right_checksum_are_refused(tmp_path, tally, content):
    tally["foreign checkpoints"] += 1
    save_checkpoint(tmp_path / "step_0000001.pt", content)
    with pytest.raises(ValueError, match="step_0000001.pt is not a checkpoint of a run|lr must be a number"):
        load_checkpoint(tmp_path / "step_0000001.pt")


READERS = {
    "study.json": lambda path: study.read_study(path),
    "config.json": lambda path: run_config(resume=True, run_dir=path.parent),
    "metrics.jsonl": lambda path: runs.read_metrics(path.parent),
    "evaluations.jsonl": lambda path: runs.read_evaluations(path.parent),
}


@pytest.mark.parametrize("name", READERS)
@quiet
@given(content=st.one_of(st.binary(max_size=60), PLAIN.map(lambda value: json.dumps(value).encode() + b"\n")))
def test_malformed_files_are_refused_by_name(tmp_path, tally, name, content):
    tally["malformed files"] += 1
    (tmp_path / name).write_bytes(content)
    try:
        READERS[name](tmp_path / name)
    except (ValueError, FileNotFoundError) as error:
        assert name in str(error) or f"the records in {tmp_path}" in str(error), error


def test_no_shell_and_no_server_anywhere():
    words = ["shell=True", "os.system", "os.popen", "= eval(", "import pickle", "weights_only=False", "0.0.0.0"]
    for path in (ROOT / "wwgan").rglob("*.py"):
        assert not [word for word in words if word in path.read_text()], path


def test_names_of_a_study_stay_in_its_folder():
    for name in ("../up", "a/b", ".hidden", "", "a\0b", "..", "C:\\x"):
        with pytest.raises(ValueError, match="names of settings"):
            study.Study({}, {name: {}}, [0])


@pytest.mark.parametrize("dataset", ["folder:../../etc", "digits", "folder:a/../b"])
def test_automatic_names_of_runs_stay_in_data_runs(tmp_path, monkeypatch, dataset):
    monkeypatch.setattr(runs, "project_root", lambda: tmp_path)
    made = runs.make_run_folder(make_config("smoke", dataset=dataset, size=16))
    assert made.parent == tmp_path / "data" / "runs" and made.is_dir()


def test_tampered_archives_are_refused_before_anything_is_unpacked(tmp_path, monkeypatch, tally):
    tally["tampered archives"] += 1

    def tampered(url, filename, *arguments, **options):
        with tarfile.open(filename, "w:gz") as archive:
            for name in ("../../owned", "/owned", "cifar-10-batches-py/data_batch_1"):
                archive.addfile(tarfile.TarInfo(name))

    monkeypatch.setattr(sources, "reach", lambda url: None)
    monkeypatch.setattr(downloads, "_get_redirect_url", lambda url, **options: url)
    monkeypatch.setattr(downloads, "_urlretrieve", tampered)
    with pytest.raises(FileNotFoundError, match="not found or corrupted"):
        load_images("cifar10", tmp_path / "data")
    assert listing(tmp_path) == [] and not Path("/owned").exists()


NAMES_OF_FILES = [
    "a\nb.jpg",
    "-rf.jpg",
    "ü🙂.png",
    " .jpg",
    "$(touch owned).jpg",
    "..jpg",
    "%s.png",
    f"{'a' * 200}.jpg",
]


@quiet
@given(st.dictionaries(st.sampled_from(NAMES_OF_FILES), st.binary(max_size=200), min_size=1, max_size=3))
def test_folders_of_broken_pictures_are_refused_by_name_and_leave_nothing(tmp_path_factory, tally, files):
    tally["broken data sets"] += 1
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "in").mkdir()
    for name, content in files.items():
        (folder / "in" / name).write_bytes(content)
    before = listing(folder)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_images(f"folder:{folder / 'in'}", folder / "data", 16)
    assert str(folder / "in") in str(error.value)
    made = [name for name in listing(folder) if name not in (*before, "data", "data/cache")]
    assert [name for name in made if not name.endswith(".lock")] == []
