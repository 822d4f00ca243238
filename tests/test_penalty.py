"""Ground metrics against the equations written out, and the gradient penalty against WGAN-GP and finite differences."""

import operator
import warnings
from functools import partial

import numpy as np
import plain
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from wwgan import checks
from wwgan.checks import RANGE, check_range, warn_of_unit_range
from wwgan.penalty import (
    GROUND_METRICS,
    Euclidean,
    Shuffled,
    Sobolev,
    Wasserstein,
    gradient_penalty,
)
from wwgan.points import penalty_points

every_metric = pytest.mark.parametrize("make", GROUND_METRICS.values(), ids=GROUND_METRICS)


def images(*shape, seed=0, dtype=torch.float32):
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) - 1


def critic(channels=3, height=8, width=8):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(8 * height * width, 1)
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6))
def test_both_published_forms_equal_the_plain_loop(channels, height, width, seed):
    g, x = images(2, 2, channels, height, width, seed=seed, dtype=torch.float64)
    for ground, expected in (
        (Wasserstein.released(), plain.released_squared_norm),
        (Wasserstein.paper(), plain.paper_squared_norm),
    ):
        if height * width == 1 and expected is plain.paper_squared_norm:
            continue  # one pixel has no degree
        expected = torch.stack([expected(g[b], x[b]) for b in range(2)])
        squared = ground.squared_norm(g, x.clone().requires_grad_())
        assert not squared.requires_grad  # images are detached
        assert_close(squared, expected, rtol=1e-12, atol=1e-12)
        assert_close(ground.squared_norm(g.float(), x.float()).double(), expected, rtol=1e-5, atol=1e-6)


def test_norms_are_homogeneous_and_only_the_mass_terms_see_constants():
    x = images(2, 3, 8, 8)
    constant = torch.full_like(x, 0.5)
    assert Wasserstein(l2=0, mass=0).squared_norm(constant, x).abs().max() == 0
    assert_close(Wasserstein.released().squared_norm(constant, x), Euclidean().squared_norm(constant, x))
    assert_close(Wasserstein.paper(mass=2.0).squared_norm(constant, x), torch.full((2,), 3 * 2.0 * (0.5 * 64) ** 2))
    for make in GROUND_METRICS.values():
        assert_close(make().squared_norm(3 * x, x), 9 * make().squared_norm(x, x))


def test_shuffled_control_permutes_gradient_and_image_alike():
    g, x = images(2, 2, 3, 8, 8)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    expected = Wasserstein.released().squared_norm(*(t.flatten(2)[..., order].view_as(t) for t in (g, x)))
    assert torch.equal(Shuffled.wasserstein().squared_norm(g, x), expected)
    assert not torch.equal(Shuffled(Wasserstein(), seed=1).squared_norm(g, x), expected)


