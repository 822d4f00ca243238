"""The folder of a training run: what is written down, and how it is found whole again whatever ended the run."""

import json
import math
import os
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .checkpoints import check_log, config_of, log_entries, tidy
from .checkpoints import checkpoints as checkpoints  # all of a run folder is found here
from .checkpoints import load_checkpoint as load_checkpoint
from .checkpoints import numbered_files as numbered_files
from .checkpoints import read_checkpoint as read_checkpoint
from .checkpoints import save_checkpoint as save_checkpoint
from .data import to_uint8
from .distributed import pick_device
from .evaluation import main_score
from .files import check_names, project_root, read_json, read_lines, to_disk, write_atomically, write_json, write_lines
from .provenance import check_same_images as check_same_images
from .provenance import provenance as provenance
from .provenance import read_provenance as read_provenance
from .settings import SETTINGS, TrainConfig, make_config, read_setting
from .step import TrainState

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


CONTENTS = dict(settings="config.json", provenance="provenance.json")  # of a run folder
CONTENTS |= dict(metrics="metrics.jsonl", evaluations="evaluations.jsonl")
CONTENTS |= dict(samples="samples/*.png", checkpoints="checkpoints/*.pt", tensorboard="events.*")
MACHINE = ("data_dir", "device", "eval_weights")  # where a run takes place, no part of what it is
LOCAL = (*MACHINE, "run_dir", "resume")
_INTERVALS = ("log_interval", "sample_interval", "checkpoint_interval", "eval_interval")
MAY_CHANGE = (*LOCAL, *_INTERVALS, "compile", "steps")  # when a run is resumed


def differing(stored: TrainConfig, now: TrainConfig, may_differ: Collection[str] = LOCAL) -> str:
    """The settings that differ and may not, as "lr 0.1 -> 0.2; steps 3 -> 4"; empty if there is none."""
    pairs = {name: (getattr(stored, name), getattr(now, name)) for name in SETTINGS if name not in may_differ}
    return "; ".join(f"{name} {one!r} -> {other!r}" for name, (one, other) in pairs.items() if one != other)


def check_same_run(stored: TrainConfig, now: TrainConfig) -> None:
    """Raises ValueError naming each setting that differs and may not change when a run is resumed."""
    if found := differing(stored, now, MAY_CHANGE):
        raise ValueError(f"a resumed run keeps its settings, these differ: {found}")


def read_config(run_dir: str | Path) -> TrainConfig:
    """The settings in a run folder's config.json. Raises FileNotFoundError or ValueError where it holds none."""
    path = Path(run_dir) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"there is no run: {path} does not exist")
    stored = read_json(path)
    if isinstance(stored, dict) and not {"dataset", "penalty", "steps"} <= stored.keys():
        raise ValueError(f"{path} does not hold the settings of a run: it must have dataset, penalty and steps")
    return config_of(stored, path)


def run_config(preset: str | None = None, **given: Any) -> TrainConfig:
    """Settings from the parameters of a notebook or a command line; a value of None counts as not given.

    As `make_config` makes them; with resume and run_dir, those of that run and what is given, without a preset.
    Raises ValueError for names and values that are wrong, FileNotFoundError where there is nothing to resume.
    """
    check_names(given, ["preset", *SETTINGS])
    given = {name: value for name, value in given.items() if value is not None}
    if not read_setting("resume", bool, given.get("resume", False)) or "run_dir" not in given:
        return make_config(preset, **given)
    if preset is not None:
        raise ValueError(f"a resumed run has its settings already: leave out preset, got {preset!r}")
    run_dir = Path(read_setting("run_dir", str, given["run_dir"])).expanduser()
    return TrainConfig(**asdict(read_config(run_dir)) | given)


