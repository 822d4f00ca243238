"""What a study recorded: read, refused if it cannot be compared, and shown as a table."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from ..files import read_json
from ..runs import read_evaluations
from ..training import is_due
from .statistics import paired_difference
from .study import Study, check_same_settings


class Record(NamedTuple):
    """A finished run of a study. samples: the picture of its last samples."""

    seed: int
    evaluations: list[dict[str, Any]]
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
            check_same_settings(folder, config)
            lines, origin = read_evaluations(folder), read_json(folder / "provenance.json")
            record = Record(config.seed, lines, origin, folder / "samples.png")
            found[name.removesuffix(f"-seed{config.seed}")].append(record)
            steps = [line["step"] for line in lines]
            due = [step for step in range(1, config.steps + 1) if is_due(config, "eval", step)]
            if steps != due or not due:
                expected = f"{folder} must have evaluations after updates {due or '(set eval_interval)'}"
                raise ValueError(f"{expected}, got {steps}: remove it to have it trained again")
    _check_comparable([record for records in found.values() for record in records])
    return found


def _check_comparable(records: list[Record]) -> None:
    def signature(record: Record) -> tuple[str, ...]:
        # statistics of the same images differ in the last digits from machine to machine, and how images are prepared
        # is told by their own checksum, also where an old record's protocol does not tell it
        same = dict(statistics_sha256=None, preparation=None)
        protocols = [line["protocol"] | same for line in record.evaluations]
        return record.provenance["dataset_sha256"], *sorted({json.dumps(p, sort_keys=True) for p in protocols})

    for record in records[1:]:
        if signature(record) != signature(records[0]):
            raise ValueError(
                f"{record.samples.parent.name} saw other images or was evaluated by another protocol than "
                f"{records[0].samples.parent.name}: they cannot be compared"
            )


_NAMES = dict(fid="FID", kid="KID", frechet="Fréchet distance", kernel="kernel distance")


def _last_scores(records: Iterable[Record], name: str) -> dict[int, float]:
    """Seed -> that score at the run's last evaluation."""
    return {record.seed: record.evaluations[-1]["scores"][name] for record in records}


def summary_table(records: Mapping[str, list[Record]], baseline: str) -> str:
    """Markdown: scores of each setting at the last evaluation, mean ± standard deviation over seeds, and the floor.

    The main score's paired difference to the baseline stands with its 95% interval, where two seeds are common.
    """
    found = {name: group for name, group in records.items() if group}
    last = next(iter(found.values()))[0].evaluations[-1]
    names = [name for name in last["scores"] if not name.endswith("_std")]
    header = [
        "setting",
        "seeds",
        *(_NAMES.get(name, name.replace("_", " ")) for name in names),
        f"{_NAMES[names[0]]} minus {baseline}'s",
    ]
    rows = [header, ["---"] * len(header)]
    theirs = _last_scores(found.get(baseline, []), names[0])
    for setting, group in found.items():
        rows.append([setting, str(len(group))])
        for name in names:
            values = [*_last_scores(group, name).values()]
            rows[-1].append(f"{mean(values):.4g}" + (f" ± {stdev(values):.3g}" if len(values) > 1 else ""))
        mine = _last_scores(group, names[0])
        compared = setting != baseline and len({*mine} & {*theirs}) > 1
        rows[-1].append(f"{paired_difference(mine, theirs):.3g}" if compared else "")
    floor = [f"{last['floor'][name]:.4g}" for name in names]
    rows.append([f"real images ({last['protocol']['floor_samples']})", "", *floor, ""])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