@every_metric
@pytest.mark.parametrize("one_sided", [False, True])
def test_parameter_gradient_of_the_penalty_against_finite_differences(make, one_sided):
    real, fake = images(2, 2, 2, 3, 4, dtype=torch.float64)
    share = torch.full((2, 1, 1, 1), 0.3, dtype=torch.float64)
    weights = torch.randn(24, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def loss(w):
        critic = lambda x: torch.tanh(x.flatten(1) @ w).sum(1)
        return gradient_penalty(critic, real, fake, make(), weight=2.0, one_sided=one_sided, epsilon=share).loss

    assert torch.autograd.gradcheck(loss, weights)


@every_metric
@pytest.mark.parametrize("shape", [(1, 7, 7), (2, 5, 9), (3, 32, 32), (4, 1, 6)], ids=str)
def test_any_channels_sizes_and_a_batch_of_one(make, shape):
    f = critic(*shape)
    loss = gradient_penalty(f, images(1, *shape), images(1, *shape, seed=1), make()).loss
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in f.parameters() if p.grad is not None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
@every_metric
def test_gpu_agrees_with_cpu(make):
    f, real, fake = critic(), images(4, 3, 8, 8), images(4, 3, 8, 8, seed=1)
    on_cpu = gradient_penalty(f, real, fake, make(), points="real")
    on_gpu = gradient_penalty(f.cuda(), real.cuda(), fake.cuda(), make(), points="real")
    assert_close(on_gpu.norm.cpu(), on_cpu.norm, rtol=1e-4, atol=1e-5)


class Foreign:
    """Somebody's ground metric."""

    def __init__(self, squared_norm):
        self.squared_norm = lambda g, x: squared_norm(g)


F, REAL, FAKE, W = critic(), images(4, 3, 8, 8), images(4, 3, 8, 8, seed=1), Wasserstein.released()
between = partial(gradient_penalty, F, REAL, FAKE)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: gradient_penalty(F, REAL, FAKE[:2], W), ("(4, 3, 8, 8)", "(2, 3, 8, 8)")),
        (lambda: gradient_penalty(F, REAL[0], FAKE[0], W), ("(B, C, H, W)", "(3, 8, 8)")),
        (lambda: gradient_penalty(F, 127 * REAL + 127, 127 * FAKE + 127, W), ("[-1, 1]",)),
        (lambda: between(W, weight=-1), ("weight", "-1")),
        (lambda: between(W, weight=float("nan")), ("weight", "nan")),
        (lambda: between(W, points="centre"), ("interpolated", "centre")),
        (lambda: gradient_penalty(lambda x: x[:, 0], REAL, FAKE, W), ("one score", "(4, 8, 8)", "scores of patches")),
        (lambda: gradient_penalty(lambda x: x, REAL, FAKE, W), ("one score", "(4, 3, 8, 8)", "is it the generator?")),
        (lambda: gradient_penalty(lambda x: F(x)[:3], REAL, FAKE, W), ("one score", "labels of another batch")),
        (lambda: gradient_penalty(lambda x: F(x).mean(), REAL, FAKE, W), ("one score", "()", "without .mean()")),
        (lambda: gradient_penalty(lambda x: torch.zeros(len(x)), REAL, FAKE, W), ("differentiated",)),
        (lambda: gradient_penalty(F, REAL.byte(), FAKE.byte(), W), ("uint8", "x.float() / 127.5 - 1")),
        (lambda: gradient_penalty(F(REAL), REAL, FAKE), ("critic", "got Tensor", "not its scores")),
        (lambda: gradient_penalty("F", REAL, FAKE), ("critic", "'F'", "a network or a function")),
        (lambda: between("wasserstein"), ("ground metric", "'wasserstein'")),
        (lambda: between(Wasserstein), ("such as Wasserstein.released()",)),
        (lambda: between(W, generator=0), ("torch.Generator", "0")),
        (lambda: between(W, generator=F), ("got Sequential", "fake is its images")),
        (lambda: between(F), ("ground metric", "got Sequential")),
        (lambda: between(weight=torch.ones(4)), ("weight", "tensor")),
        (lambda: between(weight=torch.tensor(-1.0)), ("weight", "-1")),
        (lambda: between(epsilon=torch.ones(4)), ("epsilon", "(4, 1, 1, 1)", "(4,)", ".view(-1, 1, 1, 1)")),
        (lambda: W.norm((REAL,), REAL), ("g must be a torch.Tensor", "tuple", "take [0]")),
        (lambda: gradient_penalty(F, F(REAL), F(FAKE)), ("(4, 1)", "look like scores, pass the images")),
        (lambda: gradient_penalty(lambda x: x[:, 0, 0], REAL, FAKE, W), ("(4, 8)", "such as its label's")),
        (lambda: between(epsilon=0.5), ("epsilon", "(4, 1, 1, 1)", "got 0.5", "torch.full(")),
        (lambda: between(epsilon=torch.full((4, 1, 1, 1), 3.0)), ("epsilon", "[0, 1]", "3")),
        (lambda: gradient_penalty(F, REAL, torch.randn(4, 16)), ("(4, 16)", "the generator's images, not z")),
        (lambda: gradient_penalty(F, REAL, torch.randn(4, 16, 1, 1)), ("(4, 16, 1, 1)", "images, not z")),
        (lambda: gradient_penalty(F, REAL.flatten(1), FAKE.flatten(1)), ("(4, 192)", "reshape: flat images")),
        (lambda: gradient_penalty(F, REAL, FAKE.flatten(1)), ("(4, 192)", "reshape: flat images")),
        (lambda: gradient_penalty(F, REAL[:, 0], FAKE[:, 0]), ("(4, 8, 8)", "reshape: gray images")),
        (lambda: gradient_penalty(F, REAL[:, None], FAKE[:, None]), ("(4, 1, 3, 8, 8)", "reshape: a video")),
        (lambda: W.norm(REAL.flatten(1), REAL.flatten(1)), ("(4, 192)", "reshape: flat images")),
        (lambda: W.norm(REAL.mT.movedim(1, 3), REAL.mT.movedim(1, 3)), ("(4, 8, 8, 3)", "x.permute(0, 3, 1, 2)")),
        (lambda: torch.inference_mode()(between)(), ("gradients are off", "inference_mode")),
        (lambda: Wasserstein(image_range=(1, 0)), ("image_range", "(1, 0)")),
        (lambda: Wasserstein(image_range=[0, 1]), ("image_range", "[0, 1]")),
        (lambda: between(Wasserstein(image_range=(0, 1))), ("[0, 1]", "leave image_range out")),
        (lambda: gradient_penalty(F, REAL.numpy(), FAKE, W), ("real must be a torch.Tensor", "ndarray")),
        (lambda: gradient_penalty(F, REAL, FAKE.to("meta"), W), ("one device", "cpu", "meta")),
        (lambda: gradient_penalty(lambda x: (F(x), x), REAL, FAKE, W), ("tuple", "critic(x)[0]")),
        (lambda: gradient_penalty(lambda x: F(x.detach()), REAL, FAKE, W), ("detached inside the critic",)),
        (lambda: torch.no_grad()(between)(W), ("gradients are off", "no_grad", "would not train")),
        (lambda: between(Foreign(lambda g: g)), ("Foreign", "4 values", "(4, 3, 8, 8)")),
        (lambda: between(Foreign(lambda g: g.detach().sum((1, 2, 3)))), ("Foreign", "detached")),
        (lambda: Wasserstein(l2="1"), ("l2", "'1'")),
        (lambda: Wasserstein(radius=-1), ("radius", "-1")),
        (lambda: Wasserstein(neighborhood="hex"), ("neighborhood", "hex")),
        (lambda: Wasserstein(mass=float("inf")), ("mass", "inf")),
        (lambda: between(W, pairs="best"), ("pairs", "matched-ground", "best")),
        (lambda: between(Foreign(abs), pairs="matched-ground"), ("embedding", "matched-ground")),
        (lambda: between(Wasserstein.paper(), pairs="matched-ground"), ("unit_mass",)),
        (lambda: Wasserstein(l2=0.0).embedding(REAL), ("length", "inf")),
        (lambda: Sobolev(float("nan")), ("order", "nan")),
        (lambda: Sobolev(length=-1.0), ("length", "-1")),
        (lambda: Wasserstein.with_length(float("inf")), ("length", "finite", "inf")),
        (lambda: Wasserstein.with_length(-2), ("length", "-2")),
        (lambda: Wasserstein.with_length(1e200), ("edge_weight", "inf")),
        (lambda: Wasserstein.with_length(3, radius=0), ("edges", "radius=0")),
        (lambda: Wasserstein.with_length(3, l2=0.0), ("l2 > 0", "l2=0.0")),
        (lambda: Wasserstein.with_length(3, edge_weight=2.0), ("one of length and edge_weight",)),
        (lambda: Wasserstein.with_length(3, unit_mass=True), ("unit_mass", "image")),
        (lambda: Wasserstein.paper().length, ("degree_normalized", "image")),
        (lambda: W.squared_norm(REAL, REAL[:2]), ("(4, 3, 8, 8)", "(2, 3, 8, 8)")),
    ],
)
def test_bad_input_is_refused_by_name(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words)


