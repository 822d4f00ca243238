"""Studies: what is recorded stays, what was cut off goes on, and nothing of other settings is ever mixed in."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from wwgan.evidence import statistics
from wwgan.evidence import study as studies
from wwgan.evidence.statistics import paired_difference
from wwgan.evidence.study import Study, main, read_records, read_study, run_study, summary_table
from wwgan.training import train

COMMON = dict(preset="smoke", eval_interval=2, eval_features="pixels", eval_samples=40)
SETTINGS = {"wgan-gp": dict(penalty="euclidean"), "wwgan": dict(penalty="wasserstein")}


@pytest.fixture
def here(tmp_path, data_dir):
    """Where the runs of a study take place."""
    return dict(results=tmp_path / "results", runs=tmp_path / "runs", data_dir=str(data_dir), device="cpu", threads=1)


def make_study(**changes):
    return Study(**dict(common=COMMON, settings=SETTINGS, seeds=[0, 1]) | changes)


def scores_of(results):
    lines = {path.parent.name: path.read_text() for path in results.glob("*/evaluations.jsonl")}
    return {name: [json.loads(line)["scores"] for line in text.splitlines()] for name, text in lines.items()}


def test_processes_give_the_same_numbers_as_one_by_one(tmp_path, here):
    run_study(make_study(), **here)
    other = dict(results=tmp_path / "results2", runs=tmp_path / "runs2")
    records = run_study(make_study(), **here | other, workers=2)
    assert [path.name for path in records] == ["wgan-gp-seed0", "wwgan-seed0", "wgan-gp-seed1", "wwgan-seed1"]
    assert scores_of(here["results"]) == scores_of(other["results"]) and len(scores_of(here["results"])) == 4
    assert {path.name for path in records[0].iterdir()} == {*studies._RECORDED}
    stored = json.loads((records[0] / "config.json").read_text())
    assert stored["run_dir"] is stored["data_dir"] is None  # nothing of the machine


def test_a_run_cut_off_goes_on_and_equals_one_that_was_not(tmp_path, here, monkeypatch):
    study = make_study(common=COMMON | dict(steps=8), settings=dict(a=SETTINGS["wwgan"]), seeds=[0])
    run_study(study, **here)
    other = dict(results=tmp_path / "results2", runs=tmp_path / "runs2")

    def cut_off(config, progress):
        train(type(config)(**vars(config) | dict(steps=4)), progress)
        path = tmp_path / "runs2" / "a-seed0" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | dict(steps=8)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(studies, "train", cut_off)
        run_study(study, **here | other)
    assert not (other["results"] / "a-seed0").exists()
    run_study(study, **here | other)
    assert scores_of(other["results"]) == scores_of(here["results"])
    provenance = json.loads((other["results"] / "a-seed0" / "provenance.json").read_text())
    assert [part["step"] for part in provenance["resumed"]] == [4]


def test_runs_may_lie_below_the_home_folder(tmp_path, here, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    study = make_study(settings=dict(a=SETTINGS["wwgan"]), seeds=[0])
    for _ in range(2):  # the second time the networks are there
        (record,) = run_study(study, **here | dict(runs="~/runs"), with_runs=True)
        assert {path.name for path in record.iterdir()} == {*studies._RECORDED}
    assert (tmp_path / "runs" / "a-seed0").is_dir() and not (tmp_path / "~").exists()


def test_a_run_cut_off_before_its_first_checkpoint_begins_anew(here):
    study = make_study(seeds=[0])
    run_study(study, **here)
    before = scores_of(here["results"])
    shutil.rmtree(here["results"] / "wwgan-seed0")
    for path in (here["runs"] / "wwgan-seed0" / "checkpoints").iterdir():
        path.unlink()
    run_study(study, **here)
    assert scores_of(here["results"]) == before


def test_recorded_runs_are_not_trained_again(here, monkeypatch):
    run_study(make_study(seeds=[0]), **here, only=["wwgan-seed0"])
    assert [path.name for path in here["results"].iterdir()] == ["wwgan-seed0"]
    trained = []
    monkeypatch.setattr(studies, "train", lambda config, progress: trained.append(config) or train(config, progress))
    run_study(make_study(seeds=[0]), **here)
    assert [config.penalty for config in trained] == ["euclidean"]


def test_recorded_runs_whose_networks_are_gone_are_trained_again_on_request(here):
    study = make_study(seeds=[0])
    run_study(study, **here)
    before, gone = scores_of(here["results"]), here["runs"] / "wwgan-seed0"
    stamps = lambda: {path.parent.name: path.stat().st_mtime_ns for path in here["results"].glob("*/config.json")}
    first = stamps()
    shutil.rmtree(gone)
    run_study(study, **here)
    assert not gone.exists() and stamps() == first
    run_study(study, **here, with_runs=True)
    (gone / "checkpoints" / "step_0000004.pt").unlink()  # cut off while it was trained again
    run_study(study, **here, with_runs=True)
    assert (gone / "checkpoints" / "step_0000004.pt").exists()
    assert any(gone.glob("checkpoints/step_*.pt")) and scores_of(here["results"]) == before
    assert stamps()["wgan-gp-seed0"] == first["wgan-gp-seed0"] and stamps()["wwgan-seed0"] > first["wwgan-seed0"]


@pytest.mark.parametrize(
    "given, words",
    [
        (dict(scale="smok"), "did you mean 'smoke'"),
        (dict(rerun="yes"), "rerun must be true or false, got 'yes'"),
        (dict(scale="smoke", rerun=True), "a place of their own"),
        (dict(scale="smoke", results="here"), "a place of their own"),
        (dict(scale="smoke", rerun=True, results=str(ROOT / "data" / "results" / "critics")), "a place of their own"),
    ],
)
def test_parameters_of_a_figure_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        studies.figure_source("critics", **given)


def test_source_of_a_figure(tmp_path):
    assert studies.figure_source("critics") == (ROOT / "data" / "results" / "critics", False)
    assert studies.figure_source("critics", str(tmp_path), True, "smoke") == (tmp_path, True)


def test_ratios_are_paired_by_seed_with_students_interval_of_logarithms():
    runs = {"a-seed0": 2.0, "a-seed1": 8.0, "a-seed2": 4.0, "b-seed0": 1.0, "b-seed1": 2.0, "b-seed2": 4.0}
    found = statistics.measured_ratio(runs, [0, 1, 2], "a", "b", lambda run: [run, run])
    assert found.mean == pytest.approx(2) and found.n == 3
    # logarithms ln 2, ln 4, ln 1: mean ln 2, standard deviation ln 2, Student's quantile 4.3027 for 2 degrees
    assert found.low == pytest.approx(2 ** (1 - 4.3027 / 3**0.5), rel=1e-4)
    assert found.high == pytest.approx(2 ** (1 + 4.3027 / 3**0.5), rel=1e-4)
    with pytest.raises(ValueError, match="at least two values, got 1"):
        statistics.measured_ratio(runs, [0], "a", "b", lambda run: [run])
    with pytest.raises(ValueError, match="positive numbers, got -1 from a-seed0"):
        statistics.measured_ratio(runs, [0, 1], "a", "b", lambda run: [-1.0])


def test_bootstrap_needs_three_values_and_holds_their_mean():
    found = statistics.bootstrap_mean([0.0] * 50 + [1.0] * 50)
    assert found.mean == 0.5 and 0.38 < found.low < 0.43 and 0.57 < found.high < 0.62 and found.n == 100
    with pytest.raises(ValueError, match="at least three values, got 2"):
        statistics.bootstrap_mean([1.0, 2.0])


@pytest.mark.parametrize("folder", ["results", "runs"])
def test_other_settings_are_refused_before_anything_is_trained(here, folder):
    run_study(make_study(seeds=[0]), **here, only=["wwgan-seed0"])
    shutil.rmtree(here["runs" if folder == "results" else "results"])
    other = make_study(seeds=[0], common=COMMON | dict(lr=0.5))
    with pytest.raises(ValueError, match=r"wwgan-seed0 holds a run with other settings \(lr .* 0.5 in the study\)"):
        run_study(other, **here)
    assert not (here["runs"] / "wgan-gp-seed0").exists()
    if folder == "results":
        with pytest.raises(ValueError, match="other settings"):
            read_records(other, here["results"])


def test_a_failing_run_does_not_stop_the_others(here, monkeypatch):
    def fail_first(config, progress):
        if config.penalty == "euclidean":
            raise FloatingPointError("training diverged")
        return train(config, progress)

    monkeypatch.setattr(studies, "train", fail_first)
    with pytest.raises(RuntimeError, match="wgan-gp-seed0 failed: training diverged"):
        run_study(make_study(seeds=[0]), **here)
    assert [path.name for path in here["results"].iterdir()] == ["wwgan-seed0"]


def change_lines(path, change):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in change(lines)))


def test_records_are_compared_only_if_images_and_protocol_are_the_same(here):
    study = make_study(seeds=[0])
    run_study(study, **here)
    folder = here["results"] / "wwgan-seed0"
    protocol = lambda **changes: lambda lines: [x | dict(protocol=x["protocol"] | changes) for x in lines]
    change_lines(folder / "evaluations.jsonl", protocol(statistics_sha256="of another machine"))
    assert len(read_records(study, here["results"])["wwgan"]) == 1
    change_lines(folder / "evaluations.jsonl", protocol(samples=41))
    with pytest.raises(ValueError, match="wwgan-seed0 .* cannot be compared"):
        read_records(study, here["results"])
    change_lines(folder / "evaluations.jsonl", protocol(samples=40))
    path = folder / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(dataset_sha256="0")))
    with pytest.raises(ValueError, match="cannot be compared"):
        read_records(study, here["results"])
    change_lines(folder / "evaluations.jsonl", lambda lines: [*lines, lines[-1]])
    with pytest.raises(ValueError, match=r"evaluations after updates \[2, 4\], got \[2, 4, 4\]"):
        read_records(study, here["results"])


def test_table_of_a_study_in_part(here):
    study = make_study()
    run_study(study, **here, only=["wwgan-seed0", "wwgan-seed1", "wgan-gp-seed1"])
    table = summary_table(read_records(study, here["results"]), "wgan-gp")
    assert "| wgan-gp | 1 |" in table and "| wwgan | 2 |" in table and "real images (40)" in table


def test_settings_added_since_have_their_defaults(here):
    study = make_study(seeds=[0])
    run_study(study, **here)
    path = here["results"] / "wwgan-seed0" / "config.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in stored.items() if name != "compile"}))
    assert len(read_records(study, here["results"])["wwgan"]) == 1
    path.write_text("{")
    with pytest.raises(ValueError, match="config.json does not hold the settings of a run"):
        read_records(study, here["results"])


def start_study(tmp_path, data_dir, **changes):
    """A study of long runs in a process of its own, and the numbers of its runs' processes once they train."""
    path = tmp_path / "study.json"
    settings = {"a": dict(penalty="euclidean"), "b": dict(penalty="wasserstein"), "c": dict(penalty="sobolev")}
    content = dict(common=COMMON | dict(steps=100_000, eval_interval=0, log_interval=10), settings=settings, seeds=[0])
    path.write_text(json.dumps(content | changes))
    command = [
        sys.executable,
        "-m",
        "wwgan.evidence.study",
        str(path),
        "--runs",
        str(tmp_path / "runs"),
        "--workers",
        "2",
    ]
    process = subprocess.Popen(
        [*command, "--threads", "1", "--device", "cpu", "--data_dir", str(data_dir)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    wait_for(lambda: len(list(tmp_path.glob("runs/*/metrics.jsonl"))) == 2)
    return process, children_of(process.pid)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "took too long"
        time.sleep(0.1)


def children_of(pid):
    """Processes that train, the resource tracker of multiprocessing left out."""
    found = subprocess.run(["pgrep", "-P", str(pid), "-f", "spawn_main"], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes the way Linux shows them")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_study_leaves_no_process_behind(tmp_path, data_dir, how):
    process, children = start_study(tmp_path, data_dir)
    assert len(children) == 2
    process.send_signal(how)
    assert process.wait(timeout=30) == (130 if how == signal.SIGINT else -how)
    wait_for(lambda: not any(map(is_running, children)))
    assert not (tmp_path / "runs" / "c-seed0").exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes the way Linux shows them")
def test_a_killed_process_fails_its_run_alone_and_a_second_study_is_refused(tmp_path, data_dir, here):
    process, children = start_study(tmp_path, data_dir)
    study = read_study(tmp_path / "study.json")
    with pytest.raises(RuntimeError, match="a-seed0 failed: .* is being trained by another process"):
        run_study(study, **here, only=["a-seed0"])
    os.kill(children[0], signal.SIGKILL)
    wait_for(lambda: (tmp_path / "runs" / "c-seed0" / "metrics.jsonl").exists())
    assert is_running(children[1]) and len(children_of(process.pid)) == 2
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130


@pytest.mark.parametrize("folders", [(), ("samples",)])
def test_a_run_killed_before_its_settings_were_written_begins_anew(here, folders):
    for name in folders:
        (here["runs"] / "wwgan-seed0" / name).mkdir(parents=True)
    run_study(make_study(seeds=[0]), **here, only=["wwgan-seed0"])
    assert (here["results"] / "wwgan-seed0" / "samples.png").exists()


def test_a_folder_of_something_else_is_not_removed(here):
    precious = here["runs"] / "wwgan-seed0" / "thesis.tex"
    precious.parent.mkdir(parents=True)
    precious.write_text("years of work")
    with pytest.raises(RuntimeError, match="holds no run but thesis.tex"):
        run_study(make_study(seeds=[0]), **here, only=["wwgan-seed0"])
    assert precious.exists()


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(workers=0), "workers and threads"),
        (dict(threads=0), "workers and threads"),
        (dict(devise="cpu"), "did you mean 'device'"),
    ],
)
def test_wrong_arguments_are_refused(here, changes, words):
    with pytest.raises(ValueError, match=words):
        run_study(make_study(), **here | changes)


