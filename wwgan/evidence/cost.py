"""What the ground metric costs, as ratios measured side by side: of critic steps, of norms alone, of whole training."""

import argparse
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import quantiles
from typing import Any

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
    **{f"von Neumann {radius}": Wasserstein("von_neumann", radius) for radius in (1, 2, 3)},
    "Moore 1": Wasserstein("moore", 1),
    "Sobolev": Sobolev(),
}


_SIDES = dict(sides=(32, 64, 128, 256), training=(32, 64, 64))
# critic steps and training by (side, width, batch), norms on so many pixels in all, updates of a turn of training
SCALES: dict[str, dict[str, Any]] = {
    "smoke": dict(rounds=2, steps=[(16, 8, 4)], sides=(16, 32), pixels=(2**10,), training=(16, 8, 8), updates=1),
    "cpu": dict(
        rounds=12,
        steps=[(32, 64, 64), (32, 16, 64), (64, 64, 32), (128, 32, 16), (256, 16, 8)],
        pixels=(2**16, 2**20),
        updates=2,
        **_SIDES,
    ),
    "gpu": dict(
        rounds=30,
        steps=[(32, 64, 64), (32, 64, 256), (32, 128, 64), (64, 64, 64), (128, 64, 64), (256, 64, 32)],
        pixels=(2**20, 2**24),
        updates=20,
        **_SIDES,
    ),
}
RESULTS = {"CPU": "cost_cpu.json", "GPU": "cost_gpu.json"}


def timer_of(call: Callable[[], Any], device: torch.device, n: int | None = None) -> Callable[[], float]:
    """A function that makes n calls in a row and returns the seconds of one, the device's queue included.

    n: None for one on a CPU, and on a GPU so many that its queue stays full.
    """
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None

    def seconds(n: int) -> float:
        wait()
        start = time.perf_counter()
        for _ in range(n):
            call()
        wait()
        return (time.perf_counter() - start) / n

    if n is None and device.type == "cuda":
        call()
        n = max(1, round(0.02 / seconds(1)))
    return partial(seconds, n or 1)


def interleaved(
    timers: Mapping[Any, Callable[[], float]], rounds: int, seed: int = 0, warmup: int = 2, shown: str = ""
) -> dict[Any, list[float]]:
    """Runs all candidates once in every round, each round in a new random order; name -> seconds of each round.

    timers: name -> function that runs the candidate and returns its seconds. warmup: rounds that do not count.
    shown: what the progress bar is called; empty: none.
    """
    from tqdm import tqdm

    order, shuffler = list(timers), random.Random(seed)
    seconds: dict[Any, list[float]] = {name: [] for name in timers}
    for k in tqdm(range(-warmup, rounds), desc=shown, unit="round", disable=not shown):
        shuffler.shuffle(order)
        for name in order:
            taken = timers[name]()
            if k >= 0:
                seconds[name].append(taken)
    return seconds


def ratio(seconds: Mapping[Any, list[float]], of: Any, to: Any) -> list[float]:
    """Median, lower and upper quartile over rounds of the ratio within the round, to four digits."""
    ratios = [a / b for a, b in zip(seconds[of], seconds[to], strict=True)]
    low, median, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return [float(f"{value:.4g}") for value in (median, low, high)]


def _noise(n: int, side: int) -> Tensor:
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def step_costs(shape: tuple[int, int, int], rounds: int, device: torch.device) -> dict[str, Any]:
    """Time of a critic step with each metric over that of the Euclidean one, all on the same networks and images."""
    size, width, batch = shape
    config = TrainConfig(penalty="euclidean", size=size, width=width, batch_size=batch, penalty_every=2)
    state, images = TrainState(config, 3, device), _noise(4 * batch, size).to(device)

    def step(ground: GroundMetric | None) -> None:
        state.critic_updates = 0 if ground else 1  # a penalty in even updates only
        with repeatable_convolutions():
            critic_step(state, images, ground or Euclidean())  # not asked in updates without a penalty

    timers = {name: timer_of(partial(step, ground), device) for name, ground in METRICS.items()}
    seconds = interleaved(timers, rounds, shown=f"steps {size}², {width}, {batch}")
    return dict(
        size=size, width=width, batch=batch, to_euclidean={name: ratio(seconds, name, "Euclidean") for name in METRICS}
    )


