"""Studies: what is recorded stays, what was cut off goes on, and nothing of other settings is ever mixed in."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace

import psutil
import pytest
from conftest import ROOT, ended

from wwgan.evidence import figures, statistics
from wwgan.evidence import study as studies
from wwgan.evidence.records import read_records, summary_table
from wwgan.evidence.study import Study, main, read_study, run_study
from wwgan.training import train

COMMON = dict(preset="smoke", eval_interval=2, eval_features="pixels", eval_samples=40)
SETTINGS = {"wgan-gp": dict(penalty="euclidean"), "wwgan": dict(penalty="wasserstein")}
RECORD = {"config.json", "provenance.json", "metrics.jsonl", "evaluations.jsonl", "samples.png"}


@pytest.fixture
def here(tmp_path, data_dir):
    """Where the runs of a study take place."""
    return dict(results=tmp_path / "results", runs=tmp_path / "runs", data_dir=str(data_dir), device="cpu", threads=1)


def make_study(**changes):
    return Study(**dict(common=COMMON, settings=SETTINGS, seeds=[0]) | changes)


def scores_of(results):
    lines = {path.parent.name: path.read_text() for path in results.glob("*/evaluations.jsonl")}
    return {name: [json.loads(line)["scores"] for line in text.splitlines()] for name, text in lines.items()}


def names_of(records):
    return [path.name for path in records]


def test_processes_give_the_same_numbers_as_one_by_one(tmp_path, here):
    study, other = make_study(seeds=[0, 1]), dict(results=tmp_path / "results2", runs=tmp_path / "runs2", workers=2)
    records = run_study(study, **here)
    assert names_of(records) == ["wgan-gp-seed0", "wwgan-seed0", "wgan-gp-seed1", "wwgan-seed1"]
    some = run_study(study, **here | other, only=["wwgan-seed1", "wgan-gp-seed0"])
    assert names_of(some) == ["wgan-gp-seed0", "wwgan-seed1"]
    again = scores_of(other["results"])
    assert len(again) == 2 and again.items() <= scores_of(here["results"]).items()
    assert {path.name for path in records[0].iterdir()} == RECORD
    stored = json.loads((records[0] / "config.json").read_text())
    assert stored["run_dir"] is stored["data_dir"] is None  # nothing of the machine


def test_a_run_cut_off_goes_on_and_equals_one_that_was_not(tmp_path, here):
    study = make_study(common=COMMON | dict(steps=8), settings=dict(a=SETTINGS["wwgan"]))
    run_study(study, **here)
    there = here | dict(results=tmp_path / "results2", runs=tmp_path / "runs2")
    where = dict(run_dir=there["runs"] / "a-seed0", data_dir=here["data_dir"], device="cpu", steps=4)
    run = train(replace(study.configs()["a-seed0"], **where), progress=False)
    config = run.run_dir / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | dict(steps=8)))
    (record,) = run_study(study, **there)
    assert scores_of(there["results"]) == scores_of(here["results"])
    assert [part["step"] for part in json.loads((record / "provenance.json").read_text())["resumed"]] == [4]


def test_recorded_runs_are_not_trained_again_and_studies_may_share_them(tmp_path, here, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    here |= dict(runs="~/runs")
    run_study(make_study(), **here, only=(name for name in ["wwgan-seed0"]))
    before, gone, trained = scores_of(here["results"]), tmp_path / "runs" / "wwgan-seed0", []
    assert [*before] == ["wwgan-seed0"]
    monkeypatch.setattr(studies, "train", lambda config, progress: trained.append(config) or train(config, progress))
    shutil.rmtree(gone)
    run_study(make_study(), **here)
    other = make_study(settings=dict(wwgan=SETTINGS["wwgan"], sobolev=dict(penalty="sobolev")))
    assert names_of(run_study(other, **here)) == ["wwgan-seed0", "sobolev-seed0"]
    assert [*read_records(other, here["results"])] == ["wwgan", "sobolev"] and not gone.exists()
    assert before.items() <= scores_of(here["results"]).items()
    assert [config.penalty for config in trained] == ["euclidean", "sobolev"]


@pytest.mark.parametrize("folder", ["results", "runs"])
def test_other_settings_are_refused_before_anything_is_trained(here, folder):
    run_study(make_study(), **here, only=["wwgan-seed0"])
    shutil.rmtree(here["runs" if folder == "results" else "results"])
    other = make_study(common=COMMON | dict(lr=0.5))
    with pytest.raises(ValueError, match=r"wwgan-seed0 holds a run with other settings \(lr .* -> 0.5\)"):
        run_study(other, **here)
    assert not (here["runs"] / "wgan-gp-seed0").exists()
    if folder == "results":
        with pytest.raises(ValueError, match="other settings"):
            read_records(other, here["results"])


def test_a_failing_run_does_not_stop_the_others_and_removes_nothing(here):
    precious = here["runs"] / "wgan-gp-seed0" / "thesis.tex"
    precious.parent.mkdir(parents=True)
    precious.write_text("years of work")
    with pytest.raises(RuntimeError, match="wgan-gp-seed0 failed: .*wgan-gp-seed0 exists and is not empty"):
        run_study(make_study(), **here)
    assert precious.exists() and names_of(here["results"].iterdir()) == ["wwgan-seed0"]


def test_records_are_compared_only_if_settings_images_and_protocol_are_the_same(here):
    study, results = make_study(), here["results"]
    run_study(study, **here)
    folder = results / "wwgan-seed0"
    table = summary_table(read_records(make_study(seeds=[0, 1]), results), "wgan-gp")  # of a study in part
    assert "| wgan-gp | 1 |" in table and "| wwgan | 1 |" in table and "real images (40)" in table
    config, origin = (json.loads((folder / name).read_text()) for name in ("config.json", "provenance.json"))
    lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]

    def changed(config=config, origin=origin, lines=lines, **protocol):
        lines = [line | dict(protocol=line["protocol"] | protocol) for line in lines]
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "provenance.json").write_text(json.dumps(origin))
        (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return read_records(study, results)["wwgan"]

    older = {name: value for name, value in config.items() if name != "compile"}  # a setting added since
    assert len(changed(config=older, statistics_sha256="of another machine")) == 1
    for change, words in (
        (dict(samples=41), "wwgan-seed0 .* cannot be compared"),
        (dict(origin=origin | dict(dataset_sha256="0")), "cannot be compared"),
        (dict(lines=[*lines, lines[-1]]), r"evaluations after updates \[2, 4\], got \[2, 4, 4\]"),
        (dict(config=3), "config.json does not hold"),
    ):
        with pytest.raises(ValueError, match=words):
            changed(**change)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "took too long"
        time.sleep(0.1)


def is_running(child):
    try:
        return child.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_process_fails_its_run_alone_and_a_study_that_ends_saves_the_others(
    tmp_path, here, data_dir, fork, how
):
    settings = {"a": dict(penalty="euclidean"), "b": dict(penalty="wasserstein"), "c": dict(penalty="sobolev")}
    common = COMMON | dict(steps=100_000, eval_interval=0, log_interval=10, checkpoint_interval=100_000)
    (tmp_path / "study.json").write_text(json.dumps(dict(common=common, settings=settings, seeds=[0])))
    where = ["--runs", tmp_path / "runs", "--threads", 1, "--device", "cpu", "--data_dir", data_dir]
    process = fork(main, [*map(str, (tmp_path / "study.json", "--workers", 2, *where))])
    logs = lambda name: [*tmp_path.glob(f"runs/{name}/metrics.jsonl")]
    workers = lambda: [
        p for p in psutil.Process(process.pid).children() if any("_work()" in word for word in p.cmdline())
    ]
    children = []
    try:
        wait_for(lambda: len(logs("*")) == 2)
        children += workers()
        with pytest.raises(RuntimeError, match="a-seed0 failed: .* is being written by another process"):
            run_study(read_study(tmp_path / "study.json"), **here, only=["a-seed0"])
        children[0].kill()
        wait_for(lambda: logs("c-seed0") and logs("c-seed0")[0].stat().st_size)
        children += [child for child in workers() if child not in children]
        assert len(children) == 3 and [*map(is_running, children)] == [False, True, True]
        os.kill(process.pid, how)
        assert ended(process)[0] == (-how if how == signal.SIGKILL else 130)
        wait_for(lambda: not any(map(is_running, children)))
    finally:
        for child in filter(is_running, children):
            child.kill()
    saved = {path.parents[1].name for path in tmp_path.glob("runs/*/checkpoints/step_*[1-9]*.pt")}  # after the first
    assert len(saved) == 2 and not [*tmp_path.glob("*-seed0")]  # those that were not killed, and no record


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(workers=0), "workers and threads"),
        (dict(threads=0), "workers and threads"),
        (dict(devise="cpu"), "did you mean 'device'"),
        (dict(only=["wwgan-seed00"]), "did you mean 'wwgan-seed0'"),
    ],
)
def test_wrong_arguments_are_refused(here, changes, words):
    with pytest.raises(ValueError, match=words):
        run_study(make_study(), **here | changes)


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "does not hold a study"),
        ('{"common": {}, "settings": {"a": {}}, "seds": [0]}', "did you mean 'seeds'"),
        ('{"common": {}, "settings": {"a": {}}}', "seeds"),
        ('{"common": {"lr": -1}, "settings": {"a": {}}, "seeds": [0]}', "lr must be positive"),
        ('{"common": {}, "settings": {"a/b": {}}, "seeds": [0]}', "names of settings"),
        ('{"common": {}, "settings": {"..": {}}, "seeds": [0]}', "names of settings"),
        ('{"common": {}, "settings": {"a": {"run_dir": "x"}}, "seeds": [0]}', "run_dir"),
        ('{"common": {}, "settings": {"a": 3}, "seeds": [0]}', "does not hold a study"),
        ('{"common": {}, "settings": {"a": {}}, "seeds": [0, "0"]}', "seeds must be integers"),
        ("[]", "does not hold a study"),
    ],
)
def test_wrong_studies_are_refused_by_name(tmp_path, content, words, capsys):
    path = tmp_path / "study.json"
    path.write_text(content)
    assert main([str(path)]) == 2 and words in capsys.readouterr().err


def test_names_of_runs_are_listed_for_a_scheduler(tmp_path, data_dir, capsys):
    """The commands that howto/cluster joins for SLURM: the second run of the list is trained, and no other."""
    path = tmp_path / "study.json"
    common = COMMON | dict(data_dir=str(data_dir), device="cpu")
    path.write_text(json.dumps(dict(common=common, settings=SETTINGS, seeds=[0])))
    assert main([str(path), "--list"]) == 0
    second = capsys.readouterr().out.splitlines()[1]
    assert main([str(path), "--runs", str(tmp_path / "runs"), "--threads", "1", "--only", second]) == 0
    assert [path.parent.name for path in tmp_path.glob("*/evaluations.jsonl")] == ["wwgan-seed0"]


@pytest.mark.parametrize(
    "given, words",
    [
        (dict(scale="smok"), "did you mean 'smoke'"),
        (dict(rerun="yes"), "rerun must be true or false, got 'yes'"),
        (dict(scale="smoke", results="here"), "a place of their own"),
        (dict(scale="smoke", rerun=True, results=str(ROOT / "data" / "results" / "critics")), "a place of their own"),
    ],
)
def test_parameters_of_a_figure_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        figures.figure_source("critics", **given)


def test_statistics_refuse_what_says_nothing():
    """What they compute is checked in their notebook."""
    a, b = {0: 3.0, 1: 5.0, 2: 10.0, 9: 0.0}, {2: 6.0, 1: 4.0, 0: 1.0, 7: 2.0}
    assert statistics.paired_difference(a, b) == pytest.approx(statistics.student_mean([2.0, 1.0, 4.0]))
    runs = {f"{name}-seed{seed}": -1.0 for name in "ab" for seed in range(2)}
    for refused, words in (
        (lambda: statistics.paired_difference({0: 1.0}, {0: 1.0, 1: 2.0}), "two common seeds"),
        (lambda: statistics.measured_ratio(runs, [0], "a", "b", lambda run: [1.0]), "at least two values, got 1"),
        (lambda: statistics.measured_ratio(runs, [0, 1], "a", "b", lambda run: [run]), "got -1 from a-seed0"),
        (lambda: statistics.bootstrap_mean([1.0, 2.0]), "at least three values, got 2"),
    ):
        with pytest.raises(ValueError, match=words):
            refused()


RECORDED = sorted((ROOT / "data" / "results").rglob("study.json"))


UNDER_WAY = ("length",)  # whose runs are recorded as they finish


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.parent.name)
def test_recorded_studies_are_complete_and_readable(path):
    study = read_study(path)
    found = read_records(study, path.parent)
    seeds = {name: [record.seed for record in group] for name, group in found.items()}
    if path.parent.name not in UNDER_WAY:
        assert seeds == {name: list(study.seeds) for name in study.settings}
    for record in (record for group in found.values() for record in group):
        assert record.provenance["git_commit"] and record.samples.exists()
