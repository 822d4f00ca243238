"""Studies: what is recorded stays, what was cut off goes on, and nothing of other settings is ever mixed in."""

import json
import shutil

import pytest
import torch

from wwgan import study as studies
from wwgan.study import Study, main, paired_difference, read_records, read_study, run_study
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


def test_records_of_other_images_are_not_compared(here):
    study = make_study(seeds=[0])
    run_study(study, **here)
    path = here["results"] / "wwgan-seed0" / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(dataset_sha256="0")))
    with pytest.raises(ValueError, match="cannot be compared"):
        read_records(study, here["results"])


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
