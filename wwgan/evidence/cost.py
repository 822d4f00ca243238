"""What the ground metric costs, as ratios measured side by side: of critic steps, of norms alone, of whole training."""

import argparse
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import quantiles
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..distributed import pick_device
from ..files import project_root, read_json, unknown_name, write_json
from ..penalty import Euclidean, GroundMetric, Sobolev, Wasserstein
from ..runs import provenance
from ..settings import TrainConfig
from ..step import TrainState, critic_step, update
from ..training import repeatable_convolutions
from .baselines import plain_training, sliced_squared_norm, written_out_squared_norm

METRICS: dict[str, GroundMetric | None] = {
    "no penalty": None,
    "Euclidean": Euclidean(),
    "von Neumann 1": Wasserstein("von_neumann", 1),
    "von Neumann 2": Wasserstein("von_neumann", 2),
    "von Neumann 3": Wasserstein("von_neumann", 3),
    "Moore 1": Wasserstein("moore", 1),
    "Sobolev": Sobolev(),
}


class Scale(NamedTuple):
    """What is measured: critic steps by (side, width, batch), norms alone by (side, batch), and whole training."""

    rounds: int
    steps: list[tuple[int, int, int]]
    norms: list[tuple[int, int]]
    training: tuple[int, int, int]  # side, width, batch
    updates: int  # generator updates in one turn of whole training


SCALES = {
    "smoke": Scale(2, [(16, 8, 4)], [(16, 4), (32, 1)], (16, 8, 8), 1),
    "cpu": Scale(
        rounds=12,
        steps=[(32, 64, 64), (32, 64, 16), (32, 16, 64), (64, 64, 32), (64, 32, 64), (128, 32, 16), (256, 16, 8)],
        norms=[(32, 64), (64, 16), (128, 4), (256, 1), (32, 1024), (64, 256), (128, 64), (256, 16)],
        training=(32, 64, 64),
        updates=2,
    ),
    "gpu": Scale(
        rounds=30,
        steps=[(32, 64, 64), (32, 64, 256), (32, 128, 64), (64, 64, 64), (128, 64, 64), (256, 64, 32)],
        norms=[(32, 1024), (64, 256), (128, 64), (256, 16), (32, 16384), (64, 4096), (128, 1024), (256, 256)],
        training=(32, 64, 64),
        updates=20,
    ),
}
RESULTS = {"CPU": "cost_cpu.json", "GPU": "cost_gpu.json"}
_Name = TypeVar("_Name")


