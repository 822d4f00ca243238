"""Distances with sources: closed forms, bounds and limits, the solver's word on what it found."""

from math import sqrt
from types import SimpleNamespace

import clarabel
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wwgan.graph import PixelGraph
from wwgan.metric import WassersteinMetric


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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
