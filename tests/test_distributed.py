"""Several processes compute what one would, write once, go on with another number, and end when one is lost."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT

from wwgan import runs, training
from wwgan.data import load_images
from wwgan.runs import read_checkpoint
from wwgan.settings import make_config
from wwgan.training import load_run, preflight, train

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
ENVIRONMENT = os.environ | dict(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))


def run(command, seconds=120):
    return subprocess.run(
        list(map(str, command)), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=seconds
    )


@pytest.mark.parametrize(
    "options",
    [
        ["penalty=wasserstein"],
        pytest.param(["penalty=euclidean", "architecture=resnet", "size=32"], marks=pytest.mark.slow),
        pytest.param(["penalty=wasserstein-paper", "penalty_every=2", "points=real"], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_two_processes_train_the_networks_that_one_would(tmp_path, data_dir, options):
    load_images("digits", data_dir, 16)
    script, found = ROOT / "tests" / "joint_batch.py", {}
    for name, start in dict(one=[sys.executable], two=[*TORCHRUN, 2]).items():
        result = run([*start, script, tmp_path / name, data_dir, *options])
        assert result.returncode == 0, result.stderr[-3000:]
        found[name] = torch.load(tmp_path / name, weights_only=True)
    for network, weights in found["one"].items():
        for name, value in weights.items():
            torch.testing.assert_close(
                found["two"][network][name], value, rtol=1e-8, atol=1e-10, msg=f"{network} {name}"
            )


def settings(run_dir, data_dir, **changes):
    given = dict(preset="smoke", run_dir=run_dir, data_dir=data_dir, device="cpu", steps=6, eval_interval=3)
    return given | dict(eval_features="pixels", eval_samples=40) | changes


def options(**given):
    return [f"--{name}={value}" for name, value in given.items()]


def test_a_run_by_two_processes_is_written_once_and_goes_on_with_one(tmp_path, data_dir):
    module = ["-m", "wwgan.training"]
    result = run([*TORCHRUN, 2, *module, *options(**settings(tmp_path / "run", data_dir))])
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("run folder:") == 1
    both = runs.read_metrics(tmp_path / "run")
    assert [line["step"] for line in both] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in runs.read_evaluations(tmp_path / "run")] == [3, 6]
    assert len(list((tmp_path / "run").glob("events.*"))) == 1
    origin = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert origin["processes"] == [dict(rank=0, rows=[0, 8]), dict(rank=1, rows=[8, 16])]
    one = train(make_config(**settings(tmp_path / "one", data_dir)), progress=False)
    for line, expected in zip(both[:2], one.history):  # later, float32 rounding has grown
        for name in ("critic_loss", "distance", "generator_loss", "norm", "norm_wasserstein"):
            assert line[name] == pytest.approx(expected[name], rel=1e-2, abs=1e-4), name
    alone = train(make_config(run_dir=tmp_path / "run", resume=True, steps=8), progress=False)
    assert [line["step"] for line in alone.history] == list(range(1, 9))
    origin = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert len(origin["processes"]) == 2 and len(origin["resumed"][0]["processes"]) == 1
    result = run([*TORCHRUN, 2, *module, *options(run_dir=tmp_path / "run", resume=True, steps=10)])
    assert result.returncode == 0, result.stderr[-3000:]
    assert load_run(tmp_path / "run", "cpu").state.step == 10


def start_pair(run_dir, data_dir):
    """Two processes that train together, without torchrun, which would end one when the other is lost."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    together = dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    arguments = options(**settings(run_dir, data_dir, steps=100_000, checkpoint_interval=5, eval_interval=0))
    return [
        subprocess.Popen(
            [sys.executable, "-m", "wwgan.training", *arguments],
            cwd=ROOT,
            env=ENVIRONMENT | together | dict(RANK=str(rank), LOCAL_RANK=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def wait_for_updates(run_dir, processes, n=12):
    while not any(line["step"] >= n for line in runs.read_metrics(run_dir)):
        assert all(process.poll() is None for process in processes), [p.communicate()[1] for p in processes]
        time.sleep(0.05)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_others_soon_with_a_state_to_go_on_from(tmp_path, data_dir, tally, lost):
    tally["lost processes"] += 1
    run_dir = tmp_path / "run"
    processes = start_pair(run_dir, data_dir)
    try:
        wait_for_updates(run_dir, processes)
        processes[lost].kill()
        _, error = processes[1 - lost].communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert processes[1 - lost].returncode == 1
    last = error.strip().splitlines()[-1]
    assert last.startswith(f"error: process {1 - lost} of 2 ended, because it or another one") and "resume=true" in last
    step = read_checkpoint(run_dir)["step"]
    assert step >= 10
    assert train(make_config(run_dir=run_dir, resume=True, steps=step + 2), progress=False).state.step == step + 2


def test_a_signal_to_one_process_stops_all_after_the_same_update(tmp_path, data_dir):
    run_dir = tmp_path / "run"
    processes = start_pair(run_dir, data_dir)
    try:
        wait_for_updates(run_dir, processes)
        processes[1].send_signal(signal.SIGTERM)
        errors = [process.communicate(timeout=60)[1].strip().splitlines()[-1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [128 + signal.SIGTERM] * 2
    steps = [error.partition("update ")[2].partition(",")[0] for error in errors]
    assert steps[0] == steps[1] == str(read_checkpoint(run_dir)["step"])


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
