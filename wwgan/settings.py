"""The settings of a training run: read, checked and filled in."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import Field, dataclass, field, fields
from math import inf
from pathlib import Path
from typing import Any, get_args, get_type_hints

from .data import default_size
from .evaluation import FEATURES
from .files import check_names, unknown_name
from .graph import NEIGHBORHOODS
from .networks import ARCHITECTURES
from .penalty import GROUND_METRICS, GroundMetric, usual_weight
from .points import PAIRS, POINTS
from .sources import DATASETS


def _read_number(value: Any, kind: Callable[[Any], Any] = float) -> Any:
    if isinstance(value, bool) or isinstance(value, float) and kind(value) != value:  # as NaN is
        raise ValueError
    if kind is int and not -(2**63) <= kind(value) < 2**63:
        raise ValueError
    return kind(value)


def _read_text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, Path, int)) or not str(value):
        raise ValueError
    str(value).encode()  # ValueError for a name that is no UTF-8
    return str(value)


def _read_pair(value: Any) -> tuple[float, float]:
    first, second = value.strip("()[] ").split(",") if isinstance(value, str) else value
    return _read_number(first), _read_number(second)


_READERS: dict[Any, tuple[Callable[[Any], Any], str]] = {
    bool: (lambda value: {"true": True, "false": False}[str(value).lower()], "true or false"),
    int: (lambda value: _read_number(value, int), "an integer of 64 bits"),
    float: (_read_number, "a number"),
    str: (_read_text, "a non-empty text in UTF-8"),
    tuple[float, float]: (_read_pair, "two numbers such as 0.5,0.9"),
}


def read_setting(name: str, hint: Any, value: Any) -> Any:
    """The value as the type that `hint` says. ValueError names setting, type and value."""
    kind = get_args(hint)[0] if type(None) in get_args(hint) else hint
    reader, expected = _READERS[kind]
    try:
        return reader(value)
    except (ValueError, TypeError, KeyError, OverflowError):
        raise ValueError(f"{name} must be {expected}, got {value!r}") from None


PRECISIONS = ("float32", "bf16")
_WASSERSTEIN = ("wasserstein", "wasserstein-paper", "wasserstein-shuffled")
GROUND_FIELDS = {  # which ground metrics have them
    **dict.fromkeys(("l2", "mass", "neighborhood", "radius", "degree_normalized"), _WASSERSTEIN),
    "length": ("wasserstein", "wasserstein-shuffled", "sobolev"),
    "order": ("sobolev",),
}


def setting(default: Any, help: str, choices: Collection[str] | None = None, **bounds: float) -> Any:
    """A field of the settings: the one line that `--help` shows, and the values it may have.

    choices: names. bounds: least, the smallest number; above and below, what a number may not reach.
    A field that is added later must have a default that means what runs did before it.
    """
    return field(default=default, metadata=dict(help=help, choices=choices, bounds=bounds))


def _check(field: "Field[Any]", value: Any) -> None:
    """ValueError unless the value, or each of a pair of values, is one that the field may have."""
    choices, bounds = field.metadata["choices"], field.metadata["bounds"]
    if choices is not None and value not in choices:
        raise unknown_name(field.name, value, choices)
    low, high = bounds.get("least", bounds.get("above", -inf)), bounds.get("below", inf)
    for number in value if isinstance(value, tuple) else (value,):
        if bounds and (not low <= number < high or number == bounds.get("above")):
            expected = f"in [{low}, {high})" if "below" in bounds else f"at least {low}"
            expected = "positive and finite" if "above" in bounds else expected
            raise ValueError(f"{field.name} must be {expected}, got {value}")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run; the defaults are the released code's. Raises ValueError for values out of range.

    A default of None may be given as well; where the type has no None, the usual value takes its place.
    """

    dataset: str = setting("digits", ", ".join(DATASETS).replace("folder", "folder:<path>"))
    data_dir: str | None = setting(None, "holds data sets and prepared arrays; None: data/ of the repository")
    size: int = setting(None, "pixels on a side; None: the data set's usual size")
    architecture: str = setting("dcgan", "networks", ARCHITECTURES)
    width: int = setting(None, "channels of the widest resolution; None: the architecture's usual width", least=1)
    latent_dim: int = setting(None, "entries of z; None: the architecture's usual number", least=1)
    penalty: str = setting("wasserstein", "ground metric", GROUND_METRICS)
    weight: float = setting(None, "lambda; None: the weight usual for the penalty", least=0, below=inf)
    length: float | None = setting(None, "pixels motions may go, wasserstein(-shuffled), sobolev; None: the form's")
    length_end: float | None = setting(None, "length that the updates come to in a straight line; None: stays")
    length_steps: int | None = setting(None, "generator updates until length_end; None: half of steps", least=1)
    order: float | None = setting(None, "of the Sobolev norm, sobolev only; None: -1.5")
    l2: float | None = setting(None, "gamma, Wasserstein only; None: as in the chosen form")
    mass: float | None = setting(None, "alpha, Wasserstein only; None: 1 / pixels for wasserstein-paper, else 0")
    neighborhood: str | None = setting(None, "Wasserstein only; None: as in the chosen form", NEIGHBORHOODS)
    radius: int | None = setting(None, "of the neighbourhood in pixels, Wasserstein only; None: as in the chosen form")
    degree_normalized: bool | None = setting(None, "divide by degrees, Wasserstein only; None: as in the chosen form")
    one_sided: bool = setting(False, "penalise only norms above 1")
    points: str = setting("interpolated", "where to penalise", POINTS)
    pairs: str = setting("random", "what is interpolated between; matched: by Euclidean distance", PAIRS)
    critic_steps: int = setting(5, "critic updates for one generator update", least=1)
    batch_size: int = setting(64, "images in a batch", least=1)
    lr: float = setting(1e-4, "Adam's learning rate, both networks", above=0)
    betas: tuple[float, float] = setting((0.5, 0.9), "Adam's betas, both networks", least=0, below=1)
    steps: int = setting(20_000, "generator updates", least=1)
    ema: float = setting(0.0, "decay of the EMA of generator weights that samples come from; 0: none", least=0, below=1)
    penalty_every: int = setting(1, "critic updates to the next penalty, weighted by as much; 1: in each", least=1)
    precision: str = setting("float32", "bf16: networks in bfloat16, weights and norms in float32", PRECISIONS)
    channels_last: bool = setting(True, "images with channels last in memory: the same numbers to rounding, faster")
    compile: bool = setting(False, "compile both steps, with CUDA graphs on a GPU: pays on a GPU, hardly on a CPU")
    seed: int = setting(0, "of initial weights and all draws", least=0, below=2**63)
    device: str = setting("auto", "auto (a GPU if there is one), cpu, cuda or cuda:<number>")
    log_interval: int = setting(50, "generator updates between lines of metrics.jsonl", least=1)
    sample_interval: int = setting(500, "... between sample grids", least=1)
    checkpoint_interval: int = setting(1000, "... between checkpoints", least=1)
    eval_interval: int = setting(0, "... between evaluations against training images; 0: none", least=0)
    eval_features: str = setting("efficientnet", "where to compare; inception: FID, efficientnet: offline", FEATURES)
    eval_samples: int = setting(2000, "generated images in an evaluation", least=4)
    eval_real: int | None = setting(None, "real images to compare with at most, always the same; 0: all", least=0)
    eval_weights: str | None = setting(None, "file of the Inception weights; None: torch's cache, or downloaded")
    run_dir: str | None = setting(None, "the run's folder; None: a new one under data/runs/ of the repository")
    resume: bool = setting(False, "go on from the last checkpoint in run_dir")

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None or f.default is not None:
                self._set(f.name, read_setting(f.name, hints[f.name], value))
            if getattr(self, f.name) is not None:
                _check(f, getattr(self, f.name))
        for name in ("data_dir", "run_dir", "eval_weights"):
            if getattr(self, name) is not None:
                self._set(name, str(Path(getattr(self, name)).expanduser()))
        self._fill_in()
        self._check_together()
        self.ground(self.length_steps or 0)  # refuses fields that the penalty does not have, and a bad length_end

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _fill_in(self) -> None:
        """The usual values in the place of None."""
        family, size = ARCHITECTURES[self.architecture], default_size(self.dataset)  # refuses an unknown data set
        usual = dict(width=family.width, latent_dim=family.latent_dim, weight=usual_weight(self.ground()))
        usual |= dict(size=size if size in family.sizes else family.sizes[0])
        for name, value in usual.items():
            if getattr(self, name) is None:
                self._set(name, value)
        if self.eval_real == 0:
            self._set("eval_real", None)  # as those have it that were recorded before there was a bound
        if self.penalty == "wasserstein-paper" and self.mass is None:
            self._set("mass", 1 / self.size**2)
        if self.length_end is not None and self.length_steps is None:
            self._set("length_steps", max(self.steps // 2, 1))

    def _check_together(self) -> None:
        sizes = ARCHITECTURES[self.architecture].sizes
        if self.size not in sizes:
            known = ", ".join(map(str, sizes))
            raise ValueError(f"size must be one of {known} for {self.architecture}, got {self.size}")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise unknown_name("device", self.device, ["auto", "cpu", "cuda", "cuda:<number>"])
        needed = dict(resume="run_dir", length_end="length", length_steps="length_end")
        for name, other in needed.items():
            if getattr(self, name) not in (None, False) and getattr(self, other) is None:
                raise ValueError(f"{name} needs {other}, got {name}={getattr(self, name)} without it")
        if self.compile and self.length_end is not None:
            raise ValueError("a length that changes is compiled anew in each update: leave out compile or length_end")

    def ground(self, step: int = 0) -> GroundMetric:
        """The ground metric of this run's penalty after `step` generator updates."""
        changes = {name: getattr(self, name) for name in GROUND_FIELDS if getattr(self, name) is not None}
        for name in changes:
            if self.penalty not in GROUND_FIELDS[name]:
                known = ", ".join(GROUND_FIELDS[name])
                raise ValueError(f"{name} belongs to the penalties {known}, the penalty here is {self.penalty!r}")
        if self.length is not None and self.length_end is not None and self.length_steps is not None:
            share = min(step / self.length_steps, 1.0)
            changes["length"] = (1 - share) * self.length + share * self.length_end
        return GROUND_METRICS[self.penalty](**changes)


SETTINGS = {f.name: f for f in fields(TrainConfig)}
PRESETS = ("paper", "quick", "smoke")


def _preset(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a preset, some of which depend on what is given."""
    if name == "paper":
        steps = dict(celeba=6_332, cifar10=200_000).get(str(given.get("dataset")), 20_000)
        return dict(steps=steps, sample_interval=max(steps // 20, 1), eval_real=10_000)
    if name == "quick":
        quick: dict[str, Any] = dict(width=32, lr=5e-4, steps=600, ema=0.98, eval_real=10_000)
        return quick | dict(log_interval=10, sample_interval=100, checkpoint_interval=200)
    size = 16 if given.get("architecture", "dcgan") == "dcgan" else None
    small: dict[str, Any] = dict(size=size, width=8, latent_dim=16, batch_size=16, critic_steps=2, steps=4, ema=0.5)
    return small | dict(log_interval=1, sample_interval=2, checkpoint_interval=2)


def make_config(preset: str | None = None, **given: Any) -> TrainConfig:
    """Settings from a preset ("quick" unless named) and what is given; a value of None counts as not given.

    Raises ValueError for unknown names, with the nearest match, and for values out of range. The settings of a run to
    be resumed come from `wwgan.runs.run_config`.
    """
    check_names(given, ["preset", *SETTINGS])
    given = {name: value for name, value in given.items() if value is not None}
    preset = read_setting("preset", str, "quick" if preset is None else preset)
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    return TrainConfig(**_preset(preset, given) | given)


def parameters_of(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values among a notebook's variables: its papermill parameters, if taken before others are defined.

    Names that begin with "_" are the notebook's own, unless they stand in the cell that papermill puts in.
    """
    plain = (str, int, float, list, tuple, dict, type(None))
    put_in = [cell for cell in namespace.get("In", ()) if cell.startswith("# Parameters\n")]
    private = re.findall(r"^(_\w*) = ", "".join(put_in), re.MULTILINE)
    return {
        name: value
        for name, value in namespace.items()
        if isinstance(value, plain) and (name in private or not name.startswith("_") and name not in ("In", "Out"))
    }