def test_calls_in_inference_mode_do_not_spoil_training():
    real, fake = images(2, 1, 6, 7), images(2, 1, 6, 7, seed=1)
    for make in (Wasserstein.paper, lambda: Sobolev(-1.25), lambda: Shuffled(Wasserstein.paper(), seed=5)):
        with torch.inference_mode():
            make().squared_norm(real, fake)
            made_there = real.clone()
        for points in ("interpolated", "real", "fake"):
            loss = gradient_penalty(critic(1, 6, 7), made_there, fake, make(), points=points).loss
            loss.backward()
            assert loss.isfinite()


def test_rounding_below_black_is_black():
    x = torch.full((1, 1, 4, 4), -1.0005)
    for make in (lambda: Wasserstein(l2=0.0), Wasserstein.paper):
        squared = make().squared_norm(torch.eye(4)[None, None], x)
        assert squared.isfinite().all() and (squared >= 0).all()


@every_metric
@pytest.mark.parametrize("scale", [1e-4, 500.0])
def test_norms_in_half_precision_neither_overflow_nor_vanish(make, scale):
    g, x = scale * images(2, 3, 8, 8), images(2, 3, 8, 8, seed=1)
    assert_close(make().squared_norm(g.half(), x.half()).float(), make().squared_norm(g, x), rtol=2e-2, atol=0)


