"""Scores against closed forms, other routes and torch-fidelity's command; what they notice and what they refuse."""

import json
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm

from wwgan import evaluation
from wwgan.data import load_images
from wwgan.evaluation import (
    FEATURES,
    Evaluator,
    fid,
    frechet_distance,
    image_features,
    inception_score,
    kernel_distance,
    kid,
    main_score,
    make_extractor,
    manifold_precision_recall,
    precision_recall,
)


def features(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(n, mean, std, seed):
    """Samples whose mean and covariance, diag(std^2), are exact."""
    x = features(n, len(mean), seed)
    return torch.linalg.qr(x - x.mean(0)).Q * (n - 1) ** 0.5 * std + mean


def pictures(n, seed=0, channels=3, size=16):
    """Smooth coloured random images, uint8."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 4, 4, generator=random)
    fine = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)
    return (255 * fine).clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def digits(data_dir):
    return load_images("digits", data_dir, 16)


def test_diagonal_gaussians():
    mean_a, mean_b, std_a, std_b = features(4, 5).abs()
    a, b = with_moments(30, mean_a, std_a, 1), with_moments(40, mean_b, std_b, 2)
    expected = ((mean_a - mean_b) ** 2 + (std_a - std_b) ** 2).sum().item()
    assert abs(frechet_distance(a, b) - expected) < 1e-10


@pytest.mark.parametrize("n, m", [(100, 60), (6, 9)])
def test_common_route(n, m):
    a, b = features(n, 8), features(m, 8, 1) @ features(8, 8, 2) + 1
    root = sqrtm((a.T.cov() @ b.T.cov()).numpy()).real.trace()
    expected = (a.mean(0) - b.mean(0)).square().sum() + a.T.cov().trace() + b.T.cov().trace() - 2 * root
    assert abs(frechet_distance(a, b) / expected.item() - 1) < 1e-5
    assert abs(frechet_distance(a, b) - frechet_distance(b, a)) < 1e-9


def test_equal_sets_and_growing_noise():
    a = features(200, 6)
    assert frechet_distance(a, a.flip(0)) < 1e-9
    noisy = [frechet_distance(a, a + s * features(200, 6, 1)) for s in (0.1, 0.5, 1.0, 2.0)]
    assert noisy == sorted(noisy) and noisy[0] > 0


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance, manifold_precision_recall])
@pytest.mark.parametrize(
    "a, b", [(features(5, 2), features(5, 3)), (features(1, 2), features(5, 2)), (features(5, 2)[0], features(5, 2))]
)
def test_wrong_shapes_are_refused(distance, a, b):
    with pytest.raises(ValueError, match="features must be"):
        distance(a, b)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(value):
    for distance in (frechet_distance, kernel_distance, manifold_precision_recall):
        with pytest.raises(ValueError, match="finite"):
            distance(features(5, 2), torch.full((5, 2), value))


def test_kernel_distance_is_unbiased_where_the_frechet_distance_is_not():
    pairs = [(features(20, 4, 2 * k), features(20, 4, 2 * k + 1)) for k in range(200)]
    found = torch.tensor([kernel_distance(a, b, subsets=1)[0] for a, b in pairs])
    assert found.mean().abs() < 3 * found.std() / len(found) ** 0.5
    assert min(frechet_distance(a, b) for a, b in pairs) > 0


def test_precision_and_recall_against_their_definition():
    a, b = features(40, 3), 1.2 * features(30, 3, 1)

    def share_within(x, y):
        radius = torch.cdist(y, y).sort(1).values[:, 3]  # the first is the point itself
        return (torch.cdist(x, y) <= radius).any(1).double().mean().item()

    assert manifold_precision_recall(a, b) == pytest.approx((share_within(a, b), share_within(b, a)))


def test_offline_features_recognise_a_photograph():
    """Weights, preprocessing and network belong together: a temple is seen as one, though the picture is small."""
    from sklearn.datasets import load_sample_image

    network = evaluation.EfficientNetLite0()
    square = torch.tensor(load_sample_image("china.jpg").copy())[:, 106:533].permute(2, 0, 1)[None]
    likeliest = network.network._fc(network(square))[0].topk(5).indices.tolist()
    bell_cote, monastery, palace, stupa = 442, 663, 698, 832
    assert {bell_cote, monastery, palace, stupa} <= set(likeliest)


@pytest.mark.parametrize("name, width", [("efficientnet", 1280), ("pixels", 768)])
def test_features_do_not_depend_on_batches_or_neighbours(name, width):
    images = pictures(20)
    found = image_features(images, name, progress=False)["features"]
    assert found.shape == (20, width) and found.dtype == torch.float32
    torch.testing.assert_close(image_features(images, name, batch_size=7)["features"], found, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(image_features(images[3:5], name)["features"], found[3:5], rtol=1e-4, atol=1e-5)


def test_making_an_extractor_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    make_extractor("efficientnet")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", ["efficientnet", "pixels"])
def test_scores_are_symmetric_zero_on_equal_sets_and_grow_with_damage(name, digits):
    n = 200
    images = digits[:n]
    as_features = lambda x: image_features(x, name)["features"]
    real = as_features(images)
    assert frechet_distance(real, real[torch.randperm(n)]) < 1e-6 * real.square().sum(1).mean()
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    damages = {
        "noise": [(images + s * noise).clamp(0, 255).to(torch.uint8) for s in (15, 40, 100)],
        "blur": [blurred(images, s) for s in (0.6, 1.2, 3.0)],
        "modes": [images[torch.arange(n) % m] for m in (100, 40, 10)],
    }
    for what, sets in damages.items():
        found = [as_features(images) for images in sets]
        distances = [frechet_distance(x, real) for x in found]
        assert 0 < distances[0] and distances == sorted(distances), (what, distances)
        assert abs(frechet_distance(real, found[0]) / distances[0] - 1) < 1e-6
        kernels = [kernel_distance(x, real, 5)[0] for x in found]
        assert kernels == sorted(kernels), (what, kernels)


def blurred(images, width):
    kernel = torch.exp(-(torch.arange(-6, 7.0) ** 2) / (2 * width**2))
    kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
    return torch.nn.functional.conv2d(images.float(), kernel[None, None], padding=6).round().to(torch.uint8)


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
    options = dict(weights=inception_weights, progress=False)
    generated, real = sets.values()
    assert fid(generated, real, **options) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    mean, spread = kid(generated, real, **options)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert spread == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-2, abs=1e-7)
    assert precision_recall(generated, real, **options) == pytest.approx((theirs["precision"], theirs["recall"]))
    assert inception_score(generated, **options)[0] == pytest.approx(theirs["inception_score_mean"], rel=1e-4)


def test_evaluator_in_inception_features_names_its_scores_fid_and_kid(inception_weights, as_if_standard):
    evaluator = Evaluator(pictures(12), "inception", samples=8, weights=inception_weights, progress=False)
    found = evaluator(pictures(8, 1))
    assert list(found["scores"])[:3] == ["fid", "kid", "kid_std"] and "inception_score" in found["scores"]
    assert (
        main_score(found)
        == found["scores"]["fid"]
        == pytest.approx(fid(pictures(8, 1), pictures(12), weights=inception_weights, progress=False), rel=1e-5)
    )
    assert len(found["protocol"]["weights_sha256"]) == 64


@pytest.mark.parametrize("given", [True, False])
def test_missing_inception_weights_are_an_error_in_seconds_that_says_what_to_put_where(tmp_path, monkeypatch, given):
    def no_network(url):
        raise OSError("no route to host")

    monkeypatch.setattr(evaluation, "reach", no_network)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    start = time.monotonic()
    with pytest.raises(FileNotFoundError) as error:
        fid(pictures(2), pictures(2), weights=tmp_path / "mine.pth" if given else None)
    assert time.monotonic() - start < 10
    message = str(error.value)
    where = tmp_path / ("mine.pth" if given else "hub/checkpoints/weights-inception-2015-12-05-6726825d.pth")
    assert str(where) in message and "https://" in message and "efficientnet" in message
    assert not list(tmp_path.iterdir())


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_other_weights_are_refused_and_hostile_ones_run_no_code(tmp_path, monkeypatch):
    path, touched = tmp_path / "weights.pth", tmp_path / "touched"
    path.write_bytes(pickle.dumps(Hostile(touched)))
    with pytest.raises(ValueError, match="does not hold the weights of FID"):
        make_extractor("inception", path)
    monkeypatch.setattr(evaluation, "_INCEPTION_SHA256", "")
    with pytest.raises(pickle.UnpicklingError):
        make_extractor("inception", path)
    assert not touched.exists()


def make_evaluator(images, **changes):
    return Evaluator(images, **dict(features="pixels", samples=50, progress=False) | changes)


def test_floor_is_what_as_many_real_images_score_against_the_others(digits):
    evaluator = make_evaluator(digits, samples=300)
    order = torch.randperm(1500, generator=torch.Generator().manual_seed(0))
    found = [image_features(digits[part], "pixels")["features"] for part in (order[:300], order[300:])]
    assert evaluator.floor["frechet"] == pytest.approx(frechet_distance(*found), rel=1e-6)
    assert evaluator.protocol["floor_samples"] == 300
    assert abs(evaluator.floor["kernel"]) < 0.1 * evaluator(255 - digits[:300])["scores"]["kernel"]
    assert make_evaluator(digits, samples=1400).protocol["floor_samples"] == 750  # half of the real images at most


def test_precision_recall_and_kernel_compare_equal_counts(digits):
    evaluator = make_evaluator(digits, samples=1400)  # leaves 750 real images to compare with
    found = evaluator(digits[:1400])["scores"]
    generated = image_features(digits[:750], "pixels")["features"]
    subset = evaluator.reference.subset
    assert len(subset) == 750
    assert (found["precision"], found["recall"]) == manifold_precision_recall(generated, subset)
    assert found["kernel"] == kernel_distance(generated, subset, 10)[0]


def test_scores_are_of_all_real_images(digits):
    found = make_evaluator(digits, samples=100)(digits[:100].flip(3))
    expected = frechet_distance(*(image_features(x, "pixels")["features"] for x in (digits[:100].flip(3), digits)))
    assert found["scores"]["frechet"] == pytest.approx(expected, rel=1e-9)
    assert found["protocol"]["real_samples"] == 1500 and found["protocol"]["samples"] == 100


def test_statistics_are_kept_by_content_and_made_anew_when_damaged(tmp_path, digits, monkeypatch):
    first = make_evaluator(digits, cache_dir=tmp_path, about=dict(split="train"))
    (path,) = tmp_path.glob("*.pt")
    looked_at = []
    original = Evaluator._make_reference
    monkeypatch.setattr(Evaluator, "_make_reference", lambda self, x: looked_at.append(1) or original(self, x))
    again = make_evaluator(digits, cache_dir=tmp_path, about=dict(split="train"))
    assert not looked_at and again.protocol == first.protocol and again.floor == first.floor
    assert again(digits[:50]) == first(digits[:50])

    make_evaluator(digits.flip(0), cache_dir=tmp_path)
    make_evaluator(digits, cache_dir=tmp_path, samples=60)
    assert len(looked_at) == 2 and len(list(tmp_path.glob("*.pt"))) == 3

    path.write_bytes(path.read_bytes()[:1000])
    assert make_evaluator(digits, cache_dir=tmp_path).floor == first.floor and len(looked_at) == 3
    path.write_bytes(pickle.dumps(Hostile(tmp_path / "touched")))
    assert make_evaluator(digits, cache_dir=tmp_path).floor == first.floor
    assert not (tmp_path / "touched").exists() and len(list(tmp_path.glob("*.pt"))) == 3


def test_a_folder_that_cannot_be_written_keeps_nothing(digits, tmp_path):
    (tmp_path / "file").write_text("")
    assert make_evaluator(digits, cache_dir=tmp_path / "file" / "cache").floor == make_evaluator(digits).floor


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda x: make_evaluator(x, features="pixel"), ValueError, "did you mean 'pixels'"),
        (lambda x: make_evaluator(x.float()), ValueError, "uint8 images"),
        (lambda x: make_evaluator(x[0]), ValueError, "uint8 images"),
        (lambda x: make_evaluator(x.expand(-1, 2, -1, -1)), ValueError, r"\(40, 2, 16, 16\)"),
        (lambda x: make_evaluator(x[:7]), ValueError, "at least 8 real images, got 7"),
        (lambda x: make_evaluator(x, samples=3), ValueError, "at least 4 samples, got 3"),
        (
            lambda x: make_evaluator(x)(x),
            ValueError,
            r"compares 50 images of shape \(1, 16, 16\), got \(40, 1, 16, 16\)",
        ),
        (lambda x: make_extractor("pixels", "weights.pth"), ValueError, "weights belong to the inception features"),
        (lambda x: fid(x, x, features="pixels"), ValueError, "only inception features give the FID"),
        (
            lambda x: inception_score(x, features="efficientnet"),
            ValueError,
            "only inception features give the Inception Score",
        ),
        (lambda x: precision_recall(x[:3], x, features="pixels"), ValueError, "4 images in each set, got 3"),
    ],
)
def test_wrong_input_is_refused(call, error, words, digits):
    with pytest.raises(error, match=words):
        call(digits[:40])


def test_only_inception_features_are_called_fid():
    assert [name for name, space in FEATURES.items() if "fid" in space.frechet or "kid" in space.kernel] == [
        "inception"
    ]
