"""Nothing is lost and nothing half-written, whatever happens to a run: kills, signals, damaged files, full disks."""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from wwgan import runs, step, training
from wwgan.runs import load_checkpoint, read_checkpoint, run_config, save_checkpoint
from wwgan.training import load_run, train

SETTINGS = dict(steps=40, checkpoint_interval=1, log_interval=1, sample_interval=10, eval_interval=10, ema=0.9)
SETTINGS |= dict(eval_features="pixels", eval_samples=40)


def command(run_dir, data_dir, **changes):
    settings = dict(preset="smoke", run_dir=run_dir, data_dir=data_dir, device="cpu") | SETTINGS | changes
    if (Path(run_dir) / "config.json").exists():
        settings = dict(run_dir=run_dir, resume=True)
    options = [f"--{name}={value}" for name, value in settings.items()]
    return [sys.executable, "-m", "wwgan.training", *options]


def start(run_dir, data_dir, before="", **changes):
    """A run in a process of its own; `before` is code that it executes first."""
    argv = command(run_dir, data_dir, **changes)
    run = f"from wwgan.training import main; sys.exit(main({argv[3:]}))"
    code = f"import sys, torch; torch.set_num_threads(1); {before}\n{run}"
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipe)


def finish(process, seconds=120):
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def flat(value, name=""):
    if isinstance(value, dict):
        return [entry for key in sorted(value, key=str) for entry in flat(value[key], f"{name}/{key}")]
    if isinstance(value, (list, tuple)):
        return [entry for k, part in enumerate(value) for entry in flat(part, f"{name}/{k}")]
    return [(name, value.tolist() if isinstance(value, torch.Tensor) else value)]


def untimed(lines):
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]


def what_a_run_left(run_dir):
    """All that must not depend on what happened on the way: state, logs, pictures."""
    checkpoint = read_checkpoint(run_dir)
    config = {k: v for k, v in checkpoint.pop("config").items() if k not in ("run_dir", "resume", "data_dir")}
    checkpoint.pop("seconds")
    names = sorted(str(path.relative_to(run_dir)) for path in Path(run_dir).rglob("*") if "events" not in path.name)
    return dict(
        config=config,
        state=flat(checkpoint),
        metrics=untimed(runs.read_metrics(run_dir)),
        evaluations=untimed(runs.read_evaluations(run_dir)),
        best=read_checkpoint(run_dir, best=True)["step"],
        pictures={path.name: path.read_bytes() for path in Path(run_dir).glob("samples/*.png")},
        names=names,
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory, data_dir):
    """What a run leaves that nothing happened to."""
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    code, _, err = finish(start(run_dir, data_dir))
    assert code == 0, err
    return what_a_run_left(run_dir)


def assert_equal_runs(run_dir, reference):
    left = what_a_run_left(run_dir)
    for part, expected in reference.items():
        assert left[part] == expected, part


def kill_at_random(run_dir, data_dir, chance):
    """Start or resume the run and kill it at a random moment. Returns whether it was still running then."""
    process = start(run_dir, data_dir)
    deadline, began = time.time() + 60, None
    wait = chance.uniform(0, 2.0)
    while process.poll() is None and time.time() < deadline:
        if began is None and (Path(run_dir) / "config.json").exists():
            began = time.time()
        if began and time.time() - began > wait:
            break
        time.sleep(0.002)
    process.kill()
    finish(process)
    return process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("kills", [3, pytest.param(24, marks=pytest.mark.slow)])
def test_run_killed_at_random_moments_ends_as_if_it_had_not_been(tmp_path, data_dir, reference, tally, kills):
    chance, killed, run_dir = random.Random(kills), 0, None
    for attempt in range(10 * kills):
        run_dir = run_dir or tmp_path / f"run{attempt}"
        killed += kill_at_random(run_dir, data_dir, chance)
        try:
            finished = read_checkpoint(run_dir)["step"] == SETTINGS["steps"]
        except FileNotFoundError:
            finished = False
        if killed >= kills or finished:
            code, _, err = finish(start(run_dir, data_dir))
            assert code == 0, err
            assert_equal_runs(run_dir, reference)
            run_dir = None
            if killed >= kills:
                tally["kills at random moments"] += killed
                return
    raise AssertionError(f"only {killed} kills hit a running process")


KILL = """
import os, signal
calls, original = [0], os.{name}
def deadly(*arguments):
    calls[0] += 1
    if {after}: original(*arguments)
    if calls[0] == {call}: os.kill(os.getpid(), signal.SIGKILL)
    if not {after}: return original(*arguments)
os.{name} = deadly
"""


MOMENTS = [
    (name, after, call)
    for name, after in (("fsync", False), ("replace", False), ("replace", True))
    for call in (1, 2, 3, 4, 5, 6, 30, 61)
]


