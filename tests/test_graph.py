"""Properties of the pixel graph and its weighted Laplacian, for random sizes, neighbourhoods and images."""

import plain
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from wwgan.graph import PixelGraph


@st.composite
def graphs_and_images(draw):
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    graph = PixelGraph(height, width, draw(st.sampled_from(["von_neumann", "moore"])), draw(st.integers(0, 3)))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    X, g = torch.rand(2, height, width, generator=random, dtype=torch.float64)
    if draw(st.booleans()):
        X = X * (torch.rand(height, width, generator=random) > 0.5)  # black pixels
    return graph, X, g - 0.5


examples = settings(max_examples=60, deadline=None)


@examples
@given(graphs_and_images(), st.booleans())
def test_laplacian_is_symmetric_semi_definite_and_its_kernel_the_constants(case, normalized):
    graph, X, _ = case
    L = graph.laplacian(X, degree_normalized=normalized)
    scale = 1 + L.abs().max()
    assert_close(L, L.T, rtol=0, atol=0)
    assert L.sum(1).abs().max() <= 1e-12 * scale
    assert torch.linalg.eigvalsh(L)[0] >= -1e-12 * scale
    nullity = (torch.linalg.eigvalsh(graph.laplacian(X + 0.1)).abs() < 1e-9).sum()
    assert nullity == (1 if graph.edges.half else graph.n)
    assert graph.energy(X, torch.full_like(X, 3.0)) == 0


@examples
@given(graphs_and_images(), st.booleans())
def test_all_forms_equal_the_plain_loop(case, normalized):
    graph, X, g = case
    dense = graph.laplacian(X, degree_normalized=normalized)
    sparse = graph.laplacian(X, layout="sparse", degree_normalized=normalized)
    assert sparse.is_sparse
    close = dict(rtol=1e-12, atol=1e-12)
    assert_close(sparse.to_dense(), dense, **close)
    assert_close(graph.apply(X, g, normalized).flatten(), dense @ g.flatten(), **close)
    gradient = torch.func.grad(lambda g: graph.energy(X, g, normalized))(g)
    assert_close(gradient, 2 * graph.apply(X, g, normalized), **close)
    assert_close(graph.energy(X, g, normalized), g.flatten() @ dense @ g.flatten(), **close)
    if graph.edges.half or not normalized:  # without edges the loop has no degrees to divide by
        expected = plain.energy(X, g, graph.neighborhood, graph.radius, normalized)
        assert_close(graph.energy(X, g, normalized), expected, rtol=1e-12, atol=1e-14)
        assert_close(graph.energy(X.float(), g.float(), normalized).double(), expected, rtol=1e-5, atol=1e-7)


def test_energy_can_be_differentiated_twice_in_both_arguments():
    graph = PixelGraph(3, 4, "moore", 1)
    both = torch.rand(2, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    X, g = both.unbind()
    for function in (graph.energy, graph.apply):
        assert torch.autograd.gradcheck(function, (X, g)) and torch.autograd.gradgradcheck(function, (X, g))


def test_batches_and_channels_are_separate_copies():
    graph = PixelGraph(4, 5)
    X, g = torch.rand(2, 3, 2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for method in (graph.energy, graph.apply):
        alone = torch.stack([torch.stack([method(*one) for one in zip(*both)]) for both in zip(X, g)])
        assert_close(method(X, g), alone, rtol=1e-12, atol=1e-15)
    assert_close(graph.energy(X[0, 0], g), graph.energy(X[0, 0].expand_as(g), g))  # leading dimensions broadcast


def test_weights_of_offsets_enter_energy_degree_and_laplacian():
    weighted = PixelGraph(4, 4, radius=1, weight=lambda dy, dx: 3.0 if dy else 1.0)
    X, g = torch.rand(2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = ((X[1:] + X[:-1]) / 2 * (g[1:] - g[:-1]) ** 2).sum()
    columns = ((X[:, 1:] + X[:, :-1]) / 2 * (g[:, 1:] - g[:, :-1]) ** 2).sum()
    assert_close(weighted.energy(X, g, degree_normalized=False), 3 * rows + columns)
    assert_close(weighted.degree[0, 0] / weighted.degree[0, 1], torch.tensor(4 / 5, dtype=torch.float64))
    assert_close(g.flatten() @ weighted.laplacian(X) @ g.flatten(), weighted.energy(X, g))
    assert weighted.edges == ((0, 1), (1, 0), (0.5, 1.5))


def test_half_precision_is_summed_in_float32():
    graph = PixelGraph(16, 16)
    X, g = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert_close(graph.energy(X, g), graph.energy(X.double(), g.double()).float(), rtol=1e-5, atol=0)
    assert graph.energy(X, g).dtype == graph.laplacian(X).dtype == torch.float32
    assert graph.apply(X, g).dtype == torch.bfloat16


def test_a_radius_beyond_the_image_joins_all_pixels():
    graph = PixelGraph(3, 4, "moore", radius=10**9)
    g = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    all_pairs = 12 * g.square().sum() - g.sum() ** 2  # sum over i < j of (g_i - g_j)^2
    assert_close(graph.energy(torch.ones_like(g), g, degree_normalized=False), all_pairs)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: PixelGraph(0, 4), ("height", "0")),
        (lambda: PixelGraph(4, 2.5), ("width", "2.5")),
        (lambda: PixelGraph(4, 4, "diamond"), ("von_neumann", "moore", "diamond")),
        (lambda: PixelGraph(4, 4, radius=-1), ("radius", "-1")),
        (lambda: PixelGraph(4, 4, radius=True), ("radius", "True")),
        (lambda: PixelGraph(4, 4, weight=lambda dy, dx: 0.0), ("weight", "0.0")),
        (lambda: PixelGraph(4, 4).energy(torch.ones(4, 5), torch.ones(4, 5)), ("(..., 4, 4)", "(4, 5)")),
        (lambda: PixelGraph(4, 4).apply(torch.ones(4, 4), torch.ones(3, 3)), ("g must", "(3, 3)")),
        (lambda: PixelGraph(4, 4).energy(torch.ones(4, 4).int(), torch.ones(4, 4)), ("floating", "int32")),
        (lambda: PixelGraph(4, 4).laplacian(torch.ones(2, 4, 4)), ("one image", "(2, 4, 4)")),
        (lambda: PixelGraph(4, 4).laplacian(torch.ones(4, 4), layout="csr"), ("dense", "csr")),
    ],
)
def test_bad_input_is_refused_by_name(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert all(word in str(error.value) for word in words)
