"""Nothing is lost and nothing damaged is believed, whatever happens to a run: kills, power cuts, damaged files.

`pytest --reliability data/results/reliability.json tests/test_{reliability,hostile,distributed}.py` writes down what
was tried, and how many tests failed; without `-m "not slow"`, which is what is recorded, it takes minutes.
"""

import io
import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from conftest import ended
from filelock import FileLock
from moments import assert_equal_runs, bits, contents, edited, recorded, shown_by_tensorboard

from wwgan import cli, runs, training
from wwgan.runs import load_checkpoint, read_checkpoint, read_evaluations, read_metrics, run_config, save_checkpoint
from wwgan.settings import make_config
from wwgan.training import load_run, train

SETTINGS = dict(preset="smoke", steps=3, width=4, batch_size=4, critic_steps=1, device="cpu", checkpoint_interval=1)
SETTINGS |= dict(sample_interval=2, eval_interval=2, eval_features="pixels", eval_samples=40)
LONGER = SETTINGS | dict(steps=40, checkpoint_interval=2, sample_interval=3, eval_interval=3)


def resume(run_dir, **changes):
    return train(run_config(resume=True, run_dir=run_dir, **changes), progress=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data_dir):
    """The folder of a run that nothing happened to."""
    config = make_config(**SETTINGS, run_dir=tmp_path_factory.mktemp("whole") / "run", data_dir=data_dir)
    return train(config, progress=False).run_dir


def test_a_run_cut_off_at_any_moment_goes_on_and_ends_as_if_it_had_not_been(
    tmp_path, data_dir, whole, tally, capsys, monkeypatch
):
    """By a kill or a power cut."""
    monkeypatch.setattr("wwgan.provenance._git", lambda *_: None)  # both are slow, and change nothing here
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    settings, run_dir = SETTINGS | dict(data_dir=data_dir), tmp_path / "run"
    copies = recorded(lambda: train(make_config(**settings, run_dir=run_dir), progress=False), run_dir, tmp_path / "1")
    moments = {"kill in metrics.jsonl", "kill in evaluations.jsonl", "kill after unlink"}
    assert {copy.name[4:] for copy in copies} >= moments | {"cut before fsync", "cut after unlink"}
    assert any(path.suffix == ".part" for copy in copies for path in copy.rglob("*"))
    compared = [copy for copy in copies if " kill " in copy.name][::7]
    for copy in copies:
        kind = "power cuts" if " cut " in copy.name else "kills"
        tally(kind, "replayed at every write of a run")
        with monkeypatch.context() as patch:
            if copy not in compared:
                patch.setattr(runs, "_event_writer", lambda *_: None)  # slow as well
            if (copy / "config.json").exists():
                resume(copy)
            else:
                with pytest.raises(FileNotFoundError, match=r"there is no run: .*config.json does not exist"):
                    resume(copy)
                train(make_config(**settings, run_dir=copy), progress=False)
            assert_equal_runs(copy, whole)
            assert copy not in compared or shown_by_tensorboard(copy) == shown_by_tensorboard(whole)
    assert "lacks" not in capsys.readouterr().err  # no line on a checkpoint's books


def begun(run_dir, data_dir):
    """In a process of its own: starts or resumes a run."""
    given = dict(resume=True) if (run_dir / "config.json").exists() else LONGER | dict(data_dir=data_dir)
    return training.main([f"--{name}={value}" for name, value in (given | dict(run_dir=run_dir)).items()])


@pytest.fixture(scope="module")
def longer(tmp_path_factory, data_dir):
    """As `whole`, of more updates: a process is to be killed while it trains."""
    run_dir = tmp_path_factory.mktemp("longer") / "run"
    return train(make_config(**LONGER, run_dir=run_dir, data_dir=data_dir), progress=False).run_dir


@pytest.mark.slow
def test_run_killed_at_random_moments_ends_as_if_it_had_not_been(tmp_path, fork, data_dir, longer, tally):
    chance, hits = random.Random(24), 0
    for attempt in range(8):
        config, code, killed = tmp_path / str(attempt) / "config.json", None, 0
        while code != 0:
            written = config.stat().st_mtime_ns if config.exists() else None
            process = fork(begun, config.parent, data_dir)
            while process.is_alive() and (not config.exists() or config.stat().st_mtime_ns == written):
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 1))
            if killed < 10:
                process.kill()
            code, _, err = ended(process)
            assert code in (0, -signal.SIGKILL), err
            killed += code != 0
        tally("kills", "at random moments", killed)
        assert_equal_runs(config.parent, longer)
        hits += killed
    assert hits >= 8, "the processes end before they are killed"


