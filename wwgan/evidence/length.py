"""The study of the length: what is measured of each run, and the comparisons that were fixed before it was run.

The plan, with its reasons, is in nbs/evidence/09_statistics.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import geometric_mean, linear_regression, mean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data import load_images, pick_images, to_float
from ..evaluation import main_score
from ..files import read_json, write_json
from ..runs import Run, load_run, read_evaluations
from ..step import draw_many, fixed_random, generate, gradient_norms
from .attack import random_transport, worst_in_ball, worst_transport
from .perturbation import Matched, matched, radial_power_spectrum
from .probe import cross_fade, latent_paths, perturbation_path, separation
from .records import read_records
from .statistics import Estimate, geometric_estimate, holm, log_ratios, student_p
from .study import Study, read_study, run_study

COMMON: dict[str, Any] = dict(dataset="fashion_mnist", size=32, width=16, latent_dim=64, critic_steps=5, batch_size=64)
COMMON |= dict(betas=[0.5, 0.9], ema=0.99, log_interval=100, sample_interval=500, checkpoint_interval=500)
COMMON |= dict(eval_interval=500, eval_features="efficientnet", eval_samples=2000, eval_real=0)  # 0: all
SETTINGS: dict[str, dict[str, Any]] = {
    "euclidean": dict(penalty="euclidean"),
    "released": dict(penalty="wasserstein"),
    "length8": dict(penalty="wasserstein", length=8),
    "length32": dict(penalty="wasserstein", length=32),
    "paper": dict(penalty="wasserstein-paper"),
    "twin-released": dict(penalty="sobolev", order=-1, length=7**0.5),
    "twin8": dict(penalty="sobolev", order=-1, length=8),
    "permuted-released": dict(penalty="wasserstein-shuffled"),
    "permuted8": dict(penalty="wasserstein-shuffled", length=8),
}
RATES = {"5e-4": 0.0005, "1e-3": 0.001, "2e-3": 0.002}
LENGTHS = {"euclidean": 0.0, "released": 7**0.5, "length8": 8.0, "length32": 32.0}  # in pixels, the dose
ELSEWHERE = {  # where the bound is imposed, but on straight lines between random pairs
    "geodesic": dict(points="geodesic"),
    "matched": dict(pairs="matched"),
    "geodesic-matched": dict(points="geodesic", pairs="matched"),
}
OUTCOMES = "outcomes.json"
BUDGETS = (0.5, 1.0)  # of attacks that move mass, in pixels
MOTIONS = ("translation", "rotation", "scaling", "shear", "elastic")  # the plan's, whatever else is added elsewhere
PATHS = ("translation", "elastic", "cross-fade", "latent")
SIZES = (1.0, 2.0, 4.0)  # Euclidean sizes of the perturbations, in intensities
DETAIL = 0.25  # cycles per pixel above which the power spectrum counts as fine detail


class Plan(NamedTuple):
    """A claim of the plan: which outcome decides it, of which settings over which, and what was predicted.

    predicted: -1 for a ratio below 1, +1 for one above, 0 for none.
    """

    outcome: str
    pairs: tuple[tuple[str, str], ...]
    predicted: int


_OVER_EUCLID = tuple((name, "euclidean") for name in ("released", "length8", "length32", "paper"))
_OVER_PERMUTED = (("released", "permuted-released"), ("length8", "permuted8"))
_OVER_TWIN = (("released", "twin-released"), ("length8", "twin8"))
PLAN = {
    "samples": Plan("quality", _OVER_EUCLID, -1),
    "robustness": Plan("robustness", _OVER_EUCLID, -1),
    "continuity": Plan("continuity", _OVER_EUCLID, -1),
    "detail": Plan("detail", _OVER_EUCLID, +1),
    "pixel order": Plan("robustness", _OVER_PERMUTED, -1),
    "worst motion": Plan("attack", _OVER_EUCLID, -1),
    "image weighting": Plan("robustness", _OVER_TWIN, 0),
}


def _train(study: Study, results: Path, runs: Path, **where: Any) -> None:
    """Train what is missing, one thread a run; runs that fail, because they diverge, are named and left out."""
    try:
        run_study(study, results, runs, threads=1, progress=False, **where)
    except RuntimeError as error:
        print(error, file=sys.stderr)


def search(folder: Path, runs: Path, workers: int = 1, data_dir: str | None = None) -> Study:
    """The plan's search for learning rate and weight, on seed 100; what is recorded in `folder` is not run again.

    Returns the study that follows from it, with the best of five for every setting.
    """

    def best(tried: Mapping[str, Mapping[str, Any]]) -> str:
        study = Study(COMMON | dict(steps=500), tried, [100])
        _train(study, folder, runs, workers=workers, data_dir=data_dir)
        found = read_records(study, folder)
        scores = {name: main_score(record.evaluations[-1]) for name, group in found.items() for record in group}
        return min(scores, key=lambda name: scores[name])

    settings = {}
    for name, given in SETTINGS.items():
        rates = {f"{name}-lr{rate}-weight10": given | dict(lr=lr, weight=10) for rate, lr in RATES.items()}
        first = best(rates)
        weights = {first.replace("weight10", f"weight{w}"): rates[first] | dict(weight=w) for w in (1, 100)}
        tried = {first: rates[first], **weights}
        settings[name] = tried[best(tried)]
    return Study(COMMON | dict(steps=3000), settings, [0, 1, 2, 3, 4])


def following(study: Study) -> dict[str, Study]:
    """The studies that take learning rates and weights from the first one, by name, in order of worth.

    points: where the bound is imposed. anneal: a length that shrinks from 8 pixels to 0 over half of the updates.
    colour: CIFAR-10 at 32 x 32.
    """
    chosen, seeds = study.settings, study.seeds[:3]
    places = {
        f"{name}-{where}": {**chosen[name], **given}
        for name in ("euclidean", "length8")
        for where, given in ELSEWHERE.items()
    }
    colour = dict(dataset="cifar10", width=32, steps=3500)
    return dict(
        points=Study(study.common, places, seeds),
        anneal=Study(study.common, dict(annealed=dict(chosen["length8"], length_end=0.0)), seeds),
        colour=Study({**study.common, **colour}, {n: chosen[n] for n in ("euclidean", "released", "length8")}, seeds),
    )


def attacked(critic: Callable[[Tensor], Tensor], images: Tensor, steps: int) -> dict[str, Any]:
    """Mean drop of a critic's score of images in [-1, 1] under each attack, by budget in pixels; what was cut."""
    found = {}
    for budget in BUDGETS:
        worst, chance = (attack(critic, images, budget, steps) for attack in (worst_transport, random_transport))
        radius = (worst.images - images).flatten(1).norm(dim=1) / 2
        drops = dict(transport=worst, random=chance, ball=worst_in_ball(critic, images, radius, steps))
        found[str(budget)] = {name: attack.drop.mean().item() for name, attack in drops.items()} | dict(
            radius=radius.mean().item(), lost=worst.lost.mean().item()
        )
    return found


