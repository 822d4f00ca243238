"""Scores against torch-fidelity's command; what they are of, what they notice and what they refuse."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from wwgan import evaluation, training
from wwgan.data import load_images, preparation
from wwgan.evaluation import (
    FEATURES,
    Evaluator,
    check_features,
    frechet_distance,
    image_features,
    kernel_distance,
    main_score,
    manifold_precision_recall,
    scores,
)
from wwgan.runs import run_config
from wwgan.settings import make_config
from wwgan.training import train

A = torch.ones(5, 2, dtype=torch.float64)
DISTANCES = [frechet_distance, kernel_distance, manifold_precision_recall]


def pictures(n, seed=0, channels=3, size=16):
    """Smooth coloured random images, uint8."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 4, 4, generator=random)
    fine = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)
    return (255 * fine).clamp(0, 255).to(torch.uint8)


def of(images, name="pixels"):
    return image_features(images, name, progress=False)["features"]


@pytest.fixture(scope="module")
def digits(data_dir):
    return load_images("digits", data_dir, 16)


def test_offline_features_recognise_a_photograph():
    """Weights, preprocessing and network belong together: a temple is seen as one, though the picture is small."""
    from sklearn.datasets import load_sample_image

    square = torch.tensor(load_sample_image("china.jpg").copy())[:, 106:533].permute(2, 0, 1)[None]
    lite = evaluation.EfficientNetLite0(check_features("efficientnet"))
    likeliest = lite.network._fc(*lite(square))[0].topk(5).indices.tolist()
    bell_cote, monastery, palace, stupa = 442, 663, 698, 832
    assert {bell_cote, monastery, palace, stupa} <= set(likeliest)


