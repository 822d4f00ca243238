"""The benchmark: what it compares is equal, what it reports follows from the times, and it runs by one command."""

import json
import multiprocessing
import subprocess
import sys

import pytest
import torch

from wwgan.evidence import cost as benchmark
from wwgan.evidence.cost import (
    METRICS,
    SCALES,
    PlainLoop,
    Way,
    contestants,
    hand_memory_back,
    interleaved,
    main,
    operations_of,
    peak_memory,
    ratio,
    read_records,
    sliced_squared_norm,
    summary_table,
    updates,
    written_out_squared_norm,
)
from wwgan.files import write_json
from wwgan.penalty import Wasserstein
from wwgan.settings import TrainConfig
from wwgan.step import TrainState, critic_losses

CPU = torch.device("cpu")


def images(n=40, size=16):
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("neighborhood, radius", [("von_neumann", 1), ("von_neumann", 2), ("moore", 2)])
def test_baseline_norm_equals_ours_with_its_derivative(neighborhood, radius):
    random = torch.Generator().manual_seed(0)
    x, g = (2 * torch.rand(2, 3, 3, 7, 6, dtype=torch.float64, generator=random) - 1).unbind()
    ball, results = (neighborhood, radius), []
    for norm in (Wasserstein(*ball).squared_norm, written_out_squared_norm, sliced_squared_norm):
        v = g.clone().requires_grad_()
        squared = norm(v, x) if not results else norm(v, x, *ball)
        results.append((squared.detach(), *torch.autograd.grad(squared.sum(), v)))
    for baseline in results[1:]:
        for ours, theirs in zip(results[0], baseline):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("penalty", ["euclidean", "wasserstein"])
def test_plain_loop_takes_the_gradient_of_the_same_loss(penalty, monkeypatch):
    config = TrainConfig(penalty=penalty, size=16, width=4, batch_size=8, channels_last=False)
    plain, state = PlainLoop(config, images(), CPU, workers=0), TrainState(config, 3, CPU)
    monkeypatch.setattr(plain.critic_optimizer, "step", lambda: None)  # keep the gradient where it is
    real, epsilon = (2 * torch.rand(2, 8, 3, 16, 16) - 1).unbind()
    plain.batches = iter([real])
    epsilon = (epsilon + 1) / 2
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: epsilon[:, :1, :1, :1])
    z = state.latent(8)
    monkeypatch.setattr(plain.state, "latent", lambda n: z)
    plain.critic_step()
    with torch.no_grad():
        fake = state.generator(z)
    x = epsilon[:, :1, :1, :1] * real + (1 - epsilon[:, :1, :1, :1]) * fake
    loss = critic_losses(state.critic, real, fake, x, config.ground(), config)["critic_loss"]
    loss.backward()
    for ours, theirs in zip(state.critic.parameters(), plain.critic.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-6)


def test_every_candidate_runs_once_a_round_in_changing_order():
    calls = []
    timers = {name: lambda name=name: calls.append(name) or float(len(calls)) for name in "abc"}
    seconds = interleaved(timers, rounds=20, warmup=1, seed=3)
    rounds = [tuple(calls[k : k + 3]) for k in range(0, len(calls), 3)]
    assert len(rounds) == 21 and all(set(r) == set("abc") for r in rounds) and len(set(rounds)) > 3
    assert all(len(times) == 20 for times in seconds.values()) and min(map(min, seconds.values())) > 3


def test_ratio_is_the_median_of_ratios_with_quartiles():
    seconds = dict(a=[2.0, 6.0, 12.0, 4.0, 100.0], b=[1.0, 2.0, 3.0, 4.0, 5.0])  # ratios 2, 3, 4, 1, 20
    assert ratio(seconds, "a", "b") == [3.0, 2.0, 4.0]
    assert ratio(dict(a=[3.0], b=[2.0]), "a", "b") == [1.5, 1.5, 1.5]


A_TENSOR = 64 * 2**20


