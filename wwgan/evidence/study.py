"""Runs of several settings with several seeds, trained, recorded and compared: resumable, never mixing settings."""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..data import load_images
from ..distributed import pick_device
from ..files import check_names, project_root, read_json, unknown_name, write_json
from ..runs import provenance, read_evaluations, read_metrics
from ..settings import TrainConfig, make_config
from ..step import TrainState, update
from ..training import Run, is_due, train
from .cost import interleaved, ratio, timer_of
from .statistics import Estimate, paired_difference


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
            if not name or not all(c.isalnum() or c in "-_." for c in name) or name.startswith("."):
                raise ValueError(f"names of settings may have letters, digits, '-', '_' and '.', got {name!r}")
        if len(set(self.seeds)) < len(self.seeds) or not self.seeds or not self.settings:
            raise ValueError(f"a study needs settings, and seeds that differ, got {list(self.seeds)}")
        if not all(type(seed) is int for seed in self.seeds):
            raise ValueError(f"seeds must be integers, got {list(self.seeds)}")
        self.configs()

    def configs(self) -> dict[str, TrainConfig]:
        """The settings of each run by its name, such as "wgan-gp-seed0", seed by seed."""
        taken = {"seed", "run_dir", "resume"} & (
            {*self.common} | {key for given in self.settings.values() for key in given}
        )
        if taken:
            raise ValueError(f"a study sets {', '.join(sorted(taken))} itself: leave it out of its settings")
        return {
            f"{name}-seed{seed}": make_config(**{**self.common, **given, "seed": seed})
            for seed in self.seeds
            for name, given in self.settings.items()
        }


def read_study(path: str | Path) -> Study:
    """A study from its JSON file. FileNotFoundError or ValueError say what is wrong with it."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no study at {path}: expected a JSON file with common, settings and seeds")
    try:
        content = read_json(path)
        check_names(content, [f.name for f in fields(Study)])
        return Study(**content)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not hold a study: {error}") from None


def study_in(folder: str | Path, smoke: Study | None = None) -> Study:
    """The study of a results folder, from its study.json. smoke: a small one to write there first, if none is.

    Raises as `read_study`, and ValueError where another study than `smoke` is there already.
    """
    path = Path(folder) / "study.json"
    if smoke and not path.exists():
        write_json(path, asdict(smoke))
    study = read_study(path)
    if smoke and study != smoke:
        raise ValueError(f"{folder} holds another study than the one at smoke scale: name another results folder")
    return study


def figure_source(
    usual: str, results: str | Path | None = None, rerun: bool | str | None = None, scale: str | None = None
) -> tuple[Path, bool]:
    """Where a figure's results are, and whether to make them again, from a figure notebook's parameters.

    usual: the place in data/results/ unless `results` names another. rerun: true or false. scale: None or smoke.
    Raises ValueError for other values, and for smoke results without a place of their own.
    """
    place = project_root() / "data" / "results" / usual
    if scale not in (None, "smoke"):
        raise unknown_name("scale", scale, ["smoke"])
    again = str(rerun).lower()
    if again not in ("true", "false", "none"):
        raise ValueError(f"rerun must be true or false, got {rerun!r}")
    if scale and not (results and again == "true" and Path(results).resolve() != place.resolve()):
        raise ValueError("smoke results are made in a place of their own: -p rerun true -p results <place>")
    return Path(results) if results else place, again == "true"


def smoke_study(settings: Mapping[str, Mapping[str, Any]]) -> Study:
    """A study of seconds, to see that a figure's notebook runs: three seeds, a few updates on digits."""
    common = dict(preset="smoke", eval_interval=2, eval_features="pixels", eval_samples=40)
    return Study(common, settings, [0, 1, 2])


_WHERE = ("data_dir", "device", "eval_weights")  # of this machine, no settings of a study
_FREE = (*_WHERE, "run_dir", "resume")
_OF_A_RUN = ("samples", "checkpoints", "report.html")
_RECORDED = ("config.json", "provenance.json", "metrics.jsonl", "evaluations.jsonl", "samples.png")


