"""What a training run writes down, and how it is found whole again whatever ended the run."""

import hashlib
import io
import json
import math
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from .data import to_uint8
from .distributed import world_size
from .evaluation import FEATURES, main_score
from .files import content_hash, project_root, read_json, write_atomically, write_json
from .settings import TrainConfig
from .step import CHECKPOINT_PARTS

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


MAY_CHANGE = (
    "data_dir",
    "device",
    "channels_last",
    "compile",
    "steps",
    "log_interval",
    "sample_interval",
    "checkpoint_interval",
    "eval_interval",
    "eval_weights",
    "run_dir",
    "resume",
)


def check_same_run(stored: TrainConfig, now: TrainConfig) -> None:
    """Raises ValueError naming each setting that differs and may not change when a run is resumed."""
    differing = [
        f"{f.name} {getattr(stored, f.name)!r} -> {getattr(now, f.name)!r}"
        for f in fields(TrainConfig)
        if f.name not in MAY_CHANGE and getattr(stored, f.name) != getattr(now, f.name)
    ]
    if differing:
        raise ValueError(f"a resumed run keeps its settings, these differ: {'; '.join(differing)}")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one a line; none if it is not there. A last line cut short is left out."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
            if type(found[-1]["step"]) is not int:
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ValueError(f"line {number} of {path} must be an object with a step, got {line[:80]!r}") from None
    return found


def read_metrics(run_dir: str | Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl, oldest first; none before it begins."""
    return _read_lines(Path(run_dir) / "metrics.jsonl")


def read_evaluations(run_dir: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's evaluations.jsonl, oldest first: "step", "seconds", and what `Evaluator` returns."""
    path = Path(run_dir) / "evaluations.jsonl"
    lines = _read_lines(path)
    for line in lines:
        if not _has_scores(line):
            raise ValueError(
                f"{path} must have scores, floor and protocol in each line, with a Frechet distance; "
                f"got step {line['step']} without"
            )
    return lines


def _has_scores(line: Mapping[str, Any]) -> bool:
    if not all(isinstance(line.get(name), dict) for name in ("scores", "floor", "protocol")):
        return False
    space = FEATURES.get(str(line["protocol"].get("features")))
    return space is not None and all(is_finite(line[name].get(space.frechet)) for name in ("scores", "floor"))


def is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def best_evaluation(evaluations: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The evaluation with the smallest Frechet distance, the first of equal ones."""
    return min(evaluations, key=main_score)


def numbered_files(folder: str | Path, kind: str, ending: str) -> dict[int, Path]:
    """Generator update -> file, for the files <kind>_<update><ending> that a run wrote there; others do not count."""
    found = {}
    for path in Path(folder).glob(f"{kind}_*{ending}"):
        if match := re.fullmatch(rf"{kind}_(\d{{7,}})", path.stem):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def sample_grids(run_dir: str | Path) -> list[Path]:
    """The pictures of generated images of a run, oldest first; foreign files beside them do not count."""
    return list(numbered_files(Path(run_dir) / "samples", "step", ".png").values())


def _git(*arguments: str) -> str | None:
    """Output of git in the folder of this package's source; None without git or outside a checkout."""
    try:
        run = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired, NameError):  # NameError: a notebook has no __file__
        return None
    return run.stdout.strip() if run.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _rows_by_process(config: TrainConfig) -> list[tuple[int, int]]:
    """First row and the one after the last of each process in a joint batch."""
    share = config.batch_size // world_size()
    return [(rank * share, (rank + 1) * share) for rank in range(world_size())]


def provenance(config: TrainConfig, images: Tensor, device: torch.device) -> dict[str, Any]:
    """Where a run's numbers come from: code, versions, device, seed and the very images it saw."""
    tracked = _git("ls-files", "__init__.py")  # empty when the package is installed inside somebody else's checkout
    return dict(
        git_commit=_git("rev-parse", "HEAD") if tracked else None,
        git_dirty=bool(_git("status", "--porcelain")) if tracked else None,
        versions={"python": platform.python_version()}
        | {name: _version(name) for name in ("wwgan", "torch", "torchvision", "numpy")},
        device=torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type}, {torch.get_num_threads()} threads",
        platform=f"{platform.system()} {platform.machine()}",
        seed=config.seed,
        processes=[dict(rank=rank, rows=list(rows)) for rank, rows in enumerate(_rows_by_process(config))],
        dataset=config.dataset,
        dataset_shape=list(images.shape),
        dataset_sha256=content_hash(images),
        started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )


def check_same_images(run_dir: Path, origin: Mapping[str, Any]) -> None:
    """Raises ValueError unless the images are those that the run in `run_dir` began with."""
    path = run_dir / "provenance.json"
    if not path.exists():  # cut off before it was written
        return
    began = read_json(path)
    if not isinstance(began, dict) or not {"dataset_sha256", "dataset_shape"} <= began.keys():
        raise ValueError(f"{path} does not say which images the run began with")
    if began["dataset_sha256"] != origin["dataset_sha256"]:
        raise ValueError(
            f"the images of {origin['dataset']} are not those this run began with: "
            f"shape {began['dataset_shape']} then, {origin['dataset_shape']} now, or other contents"
        )


def check_free(folder: Path, data_dir: str | Path | None) -> None:
    """ValueError unless a new run may be written to the folder: not there, or with hidden files and the data alone."""
    data = {Path(data_dir).absolute(), *Path(data_dir).absolute().parents} if data_dir else set()
    used = any(not x.name.startswith(".") and x.absolute() not in data for x in folder.glob("*"))
    if folder.exists() and not folder.is_dir() or used:
        raise ValueError(
            f"{folder} exists and is not empty: name another run_dir, or go on with that run by resume=true"
        )


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """While in here no other process writes the run folder: ValueError if one does. Ends with the process, always."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"{folder} is being written by another process: wait for it, or name another run_dir"
        ) from None
    try:
        yield
    finally:
        lock.release()


def make_run_folder(config: TrainConfig) -> Path:
    """A new folder for the run, or the existing one of a resumed run."""
    if config.run_dir is not None:
        Path(config.run_dir).mkdir(parents=True, exist_ok=True)
        return Path(config.run_dir)
    stem = f"{config.dataset.partition(':')[0]}-{config.penalty}-seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    for suffix in ("", *(f"-{k}" for k in range(2, 1000))):
        folder = project_root() / "data" / "runs" / (stem + suffix)
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise FileExistsError(f"no free name like {folder}")


def _checksum_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain containers and tensors, and first, beside them, their checksum as `sha256sum --check` reads it."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    line = f"{hashlib.sha256(buffer.getbuffer()).hexdigest()}  {path.name}\n"
    write_atomically(_checksum_of(path), lambda file: file.write(line.encode()))
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote. Only tensors and plain containers are loaded, never code.

    Raises ValueError for a file that has no checksum or another one, or that holds no checkpoint of a run.
    """
    try:
        data, expected = path.read_bytes(), _checksum_of(path).read_text(encoding="utf-8")[:64]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} or its checksum cannot be read: {error}") from None
    if hashlib.sha256(data).hexdigest() != expected:
        raise ValueError(f"{path} is damaged: its checksum is not the one in {_checksum_of(path).name}")
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        config = TrainConfig(**content["config"])
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


def _remove_checkpoint(path: Path) -> None:
    path.unlink(missing_ok=True)
    _checksum_of(path).unlink(missing_ok=True)


def _tidy(run_dir: Path, step: int, keep: int) -> None:
    """Of checkpoints up to `step`, keep the last few and the best; remove checksums whose checkpoint is gone."""
    for kind, most in dict(step=keep, best=1).items():
        for old in [path for k, path in checkpoints(run_dir, kind).items() if k <= step][:-most]:
            _remove_checkpoint(old)
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


def image_grid(images: Tensor, columns: int = 8) -> Tensor:
    """Images (N, C, H, W), uint8 or in [-1, 1] -> one uint8 picture (3, rows, columns) with thin frames.

    Raises ValueError without images.
    """
    from torchvision.utils import make_grid

    if images.dim() != 4 or not images.numel():
        raise ValueError(f"a grid needs images (N, C, H, W), none of them 0, got {tuple(images.shape)}")
    return make_grid(
        images if images.dtype == torch.uint8 else to_uint8(images), nrow=columns, padding=1, pad_value=128
    )