def paths_of(run: Run, images: Tensor) -> dict[str, Tensor]:
    """Paths (B, 17, C, H, W) of images (2 B, C, H, W) in [-1, 1] and, as many, of the run's generator."""
    a, b = images.chunk(2)
    start, end = run.state.latent(2 * len(a), fixed_random(run.state, "paths")).chunk(2)
    return {
        "translation": perturbation_path(a, "translation", 3.0, 16),
        "elastic": perturbation_path(a, "elastic", 1.5, 16),
        "cross-fade": cross_fade(a, b, 16),
        "latent": latent_paths(lambda z: generate(run.generator, z), start, end, 16),
    }


def outcomes(run: Run, real: Tensor, moved: Mapping[str, Matched], attack_steps: int = 60) -> dict[str, Any]:
    """What is measured of a finished run, on images `real` (n, C, H, W), uint8, which it did not see. Plain numbers.

    moved: the first of these, perturbed. Responses and jumps are mean changes of the critic's output, in its own
    units; "gap" is by how much it scores real images above as many generated ones, the unit to see them in.
    """
    fake, n = draw_many(run.state, len(real)), len(real)
    x, y = to_float(real), to_float(fake)
    with torch.no_grad():
        scores = run.critic(x)
        gap = (scores.mean() - run.critic(y).mean()).item()
        responses = {
            name: [(run.critic(other) - scores[: len(other)]).abs().mean().item() for other in found.images]
            for name, found in moved.items()
        }
        jumps = {
            kind: run.critic(path.flatten(0, 1)).view(path.shape[:2]).diff(dim=1).abs()
            for kind, path in paths_of(run, x[: n // 5]).items()
        }
    norms = {points: gradient_norms(run.state, real, points, n) for points in ("interpolated", "real", "fake")}
    quantiles = lambda values: torch.quantile(values, torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])).tolist()
    frequencies, power = radial_power_spectrum(fake)
    return dict(
        images=n,
        sizes=SIZES,
        spread=scores.std().item(),
        gap=gap,
        separation=separation(run.critic, x, y),
        attacks=attacked(run.critic, x[:64], attack_steps),
        responses=responses,
        jumps={kind: dict(largest=j.amax(1).mean().item(), sum=j.sum(1).mean().item()) for kind, j in jumps.items()},
        norms={points: {name: quantiles(v) for name, v in found.items()} for points, found in norms.items()},
        deviation={points: (v["penalised"] - 1).square().mean().sqrt().item() for points, v in norms.items()},
        frequencies=frequencies.tolist(),
        power=power.tolist(),
        power_of_real=radial_power_spectrum(real)[1].tolist(),
    )


