"""Energy and operator in one sweep: slices, Triton's kernel and the graph's expression agree, with all derivatives."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from wwgan import sweep
from wwgan.graph import PixelGraph
from wwgan.penalty import Wasserstein
from wwgan.sweep import _Sweep, _sweep_slices, _sweep_triton, sweep_energy

CPU = torch.device("cpu")


def images(*shape, dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    return tuple((2 * torch.rand(2, *shape, dtype=torch.float64, generator=random) - 1).to(dtype))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 6), st.sampled_from(["von_neumann", "moore"]), st.integers(0, 3), st.booleans(),
    st.sampled_from([0.0, 0.7]), st.sampled_from([0.0, 0.5]), st.integers(0, 3),
)  # fmt: skip
def test_sweep_equals_the_graph_and_its_gradient(H, W, neighborhood, radius, normalized, l2, offset, batch):
    graph = PixelGraph(H, W, neighborhood, radius, weight=lambda dy, dx: 1 / (dy**2 + dx**2))
    x, g = images(batch, 2, H, W)
    scale = graph.inverse_degree(x.dtype, x.device) if normalized else None
    energy, operator = _sweep_slices(x, g, scale, graph.edges, l2, offset)
    X, close = (x + offset).clamp_min(0) if offset else x, dict(rtol=1e-12, atol=1e-12)
    assert_close(energy, graph.energy(X, g, normalized).sum(1) + l2 * g.square().sum((1, 2, 3)), **close)
    assert_close(operator, graph.apply(X, g, normalized) + l2 * g, **close)
    v = g.clone().requires_grad_()
    called = sweep_energy(graph.edges, x, v, scale, l2, offset)
    assert_close(called.detach(), energy, rtol=0, atol=0)
    assert_close(torch.autograd.grad(called.sum(), v)[0], 2 * operator, rtol=1e-12, atol=0)


def test_the_batch_may_be_swept_in_any_number_of_turns(monkeypatch):
    x, g = images(7, 3, 6, 5, dtype=torch.float32)
    form = None, PixelGraph(6, 5).edges, 1.0, 1.0
    whole = _sweep_slices(x, g, *form)
    monkeypatch.setattr(sweep, "_CHUNK", 2 * 3 * 6 * 5)
    for one, other in zip(whole, _sweep_slices(x, g, *form)):
        assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("normalized", [False, True])
def test_both_outputs_can_be_differentiated_twice(normalized):
    graph = PixelGraph(3, 4, "moore", 1)
    x, g = images(2, 2, 3, 4)
    scale = graph.inverse_degree(x.dtype, CPU) if normalized else None
    both = lambda g: _Sweep.apply(x, g, scale, graph.edges, 0.7, 0.5)
    g.requires_grad_()
    assert torch.autograd.gradcheck(both, g) and torch.autograd.gradgradcheck(both, g)


def test_channels_last_gives_the_same_numbers_and_keeps_the_layout():
    form = None, PixelGraph(8, 6).edges, 1.0, 1.0
    x, g = images(2, 3, 8, 6)
    energy, operator = _sweep_slices(*(t.contiguous(memory_format=torch.channels_last) for t in (x, g)), *form)
    expected_energy, expected_operator = _sweep_slices(x, g, *form)
    assert operator.is_contiguous(memory_format=torch.channels_last)
    assert_close(energy, expected_energy, rtol=1e-14, atol=0)
    assert torch.equal(operator, expected_operator)


def test_bfloat16_is_accumulated_in_float32():
    x, g = (t.requires_grad_() for t in images(4, 3, 16, 16, dtype=torch.bfloat16))
    squared, exact = (Wasserstein.released().squared_norm(*both) for both in ((g, x), (g.double(), x.double())))
    assert squared.dtype == torch.float32
    assert_close(squared.double(), exact, rtol=1e-5, atol=0)  # bfloat16 itself keeps 3 digits
    slope, expected = (torch.autograd.grad(energy.sum(), g)[0] for energy in (squared, exact))
    assert slope.dtype == torch.bfloat16
    assert_close(slope, expected, rtol=1e-2, atol=1e-2 * expected.abs().max().item())


def test_torch_func_differentiates_the_energy():
    x, g = images(2, 3, 4, 5)
    energy = lambda g: sweep_energy(PixelGraph(4, 5).edges, x, g, None, 0.5, 1.0).sum()
    v = g.clone().requires_grad_()
    assert_close(torch.func.grad(energy)(g), torch.autograd.grad(energy(v), v)[0])


@pytest.mark.parametrize("form", [Wasserstein.released(), Wasserstein.paper()], ids=["released", "paper"])
def test_dynamo_follows_the_norm_without_a_break(form):
    x, g = images(2, 1, 4, 5)
    expected = form.squared_norm(g, x)  # makes the graph, which is kept
    assert torch.equal(torch.compile(form.squared_norm, fullgraph=True, backend="eager")(g, x), expected)


needs_triton = pytest.mark.skipif(sweep.triton is None, reason="Triton is not installed")


@needs_triton
def test_triton_kernel_equals_the_slices_in_the_interpreter():
    script = Path(__file__).with_name("interpreted_triton.py")
    run = subprocess.run(
        [sys.executable, str(script)], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "agree" in run.stdout


@needs_triton
@pytest.mark.parametrize(
    "architecture, dtype, accumulate, channels_last",
    [(80, "fp32", "fp32", False), (90, "fp32", "fp32", True), (90, "bf16", "fp32", True), (90, "fp64", "fp64", False)],
)
def test_triton_kernel_compiles_to_machine_code_for_gpus(architecture, dtype, accumulate, channels_last):
    """What the interpreter takes a compiler may refuse; Triton's needs no GPU to compile for one."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    accumulated = getattr(sweep.tl, accumulate.replace("fp", "float"))
    constants = dict(L2=1.0, OFFSET=1.0, SCALED=True, CHANNELS_LAST=channels_last, ACCUMULATE=accumulated, BLOCK=1024)
    pointers = dict.fromkeys(("x_ptr", "g_ptr", "operator_ptr"), f"*{dtype}") | dict(dy_ptr="*i32", dx_ptr="*i32")
    pointers |= dict.fromkeys(("scale_ptr", "partial_ptr", "half_ptr"), f"*{accumulate}")
    names = sweep._sweep_kernel.arg_names
    types = {name: pointers.get(name, "i32") for name in names if name not in constants}
    if "constexprs" in inspect.signature(ASTSource).parameters:
        values = dict(constexprs={(names.index(name),): value for name, value in constants.items()})
        types = {name: types.get(name, "constexpr") for name in names}
    else:  # Triton before 3.3
        values = dict(constants=constants)
    source = ASTSource(fn=sweep._sweep_kernel, signature=types, **values)
    code = sweep.triton.compile(source, target=GPUTarget("cuda", architecture, 32)).asm
    assert code["cubin"] and f"sm_{architecture}" in code["ptx"]


