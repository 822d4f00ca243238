"""The metric tensor, geodesics and exact transport against definitions and closed forms."""

from math import sqrt

import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from wwgan.graph import PixelGraph
from wwgan.metric import (
    WassersteinMetric,
    solve_laplacian,
    wasserstein2,
)


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blob(height, width, y, x, radius):
    rows, columns = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    image = torch.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * radius**2))
    return image / image.sum()


def tangent(*shape, seed):
    s = rand(*shape, seed=seed)
    return s - s.mean()


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 6), st.integers(2, 6), st.integers(1, 3), st.booleans(), st.sampled_from((0.0, 0.1, 1.0)),
    st.sampled_from((0.0, 0.02, 1.0)), st.integers(0, 10**6),
)  # fmt: skip
def test_inner_product_is_the_inverse_and_gradient_its_gradient(height, width, radius, normalized, l2, mass, seed):
    graph = PixelGraph(height, width, "moore", radius)
    metric = WassersteinMetric(graph, normalized, l2, mass)
    X, df = rand(height, width, seed=seed) + 0.05, rand(height, width, seed=seed + 1)
    changes = rand if l2 or mass else tangent  # with sources any change has a speed
    s, t = changes(height, width, seed=seed + 2), changes(height, width, seed=seed + 3)
    cometric = graph.laplacian(X, degree_normalized=normalized) + l2 * torch.eye(graph.n, dtype=torch.float64) + mass
    pinv = torch.linalg.pinv(cometric, hermitian=True)
    close = dict(rtol=1e-9, atol=1e-10)
    assert_close(metric.inner(X, s, t), s.flatten() @ pinv @ t.flatten(), **close)
    assert_close(metric.norm(X, s) ** 2, metric.inner(X, s, s), **close)
    gradient = metric.gradient(X, df)
    assert_close(metric.inner(X, gradient, s), (df * s).sum(), **close)
    energy = graph.energy(X, df, normalized) + l2 * df.square().sum() + mass * df.sum() ** 2
    assert_close(metric.norm(X, gradient) ** 2, energy, **close)


def test_the_unit_is_the_root_of_the_pixel_scale():
    for neighborhood, radius, scale in (("von_neumann", 1, 1), ("moore", 1, 3), ("von_neumann", 2, 7)):
        metric = WassersteinMetric(PixelGraph(20, 20, neighborhood, radius))
        assert metric.pixel_scale.tolist() == [[scale, 0], [0, scale]] and metric.unit == sqrt(scale)
    assert WassersteinMetric(PixelGraph(20, 1)).unit == sqrt(5)


def test_distance_is_symmetric_goes_with_the_root_of_the_mass_and_is_a_length():
    metric = WassersteinMetric(PixelGraph(10, 11, radius=1))
    a, b = blob(10, 11, 3, 3, 1.2), blob(10, 11, 6, 7, 1.2)
    distance, path = metric.distance(a, b, steps=4), metric.geodesic(a, b, steps=4)
    assert path.shape == (5, 10, 11) and abs(metric.distance(b, a, steps=4) - distance) < 1e-4 * distance
    assert abs(metric.distance(4 * a, 4 * b, steps=4) - 2 * distance) < 1e-4 * distance
    assert_close(metric.path_length(path), metric.path_length(path[:3]) + metric.path_length(path[2:]))
    assert abs(metric.path_length(path) - distance) < 2e-3 * distance


def test_geodesic_distance_agrees_with_exact_transport():
    metric = WassersteinMetric(PixelGraph(8, 8, "moore", 1))
    a, b = blob(8, 8, 2.5, 2.5, 1.2), blob(8, 8, 4.5, 4.5, 1.2)
    assert 0 < metric.unit * metric.distance(a, b, steps=4) / wasserstein2(a, b) - 1 < 0.03


def test_exact_transport_in_one_dimension_is_the_quantile_formula():
    points_a, points_b = torch.tensor([0, 2, 5, 5, 9]), torch.tensor([1, 1, 4, 8, 9])  # five units of mass each
    a, b = torch.zeros(2, 1, 10, dtype=torch.float64)
    a[0].index_add_(0, points_a, torch.ones(5, dtype=torch.float64))
    b[0].index_add_(0, points_b, torch.ones(5, dtype=torch.float64))
    assert abs(wasserstein2(a, b) - (points_a - points_b).double().norm().item()) < 1e-9