def without_streams(how, arguments):
    """In a process of its own: the exit code of the program when a stream is not what it should be."""
    if how == "closed":
        os.close(2)
        sys.stderr = sys.__stderr__ = None
    elif how == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    elif how == "nobody reads":
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1), os.dup2(writer, 2)
    else:
        sys.stdout = sys.__stdout__ = io.TextIOWrapper(io.FileIO(1, "w"), "ascii")
    return cli.main(arguments)


@pytest.mark.parametrize("how", ["closed", "full", "nobody reads", "ascii"])
def test_streams_that_fail_cost_no_run_and_no_exit_code(tmp_path, data_dir, fork, how):
    run_dir = tmp_path / "rün"
    options = [f"--{name}={value}" for name, value in (SETTINGS | dict(run_dir=run_dir, data_dir=data_dir)).items()]
    code, said, error = ended(fork(without_streams, how, ["train", *options]))
    assert code == 0 and read_checkpoint(run_dir)["step"] == 3, error
    assert how != "ascii" or "r\\xfcn" in said


def test_a_run_folder_in_use_is_refused(finished_copy):
    with FileLock(finished_copy / ".lock"), pytest.raises(ValueError, match="is being written by another process"):
        resume(finished_copy, steps=7)
    assert resume(finished_copy, steps=7).history[-1]["step"] == 7


