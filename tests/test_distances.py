"""Distances with sources: closed forms, bounds and limits, the solver's word on what it found."""

from math import sqrt
from types import SimpleNamespace

import clarabel
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from wwgan.graph import PixelGraph
from wwgan.metric import WassersteinMetric


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def two_pixels(l2, mass):
    """Distance of (1, 0) and (0, 1): on the plane of total mass and half the difference, by Clairaut's constant."""
    creation, first = 2 * (l2 + 2 * mass), 1 + l2

    def half_way(last):
        w = sqrt(1 - first / last)
        return sqrt(2) * last**1.5 * (w - w**3 / 3) / sqrt(creation), 2 * last * w / sqrt(creation)

    return 2 * half_way(brentq(lambda last: half_way(last)[0] - 0.5, first * (1 + 1e-12), 1e6 * first))[1]


@pytest.mark.parametrize("l2, mass", [(0.5, 0.0), (0.0, 0.3), (2.0, 0.3), (0.0, 5.0)])
def test_two_pixels_against_the_closed_form(l2, mass):
    metric = WassersteinMetric(PixelGraph(1, 2, radius=1), l2=l2, mass=mass)
    a, b = torch.eye(2, dtype=torch.float64)[:, None]
    errors = [metric.distance(a, b, steps) / two_pixels(l2, mass) - 1 for steps in (16, 32)]
    assert abs(errors[1]) < 2e-4 and 3 < errors[0] / errors[1] < 5  # of second order in the step of time


@pytest.mark.parametrize("l2, mass", [(0.0, 0.0), (0.3, 0.0), (0.0, 0.02), (0.3, 0.02)])
def test_small_steps_have_the_length_of_the_tangent(l2, mass):
    graph, X = PixelGraph(4, 5), rand(4, 5) + 0.1
    s = rand(4, 5, seed=1) - (0.2 if l2 or mass else rand(4, 5, seed=1).mean())
    values, vectors = torch.linalg.eigh(
        graph.laplacian(X, degree_normalized=False) + l2 * torch.eye(20).double() + mass
    )
    shares = (vectors.T @ s.flatten())[values > 1e-9].square() / values[values > 1e-9]
    distance = WassersteinMetric(graph, l2=l2, mass=mass).distance(X - 0.05 * s, X + 0.05 * s, steps=4)
    assert abs(distance / 0.1 / shares.sum().sqrt() - 1) < 1e-3


def test_constant_cometrics_are_norms():
    a, b = rand(2, 3, 4)
    both = dict(l2=2.0, mass=0.3)
    bare = WassersteinMetric(PixelGraph(3, 4, radius=0), **both)
    mean = (b - a).mean()
    squared = (b - a - mean).square().sum() / 2.0 + 12 * mean**2 / (2.0 + 12 * 0.3)
    assert abs(bare.distance(a, b) / squared.sqrt() - 1) < 1e-6
    connected = WassersteinMetric(PixelGraph(3, 4), **both)
    assert abs(connected.distance(a, a + 0.5) - 0.5 * sqrt(12 / (2.0 + 12 * 0.3))) < 1e-6  # the price of brightness
    assert connected.distance(0 * a, 0 * a + 0.5) > 0.5 * sqrt(12 / (2.0 + 12 * 0.3)) - 1e-6  # from black


@settings(max_examples=10, deadline=None)
@given(st.sampled_from((0.1, 1.0, 10.0)), st.booleans(), st.integers(0, 10**6))
def test_released_kind_lies_between_two_norms_and_falls_with_every_price(l2, unequal, seed):
    """Below Euclid / sqrt(l2), above the norm at the largest intensity; smaller for larger l2, mass and weights."""
    a, b = rand(2, 4, 5, seed=seed) ** 3
    b = b if unequal else b * a.sum() / b.sum()
    a[0, :3] = 0

    def metric(omega=1.0, l2=l2, mass=0.0):
        return WassersteinMetric(PixelGraph(4, 5, weight=lambda dy, dx: omega), l2=l2, mass=mass)

    path = metric().geodesic(a, b, steps=4)
    distance = metric().distance(a, b, steps=4)
    assert path.min() >= 0 and torch.equal(path[0], a) and torch.equal(path[-1], b)
    assert abs(metric().path_length(path) / distance - 1) < 1e-3
    assert distance <= (b - a).norm() / sqrt(l2) * (1 + 1e-6)
    assert distance >= metric().norm(torch.full_like(a, path.max().item()), b - a) * (1 - 1e-6)
    for easier in (metric(omega=1.5), metric(l2=1.5 * l2), metric(mass=0.1)):
        assert easier.distance(a, b, steps=4) < distance


def test_limits():
    a, b = rand(2, 4, 5)
    b *= a.sum() / b.sum()
    transport = WassersteinMetric(PixelGraph(4, 5)).distance(a, b)
    near = [WassersteinMetric(PixelGraph(4, 5), l2=e, mass=e).distance(a, b) for e in (1e-3, 1e-6)]
    assert near[0] < near[1] < transport * (1 + 1e-6) and near[1] > 0.999 * transport
    weak = WassersteinMetric(PixelGraph(4, 5, weight=lambda dy, dx: 1e-4), l2=0.5)
    assert 0.99 < weak.distance(a, b) / ((b - a).norm() / sqrt(0.5)) <= 1 + 1e-6


@pytest.mark.parametrize("length", [1.0, 3.0])
def test_no_motion_costs_more_than_twice_the_length(length):
    """In pixels, for intensities up to 1, length at intensity 1/2; transport alone keeps growing."""
    metric = WassersteinMetric(PixelGraph(1, 24, radius=1), l2=0.5 / length**2)
    bar = torch.zeros(1, 24, dtype=torch.float64)
    bar[0, 2:4] = 1.0
    moved = [metric.distance(bar, bar.roll(k, 1), steps=6) * metric.unit / sqrt(2) for k in (1, 9, 18)]
    assert moved[0] < moved[1] <= moved[2] + 1e-4 and moved[2] < 2 * length
    alone = WassersteinMetric(metric.graph)
    assert alone.distance(bar, bar.roll(18, 1), steps=6) * alone.unit / sqrt(2) > 17


@pytest.mark.parametrize("status", ["AlmostSolved", "NumericalError"])
def test_solver_that_stops_short_is_not_believed_in_silence(status, monkeypatch):
    solver = clarabel.DefaultSolver

    class Short:
        def __init__(self, *arguments):
            self.solution = solver(*arguments).solve()

        def solve(self):
            s = self.solution
            dual = 0.99 * s.obj_val
            return SimpleNamespace(x=s.x, obj_val=s.obj_val, obj_val_dual=dual, r_prim=s.r_prim, status=status)

    monkeypatch.setattr(clarabel, "DefaultSolver", Short)
    metric, ends = WassersteinMetric(PixelGraph(1, 2, radius=1)), torch.eye(2, dtype=torch.float64)[:, None]
    if status == "AlmostSolved":
        with pytest.warns(RuntimeWarning, match="relative gap 1.0e-02") as warned:
            assert abs(metric.distance(*ends) - sqrt(2)) < 1e-4
        assert warned[0].filename == __file__
    else:
        with pytest.raises(ValueError, match=status):
            metric.distance(*ends)
