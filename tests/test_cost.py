"""What the benchmark compares is equal, what it reports follows from the times, and it runs by one command."""

import multiprocessing

import pytest
import torch
from conftest import ROOT

from wwgan import cli
from wwgan.evidence import cost
from wwgan.evidence.baselines import plain_critic_losses, plain_updates, torch_activations, written_out_squared_norm
from wwgan.evidence.cost import interleaved, main, ratio, read_costs, step_costs, summary_table
from wwgan.networks import LeakyReLU
from wwgan.penalty import Wasserstein
from wwgan.settings import TrainConfig
from wwgan.step import TrainState, critic_losses

CPU = torch.device("cpu")
SMALL = dict(size=16, width=4, batch_size=8, critic_steps=1, channels_last=False)


def images(n=40, size=16):
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("ball", [("von_neumann", 1), ("von_neumann", 2), ("moore", 2)])
def test_norm_by_convolutions_equals_ours_with_its_derivative(ball):
    random = torch.Generator().manual_seed(0)
    x, g = (2 * torch.rand(2, 3, 3, 7, 6, dtype=torch.float64, generator=random) - 1).unbind()
    v = g.clone().requires_grad_()
    squared = Wasserstein(*ball).squared_norm(v, x), written_out_squared_norm(v, x, *ball)
    derivatives = [torch.autograd.grad(one.sum(), v)[0] for one in squared]
    for ours, theirs in (squared, derivatives):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("penalty", ["euclidean", "wasserstein"])
def test_plain_loop_takes_the_gradient_of_the_same_loss(penalty):
    config, random = TrainConfig(penalty=penalty, **SMALL), torch.Generator().manual_seed(0)
    real, fake = (2 * torch.rand(2, 8, 3, 16, 16, generator=random) - 1).unbind()
    epsilon = torch.rand(8, 1, 1, 1, generator=random)
    ours, plain = (TrainState(config, 3, CPU).critic for _ in range(2))
    assert not any(isinstance(module, LeakyReLU) for module in torch_activations(plain).modules())
    found = plain_critic_losses(plain, real, fake, epsilon, config)
    x = epsilon * real + (1 - epsilon) * fake
    losses = critic_losses(ours, real, fake, x, config.ground(), config)
    losses["critic_loss"].backward()
    assert found == pytest.approx({name: losses[name].item() for name in found}, rel=1e-4)
    for mine, theirs in zip(ours.parameters(), plain.parameters()):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_the_plain_loop_is_served_by_processes_that_go_when_it_goes():
    plain = plain_updates(TrainConfig(**SMALL), images(), CPU, workers=1)
    next(plain)
    assert len(multiprocessing.active_children()) == 1
    plain.close()
    assert not multiprocessing.active_children()


def test_every_candidate_runs_in_every_round_in_changing_order():
    calls = []
    candidates = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = interleaved(candidates, rounds=20, device=CPU, n=2)
    rounds = [tuple(calls[k : k + 6 : 2]) for k in range(0, len(calls), 6)]
    assert calls[::2] == calls[1::2] and len(rounds) == 22
    assert all(set(r) == set("abc") for r in rounds) and len(set(rounds)) > 3
    assert all(len(times) == 20 for times in seconds.values()) and min(map(min, seconds.values())) > 0


def test_ratio_is_the_median_of_ratios_with_quartiles():
    seconds = dict(a=[2.0, 6.0, 12.0, 4.0, 100.0], b=[1.0, 2.0, 3.0, 4.0, 5.0])  # ratios 2, 3, 4, 1, 20
    assert ratio(seconds, "a", "b") == [3.0, 2.0, 4.0]
    assert ratio(dict(a=[3.0], b=[2.0]), "a", "b") == [1.5, 1.5, 1.5]


def test_a_step_is_taken_with_each_candidates_settings(monkeypatch):
    taken = []
    monkeypatch.setattr(cost, "critic_step", lambda state, images, ground: taken.append((state.config, ground)))
    monkeypatch.setattr(cost, "interleaved", lambda calls, *_: {name: [call() or 1.0] for name, call in calls.items()})
    for candidates, to in ((cost.METRICS, "Euclidean"), (cost.PLACES, "straight")):
        taken.clear()
        (row,) = step_costs(candidates, to, None, cost.SCALES["smoke"], CPU)
        assert row[f"to_{to.lower()}"] == dict.fromkeys(candidates, [1.0] * 3)
        for (config, ground), given in zip(taken, candidates.values(), strict=True):
            assert ground == config.ground() and config.batch_size == row["batch"] == 8
            assert all(getattr(config, name) == value for name, value in (given or {}).items())


def test_wrong_options_are_refused_with_one_line_and_code_2(capsys):
    for arguments, words in ((["--scale", "smok"], "did you mean 'smoke'"), (["--device", "gpu"], "cuda")):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1


def test_records_are_read_back_and_the_readme_shows_them(tmp_path, monkeypatch, capsys):
    records = read_costs(ROOT / "data" / "results")
    record = records["CPU"]
    assert record["rounds"] >= 10 and record["provenance"]["device"] and record["provenance"]["versions"]["torch"]
    monkeypatch.setattr(cost, "measure", lambda scale, device, only: record)
    assert cli.main(["bench", "--out", str(tmp_path / "cost_cpu.json")]) == 0
    assert capsys.readouterr().out.strip() == summary_table({record["provenance"]["device"]: record})
    assert read_costs(tmp_path) == records == dict(CPU=record, GPU=None)
    readme = (ROOT / "README.md").read_text(encoding="utf-8").split("\n")
    shown = [line for line in readme if " / " in line and "–" in line]
    assert len(shown) > 2 and {*shown} <= {*summary_table(records).split("\n")}