def read_metrics(run_dir: str | Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl, oldest first; none before it begins."""
    return read_lines(Path(run_dir) / "metrics.jsonl")


def read_evaluations(run_dir: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's evaluations.jsonl, oldest first: "step", "seconds", and what `Evaluator` returns."""
    path = Path(run_dir) / "evaluations.jsonl"
    lines = read_lines(path)
    for line in lines:
        with suppress(TypeError, LookupError):
            if is_finite(main_score(line)) and is_finite(main_score(line, "floor")):
                continue
        raise ValueError(
            f"{path} must have scores, floor and protocol in each line, with a Frechet distance; "
            f"got step {line['step']} without"
        )
    return lines


def check_logs(run_dir: Path, checkpoint: Mapping[str, Any]) -> None:
    """As `check_log`, for all that a run wrote down; checkpoints of earlier versions count on nothing."""
    if "logs" in checkpoint:
        check_log(run_dir / "metrics.jsonl", read_metrics(run_dir), checkpoint)
        check_log(run_dir / "evaluations.jsonl", read_evaluations(run_dir), checkpoint)
        check_log(run_dir / "provenance.json", _origin(read_provenance(run_dir)), checkpoint)


def _origin(provenance: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How a run began, as a line of a log."""
    return [{**provenance, "step": 0, "resumed": None}]


def is_finite(value: Any) -> bool:
    """Whether a value read from a line is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)


def best_evaluation(evaluations: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The evaluation with the smallest Frechet distance, the first of equal ones."""
    return min(evaluations, key=main_score)


def sample_grids(run_dir: str | Path) -> list[Path]:
    """The pictures of generated images of a run, oldest first; foreign files beside them do not count."""
    return list(numbered_files(Path(run_dir) / "samples", "step", ".png").values())


@dataclass
class Run:
    """A training run. state: networks and random state. run_dir: its folder; None in processes that do not write.

    history, evaluations: the lines of metrics.jsonl and of evaluations.jsonl.
    """

    state: TrainState
    run_dir: Path | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def config(self) -> TrainConfig:
        return self.state.config

    @property
    def generator(self) -> nn.Module:
        """z (B, latent_dim) -> images (B, C, H, W) in [-1, 1]: the EMA of the generator if the run keeps one."""
        return self.state.ema

    @property
    def critic(self) -> nn.Module:
        """Images (B, C, H, W) in [-1, 1] -> scores (B,)."""
        return self.state.critic

    @property
    def samples(self) -> list[Path]:
        """The sample grids, oldest first; none without a folder."""
        return sample_grids(self.run_dir) if self.run_dir else []


def load_run(run_dir: str | Path, device: str = "auto", best: bool = False) -> Run:
    """A recorded run at its newest or best checkpoint, to draw samples from. Raises as `read_checkpoint`."""
    checkpoint = read_checkpoint(run_dir, best)
    check_logs(Path(run_dir), checkpoint)
    state = TrainState(TrainConfig(**checkpoint["config"]), checkpoint["channels"], pick_device(device))
    state.load_state_dict(checkpoint)
    return Run(state, Path(run_dir), read_metrics(run_dir), read_evaluations(run_dir))


def make_run_folder(config: TrainConfig) -> Path:
    """A new folder for the run, or the existing one of a resumed run."""
    if config.run_dir is not None:
        Path(config.run_dir).mkdir(parents=True, exist_ok=True)
        return Path(config.run_dir)
    stem = f"{config.dataset.partition(':')[0]}-{config.penalty}-seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in count(1):
        folder = project_root() / "data" / "runs" / (stem if number == 1 else f"{stem}-{number}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            break
    return folder


def check_free(folder: Path, data_dir: str | Path | None = None, hint: str = "") -> None:
    """ValueError unless a new run may be written to the folder: not there, or with hidden files and the data alone."""
    data = {Path(data_dir).absolute(), *Path(data_dir).absolute().parents} if data_dir else set()
    used = any(not x.name.startswith(".") and x.absolute() not in data for x in folder.glob("*"))
    if folder.exists() and not folder.is_dir() or used:
        hint = hint or "name another run_dir, or go on with it by resume=true"
        raise ValueError(f"{folder} exists and is not empty: {hint}")


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """While in here no other process writes the run folder: ValueError if one does. Ends with the process, always."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock", is_singleton=True)  # entered again by the same thread
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"{folder} is being written by another process: wait, or name another run_dir") from None
    try:
        yield
    finally:
        lock.release()


def copy_record(run_dir: Path, record: Path) -> None:
    """Copy what is small of a finished run to `record`, whole or not at all; nothing in it is of this machine."""
    temporary = record.with_name(f".{record.name}.part")
    temporary.mkdir(parents=True, exist_ok=True)
    for source in (run_dir / name for name in ("provenance.json", "metrics.jsonl", "evaluations.jsonl")):
        if source.exists():
            shutil.copyfile(source, temporary / source.name)
    shutil.copyfile(sample_grids(run_dir)[-1], temporary / "samples.png")
    nowhere = {name: SETTINGS[name].default for name in LOCAL}
    write_json(temporary / "config.json", asdict(read_config(run_dir)) | nowhere)
    shutil.rmtree(record, ignore_errors=True)
    os.replace(temporary, record)


def checkpoint_to_go_on_from(run_dir: Path, config: TrainConfig) -> dict[str, Any] | None:
    """The newest whole checkpoint, checked against the settings; None for a run cut off before it wrote the first."""
    check_same_run(read_config(run_dir), config)
    if not checkpoints(run_dir):
        came_to = max((line["step"] for line in (*read_metrics(run_dir), *read_evaluations(run_dir))), default=0)
        if came_to or checkpoints(run_dir, "best"):
            raise ValueError(
                f"the checkpoints of {run_dir} are gone, which had come to update {came_to}: nothing to go on from"
            )
        return None
    checkpoint = read_checkpoint(run_dir)
    if found := differing(TrainConfig(**checkpoint["config"]), config, MAY_CHANGE):
        raise ValueError(f"{run_dir / 'config.json'} has other settings than the run's checkpoint: {found}")
    check_logs(run_dir, checkpoint)
    if config.steps < checkpoint["step"]:
        raise ValueError(f"the run is at update {checkpoint['step']} already, steps must be more, got {config.steps}")
    return checkpoint


