"""Several processes compute what one would, write once, go on with another number, and end when one is lost."""

import json
import os
import signal
import socket
import time

import pytest
import torch
from conftest import ended

from wwgan import runs, step, training
from wwgan.data import load_images
from wwgan.distributed import joined_processes, rank
from wwgan.settings import make_config
from wwgan.training import load_run, preflight, train

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")


@pytest.fixture
def start(fork):
    """Starts as many processes that train together, without torchrun, which would end one when the other is lost."""

    def begin(count, function, *arguments):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        together = dict(WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
        return [fork(function, *arguments, **together, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(count)]

    return begin


def all_said(processes):
    """What each process said on standard output, when all have ended well."""
    found = [ended(process) for process in processes]
    assert [code for code, *_ in found] == [0] * len(processes), found[0][2][-3000:]
    return [said for _, said, _ in found]


def train_jointly(path, data_dir, options):
    """In each of the processes: some updates in float64; the first one saves the networks."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # the step asks for single precision in places
    single = step.real_images
    step.real_images = lambda *arguments: single(*arguments).double()
    config = make_config("smoke", device="cpu", **options)
    with joined_processes():
        images = load_images("digits", data_dir, config.size)
        state = step.TrainState(config, images.shape[1], torch.device("cpu"))
        for _ in range(3):
            step.update(state, images, config.ground())
        if rank() == 0:
            networks = dict(generator=state.generator, critic=state.critic, averaged=state.ema)
            torch.save({name: network.state_dict() for name, network in networks.items()}, path)


@pytest.mark.parametrize(
    "options",
    [
        dict(penalty="wasserstein"),
        pytest.param(dict(penalty="euclidean", architecture="resnet", size=32), marks=pytest.mark.slow),
        pytest.param(dict(penalty="wasserstein-paper", penalty_every=2, points="real"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_two_processes_train_the_networks_that_one_would(tmp_path, data_dir, start, options):
    load_images("digits", data_dir, 16)
    found = {}
    for count in (1, 2):
        all_said(start(count, train_jointly, tmp_path / str(count), data_dir, options))
        found[count] = torch.load(tmp_path / str(count), weights_only=True)
    for network, weights in found[1].items():
        for name, value in weights.items():
            torch.testing.assert_close(found[2][network][name], value, rtol=1e-8, atol=1e-10, msg=f"{network} {name}")


def options(**given):
    return training.main, [f"--{name}={value}" for name, value in given.items()]


def smoke_options(run_dir, data_dir, **changes):
    return options(preset="smoke", run_dir=run_dir, data_dir=data_dir, device="cpu", **changes)


def test_a_run_by_two_processes_is_written_once_and_goes_on_with_one(finished, tmp_path, data_dir, start):
    run_dir, evaluated = tmp_path / "run", dict(eval_interval=2, eval_features="pixels", eval_samples=40)
    said = all_said(start(2, *smoke_options(run_dir, data_dir, steps=6, **evaluated)))
    assert "run folder:" in said[0] and said[1] == ""
    both = runs.read_metrics(run_dir)
    assert [line["step"] for line in both] == [1, 2, 3, 4, 5, 6] and len(list(run_dir.glob("events.*"))) == 1
    assert [line["step"] for line in runs.read_evaluations(run_dir)] == [2, 4, 6]
    assert runs.read_provenance(run_dir)["processes"] == [dict(rank=0, rows=[0, 8]), dict(rank=1, rows=[8, 16])]
    for line, expected in zip(both[:2], finished.history):  # later, float32 rounding has grown
        for name in ("critic_loss", "distance", "generator_loss", "norm", "norm_wasserstein"):
            assert line[name] == pytest.approx(expected[name], rel=1e-2, abs=1e-4), name
    alone = train(runs.run_config(run_dir=run_dir, resume=True, steps=8), progress=False)
    assert [line["step"] for line in alone.history] == list(range(1, 9))
    provenance = json.loads((run_dir / "provenance.json").read_text())
    assert len(provenance["processes"]) == 2 and len(provenance["resumed"][0]["processes"]) == 1
    all_said(start(2, *options(run_dir=run_dir, resume=True, steps=10)))
    assert load_run(run_dir, "cpu").state.step == 10


@pytest.fixture
def endless(tmp_path, data_dir, start):
    """The folder of a run of two processes that is under way, and the processes."""
    run_dir = tmp_path / "run"
    processes = start(2, *smoke_options(run_dir, data_dir, steps=100_000, checkpoint_interval=5))
    while not any(line["step"] >= 12 for line in runs.read_metrics(run_dir)):
        assert all(process.is_alive() for process in processes), [*map(ended, processes)]
        time.sleep(0.05)
    return run_dir, processes


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_others_soon_with_a_state_to_go_on_from(endless, tally, lost):
    run_dir, processes = endless
    tally("kills", "one of two processes")
    processes[lost].kill()
    code, _, error = ended(processes[1 - lost])
    last = error.strip().splitlines()[-1]
    assert code == 1 and "resume=true" in last
    assert last.startswith(f"error: process {1 - lost} of 2 ended, because it or another")
    done = runs.read_checkpoint(run_dir)["step"]
    assert done >= 10
    resumed = runs.run_config(run_dir=run_dir, resume=True, steps=done + 2)
    assert train(resumed, progress=False).state.step == done + 2


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_to_one_process_stops_all_after_the_same_update(endless, name):
    run_dir, processes = endless
    os.kill(processes[1].pid, getattr(signal, name))
    codes, _, said = zip(*map(ended, processes))
    assert codes == (128 + signal.SIGTERM, 128 + getattr(signal, name))  # who was not asked, says so
    steps = [error.strip().splitlines()[-1].partition("update ")[2].partition(",")[0] for error in said]
    assert steps[0] == steps[1] == str(runs.read_checkpoint(run_dir)["step"])


@pytest.mark.parametrize(
    "given, words",
    [
        (dict(batch_size=15), "batch_size must be a multiple of the 2 processes, got 15"),
        (dict(compile=True), "single process"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(smoke, monkeypatch, given, words):
    monkeypatch.setattr(training, "world_size", lambda: 2)
    monkeypatch.setattr(training, "rank", lambda: 1)
    with pytest.raises(ValueError, match=words):
        preflight(smoke(**given))
