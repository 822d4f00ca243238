"""Nothing is lost and nothing half-written, whatever happens to a run: kills, signals, damaged files, full disks."""

import contextlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from filelock import FileLock
from moments import assert_equal_runs, bits, recorded

from wwgan import runs, step, training
from wwgan.runs import load_checkpoint, read_checkpoint, run_config, save_checkpoint
from wwgan.settings import make_config
from wwgan.training import load_run, train

SETTINGS = dict(preset="smoke", steps=7, width=4, batch_size=4, critic_steps=1, device="cpu", checkpoint_interval=2)
SETTINGS |= dict(sample_interval=3, eval_interval=3, eval_features="pixels", eval_samples=40)


def resume(run_dir, **changes):
    return train(run_config(resume=True, run_dir=run_dir, **changes), progress=False)


def contents(run_dir):
    return {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data_dir):
    """The folder of a run that nothing happened to."""
    config = make_config(**SETTINGS, run_dir=tmp_path_factory.mktemp("whole") / "run", data_dir=data_dir)
    return train(config, progress=False).run_dir


@pytest.mark.parametrize("again", [None, *(pytest.param(k, marks=pytest.mark.slow) for k in (10, 35, 60))])
def test_a_run_cut_off_at_any_moment_goes_on_and_ends_as_if_it_had_not_been(tmp_path, data_dir, whole, again):
    """again: the run that is cut off has itself gone on from that copy of another one."""
    settings, run_dir = SETTINGS | dict(data_dir=data_dir), tmp_path / "run"
    copies = recorded(lambda: train(make_config(**settings, run_dir=run_dir), progress=False), run_dir, tmp_path / "1")
    logs = {f"{where} {name}.jsonl" for where in ("in", "after") for name in ("metrics", "evaluations")}
    assert {copy.name[4:] for copy in copies} >= {"before fsync", "after replace", "after unlink", *logs}
    if again is not None:
        copies = recorded(lambda: resume(copies[again]), copies[again], tmp_path / "2")
    for copy in copies:
        if (copy / "config.json").exists():
            resume(copy)
        else:
            with pytest.raises(FileNotFoundError, match=r"there is no run: .*config.json does not exist"):
                resume(copy)
            train(make_config(**settings, run_dir=copy), progress=False)
        assert_equal_runs(copy, whole)


@pytest.fixture
def start(spawn, data_dir):
    """Starts or resumes a run in a process of its own; `before` is code that it executes first."""

    def begin(run_dir, before=""):
        fresh = not (run_dir / "config.json").exists()
        given = SETTINGS | dict(data_dir=data_dir, steps=40) if fresh else dict(resume=True)
        options = [f"--{name}={value}" for name, value in (given | dict(run_dir=run_dir)).items()]
        threads = f"import sys, torch; torch.set_num_threads({torch.get_num_threads()})"
        return spawn("-c", f"{threads}\n{before}\nfrom wwgan.training import main; sys.exit(main({options}))")

    return begin


def finish(process):
    _, err = process.communicate(timeout=120)
    return process.returncode, err


@pytest.fixture(scope="module")
def longer(tmp_path_factory, data_dir):
    """As `whole`, of 40 updates: a process is to be killed while it trains."""
    run_dir = tmp_path_factory.mktemp("longer") / "run"
    return train(make_config(**SETTINGS | dict(steps=40), run_dir=run_dir, data_dir=data_dir), progress=False).run_dir


@pytest.mark.slow
def test_run_killed_at_random_moments_ends_as_if_it_had_not_been(tmp_path, start, longer, tally):
    chance, killed = random.Random(24), 0
    for attempt in range(100):
        config, code = tmp_path / str(attempt) / "config.json", None
        while code != 0:
            written = config.stat().st_mtime_ns if config.exists() else None
            process = start(config.parent)
            while process.poll() is None and (not config.exists() or config.stat().st_mtime_ns == written):
                time.sleep(0.002)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0, 1) if killed < 24 else 120)
            process.kill()
            code, err = finish(process)
            assert code in (0, -signal.SIGKILL), err
            killed += code != 0
        assert_equal_runs(config.parent, longer)
        if killed >= 24:
            tally["kills at random moments"] += killed
            return
    raise AssertionError(f"only {killed} kills hit a running process")