def peak_of_two_tensors():
    hand_memory_back()
    return peak_memory(lambda: torch.ones(A_TENSOR // 4).add(1), CPU)


def test_peak_memory_counts_what_is_held_at_once():
    with multiprocessing.get_context("spawn").Pool(1) as fresh:
        peak = fresh.apply(peak_of_two_tensors)
    if peak is None:
        pytest.skip("this system does not tell a process its peak of memory")
    assert 1.9 * A_TENSOR < peak < 2.5 * A_TENSOR


@pytest.mark.parametrize("way", [dict(), dict(plain=True), dict(activations=False)], ids=str)
@pytest.mark.parametrize("penalty", ["euclidean", "wasserstein"])
def test_every_way_trains(way, penalty):
    config = TrainConfig(penalty=penalty, size=16, width=4, batch_size=8, critic_steps=1, channels_last=False)
    update = updates(Way(config, **way), images(), CPU, workers=0)
    operations = [operations_of(update) for _ in range(2)]
    assert operations[0] == operations[1] > 0


def test_contestants_live_in_processes_of_their_own_and_go_when_done():
    config = TrainConfig(penalty="euclidean", size=16, width=4, batch_size=8, critic_steps=1, channels_last=False)
    ways = {"ours": Way(config), "plain": Way(config, plain=True)}
    with contestants(ways, images(), CPU, n=1, workers=1) as timers:
        assert set(timers) == set(ways) and all(timer() > 0 for timer in timers.values())
    assert not multiprocessing.active_children()


def test_a_contestant_that_fails_does_not_hang():
    wrong = TrainConfig(size=32, width=4, batch_size=8)  # images of another size
    with pytest.raises((EOFError, ConnectionError)):
        with contestants({"wrong": Way(wrong)}, images(size=16), CPU, n=1) as timers:
            timers["wrong"]()


@pytest.mark.slow  # test_end_to_end measures at smoke size too
def test_one_command_measures_prints_and_records(tmp_path):
    out = tmp_path / "deep" / "cost_cpu.json"
    run = subprocess.run(
        [sys.executable, "-m", "wwgan.evidence.cost", "--scale", "smoke", "--device", "cpu", "--out", str(out)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    record = json.loads(out.read_text())
    assert run.stdout.strip() == summary_table({record["provenance"]["device"]: record})
    assert record["provenance"]["versions"]["torch"] and record["rounds"] == SCALES["smoke"].rounds
    assert set(record["steps"][0]["to_euclidean"]) == set(METRICS)
    assert record["steps"][0]["to_euclidean"]["Euclidean"] == [1.0, 1.0, 1.0]
    assert not any("seconds" in part for part in (record["training"], *record["steps"]))  # a CPU's are not kept
    peaks = record["memory"]["peak_bytes"]
    assert set(METRICS) < set(peaks) and all(peak is None or peak >= 0 for peak in peaks.values())
    assert all(0 < row["to_copy"][1] <= row["to_copy"][0] <= row["to_copy"][2] for row in record["penalties"])


@pytest.mark.parametrize(
    "arguments, words", [(["--scale", "smok"], "did you mean 'smoke'"), (["--device", "gpu"], "cuda")]
)
def test_wrong_options_are_refused_with_one_line_and_code_2(arguments, words, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_records_are_read_back_and_a_missing_one_is_not_measured(tmp_path):
    assert read_records(tmp_path) == {"CPU": None, "GPU": None}
    write_json(tmp_path / benchmark.RESULTS["CPU"], dict(a=1))
    assert read_records(tmp_path) == {"CPU": dict(a=1), "GPU": None}


def test_recorded_results_say_where_they_were_measured_and_the_readme_shows_them(root):
    records = read_records(root / "data" / "results")
    for record in filter(None, records.values()):
        assert record["rounds"] >= 10 and record["provenance"]["device"] and record["provenance"]["versions"]["torch"]
    assert records["CPU"], "the recorded run on a CPU is missing"
    rows = summary_table(records).split("\n")
    shown = [
        line for line in (root / "README.md").read_text(encoding="utf-8").split("\n") if " / " in line and "–" in line
    ]
    assert len(shown) > 2 and {*shown} <= {*rows}


def test_notebook_says_of_the_frechet_distance_what_was_recorded(root):
    recorded = json.loads((root / "data" / "results" / "frechet_cpu.json").read_text())
    times = {row["samples"]: row["times_ours"] for row in recorded["frechet"] if row["features"] == 2048}
    few, many = ([times[n][name][0] for name in ("matrix root", "eigenvalues")] for n in (2000, 5000))
    notebook = (root / "nbs" / "method" / "07_evaluation.ipynb").read_text(encoding="utf-8")
    assert f"{few[0]:.1f} times as fast as SciPy's and {few[1]:.1f} times as fast as torch-fidelity's" in notebook
    assert f"for 5,000 samples {many[0]:.1f} and {many[1]:.2f} times" in notebook
    assert max(max(row["relative_difference"].values()) for row in recorded["frechet"]) < 1e-6
