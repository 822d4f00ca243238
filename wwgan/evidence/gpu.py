"""What waits for a GPU, in order of worth, within the time that there is: `make gpu`. It goes on where it stopped.

Needs torch, NumPy and this package alone, and the images as one file, which `--prepare` writes on a machine that has
the data set.
"""

import argparse
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import load_images, to_uint8
from ..distributed import pick_device
from ..evaluation import frechet_distance
from ..files import load_tensors, save_tensors, write_json
from ..graph import PixelGraph
from ..penalty import Wasserstein
from ..runs import provenance
from ..settings import TrainConfig, make_config
from ..step import TrainState, draw_many, draw_samples, gradient_norms, update
from ..training import repeatable_convolutions
from .cost import PARTS, measure
from .length import SETTINGS

FULL: dict[str, Any] = dict(dataset="cifar10", size=32, width=64, critic_steps=5, steps=20_000, ema=0.999)
LOG_INTERVAL = 1000
_NEEDS = dict(places="scipy", training="torchvision")  # parts of the benchmark that torch and NumPy do not make


def plan(smoke: bool = False) -> dict[str, TrainConfig]:
    """Trainings by name, in order of worth: DCGANs of three settings with three seeds, then a pair of ResNets."""
    common = FULL | (dict(width=4, steps=4, batch_size=8) if smoke else dict(batch_size=64))
    todo = [("dcgan", name, seed) for seed in range(1 if smoke else 3) for name in ("euclidean", "released", "length8")]
    todo += [("resnet", name, 0) for name in ("euclidean", "released")]
    return {
        f"{kind}-{name}-seed{seed}": make_config(**common, **SETTINGS[name], architecture=kind, seed=seed)
        for kind, name, seed in todo
    }


def check_kernels(device: torch.device) -> dict[str, float]:
    """Largest relative difference of energy and gradient from the expressions in float64, by image size.

    Raises RuntimeError above 1e-4: then nothing else that this device says is worth recording.
    """
    found = {}
    for side in (8, 32, 65, 128):
        random = torch.Generator().manual_seed(side)
        x, g = torch.rand(2, 4, 3, side, side, generator=random) * 2 - 1
        here = g.to(device).requires_grad_()
        energy = Wasserstein.released().squared_norm(here, x.to(device))
        (slope,) = torch.autograd.grad(energy.sum(), here)
        graph, X, G = PixelGraph(side, side), (x.double() + 1) / 2, g.double()
        exact = 2 * graph.energy(X, G, degree_normalized=False).sum(1) + G.square().flatten(1).sum(1)
        exact_slope = 2 * (2 * graph.apply(X, G, degree_normalized=False) + G)
        pairs = ((energy, exact), (slope, exact_slope))
        found[str(side)] = max(((a.cpu() - b).norm() / b.norm()).item() for a, b in pairs)
    if not max(found.values()) < 1e-4:
        raise RuntimeError(f"the energy on {device} is not that of the expressions: relative differences {found}")
    return found


def train_until(config: TrainConfig, images: Tensor, folder: Path, name: str, deadline: float) -> bool:
    """Train, from where it was left, until done or out of time; whether it is done, and then recorded.

    images: uint8 (N, C, H, W) on the device that trains. Writes <name>.json when done, and <name>.pt on the way.
    """
    state, kept = TrainState(config, images.shape[1], images.device), folder / f"{name}.pt"
    log: list[dict[str, Any]] = []
    if kept.exists():
        held = load_tensors(kept)
        state.load_state_dict(held["state"])
        log = held["log"]
    ground, began = config.ground(), time.monotonic() - state.seconds
    while state.step < config.steps and time.monotonic() < deadline:
        with repeatable_convolutions():
            losses = update(state, images, ground)
        state.step += 1
        if state.step % LOG_INTERVAL == 0 or state.step == config.steps:
            state.seconds = time.monotonic() - began
            log.append(_look(state, images, losses))
            save_tensors(kept, dict(state=state.state_dict(), log=log))
    if state.step < config.steps:
        state.seconds = time.monotonic() - began
        save_tensors(kept, dict(state=state.state_dict(), log=log))
        return False
    np.savez_compressed(folder / f"{name}-samples.npz", samples=to_uint8(draw_samples(state)).cpu())
    origin = provenance(config, images, images.device)
    write_json(folder / f"{name}.json", dict(config=asdict(config), provenance=origin, log=log))
    return True