def seconds_of(call: Callable[[], Any], device: torch.device, n: int = 1) -> float:
    """Seconds of one call, the device's queue included: of n calls in a row, divided by n."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(n):
        call()
    wait()
    return (time.perf_counter() - start) / n


def timer_of(call: Callable[[], Any], device: torch.device) -> Callable[[], float]:
    """A function that runs the call and returns its seconds; on a GPU, often in a row so that the queue stays full."""
    if device.type == "cpu":
        return partial(seconds_of, call, device)
    call()
    return partial(seconds_of, call, device, max(1, round(0.02 / seconds_of(call, device))))


def interleaved(
    timers: Mapping[_Name, Callable[[], float]], rounds: int, seed: int = 0, warmup: int = 2, shown: str = ""
) -> dict[_Name, list[float]]:
    """Runs all candidates once in every round, each round in a new random order.

    timers: name -> function that runs the candidate and returns its seconds. warmup: rounds that do not count.
    shown: what the progress bar is called; empty: none. Returns name -> seconds of each round.
    """
    from tqdm import tqdm

    order, shuffler = list(timers), random.Random(seed)
    seconds: dict[_Name, list[float]] = {name: [] for name in timers}
    for k in tqdm(range(-warmup, rounds), desc=shown, unit="round", disable=not shown):
        shuffler.shuffle(order)
        for name in order:
            taken = timers[name]()
            if k >= 0:
                seconds[name].append(taken)
    return seconds


def ratio(seconds: Mapping[_Name, list[float]], of: _Name, to: _Name) -> list[float]:
    """Median, lower and upper quartile over rounds of the ratio within the round, to four digits."""
    ratios = [a / b for a, b in zip(seconds[of], seconds[to], strict=True)]
    low, median, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return [float(f"{value:.4g}") for value in (median, low, high)]


def _noise(n: int, size: int) -> Tensor:
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def step_costs(shape: tuple[int, int, int], rounds: int, device: torch.device, shown: str = "") -> dict[str, Any]:
    """Time of a critic step with each metric over that of the Euclidean one, all on the same networks and images."""
    size, width, batch = shape
    config = TrainConfig(penalty="euclidean", size=size, width=width, batch_size=batch, penalty_every=2)
    state, images = TrainState(config, 3, device), _noise(4 * batch, size).to(device)

    def step(ground: GroundMetric | None) -> None:
        state.critic_updates = 0 if ground else 1  # a penalty in even updates only
        with repeatable_convolutions():
            critic_step(state, images, ground or Euclidean())  # not asked in updates without a penalty

    timers = {name: timer_of(partial(step, ground), device) for name, ground in METRICS.items()}
    seconds = interleaved(timers, rounds, shown=shown)
    to_euclidean = {name: ratio(seconds, name, "Euclidean") for name in METRICS}
    return dict(size=size, width=width, batch=batch, to_euclidean=to_euclidean)


def _derivative(norm: Callable[[Tensor, Tensor], Tensor], g: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(norm(g, x).sum(), g)[0]


def _norms_and_copy(side: int, batch: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    """The released norm with its derivative in three ways, and a copy of its inputs."""
    noise = torch.rand(2, batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    x, g = (2 * noise - 1).to(device).unbind()
    calls: dict[str, Callable[[], Any]] = {"copy": lambda: (g.clone(), x.clone())}
    ours = Wasserstein.released().squared_norm
    for name, norm in dict(ours=ours, convolutions=written_out_squared_norm, slices=sliced_squared_norm).items():
        layout = torch.channels_last if name == "ours" else torch.contiguous_format  # as each one's training has it
        v, y = (t.clone(memory_format=layout) for t in (g, x))
        calls[name] = partial(_derivative, norm, v.requires_grad_(), y)
    return calls


def penalty_costs(
    shapes: Iterable[tuple[int, int]], rounds: int, device: torch.device, shown: str = ""
) -> list[dict[str, Any]]:
    """The released norm and its derivative against a copy of its inputs, other ways, and itself on other sizes."""
    calls = {(*shape, name): call for shape in shapes for name, call in _norms_and_copy(*shape, device).items()}
    seconds = interleaved({key: timer_of(call, device) for key, call in calls.items()}, rounds, shown=shown)
    first: dict[int, tuple[int, int]] = {}  # number of pixels -> the first shape that has as many
    rows = []
    for shape in shapes:
        start = first.setdefault(shape[1] * shape[0] ** 2, shape)
        part = partial(ratio, seconds)
        rows.append(
            dict(
                size=shape[0],
                batch=shape[1],
                to_copy=part((*shape, "ours"), (*shape, "copy")),
                faster_than_convolutions=part((*shape, "convolutions"), (*shape, "ours")),
                faster_than_slices=part((*shape, "slices"), (*shape, "ours")),
                per_pixel=part((*shape, "ours"), (*start, "ours")),
                per_pixel_to=start[0],
            )
        )
    return rows


_Begin = Callable[[Tensor, torch.device], Callable[[], Any]]


def our_training(config: TrainConfig, images: Tensor, device: torch.device) -> Callable[[], Any]:
    """A function that trains one generator update on uint8 images (N, C, H, W), as `train` does."""
    state, images, ground = TrainState(config, images.shape[1], device), images.to(device), config.ground()

    def one_update() -> None:
        with repeatable_convolutions():
            update(state, images, ground)

    return one_update


def _serve(connection: Connection, begin: _Begin, images: Tensor, device: torch.device) -> None:
    """Trains n updates at each request for n, and answers with the seconds, until nobody asks any more."""
    one_update = begin(images, device)
    with suppress(EOFError):
        while True:
            connection.send(seconds_of(one_update, device, connection.recv()))


def _end(connection: Connection, process: BaseProcess) -> None:
    connection.close()
    process.join(10)
    process.kill()
    process.join()


@contextmanager
def contestants(
    ways: Mapping[str, _Begin], images: Tensor, device: torch.device, n: int
) -> Iterator[dict[str, Callable[[], float]]]:
    """Name -> function that trains n updates in that way and returns its seconds, each in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    connections: dict[str, Connection] = {}

    def ask(name: str) -> float:
        connections[name].send(n)
        return connections[name].recv()

    with ExitStack() as stack:
        for name, begin in ways.items():
            connections[name], theirs = spawn.Pipe()
            # not a daemon: the plain loop has workers of its own
            process = spawn.Process(target=_serve, args=(theirs, begin, images, device))
            process.start()
            theirs.close()
            stack.callback(_end, connections[name], process)
        yield {name: partial(ask, name) for name in ways}


def training_costs(scale: Scale, device: torch.device, shown: str = "") -> dict[str, Any]:
    """Throughput of each way of training against the plain loop with the same penalty; compiled too at full scale."""
    size, width, batch = scale.training
    make = partial(TrainConfig, size=size, width=width, batch_size=batch, device=str(device))
    ways: dict[str, _Begin] = {}
    for penalty in ("euclidean", "wasserstein"):
        ways[f"plain loop, {penalty}"] = partial(plain_training, make(penalty=penalty, channels_last=False))
        ways[f"wwgan, {penalty}"] = partial(our_training, make(penalty=penalty))
        if scale != SCALES["smoke"]:
            ways[f"wwgan compiled, {penalty}"] = partial(our_training, make(penalty=penalty, compile=True))
    with contestants(ways, _noise(10_000, size), device, scale.updates) as timers:
        seconds = interleaved(timers, scale.rounds, shown=shown)
    speeds = {name: ratio(seconds, f"plain loop, {name.rpartition(', ')[2]}", name) for name in ways}
    return dict(size=size, width=width, batch=batch, times_the_plain_loop=speeds)