def image_grid(images: Tensor, columns: int = 8) -> Tensor:
    """Images (N, C, H, W), uint8 or in [-1, 1] -> one uint8 picture (3, rows, columns) with thin frames.

    Raises ValueError without images.
    """
    from torchvision.utils import make_grid

    if images.dim() != 4 or not images.numel():
        raise ValueError(f"a grid needs images (N, C, H, W), none of them 0, got {tuple(images.shape)}")
    images = images if images.dtype == torch.uint8 else to_uint8(images)
    return make_grid(images, nrow=columns, padding=1, pad_value=128)


def save_picture(path: Path, picture: Tensor) -> None:
    """Write a uint8 picture (1 or 3, H, W) as PNG, whole or not at all; its folder is made if need be."""
    from torchvision.transforms.functional import to_pil_image

    path.parent.mkdir(parents=True, exist_ok=True)
    image = to_pil_image(picture)
    write_atomically(path, lambda file: image.save(file, format="png"))


class RunFolder:
    """Writes down one run in `path`: settings, provenance, metrics, sample grids, checkpoints, TensorBoard events."""

    keep_checkpoints = 3

    def __init__(self, path: Path, config: TrainConfig, provenance: dict[str, Any], step: int):
        self.path = path
        self.history = [line for line in read_metrics(path) if line["step"] <= step]
        self.evaluations = [line for line in read_evaluations(path) if line["step"] <= step]
        self.fresh = not checkpoints(path)
        if not self.fresh:
            began = read_provenance(path)
            provenance = began | dict(resumed=[*began.get("resumed", []), dict(step=step, **provenance)])
        self._best = min(map(main_score, self.evaluations), default=float("inf"))
        write_json(path / "config.json", asdict(config) | dict(resume=False))  # from here on the run can be resumed
        for name in ("samples", "checkpoints"):
            (path / name).mkdir(exist_ok=True)
        self._cut_back(step)
        write_json(path / "provenance.json", provenance)
        to_disk(path.parent)
        self.logs = {"metrics.jsonl": self.history, "evaluations.jsonl": self.evaluations}
        self.logs["provenance.json"] = _origin(provenance)
        self._events = _event_writer(path, 0 if self.fresh else step + 1)

    def _cut_back(self, step: int) -> None:
        """Remove what is of later states, which are computed again, and what was half written when a process ended."""
        for left in (*self.path.glob(".*.part"), *self.path.glob("*/.*.part")):
            left.unlink()
        for later, picture in numbered_files(self.path / "samples", "step", ".png").items():
            if later > step:
                picture.unlink()
        tidy(self.path, step, self.keep_checkpoints)
        for name, lines in dict(metrics=self.history, evaluations=self.evaluations).items():
            if lines or name == "metrics" or (self.path / f"{name}.jsonl").exists():
                write_lines(self.path / f"{name}.jsonl", lines)

    def metrics(self, line: dict[str, float]) -> None:
        """Append one line of numbers, with its "step", to metrics.jsonl and to TensorBoard."""
        self._append("metrics.jsonl", line)
        self._plot(int(line["step"]), {name: value for name, value in line.items() if name != "step"})

    def evaluation(self, line: dict[str, Any], state: TrainState) -> None:
        """Append scores with their protocol to evaluations.jsonl, and to TensorBoard; keep the best state so far."""
        self._append("evaluations.jsonl", line)
        self._plot(line["step"], {f"evaluation/{name}": value for name, value in line["scores"].items()})
        if main_score(line) < self._best:
            self._best = main_score(line)
            self._save("best", state, evaluation=line)

    def _append(self, name: str, line: dict[str, Any]) -> None:
        self.logs[name].append(line)
        with open(self.path / name, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _plot(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if self._events:
                self._events.add_scalar(name, value, step)

    def samples(self, step: int, images: Tensor) -> None:
        """Save a grid of generated images (n, C, H, W) in [-1, 1]."""
        grid = image_grid(images.cpu())
        if self._events:
            self._events.add_image("samples", grid, step)
        save_picture(self.path / "samples" / f"step_{step:07d}.png", grid)

    def checkpoint(self, state: TrainState) -> None:
        """Save everything needed to go on; the last few checkpoints are kept."""
        self._save("step", state)
        tidy(self.path, state.step, self.keep_checkpoints)  # the best one before goes when there is this to go on from

    def _save(self, kind: str, state: TrainState, **more: Any) -> None:
        """Write the state, after the lines that it counts on."""
        for path in (*(self.path / name for name in self.logs), self.path):
            if path.exists():
                to_disk(path)
        logs = {name: log_entries(lines) for name, lines in self.logs.items()}
        path = self.path / "checkpoints" / f"{kind}_{state.step:07d}.pt"
        save_checkpoint(path, {**state.state_dict(), "logs": logs, **more})

    def close(self) -> None:
        """Write the last events."""
        if self._events:
            self._events.close()


def _event_writer(path: Path, purge_from: int) -> "SummaryWriter | None":
    """TensorBoard's writer, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(path), purge_step=purge_from)