KILL = """
import os, signal
calls, original = 0, os.{name}
def deadly(*arguments):
    global calls
    calls += 1
    result = original(*arguments) if {after} or calls < {call} else None
    return os.kill(os.getpid(), signal.SIGKILL) if calls == {call} else result
os.{name} = deadly
"""


@pytest.mark.slow
@pytest.mark.parametrize("name, after", [("fsync", False), ("replace", False), ("replace", True), ("unlink", False)])
@pytest.mark.parametrize("call", [2, 5, 30])
def test_run_killed_three_times_in_the_middle_of_writing_goes_on(tmp_path, start, longer, tally, name, after, call):
    """Also the resumed run is killed there, if it comes there."""
    ends = [finish(start(tmp_path / "run", KILL.format(name=name, after=after, call=call))) for _ in range(3)]
    assert ends[0][0] == -signal.SIGKILL and {code for code, _ in ends} <= {0, -signal.SIGKILL}, ends
    tally["kills in the middle of writing a file"] += sum(code != 0 for code, _ in ends)
    code, err = finish(start(tmp_path / "run"))
    assert code == 0, err
    assert_equal_runs(tmp_path / "run", longer)


@pytest.mark.slow
def test_two_processes_starting_in_one_folder_leave_one_whole_run(tmp_path, start, longer):
    processes = [start(tmp_path / "run") for _ in range(2)]
    results = [finish(process) for process in processes]
    assert sorted(code for code, _ in results) in ([0, 1], [0, 2]), results
    assert_equal_runs(tmp_path / "run", longer)


def test_a_run_folder_in_use_is_refused(finished_copy):
    with FileLock(finished_copy / ".lock"), pytest.raises(ValueError, match="is being written by another process"):
        resume(finished_copy, steps=7)
    assert resume(finished_copy, steps=7).history[-1]["step"] == 7


@pytest.fixture
def stopped(tmp_path, data_dir, monkeypatch):
    """stopped(number): exit code and folder of a run that this signal asks to stop in its third update."""

    def run(number):
        update, run_dir = training.update, tmp_path / "with space"
        asked = lambda state, *rest: (state.step == 2 and signal.raise_signal(number), update(state, *rest))[1]
        with monkeypatch.context() as patch:
            patch.setattr(training, "update", asked)
            given = SETTINGS | dict(run_dir=run_dir, data_dir=data_dir)
            return training.main([f"--{name}={value}" for name, value in given.items()]), run_dir

    return run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_the_state_and_say_how_to_go_on(stopped, whole, tally, capsys, number):
    code, run_dir = stopped(number)
    err = capsys.readouterr().err
    assert code == 128 + number and f"--resume --run_dir '{run_dir}'" in err and "Traceback" not in err
    assert read_checkpoint(run_dir)["step"] == 3
    resume(run_dir)
    assert_equal_runs(run_dir, whole)
    tally["signals"] += 1


def test_a_second_signal_ends_as_without_a_run_and_other_threads_are_left_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []
    with training.stop_requests() as stop:
        assert signal.getsignal(signal.SIGTERM) is not before
        signal.raise_signal(signal.SIGTERM)
        assert stop == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) is before

    def elsewhere():
        with training.stop_requests() as stop:
            seen.append((stop, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [([], before)]


def test_full_disk_stops_the_run_with_the_last_good_state(stopped, whole, tally, capsys):
    _, run_dir = stopped(signal.SIGTERM)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, before[1]))  # Python ignores the signal: writing fails
    try:
        code = training.main([f"--run_dir={run_dir}", "--resume"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    err = capsys.readouterr().err
    assert code == 1 and err.strip().splitlines()[-1].startswith("error: [Errno") and "Traceback" not in err
    assert read_checkpoint(run_dir)["step"] == 3 and not list(run_dir.rglob(".*.part"))
    resume(run_dir)
    assert_equal_runs(run_dir, whole)
    tally["full disks"] += 1


def test_read_only_run_folder_is_left_as_it_is(finished_copy, monkeypatch, capsys):
    """As on a file system mounted read-only, where opening a file for writing fails."""
    before = contents(finished_copy)

    refusal = OSError(30, "Read-only file system")
    monkeypatch.setattr("wwgan.files.write_atomically", Mock(side_effect=refusal))
    code = training.main([f"--run_dir={finished_copy}", "--resume", "--steps=8"])
    assert code == 1 and "error: [Errno 30] Read-only file system" in capsys.readouterr().err
    assert contents(finished_copy) == before


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-1], lambda data: data + b"\0"])
def test_damaged_checkpoints_are_named_and_the_one_before_is_used(finished, finished_copy, capsys, tally, damage):
    newest = finished_copy / "checkpoints" / "step_0000006.pt"
    newest.write_bytes(damage(newest.read_bytes()))
    resume(finished_copy)
    assert f"skipping a checkpoint: {newest}" in capsys.readouterr().err
    assert_equal_runs(finished_copy, finished.run_dir)
    tally["damaged checkpoints"] += 1


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="no sha256sum on this machine")
def test_checksums_are_those_of_sha256sum(finished):
    names = sorted(path.name for path in finished.run_dir.glob("checkpoints/*.sha256"))
    command = ["sha256sum", "--check", "--strict", *names]
    subprocess.run(command, cwd=finished.run_dir / "checkpoints", check=True, capture_output=True)
    assert len(names) == 4  # three steps and the best


