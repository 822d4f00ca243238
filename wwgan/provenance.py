"""Where numbers come from: code, versions, device, seed, and the images that were seen."""

import platform
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .distributed import world_size
from .files import content_hash, read_json
from .settings import TrainConfig


def _git(*arguments: str) -> str | None:
    """Output of git in the folder of this package's source; None without git or outside a checkout."""
    try:
        run = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def provenance(config: TrainConfig, images: Tensor, device: torch.device) -> dict[str, Any]:
    """Where a run's numbers come from: code, versions, device, seed and the very images it saw.

    "processes" has the rows of a joint batch that each one trains on: the first, and the one after the last.
    """
    tracked = _git("ls-files", "__init__.py")  # empty when the package is installed inside somebody else's checkout
    packages = ("wwgan", "torch", "torchvision", "numpy")
    share = config.batch_size // world_size()
    on_gpu = device.type == "cuda"
    return dict(
        git_commit=_git("rev-parse", "HEAD") if tracked else None,
        git_dirty=bool(_git("status", "--porcelain")) if tracked else None,
        versions={"python": platform.python_version()} | {name: _version(name) for name in packages},
        device=torch.cuda.get_device_name(device) if on_gpu else f"{device.type}, {torch.get_num_threads()} threads",
        platform=f"{platform.system()} {platform.machine()}",
        seed=config.seed,
        processes=[dict(rank=k, rows=[k * share, (k + 1) * share]) for k in range(world_size())],
        dataset=config.dataset,
        dataset_shape=list(images.shape),
        dataset_sha256=content_hash(images),
        started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )


def read_provenance(run_dir: str | Path) -> dict[str, Any]:
    """A run's provenance.json: what `provenance` returned when it began, and "resumed", the same of later parts."""
    path = Path(run_dir) / "provenance.json"
    found = read_json(path)
    if not isinstance(found, dict) or not {"dataset_sha256", "dataset_shape"} <= found.keys():
        raise ValueError(f"{path} does not say which images the run began with")
    if not isinstance(found.get("resumed", []), list):
        raise ValueError(f"{path} does not say how the run was resumed")
    return found


def check_same_images(run_dir: Path, now: Mapping[str, Any]) -> None:
    """Raises ValueError unless the images in the provenance `now` are those that the run in `run_dir` began with."""
    if not (path := run_dir / "provenance.json").exists():  # cut off before it was written
        return
    began = read_provenance(run_dir)
    if began["dataset_sha256"] != now["dataset_sha256"]:
        raise ValueError(
            f"the images of {now['dataset']} are not those this run began with: shape {now['dataset_shape']}, "
            f"but {began['dataset_shape']} in {path}, or other contents"
        )