def _snapshot(value: Any) -> Any:
    """A copy on the CPU of tensors in nested containers, out of reach of the training that goes on."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _snapshot(entry) for key, entry in value.items()}
    return type(value)(map(_snapshot, value)) if isinstance(value, (list, tuple)) else value


class Resumable(Protocol):
    """What a run folder asks of the state that it saves."""

    step: int

    def state_dict(self) -> dict[str, Any]:
        """Plain containers and tensors."""
        ...


class RunFolder:
    """Writes down one run in `path`: settings, origin, metrics, sample grids, checkpoints, TensorBoard events.

    Pictures and checkpoints are copied at once and written by a thread of their own while training goes on, one at a
    time; an error of writing is raised by the next call, at the latest by `close`.
    """

    keep_checkpoints = 3

    def __init__(self, path: Path, config: TrainConfig, origin: dict[str, Any], step: int):
        self.path = path
        self.history = [line for line in read_metrics(path) if line["step"] <= step]
        self.evaluations = [line for line in read_evaluations(path) if line["step"] <= step]
        self.fresh = not checkpoints(path)
        if not self.fresh:
            origin = _resumed(path / "provenance.json", origin, step)
        self._best = min(map(main_score, self.evaluations), default=float("inf"))
        write_json(path / "config.json", asdict(config) | dict(resume=False))  # from here on the run can be resumed
        for name in ("samples", "checkpoints"):
            (path / name).mkdir(exist_ok=True)
        self._cut_back(step)
        write_json(path / "provenance.json", origin)
        self._events = _event_writer(path, 0 if self.fresh else step + 1)
        self._thread = ThreadPoolExecutor(1, "wwgan-writer")
        self._pending: Future[None] = Future()
        self._pending.set_result(None)

    def _cut_back(self, step: int) -> None:
        """Remove what is of later states, which are computed again, and what was half written when a process ended."""
        for left in (*self.path.glob(".*.part"), *self.path.glob("*/.*.part")):
            left.unlink()
        for later, picture in numbered_files(self.path / "samples", "step", ".png").items():
            if later > step:
                picture.unlink()
        for later, best in checkpoints(self.path, "best").items():
            if later > step:
                _remove_checkpoint(best)
        _tidy(self.path, step, self.keep_checkpoints)
        for name, lines in dict(metrics=self.history, evaluations=self.evaluations).items():
            if lines or name == "metrics" or (self.path / f"{name}.jsonl").exists():
                _write_lines(self.path / f"{name}.jsonl", lines)

    def _write(self, task: Callable[..., None], *arguments: Any) -> None:
        self._pending.result()  # one at a time, and its error if it failed
        self._pending = self._thread.submit(task, *arguments)

    def metrics(self, line: dict[str, float]) -> None:
        """Append one line of numbers, with its "step", to metrics.jsonl and to TensorBoard."""
        if self._pending.done():
            self._pending.result()  # raises what went wrong in writing
        self.history.append(line)
        self._append("metrics.jsonl", line)
        self._plot(int(line["step"]), {name: value for name, value in line.items() if name != "step"})

    def evaluation(self, line: dict[str, Any], state: Resumable) -> None:
        """Append scores with their protocol to evaluations.jsonl, and to TensorBoard; keep the best state so far."""
        self.evaluations.append(line)
        self._append("evaluations.jsonl", line)
        self._plot(line["step"], {f"evaluation/{name}": value for name, value in line["scores"].items()})
        if main_score(line) < self._best:
            self._best = main_score(line)
            self._write(self._save_best, state.step, _snapshot(state.state_dict()) | dict(evaluation=line))

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
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
        self._write(self._save_picture, self.path / "samples" / f"step_{step:07d}.png", grid)

    @staticmethod
    def _save_picture(path: Path, grid: Tensor) -> None:
        from PIL import Image

        picture = Image.fromarray(grid.permute(1, 2, 0).numpy())
        write_atomically(path, lambda file: picture.save(file, format="png"))

    def checkpoint(self, state: Resumable) -> None:
        """Save everything needed to go on; the last few checkpoints are kept."""
        self._write(self._save_checkpoint, state.step, _snapshot(state.state_dict()))

    def _save_checkpoint(self, step: int, content: dict[str, Any]) -> None:
        save_checkpoint(self.path / "checkpoints" / f"step_{step:07d}.pt", content)
        _tidy(self.path, step, self.keep_checkpoints)

    def _save_best(self, step: int, content: dict[str, Any]) -> None:
        """The best before it goes when a checkpoint has been written that the run can go on from with this one."""
        save_checkpoint(self.path / "checkpoints" / f"best_{step:07d}.pt", content)

    def wait(self) -> None:
        """Until what is being written is on the disk."""
        self._pending.result()

    def diverged(self, state: Resumable) -> Path:
        """Save a state that holds what is not finite, to look at; it is not among the checkpoints to go on from."""
        path = self.path / "checkpoints" / f"diverged_{state.step:07d}.pt"
        save_checkpoint(path, _snapshot(state.state_dict()))
        return path

    def close(self) -> None:
        """Wait for what is being written; raises its error if it failed."""
        self._thread.shutdown()
        if self._events:
            self._events.close()
        self._pending.result()


def _resumed(path: Path, origin: dict[str, Any], step: int) -> dict[str, Any]:
    """The origin of a run in provenance.json, with that of the part that begins now after `step`."""
    first = read_json(path)
    parts = first.get("resumed", []) if isinstance(first, dict) else None
    if not isinstance(parts, list):
        raise ValueError(f"{path} does not hold the origin of a run")
    return first | dict(resumed=[*parts, dict(step=step, **origin)])


def _event_writer(path: Path, purge_from: int) -> "SummaryWriter | None":
    """TensorBoard's writer, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(path), purge_step=purge_from)


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_atomically(path, lambda file: file.write(text.encode()))
