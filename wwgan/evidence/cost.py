"""What the ground metric costs, as ratios measured side by side: of critic steps, of norms alone, of whole training."""

import argparse
import os
import random
import sys
import time
from collections import ChainMap
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
from torch import Tensor

from ..distributed import pick_device, using_threads
from ..files import project_root, read_json, unknown_name, write_json
from ..penalty import Wasserstein
from ..progress import Progress
from ..runs import provenance
from ..settings import TrainConfig
from ..step import TrainState, critic_step, update
from ..training import repeatable_convolutions
from .baselines import plain_updates, written_out_squared_norm

_Settings = Mapping[str, Mapping[str, Any] | None]
_Scale = Mapping[str, Any]
# Settings of the critic steps that are held against each other; None: a step without a penalty.
METRICS: _Settings = {
    "no penalty": None,
    "Euclidean": dict(penalty="euclidean"),
    **{f"von Neumann {radius}": dict(radius=radius) for radius in (1, 2, 3)},
    "Moore 1": dict(neighborhood="moore", radius=1),
    "Sobolev": dict(penalty="sobolev"),
}
PLACES: _Settings = {  # where the released form is imposed
    "straight": {},
    "geodesic points": dict(points="geodesic"),
    "matched pairs": dict(pairs="matched"),
}
# Critic steps and training by (side, width, batch), norms on so many pixels in all; calls and updates in a row.
_SMALL, _NARROW, _WIDE = (16, 8, 8), (32, 16, 64), (32, 64, 64)
_FULL: dict[str, Any] = dict(sides=(32, 64, 128, 256), training=_WIDE, compile=(False, True))
_STEPS = (
    [_WIDE, _NARROW, (64, 64, 32), (128, 32, 16), (256, 16, 8)],
    [_WIDE, (32, 64, 256), (64, 64, 64), (256, 64, 32)],
)
SCALES: dict[str, dict[str, Any]] = {
    "smoke": dict(rounds=2, calls=1, updates=1, steps=[_SMALL], sides=(16, 32), pixels=(2**10,), training=_SMALL)
    | dict(compile=(False,), workers=0),
    "cpu": _FULL | dict(rounds=12, calls=1, updates=2, steps=_STEPS[0], pixels=(2**16, 2**20)),
    "gpu": _FULL | dict(rounds=30, calls=10, updates=20, steps=_STEPS[1], pixels=(2**20, 2**24)),
}


def interleaved(
    calls: Mapping[Any, Callable[[], Any]], rounds: int, device: torch.device, n: int = 1, shown: str = "rounds"
) -> dict[Any, list[float]]:
    """Seconds of each call, by name, in each round: all run once in every round, in a new random order.

    n: calls in a row of which the mean is taken, several where a GPU's queue must stay full. shown: what the progress
    bar is called. Two rounds before the first do not count.
    """
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    order, shuffler = list(calls), random.Random(0)
    seconds: dict[Any, list[float]] = {name: [] for name in calls}
    for k in Progress(range(-2, rounds), desc=shown, unit="round"):
        shuffler.shuffle(order)
        for name in order:
            wait()
            start = time.perf_counter()
            for _ in range(n):
                calls[name]()
            wait()
            if k >= 0:
                seconds[name].append((time.perf_counter() - start) / n)
    return seconds


def ratio(seconds: Mapping[Any, list[float]], of: Hashable, to: Hashable) -> list[float]:
    """Median, lower and upper quartile over rounds of the ratio within the round, to four digits."""
    ratios = [a / b for a, b in zip(seconds[of], seconds[to], strict=True)]
    low, median, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return [float(f"{value:.4g}") for value in (median, low, high)]


def _noise(n: int, side: int) -> Tensor:
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _critic_step(state: TrainState, images: Tensor, config: TrainConfig, penalised: bool) -> None:
    state.config, state.critic_updates = config, 0 if penalised else 1  # a penalty in even updates only
    with repeatable_convolutions():
        critic_step(state, images, config.ground())


def step_costs(candidates: _Settings, to: str, most: int | None, scale: _Scale, device: torch.device) -> list[Any]:
    """Time of a critic step with each candidate's settings over that of one of them, on the same networks and images.

    most: how many of the scale's shapes, from the first; None: all.
    """
    rows = []
    for size, width, batch in scale["steps"][:most]:
        make = partial(TrainConfig, size=size, width=width, batch_size=batch, penalty_every=2)
        state, images = TrainState(make(), 3, device), _noise(4 * batch, size).to(device)
        calls = {
            name: partial(_critic_step, state, images, make(**given or {}), given is not None)
            for name, given in candidates.items()
        }
        seconds = interleaved(calls, scale["rounds"], device, scale["calls"], f"steps {size}², {width}, {batch}")
        found = {f"to_{to.lower()}": {name: ratio(seconds, name, to) for name in candidates}}
        rows.append(dict(size=size, width=width, batch=batch, rounds=scale["rounds"]) | found)
    return rows