class Gan(nn.Module):
    """A critic with or without batch norm, next to a generator with it, which does not run."""

    def __init__(self, norm=nn.Identity):
        super().__init__()
        self.generator, self.critic = nn.BatchNorm2d(3), nn.Sequential(norm(3), nn.Flatten(), nn.Linear(192, 1))

    def score(self, x):
        return self.critic(x)

    def forward(self, x, key=0):
        return {key: self.critic(x)}


WRAPPED = {
    "module": lambda gan: gan.critic,
    "lambda": lambda gan: lambda x: gan.critic(x),
    "tuple": lambda gan: lambda x: (gan.critic(x), x)[0],
    "dictionary": lambda gan: lambda x: gan(x)[0],
    "partial": lambda gan: partial(lambda x, key: gan(x, key)[key], key=3),
    "bound method": lambda gan: gan.score,
}


def warnings_of(calls):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for call in calls:
            call()
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_batch_norm_is_warned_of_once_behind_any_wrapper_if_it_runs(wrap):
    for _ in range(2):  # two critics, each in a new wrapper each time
        gan = Gan(nn.BatchNorm2d)
        (message,) = warnings_of([partial(lambda gan: gradient_penalty(wrap(gan), REAL, FAKE), gan)] * 3)
        assert "batch norm in training mode" in message and not nn.modules.module._global_forward_hooks
    assert not warnings_of([lambda: gradient_penalty(wrap(Gan()), REAL, FAKE)])
    assert not warnings_of([lambda: gradient_penalty(wrap(Gan(nn.BatchNorm2d).eval()), REAL, FAKE)])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_values_out_of_range_on_a_gpu_are_refused_by_the_next_call():
    check_range(2 * REAL.cuda())
    torch.cuda.synchronize()
    with pytest.raises(ValueError, match="images must lie in"):
        check_range(REAL.cuda())


