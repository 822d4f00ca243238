"""The Frechet distance against closed forms and the common route by a matrix root."""

import pytest
import torch
from scipy.linalg import sqrtm

from wwgan.evaluation import frechet_distance


def features(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(n, mean, std, seed):
    """Samples whose mean and covariance, diag(std^2), are exact."""
    x = features(n, len(mean), seed)
    return torch.linalg.qr(x - x.mean(0)).Q * (n - 1) ** 0.5 * std + mean


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


@pytest.mark.parametrize(
    "a, b", [(features(5, 2), features(5, 3)), (features(1, 2), features(5, 2)), (features(5, 2)[0], features(5, 2))]
)
def test_wrong_shapes_are_refused(a, b):
    with pytest.raises(ValueError, match="features must be"):
        frechet_distance(a, b)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(features(5, 2), torch.full((5, 2), value))