def test_disconnected_support_is_solved_where_it_can_be_and_refused_where_not():
    X = torch.tensor([[1.0, 1, 0, 0, 0, 1, 1]], dtype=torch.float64)
    metric = WassersteinMetric(PixelGraph(1, 7, radius=1))
    within = torch.tensor([[1.0, -1, 0, 0, 0, 2, -2]], dtype=torch.float64)
    pinv = torch.linalg.pinv(metric.graph.laplacian(X, degree_normalized=False), hermitian=True)
    assert_close(metric.potential(X, within).flatten(), pinv @ within.flatten(), rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="connected parts"):
        metric.norm(X, torch.tensor([[1.0, 0, 0, 0, 0, 0, -1]], dtype=torch.float64))


def test_sinkhorn_that_does_not_converge_is_refused(monkeypatch):
    sinkhorn = ot.sinkhorn
    monkeypatch.setattr(ot, "sinkhorn", lambda *a, numItermax, **more: sinkhorn(*a, numItermax=20, **more))
    with pytest.raises(ValueError, match="converge .* larger epsilon"):
        wasserstein2(blob(3, 3, 0, 0, 1), blob(3, 3, 2, 2, 1), epsilon=1e-2)


ONE, METRIC = torch.full((3, 4), 1 / 12, dtype=torch.float64), WassersteinMetric(PixelGraph(3, 4))
ZERO = torch.zeros_like(ONE)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: WassersteinMetric("graph"), ("PixelGraph", "str")),
        (lambda: METRIC.norm(-ONE, ZERO), ("negative",)),
        (lambda: METRIC.norm(ONE, ZERO[:2]), ("(3, 4)", "(2, 4)")),
        (lambda: METRIC.norm(ONE * torch.nan, ZERO), ("finite",)),
        (lambda: METRIC.norm(ONE, ZERO + 1), ("sum to zero",)),
        (lambda: METRIC.gradient(-ONE, ZERO), ("negative",)),
        (lambda: METRIC.path_length(ONE), ("(T, H, W)", "(3, 4)")),
        (lambda: METRIC.path_length(torch.stack([ONE, 2 * ONE])), ("sum to zero",)),
        (lambda: METRIC.geodesic(ONE, 2 * ONE), ("equal, positive mass", "1.0", "2.0", "l2 or mass")),
        (lambda: METRIC.distance(ONE, -ONE), ("negative",)),
        (lambda: WassersteinMetric(PixelGraph(3, 4), l2=-1.0), ("l2", "-1")),
        (lambda: WassersteinMetric(PixelGraph(3, 4), mass=torch.inf), ("mass", "inf")),
        (lambda: WassersteinMetric(PixelGraph(1, 1)).unit, ("no single length",)),
        (lambda: WassersteinMetric(PixelGraph(9, 9, weight=lambda dy, dx: 2.0 + dx)).unit, ("no single length",)),
        (lambda: METRIC.distance(ONE, ONE, steps=1), ("steps", "1")),
        (lambda: METRIC.distance(ZERO, ZERO), ("positive mass",)),
        (lambda: wasserstein2(ONE, 2 * ONE), ("equal, positive mass",)),
        (lambda: wasserstein2(ONE, ONE.T), ("same shape", "(3, 4)", "(4, 3)")),
        (lambda: wasserstein2(-ONE, -ONE), ("not negative",)),
        (lambda: wasserstein2(ONE, ONE, epsilon=-1), ("epsilon", "-1")),
        (lambda: wasserstein2(ONE[None, None], ONE[None, None]), ("(C, H, W)", "(1, 1, 3, 4)")),
        (
            lambda: solve_laplacian(PixelGraph(2, 2).laplacian(torch.ones(2, 2), "sparse"), torch.ones(4)),
            ("sum to zero",),
        ),
    ],
)
def test_bad_input_is_refused_by_name(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words), error.value