@pytest.fixture
def stopped(tmp_path, data_dir, monkeypatch):
    """stopped(number): exit code and folder of a run that this signal asks to stop in its second update."""

    def run(number):
        update, run_dir = training.update, Path("-a b'c")
        monkeypatch.chdir(tmp_path)
        asked = lambda state, *rest: (state.step == 1 and signal.raise_signal(number), update(state, *rest))[1]
        with monkeypatch.context() as patch:
            patch.setattr(training, "update", asked)
            given = SETTINGS | dict(run_dir=run_dir, data_dir=data_dir)
            return training.main([f"--{name}={value}" for name, value in given.items()]), run_dir

    return run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_the_state_and_the_command_that_goes_on_can_be_pasted(stopped, whole, tally, capsys, number):
    tally("kills", "signals")
    code, run_dir = stopped(number)
    err = capsys.readouterr().err
    assert code == 128 + number and "Traceback" not in err and read_checkpoint(run_dir)["step"] == 2
    program, *words = shlex.split(err.splitlines()[-1].partition("or: ")[2])
    assert program == "wwgan" and cli.main(words) == 0
    assert_equal_runs(run_dir, whole)


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
    tally("kills", "full disks")
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, before[1]))  # Python ignores the signal: writing fails
    try:
        code = training.main([f"--run_dir={run_dir}", "--resume"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    err = capsys.readouterr().err
    assert code == 1 and err.strip().splitlines()[-1].startswith("error: [Errno") and "Traceback" not in err
    assert read_checkpoint(run_dir)["step"] == 2 and not list(run_dir.rglob(".*.part"))
    resume(run_dir)
    assert_equal_runs(run_dir, whole)


UNSEEN = ("losses", "seconds", "config", "evaluation")  # of a checkpoint, where numbers may be any
JUNK = [None, False, -5, 2**70, 1e308, "x", [], {}]


def spoilt(value, chance):
    """The value, or one of those in it, replaced by one of another kind; a tensor by one of another shape or type."""
    if isinstance(value, (dict, list)) and value and chance.random() < 0.9:
        key = chance.choice([*value]) if isinstance(value, dict) else chance.randrange(len(value))
        changed = value.copy()
        changed[key] = spoilt(value[key], chance)
        return changed
    if isinstance(value, torch.Tensor):
        flat = value.flatten()
        return chance.choice([flat[:1], flat[:-1], value[None], value.to(torch.int16), value.to_sparse(), None, "x"])
    return chance.choice([junk for junk in JUNK if type(junk) is not type(value)])


def damages(path, others, chance):
    """What may happen to a file, and its content after that."""
    content, cut = path.read_bytes(), chance.randrange(path.stat().st_size or 1)
    flipped = bytearray(content or b"x")
    flipped[cut] ^= 1 << chance.randrange(8)
    yield "a bit", bytes(flipped)
    yield "cut short", content[:cut]
    yield "longer", content + chance.randbytes(5)
    yield "another file's content", chance.choice(others).read_bytes()
    if path.suffix == ".json":
        yield "a value", json.dumps(spoilt(json.loads(content), chance)).encode()
    if path.suffix == ".jsonl":
        lines = content.splitlines(keepends=True)
        k = chance.randrange(len(lines))
        yield "a value", b"".join([*lines[:k], json.dumps(spoilt(json.loads(lines[k]), chance)).encode(), b"\n"])
        yield "a line gone", b"".join(lines[:k] + lines[k + 1 :])
    if path.suffix == ".pt" and path.parent.name == "checkpoints":
        content = torch.load(path, weights_only=True)
        for name in chance.choices([name for name in content if name not in UNSEEN], k=4):
            yield "a tensor", content | {name: spoilt(content[name], chance)}


def numbers(run_dir):
    checkpoint = read_checkpoint(run_dir)
    del checkpoint["config"]
    evaluations = [x for x in read_evaluations(run_dir) if x["step"] != 3]  # where 3 is the last one, but not of four
    logs = dict(metrics=read_metrics(run_dir), evaluations=evaluations)
    return bits(logs | dict(newest=checkpoint))


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_damage_to_any_file_is_named_or_changes_no_number(tmp_path, data_dir, whole, tally, capfd, monkeypatch, seed):
    """Of a run and of the caches. Seed 0 has a tenth of the faults of another one."""
    monkeypatch.setattr("wwgan.provenance._git", lambda *_: None)  # slow
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    undamaged, chance = tmp_path / "undamaged", random.Random(seed)
    shutil.copytree(whole, undamaged / "run")
    shutil.copytree(data_dir / "cache", undamaged / "data" / "cache")
    files = sorted(path for path in undamaged.rglob("*") if path.is_file() and not path.name.endswith(".lock"))

    def outcome(copy):
        options = ["--resume", "--device=cpu", "--steps=4", f"--run_dir={copy / 'run'}", f"--data_dir={copy / 'data'}"]
        code = training.main(options)
        return code, capfd.readouterr().err, code == 0 and numbers(copy / "run")

    _, _, expected = outcome(shutil.copytree(undamaged, tmp_path / "whole"))
    best = bits(load_run(tmp_path / "whole" / "run", "cpu", best=True).state.state_dict())
    for path in files:
        for what, content in damages(path, files, chance):
            if seed == 0 and chance.random() > 0.1:
                continue
            copy = shutil.copytree(undamaged, tmp_path / "copy")
            damaged = copy / path.relative_to(undamaged)
            tally("damages", f"{what}, {re.sub('[0-9a-f]{7,}', 'N', path.name)}")
            damaged.write_bytes(content) if type(content) is bytes else save_checkpoint(damaged, content)
            code, error, left = outcome(copy)
            names = [damaged.name.removesuffix(".sha256"), *(["jsonl"] if what == "a tensor" else [])]
            assert "Traceback" not in error, error
            assert code == 0 or any(name in error for name in names), (what, error)
            for name in left or ():
                gaps = f"{name}.jsonl lacks" in error and all(line in expected[name] for line in left[name])
                assert left[name] == expected[name] or gaps, (what, name, error)
            if path.name.startswith("best"):
                try:
                    assert bits(load_run(copy / "run", "cpu", best=True).state.state_dict()) == best
                except ValueError as refused:
                    assert any(name in str(refused) for name in names)
            shutil.rmtree(copy)


MOMENTS = ("critic_optimizer", "state", 0, "exp_avg")
CRAFTED = [
    (*MOMENTS, lambda old: old.flatten()[:1], "critic_optimizer state 0 exp_avg must be torch.float32"),
    (*MOMENTS, lambda old: old.flatten()[:-1].clone(), "critic_optimizer state 0 exp_avg must be torch.float32"),
    (*MOMENTS, lambda old: old.mT.clone(memory_format=torch.contiguous_format).mT, "strides (16, 1, 4, 1)"),
    ("generator_optimizer", {}, "param_groups"),
    ("generator_optimizer", "state", {}, "generator_optimizer state must have 0, 1"),
    ("generator_optimizer", "param_groups", 0, "lr", 0.5, "generator's optimiser has lr 0.5, the settings say 0.0001"),
    ("losses", {"penalty": "high"}, "losses cannot be {'penalty': 'high'}"),
    ("critic", list, "critic must have net.0.weight"),
    ("critic", lambda old: {name: old[name] for name in [*old][1:]}, "critic must have net.0.weight"),
    ("averaged", "net.0.weight", lambda old: old.double(), "averaged net.0.weight must be torch.float32"),
    ("random", lambda old: old.float(), "ByteTensor"),
    ("random", lambda old: old[:-8].clone(), "state"),
    ("step", -5, "step must be 6, got -5"),
    ("channels", 2.0, ""),
    ("seconds", float("nan"), "seconds cannot be nan"),
    ("device", "mars", "device cannot be mars"),
    ("logs", {}, "metrics.jsonl"),
    ("logs", "metrics.jsonl", [(1, 2.0)], "logs cannot be"),
]


@pytest.mark.parametrize("given", CRAFTED, ids=lambda given: given[-1])
def test_a_checkpoint_with_a_right_checksum_and_a_wrong_state_is_passed_over(finished_copy, capsys, given):
    *keys, value, words = given
    newest = finished_copy / "checkpoints" / "step_0000006.pt"
    edited(newest, *keys, value=value)
    assert read_checkpoint(finished_copy)["step"] == 4
    error = capsys.readouterr().err
    assert f"skipping a checkpoint: {newest} is not a checkpoint of a run: " in error and words in error, error


@pytest.mark.parametrize("content", [3, "x", [1], {}, dict(step=4), dict(config={}), dict(config=dict(lr="fast"))])
def test_foreign_checkpoints_with_a_right_checksum_are_refused(tmp_path, tally, content):
    tally("inputs", "foreign checkpoints")
    save_checkpoint(tmp_path / "step_0000001.pt", content)
    with pytest.raises(ValueError, match="step_0000001.pt is not a checkpoint of a run|lr must be a number"):
        load_checkpoint(tmp_path / "step_0000001.pt")


def test_an_error_without_words_is_called_by_its_kind(finished_copy, monkeypatch, capsys):
    monkeypatch.setattr(torch, "load", Mock(side_effect=MemoryError()))
    with pytest.raises(ValueError, match="step_0000002.pt is not a checkpoint of a run: MemoryError"):
        read_checkpoint(finished_copy)
    monkeypatch.setattr(training, "train", Mock(side_effect=MemoryError()))
    assert training.main([]) == 1 and capsys.readouterr().err.endswith("error: MemoryError\n")


def test_lines_that_a_log_lacks_are_named_and_the_run_goes_on(finished_copy, capsys):
    log = finished_copy / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:3]))
    assert [line["step"] for line in resume(finished_copy, steps=7).history] == [1, 2, 3, 7]
    assert f"{log} lacks 3 of its lines, those of updates 4, 5, 6" in capsys.readouterr().err
    resume(finished_copy, steps=8)
    assert "lacks" not in capsys.readouterr().err


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