class _Hostile(str):
    def __reduce__(self):
        return os.mkdir, (str(self),)


def test_hostile_checkpoints_execute_nothing(finished_copy, tmp_path, capsys):
    newest = finished_copy / "checkpoints" / "step_0000006.pt"
    save_checkpoint(newest, load_checkpoint(newest) | dict(seconds=_Hostile(tmp_path / "owned")))
    torch.load(newest, weights_only=False)
    (tmp_path / "owned").rmdir()  # it would have been there
    assert load_run(finished_copy, "cpu").state.step == 4
    assert not (tmp_path / "owned").exists() and "not a checkpoint of a run" in capsys.readouterr().err


OTHER_IMAGES = '{"resumed": 5, "dataset_sha256": "", "dataset_shape": []}'
SPOILT = [
    ("provenance.json", OTHER_IMAGES, "not those this run began with"),
    ("provenance.json", "[]", "provenance.json does not say"),
    ("evaluations.jsonl", '{"step": 1}\n', "evaluations.jsonl must have scores"),
    ("metrics.jsonl", "{}\n", "line 1 of .*metrics.jsonl"),
    ("checkpoints/*", None, "checkpoints of .* are gone, which had come to update 6"),
    ("checkpoints/*.sha256", None, "none of the 3 checkpoints"),
]


@pytest.mark.parametrize("files, content, words", SPOILT)
def test_a_spoilt_run_is_not_gone_on_with_and_nothing_is_written(finished_copy, capsys, files, content, words):
    for path in finished_copy.glob(files):
        path.unlink() if content is None else path.write_text(content)
    before = contents(finished_copy)
    code = training.main([f"--run_dir={finished_copy}", "--resume", "--steps=8"])
    error = capsys.readouterr().err
    assert code in (1, 2) and re.search(words, error) and "Traceback" not in error, error
    assert contents(finished_copy) == before


def test_settings_of_a_run_without_checkpoint_may_not_change(finished, finished_copy):
    for path in (*finished_copy.glob("checkpoints/*"), *finished_copy.glob("*.jsonl")):
        path.unlink()
    with pytest.raises(ValueError, match="a resumed run keeps its settings, these differ: lr"):
        resume(finished_copy, lr=0.1)
    assert bits(resume(finished_copy).history) == bits(finished.history)


def test_foreign_files_among_the_checkpoints_are_left_alone(finished_copy):
    names = [f"checkpoints/step_{name}.pt" for name in ("copy_a", "zz", "0000002 (1)")]
    foreign = [finished_copy / name for name in (*names, "samples/step_0000002 (1).png")]
    for path in foreign:
        path.write_bytes(b"mine")
    resume(finished_copy, steps=8)
    assert list(runs.checkpoints(finished_copy)) == [4, 6, 8] and all(path.read_bytes() == b"mine" for path in foreign)


def test_diverged_state_is_saved_apart(smoke, monkeypatch):
    original = step.critic_step

    def explode(state, *arguments):
        losses = original(state, *arguments)
        if state.step == 2:
            next(state.critic.parameters()).grad[0] = float("inf")
        return losses

    monkeypatch.setattr(step, "critic_step", explode)
    with pytest.raises(FloatingPointError, match="update 3: critic gradients.*diverged_0000003.pt"):
        train(smoke(), progress=False)
    (path,) = Path(smoke().run_dir).glob("checkpoints/diverged_*.pt")
    assert load_checkpoint(path)["step"] == 3 and load_run(smoke().run_dir, "cpu").state.step == 2