def _look(state: TrainState, images: Tensor, losses: dict[str, Tensor]) -> dict[str, Any]:
    """What is logged: losses, mean norms of the critic's gradient, and the Fréchet distance of samples.

    The features are means over 4 x 4 pixels, for want of a network's; equally many real images.
    """
    fake = draw_many(state, min(2000, len(images) // 2))
    features = [F.avg_pool2d(x.float(), 4).flatten(1) for x in (fake, images[: len(fake)])]
    norms = {kind: values.mean().item() for kind, values in gradient_norms(state, images).items()}
    numbers = dict(step=state.step, seconds=round(state.seconds, 3), frechet_of_means=frechet_distance(*features))
    return numbers | dict(norms=norms, losses={kind: value.item() for kind, value in losses.items()})


def run(images: Tensor, folder: Path, minutes: float, smoke: bool = False, device: str = "auto") -> list[str]:
    """Do what is missing in `folder`, in order of worth; the names of what is left when the time is over.

    images: uint8 (N, C, H, W). Raises RuntimeError where the device computes something else than the expressions.
    """
    place, deadline = pick_device(device), time.monotonic() + 60 * minutes
    images = images.to(place)
    write_json(folder / "kernels.json", dict(device=str(place), difference=check_kernels(place)))
    if not (folder / "cost_gpu.json").exists() and time.monotonic() < deadline:
        parts = [part for part in PARTS if find_spec(_NEEDS.get(part, "torch"))]
        write_json(folder / "cost_gpu.json", measure("smoke" if smoke else None, str(place), parts))
    left = []
    for name, config in plan(smoke).items():
        if not (folder / f"{name}.json").exists():
            print(f"{name}, {config.steps} updates ...", flush=True)
            if time.monotonic() >= deadline or not train_until(config, images, folder, name, deadline):
                left.append(name)
    return left


def main(argv: Iterable[str] | None = None) -> int:
    """Do what there is time for, and say what is left; the exit code: 0 also when something is left."""
    parser = argparse.ArgumentParser(prog="python -m wwgan.evidence.gpu", description=main.__doc__)
    parser.add_argument("out", type=Path, help="folder of the records, which are small, and of states to go on from")
    parser.add_argument("--images", type=Path, required=True, help="uint8 array (N, 3, 32, 32) in a .npy file")
    parser.add_argument("--prepare", type=int, metavar="N", help="write N images of CIFAR-10 to that file, and no more")
    parser.add_argument("--data_dir", help="with --prepare: holds the data set; default: data/ of the repository")
    parser.add_argument("--minutes", type=float, default=25.0, help="then it saves its state and ends [25]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<number>")
    parser.add_argument("--smoke", action="store_true", help="a few updates of narrow networks, to see that it runs")
    given = parser.parse_args(argv)
    try:
        if given.prepare:
            np.save(given.images, load_images("cifar10", given.data_dir, 32)[: given.prepare].numpy())
            return 0
        left = run(_read(given.images), given.out, given.minutes, given.smoke, given.device)
        print("left for another time: " + ", ".join(left) if left else f"all is in {given.out}")
        return 0
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, RuntimeError) else 2


def _read(path: Path) -> Tensor:
    if not path.exists():
        raise FileNotFoundError(f"no images at {path}: write them with --prepare 20000 on a machine that has CIFAR-10")
    images = torch.from_numpy(np.load(path))
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1:] != (3, 32, 32):
        raise ValueError(f"{path} must hold uint8 (N, 3, 32, 32), got {images.dtype} {tuple(images.shape)}")
    return images


if __name__ == "__main__":
    sys.exit(main())