@pytest.mark.parametrize(
    "name, after, call",
    [("replace", False, 7), *(pytest.param(*moment, marks=pytest.mark.slow) for moment in MOMENTS)],
)
def test_run_killed_in_the_middle_of_writing_a_file_goes_on(tmp_path, data_dir, reference, tally, name, after, call):
    code, _, err = finish(start(tmp_path / "run", data_dir, KILL.format(name=name, after=after, call=call)))
    assert code == -signal.SIGKILL, err
    code, _, err = finish(start(tmp_path / "run", data_dir))
    assert code == 0, err
    assert_equal_runs(tmp_path / "run", reference)
    tally["kills in the middle of writing a file"] += 1


DEADLY = """
import os, signal
original = os.{name}
def deadly(*arguments):
    hit = arguments[-1 if '{name}' == 'replace' else 0]
    if str(hit).endswith('{file}'):
        original(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)
os.{name} = deadly
"""


@pytest.mark.parametrize(
    "name, file",
    [
        ("replace", "step_0000000.pt"),
        pytest.param("replace", "step_0000000.pt.sha256", marks=pytest.mark.slow),
        pytest.param("replace", "best_0000010.pt", marks=pytest.mark.slow),
        pytest.param("replace", "metrics.jsonl", marks=pytest.mark.slow),
        pytest.param("unlink", "step_0000003.pt", marks=pytest.mark.slow),
        pytest.param("unlink", "best_0000010.pt", marks=pytest.mark.slow),
    ],
)
def test_run_killed_twice_at_the_same_file_goes_on(tmp_path, data_dir, reference, tally, name, file):
    """Also the resumed run is killed there, if it writes or removes that file again."""
    deadly = DEADLY.format(name=name, file=file)
    code, _, err = finish(start(tmp_path / "run", data_dir, deadly))
    for _ in range(2):
        again, _, err = finish(start(tmp_path / "run", data_dir, deadly))
        assert again in (0, -signal.SIGKILL), err
        tally["kills in the middle of writing a file"] += again != 0
    assert finish(start(tmp_path / "run", data_dir))[0] == 0
    assert_equal_runs(tmp_path / "run", reference)


def test_run_killed_before_its_second_checkpoint_has_no_doubles(tmp_path, data_dir, tally):
    sparse = dict(steps=30, checkpoint_interval=1000, eval_interval=1)
    for name in ("whole", "killed"):
        process = start(tmp_path / name, data_dir, **sparse)
        if name == "killed":
            while len(runs.read_evaluations(tmp_path / name)) < 4:
                time.sleep(0.005)
            process.kill()
            tally["kills at random moments"] += 1
        finish(process)
    assert finish(start(tmp_path / "killed", data_dir))[0] == 0
    whole = what_a_run_left(tmp_path / "whole")
    assert_equal_runs(tmp_path / "killed", whole)
    assert [line["step"] for line in whole["evaluations"]] == list(range(1, 31))
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(tmp_path / "killed"))
    events.Reload()
    assert [event.step for event in events.Scalars("distance")] == list(range(1, 31))


