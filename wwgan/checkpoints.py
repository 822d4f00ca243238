"""States of a run on the disk: written whole with a checksum, read without running code from them."""

import re
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from .files import check_checksum, checksum_file, load_tensors, save_tensors
from .settings import SETTINGS, TrainConfig
from .step import CHECKPOINT_PARTS


def numbered_files(folder: str | Path, kind: str, ending: str) -> dict[int, Path]:
    """Generator update -> file, for the files <kind>_<update><ending> that a run wrote there; others do not count."""
    found = {}
    for path in Path(folder).glob(f"{kind}_*{ending}"):
        if match := re.fullmatch(rf"{kind}_(\d{{7,}})", path.stem):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def config_of(stored: Any, path: Path) -> TrainConfig:
    """The settings `stored` in the file `path` of a run; those added since it was written mean what was done before.

    ValueError naming the file for what is no settings, or has some that this version does not know.
    """
    try:
        if not isinstance(stored, dict):
            raise ValueError(f"expected an object, got {stored!r}")
        if unknown := sorted(map(str, stored.keys() - SETTINGS.keys())):
            raise ValueError(f"this version knows no {', '.join(unknown)}; provenance.json names the version that does")
        return TrainConfig(**stored)
    except ValueError as error:
        raise ValueError(f"{path} does not hold the settings of a run: {error}") from None


save_checkpoint = save_tensors  # what `load_checkpoint` reads, which asks more of a file


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote. Only tensors and plain containers are loaded, never code.

    Raises ValueError for a file that has no checksum or another one, or that holds no checkpoint of a run.
    """
    check_checksum(path)
    try:
        content = load_tensors(path)
        config = config_of(content["config"], path)
        wanted = {*CHECKPOINT_PARTS, "channels", "step", "critic_updates", "seconds", "losses", "random", "device"}
        missing = wanted - content.keys() - (set() if config.ema else {"averaged"})
        if missing:
            raise KeyError(f"no {', '.join(sorted(missing))}")
        if type(content["step"]) is not int or not isinstance(content["random"], Tensor):
            raise TypeError(f"step must be an integer and random a tensor, got step {content['step']!r}")
    except Exception as error:  # whatever a foreign file makes the readers stumble over
        raise ValueError(f"{path} is not a checkpoint of a run: {str(error).splitlines()[0]}") from None
    return content


def checkpoints(run_dir: str | Path, kind: str = "step") -> dict[int, Path]:
    """Step -> file of a run's checkpoints of a kind, "step" or "best", oldest first; other files do not count."""
    return numbered_files(Path(run_dir) / "checkpoints", kind, ".pt")


def remove_checkpoint(path: Path) -> None:
    """Remove it with its checksum."""
    path.unlink(missing_ok=True)
    checksum_file(path).unlink(missing_ok=True)


def tidy(run_dir: Path, step: int, keep: int) -> None:
    """Of checkpoints up to `step`, keep the last few and the best; remove checksums whose checkpoint is gone."""
    for kind, most in dict(step=keep, best=1).items():
        for old in [path for k, path in checkpoints(run_dir, kind).items() if k <= step][:-most]:
            remove_checkpoint(old)
    for checksum in run_dir.glob("checkpoints/*.pt.sha256"):
        if not checksum.with_suffix("").exists():
            checksum.unlink()


def read_checkpoint(run_dir: str | Path, best: bool = False) -> dict[str, Any]:
    """The newest checkpoint of a run that is whole; those that are not are named on standard error and passed over.

    best: the one with the best evaluation instead. Raises FileNotFoundError when there is none, ValueError when none
    is whole.
    """
    kind = "best" if best else "step"
    paths = checkpoints(run_dir, kind).values()
    if not paths:
        raise FileNotFoundError(f"{run_dir} has no checkpoints/{kind}_*.pt")
    for path in reversed(paths):
        try:
            return load_checkpoint(path)
        except ValueError as error:
            print(f"skipping a checkpoint: {error}", file=sys.stderr)
            last = error
    raise ValueError(f"none of the {len(paths)} checkpoints in {run_dir} can be read; the oldest: {last}")