SPOILT = [
    ("provenance.json", "[]", "provenance.json does not say"),
    ("provenance.json", '{"dataset_sha256": "", "dataset_shape": []}', "provenance.json is damaged"),
    ("evaluations.jsonl", '{"step": 1}\n', "evaluations.jsonl must have scores"),
    ("evaluations.jsonl", '{"step": 2, "scores": {}, "floor": {}, "protocol": {"features": "nose"}}\n', "have scores"),
    ("metrics.jsonl", "{}\n", "line 1 of .*metrics.jsonl"),
    ("metrics.jsonl", f'{{"step": {2**64}}}\n', "line 1 of .*metrics.jsonl"),
    ("metrics.jsonl", '{"step": 3, "norm": 1}\n', "metrics.jsonl is damaged: what it says of update 3"),
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


def test_foreign_files_among_the_checkpoints_are_left_alone(finished_copy):
    names = [f"checkpoints/step_{name}.pt" for name in ("copy_a", "zz", "0000002 (1)")]
    foreign = [finished_copy / name for name in (*names, "samples/step_0000002 (1).png")]
    for path in foreign:
        path.write_bytes(b"mine")
    resume(finished_copy, steps=8)
    assert list(runs.checkpoints(finished_copy)) == [4, 6, 8] and all(path.read_bytes() == b"mine" for path in foreign)