def _norms_and_copy(side: int, batch: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    """The released norm with its derivative in three ways, and a copy of its inputs."""
    noise = torch.rand(2, batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    x, g = (2 * noise - 1).to(device).unbind()
    derivative = lambda norm, v, y: torch.autograd.grad(norm(v, y).sum(), v)
    ours = Wasserstein.released().squared_norm
    calls: dict[str, Callable[[], Any]] = {"copy": lambda: (g.clone(), x.clone())}
    for name, norm in dict(ours=ours, convolutions=written_out_squared_norm, slices=sliced_squared_norm).items():
        layout = torch.channels_last if name == "ours" else torch.contiguous_format  # as each one's training has it
        v, y = (t.clone(memory_format=layout) for t in (g, x))
        calls[name] = partial(derivative, norm, v.requires_grad_(), y)
    return calls


def penalty_costs(
    pixels: Sequence[int], sides: Sequence[int], rounds: int, device: torch.device
) -> list[dict[str, Any]]:
    """The released norm and its derivative against a copy of its inputs, other ways, and itself on other sizes.

    pixels: how many in all; measured are as many images of each of `sides` as have so many.
    """
    timers = {
        (n, side, name): timer_of(call, device)
        for n, side in product(pixels, sides)
        for name, call in _norms_and_copy(side, n // side**2, device).items()
    }
    seconds, rows = interleaved(timers, rounds, shown="norms"), []
    for n, side in product(pixels, sides):
        ours, copy, convolutions, slices = ((n, side, name) for name in ("ours", "copy", "convolutions", "slices"))
        row = dict(
            to_copy=ratio(seconds, ours, copy),
            faster_than_convolutions=ratio(seconds, convolutions, ours),
            faster_than_slices=ratio(seconds, slices, ours),
            per_pixel=ratio(seconds, ours, (n, sides[0], "ours")),
        )
        rows.append(dict(size=side, batch=n // side**2, **row, per_pixel_to=sides[0]))
    return rows


_Begin = Callable[[Tensor, torch.device], Callable[[], Any]]


def our_training(config: TrainConfig, images: Tensor, device: torch.device) -> Callable[[], Any]:
    """A function that trains one generator update on uint8 images (N, C, H, W), as `train` does."""
    state, images, ground = TrainState(config, images.shape[1], device), images.to(device), config.ground()

    def one_update() -> None:
        with repeatable_convolutions():
            update(state, images, ground)

    return one_update


def _serve(connection: Connection, begin: _Begin, images: Tensor, device: torch.device, n: int) -> None:
    """Trains n updates at each request and answers with the seconds, until nobody asks any more."""
    timer = timer_of(begin(images, device), device, n)
    with suppress(EOFError):
        while True:
            connection.recv()
            connection.send(timer())


@contextmanager
def contestant(begin: _Begin, images: Tensor, device: torch.device, n: int) -> Iterator[Callable[[], float]]:
    """A function that trains n updates in a process of their own and returns the seconds of one; ends with the block.

    begin: such as `our_training` with its settings. What fails there raises EOFError or ConnectionError here.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(theirs, begin, images, device, n))  # no daemon: it may have workers
    process.start()
    theirs.close()

    def seconds() -> float:
        ours.send(None)
        return ours.recv()

    try:
        yield seconds
    finally:
        ours.close()
        process.join(10)
        process.kill()
        process.join()


def training_costs(scale: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Throughput of each way of training against the plain loop with the same penalty; compiled too at full scale."""
    size, width, batch = scale["training"]
    make = partial(TrainConfig, size=size, width=width, batch_size=batch, device=str(device))
    ways: dict[str, _Begin] = {}
    for penalty in ("euclidean", "wasserstein"):
        ways[f"plain loop, {penalty}"] = partial(plain_training, make(penalty=penalty, channels_last=False))
        ways[f"wwgan, {penalty}"] = partial(our_training, make(penalty=penalty))
        if scale != SCALES["smoke"]:
            ways[f"wwgan compiled, {penalty}"] = partial(our_training, make(penalty=penalty, compile=True))
    images = _noise(10_000, size)
    with ExitStack() as stack:
        enter = lambda begin: stack.enter_context(contestant(begin, images, device, scale["updates"]))
        seconds = interleaved({name: enter(begin) for name, begin in ways.items()}, scale["rounds"], shown="training")
    speeds = {name: ratio(seconds, f"plain loop, {name.rpartition(', ')[2]}", name) for name in ways}
    return dict(size=size, width=width, batch=batch, times_the_plain_loop=speeds)


def measure(scale: str | None = None, device: str = "auto") -> dict[str, Any]:
    """Runs all comparisons of a scale; the record is plain JSON, with device and versions.

    scale: "smoke", "cpu" or "gpu"; None: as the device is. Raises ValueError for an unknown scale or device.
    """
    place = pick_device(device)
    name = scale or ("gpu" if place.type == "cuda" else "cpu")
    if name not in SCALES:
        raise unknown_name("scale", name, SCALES)
    chosen, origin = SCALES[name], provenance(TrainConfig(device=str(place)), _noise(1, 16), place)
    return dict(
        scale=name,
        rounds=chosen["rounds"],
        provenance={k: origin[k] for k in ("git_commit", "git_dirty", "versions", "device", "platform", "started")},
        steps=[step_costs(shape, chosen["rounds"], place) for shape in chosen["steps"]],
        penalties=penalty_costs(chosen["pixels"], chosen["sides"], chosen["rounds"], place),
        training=training_costs(chosen, place),
    )


def _summary(record: Mapping[str, Any]) -> dict[str, str]:
    """What is compared -> what was found: median and quartiles. Some rows stand in earlier records only."""
    steps, last, training = record["steps"], record["penalties"][-1], record["training"]
    shape = "{size}², width {width}, batch {batch}".format_map
    of_size = {step["size"]: step for step in reversed(steps)}  # the first of each size
    first, images = steps[0], f"{last['batch']} images of {last['size']}²"
    without = [1 / first["to_euclidean"]["no penalty"][k] for k in (0, 2, 1)]
    found = [
        *(
            (f"critic step, Wasserstein / Euclidean: {shape(step)}", step["to_euclidean"]["von Neumann 2"], 3)
            for step in reversed(of_size.values())
        ),
        (f"critic step, Euclidean / no penalty: {shape(first)}", without, 2),
        (
            f"critic step, speed of its arithmetic / matrix product's: {shape(first)}",
            first.get("of_matrix_product_speed"),
            2,
        ),
        (f"norm alone / copy of its inputs: {images}", last["to_copy"], 1),
        (f"norm alone, speed / by convolutions: {images}", last["faster_than_convolutions"], 1),
        (f"norm alone, speed / plain slices: {images}", last["faster_than_slices"], 1),
        (f"norm alone, time per pixel: {last['size']}² / {last['per_pixel_to']}²", last["per_pixel"], 2),
    ]
    for penalty, way in product(("euclidean", "wasserstein"), ("wwgan", "wwgan compiled")):
        row = f"training, {way} / plain loop, speed: {penalty}, {shape(training)}"
        found.append((row, training["times_the_plain_loop"].get(f"{way}, {penalty}"), 2))
    rows = {
        name: "{} ({}–{})".format(*(f"{value:.{digits}f}" for value in triple))
        for name, triple, digits in found
        if triple
    }
    if memory := record.get("memory"):
        for other in ("Euclidean", "plain loop, wasserstein"):
            peak = memory["peak_bytes"]["von Neumann 2"] / memory["peak_bytes"][other]
            rows[f"peak memory, Wasserstein / {other}: {shape(memory)}"] = f"{peak:.2f}"
    return rows


def summary_table(records: Mapping[str, Mapping[str, Any] | None]) -> str:
    """A Markdown table with one column for each device; a device without a record was not measured.

    records: heading of the column -> what `measure` returned, or None.
    """
    columns = {heading: _summary(record) if record else None for heading, record in records.items()}
    names = dict.fromkeys(name for column in columns.values() if column for name in column)
    cell = lambda column, name: "not measured" if column is None else column.get(name, "–")
    rows = [["ratio: median (quartiles)", *columns], ["---"] * (len(columns) + 1)]
    rows += [[name, *(cell(column, name) for column in columns.values())] for name in names]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], lines[1].replace(" ", ""), *lines[2:]])


def read_costs(folder: Path | None = None) -> dict[str, dict[str, Any] | None]:
    """The recorded results by device, None for one that was not measured. folder: data/results of the repository."""
    folder = folder or project_root() / "data" / "results"
    paths = {heading: folder / name for heading, name in RESULTS.items()}
    return {heading: read_json(path) if path.exists() else None for heading, path in paths.items()}


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
