"""States of a run on the disk: written whole with a checksum, read without running code from them."""

import json
import re
import sys
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import check_checksum, first_line, save_tensors
from .settings import SETTINGS, TrainConfig
from .step import TrainState


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


LOGS = ("metrics.jsonl", "evaluations.jsonl", "provenance.json")  # what a checkpoint counts on besides itself
save_checkpoint = save_tensors  # what `load_checkpoint` reads, which asks more of a file


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote. Only tensors and plain containers are loaded, never code.

    Raises ValueError for a file that has no checksum or another one, or that does not hold all of a run's state, with
    every tensor of the shape and type that a run of its settings has.
    """
    check_checksum(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        config = config_of(content["config"], path)
        step = int(path.stem.rpartition("_")[2])
        _check_numbers(content, step)
        expected = _state_like(config, content)
        _check_like({name: content.get(name) for name in expected}, expected, "state")
    except Exception as error:  # whatever a foreign file makes the readers stumble over
        raise ValueError(f"{path} is not a checkpoint of a run: {first_line(error)}") from None
    return content


def _check_numbers(content: dict[str, Any], step: int) -> None:
    """ValueError for what is no tensor and not as a run writes it; a random state that PyTorch refuses raises too."""
    if type(content["step"]) is not int or content["step"] != step:
        raise ValueError(f"step must be {step}, got {content['step']!r}")
    logs = [entry for name in LOGS for entry in content["logs"][name]] if "logs" in content else []
    sound = dict(
        seconds=0 <= content["seconds"] < float("inf"),
        losses=all(type(name) is str and type(value) is float for name, value in content["losses"].items()),
        device=content["device"] in ("cpu", "cuda"),
        logs=all(type(entry) is tuple and [*map(type, entry)] == [int, int] for entry in logs),
    )
    if wrong := [name for name, is_sound in sound.items() if not is_sound]:
        raise ValueError(f"{wrong[0]} cannot be {str(content[wrong[0]])[:80]}")
    if content["device"] == "cpu":
        torch.Generator().set_state(content["random"])


def _state_like(config: TrainConfig, content: dict[str, Any]) -> dict[str, Any]:
    """What a run of these settings has, with the names, shapes and types that `content` must have.

    ValueError for an optimiser that does not do what the settings say.
    """
    state = TrainState(replace(config, compile=False), content["channels"], torch.device("cpu"))
    for name, network in dict(generator=state.generator, critic=state.critic).items():
        optimizer = state.parts()[f"{name}_optimizer"]
        [mine], [theirs] = optimizer.state_dict()["param_groups"], content[f"{name}_optimizer"]["param_groups"]
        for key in ("lr", "betas", "eps", "weight_decay", "amsgrad"):
            if theirs[key] != mine[key]:
                raise ValueError(f"the {name}'s optimiser has {key} {theirs[key]!r}, the settings say {mine[key]!r}")
        if content["step"] or content[f"{name}_optimizer"]["state"]:  # else there are no moments yet
            for parameter in network.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
    random = state.random.get_state() if content["device"] == "cpu" else torch.zeros(16, dtype=torch.uint8)
    return {name: part.state_dict() for name, part in state.parts().items()} | dict(random=random)


def _check_like(found: Any, expected: Any, where: str) -> None:
    """ValueError unless both are built of the same names, down to tensors that are alike, also in memory."""
    if isinstance(expected, Tensor):
        about, wanted = (
            f"{x.dtype} {tuple(x.shape)} strides {x.stride()} {x.device}" if isinstance(x, Tensor) else type(x).__name__
            for x in (found, expected)
        )
        if about != wanted:
            raise ValueError(f"{where} must be {wanted}, got {about}")
    elif isinstance(expected, dict):
        if not isinstance(found, dict) or found.keys() != expected.keys():
            raise ValueError(f"{where} must have {', '.join(map(str, expected))}")
        for name, value in expected.items():
            _check_like(found[name], value, f"{where} {name}")


def log_entries(lines: Iterable[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """What a checkpoint keeps of the lines of a log: the update of each, and a checksum."""
    return [(line["step"], zlib.crc32(json.dumps(line, sort_keys=True).encode())) for line in lines]


def check_log(path: Path, lines: Iterable[Mapping[str, Any]], checkpoint: Mapping[str, Any]) -> None:
    """ValueError unless the lines are those that a checkpoint counts on; those that are gone are named on stderr."""
    kept, found = checkpoint["logs"][path.name], log_entries(x for x in lines if x["step"] <= checkpoint["step"])
    rest = iter(kept)
    if wrong := [entry for entry in found if entry not in rest]:
        raise ValueError(
            f"{path} is damaged: what it says of update {wrong[0][0]} is not what the run wrote there. "
            "Put back what was written, or remove that line to go on without"
        )
    if gone := [str(step) for step, _ in kept if step not in dict(found)]:
        some = ", ".join(gone if len(gone) < 9 else [*gone[:4], "...", *gone[-4:]])
        print(f"{path} lacks {len(gone)} of its lines, those of updates {some}", file=sys.stderr)


def checkpoints(run_dir: str | Path, kind: str = "step") -> dict[int, Path]:
    """Step -> file of a run's checkpoints of a kind, "step" or "best", oldest first; other files do not count."""
    return numbered_files(Path(run_dir) / "checkpoints", kind, ".pt")


def tidy(run_dir: Path, step: int, keep: int) -> None:
    """Of checkpoints up to `step`, keep the last few and the best; no later best, no checksum without checkpoint."""
    best = checkpoints(run_dir, "best")
    gone = [path for k, path in checkpoints(run_dir).items() if k <= step][:-keep]
    gone += [path for k, path in best.items() if k <= step][:-1] + [path for k, path in best.items() if k > step]
    for path in gone:
        path.unlink()
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