def test_a_folder_of_another_study_is_not_taken_for_one_at_smoke_scale(tmp_path):
    smoke = make_study(seeds=[0])
    assert studies.study_in(tmp_path, smoke) == smoke == studies.study_in(tmp_path)
    with pytest.raises(ValueError, match="holds another study"):
        studies.study_in(tmp_path, make_study(seeds=[1]))
    assert studies.study_in(tmp_path) == smoke


def test_only_may_be_any_iterable(here):
    run_study(make_study(), **here, only=(name for name in ["wwgan-seed1"]))
    assert [path.name for path in here["results"].iterdir()] == ["wwgan-seed1"]


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "does not hold a study"),
        ('{"common": {}, "settings": {"a": {}}, "seds": [0]}', "did you mean 'seeds'"),
        ('{"common": {}, "settings": {"a": {}}}', "seeds"),
        ('{"common": {"lr": -1}, "settings": {"a": {}}, "seeds": [0]}', "lr must be positive"),
        ('{"common": {}, "settings": {"a/b": {}}, "seeds": [0]}', "names of settings"),
        ('{"common": {}, "settings": {"a": {"run_dir": "x"}}, "seeds": [0]}', "run_dir"),
        ('{"common": {}, "settings": {"a": 3}, "seeds": [0]}', "does not hold a study"),
        ('{"common": {}, "settings": {"a": {}}, "seeds": [0, "0"]}', "seeds must be integers"),
        ("[]", "does not hold a study"),
    ],
)
def test_wrong_studies_are_refused_by_name(tmp_path, content, words, capsys):
    path = tmp_path / "study.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=words):
        read_study(path)
    assert main([str(path)]) == 2 and words in capsys.readouterr().err


