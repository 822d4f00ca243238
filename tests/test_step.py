"""The two steps in every mode: eager, compiled, bfloat16, channels last, lazy penalty; and no waste around them."""

import shutil
from unittest.mock import Mock

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from wwgan import penalty, points, step
from wwgan.runs import load_checkpoint, run_config, save_checkpoint
from wwgan.settings import make_config
from wwgan.step import TrainState, check_compiled, critic_losses, critic_step, generator_step, update
from wwgan.training import train

IMAGES = torch.randint(0, 256, (200, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def trained(updates, **settings):
    """A state after some updates, and the losses of each."""
    config = make_config("smoke", **settings)
    state, history = TrainState(config, 3, torch.device("cpu")), []
    for k in range(updates):
        update(state, IMAGES, config.ground(k))
        history.append({name: value.item() for name, value in state.losses.items()})
    return state, history


def weights(state):
    return torch.cat([p.detach().flatten() for p in (*state.critic.parameters(), *state.generator.parameters())])


def distance(one, other):
    return ((weights(one) - weights(other)).norm() / weights(other).norm()).item()


@pytest.fixture(scope="module")
def eager():
    return trained(50)


needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="torch.compile needs a C++ compiler"
)


@pytest.mark.slow
@needs_compiler
def test_compiled_steps_equal_eager_to_rounding_over_50_updates(eager):
    state, history = trained(50, compile=True)
    check_compiled(state, IMAGES, state.config.ground())
    assert distance(state, eager[0]) < 1e-5
    assert history[-1] == pytest.approx(eager[1][-1], rel=1e-3, abs=1e-5)


def test_channels_last_equals_channels_first_to_rounding_over_50_updates(eager):
    state, history = trained(50, channels_last=False)
    assert any(p.stride() != q.stride() for p, q in zip(state.critic.parameters(), eager[0].critic.parameters()))
    assert distance(state, eager[0]) < 1e-5
    assert history[-1] == pytest.approx(eager[1][-1], rel=1e-3, abs=1e-5)


def test_bf16_stays_near_float32_and_keeps_weights_in_float32(eager):
    state, history = trained(50, precision="bf16")
    assert weights(state).dtype == torch.float32
    assert 1e-6 < distance(state, eager[0]) < 1e-2  # bfloat16 was used, and did no harm
    assert history[0]["penalty"] == pytest.approx(eager[1][0]["penalty"], rel=1e-2)


def test_networks_compute_in_bfloat16_but_the_norm_does_not(monkeypatch):
    seen = {}
    ground = make_config("smoke").ground()
    spy = type("Spy", (), dict(squared_norm=lambda self, g, x: seen.update(g=g.dtype) or ground.squared_norm(g, x)))()
    state = TrainState(make_config("smoke", precision="bf16"), 3, torch.device("cpu"))
    state.critic.net[0].register_forward_hook(lambda module, inputs, output: seen.update(features=output.dtype))
    critic_step(state, IMAGES, spy)
    assert seen == dict(g=torch.float32, features=torch.bfloat16)


def test_lazy_penalty_enters_every_kth_update_k_times_as_heavy():
    states = {k: TrainState(make_config("smoke", penalty_every=k), 3, torch.device("cpu")) for k in (1, 3)}
    first = {k: critic_step(state, IMAGES, state.config.ground()) for k, state in states.items()}
    assert first[3]["penalty"].item() == pytest.approx(3 * first[1]["penalty"].item(), rel=1e-6)
    lazy = states[3]
    later = [critic_step(lazy, IMAGES, lazy.config.ground()) for _ in range(3)]
    assert ["penalty" in losses for losses in later] == [False, False, True]
    assert torch.equal(later[0]["critic_loss"], -later[0]["distance"])


@pytest.mark.parametrize(
    "settings",
    [dict(penalty=name, ema=ema) for name in penalty.GROUND_METRICS for ema in (0, 0.5)]
    + [dict(penalty_every=3), dict(length=4.0, length_end=0, length_steps=2), dict(precision="bf16")],
    ids=str,
)
def test_a_saved_state_goes_on_as_if_it_had_never_been_away(settings, tmp_path):
    whole, _ = trained(2, **settings)
    whole.step = 2
    save_checkpoint(tmp_path / "step_0000002.pt", whole.state_dict())
    parts = TrainState(whole.config, 3, torch.device("cpu"))
    parts.load_state_dict(load_checkpoint(tmp_path / "step_0000002.pt"))
    for state in (whole, parts):
        update(state, IMAGES, state.config.ground(2))
    assert torch.equal(weights(parts), weights(whole)) and parts.losses == whole.losses
    assert all(map(torch.equal, parts.ema.state_dict().values(), whole.ema.state_dict().values()))


@pytest.mark.parametrize(
    "change",
    [dict(penalty=name) for name in penalty.GROUND_METRICS if name != "wasserstein"]
    + [dict(weight=1.0), dict(one_sided=True), dict(points="real"), dict(critic_steps=3), dict(batch_size=8)]
    + [dict(lr=1e-3), dict(betas=(0.0, 0.9)), dict(radius=1), dict(l2=0.5), dict(mass=0.1), dict(latent_dim=8)]
    + [dict(neighborhood="moore"), dict(degree_normalized=True), dict(length=4.0)],
    ids=str,
)
def test_every_setting_of_the_step_counts(eager, change):
    assert trained(2, **change)[1][-1]["critic_loss"] != eager[1][1]["critic_loss"]


def test_the_ema_holds_the_batch_norm_statistics_and_is_the_generator_without_a_decay(eager):
    averages = dict(eager[0].ema.named_buffers())
    assert any(value.any() for name, value in averages.items() if "mean" in name)
    state = TrainState(make_config("smoke", ema=0), 3, torch.device("cpu"))
    assert state.ema is state.generator and "averaged" not in state.state_dict()


def test_random_streams_share_nothing():
    cases = [(seed, purpose, k) for seed in (0, 1) for purpose in ("weights", "training") for k in (0, 1)]
    assert len({step.stream_seed(*case) for case in cases}) == 8
    state = TrainState(make_config("smoke"), 1, torch.device("cpu"))
    drawn = torch.cat([state.latent(16).flatten() for _ in range(40)])
    for parameter in state.critic.parameters():  # drawn with deviation 0.02
        nearest = (parameter.flatten()[:64, None] / 0.02 - drawn).abs().min(1).values
        assert (nearest < 1e-6).float().mean() < 0.2


def test_a_compiler_that_loses_the_penalty_is_caught(smoke, monkeypatch):
    wrong = lambda critic, real, fake, x, *rest: critic_losses(critic, real, fake, x.detach() * 0, *rest)
    lossy = lambda function, device: wrong if function is critic_losses else function
    monkeypatch.setattr(step, "compiled", lossy)
    with pytest.raises(RuntimeError, match="compile=false"):
        train(smoke(compile=True), progress=False)


def test_the_check_of_a_compiled_step_changes_nothing():
    state, other = (TrainState(make_config("smoke"), 3, torch.device("cpu")) for _ in range(2))
    check_compiled(state, IMAGES, state.config.ground())
    for s in (state, other):
        critic_step(s, IMAGES, s.config.ground())
    assert torch.equal(weights(state), weights(other))


class NoWaiting(TorchDispatchMode):
    """Fails where a tensor's value is handed to Python, for which a GPU would have to be waited for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(function) and "nonzero" not in str(function), function
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("name", penalty.GROUND_METRICS)
def test_the_steps_never_wait_for_the_device(monkeypatch, name):
    for module in (penalty, points):
        monkeypatch.setattr(module, "check_range", lambda *_: None)  # looks at values, on the CPU only
    config = make_config("smoke", penalty=name, ema=0.5)
    state, ground = TrainState(config, 3, torch.device("cpu")), config.ground()
    with NoWaiting():
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            torch.ones(1).item()
        critic_step(state, IMAGES, ground)
        generator_step(state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
@pytest.mark.parametrize(
    "settings", [{}, dict(compile=True), dict(precision="bf16"), dict(compile=True, precision="bf16")]
)
def test_gpu_steps_equal_the_cpu_and_never_wait(settings):
    states, grounds = [], []
    for device in ("cpu", "cuda"):
        config = make_config("smoke", **settings | (dict(compile=False) if device == "cpu" else {}))
        states.append(TrainState(config, 3, torch.device(device)))
        grounds.append(config.ground())
    x, real, fake = (step.real_images(states[0], IMAGES) for _ in range(3))
    losses = [
        state.critic_losses(state.critic, *(t.to(state.device) for t in (real, fake, x)), ground, state.config)
        for state, ground in zip(states, grounds)
    ]
    tolerance = 5e-2 if "precision" in settings else 1e-2  # convolutions in TF32
    assert losses[1]["penalty"].item() == pytest.approx(losses[0]["penalty"].item(), rel=tolerance)
    state, images = states[1], IMAGES.cuda()
    for _ in range(3):  # compiles and records
        critic_step(state, images, grounds[1]), generator_step(state)
    torch.cuda.set_sync_debug_mode("error")
    try:
        critic_step(state, images, grounds[1]), generator_step(state)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert weights(state).isfinite().all()


def test_an_error_of_writing_a_checkpoint_ends_the_run(smoke, monkeypatch):
    monkeypatch.setattr(torch, "save", Mock(side_effect=OSError("no space left on device")))
    with pytest.raises(OSError, match="no space"):
        train(smoke(), progress=False)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    "settings",
    [dict(penalty=name) for name in penalty.GROUND_METRICS if name != "wasserstein"]
    + [dict(precision="bf16"), dict(one_sided=True), dict(architecture="resnet", size=32)],
    ids=str,
)
def test_every_form_of_the_step_compiles_to_the_same_numbers(settings, monkeypatch):
    size = settings.get("size", 16)
    images = torch.randint(0, 256, (50, 3, size, size), dtype=torch.uint8)
    config = make_config("smoke", compile=True, **settings)
    torch.compiler.reset()  # or torch's limit of compilations is reached, and the step silently stays eager
    state = TrainState(config, 3, torch.device("cpu"))
    before = counters["stats"]["unique_graphs"]
    check_compiled(state, images, config.ground())
    assert counters["stats"]["unique_graphs"] > before


def test_a_length_that_changes_counts_generator_updates_also_of_a_run_that_was_resumed(smoke):
    settings = dict(length=4.0, length_end=0, length_steps=4, steps=6)
    whole, config = train(smoke("whole", **settings), progress=False), smoke(**settings)
    lengths = [config.ground(step).length for step in range(7)]
    assert lengths == pytest.approx([4, 3, 2, 1, 0, 0, 0]) and config.ground() == config.ground(0)
    train(smoke("parts", **settings | dict(steps=3)), progress=False)
    parts = train(run_config(resume=True, run_dir=smoke("parts").run_dir, steps=6), progress=False)
    assert torch.equal(weights(parts.state), weights(whole.state))
    constant = train(smoke("constant", length=4.0, steps=2), progress=False)
    assert whole.history[0]["penalty"] == constant.history[0]["penalty"]  # the first update has the first length
    assert whole.history[1]["penalty"] != constant.history[1]["penalty"]
    half = make_config("smoke", penalty="sobolev", length=8, length_end=0.5, order=-1, steps=20)
    assert half.length_steps == 10 and half.ground(5) == penalty.Sobolev(-1, 4.25)


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(length_end=1), ("length_end needs length",)),
        (dict(length=1, length_steps=5), ("length_steps needs length_end",)),
        (dict(length=1, length_end=0, length_steps=0), ("length_steps must be at least 1", "0")),
        (dict(length=1, length_end=-2), ("length must be", "-2")),
        (dict(length=2, length_end=1, compile=True), ("compile",)),
        (dict(length="inf"), ("length must be a finite number", "inf")),
        (dict(length=2, l2=0), ("l2 > 0",)),
        (dict(length=2, degree_normalized=True), ("degree_normalized",)),
        (dict(length=2, penalty="euclidean"), ("length belongs to", "sobolev", "'euclidean'")),
        (dict(length=2, penalty="wasserstein-paper"), ("length belongs to", "'wasserstein-paper'")),
        (dict(order=-1), ("order belongs to the penalties sobolev", "'wasserstein'")),
        (dict(l2=1, penalty="sobolev"), ("l2 belongs to", "wasserstein-paper")),
    ],
    ids=str,
)
def test_settings_of_a_length_are_refused_by_name(settings, words):
    with pytest.raises(ValueError) as error:
        make_config("smoke", **settings)
    assert all(word in str(error.value) for word in words), error.value