@pytest.mark.parametrize("name, width", [("efficientnet", 1280), ("pixels", 768)])
def test_features_depend_neither_on_batches_nor_on_neighbours_and_draw_nothing(name, width):
    images, before = pictures(20), torch.get_rng_state()
    evaluation._network.cache_clear()
    found = of(images, name)
    assert found.shape == (20, width) and found.dtype == torch.float32
    torch.testing.assert_close(image_features(images, name, batch_size=7)["features"], found, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(of(images[3:5], name), found[3:5], rtol=1e-4, atol=1e-5)
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """Random weights in the file format of the real ones: everything but the numbers' meaning."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", lambda *a, **k: None)
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *a, **k: None)
        network = FeatureExtractorInceptionV3("any", ["2048"], feature_extractor_weights_path="any")
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def as_if_standard(monkeypatch):
    monkeypatch.setattr(evaluation, "_INCEPTION_SHA256", "")


@pytest.mark.slow
def test_inception_scores_equal_the_command_of_torch_fidelity(tmp_path, inception_weights, as_if_standard):
    sets = dict(generated=pictures(24, 0), real=pictures(24, 1))
    for name, images in sets.items():
        (tmp_path / name).mkdir()
        for k, image in enumerate(images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / name / f"{k:03d}.png")
    command = [Path(sys.executable).parent / "fidelity", "--cpu", "--json", "--silent", "--no-cache", "--save-cpu-ram"]
    command += ["--isc", "--fid", "--kid", "--prc", "--kid-subset-size", "24", "--feature-extractor"]
    command += ["inception-v3-compat", "--feature-extractor-weights-path", inception_weights]
    command += ["--input1", tmp_path / "generated", "--input2", tmp_path / "real"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    theirs = json.loads(result.stdout)
    found = scores(**sets, features="inception", weights=inception_weights, progress=False)
    assert found["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert found["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert found["kid_std"] == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-2, abs=1e-7)
    assert (found["precision"], found["recall"]) == pytest.approx((theirs["precision"], theirs["recall"]))
    assert found["inception_score"] == pytest.approx(theirs["inception_score_mean"], rel=1e-4)


def test_only_scores_in_inception_features_are_called_fid_and_kid(inception_weights, as_if_standard, digits):
    options = dict(features="inception", weights=inception_weights, progress=False)
    evaluator = Evaluator(pictures(8), samples=4, **options)
    found = evaluator(pictures(4, 1))
    names = ["fid", "kid", "kid_std", "precision", "recall", "inception_score", "inception_score_std"]
    assert list(found["scores"]) == list(found["floor"]) == names
    assert main_score(found) == found["scores"]["fid"]
    assert len(found["protocol"]["weights_sha256"]) == 64
    others = [name for space in (FEATURES["efficientnet"], FEATURES["pixels"]) for name in space]
    assert not any("fid" in name or "kid" in name for name in others)
    both = scores(digits[:50], digits[50:100], "pixels", progress=False)
    assert list(both) == ["frechet", "kernel", "kernel_std", "precision", "recall"]


@pytest.mark.parametrize("given", [True, False])
def test_missing_inception_weights_are_an_error_that_says_what_to_put_where(tmp_path, monkeypatch, given):
    def no_network(url):
        raise OSError("no route to host")

    monkeypatch.setattr(evaluation, "reach", no_network)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    where = tmp_path / ("mine.pth" if given else "hub/checkpoints/weights-inception-2015-12-05-6726825d.pth")
    with pytest.raises(FileNotFoundError) as error:
        scores(pictures(4), pictures(4), "inception", weights=where if given else None)
    assert not [part for part in (str(where), "https://", "efficientnet") if part not in str(error.value)]
    assert not list(tmp_path.iterdir())


def test_other_weights_are_refused_before_they_are_read(tmp_path, monkeypatch):
    (tmp_path / "weights.pth").write_bytes(b"other")
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("they were read"))
    with pytest.raises(ValueError, match="does not hold the weights of FID"):
        image_features(pictures(2), "inception", tmp_path / "weights.pth")


def make_evaluator(images, **changes):
    return Evaluator(images, **dict(features="pixels", samples=50, progress=False) | changes)


def test_scores_are_of_all_real_images_and_the_floor_of_as_many_against_the_others(digits):
    evaluator = make_evaluator(digits, samples=300)
    generated = 255 - digits[:300]
    found = evaluator(generated)
    assert found["scores"]["frechet"] == pytest.approx(frechet_distance(of(generated), of(digits)), rel=1e-9)
    assert found["scores"]["frechet"] == scores(generated, digits, "pixels", progress=False)["frechet"]
    order = torch.randperm(1500, generator=torch.Generator().manual_seed(0))
    assert found["floor"]["frechet"] == pytest.approx(frechet_distance(*map(of, digits[order].split([300, 1200]))))
    assert abs(found["floor"]["kernel"]) < 0.1 * found["scores"]["kernel"]
    assert [found["protocol"][f"{name}samples"] for name in ("", "real_", "floor_")] == [300, 1500, 300]


def test_precision_recall_and_kernel_compare_equal_counts(digits):
    evaluator = make_evaluator(digits[:400], samples=350)  # leaves 200 real images to compare with: half at most
    found, generated, subset = evaluator(digits[:350])["scores"], of(digits[:200]), evaluator.reference.subset
    assert len(subset) == evaluator.protocol["floor_samples"] == 200
    assert (found["precision"], found["recall"]) == manifold_precision_recall(generated, subset)
    assert found["kernel"] == kernel_distance(generated, subset, 10)[0]


def test_a_bound_draws_the_same_real_images_every_time_and_the_protocol_says_so(digits):
    order = torch.randperm(1500, generator=torch.Generator().manual_seed(0))
    drawn = make_evaluator(digits[order[:100].sort().values])
    found = make_evaluator(digits, real=100)
    assert (
        found.reference.floor == drawn.reference.floor and found(digits[:50])["scores"] == drawn(digits[:50])["scores"]
    )
    assert found.protocol == drawn.protocol | dict(real_choice="100 of 1500, drawn with seed 0")
    assert make_evaluator(digits, real=1500).protocol == make_evaluator(digits).protocol  # nothing left to draw
    recorded = set("features weights_sha256 resize samples real_samples image_shape real_sha256 kernel".split())
    assert drawn.protocol.keys() == recorded | {"floor_samples"}  # as in data/results


@pytest.fixture
def computed(monkeypatch):
    """One entry for each time that statistics of real images are computed."""
    entries, original = [], Evaluator._make_reference
    monkeypatch.setattr(Evaluator, "_make_reference", lambda self, x: entries.append(1) or original(self, x))
    return entries


def test_statistics_are_kept_by_content(tmp_path, digits, computed):
    first, again = (make_evaluator(digits, cache_dir=tmp_path, about=dict(split="train")) for _ in range(2))
    assert len(computed) == 1 and again.protocol == first.protocol and again(digits[:50]) == first(digits[:50])
    for changes in (dict(samples=60), dict(real=100)):
        make_evaluator(digits, cache_dir=tmp_path, **changes)
    make_evaluator(digits.flip(0), cache_dir=tmp_path)
    assert len(computed) == len(list(tmp_path.glob("*.pt"))) == 4
    assert make_evaluator(digits).reference.floor == first.reference.floor


def test_damaged_statistics_are_noticed_named_and_computed_anew(tmp_path, digits, computed, capsys):
    """Every kind of damage to them, test_reliability.py tries, and to checksums test_files.py."""
    first = make_evaluator(digits[:40], samples=10, cache_dir=tmp_path)
    (path,) = tmp_path.glob("*.pt")
    whole = path.read_bytes()
    path.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    assert make_evaluator(digits[:40], samples=10, cache_dir=tmp_path).protocol == first.protocol
    assert len(computed) == 2 and f"{path} is damaged" in capsys.readouterr().err
    assert path.read_bytes() == whole and list(tmp_path.glob("*.pt")) == [path]


def test_a_score_that_is_not_finite_is_not_returned(digits, monkeypatch):
    evaluator = make_evaluator(digits[:40], samples=10)
    monkeypatch.setattr(evaluation, "gaussian_distance", lambda a, b: float("nan"))
    with pytest.raises(ValueError, match="scores must be finite, got {'frechet': nan"):
        evaluator(digits[:10])


@pytest.mark.parametrize(
    "call, words",
    [
        *((lambda x, f=f: f(x.flatten(1), x[0]), "features must be") for f in DISTANCES),
        *((lambda x, f=f: f(A, torch.full((5, 2), float("nan"))), "finite") for f in DISTANCES),
        (lambda x: frechet_distance(A[:1], A), "features must be"),
        (lambda x: frechet_distance(A, torch.full((5, 2), float("inf"))), "finite"),
        (lambda x: make_evaluator(x, features="pixel"), "did you mean 'pixels'"),
        (lambda x: make_evaluator(x.float()), "real images must be at least two uint8 images"),
        (lambda x: make_evaluator(x.expand(-1, 2, -1, -1)), r"\(40, 2, 16, 16\)"),
        (lambda x: make_evaluator(x[:7]), "at least 8 real images and 4 samples, got 7 and 50"),
        (lambda x: make_evaluator(x, samples=3), "at least 8 real images and 4 samples, got 40 and 3"),
        (lambda x: make_evaluator(x)(x), r"expected 50 images of shape \(1, 16, 16\), got \(40, 1, 16, 16\)"),
        (lambda x: make_evaluator(x, samples=40)(x.float()), "generated images must be at least two uint8 images"),
        (lambda x: image_features(x, "pixels", "weights.pth"), "weights belong to the inception features"),
        (lambda x: scores(x[:3], x, "pixels"), "4 images in each set, got 3"),
        (lambda x: scores(x, x.float(), "pixels"), "real images must be"),
        (lambda x: scores(x, x[..., 1:], "pixels"), "features must be"),
    ],
)
def test_wrong_input_is_refused(call, words, digits):
    with pytest.raises(ValueError, match=words):
        call(digits[:40])


def test_a_run_compares_with_as_many_real_images_as_it_is_told_and_goes_on_so(smoke):
    """Recorded runs have no bound, and 0 asks for none where a preset has one."""
    settings = dict(eval_interval=2, eval_features="pixels", eval_samples=40, eval_real=100)
    run = train(smoke(steps=2, **settings), progress=False)
    again = train(run_config(run_dir=run.run_dir, resume=True, steps=4), progress=False)
    assert [line["protocol"]["real_choice"] for line in again.evaluations] == ["100 of 1500, drawn with seed 0"] * 2
    assert again.evaluations[0]["floor"] == again.evaluations[1]["floor"]
    bounds = [make_config(preset).eval_real for preset in ("paper", "quick", "smoke")]
    assert bounds == [10_000, 10_000, None] and make_config("quick", eval_real=0).eval_real is None


def test_protocol_says_that_images_were_padded(digits, tmp_path):
    for dataset, size, said in (("mnist", 32, "padded from 28 to 32 pixels"), ("digits", 16, None)):
        given = dict(dataset=dataset, size=size, eval_features="pixels", eval_samples=40, data_dir=tmp_path)
        protocol = training.make_evaluator(make_config("smoke", **given), digits[:40], progress=False).protocol
        assert protocol.get("preparation") == said and protocol["dataset"] == dataset
    assert preparation("kmnist", 16)["preparation"] == "padded from 28 to 32 pixels, resized to 16"