def _read_config(folder: Path) -> TrainConfig:
    """The settings in a folder's config.json; fields that were added since have their defaults."""
    path = folder / "config.json"
    try:
        return TrainConfig(**read_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} does not hold the settings of a run ({error}): remove {folder}") from None


def _check_same_settings(folder: Path, config: TrainConfig) -> None:
    """ValueError naming each setting in which the folder's run differs."""
    stored, now = asdict(_read_config(folder)), asdict(config)
    differing = [
        f"{name} {stored[name]!r} there, {now[name]!r} in the study"
        for name in now
        if name not in _FREE and stored[name] != now[name]
    ]
    if differing:
        raise ValueError(
            f"{folder} holds a run with other settings ({'; '.join(differing)}): remove it or name other folders"
        )


def _record(run: Run, run_dir: Path, record: Path) -> None:
    """Copy what is small of a finished run in `run_dir` to `record`, whole or not at all."""
    temporary = record.with_name(f".{record.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name in _RECORDED:
        source = run.samples[-1] if name == "samples.png" else run_dir / name
        if source.exists():
            shutil.copyfile(source, temporary / name)
    nowhere = dict(data_dir=None, device="auto", eval_weights=None, run_dir=None, resume=False)
    write_json(temporary / "config.json", asdict(run.config) | nowhere)
    shutil.rmtree(record, ignore_errors=True)  # of a run that is no longer here
    os.replace(temporary, record)


def _clear(run_dir: Path) -> None:
    """Remove a run folder without a checkpoint. ValueError if it holds what no run wrote."""
    foreign = [
        path.name
        for path in run_dir.iterdir()
        if not path.name.startswith(("events.", ".")) and path.name not in (*_OF_A_RUN, *_RECORDED)
    ]
    if foreign:
        raise ValueError(f"{run_dir} holds no run but {', '.join(sorted(foreign)[:3])}: name another folder")
    shutil.rmtree(run_dir)


def run_one(config: TrainConfig, record: Path, run_dir: Path, with_run: bool = False, progress: bool = True) -> Path:
    """Train a run of a study, from where it was cut off if it was, and record it; a recorded one is left as it is.

    with_run: a recorded run whose last checkpoint is not here is trained and recorded again, for its networks.
    Returns the record's folder. Raises ValueError if either folder holds a run with other settings, or if another
    process trains it.
    """
    from filelock import FileLock, Timeout

    run_dir = run_dir.expanduser()  # as the settings of a run do
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(run_dir.with_name(f".{run_dir.name}.lock"), timeout=0):
            if record.exists():
                _check_same_settings(record, config)
            resume = any(run_dir.glob("checkpoints/step_*.pt"))
            complete = (run_dir / "checkpoints" / f"step_{config.steps:07d}.pt").exists()
            if record.exists() and (complete or not with_run):
                return record
            if resume:
                _check_same_settings(run_dir, config)
            elif run_dir.exists():
                _clear(run_dir)  # cut off before its first checkpoint
            run = train(TrainConfig(**asdict(config) | dict(run_dir=str(run_dir), resume=resume)), progress)
            _record(run, run_dir, record)
            return record
    except Timeout:
        raise ValueError(f"{run_dir} is being trained by another process: wait for it, or name other runs") from None


class _Job(NamedTuple):
    """What `run_one` is given."""

    config: TrainConfig
    record: Path
    run_dir: Path
    with_run: bool


def run_study(
    study: Study,
    results: str | Path,
    runs: str | Path | None = None,
    workers: int = 1,
    only: Iterable[str] | None = None,
    threads: int | None = None,
    with_runs: bool = False,
    progress: bool = True,
    **where: str | None,
) -> list[Path]:
    """Train what is not yet recorded of a study; returns the records' folders, seed by seed.

    results: folder of the records. runs: folder of the run folders; None: data/runs/<name of results>/ of the
    repository. workers: processes at a time. only: names of runs, such as "wgan-gp-seed0"; None: all.
    threads: of each process; None: the cores shared out. with_runs: also train recorded runs again whose last
    checkpoint, and with it the networks, is not here. progress: show bars. where: data_dir, device or eval_weights
    of this machine; None: as the study says. Raises ValueError for wrong arguments and for folders that hold other
    settings, before anything is trained; RuntimeError naming the runs that failed, after the others are done.
    """
    check_names(where, _WHERE)
    configs, results = study.configs(), Path(results)
    chosen = list(configs) if only is None else list(only)
    check_names(chosen, configs)
    if workers < 1 or threads is not None and threads < 1:
        raise ValueError(f"workers and threads must be at least 1, got {workers} and {threads}")
    runs = Path(runs).expanduser() if runs else project_root() / "data" / "runs" / results.name
    given = {name: value for name, value in where.items() if value is not None}
    jobs = {
        name: _Job(TrainConfig(**asdict(config) | given), results / name, runs / name, with_runs)
        for name, config in configs.items()
        if name in chosen
    }
    for config, record, run_dir, _ in jobs.values():
        for folder in (record, run_dir):
            if (folder / "config.json").exists():
                _check_same_settings(folder, config)
    threads = threads or max(1, (os.cpu_count() or 1) // workers)
    failed = _one_by_one(jobs, threads, progress) if workers == 1 else _in_processes(jobs, workers, threads, progress)
    if failed:
        raise RuntimeError("; ".join(f"{name} failed: {error}" for name, error in failed.items()))
    return [record for _, record, _, _ in jobs.values()]


def run_with_networks(study: Study, results: str | Path, smoke: bool = False, **options: Any) -> Path:
    """Train a study so that its networks can be measured; the folder of its run folders.

    They are below data/runs/ of the repository, at smoke scale in the results folder. options: of `run_study`.
    """
    results = Path(results)
    runs = results / "runs" if smoke else project_root() / "data" / "runs" / results.name
    run_study(study, results, runs=runs, with_runs=True, device="cpu", **options)
    return runs


@contextmanager
def _using(threads: int) -> Iterator[None]:
    """In here torch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _one_by_one(jobs: Mapping[str, _Job], threads: int, progress: bool) -> dict[str, str]:
    """Run jobs here; the errors of those that failed, by name."""
    failed = {}
    with _using(threads):
        for name, job in jobs.items():
            try:
                run_one(*job, progress)
            except Exception as error:
                failed[name] = str(error) or type(error).__name__
    return failed


def _in_processes(jobs: Mapping[str, _Job], workers: int, threads: int, progress: bool) -> dict[str, str]:
    """Run jobs at most `workers` at a time, each in a process of its own; the errors of those that failed, by name."""
    from tqdm import tqdm

    failed: dict[str, str] = {}
    started: list[SpawnProcess] = []
    bar = tqdm(total=len(jobs), desc="runs", unit="run", disable=not progress)
    with ThreadPoolExecutor(workers) as pool, bar:

        def one(name: str) -> None:
            if error := _in_own_process(started, jobs[name], threads):
                failed[name] = error
            bar.update()

        try:
            list(pool.map(one, jobs))
        finally:  # interrupted: nothing more is started, and what runs is ended
            pool.shutdown(wait=False, cancel_futures=True)
            for process in started:
                process.terminate()
    return failed


def _in_own_process(started: list[SpawnProcess], job: _Job, threads: int) -> str | None:
    """Train and record a run in a new process; what went wrong, or None."""
    context = multiprocessing.get_context("spawn")  # a fork after torch has computed hangs
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(there, job, threads), daemon=True)
    process.start()
    started.append(process)
    there.close()
    try:
        error = here.recv()
    except EOFError:
        error = None  # killed before it could say anything
    process.join()
    return error or (f"its process ended with exit code {process.exitcode}" if process.exitcode else None)


def _work(answer: Connection, job: _Job, threads: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        run_one(*job, progress=False)
        answer.send(None)
    except KeyboardInterrupt:  # asked to stop, the state is saved
        sys.exit(130)
    except Exception as error:
        answer.send(str(error) or type(error).__name__)


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


class Record(NamedTuple):
    """A finished run of a study. samples: the picture of its last samples."""

    setting: str
    seed: int
    evaluations: list[dict[str, Any]]
    history: list[dict[str, float]]
    provenance: dict[str, Any]
    samples: Path


def read_records(study: Study, results: str | Path) -> dict[str, list[Record]]:
    """The finished runs of a study, by setting and in the order of its seeds; a seed not yet run is left out.

    Raises ValueError for a record with other settings, other images or another protocol than the first, and for one
    whose evaluations are not those that its settings ask for.
    """
    found: dict[str, list[Record]] = {name: [] for name in study.settings}
    for name, config in study.configs().items():
        folder = Path(results) / name
        if folder.exists():
            _check_same_settings(folder, config)
            record = Record(
                name.removesuffix(f"-seed{config.seed}"),
                config.seed,
                read_evaluations(folder),
                read_metrics(folder),
                read_json(folder / "provenance.json"),
                folder / "samples.png",
            )
            _check_complete(record, config, folder)
            found[record.setting].append(record)
    _check_comparable([record for records in found.values() for record in records])
    return found


def _check_complete(record: Record, config: TrainConfig, folder: Path) -> None:
    steps = [line["step"] for line in record.evaluations]
    expected = [step for step in range(1, config.steps + 1) if is_due(config, "eval", step)]
    if steps != expected or not expected:
        raise ValueError(
            f"{folder} must have evaluations after updates {expected or '(set eval_interval)'}, got {steps}: "
            "remove it to have it trained again"
        )


def _check_comparable(records: list[Record]) -> None:
    def signature(record: Record) -> tuple[str, ...]:
        # statistics of the same images differ in the last digits from machine to machine
        protocols = [
            {k: v for k, v in line["protocol"].items() if k != "statistics_sha256"} for line in record.evaluations
        ]
        return record.provenance["dataset_sha256"], *sorted({json.dumps(p, sort_keys=True) for p in protocols})

    for record in records[1:]:
        if signature(record) != signature(records[0]):
            raise ValueError(
                f"{record.setting}-seed{record.seed} saw other images or was evaluated by another protocol than "
                f"{records[0].setting}-seed{records[0].seed}: they cannot be compared"
            )


_NAMES = dict(
    fid="FID", kid="KID", frechet="Fréchet distance", kernel="kernel distance", inception_score="Inception Score"
)


def last_scores(records: Iterable[Record], name: str) -> dict[int, float]:
    """Seed -> that score at the run's last evaluation."""
    return {record.seed: record.evaluations[-1]["scores"][name] for record in records}


def _mean_and_spread(values: Iterable[float]) -> str:
    values = torch.tensor(list(values), dtype=torch.float64)
    spread = f" ± {values.std().item():.3g}" if len(values) > 1 else ""
    return f"{values.mean().item():.4g}{spread}"


def difference_to(mine: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate | None:
    """`paired_difference`, or None where fewer than two seeds are common."""
    return paired_difference(mine, theirs) if len({*mine} & {*theirs}) > 1 else None


def summary_table(records: Mapping[str, list[Record]], baseline: str) -> str:
    """Markdown: scores of each setting at the last evaluation, mean ± standard deviation over seeds, and the floor.

    The main score's paired difference to the baseline stands with its 95% interval.
    """
    found = {name: list(group) for name, group in records.items() if group}
    last = next(iter(found.values()))[0].evaluations[-1]
    names = [name for name in last["scores"] if not name.endswith("_std")]
    header = ["setting", "seeds", *(_NAMES.get(name, name) for name in names), f"{_NAMES[names[0]]} minus {baseline}'s"]
    rows = [header, ["---"] * len(header)]
    for setting, group in found.items():
        found_difference = difference_to(*(last_scores(part, names[0]) for part in (group, found.get(baseline, []))))
        difference = ""
        if setting != baseline and found_difference:
            difference = f"{found_difference:.3g}"
        scores = [_mean_and_spread(last_scores(group, name).values()) for name in names]
        rows.append([setting, str(len(group)), *scores, difference])
    floor = [f"{last['floor'][name]:.4g}" for name in names]
    rows.append([f"real images ({last['protocol']['floor_samples']})", "", *floor, ""])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


TIMES = "times.json"


def relative_times(
    study: Study, baseline: str, rounds: int = 40, threads: int = 1, data_dir: str | None = None, device: str = "auto"
) -> dict[str, Any]:
    """Time of a generator update of each setting over the baseline's, measured side by side; a plain JSON record.

    "times": setting -> median, lower and upper quartile over rounds. threads: of torch, meanwhile. Raises ValueError
    for an unknown baseline.
    """
    check_names([baseline], study.settings)
    place, configs = pick_device(device), dict(zip(study.settings, study.configs().values()))  # of the first seed
    config = configs[baseline]
    images = load_images(config.dataset, data_dir, config.size).to(place)
    with _using(threads):
        timers = {
            name: timer_of(partial(update, TrainState(given, images.shape[1], place), images, given.ground()), place)
            for name, given in configs.items()
        }
        seconds = interleaved(timers, rounds)
        times = {name: ratio(seconds, name, baseline) for name in timers}
        return dict(baseline=baseline, rounds=rounds, times=times, provenance=provenance(config, images, place))


def read_times(results: str | Path) -> dict[str, Any]:
    """What `relative_times` measured, from the results' times.json. Raises FileNotFoundError."""
    return read_json(Path(results) / TIMES)


def main(argv: Iterable[str] | None = None) -> int:
    """Run a study from the command line; the exit code: 0, 1 (failed), 2 (wrong options), 130 (interrupted)."""
    parser = argparse.ArgumentParser(
        prog="python -m wwgan.evidence.study", description="Train what is not yet recorded of a study, and record it."
    )
    parser.add_argument("study", type=Path, help="JSON file with common, settings and seeds")
    parser.add_argument("--results", type=Path, help="folder of the records; default: the study's folder")
    parser.add_argument("--runs", type=Path, help="folder of the run folders; default: below data/runs/")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, each in a process of its own")
    parser.add_argument("--threads", type=int, help="of each run; default: the cores shared out")
    parser.add_argument("--list", action="store_true", help="train nothing, but print the names of the runs")
    parser.add_argument("--only", nargs="+", metavar="RUN", help="names such as wgan-gp-seed0; default: all")
    parser.add_argument("--times", metavar="BASELINE", help="train nothing, but measure the settings' relative times")
    parser.add_argument("--data_dir", help="holds data sets and prepared arrays; default: data/ of the repository")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:<number>; default: as the study says")
    parser.add_argument("--eval_weights", help="file of the Inception weights; default: torch's cache, or downloaded")
    given = vars(parser.parse_args(argv))
    path, baseline, names = given.pop("study"), given.pop("times"), given.pop("list")
    given["results"] = given["results"] or path.parent
    try:
        if names:
            print("\n".join(read_study(path).configs()))
            return 0
        if baseline:
            where = dict(threads=given["threads"] or 1, data_dir=given["data_dir"], device=given["device"] or "auto")
            write_json(given["results"] / TIMES, relative_times(read_study(path), baseline, **where))
            print(given["results"] / TIMES)
            return 0
        records = run_study(read_study(path), **given)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    print("\n".join(map(str, records)))
    return 0


if __name__ == "__main__" and __spec__:  # run as a module; in a notebook __spec__ is None
    sys.exit(main())