def measure(
    study: Study, results: Path, runs: Path, data_dir: str | None = None, n: int = 1000, attack_steps: int = 60
) -> list[Path]:
    """Measure what is recorded but not yet measured of a study, on n test images; the files written.

    runs: the folder of its run folders. Perturbed are half of the images, the same ones for all runs.
    """
    missing = [
        name for name in study.configs() if (results / name).exists() and not (results / name / OUTCOMES).exists()
    ]
    if not missing:
        return []
    config = study.configs()[missing[0]]
    real = pick_images(load_images(config.dataset, data_dir, config.size, "test"), n)
    moved = matched(to_float(real[: n // 2]), SIZES)
    for name in missing:
        write_json(results / name / OUTCOMES, outcomes(load_run(runs / name, "cpu"), real, moved, attack_steps))
    return [results / name / OUTCOMES for name in missing]


def read_outcomes(study: Study, results: Path) -> dict[str, Any]:
    """Run's name -> outcomes, with the last Fréchet distance as "frechet", of the runs measured so far."""
    found = {name: results / name for name in study.configs() if (results / name / OUTCOMES).exists()}
    frechet = {name: main_score(read_evaluations(folder)[-1]) for name, folder in found.items()}
    return {name: read_json(folder / OUTCOMES) | dict(frechet=frechet[name]) for name, folder in found.items()}


def value_of(outcome: str, record: Mapping[str, Any]) -> float | None:
    """One positive number of a run's outcomes.json, with its last Fréchet distance as "frechet".

    None where a critic scores generated images above real ones, which leaves no unit, or where nothing moves it.
    """
    if outcome == "quality":
        return float(record["frechet"])
    if outcome == "detail":  # departure of the power of fine detail from that of real images, either way
        rows = zip(record["frequencies"], record["power"], record["power_of_real"])
        return mean(abs(math.log(mine / real)) for frequency, mine, real in rows if frequency >= DETAIL)
    if outcome == "attack":
        found = [record["attacks"][str(BUDGETS[-1])]["transport"]]
    elif outcome == "robustness":
        found = [record["responses"][name][-1] for name in MOTIONS if name in record["responses"]]
    else:
        found = [record["jumps"][kind]["largest"] for kind in PATHS]
    return geometric_mean(found) / record["gap"] if record["gap"] > 0 and min(found) > 0 else None


class Verdict(NamedTuple):
    """A comparison of the plan: the ratio, its p-value adjusted for all comparisons of the claim, and a word."""

    ratio: Estimate
    p: float
    word: str


def log_ratios_of(
    records: Mapping[str, Any], seeds: Iterable[int], outcome: str, setting: str, baseline: str
) -> list[float]:
    """Logarithm of a setting's outcome over the baseline's, for each seed of which both runs have it.

    records: of `read_outcomes`.
    """
    values = {name: value for name, record in records.items() if (value := value_of(outcome, record)) is not None}
    both = [seed for seed in seeds if all(f"{name}-seed{seed}" in values for name in (setting, baseline))]
    return log_ratios(values, both, setting, baseline, lambda value: [value])


def verdicts(records: Mapping[str, Any], seeds: Sequence[int], claim: str) -> dict[str, Verdict]:
    """Each comparison of a claim, as "released over euclidean".

    One without two seeds is left out, but counts in the correction, which is for all that were planned.
    """
    plan = PLAN[claim]
    found = {" over ".join(pair): log_ratios_of(records, seeds, plan.outcome, *pair) for pair in plan.pairs}
    adjusted = holm({name: student_p(logs) if len(logs) > 1 else 1.0 for name, logs in found.items()})
    ratios = {name: geometric_estimate(logs) for name, logs in found.items() if len(logs) > 1}
    return {
        name: Verdict(ratio, adjusted[name], word_of(ratio, adjusted[name], plan)) for name, ratio in ratios.items()
    }


def word_of(ratio: Estimate, p: float, plan: Plan) -> str:
    """supported, contradicted or undecided; where no difference was predicted, agreeing within a tenth or not."""
    if plan.predicted == 0:
        return (
            "supported" if 0.9 <= ratio.low and ratio.high <= 1 / 0.9 else "contradicted" if p < 0.05 else "undecided"
        )
    if p >= 0.05:
        return "undecided"
    return "supported" if (ratio.mean > 1) == (plan.predicted > 0) else "contradicted"


def slopes(records: Mapping[str, Any], seeds: Iterable[int], outcome: str) -> list[float]:
    """Slope of an outcome's logarithm against log(1 + length), of each seed of which all lengths have it."""
    values = {name: value_of(outcome, record) for name, record in records.items()}
    x, found = [math.log1p(length) for length in LENGTHS.values()], []
    for seed in seeds:
        y = [math.log(value) for name in LENGTHS if (value := values.get(f"{name}-seed{seed}"))]
        if len(y) == len(x):
            found.append(linear_regression(x, y).slope)
    return found


def main(argv: Iterable[str] | None = None) -> int:
    """Search, train and measure what is missing of the study, print verdicts, go on to those that follow from it."""
    parser = argparse.ArgumentParser(prog="python -m wwgan.evidence.length", description=main.__doc__)
    parser.add_argument("results", type=Path, help="folder of the records, such as data/results/length")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the run folders")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, of one thread each [1]")
    parser.add_argument("--data_dir", help="holds data sets and prepared arrays; default: data/ of the repository")
    given = parser.parse_args(argv)
    where: dict[str, Any] = dict(workers=given.workers, data_dir=given.data_dir)
    path = given.results / "study.json"
    if not path.exists():
        write_json(path, asdict(search(given.results / "search", given.runs / "search", **where)))
    study = read_study(path)
    _carry_out(study, given.results, given.runs, **where)
    records = read_outcomes(study, given.results)
    for claim in PLAN:
        for pair, found in verdicts(records, study.seeds, claim).items():
            print(f"{claim:<16} {pair:<40} {found.ratio:.3f}, p {found.p:.3f}: {found.word}", flush=True)
    for name, other in following(study).items():
        write_json(given.results / name / "study.json", asdict(other))
        _carry_out(other, given.results / name, given.runs / name, **where)
    return 0


def _carry_out(study: Study, results: Path, runs: Path, workers: int, data_dir: str | None) -> None:
    """Measure what was recorded before, train what is missing, seed by seed, and measure that."""
    measure(study, results, runs, data_dir)
    _train(study, results, runs, workers=workers, data_dir=data_dir)
    measure(study, results, runs, data_dir)


if __name__ == "__main__":
    sys.exit(main())
