"""The settings of a training run: read, checked, filled in, and kept when a run is resumed."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from .data import default_size
from .evaluation import FEATURES
from .files import check_names, read_json, unknown_name
from .graph import NEIGHBORHOODS
from .networks import ARCHITECTURES
from .penalty import GROUND_METRICS, GroundMetric
from .points import PAIRS, POINTS


def _read_bool(value: object) -> bool:
    return {"true": True, "false": False}[str(value).lower()]


def _read_int(value: Any) -> int:
    if isinstance(value, bool) or isinstance(value, float) and value != int(value):
        raise ValueError
    return int(value)


def _read_float(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    return float(value)


def _read_text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, Path, int)) or not str(value):
        raise ValueError
    return str(value)


def _read_pair(value: Any) -> tuple[float, float]:
    parts = value.strip("()[] ").split(",") if isinstance(value, str) else value
    first, second = map(_read_float, parts)
    return first, second


_READERS: dict[Any, tuple[Callable[[Any], Any], str]] = {
    bool: (_read_bool, "true or false"),
    int: (_read_int, "an integer"),
    float: (_read_float, "a number"),
    str: (_read_text, "a non-empty text"),
    tuple[float, float]: (_read_pair, "two numbers such as 0.5,0.9"),
}


def _read_setting(name: str, hint: Any, value: Any) -> Any:
    """The value as the field's type. ValueError names field, type and value."""
    kind = get_args(hint)[0] if type(None) in get_args(hint) else hint
    reader, expected = _READERS[kind]
    try:
        return reader(value)
    except (ValueError, TypeError, KeyError, OverflowError):
        raise ValueError(f"{name} must be {expected}, got {value!r}") from None


PENALTY_WEIGHTS = {
    "wasserstein": 4.0,
    "wasserstein-paper": 10.0,
    "wasserstein-shuffled": 4.0,
    "euclidean": 10.0,
    "sobolev": 10.0,
}
PRECISIONS = ("float32", "bf16")
_WASSERSTEIN = ("wasserstein", "wasserstein-paper", "wasserstein-shuffled")
GROUND_FIELDS = {  # which ground metrics have them
    **dict.fromkeys(("l2", "mass", "neighborhood", "radius", "degree_normalized"), _WASSERSTEIN),
    "length": ("wasserstein", "wasserstein-shuffled", "sobolev"),
    "order": ("sobolev",),
}