def measure(scale: str | None = None, device: str = "auto", progress: bool = True) -> dict[str, Any]:
    """Runs all comparisons of a scale; the record is plain JSON, with device and versions.

    scale: "smoke", "cpu" or "gpu"; None: as the device is. Raises ValueError for an unknown scale or device.
    """
    place = pick_device(device)
    name = scale or ("gpu" if place.type == "cuda" else "cpu")
    if name not in SCALES:
        raise unknown_name("scale", name, SCALES)
    chosen = SCALES[name]
    shown = lambda what: what if progress else ""
    origin = provenance(TrainConfig(device=str(place)), _noise(1, 16), place)
    return dict(
        scale=name,
        rounds=chosen.rounds,
        provenance={k: origin[k] for k in ("git_commit", "git_dirty", "versions", "device", "platform", "started")},
        steps=[step_costs(s, chosen.rounds, place, shown("steps {}², {}, {}".format(*s))) for s in chosen.steps],
        penalties=penalty_costs(chosen.norms, chosen.rounds, place, shown("norms")),
        training=training_costs(chosen, place, shown("training")),
    )


def _shown(triple: Iterable[float], digits: int = 2) -> str:
    return "{} ({}–{})".format(*(f"{value:.{digits}f}" for value in triple))


def _shape(row: Mapping[str, Any]) -> str:
    return f"{row['size']}², width {row['width']}, batch {row['batch']}"


def _summary(record: Mapping[str, Any]) -> dict[str, str]:
    """What is compared -> what was found: median and quartiles. Some rows stand in earlier records only."""
    steps, penalties, training = (record[part] for part in ("steps", "penalties", "training"))
    first, last, rows = steps[0], penalties[-1], {}
    for step in {step["size"]: step for step in reversed(steps)}.values():  # the first of each size
        rows[f"critic step, Wasserstein / Euclidean: {_shape(step)}"] = _shown(step["to_euclidean"]["von Neumann 2"], 3)
    rows = dict(reversed(rows.items()))
    without = [1 / first["to_euclidean"]["no penalty"][k] for k in (0, 2, 1)]
    rows[f"critic step, Euclidean / no penalty: {_shape(first)}"] = _shown(without)
    if speed := first.get("of_matrix_product_speed"):
        rows[f"critic step, speed of its arithmetic / matrix product's: {_shape(first)}"] = _shown(speed)
    images = f"{last['batch']} images of {last['size']}²"
    rows[f"norm alone / copy of its inputs: {images}"] = _shown(last["to_copy"], 1)
    rows[f"norm alone, speed / by convolutions: {images}"] = _shown(last["faster_than_convolutions"], 1)
    rows[f"norm alone, speed / plain slices: {images}"] = _shown(last["faster_than_slices"], 1)
    rows[f"norm alone, time per pixel: {last['size']}² / {last['per_pixel_to']}²"] = _shown(last["per_pixel"])
    for name in ("euclidean", "wasserstein"):
        for ours in ("wwgan", "wwgan compiled"):
            if found := training["times_the_plain_loop"].get(f"{ours}, {name}"):
                rows[f"training, {ours} / plain loop, speed: {name}, {_shape(training)}"] = _shown(found)
    if memory := record.get("memory"):
        peaks = memory["peak_bytes"]
        for other in ("Euclidean", "plain loop, wasserstein"):
            rows[f"peak memory, Wasserstein / {other}: {_shape(memory)}"] = (
                f"{peaks['von Neumann 2'] / peaks[other]:.2f}"
            )
    return rows


def summary_table(records: Mapping[str, Mapping[str, Any] | None]) -> str:
    """A Markdown table with one column for each device; a device without a record was not measured.

    records: heading of the column -> what `measure` returned, or None.
    """
    columns = {heading: _summary(record) if record else None for heading, record in records.items()}
    names = list(dict.fromkeys(name for column in columns.values() if column for name in column))
    lines = ["| ratio: median (quartiles) | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name in names:
        found = ["not measured" if column is None else column.get(name, "–") for column in columns.values()]
        lines.append(f"| {name} | " + " | ".join(found) + " |")
    return "\n".join(lines)


def read_costs(folder: Path | None = None) -> dict[str, dict[str, Any] | None]:
    """The recorded results by device, None for one that was not measured. folder: data/results of the repository."""
    folder = folder or project_root() / "data" / "results"
    read = lambda path: read_json(path) if path.exists() else None
    return {heading: read(folder / name) for heading, name in RESULTS.items()}


def main(argv: Iterable[str] | None = None) -> int:
    """Measure, print the table, and write the record where asked; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m wwgan.evidence.cost", description="What the ground metric costs: ratios, measured side by side."
    )
    parser.add_argument("--scale", help="smoke (seconds), cpu or gpu (minutes); default: as the device is")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<number>")
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    options = parser.parse_args(argv)
    try:
        record = measure(options.scale, options.device)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.out:
        write_json(options.out, record)
    print(summary_table({record["provenance"]["device"]: record}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