def test_command_line_trains_one_run_of_a_study(tmp_path, data_dir, capsys):
    path = tmp_path / "study.json"
    path.write_text(json.dumps(dict(common=COMMON, settings=SETTINGS, seeds=[0])))
    arguments = [str(path), "--runs", str(tmp_path / "runs"), "--data_dir", str(data_dir), "--device", "cpu"]
    assert main([*arguments, "--only", "wwgan-seed0"]) == 0
    assert (tmp_path / "wwgan-seed0" / "samples.png").exists() and not (tmp_path / "wgan-gp-seed0").exists()
    assert main([*arguments, "--only", "wwgan-seed00"]) == 2
    assert "did you mean 'wwgan-seed0'" in capsys.readouterr().err


def test_paired_difference_against_the_textbook():
    a, b = {0: 3.0, 1: 5.0, 2: 10.0, 9: 0.0}, {2: 6.0, 1: 4.0, 0: 1.0, 7: 2.0}
    found = paired_difference(a, b)  # differences 2, 1, 4: mean 7/3, t(2, 97.5%) = 4.302653
    margin = 4.302653 * torch.tensor([2.0, 1.0, 4.0]).std().item() / 3**0.5
    assert found == pytest.approx((7 / 3, 7 / 3 - margin, 7 / 3 + margin, 3), rel=1e-6)
    with pytest.raises(ValueError, match="two common seeds"):
        paired_difference({0: 1.0}, {0: 1.0, 1: 2.0})


