"""What the ground metric costs, and how fast the training step is, as ratios measured side by side."""

import argparse
import ctypes
import json
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from statistics import quantiles
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import flop_registry

from ..distributed import pick_device
from ..evaluation import frechet_distance
from ..files import project_root, read_json, unknown_name, write_json
from ..graph import half_ball
from ..networks import LeakyReLU
from ..penalty import Euclidean, GroundMetric, Sobolev, Wasserstein, pixel_graph
from ..runs import provenance
from ..settings import TrainConfig
from ..step import TrainState, critic_step, update
from ..training import repeatable_convolutions


def keep_memory() -> bool:
    """Have glibc keep freed memory for the next tensor; holds for the whole process. False where it is another libc."""
    return any(_mallopt(map_above, 2**31 - 1) for map_above in (2**30, 2**25))  # older versions take 32 MiB at most


def hand_memory_back() -> bool:
    """Have glibc hand memory of freed tensors back to the system at once; as `keep_memory`, the other way around."""
    return _mallopt(2**16, 2**16)


def _mallopt(map_above: int, trim_above: int) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return False
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
    return bool(mallopt(M_TRIM_THRESHOLD, trim_above)) and bool(mallopt(M_MMAP_THRESHOLD, map_above))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], Any], device: torch.device, n: int = 1) -> float:
    """Seconds of one call, the device's queue included: of n calls in a row, divided by n."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(n):
        call()
    _wait(device)
    return (time.perf_counter() - start) / n


def timer_of(call: Callable[[], Any], device: torch.device) -> Callable[[], float]:
    """A function that runs the call and returns its seconds; on a GPU, often in a row so that the queue stays full."""
    if device.type == "cpu":
        return lambda: seconds_of(call, device)
    call()
    n = max(1, round(0.02 / seconds_of(call, device)))
    return lambda: seconds_of(call, device, n)


_Name = TypeVar("_Name")


def interleaved(
    timers: Mapping[_Name, Callable[[], float]],
    rounds: int,
    seed: int = 0,
    warmup: int = 2,
    tick: Callable[[], Any] = lambda: None,
) -> dict[_Name, list[float]]:
    """Runs all candidates once in every round, each round in a new random order.

    timers: name -> function that runs the candidate and returns its seconds. warmup: rounds that do not count.
    tick: called after every candidate. Returns name -> seconds of each round.
    """
    order, shuffler = list(timers), random.Random(seed)
    seconds: dict[_Name, list[float]] = {name: [] for name in timers}
    for k in range(-warmup, rounds):
        shuffler.shuffle(order)
        for name in order:
            taken = timers[name]()
            tick()
            if k >= 0:
                seconds[name].append(taken)
    return seconds


def ratio(seconds: Mapping[_Name, list[float]], of: _Name, to: _Name) -> list[float]:
    """Median, lower and upper quartile over rounds of the ratio within the round, to four digits."""
    ratios = [a / b for a, b in zip(seconds[of], seconds[to], strict=True)]
    low, median, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return [float(f"{value:.4g}") for value in (median, low, high)]


def _pair_convolution(dy: int, dx: int, second: float, like: Tensor) -> nn.Conv2d:
    """v_i + second * v_j along one direction, in each channel."""
    channels = like.shape[1]
    convolution = nn.Conv2d(channels, channels, (dy + 1, abs(dx) + 1), bias=False)
    weight = torch.zeros_like(convolution.weight)
    each = torch.arange(channels)
    weight[each, each, 0, 0 if dx >= 0 else -1] = 1.0
    weight[each, each, dy, dx if dx >= 0 else 0] = second
    convolution.weight.data = weight
    return convolution.to(like.device, like.dtype).requires_grad_(False)


def written_out_squared_norm(g: Tensor, x: Tensor, neighborhood: str = "von_neumann", radius: int = 2) -> Tensor:
    """`Wasserstein.released().squared_norm(g, x)` by two convolutions for each direction, built at each call."""
    X, squared = (x + 1) / 2, g.square().sum((1, 2, 3))
    for dy, dx in half_ball(neighborhood, radius):
        mean, difference = _pair_convolution(dy, dx, 1.0, g)(X), _pair_convolution(dy, dx, -1.0, g)(g)
        squared = squared + (mean * difference.square()).sum((1, 2, 3))
    return squared


def sliced_squared_norm(g: Tensor, x: Tensor, neighborhood: str = "von_neumann", radius: int = 2) -> Tensor:
    """The same norm as a plain expression of slices."""
    graph = pixel_graph(*g.shape[-2:], neighborhood, radius)
    return graph.energy((x + 1).clamp_min(0), g, degree_normalized=False).sum(1) + g.square().sum((1, 2, 3))


class PlainImages(Dataset[Tensor]):
    """uint8 images (N, C, H, W) served one at a time through torchvision's transforms, as its data sets do."""

    def __init__(self, images: Tensor):
        from torchvision import transforms

        self.images = images
        self.transform = transforms.Compose(
            [transforms.ToPILImage(), transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, k: int) -> Tensor:
        return self.transform(self.images[k])


def _endless(loader: DataLoader[Tensor]) -> Iterator[Tensor]:
    while True:
        yield from loader


def torch_activations(network: nn.Module) -> nn.Module:
    """The network with PyTorch's LeakyReLU in the place of ours."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, LeakyReLU):
                setattr(module, name, nn.LeakyReLU(child.slope))
    return network


class PlainLoop:
    """WGAN-GP training with nothing done for speed; the penalty "wasserstein" is computed by convolutions."""

    def __init__(self, config: TrainConfig, images: Tensor, device: torch.device, workers: int):
        self.state = TrainState(config, images.shape[1], device)  # networks, and draws of z
        self.critic, self.generator = torch_activations(self.state.critic), self.state.generator
        self.critic_optimizer, self.generator_optimizer = (
            torch.optim.Adam(network.parameters(), lr=config.lr, betas=config.betas)
            for network in (self.critic, self.generator)
        )
        loader = DataLoader(
            PlainImages(images),
            config.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            multiprocessing_context="spawn" if workers else None,
            pin_memory=device.type == "cuda",
        )
        self.config, self.device, self.batches = config, device, _endless(loader)

    def penalty(self, real: Tensor, fake: Tensor) -> Tensor:
        epsilon = torch.rand(len(real), 1, 1, 1, device=self.device)
        x = (epsilon * real + (1 - epsilon) * fake).requires_grad_()
        score = self.critic(x)
        (g,) = torch.autograd.grad(score, x, torch.ones_like(score), create_graph=True, retain_graph=True)
        if self.config.penalty == "wasserstein":
            squared = written_out_squared_norm(g, x.detach())
        else:
            squared = g.reshape(len(g), -1).square().sum(1)
        return self.config.weight * ((squared.sqrt() - 1) ** 2).mean()

    def critic_step(self) -> dict[str, float]:
        real = next(self.batches).to(self.device)
        self.critic.zero_grad()
        real_score = self.critic(real).mean()
        (-real_score).backward()
        with torch.no_grad():
            fake = self.generator(self.state.latent(self.config.batch_size))
        fake_score = self.critic(fake).mean()
        fake_score.backward()
        penalty = self.penalty(real, fake)
        penalty.backward()
        self.critic_optimizer.step()
        return dict(distance=real_score.item() - fake_score.item(), penalty=penalty.item())

    def update(self) -> dict[str, float]:
        """One generator update with its critic steps."""
        for _ in range(self.config.critic_steps):
            losses = self.critic_step()
        self.critic.requires_grad_(False)
        self.generator.zero_grad()
        loss = -self.critic(self.generator(self.state.latent(self.config.batch_size))).mean()
        loss.backward()
        self.generator_optimizer.step()
        self.critic.requires_grad_(True)
        return losses | dict(generator_loss=loss.item())


@dataclass(frozen=True)
class Way:
    """A way of training. plain: the public loop. activations: ours, or PyTorch's. kept_memory: `keep_memory` called.

    metric: a name in METRICS that takes the place of the settings' ground metric; for "no penalty", the settings must
    have penalty_every = 2.
    """

    config: TrainConfig
    plain: bool = False
    activations: bool = True
    kept_memory: bool = True
    metric: str | None = None


def _workers() -> int:
    return max(2, min(8, (os.cpu_count() or 2) // 2))


def updates(way: Way, images: Tensor, device: torch.device, workers: int | None = None) -> Callable[[], Any]:
    """A function that trains one generator update in this way on uint8 images (N, C, H, W)."""
    if way.plain:
        return PlainLoop(way.config, images, device, _workers() if workers is None else workers).update
    if way.kept_memory and device.type == "cpu":
        keep_memory()
    state, images = TrainState(way.config, images.shape[1], device), images.to(device)
    ground = METRICS[way.metric] if way.metric else way.config.ground()
    if not way.activations:
        torch_activations(state.critic)

    def one_update() -> None:
        if way.metric:
            state.critic_updates = 0 if ground else 1  # with penalty_every = 2: a penalty in even updates only
        with repeatable_convolutions():
            update(state, images, ground or Euclidean())  # not asked in updates without a penalty

    return one_update


def _resident(field: str) -> int | None:
    """VmRSS (now) or VmHWM (peak) of this process in kB; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field))
    except (OSError, StopIteration):
        return None