def test_lost_checkpoints_are_not_taken_for_a_run_that_never_began(smoke):
    run = train(smoke(), progress=False)
    for path in run.run_dir.glob("checkpoints/*"):
        path.unlink()
    before = {path: path.read_bytes() for path in run.run_dir.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(ValueError, match="checkpoints of .* are gone, which had come to update 4"):
        train(run_config(resume=True, run_dir=run.run_dir, steps=8), progress=False)
    assert {path: path.read_bytes() for path in before} == before


def test_settings_of_a_run_without_checkpoint_may_not_change(smoke):
    run = train(smoke(), progress=False)
    for path in (*run.run_dir.glob("checkpoints/*"), run.run_dir / "metrics.jsonl"):
        path.unlink()
    with pytest.raises(ValueError, match="a resumed run keeps its settings, these differ: lr"):
        train(run_config(resume=True, run_dir=run.run_dir, lr=0.1), progress=False)
    again = train(run_config(resume=True, run_dir=run.run_dir), progress=False)
    assert untimed(again.history) == untimed(run.history)


def test_foreign_files_among_the_checkpoints_are_left_alone(smoke):
    run = train(smoke(), progress=False)
    folder = run.run_dir / "checkpoints"
    for name in ("step_copy_a.pt", "step_zz.pt", "step_0000002 (1).pt"):
        (folder / name).write_bytes(b"mine")
    (run.run_dir / "samples" / "step_0000002 (1).png").write_bytes(b"mine")
    train(run_config(resume=True, run_dir=run.run_dir, steps=8), progress=False)
    assert [int(path.stem[5:]) for path in sorted(folder.glob("step_0*[0-9].pt"))] == [4, 6, 8]
    assert (folder / "step_zz.pt").exists() and (run.run_dir / "samples" / "step_0000002 (1).png").exists()


@pytest.mark.parametrize(
    "file, content, words",
    [
        (
            "provenance.json",
            '{"resumed": 5, "dataset_sha256": "", "dataset_shape": []}',
            "not those this run began with",
        ),
        ("provenance.json", "[]", "provenance.json does not say"),
        ("evaluations.jsonl", '{"step": 1}\n', "evaluations.jsonl must have scores"),
        ("metrics.jsonl", "{}\n", "line 1 of .*metrics.jsonl"),
        ("config.json", "{", "config.json does not hold JSON"),
    ],
)
def test_spoilt_records_stop_a_resumed_run_before_anything_is_written(smoke, capsys, file, content, words):
    run = train(smoke(), progress=False)
    (run.run_dir / file).write_text(content)
    before = {path: path.read_bytes() for path in run.run_dir.rglob("*") if path.is_file() and path.name != ".lock"}
    code = training.main([f"--run_dir={run.run_dir}", "--resume", "--steps=6"])
    error = capsys.readouterr().err
    assert code in (1, 2) and re.search(words, error) and "Traceback" not in error, error
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signals_save_the_state_and_say_how_to_go_on(tmp_path, data_dir, reference, tally, name):
    run_dir = tmp_path / "with space"
    process = start(run_dir, data_dir, checkpoint_interval=1000)
    while len(runs.read_metrics(run_dir)) < 3:
        time.sleep(0.01)
        assert process.poll() is None, process.stderr.read()
    process.send_signal(getattr(signal, name))
    code, _, err = finish(process)
    assert code == 128 + getattr(signal, name) and f"--resume --run_dir '{run_dir}'" in err and "Traceback" not in err
    step = read_checkpoint(run_dir)["step"]
    assert 3 <= step < SETTINGS["steps"]
    assert finish(start(run_dir, data_dir))[0] == 0
    left = what_a_run_left(run_dir)
    assert left["state"] == reference["state"] and left["metrics"] == reference["metrics"]
    tally["signals"] += 1


def test_a_second_signal_ends_the_process_at_once():
    code = (
        "import os, signal\nfrom wwgan.training import stop_requests\n"
        "with stop_requests() as stop:\n os.kill(os.getpid(), signal.SIGTERM)\n assert stop == [signal.SIGTERM]\n"
        " os.kill(os.getpid(), signal.SIGTERM)\n print('still here')"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == -signal.SIGTERM and "still here" not in result.stdout


def test_handlers_of_signals_are_put_back_and_other_threads_are_left_alone():
    import threading

    before = signal.getsignal(signal.SIGTERM)
    with training.stop_requests():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    seen = []

    def elsewhere():
        with training.stop_requests() as stop:
            seen.append((stop, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [([], before)]


DAMAGES = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "one bit": lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
    "longer": lambda data: data + b"\0",
    "foreign": lambda data: b"P6 1 1 255 abc",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints_are_named_and_the_one_before_is_used(smoke, capsys, tally, damage):
    whole = train(smoke("whole"), progress=False)
    run = train(smoke(), progress=False)
    newest = run.run_dir / "checkpoints" / "step_0000004.pt"
    newest.write_bytes(DAMAGES[damage](newest.read_bytes()))
    resumed = train(run_config(resume=True, run_dir=run.run_dir), progress=False)
    assert f"skipping a checkpoint: {newest}" in capsys.readouterr().err
    assert untimed(resumed.history) == untimed(whole.history)
    assert flat(load_checkpoint(newest)["critic"]) == flat(read_checkpoint(whole.run_dir)["critic"])
    tally["damaged checkpoints"] += 1


@pytest.mark.parametrize(
    "content, words",
    [
        (dict(step=4), "not a checkpoint of a run"),
        (dict(step=4, config=dict(lr="fast")), "lr must be a number"),
        (dict(config={}, channels=1), "no .*critic.*generator"),
        ([1, 2], "not a checkpoint of a run"),
    ],
)
def test_foreign_files_with_a_checksum_are_refused(tmp_path, content, words):
    save_checkpoint(tmp_path / "step_0000004.pt", content)
    with pytest.raises(ValueError, match=words):
        load_checkpoint(tmp_path / "step_0000004.pt")


def test_run_refuses_when_no_checkpoint_is_whole(smoke):
    run = train(smoke(), progress=False)
    for path in run.run_dir.glob("checkpoints/*.sha256"):
        path.unlink()
    before = {path: path.read_bytes() for path in run.run_dir.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="none of the 3 checkpoints"):
        train(run_config(resume=True, run_dir=run.run_dir, steps=8), progress=False)
    assert {path: path.read_bytes() for path in before} == before


def test_checksums_are_those_of_sha256sum(smoke):
    if not shutil.which("sha256sum"):
        pytest.skip("no sha256sum on this machine")
    folder = train(smoke(), progress=False).run_dir / "checkpoints"
    names = sorted(path.name for path in folder.glob("*.sha256"))
    assert len(names) == 3
    subprocess.run(["sha256sum", "--check", "--strict", *names], cwd=folder, check=True, capture_output=True)


class _Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_hostile_checkpoints_execute_nothing(smoke, tmp_path, capsys):
    run = train(smoke(), progress=False)
    newest = run.run_dir / "checkpoints" / "step_0000004.pt"
    save_checkpoint(newest, load_checkpoint(newest) | dict(seconds=_Hostile(tmp_path / "owned")))
    torch.load(newest, weights_only=False)
    assert (tmp_path / "owned").exists()  # it would have
    (tmp_path / "owned").rmdir()
    assert load_run(run.run_dir, "cpu").state.step == 2
    assert not (tmp_path / "owned").exists() and "not a checkpoint of a run" in capsys.readouterr().err


def limit_files_to(size):
    """What a full disk is like: writing beyond so many bytes fails."""
    return f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {resource.RLIM_INFINITY}))"


def test_full_disk_stops_the_run_with_the_last_good_state(tmp_path, data_dir, reference, tally):
    run_dir = tmp_path / "run"
    process = start(run_dir, data_dir)
    while len(runs.read_metrics(run_dir)) < 5:
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    finish(process)
    step = read_checkpoint(run_dir)["step"]
    code, _, err = finish(start(run_dir, data_dir, limit_files_to(20_000)))
    assert code == 1 and err.strip().splitlines()[-1].startswith("error: [Errno") and "Traceback" not in err
    assert read_checkpoint(run_dir)["step"] == step
    assert not list(run_dir.rglob(".*.part"))
    tally["full disks"] += 1
    assert finish(start(run_dir, data_dir))[0] == 0
    assert_equal_runs(run_dir, reference)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder here that even root cannot write")
def test_folder_that_cannot_be_written_stops_with_one_error(data_dir, capsys):
    assert training.main(command("/proc/wwgan/run", data_dir)[3:]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: [Errno") and "/proc/wwgan" in error


def test_read_only_run_folder_is_left_as_it_is(smoke, monkeypatch, capsys):
    """As on a file system mounted read-only, where opening a file for writing fails."""
    run = train(smoke(), progress=False)
    before = {path: path.read_bytes() for path in run.run_dir.rglob("*") if path.is_file()}

    def refuse(path, write):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(runs, "write_atomically", refuse)
    monkeypatch.setattr("wwgan.files.write_atomically", refuse)
    code = training.main([f"--run_dir={run.run_dir}", "--resume", "--steps=6"])
    assert code == 1 and "error: [Errno 30] Read-only file system" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_folder_in_use_is_refused(smoke):
    run = train(smoke(), progress=False)
    again = run_config(resume=True, run_dir=run.run_dir, steps=6)
    code = (
        "import time\nfrom pathlib import Path\nfrom wwgan.runs import only_process\n"
        f"with only_process(Path({str(run.run_dir)!r})):\n print('locked', flush=True)\n time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match="is being written by another process"):
            train(again, progress=False)
    finally:
        holder.kill()
        holder.communicate()
    assert train(again, progress=False).history[-1]["step"] == 6  # the lock ended with its process


def test_two_processes_starting_in_one_folder_leave_one_whole_run(tmp_path, data_dir, reference):
    processes = [start(tmp_path / "run", data_dir) for _ in range(2)]
    results = [finish(process) for process in processes]
    codes = sorted(code for code, _, _ in results)
    assert codes in ([0, 1], [0, 2]), results
    assert_equal_runs(tmp_path / "run", reference)


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


def test_run_cut_off_before_anything_was_written_can_be_started_again(smoke, data_dir):
    folder = Path(smoke().run_dir)
    folder.mkdir()
    (folder / ".lock").touch()
    assert train(smoke(), progress=False).history[-1]["step"] == 4


def test_resume_without_a_run_names_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no run: .*config.json"):
        run_config(resume=True, run_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no run: .*config.json"):
        train(training.TrainConfig(resume=True, run_dir=tmp_path / "new"))
    assert not list(tmp_path.iterdir())


def test_reading_metrics_leaves_out_a_line_cut_short(smoke):
    run = train(smoke(), progress=False)
    with open(run.run_dir / "metrics.jsonl", "a") as file:
        file.write(json.dumps(dict(step=5))[:-3])
    assert runs.read_metrics(run.run_dir) == run.history