def _norms(side: int, batch: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    """The released norm with its derivative in two ways, and a copy of its inputs."""
    noise = torch.rand(2, batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    x, g = (2 * noise - 1).to(device).unbind()
    v, y = (t.clone(memory_format=torch.channels_last) for t in (g.requires_grad_(), x))  # as our training has them
    ours, convolutions = Wasserstein.released().squared_norm, written_out_squared_norm
    return dict(
        copy=lambda: (g.detach().clone(), x.clone()),
        ours=lambda: torch.autograd.grad(ours(v, y).sum(), v),
        convolutions=lambda: torch.autograd.grad(convolutions(g, x).sum(), g),
    )


def norm_costs(scale: _Scale, device: torch.device) -> list[Any]:
    """The released norm and its derivative against a copy of its inputs, convolutions, and itself on other sizes.

    So many pixels in all at a time, as batches of images of each side; its time per pixel is held against the first.
    """
    calls: dict[Any, Callable[[], Any]] = {}
    for n, side in product(scale["pixels"], scale["sides"]):
        calls |= {(n, side, name): call for name, call in _norms(side, n // side**2, device).items()}
    seconds, rows, first = interleaved(calls, scale["rounds"], device, scale["calls"], "norms"), [], scale["sides"][0]
    for n, side in product(scale["pixels"], scale["sides"]):
        ours, copy, convolutions = ((n, side, name) for name in ("ours", "copy", "convolutions"))
        row = dict(size=side, batch=n // side**2, to_copy=ratio(seconds, ours, copy), per_pixel_to=first)
        row |= dict(faster_than_convolutions=ratio(seconds, convolutions, ours))
        rows.append(row | dict(per_pixel=ratio(seconds, ours, (n, first, "ours"))))
    return rows


def our_training(config: TrainConfig, images: Tensor, device: torch.device) -> Callable[[], Any]:
    """A function that trains one generator update on uint8 images (N, C, H, W), as `train` does."""
    state, images, ground = TrainState(config, images.shape[1], device), images.to(device), config.ground()

    def one_update() -> dict[str, Tensor]:
        with repeatable_convolutions():
            return update(state, images, ground)

    return one_update


def relative_times(configs: Mapping[str, TrainConfig], baseline: str, images: Tensor, rounds: int) -> dict[str, Any]:
    """Time of a generator update with each of these settings over that with the baseline's, with one thread on a CPU.

    images: uint8 (N, C, H, W), on the device that trains. Plain JSON: median and quartiles over rounds.
    """
    calls = {name: our_training(config, images, images.device) for name, config in configs.items()}
    with using_threads(1):
        seconds = interleaved(calls, rounds, images.device)
    times = {name: ratio(seconds, name, baseline) for name in configs}
    origin = provenance(configs[baseline], images, images.device)
    return dict(baseline=baseline, rounds=rounds, times=times, provenance=origin)


def training_costs(scale: _Scale, device: torch.device) -> dict[str, Any]:
    """Throughput of each way of training against the plain loop with the same penalty."""
    size, width, batch = scale["training"]
    images, workers = _noise(10_000, size), scale.get("workers", max(2, min(8, (os.cpu_count() or 2) // 2)))
    calls: dict[str, Callable[[], Any]] = {}
    for penalty in ("euclidean", "wasserstein"):
        make = partial(TrainConfig, penalty=penalty, size=size, width=width, batch_size=batch)
        plain = plain_updates(make(channels_last=False), images, device, workers)
        calls[f"plain loop, {penalty}"] = partial(next, plain)
        for compile in scale["compile"]:
            ours = our_training(make(compile=compile), images, device)
            calls[f"wwgan{' compiled' if compile else ''}, {penalty}"] = ours
    seconds = interleaved(calls, scale["rounds"], device, scale["updates"], "training")
    speeds = {name: ratio(seconds, f"plain loop, {name.rpartition(', ')[2]}", name) for name in calls}
    return dict(size=size, width=width, batch=batch, times_the_plain_loop=speeds)


PARTS: dict[str, Callable[[_Scale, torch.device], Any]] = dict(
    steps=partial(step_costs, METRICS, "Euclidean", None),
    places=partial(step_costs, PLACES, "straight", 3),
    penalties=norm_costs,
    training=training_costs,
)


def measure(scale: str | None = None, device: str = "auto", only: Iterable[str] | None = None) -> dict[str, Any]:
    """Runs the comparisons of a scale; the record is plain JSON, with device and versions.

    scale: "smoke", "cpu" or "gpu"; None: as the device is. only: names in `PARTS`; None: all. Raises ValueError for an
    unknown scale or device.
    """
    place = pick_device(device)
    name = scale or ("gpu" if place.type == "cuda" else "cpu")
    if name not in SCALES:
        raise unknown_name("scale", name, SCALES)
    chosen, origin = SCALES[name], provenance(TrainConfig(device=str(place)), _noise(1, 16), place)
    kept = ("git_commit", "git_dirty", "versions", "device", "platform", "started")
    record = dict(scale=name, rounds=chosen["rounds"], provenance={key: origin[key] for key in kept})
    return record | {part: PARTS[part](chosen, place) for part in only or PARTS}


def _rows(record: Mapping[str, Any]) -> Iterator[tuple[str, list[float] | None, int]]:
    """What is compared; median and quartiles, None where not measured; their digits."""
    shape, steps = "{size}², width {width}, batch {batch}".format_map, record.get("steps", [])
    sizes = {step["size"]: step for step in reversed(steps)}  # the first of each
    for step in reversed(sizes.values()):
        yield f"critic step, Wasserstein / Euclidean: {shape(step)}", step["to_euclidean"]["von Neumann 2"], 3
    for step, place in product(record.get("places", []), list(PLACES)[1:]):
        yield f"critic step, {place} / straight, random: {shape(step)}", step["to_straight"][place], 2
    for step in steps[:1]:
        without = [1 / step["to_euclidean"]["no penalty"][k] for k in (0, 2, 1)]
        yield f"critic step, Euclidean / no penalty: {shape(step)}", without, 2
        speed = step.get("of_matrix_product_speed")
        yield f"critic step, speed of its arithmetic / matrix product's: {shape(step)}", speed, 2
    for last in record.get("penalties", [])[-1:]:
        images = f"{last['batch']} images of {last['size']}²"
        yield f"norm alone / copy of its inputs: {images}", last["to_copy"], 1
        yield f"norm alone, speed / by convolutions: {images}", last["faster_than_convolutions"], 1
        yield f"norm alone, speed / plain slices: {images}", last.get("faster_than_slices"), 1
        yield f"norm alone, time per pixel: {last['size']}² / {last['per_pixel_to']}²", last["per_pixel"], 2
    if training := record.get("training"):
        for penalty, way in product(("euclidean", "wasserstein"), ("wwgan", "wwgan compiled")):
            found = training["times_the_plain_loop"].get(f"{way}, {penalty}")
            yield f"training, {way} / plain loop, speed: {penalty}, {shape(training)}", found, 2
    if memory := record.get("memory"):  # of an earlier record, a single number
        for other in ("Euclidean", "plain loop, wasserstein"):
            peak = memory["peak_bytes"]["von Neumann 2"] / memory["peak_bytes"][other]
            yield f"peak memory, Wasserstein / {other}: {shape(memory)}", [peak], 2


def _shown(found: Sequence[float], digits: int) -> str:
    median, *quartiles = (f"{value:.{digits}f}" for value in found)
    return f"{median} ({'–'.join(quartiles)})" if quartiles else median


def summary_table(records: Mapping[str, Mapping[str, Any] | None]) -> str:
    """A Markdown table with one column for each device; a device without a record was not measured.

    records: heading of the column -> what `measure` returned, or None.
    """
    columns = [
        {name: _shown(found, digits) for name, found, digits in _rows(record or {}) if found}
        for record in records.values()
    ]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [["ratio: median (quartiles)", *records]]
    rows += [[name, *(c.get(name, "–") if c else "not measured" for c in columns)] for name in names]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def read_costs(folder: Path | None = None) -> dict[str, dict[str, Any] | None]:
    """What was recorded by device, None for one that was not measured. folder: data/results of the repository.

    Parts that were measured apart, such as cost_cpu_places.json, join the rest; scale, rounds and provenance are then
    of the main record.
    """
    folder = folder or project_root() / "data" / "results"
    records = {device: sorted(folder.rglob(f"cost_{device.lower()}*.json")) for device in ("CPU", "GPU")}
    return {device: dict(ChainMap(*map(read_json, paths))) or None for device, paths in records.items()}


def main(argv: Iterable[str] | None = None) -> int:
    """Measure, print the table, and write the record where asked; the exit code."""
    parser = argparse.ArgumentParser(
        prog="wwgan bench", description="What the ground metric costs: ratios, measured side by side."
    )
    parser.add_argument("--scale", help="smoke (seconds), cpu or gpu (minutes); default: as the device is")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<number>")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="parts of the benchmark; default: all")
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    options = parser.parse_args(argv)
    try:
        record = measure(options.scale, options.device, options.only)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.out:
        write_json(options.out, record)
    print(summary_table({record["provenance"]["device"]: record}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