def peak_memory(call: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes that a call needs at most beyond what is held before it; None where the system does not tell."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    resident = _resident("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    except OSError:
        return None
    call()
    peak = _resident("VmHWM")
    return None if resident is None or peak is None else 1024 * (peak - resident)


def peak_of(way: Way, images: Tensor, device: str) -> int | None:
    """Bytes that one generator update in this way needs beyond what stays from one to the next. For a fresh process."""
    place = torch.device(device)
    if place.type == "cpu":
        hand_memory_back()
    one_update = updates(way, images, place, workers=0)
    one_update()  # libraries set themselves up
    return peak_memory(one_update, place)


def _serve(connection: Connection, way: Way, images: Tensor, device: str, workers: int | None) -> None:
    """Trains n updates at each request for n, and answers with the seconds."""
    place = torch.device(device)
    one_update = updates(way, images, place, workers)
    while n := connection.recv():
        connection.send(seconds_of(one_update, place, n))


@contextmanager
def contestants(
    ways: Mapping[str, Way], images: Tensor, device: torch.device, n: int, workers: int | None = None
) -> Iterator[dict[str, Callable[[], float]]]:
    """Name -> function that trains n updates in that way and returns its seconds, each in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    processes: list[SpawnProcess] = []
    connections: dict[str, Connection] = {}
    try:
        for name, way in ways.items():
            connections[name], theirs = spawn.Pipe()
            # not a daemon: the plain loop has workers of its own
            processes.append(spawn.Process(target=_serve, args=(theirs, way, images, str(device), workers)))
            processes[-1].start()
            theirs.close()

        def timer(connection: Connection) -> float:
            connection.send(n)
            return connection.recv()

        yield {name: partial(timer, connection) for name, connection in connections.items()}
        for connection in connections.values():
            connection.send(0)
    finally:
        for connection in connections.values():
            connection.close()
        for process in processes:
            process.join(10)
            process.kill()


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **kwargs or {})
        if function._overloadpacket in flop_registry:
            self.count += flop_registry[function._overloadpacket](*args, **kwargs or {}, out_val=result)
        return result


def operations_of(call: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products and convolutions in a call."""
    with _Operations() as operations:
        call()
    return operations.count


def matrix_product(device: torch.device, n: int | None = None) -> tuple[Callable[[], Any], int]:
    """A product of two n x n matrices, and its operations: the yardstick for what the machine can do.

    In float32, on a GPU with TF32 where convolutions have it too. n: 2048, on a GPU 8192.
    """
    n = n or (8192 if device.type == "cuda" else 2048)
    a, b = torch.rand(2, n, n, device=device)

    def product() -> Tensor:
        before, torch.backends.cuda.matmul.allow_tf32 = (
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
        )
        try:
            return a @ b
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    return product, 2 * n**3


METRICS: dict[str, GroundMetric | None] = {
    "no penalty": None,
    "Euclidean": Euclidean(),
    "von Neumann 1": Wasserstein("von_neumann", 1),
    "von Neumann 2": Wasserstein("von_neumann", 2),
    "von Neumann 3": Wasserstein("von_neumann", 3),
    "Moore 1": Wasserstein("moore", 1),
    "Sobolev": Sobolev(),
}


@dataclass(frozen=True)
class Scale:
    """What is measured. steps: (side, width, batch) of critic steps. penalties: (side, batch) of norms alone."""

    rounds: int
    steps: tuple[tuple[int, int, int], ...]
    penalties: tuple[tuple[int, int], ...]
    training: tuple[int, int, int]  # side, width, batch
    updates: int  # generator updates in one turn of whole training
    ablations: bool = True  # compiled too, and with one of our measures left out at a time


SCALES = {
    "smoke": Scale(2, ((16, 8, 4),), ((16, 4), (32, 1)), (16, 8, 8), 1, ablations=False),
    "cpu": Scale(
        12,
        ((32, 64, 64), (32, 64, 16), (32, 16, 64), (64, 64, 32), (64, 32, 64), (128, 32, 16), (256, 16, 8)),
        ((32, 64), (64, 16), (128, 4), (256, 1), (32, 1024), (64, 256), (128, 64), (256, 16)),
        (32, 64, 64),
        2,
    ),
    "gpu": Scale(
        30,
        ((32, 64, 64), (32, 64, 256), (32, 128, 64), (64, 64, 64), (128, 64, 64), (256, 64, 32)),
        ((32, 1024), (64, 256), (128, 64), (256, 16), (32, 16384), (64, 4096), (128, 1024), (256, 256)),
        (32, 64, 64),
        20,
    ),
}


def _noise(device: torch.device, n: int, size: int, channels: int = 3) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=random).to(device)


