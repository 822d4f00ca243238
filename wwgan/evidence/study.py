"""Runs of several settings with several seeds, trained and recorded: resumable, and never mixing settings."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..distributed import using_threads
from ..files import check_names, project_root, read_json
from ..runs import MACHINE, copy_record, differing, read_config
from ..settings import TrainConfig, make_config
from ..stopping import keep_streams
from ..training import train


@dataclass(frozen=True)
class Study:
    """What is trained: each of `settings` (name -> what is special about it) with each seed, sharing `common`.

    Raises ValueError for unknown or wrong settings, names that make no file name, and seeds given twice.
    """

    common: Mapping[str, Any]
    settings: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]

    def __post_init__(self) -> None:
        for name in self.settings:
            if not re.fullmatch(r"[\w-][\w.-]*", name):
                raise ValueError(f"names of settings may have letters, digits, '-', '_' and '.', got {name!r}")
        if not self.settings or len({*self.seeds}) < len(self.seeds) or {*map(type, self.seeds)} != {int}:
            raise ValueError(f"a study needs settings, and seeds must be integers that differ, got {[*self.seeds]}")
        self.configs()

    def configs(self) -> dict[str, TrainConfig]:
        """The settings of each run by its name, such as "wgan-gp-seed0", seed by seed."""
        taken = {"seed", "run_dir", "resume"} & {*self.common, *(key for x in self.settings.values() for key in x)}
        if taken:
            raise ValueError(f"a study sets {', '.join(sorted(taken))} itself: leave it out of its settings")
        return {
            f"{name}-seed{seed}": make_config(**{**self.common, **given, "seed": seed})
            for seed in self.seeds
            for name, given in self.settings.items()
        }


def read_study(path: str | Path) -> Study:
    """A study from its JSON file. FileNotFoundError or ValueError say what is wrong with it."""
    try:
        content = read_json(Path(path))
        check_names(content, [f.name for f in fields(Study)])
        return Study(**content)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not hold a study: {error}") from None


def check_same_settings(folder: Path, config: TrainConfig) -> None:
    """ValueError naming each setting in which the run in `folder` differs; those added since have their defaults."""
    if found := differing(read_config(folder), config):
        raise ValueError(f"{folder} holds a run with other settings ({found}): remove it or name other folders")


class _Run(NamedTuple):
    """A run of a study: its settings, the folders of its record and of itself, and how it is trained here."""

    config: TrainConfig
    record: str
    run_dir: str
    threads: int
    progress: bool


def _attempt(run: _Run) -> str | None:
    """Train and record a run, from where it was cut off if it was, unless that is done; what went wrong, or None."""
    folder = Path(run.run_dir)
    try:
        if not Path(run.record).exists():
            begun = (folder / "config.json").exists()
            with using_threads(run.threads):
                train(replace(run.config, run_dir=run.run_dir, resume=begun), run.progress)
            copy_record(folder, Path(run.record))
        return None
    except Exception as error:
        return f"{Path(run.record).name} failed: {str(error) or type(error).__name__}"


def run_study(
    study: Study,
    results: str | Path,
    runs: str | Path | None = None,
    workers: int = 1,
    only: Iterable[str] | None = None,
    threads: int | None = None,
    progress: bool = True,
    **where: str | None,
) -> list[Path]:
    """Train what is not yet recorded of a study; returns the records' folders, seed by seed.

    results: folder of the records, which studies may share: a run of the same name must have the same settings. runs:
    folder of the run folders; None: data/runs/<name of results>/ of the repository. workers: runs at a time, each in
    a process of its own, which joblib starts here or, within `joblib.parallel_config`, on a cluster; 1: all in this
    process. only: names of runs, such as "wgan-gp-seed0"; None: all. threads: of each run; None: this process's,
    shared out. progress: show bars. where: data_dir, device or eval_weights of this machine; None: as the study says.
    Raises ValueError for wrong arguments and for folders that hold other settings, before anything is trained;
    RuntimeError naming the runs that failed, after the others are done.
    """
    from ..progress import Progress

    check_names(where, MACHINE)
    if workers < 1 or threads is not None and threads < 1:
        raise ValueError(f"workers and threads must be at least 1, got {workers} and {threads}")
    results, threads = Path(results), threads or max(1, torch.get_num_threads() // workers)
    runs = Path(runs).expanduser() if runs else project_root() / "data" / "runs" / results.name
    here: dict[str, Any] = {name: value for name, value in where.items() if value is not None}
    bars = progress and workers == 1
    chosen = [
        _Run(replace(config, **here), str(results / name), str(runs / name), threads, bars)
        for name, config in _chosen(study, only, [results, runs]).items()
    ]
    with closing((_attempt(run) for run in chosen) if workers == 1 else _in_processes(chosen, workers)) as ended:
        failed = [error for error in Progress(ended, "runs", len(chosen), unit="run", disable=not progress) if error]
    if failed:
        raise RuntimeError("; ".join(failed))
    return [Path(run.record) for run in chosen]


def _chosen(study: Study, only: Iterable[str] | None, places: Iterable[Path]) -> dict[str, TrainConfig]:
    """The settings of the runs that are asked for, by name; refused if a place holds the run with others."""
    configs = study.configs()
    chosen = {*(configs if only is None else only)}
    check_names(chosen, configs)
    for name, place in product(chosen, places):
        if (place / name / "config.json").exists():
            check_same_settings(place / name, configs[name])
    return {name: config for name, config in configs.items() if name in chosen}


_started: set["subprocess.Popen[str]"] = set()  # the processes of runs that this one waits for


def _in_processes(runs: Iterable[_Run], workers: int) -> Generator[str | None, None, None]:
    """What went wrong with each run, as they end: a process for each, at most `workers` at a time."""
    from joblib import Parallel, delayed

    # threads, unless joblib was told of a cluster: each only waits for the process of its run
    spread = Parallel(workers, prefer="threads", batch_size=1, pre_dispatch=workers, return_as="generator_unordered")
    try:
        with closing(spread(delayed(_in_own_process)(run, os.getcwd()) for run in runs)) as ended:
            yield from ended
    finally:  # interrupted: nothing more is started, and what runs is asked to save its state and end
        left = [*_started]
        for process in left:
            process.stdin.close()  # type: ignore[union-attr]  # a pipe
        for process in left:
            process.wait()


def _in_own_process(run: _Run, folder: str) -> str | None:
    """`_attempt` in a process that begins in `folder` and ends with this one."""
    which = json.dumps([asdict(run.config), *run[1:]])
    process = subprocess.Popen(
        [sys.executable, "-c", "from wwgan.evidence.study import _work; _work()", which],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C reaches it once, through its standard input: a second request would kill it
    )
    assert process.stdout
    _started.add(process)
    said, code = process.stdout.read().strip(), process.wait()
    _started.discard(process)
    return (said or f"{Path(run.record).name} failed: its process ended with exit code {code}") if code else None


def _work() -> None:
    """The process of one run, which its argument says; the end of standard input, that nobody waits for it any more."""
    config, *others = json.loads(sys.argv[1])
    threading.Thread(target=_stop_when_left, daemon=True).start()
    try:
        if error := _attempt(_Run(TrainConfig(**config), *others)):
            print(error)
            sys.exit(1)
    except KeyboardInterrupt:  # asked to stop, the state is saved
        sys.exit(130)


def _stop_when_left() -> None:
    while os.read(0, 1):  # until the other end is closed
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wwgan study", description="Train what is not yet recorded of a study, and record it."
    )
    parser.add_argument("study", type=Path, help="JSON file with common, settings and seeds")
    parser.add_argument("--results", type=Path, help="folder of the records; default: the study's folder")
    parser.add_argument("--runs", type=Path, help="folder of the run folders; default: below data/runs/")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, each in a process of its own")
    parser.add_argument("--threads", type=int, help="of each run; default: those of torch shared out")
    parser.add_argument("--list", action="store_true", help="train nothing, but print the names of the runs")
    parser.add_argument("--only", nargs="+", metavar="RUN", help="names such as wgan-gp-seed0; default: all")
    parser.add_argument("--data_dir", help="holds data sets and prepared arrays; default: data/ of the repository")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:<number>; default: as the study says")
    parser.add_argument("--eval_weights", help="file of the Inception weights; default: torch's cache, or downloaded")
    return parser


def main(argv: Iterable[str] | None = None) -> int:
    """Run a study from the command line; the exit code: 0, 1 (failed), 2 (wrong options), 130 (stopped)."""
    keep_streams()
    given = vars(_parser().parse_args(argv))
    path, names = given.pop("study"), given.pop("list")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # both ask for the same
    try:
        study = read_study(path)
        if names:
            print("\n".join(study.configs()))
            return 0
        print(*run_study(study, **given | dict(results=given["results"] or path.parent)), sep="\n")
        return 0
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, RuntimeError) else 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
