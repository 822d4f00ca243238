"""Holds the Triton kernel against the slices, on the CPU by Triton's interpreter; run by test_sweep.py, which sets
TRITON_INTERPRET=1 before Triton is imported. Exits with an assertion where they differ."""

import itertools

import torch
from torch.testing import assert_close

from wwgan.graph import PixelGraph
from wwgan.sweep import _sweep_slices, _sweep_triton

LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
TYPES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}


def compare(graph, dtype, layout, normalized, l2, offset, channels=3):
    random = torch.Generator().manual_seed(0)
    x, g = (
        (2 * torch.rand(2, channels, graph.height, graph.width, generator=random) - 1)
        .to(dtype)
        .contiguous(memory_format=LAYOUTS[layout])
        for _ in range(2)
    )
    scale = lambda dtype: graph.inverse_degree(dtype, x.device) if normalized else None
    energy, operator = _sweep_triton(x, g, scale(dtype), graph.edges, l2, offset)
    exact_energy, exact_operator = _sweep_slices(x.double(), g.double(), scale(torch.float64), graph.edges, l2, offset)
    assert operator.dtype == dtype and operator.stride() == g.stride()
    assert_close(energy.double(), exact_energy, rtol=min(TYPES[dtype], 1e-5), atol=0)
    size = exact_operator.abs().max().item()
    assert_close(operator.double(), exact_operator, rtol=TYPES[dtype], atol=TYPES[dtype] * size)


balls = [("von_neumann", 2), ("moore", 1), ("von_neumann", 0)]
cases = [*itertools.product(TYPES, balls, LAYOUTS, (False, True), (0.0, 1.0))][::5]  # every pair of choices is met
for dtype, ball, layout, normalized, offset in [*cases, (torch.float32, ("moore", 3), "contiguous", True, 1.0)]:
    graph = PixelGraph(5, 7, *ball, weight=lambda dy, dx: 1 / (dy**2 + dx**2))
    compare(graph, dtype, layout, normalized, 0.7, offset)
for layout in LAYOUTS:  # more than one block for each image
    compare(PixelGraph(40, 30), torch.float32, layout, True, 0.3, 1.0)
for line in (PixelGraph(1, 9), PixelGraph(9, 1)):
    compare(line, torch.float64, "contiguous", False, 0.0, 0.0, channels=1)
x, g = torch.rand(2, 2, 3, 5, 7).unbind()
form = None, PixelGraph(5, 7).edges, 0.0
for one, other in ((x, g.contiguous(memory_format=torch.channels_last)), (x.transpose(-1, -2).contiguous().mT, g)):
    for found, expected in zip(_sweep_triton(one, other, *form, 0.0), _sweep_slices(x, g, *form, 0.0)):
        assert_close(found, expected)
x[0, 0, 0, 0] = torch.nan  # is not hidden by the cut at zero
assert _sweep_triton(x, g, *form, 1.0)[0].isnan().tolist() == [True, False]
print("kernel and slices agree")