def step_costs(
    shape: tuple[int, int, int], rounds: int, device: torch.device, tick: Callable[[], Any] = lambda: None
) -> dict[str, Any]:
    """The critic step with each metric against the Euclidean one, and the Euclidean one against the machine's peak."""
    size, width, batch = shape
    config = TrainConfig(penalty="euclidean", size=size, width=width, batch_size=batch, penalty_every=2)
    state, images = TrainState(config, 3, device), _noise(device, 4 * batch, size)

    def step(ground: GroundMetric | None) -> Callable[[], Any]:
        def call() -> None:
            state.critic_updates = 0 if ground else 1  # a penalty in even updates only
            with repeatable_convolutions():
                critic_step(state, images, ground or Euclidean())  # not asked in updates without a penalty

        return call

    product, product_operations = matrix_product(device)
    calls = {name: step(ground) for name, ground in METRICS.items()} | {"matrix product": product}
    timers = {name: timer_of(call, device) for name, call in calls.items()}
    seconds = interleaved(timers, rounds, tick=tick)
    share = operations_of(calls["Euclidean"]) / product_operations
    return dict(
        size=size,
        width=width,
        batch=batch,
        to_euclidean={name: ratio(seconds, name, "Euclidean") for name in METRICS},
        of_matrix_product_speed=[float(f"{share * r:.4g}") for r in ratio(seconds, "matrix product", "Euclidean")],
        **_absolute(seconds, device),
    )


