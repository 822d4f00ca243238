"""Train a generator against a critic that is held 1-Lipschitz with respect to a ground metric on images."""

import argparse
import json
import shlex
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .data import load_images, preparation
from .distributed import average, first_process_first, joined_processes, pick_device, rank, same_everywhere, world_size
from .evaluation import Evaluator, check_features
from .files import first_line, project_root, unknown_name
from .progress import Progress
from .runs import (
    LOCAL,
    RunFolder,
    best_evaluation,
    check_free,
    check_same_images,
    checkpoint_to_go_on_from,
    make_run_folder,
    only_process,
    provenance,
    run_config,
)
from .runs import Run as Run
from .runs import load_run as load_run
from .settings import PRESETS, SETTINGS, TrainConfig
from .step import TrainState, check_compiled, draw_many, draw_samples, gradient_norms, update
from .stopping import Stopped as Stopped
from .stopping import keep_streams
from .stopping import stop_requests as stop_requests


def preflight(config: TrainConfig) -> torch.device:
    """What can be found wrong before data are touched: run folder, device, what evaluation needs. The device."""
    if config.run_dir is not None and not config.resume and rank() == 0:
        check_free(Path(config.run_dir), config.data_dir)
    if config.batch_size % world_size():
        raise ValueError(f"batch_size must be a multiple of the {world_size()} processes, got {config.batch_size}")
    if config.compile and world_size() > 1:
        raise ValueError("compiled steps are for a single process: leave out compile, or torchrun")
    device = pick_device(config.device)
    if config.eval_interval:
        check_features(config.eval_features, config.eval_weights)
    return device


def _check_finite(state: TrainState, losses: Mapping[str, Tensor]) -> None:
    bad = [name for name, value in losses.items() if not value.isfinite()]
    for name in ("generator", "critic"):
        if not all(value.isfinite().all() for value in getattr(state, name).state_dict().values()):
            bad.append(f"{name} weights")
    if bad:
        raise FloatingPointError(
            f"training diverged: not finite after generator update {state.step}: {', '.join(bad)}. "
            "Earlier checkpoints are in the run's folder. A new run with a smaller lr or a larger weight usually helps."
        )


def is_due(config: TrainConfig, name: str, step: int) -> bool:
    """Whether "log", "sample", "eval" or "checkpoint" comes after this update: every interval, and after the last."""
    interval = getattr(config, f"{name}_interval")
    return interval > 0 and (step == config.steps or step % interval == 0)


def _write_down(
    state: TrainState, images: Tensor, folder: RunFolder, evaluator: Evaluator | None, due: set[str]
) -> None:
    """What is due after this update: numbers, samples, evaluation, checkpoint."""
    about: dict[str, Any] = dict(step=state.step, seconds=round(state.seconds, 3))
    if "log" in due:
        numbers = {name: value.item() for name, value in state.losses.items()}
        norms = gradient_norms(state, images)
        means = {f"norm_{name}": norms[name].mean().item() for name in ("euclidean", "wasserstein")}
        folder.metrics(about | numbers | means)
    if "sample" in due:
        folder.samples(state.step, draw_samples(state))
    if "eval" in due and evaluator:
        folder.evaluation(about | evaluator(draw_many(state, evaluator.samples)), state)
    if "checkpoint" in due:
        folder.checkpoint(state)


def _train_loop(
    state: TrainState, images: Tensor, folder: RunFolder | None, evaluator: Evaluator | None,
    stop: list[int], progress: bool,
) -> None:  # fmt: skip
    config, ground = state.config, state.config.ground()
    if folder and folder.fresh:
        folder.samples(0, draw_samples(state))
        folder.checkpoint(state)  # whatever has come farther than this has a checkpoint
    todo, about = range(state.step + 1, config.steps + 1), f"{config.dataset}, {config.penalty}"
    updates = Progress(todo, about, config.steps, initial=state.step, unit="update", disable=not progress)
    for step in updates:
        began = time.perf_counter()
        if config.length_end is not None:
            ground = config.ground(state.step)
        losses = update(state, images, ground)
        state.step = step
        stopping = bool(stop)
        if state.world_size > 1:  # all stop after the same update
            stopping = bool(average(torch.tensor(float(stopping), device=state.device)))
        due = {name for name in ("log", "sample", "eval", "checkpoint") if is_due(config, name, step)}
        if due or stopping:
            means = average(torch.stack(list(losses.values())))
            state.losses = losses = dict(zip(losses, means.unbind()))
            _check_finite(state, losses)  # waits for the device
        state.seconds += time.perf_counter() - began
        if folder:
            _write_down(state, images, folder, evaluator, due | ({"checkpoint"} if stopping else set()))
        if "log" in due:
            updates.set_postfix(distance=f"{losses['distance'].item():.3f}", refresh=False)
        if stopping:
            place = folder.path if folder else Path(config.run_dir or "data/runs")
            raise Stopped(stop[0] if stop else signal.SIGTERM, step, place)