RECORDED = sorted((ROOT / "data" / "results").rglob("study.json"))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.parent.name)
def test_recorded_studies_are_complete_and_readable(path):
    study = read_study(path)
    records = read_records(study, path.parent)
    assert {name: [record.seed for record in found] for name, found in records.items()} == {
        name: list(study.seeds) for name in study.settings
    }
    for found in records.values():
        for record in found:
            assert record.provenance["git_commit"] and record.samples.exists()
            config = study.configs()[f"{record.setting}-seed{record.seed}"]
            steps = [line["step"] for line in record.evaluations]
            assert steps == list(range(config.eval_interval, config.steps + 1, config.eval_interval))


def test_names_of_runs_are_listed_for_a_scheduler(tmp_path, data_dir):
    """The command that README gives for SLURM, by its parts: the second run of the list is trained, and no other."""
    study = dict(common=COMMON | dict(data_dir=str(data_dir), device="cpu"), settings=SETTINGS, seeds=[0])
    (tmp_path / "study.json").write_text(json.dumps(study))
    command = f"{sys.executable} -m wwgan.evidence.study study.json"
    script = f"{command} --runs runs --only $({command} --list | sed -n ${{SLURM_ARRAY_TASK_ID}}p)"
    environment = os.environ | dict(SLURM_ARRAY_TASK_ID="2", PYTHONPATH=str(ROOT))
    result = subprocess.run(["sh", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert [path.parent.name for path in tmp_path.glob("*/evaluations.jsonl")] == ["wwgan-seed0"]
