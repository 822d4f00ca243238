"""Energy and operator in one sweep: slices, Triton's kernel and the plain expression agree, with all derivatives."""

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

from wwgan import graph as graph_module
from wwgan.graph import PixelGraph, _sweep_slices, _sweep_triton, energy_expression
from wwgan.penalty import Wasserstein


def images(*shape, dtype=torch.float64, seed=0):
    random = torch.Generator().manual_seed(seed)
    return tuple((2 * torch.rand(2, *shape, dtype=torch.float64, generator=random) - 1).to(dtype))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from(["von_neumann", "moore"]),
    st.integers(0, 3),
    st.booleans(),
    st.sampled_from([0.0, 0.7]),
    st.sampled_from([0.0, 0.5]),
    st.integers(0, 3),
)
def test_sweep_equals_the_expression_and_its_gradient(H, W, neighborhood, radius, normalized, l2, offset, batch):
    graph = PixelGraph(H, W, neighborhood, radius, weight=lambda dy, dx: 1 / (dy**2 + dx**2))
    x, g = images(batch, 2, H, W)
    g.requires_grad_()
    form, scale = graph._form(l2, offset), graph._inverse_degree(x.dtype, x.device) if normalized else None
    energy, operator = _sweep_slices(x, g.detach(), scale, form)
    expected = energy_expression(x, g, scale, form)
    assert_close(energy, expected.detach(), rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(expected.sum(), g)
    assert_close(2 * operator, gradient, rtol=1e-12, atol=1e-12)
    called = graph.energy(x, g, normalized, l2, offset, channels=True)
    assert_close(called.detach(), energy, rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(called.sum(), g)
    assert_close(gradient, 2 * operator, rtol=1e-12, atol=0)


def test_the_batch_may_be_swept_in_any_number_of_turns(monkeypatch):
    graph = PixelGraph(6, 5)
    x, g = images(7, 3, 6, 5, dtype=torch.float32)
    whole = _sweep_slices(x, g, None, graph._form(1.0, 1.0))
    monkeypatch.setattr(graph_module, "_CHUNK", 2 * 3 * 6 * 5)
    for one, other in zip(whole, _sweep_slices(x, g, None, graph._form(1.0, 1.0))):
        assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("normalized", [False, True])
def test_both_outputs_can_be_differentiated_twice_in_image_and_potential(normalized):
    graph = PixelGraph(3, 4, "moore", 1)
    x, g = (t.clone().requires_grad_() for t in images(2, 3, 4))

    def both(x, g):
        return graph.energy(x, g, normalized, l2=0.7, offset=0.5), graph.apply(x, g, normalized)

    assert torch.autograd.gradcheck(both, (x, g)) and torch.autograd.gradgradcheck(both, (x, g))


def test_the_image_gets_a_derivative_only_where_it_asks_for_one():
    graph = PixelGraph(4, 4)
    X, g = (t.abs() for t in images(2, 1, 4, 4))
    g.requires_grad_()
    graph.energy(X, g).sum().backward()
    assert X.grad is None and g.grad is not None
    calls = []
    original = graph_module._carre_du_champ
    graph_module._carre_du_champ = lambda *args: calls.append(1) or original(*args)
    try:
        graph.energy(X, g).sum().backward()
        assert not calls
        graph.energy(X.clone().requires_grad_(), g).sum().backward()
        assert calls
    finally:
        graph_module._carre_du_champ = original


def test_channels_last_gives_the_same_numbers_and_keeps_the_layout():
    graph = PixelGraph(8, 6)
    x, g = images(2, 3, 8, 6)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (x, g)]
    energy, operator = _sweep_slices(*last, None, graph._form(1.0, 1.0))
    expected_energy, expected_operator = _sweep_slices(x, g, None, graph._form(1.0, 1.0))
    assert operator.is_contiguous(memory_format=torch.channels_last)
    assert_close(energy, expected_energy, rtol=1e-14, atol=0)
    assert torch.equal(operator, expected_operator)


def test_bfloat16_is_accumulated_in_float32():
    ground = Wasserstein.released()
    x, g = images(4, 3, 16, 16, dtype=torch.bfloat16)
    g.requires_grad_()
    squared = ground.squared_norm(g, x)
    assert squared.dtype == torch.float32
    expected = ground.squared_norm(g.detach().double(), x.double())
    assert_close(squared.detach().double(), expected, rtol=1e-5, atol=0)  # bfloat16 itself keeps 3 digits
    squared.sum().backward()
    assert g.grad.dtype == torch.bfloat16
    h = g.detach().double().requires_grad_()
    ground.squared_norm(h, x.double()).sum().backward()
    assert_close(g.grad.double(), h.grad, rtol=1e-2, atol=1e-2 * h.grad.abs().max().item())


def test_torch_func_differentiates_the_energy():
    graph = PixelGraph(4, 5)
    x, g = images(2, 3, 4, 5)
    energy = lambda g: graph.energy(x, g, False, 0.5, 1.0, channels=True).sum()
    v = g.clone().requires_grad_()
    assert_close(torch.func.grad(energy)(g), torch.autograd.grad(energy(v), v)[0])


def test_images_with_channels_need_three_dimensions():
    with pytest.raises(ValueError, match=r"\(\.\.\., C, H, W\).*\(4, 4\)"):
        PixelGraph(4, 4).energy(torch.ones(4, 4), torch.ones(4, 4), channels=True)


needs_triton = pytest.mark.skipif(graph_module.triton is None, reason="Triton is not installed")


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

    constants = dict(
        L2=1.0,
        OFFSET=1.0,
        SCALED=True,
        CHANNELS_LAST=channels_last,
        ACCUMULATE=getattr(graph_module.tl, accumulate.replace("fp", "float")),
        BLOCK=1024,
    )
    pointers = dict.fromkeys(("x_ptr", "g_ptr", "operator_ptr"), f"*{dtype}")
    pointers |= dict.fromkeys(("scale_ptr", "partial_ptr", "weight_ptr"), f"*{accumulate}") | dict(offset_ptr="*i32")
    names = graph_module._sweep_kernel.arg_names
    types = {name: pointers.get(name, "i32") for name in names if name not in constants}
    if "constexprs" in inspect.signature(ASTSource).parameters:
        values = dict(constexprs={(names.index(name),): value for name, value in constants.items()})
        types = {name: types.get(name, "constexpr") for name in names}
    else:  # Triton before 3.3
        values = dict(constants=constants)
    source = ASTSource(fn=graph_module._sweep_kernel, signature=types, **values)
    code = graph_module.triton.compile(source, target=GPUTarget("cuda", architecture, 32)).asm
    assert code["cubin"] and f"sm_{architecture}" in code["ptx"]


def test_without_triton_the_slices_take_over(monkeypatch):
    monkeypatch.setattr(graph_module, "triton", None)
    graph_module._triton_works.cache_clear()
    assert not graph_module._triton_works(torch.device("cpu"))
    X, g = torch.rand(2, 4, 5), torch.rand(2, 4, 5)
    graph = graph_module.PixelGraph(4, 5)
    assert_close(graph.energy(X, g), (g * graph.apply(X, g)).sum((1, 2)))
    graph_module._triton_works.cache_clear()


def test_a_triton_that_cannot_compile_is_reported_once_and_left_alone(monkeypatch):
    def broken(*args):
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(graph_module, "triton", object())
    monkeypatch.setattr(graph_module, "_sweep_triton", broken)
    graph_module._triton_works.cache_clear()
    with pytest.warns(UserWarning, match="no C compiler"):
        assert not graph_module._triton_works(torch.device("cpu"))
    assert not graph_module._triton_works(torch.device("cpu"))
    graph_module._triton_works.cache_clear()


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_triton_kernel_equals_the_slices_on_a_gpu(dtype, tolerance, layout):
    graph = PixelGraph(64, 48)
    x, g = (t.cuda().contiguous(memory_format=layout) for t in images(8, 3, 64, 48, dtype=dtype))
    energy, operator = _sweep_triton(x, g, None, graph._form(1.0, 1.0))
    expected = _sweep_slices(x.double(), g.double(), None, graph._form(1.0, 1.0))
    assert_close(energy.double(), expected[0], rtol=1e-5, atol=0)
    assert_close(operator.double(), expected[1], rtol=tolerance, atol=tolerance * expected[1].abs().max().item())
