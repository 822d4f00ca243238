"""Several processes compute what one would, write once, go on with another number, and end when one is lost."""

import json
import signal
import socket
import time

import joint_batch
import pytest
import torch

from wwgan import runs, training
from wwgan.data import load_images
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


def ended(processes, code=0):
    """What each process said on standard output and standard error, when all have ended."""
    said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [code] * len(processes), said[0][1][-3000:]
    return said


@pytest.mark.parametrize(
    "options",
    [
        ["penalty=wasserstein"],
        pytest.param(["penalty=euclidean", "architecture=resnet", "size=32"], marks=pytest.mark.slow),
        pytest.param(["penalty=wasserstein-paper", "penalty_every=2", "points=real"], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_two_processes_train_the_networks_that_one_would(tmp_path, data_dir, start, options):
    load_images("digits", data_dir, 16)
    found = {}
    for count in (1, 2):
        ended(start(count, joint_batch.main, tmp_path / str(count), data_dir, *options))
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
    said = ended(start(2, *smoke_options(run_dir, data_dir, steps=6, **evaluated)))
    assert "run folder:" in said[0][0] and said[1][0] == ""
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
    ended(start(2, *options(run_dir=run_dir, resume=True, steps=10)))
    assert load_run(run_dir, "cpu").state.step == 10


@pytest.fixture
def endless(tmp_path, data_dir, start):
    """The folder of a run of two processes that is under way, and the processes."""
    run_dir = tmp_path / "run"
    processes = start(2, *smoke_options(run_dir, data_dir, steps=100_000, checkpoint_interval=5))
    while not any(line["step"] >= 12 for line in runs.read_metrics(run_dir)):
        assert all(process.poll() is None for process in processes), [p.communicate()[1] for p in processes]
        time.sleep(0.05)
    return run_dir, processes


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_others_soon_with_a_state_to_go_on_from(endless, tally, lost):
    run_dir, processes = endless
    with tally("kills", "one of two processes"):
        processes[lost].kill()
        ((_, error),) = ended([processes[1 - lost]], code=1)
        last = error.strip().splitlines()[-1]
        assert last.startswith(f"error: process {1 - lost} of 2 ended, because it or another") and "resume=true" in last
        step = runs.read_checkpoint(run_dir)["step"]
        assert step >= 10
        resumed = runs.run_config(run_dir=run_dir, resume=True, steps=step + 2)
        assert train(resumed, progress=False).state.step == step + 2


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_to_one_process_stops_all_after_the_same_update(endless, name):
    run_dir, processes = endless
    processes[1].send_signal(getattr(signal, name))
    said = [process.communicate(timeout=60)[1].strip().splitlines()[-1] for process in processes]
    codes = [process.returncode for process in processes]
    assert codes[1] == 128 + getattr(signal, name) and codes[0] == 128 + signal.SIGTERM  # who was not asked, says so
    steps = [error.partition("update ")[2].partition(",")[0] for error in said]
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
