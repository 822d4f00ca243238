"""The study of the length: what is measured of a run, and what its plan makes of the numbers."""

import math
import random

import pytest

from wwgan.data import load_images, pick_images, to_float
from wwgan.evaluation import main_score
from wwgan.evidence import length
from wwgan.evidence.perturbation import matched
from wwgan.evidence.statistics import student_mean
from wwgan.evidence.study import Study
from wwgan.runs import read_evaluations
from wwgan.training import train


def test_a_run_is_measured(smoke, data_dir):
    run = train(smoke(eval_interval=2, eval_features="pixels", eval_samples=20), progress=False)
    real = pick_images(load_images("digits", data_dir, 16, "test"), 20)
    found = length.outcomes(run, real, matched(to_float(real[:10]), (0.5, 1.0)), attack_steps=2)
    assert found["images"] == 20 and set(found["jumps"]) == set(length.PATHS) and 0 <= found["separation"] <= 1
    assert {len(values) for values in found["responses"].values()} == {2}
    again = length.outcomes(run, real, matched(to_float(real[:10]), (0.5, 1.0)), attack_steps=2)
    assert again == found
    ready = found | dict(gap=abs(found["gap"]), frechet=run.evaluations[-1]["scores"]["frechet"])
    assert all(length.value_of(name, ready) > 0 for name in ("quality", "robustness", "continuity", "detail"))
    for drops in found["attacks"].values():
        assert drops["transport"] >= 0 and drops["random"] >= 0 and drops["ball"] >= 0


def test_search_takes_the_best_of_five_for_every_setting(tmp_path, data_dir, monkeypatch):
    small = dict(preset="smoke", eval_interval=2, eval_features="pixels", eval_samples=20, device="cpu")
    monkeypatch.setattr(length, "COMMON", small | dict(critic_steps=1, batch_size=4, width=4))
    monkeypatch.setattr(length, "SETTINGS", {name: length.SETTINGS[name] for name in ("euclidean", "twin8")})
    monkeypatch.setattr(length, "Study", lambda common, *rest: Study(common | dict(steps=2), *rest))
    study = length.search(tmp_path / "search", tmp_path / "runs", data_dir=str(data_dir))
    assert study.seeds == [0, 1, 2, 3, 4] and study.settings["twin8"]["order"] == -1
    assert len([*(tmp_path / "search").glob("*-seed100")]) == 10
    for name, given in study.settings.items():
        paths = (tmp_path / "search").glob(f"{name}-lr*-seed100")
        scores = {path.name: main_score(read_evaluations(path)[-1]) for path in paths}
        best = min(scores, key=scores.get)
        assert f"-weight{given['weight']}-" in best and length.RATES[best.split("-lr")[1][:4]] == given["lr"]


def test_studies_that_follow_differ_from_the_first_in_one_thing():
    first = Study(length.COMMON, {name: dict(lr=0.001, **given) for name, given in length.SETTINGS.items()}, range(5))
    configs = {name: study.configs() for name, study in length.following(first).items()}
    assert {name: len(found) for name, found in configs.items()} == dict(points=18, anneal=3, colour=9)
    both = configs["points"]["length8-geodesic-matched-seed2"]
    assert (both.points, both.pairs, both.length, both.lr, both.seed) == ("geodesic", "matched", 8, 0.001, 2)
    annealed = configs["anneal"]["annealed-seed0"]
    assert annealed.ground(0).length == pytest.approx(8) and annealed.ground(annealed.steps // 2).length == 0
    assert configs["colour"]["released-seed1"].dataset == "cifar10"


def record(factor: float, gap: float = 1.0) -> dict:
    """Outcomes that are all `factor`, in units of the gap."""
    jumps = {kind: dict(largest=factor, sum=factor) for kind in length.PATHS}
    spectrum = dict(frequencies=[0.1, 0.3], power=[9.0, math.exp(factor)], power_of_real=[1.0, 1.0])
    responses = {name: [9.0, factor] for name in length.MOTIONS}
    attacks = dict(attacks={"1.0": dict(transport=factor)})
    return dict(frechet=factor, gap=gap, responses=responses, jumps=jumps) | spectrum | attacks


def records(factors: dict[str, float], spread: float = 0.01, seeds: int = 5) -> dict:
    draw = random.Random(0)
    return {
        f"{name}-seed{seed}": record(factor * math.exp(draw.gauss(0, spread)))
        for name, factor in factors.items()
        for seed in range(seeds)
    }


ALL = dict.fromkeys(
    ["euclidean", "released", "length8", "length32", "paper"]
    + ["twin-released", "twin8", "permuted-released", "permuted8"],
    1.0,
)


@pytest.mark.parametrize("claim", length.PLAN)
@pytest.mark.parametrize("factor, spread, word", [(0.5, 0.01, -1), (2.0, 0.01, 1), (0.9, 0.5, 0)])
def test_verdicts_follow_the_plan(claim, factor, spread, word):
    plan = length.PLAN[claim]
    found = length.verdicts(records(ALL | dict(released=factor), spread), range(5), claim)
    verdict = found[f"released over {plan.pairs[0][1]}"]
    assert len(found) == len(plan.pairs) and verdict.ratio.low < verdict.ratio.mean < verdict.ratio.high
    expected = "undecided" if not word else "supported" if word == plan.predicted else "contradicted"
    assert verdict.word == expected
    if word:
        assert verdict.p < 0.05 and verdict.ratio.mean == pytest.approx(factor, rel=0.05)


def test_where_nothing_is_predicted_agreement_supports():
    found = length.verdicts(records(ALL), range(5), "image weighting")
    assert {verdict.word for verdict in found.values()} == {"supported"}


def test_a_critic_without_a_gap_is_left_out_of_what_needs_one():
    known = records(ALL)
    known["released-seed3"]["gap"] = -0.1
    assert length.value_of("robustness", known["released-seed3"]) is None
    assert length.verdicts(known, range(5), "robustness")["released over euclidean"].ratio.n == 4
    assert length.verdicts(known, range(5), "samples")["released over euclidean"].ratio.n == 5


def test_a_comparison_that_is_not_measured_yet_counts_in_the_correction():
    known = records(ALL | dict(released=0.7), spread=0.05)
    whole = length.verdicts(known, range(5), "samples")
    part = length.verdicts({k: v for k, v in known.items() if not k.startswith("paper")}, range(5), "samples")
    pair = "released over euclidean"
    assert "paper over euclidean" in whole and "paper over euclidean" not in part
    assert part[pair].p == whole[pair].p < 0.05


def test_trend_finds_a_planted_slope():
    planted = {name: (1 + pixels) ** -0.3 for name, pixels in length.LENGTHS.items()}
    slope = student_mean(length.slopes(records(planted), range(5), "robustness"))
    assert slope.low < -0.3 < slope.high and slope.high < -0.25 and slope.n == 5
    known = records(planted)
    known["released-seed3"]["gap"] = -0.1
    assert len(length.slopes(known, range(5), "robustness")) == 4