@pytest.fixture
def triton_not_tried_yet():
    sweep._triton_works.cache_clear()
    yield
    sweep._triton_works.cache_clear()


def test_a_triton_that_is_absent_or_cannot_compile_is_reported_once_and_left_alone(monkeypatch, triton_not_tried_yet):
    def broken(*args):
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(sweep, "triton", None)
    assert not sweep._triton_works(CPU)  # and the slices take over
    sweep._triton_works.cache_clear()
    monkeypatch.setattr(sweep, "triton", object())
    monkeypatch.setattr(sweep, "_sweep_triton", broken)
    with pytest.warns(UserWarning, match="no C compiler"):
        assert not sweep._triton_works(CPU)
    assert not sweep._triton_works(CPU)


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_triton_kernel_equals_the_slices_on_a_gpu(dtype, tolerance, layout):
    form = None, PixelGraph(64, 48).edges, 1.0, 1.0
    x, g = (t.cuda().contiguous(memory_format=layout) for t in images(8, 3, 64, 48, dtype=dtype))
    energy, operator = _sweep_triton(x, g, *form)
    expected = _sweep_slices(x.double(), g.double(), *form)
    assert_close(energy.double(), expected[0], rtol=1e-5, atol=0)
    assert_close(operator.double(), expected[1], rtol=tolerance, atol=tolerance * expected[1].abs().max().item())