class OnGPU(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


def test_a_gpu_is_not_waited_for_and_a_later_call_raises_what_a_cpu_raises_at_once(monkeypatch):
    arrived = []  # for each copy, whether it has come

    class Event:
        def __init__(self):
            arrived.append(False)
            self.number = len(arrived) - 1

        def record(self, stream):
            pass

        def query(self):
            return arrived[self.number]

    for name, value in dict(Event=Event, current_stream=id, is_current_stream_capturing=lambda: False).items():
        monkeypatch.setattr(torch.cuda, name, value)
    good, bad, bright = (x.as_subclass(OnGPU) for x in (REAL, 2 * REAL, (REAL + 1) / 2))
    with pytest.raises(ValueError) as at_once:
        check_range(bad.as_subclass(torch.Tensor))
    check_range(bad), warn_of_unit_range(bright, RANGE)
    for _ in range(3):
        check_range(good)
    arrived[0] = True
    with pytest.raises(ValueError) as later:
        check_range(good)
    assert str(later.value) == str(at_once.value)
    monkeypatch.setattr(Event, "query", lambda event: True)
    (message,) = warnings_of([lambda: check_range(good)] * 2)
    assert "image_range=(0, 1)" in message and not checks._on_their_way


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_mixed_precision_in_the_usual_loop(half):
    """The generator's images come out of autocast in half precision, the real ones are float32."""
    f, make_images, random = critic(), nn.Conv2d(3, 3, 1), torch.Generator()
    optimizer = torch.optim.SGD(f.parameters(), 1e-3)
    scaler = torch.amp.GradScaler("cpu", enabled=half == torch.float16)
    before = [p.detach().clone() for p in f.parameters()]
    for _ in range(8):
        optimizer.zero_grad()
        with torch.autocast("cpu", half):
            fake = make_images(FAKE).tanh()
            penalty = gradient_penalty(f, REAL, fake, generator=random.manual_seed(0))
            loss = f(fake.detach()).mean() - f(REAL).mean() + penalty.loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert fake.dtype == half and penalty.loss.dtype == penalty.norm.dtype == torch.float32
    assert any(not torch.equal(p, q) for p, q in zip(f.parameters(), before, strict=True))
    assert all(p.isfinite().all() for p in f.parameters())
    whole = gradient_penalty(f, REAL, fake.float(), generator=random.manual_seed(0))
    assert_close(penalty.norm, whole.norm, rtol=0.03, atol=0)


def test_images_are_promoted_as_their_sum_is():
    share = torch.rand(4, 1, 1, 1)
    for fake in (FAKE.bfloat16(), FAKE.half(), FAKE.double()):
        x = share * REAL + (1 - share) * fake
        assert_close(penalty_points(REAL, fake, epsilon=share), x)  # in the type of the sum
        assert penalty_points(REAL, fake, "fake").dtype == x.dtype


def test_each_metric_has_its_usual_weight():
    foreign = Foreign(lambda g: g.square().sum((1, 2, 3)))
    loss = lambda *ground, **more: gradient_penalty(F, REAL, FAKE, *ground, points="real", **more).loss
    usual = {
        4: [W, Shuffled.wasserstein()],
        10: [Euclidean(), Sobolev(), Wasserstein.paper(), Shuffled(Sobolev()), foreign],
    }
    for weight, grounds in usual.items():
        for ground in grounds:
            assert torch.equal(loss(ground), loss(ground, weight=weight))
    assert torch.equal(loss(), loss(W))
    level = torch.tensor(3.0, requires_grad=True)
    assert_close(3 * torch.autograd.grad(loss(weight=level), level)[0], loss(weight=3.0))
    with pytest.raises(TypeError, match="positional"):
        gradient_penalty(F, REAL, FAKE, W, 4.0)


@every_metric
def test_the_norm_alone_takes_flat_gradients_and_is_safe_at_zero(make):
    ground, x = make(), REAL.clone().requires_grad_()
    (g,) = torch.autograd.grad(F(x).sum(), x, create_graph=True)
    expected = gradient_penalty(F, REAL, FAKE, ground, points="real").norm
    for gradient in (g, g.flatten(1), g.contiguous(memory_format=torch.channels_last)):
        assert_close(ground.norm(gradient, x), expected)
        assert ground.norm(gradient, x).requires_grad
    flat = torch.zeros(4, 192, requires_grad=True)
    (slope,) = torch.autograd.grad(ground.norm(flat, REAL).sum(), flat)
    assert torch.equal(slope, torch.zeros(4, 192))


def test_gradients_that_lead_back_to_no_critic_are_warned_of():
    x = REAL.clone().requires_grad_()
    loose, g = (torch.autograd.grad(F(x).square().sum(), x, create_graph=graph)[0] for graph in (False, True))
    for exchanged_or_loose in (lambda: W.norm(x, g), lambda: W.norm(loose, x)):
        (message,) = warnings_of([exchanged_or_loose])
        assert "create_graph=True" in message and "norm(gradients, images)" in message
    with torch.no_grad():
        assert not warnings_of([lambda: W.norm(loose, x)])
    assert not warnings_of([lambda: W.norm(g, x), lambda: W.norm(loose, REAL)])


def test_a_penalty_is_no_number():
    penalty, other = gradient_penalty(F, REAL, FAKE), torch.ones((), requires_grad=True) * 1
    for use in (operator.add, operator.sub, operator.mul, operator.iadd, lambda a, b: sum([a, b])):
        for pair in ((penalty, other), (other, penalty), (10, penalty)):
            with pytest.raises(TypeError, match="use penalty.loss"):
                use(*pair)
    for name in ("backward", "item", "mean"):
        with pytest.raises(TypeError, match="use penalty.loss"):
            getattr(penalty, name)()
    loss, norm = penalty
    assert loss is penalty.loss and norm is penalty.norm and not norm.requires_grad


@pytest.mark.parametrize("make", [Wasserstein.released, Wasserstein.paper, Shuffled.wasserstein], ids=str)
@pytest.mark.parametrize("image_range", [(0, 1), (0.0, 255.0)], ids=str)
@pytest.mark.parametrize("where", [dict(), dict(points="geodesic"), dict(pairs="matched-ground")], ids=str)
def test_images_in_another_range_are_those_of_the_same_critic_on_rescaled_images(make, image_range, where):
    if make == Wasserstein.paper and "pairs" in where:
        pytest.skip("the paper's form has no embedding")
    low, high = image_range
    theirs = lambda y: low + (high - low) * (y + 1) / 2
    f, where = lambda x: F(x * 2 / high), where | dict(epsilon=torch.rand(4, 1, 1, 1), weight=10)
    ranged, plain = make(image_range=image_range), make()
    found = gradient_penalty(f, theirs(REAL), theirs(FAKE), ranged, **where)
    assert_close(found, gradient_penalty(lambda y: f(theirs(y)), REAL, FAKE, plain, **where), rtol=1e-4, atol=1e-5)
    if "pairs" in where:
        apart = ranged.embedding(theirs(REAL)) - ranged.embedding(theirs(FAKE))
        assert_close(apart, plain.embedding(REAL) - plain.embedding(FAKE), rtol=1e-3, atol=1e-4)


def test_images_in_zero_to_one_are_warned_of_and_with_their_range_not():
    bright, ranged = (REAL + 1) / 2, Wasserstein(image_range=(0, 1))
    for call in (
        lambda ground: gradient_penalty(F, bright, bright, ground),
        lambda ground: ground.norm(bright, bright),
    ):
        for ground in (W, Shuffled(W)):
            (message,) = warnings_of([partial(call, ground)])
            assert "image_range=(0, 1)" in message
        assert not warnings_of([partial(call, ground) for ground in (ranged, Shuffled(ranged), Euclidean())])
    assert not warnings_of([lambda: gradient_penalty(F, REAL, bright)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            gradient_penalty(F, bright, bright)
    assert len(caught) == 1


def test_numbers_of_other_libraries_are_numbers():
    assert gradient_penalty(F, REAL, FAKE, Wasserstein(l2=np.float32(1)), weight=np.float32(4)).loss.isfinite()


def bump(length):
    """A smooth gradient (1, 1, H, W) in the middle, wider than the length, on a constant image of intensity 1/2."""
    side = 2 * (torch.arange(192, dtype=torch.float64) - 95.5) / max(6 * length, 20)
    g = torch.exp(-side.square() - side[:, None].square()) * torch.linspace(-1, 2, 192, dtype=torch.float64)
    return g[None, None], torch.zeros(1, 1, 192, 192, dtype=torch.float64)


@pytest.mark.parametrize("changes", [dict(neighborhood="moore", radius=3), dict(l2=0.25)], ids=str)
def test_a_length_is_that_of_the_sobolev_norm_of_order_minus_one(changes):
    """Scale and unit: gamma (1 + length^2 |xi|^2) on a smooth gradient, for either neighbourhood."""
    ground = Wasserstein.with_length(8.0, **changes)
    assert ground.length == pytest.approx(8, rel=1e-12) and ground.l2 == changes.get("l2", 1.0)
    g, x = bump(8.0)
    plain = Euclidean().squared_norm(g, x)
    edges, expected = ground.squared_norm(g, x) / ground.l2 - plain, Sobolev(-1, 8.0).squared_norm(g, x) - plain
    assert_close(edges, expected, rtol=5e-2, atol=0)


def test_the_released_length_is_the_root_of_seven_and_zero_is_euclid():
    assert Wasserstein.with_length(7**0.5) == Wasserstein.released() == Wasserstein.released(length=7**0.5)
    assert Wasserstein.released().length == 7**0.5
    assert Shuffled.wasserstein(length=8) == Shuffled(Wasserstein.with_length(8))
    assert (
        Wasserstein(radius=0).length == 0 and Wasserstein.paper(unit_mass=False, degree_normalized=False).length > 1e9
    )
    g, x = images(2, 2, 3, 8, 8)
    for ground in (Wasserstein.with_length(0), Sobolev(-1, length=0)):
        assert ground.length == 0
    assert torch.equal(Wasserstein.with_length(0.0).squared_norm(g, x), Euclidean().squared_norm(g, x))
    assert_close(Sobolev(-1, 0.0).squared_norm(g, x), Euclidean().squared_norm(g, x))