def _absolute(seconds: Mapping[str, list[float]], device: torch.device) -> dict[str, Any]:
    """Median seconds, kept for GPUs only."""
    if device.type == "cpu":
        return {}
    return dict(seconds={name: quantiles(times, n=4, method="inclusive")[1] for name, times in seconds.items()})


def _derivative(norm: Callable[[Tensor, Tensor], Tensor], g: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(norm(g, x).sum(), g)[0]


def _copies(g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return g.clone(), x.clone()


def penalty_costs(
    shapes: Iterable[tuple[int, int]], rounds: int, device: torch.device, tick: Callable[[], Any] = lambda: None
) -> list[dict[str, Any]]:
    """The released norm and its derivative against a copy of its inputs, the written-out form, and itself per pixel."""
    released, pixels = Wasserstein.released(), {}
    timers: dict[tuple[int, int, str], Callable[[], float]] = {}
    norms = dict(ours=released.squared_norm, convolutions=written_out_squared_norm, slices=sliced_squared_norm)
    for side, batch in shapes:
        random = torch.Generator().manual_seed(0)
        x, g = (2 * torch.rand(2, batch, 3, side, side, generator=random) - 1).to(device).unbind()
        calls: dict[str, Callable[[], Any]] = {}
        for name, norm in norms.items():
            layout = torch.channels_last if name == "ours" else torch.contiguous_format  # as each one's training has it
            v, y = (t.clone(memory_format=layout) for t in (g, x))
            v.requires_grad_()
            calls[name] = partial(_derivative, norm, v, y)
        calls["copy"] = partial(_copies, g, x)
        for name, call in calls.items():
            timers[side, batch, name] = timer_of(call, device)
        pixels[side, batch] = batch * side**2
    seconds = interleaved(timers, rounds, tick=tick)
    rows = []
    for side, batch in shapes:
        first = next(shape for shape in pixels if pixels[shape] == pixels[side, batch])
        rows.append(
            dict(
                size=side,
                batch=batch,
                to_copy=ratio(seconds, (side, batch, "ours"), (side, batch, "copy")),
                faster_than_convolutions=ratio(seconds, (side, batch, "convolutions"), (side, batch, "ours")),
                faster_than_slices=ratio(seconds, (side, batch, "slices"), (side, batch, "ours")),
                per_pixel=ratio(seconds, (side, batch, "ours"), (*first, "ours")),
                per_pixel_to=first[0],
            )
        )
    return rows


def ways_of_training(scale: Scale, device: torch.device) -> dict[str, Way]:
    """The ways of training that are compared; the plain loop with the Euclidean penalty is the measure of all."""
    size, width, batch = scale.training
    make = lambda penalty, **changes: TrainConfig(
        size=size, width=width, batch_size=batch, penalty=penalty, device=str(device), **changes
    )
    ways = {}
    for penalty in ("euclidean", "wasserstein"):
        ways[f"plain loop, {penalty}"] = Way(make(penalty, channels_last=False), plain=True)
        ways[f"wwgan, {penalty}"] = Way(make(penalty))
        if scale.ablations:
            ways[f"wwgan compiled, {penalty}"] = Way(make(penalty, compile=True))
    if not scale.ablations:
        return ways
    ways["wwgan, wasserstein, channels first"] = Way(make("wasserstein", channels_last=False))
    ways["wwgan, wasserstein, torch's activation"] = Way(make("wasserstein"), activations=False)
    if device.type == "cpu":
        ways["wwgan, wasserstein, memory not kept"] = Way(make("wasserstein"), kept_memory=False)
    else:
        ways["wwgan compiled, wasserstein, bf16"] = Way(make("wasserstein", compile=True, precision="bf16"))
    return ways


def training_costs(scale: Scale, device: torch.device, tick: Callable[[], Any] = lambda: None) -> dict[str, Any]:
    """Throughput of each way of training against the plain loop with the same penalty."""
    size, width, batch = scale.training
    ways = ways_of_training(scale, device)
    with contestants(ways, _noise(torch.device("cpu"), 10_000, size), device, scale.updates) as timers:
        seconds = interleaved(timers, scale.rounds, tick=tick)
    plain = {name: f"plain loop, {way.config.penalty}" for name, way in ways.items()}
    return dict(
        size=size,
        width=width,
        batch=batch,
        times_the_plain_loop={name: ratio(seconds, plain[name], name) for name in ways},
        **_absolute(seconds, device),
    )


def memory_costs(scale: Scale, device: torch.device, tick: Callable[[], Any] = lambda: None) -> dict[str, Any]:
    """Peak of memory of one critic and one generator step with each metric, and of the plain loop's, in bytes."""
    size, width, batch = scale.training
    make = lambda penalty, **changes: TrainConfig(
        size=size, width=width, batch_size=batch, critic_steps=1, penalty=penalty, **changes
    )
    ways = {name: Way(make("euclidean", penalty_every=2), kept_memory=False, metric=name) for name in METRICS}
    for penalty in ("euclidean", "wasserstein"):
        ways[f"plain loop, {penalty}"] = Way(make(penalty, channels_last=False), plain=True)
    peaks, images = {}, _noise(torch.device("cpu"), 4 * batch, size)
    with multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=1) as fresh:
        waiting = {name: fresh.apply_async(peak_of, (way, images, str(device))) for name, way in ways.items()}
        for name, result in waiting.items():
            peaks[name] = result.get()
            tick()
    return dict(size=size, width=width, batch=batch, peak_bytes=peaks)


def measure(scale: str | None = None, device: str = "auto", progress: bool = True) -> dict[str, Any]:
    """Runs all comparisons of a scale; the record is plain JSON, with device and versions.

    scale: "smoke", "cpu" or "gpu"; None: as the device is. Raises ValueError for an unknown scale or device.
    """
    from tqdm import tqdm

    place = pick_device(device)
    name = scale or ("gpu" if place.type == "cuda" else "cpu")
    if name not in SCALES:
        raise unknown_name("scale", name, SCALES)
    chosen = SCALES[name]
    if place.type == "cpu":
        keep_memory()
    turns = chosen.rounds + 2
    total = (
        turns
        * (len(chosen.steps) * (len(METRICS) + 1) + 4 * len(chosen.penalties) + len(ways_of_training(chosen, place)))
        + len(METRICS)
        + 2
    )
    with tqdm(total=total, desc=f"benchmark, {name}", disable=not progress, mininterval=1.0) as bar:
        return dict(
            scale=name,
            rounds=chosen.rounds,
            provenance=_origin(place),
            steps=[step_costs(shape, chosen.rounds, place, bar.update) for shape in chosen.steps],
            penalties=penalty_costs(chosen.penalties, chosen.rounds, place, bar.update),
            training=training_costs(chosen, place, bar.update),
            memory=memory_costs(chosen, place, bar.update),
        )


def _origin(device: torch.device) -> dict[str, Any]:
    origin = provenance(TrainConfig(device=str(device)), _noise(torch.device("cpu"), 1, 16), device)
    return {key: origin[key] for key in ("git_commit", "git_dirty", "versions", "device", "platform", "started")}


def frechet_by_matrix_root(a: Tensor, b: Tensor) -> complex:
    """The Frechet distance of features (N, D) and (M, D) by SciPy's matrix root; whatever is imaginary stays."""
    from scipy.linalg import sqrtm

    a, b = a.double(), b.double()
    cov_a, cov_b = a.T.cov().numpy(), b.T.cov().numpy()
    shift = (a.mean(0) - b.mean(0)).square().sum().item()
    return complex(shift + cov_a.trace() + cov_b.trace() - 2 * sqrtm(cov_a @ cov_b).trace())


def frechet_by_eigenvalues(a: Tensor, b: Tensor) -> float:
    """The same by torch-fidelity, from the eigenvalues of the product of the covariances."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    statistics = [fid_features_to_statistics(x.double()) for x in (a, b)]
    return fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]


def _features_like_a_network(n: int, dimension: int, shift: int) -> Tensor:
    """Non-negative features (n, dimension) whose covariance has a quickly falling spectrum, as a network's."""
    random = torch.Generator().manual_seed(shift)
    mix = torch.randn(dimension, dimension, generator=torch.Generator().manual_seed(99))
    scale = torch.arange(1, dimension + 1) ** -0.7
    return (torch.randn(n, dimension, generator=random) * scale @ mix + 0.05 * shift).relu()


def frechet_costs(
    shapes: Iterable[tuple[int, int]] = ((2000, 1280), (2000, 2048), (5000, 2048)),
    rounds: int = 5,
    progress: bool = True,
) -> dict[str, Any]:
    """Time of the other routes to the Frechet distance over ours, on this CPU; shapes: (samples, features)."""
    from tqdm import tqdm

    ways = {"ours": frechet_distance, "matrix root": frechet_by_matrix_root, "eigenvalues": frechet_by_eigenvalues}
    found, device = [], torch.device("cpu")
    for n, dimension in tqdm(list(shapes), desc="Frechet distance", disable=not progress):
        a, b = (_features_like_a_network(n, dimension, shift) for shift in (0, 1))
        values = {name: complex(way(a, b)) for name, way in ways.items()}
        timers = {name: timer_of(partial(way, a, b), device) for name, way in ways.items()}
        seconds = interleaved(timers, rounds, warmup=0)
        found.append(
            dict(
                samples=n,
                features=dimension,
                times_ours={name: ratio(seconds, name, "ours") for name in ways},
                relative_difference={name: abs(v / values["ours"] - 1) for name, v in values.items()},
                imaginary_part={name: abs(v.imag / v.real) for name, v in values.items()},
            )
        )
    return dict(rounds=rounds, provenance=_origin(device), frechet=found)


def _shown(triple: list[float], digits: int = 2) -> str:
    median, low, high = triple
    return f"{median:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def _summary(record: Mapping[str, Any]) -> dict[str, str]:
    """What is compared -> what was found: median and quartiles."""
    steps, penalties, training, memory = (record[part] for part in ("steps", "penalties", "training", "memory"))
    shape_of = lambda row: f"{row['size']}², width {row['width']}, batch {row['batch']}"
    rows = {}
    for step in {step["size"]: step for step in reversed(steps)}.values():  # the first of each size
        rows[f"critic step, Wasserstein / Euclidean: {shape_of(step)}"] = _shown(
            step["to_euclidean"]["von Neumann 2"], 3
        )
    rows = dict(reversed(rows.items()))
    first, last = steps[0], penalties[-1]
    without = [1 / first["to_euclidean"]["no penalty"][k] for k in (0, 2, 1)]
    rows[f"critic step, Euclidean / no penalty: {shape_of(first)}"] = _shown(without)
    rows[f"critic step, speed of its arithmetic / matrix product's: {shape_of(first)}"] = _shown(
        first["of_matrix_product_speed"]
    )
    images = f"{last['batch']} images of {last['size']}²"
    rows[f"norm alone / copy of its inputs: {images}"] = _shown(last["to_copy"], 1)
    rows[f"norm alone, speed / by convolutions: {images}"] = _shown(last["faster_than_convolutions"], 1)
    rows[f"norm alone, speed / plain slices: {images}"] = _shown(last["faster_than_slices"], 1)
    rows[f"norm alone, time per pixel: {last['size']}² / {last['per_pixel_to']}²"] = _shown(last["per_pixel"])
    for name in ("euclidean", "wasserstein"):
        for ours in ("wwgan", "wwgan compiled"):
            if found := training["times_the_plain_loop"].get(f"{ours}, {name}"):
                rows[f"training, {ours} / plain loop, speed: {name}, {shape_of(training)}"] = _shown(found)
    peaks = memory["peak_bytes"]
    for other in ("Euclidean", "plain loop, wasserstein"):
        if peaks.get("von Neumann 2") and peaks.get(other):
            rows[f"peak memory, Wasserstein / {other}: {shape_of(memory)}"] = (
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


RESULTS = {"CPU": "cost_cpu.json", "GPU": "cost_gpu.json"}


def read_records(folder: Path | None = None) -> dict[str, dict[str, Any] | None]:
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
    parser.add_argument("--frechet", action="store_true", help="measure the Frechet distance instead, on the CPU")
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    options = parser.parse_args(argv)
    try:
        record = frechet_costs() if options.frechet else measure(options.scale, options.device)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.out:
        write_json(options.out, record)
    print(json.dumps(record["frechet"]) if options.frechet else summary_table({record["provenance"]["device"]: record}))
    return 0


if __name__ == "__main__" and __spec__:  # run as a module; in a notebook __spec__ is None
    sys.exit(main())