def setting(default: Any, help: str) -> Any:
    """A field of the settings with the one line that `--help` shows."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run; the defaults are the released code's. Raises ValueError for values out of range.

    A default of None may be given as well; where the type has no None, the usual value takes its place.
    """

    dataset: str = setting("digits", "digits, cifar10, celeba or folder:<path>")
    data_dir: str | None = setting(None, "holds data sets and prepared arrays; None: data/ of the repository")
    size: int = setting(None, "pixels on a side; None: the data set's usual size")
    architecture: str = setting("dcgan", "dcgan or resnet")
    width: int = setting(None, "channels of the widest resolution; None: the architecture's usual width")
    latent_dim: int = setting(None, "entries of z; None: the architecture's usual number")
    penalty: str = setting(
        "wasserstein", "ground metric: wasserstein, wasserstein-paper, wasserstein-shuffled, euclidean or sobolev"
    )
    weight: float = setting(None, "lambda; None: the weight usual for the penalty")
    length: float | None = setting(
        None, "pixels that motions may go, wasserstein, wasserstein-shuffled, sobolev; None: as in the chosen form"
    )
    length_end: float | None = setting(None, "length that the updates come to in a straight line; None: stays")
    length_steps: int | None = setting(None, "generator updates from length to length_end; None: half of steps")
    order: float | None = setting(None, "of the Sobolev norm, sobolev only; None: -1.5")
    l2: float | None = setting(None, "gamma, Wasserstein only; None: as in the chosen form")
    mass: float | None = setting(None, "alpha, Wasserstein only; None: 1 / pixels for wasserstein-paper, else 0")
    neighborhood: str | None = setting(None, "von_neumann or moore, Wasserstein only; None: as in the chosen form")
    radius: int | None = setting(None, "of the neighbourhood in pixels, Wasserstein only; None: as in the chosen form")
    degree_normalized: bool | None = setting(None, "divide by degrees, Wasserstein only; None: as in the chosen form")
    one_sided: bool = setting(False, "penalise only norms above 1")
    points: str = setting("interpolated", "where to penalise: interpolated, geodesic, real or fake")
    pairs: str = setting("random", "what is interpolated between: random, matched (Euclid) or matched-ground pairs")
    critic_steps: int = setting(5, "critic updates for one generator update")
    batch_size: int = setting(64, "images in a batch")
    lr: float = setting(1e-4, "Adam's learning rate, both networks")
    betas: tuple[float, float] = setting((0.5, 0.9), "Adam's betas, both networks")
    steps: int = setting(20_000, "generator updates")
    ema: float = setting(0.0, "decay of the generator's weight average, used for samples; 0: no average")
    penalty_every: int = setting(1, "critic updates from one penalty to the next, weighted by as much; 1: in each")
    precision: str = setting("float32", "float32, or bf16: networks in bfloat16, weights and norms in float32")
    channels_last: bool = setting(True, "images with channels last in memory: the same numbers to rounding, faster")
    compile: bool = setting(False, "compile both steps, with CUDA graphs on a GPU: pays on a GPU, hardly on a CPU")
    seed: int = setting(0, "of initial weights and all draws")
    device: str = setting("auto", "auto (a GPU if there is one), cpu, cuda or cuda:<number>")
    log_interval: int = setting(50, "generator updates between lines of metrics.jsonl")
    sample_interval: int = setting(500, "... between sample grids")
    checkpoint_interval: int = setting(1000, "... between checkpoints")
    eval_interval: int = setting(0, "... between evaluations, each against all training images; 0: none")
    eval_features: str = setting("efficientnet", "where to compare: inception (FID), efficientnet (offline) or pixels")
    eval_samples: int = setting(2000, "generated images in an evaluation")
    eval_weights: str | None = setting(None, "file of the Inception weights; None: torch's cache, or downloaded")
    run_dir: str | None = setting(None, "the run's folder; None: a new one under data/runs/ of the repository")
    resume: bool = setting(False, "go on from the last checkpoint in run_dir")

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None or f.default is not None:
                object.__setattr__(self, f.name, _read_setting(f.name, hints[f.name], value))
        self._check_names()
        for name in ("data_dir", "run_dir", "eval_weights"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, str(Path(getattr(self, name)).expanduser()))
        family = ARCHITECTURES[self.architecture]
        size = default_size(self.dataset)
        usual = dict(
            size=size if size in family.sizes else family.sizes[0],
            width=family.width,
            latent_dim=family.latent_dim,
            weight=PENALTY_WEIGHTS.get(self.penalty, 10.0),  # WGAN-GP's for a metric of one's own
        )
        for name, value in usual.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.penalty == "wasserstein-paper" and self.mass is None:
            object.__setattr__(self, "mass", 1 / self.size**2)
        if self.length_end is not None and self.length_steps is None:
            object.__setattr__(self, "length_steps", max(self.steps // 2, 1))
        self._check_numbers()
        self._check_schedule()
        self.ground()

    def _check_names(self) -> None:
        default_size(self.dataset)  # refuses an unknown data set
        choices: dict[str, Collection[str]] = dict(
            architecture=ARCHITECTURES,
            penalty=GROUND_METRICS,
            points=POINTS,
            pairs=PAIRS,
            precision=PRECISIONS,
            eval_features=FEATURES,
        )
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise unknown_name(name, getattr(self, name), known)
        if self.neighborhood is not None and self.neighborhood not in NEIGHBORHOODS:
            raise unknown_name("neighborhood", self.neighborhood, NEIGHBORHOODS)
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise unknown_name("device", self.device, ["auto", "cpu", "cuda", "cuda:<number>"])
        if self.resume and self.run_dir is None:
            raise ValueError("resume needs run_dir, the folder of the run to go on with")

    def _check_numbers(self) -> None:
        sizes = ARCHITECTURES[self.architecture].sizes
        if self.size not in sizes:
            raise ValueError(
                f"size must be one of {', '.join(map(str, sizes))} for {self.architecture}, got {self.size}"
            )
        for name in (
            "width",
            "latent_dim",
            "critic_steps",
            "penalty_every",
            "batch_size",
            "steps",
            "log_interval",
            "sample_interval",
            "checkpoint_interval",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, least in dict(eval_interval=0, eval_samples=4).items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr must be positive and finite, got {self.lr}")
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight must be finite and not negative, got {self.weight}")
        for name, values in dict(betas=self.betas, ema=(self.ema,)).items():
            if not all(0 <= value < 1 for value in values):
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must lie in [0, 2**63), got {self.seed}")

    def _check_schedule(self) -> None:
        """A length that changes over the updates has two ends and a duration, and steps that are not compiled."""
        if self.length_end is None:
            if self.length_steps is not None:
                raise ValueError(f"length_steps needs length_end, where the length goes, got {self.length_steps}")
            return
        if self.length is None:
            raise ValueError(f"length_end needs length, where it starts, got length_end={self.length_end}")
        if self.length_steps is None or self.length_steps < 1:
            raise ValueError(f"length_steps must be at least 1, got {self.length_steps}")
        if self.compile:
            raise ValueError(
                "a length that changes would be compiled anew in each update: leave out compile or length_end"
            )
        self.ground(self.length_steps)  # refuses a bad length_end

    def ground(self, step: int = 0) -> GroundMetric:
        """The ground metric of this run's penalty after `step` generator updates."""
        changes = {name: getattr(self, name) for name in GROUND_FIELDS if getattr(self, name) is not None}
        for name in changes:
            if self.penalty not in GROUND_FIELDS[name]:
                raise ValueError(
                    f"{name} belongs to the penalties {', '.join(GROUND_FIELDS[name])}, "
                    f"the penalty here is {self.penalty!r}"
                )
        if self.length is not None and self.length_end is not None and self.length_steps is not None:
            share = min(step / self.length_steps, 1.0)
            changes["length"] = (1 - share) * self.length + share * self.length_end
        return GROUND_METRICS[self.penalty](**changes)


_PAPER_STEPS = {"celeba": 6_332, "cifar10": 200_000}


def _paper(given: Mapping[str, Any]) -> dict[str, Any]:
    steps = _PAPER_STEPS.get(str(given.get("dataset")), 20_000)
    return dict(steps=steps, sample_interval=max(steps // 20, 1))


def _quick(given: Mapping[str, Any]) -> dict[str, Any]:
    return dict(width=32, lr=5e-4, steps=600, ema=0.98, log_interval=10, sample_interval=100, checkpoint_interval=200)


def _smoke(given: Mapping[str, Any]) -> dict[str, Any]:
    return dict(
        size=16 if given.get("architecture", "dcgan") == "dcgan" else None,
        width=8,
        latent_dim=16,
        batch_size=16,
        critic_steps=2,
        steps=4,
        ema=0.5,
        log_interval=1,
        sample_interval=2,
        checkpoint_interval=2,
    )


PRESETS = {"paper": _paper, "quick": _quick, "smoke": _smoke}


def make_config(preset: str | None = None, **given: Any) -> TrainConfig:
    """Settings from a preset ("quick" unless named) and what is given; a value of None counts as not given.

    With resume and run_dir, the settings of that run and what is given; the preset must then be left out.
    Raises ValueError for unknown names, with the nearest match, and for values out of range.
    """
    check_names(given, ["preset", *(f.name for f in fields(TrainConfig))])
    given = {name: value for name, value in given.items() if value is not None}
    if _read_setting("resume", bool, given.get("resume", False)):
        if preset is not None:
            raise ValueError(f"a resumed run has its settings already: leave out preset, got {preset!r}")
        return TrainConfig(**stored_settings(given.get("run_dir")) | given)
    preset = _read_setting("preset", str, "quick" if preset is None else preset)
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    return TrainConfig(**PRESETS[preset](given) | given)


def stored_settings(run_dir: str | Path | None) -> dict[str, Any]:
    """The settings in a run folder's config.json. Raises FileNotFoundError or ValueError where it holds none."""
    if run_dir is None:
        raise ValueError("resume needs run_dir, the folder of the run to go on with")
    path = Path(run_dir).expanduser() / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"nothing to resume: {path} does not exist")
    stored = read_json(path)
    try:
        if not isinstance(stored, dict):
            raise ValueError(f"expected an object, got {stored!r}")
        check_names(stored, [f.name for f in fields(TrainConfig)])
    except ValueError as error:
        raise ValueError(f"{path} does not hold the settings of a run: {error}") from None
    return stored


def parameters_of(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values among a notebook's variables: its papermill parameters, if taken before others are defined."""
    plain = (str, int, float, list, tuple, dict, type(None))
    return {
        name: value
        for name, value in namespace.items()
        if isinstance(value, plain) and not name.startswith("_") and name not in ("In", "Out")
    }