def train(config: TrainConfig, progress: bool = True) -> Run:
    """Train as `config` says and write the run folder; with `config.resume`, go on from its last checkpoint.

    progress: show a progress bar. Same settings, seed, device and number of threads give the same numbers, also of a
    run that was cut off at any moment and resumed. On SIGINT or SIGTERM the state is saved and `Stopped` raised.
    Raises ValueError or FileNotFoundError for bad settings, missing data or a folder in use before anything is written,
    OSError for a disk that is full or read-only, RuntimeError for a compiled step that computes something else, and
    FloatingPointError when losses, gradients or weights are no longer finite; the checkpoints written so far remain.
    """
    device = preflight(config)
    try:
        return _train(config, device, progress)
    except RuntimeError as error:
        if world_size() == 1:
            raise
        raise RuntimeError(
            f"process {rank()} of {world_size()} ended, because it or another one failed or was lost "
            f"({first_line(error)}). Go on from the last checkpoint with resume=true and run_dir."
        ) from error


def _train(config: TrainConfig, device: torch.device, progress: bool) -> Run:
    writes = rank() == 0
    resumed = Path(config.run_dir) if config.resume and config.run_dir else None
    with ExitStack() as stack:
        if resumed and writes:
            stack.enter_context(only_process(resumed))
        checkpoint = checkpoint_to_go_on_from(resumed, config) if resumed else None
        with first_process_first():
            images = load_images(config.dataset, config.data_dir, config.size).to(device)
        found = provenance(config, images, device)
        if resumed:
            check_same_images(resumed, found)
        evaluator = make_evaluator(config, images, progress) if writes and config.eval_interval else None
        state = TrainState(config, images.shape[1], device)
        if checkpoint:
            state.load_state_dict(checkpoint)
        settings = {name: value for name, value in asdict(config).items() if name not in LOCAL}
        if not same_everywhere((settings, found["dataset_sha256"], state.step)):
            raise RuntimeError("the processes begin with different settings, images or updates: all must have the same")
        stack.enter_context(repeatable_convolutions())
        if config.compile:
            torch.compiler.reset()  # earlier runs count against torch's limit, beyond which it silently stays eager
            check_compiled(state, images, config.ground())
        folder = None
        if writes:
            path = make_run_folder(config)
            stack.enter_context(only_process(path))
            if not resumed:
                check_free(path, config.data_dir)  # another process may have been here since
            folder = stack.enter_context(closing(RunFolder(path, config, found, state.step)))
        with stop_requests() as stop:
            _train_loop(state, images, folder, evaluator, stop, progress and writes)
        return Run(state, folder.path, folder.history, folder.evaluations) if folder else Run(state)


def repeatable_convolutions() -> AbstractContextManager[None]:
    """On a GPU, convolutions that give the same numbers every time: what training runs in."""
    return torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=torch.backends.cudnn.allow_tf32
    )


def make_evaluator(config: TrainConfig, images: Tensor, progress: bool = True) -> Evaluator:
    """What scores generated images against uint8 `images` (N, C, H, W) as the settings say."""
    return Evaluator(
        images,
        config.eval_features,
        config.eval_samples,
        weights=config.eval_weights,
        cache_dir=Path(config.data_dir or project_root() / "data") / "cache",
        about=dict(dataset=config.dataset, split="train") | preparation(config.dataset, config.size),
        real=config.eval_real,
        progress=progress,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wwgan train",
        allow_abbrev=False,
        exit_on_error=False,
        description="Train a Wasserstein-of-Wasserstein GAN. In brackets: the settings of the released code. Presets: "
        "quick, the usual one, trains for minutes, narrower, with a larger lr; paper as published; smoke for seconds.",
    )
    parser.add_argument(
        "--preset", help=f"{', '.join(PRESETS)}: a set of settings that the options below win over (quick)"
    )
    for name, f in SETTINGS.items():
        flag: dict[str, Any] = dict(nargs="?", const="true") if isinstance(f.default, bool) else {}
        choices = f", one of {', '.join(f.metadata['choices'])}" if f.metadata["choices"] else ""
        help = f"{f.metadata['help']}{choices} [{f.default}]".replace("%", "%%")
        parser.add_argument(f"--{name}", help=help, metavar=name.upper(), **flag)
    return parser


def _config(argv: Iterable[str] | None) -> TrainConfig:
    """The settings that the options of a command line say. Raises as `run_config`."""
    try:
        given, unknown = _parser().parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ValueError(f"{error}; a value that begins with '-' is given as --NAME=VALUE") from None
    if unknown:
        raise unknown_name("option", unknown[0].lstrip("-").partition("=")[0], vars(given))
    return run_config(**vars(given))


def main(argv: Iterable[str] | None = None) -> int:
    """Train from the command line; returns the exit code: 0, 1 for a run that failed, 2 for what was given wrong."""
    keep_streams()
    try:
        config = _config(argv)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        with joined_processes(config.device):
            run = train(config)
    except (ValueError, OSError, RuntimeError, ArithmeticError, MemoryError) as error:
        print(f"error: {str(error) or type(error).__name__}", file=sys.stderr)
        return 2 if isinstance(error, (ValueError, FileNotFoundError)) else 1
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signal
    except KeyboardInterrupt:
        print("stopped before the next update was done; the last checkpoint is in the run's folder", file=sys.stderr)
        return 130
    if run.run_dir is None:
        return 0
    print(f"run folder: {run.run_dir.absolute()}\nsamples:    {run.samples[-1]}")
    print(f"a page:     wwgan report {shlex.quote(str(run.run_dir.absolute()))}")
    if run.evaluations:
        print("best evaluation:", json.dumps(best_evaluation(run.evaluations), indent=1))
    return 0


if __name__ == "__main__" and __spec__:  # run as a module; in a notebook __spec__ is None
    sys.exit(main())
