"""The program `wwgan`: one command for each thing that a user does with a run."""

import argparse
import importlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .stopping import keep_streams

if TYPE_CHECKING:
    from .runs import Run

COMMANDS = {
    "train": "train a generator, or go on with a run",
    "sample": "draw images from a run's generator, or strips between latent vectors",
    "evaluate": "score a run's generator: JSON with protocol, and what real images score",
    "report": "write a run's pictures, numbers and settings as one page, report.html",
    "export": "write a run's generator for others: safetensors weights with a model card",
    "study": "train what is not yet recorded of a study, and record it",
    "bench": "measure what the ground metric costs",
}
_PROGRAMS = dict(train="training", study="evidence.study", bench="evidence.cost")  # modules with a main of their own
_STATE = {
    "--best": dict(action="store_true", help="the state with the best evaluation, not the newest one"),
    "--device": dict(default="auto", help="auto, cpu, cuda or cuda:<number>"),
}
_PICTURES = {".bmp", ".gif", ".jpeg", ".jpg", ".pdf", ".svg", ".tif", ".tiff", ".webp"}
_OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "sample": _STATE
    | {
        "-n": dict(type=int, help="number of images [64], or of strips [8]"),
        "--out": dict(type=Path, required=True, help="a new folder for numbered pictures, or <name>.png for a grid"),
        "--seed": dict(type=int, default=0, help="of the latent vectors [0]"),
        "--interpolate": dict(
            type=int, metavar="K", help="strips of K images between latent vectors, one picture each"
        ),
    },
    "evaluate": _STATE
    | {
        "--features": dict(help="inception, efficientnet or pixels; default: as the run's settings say"),
        "--samples": dict(type=int, help="number of generated images; default: as the run's settings say"),
        "--images": dict(type=Path, metavar="FOLDER", help="real images; default: those of the training"),
    },
    "report": {},
    "export": _STATE | {"folder": dict(type=Path, metavar="FOLDER", help="a new folder")},
}


def _read(command: str, arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"wwgan {command}", allow_abbrev=False, description=COMMANDS[command])
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="folder of a run")
    for name, keywords in _OPTIONS[command].items():
        parser.add_argument(name, **keywords)
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        from .files import unknown_name

        raise unknown_name("option", unknown[0].lstrip("-").partition("=")[0], _OPTIONS[command])
    return given


def sample(given: argparse.Namespace) -> Path:
    """Write generated images or strips of them: as numbered PNG files into a new folder, or as one grid."""
    import torch

    from .data import to_uint8
    from .evidence.probe import great_circle
    from .runs import check_free, image_grid, load_run, save_picture
    from .step import generate

    for name, least in dict(n=1, interpolate=2).items():
        if (value := getattr(given, name)) is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    suffix, n, strip = given.out.suffix.lower(), given.n or (8 if given.interpolate else 64), given.interpolate
    if suffix in _PICTURES:
        raise ValueError(f"a grid is written as .png, not {suffix}; for numbered files name a folder")
    check_free(given.out, hint="name a new folder, or <name>.png for a grid" if suffix != ".png" else "name a new file")
    state = load_run(given.run_dir, given.device, given.best).state
    random = torch.Generator(state.device).manual_seed(given.seed)
    z = state.latent(n, random)
    if strip:
        z = great_circle(z, state.latent(n, random), strip - 1)
    images = torch.cat([to_uint8(generate(state.ema, part)).cpu() for part in z.flatten(0, -2).split(250)])
    if suffix == ".png":
        save_picture(given.out, image_grid(images, strip or round(n**0.5)))
        return given.out
    for k, part in enumerate(images.split(strip or 1)):
        save_picture(given.out / f"{k:06d}.png", image_grid(part, strip) if strip else part[0])
    return given.out


def evaluate(given: argparse.Namespace) -> str:
    """The scores of generated images with their protocol, and what as many real images score."""
    from .data import load_images
    from .evaluation import check_features
    from .runs import load_run
    from .step import draw_many
    from .training import make_evaluator

    run = load_run(given.run_dir, given.device, given.best)
    dataset = f"folder:{given.images}" if given.images else None
    changes = dict(eval_features=given.features, eval_samples=given.samples, dataset=dataset)
    config = replace(run.config, **{name: value for name, value in changes.items() if value is not None})
    check_features(config.eval_features, config.eval_weights)
    images = load_images(config.dataset, config.data_dir, config.size).to(run.state.device)
    if len(images) < 100:
        print(f"warning: only {len(images)} real images: the scores are mostly noise", file=sys.stderr)
    scores = make_evaluator(config, images)(draw_many(run.state, config.eval_samples))
    return json.dumps(dict(run=str(given.run_dir), step=run.state.step) | scores, indent=1)


def report(given: argparse.Namespace) -> Path:
    """Write report.html into the folder of a run, finished or not."""
    from .report import write_report

    return write_report(given.run_dir)


_CARD = """---
library_name: wwgan
pipeline_tag: unconditional-image-generation
---
# {dataset}, {penalty}

A {architecture} generator of images ({channels}, {size}, {size}) in [-1, 1], trained for {step:,} updates on {dataset}
against a critic whose gradient was penalised in {ground}. It needs `pip install torch safetensors`
and wwgan {version} without extras: `pip install .` in a copy of its repository.

```python
import torch
from safetensors.torch import load_file
from wwgan.networks import make_networks

generator, _ = make_networks("{architecture}", {size}, {channels}, latent_dim={latent_dim}, width={width})
generator.load_state_dict(load_file("generator.safetensors"))
with torch.no_grad():
    images = generator.eval()(torch.randn(64, {latent_dim}))
```

## Settings

```json
{settings}
```
"""


def model_card(run: "Run") -> str:
    """What others have to know of a run's generator: how to load it, and its settings, as Markdown."""
    from .runs import LOCAL

    config, state = asdict(run.config), run.state
    about = dict(step=state.step, channels=state.channels, ground=run.config.ground(state.step), version=__version__)
    settings = json.dumps({name: value for name, value in config.items() if name not in LOCAL}, indent=1)
    return _CARD.format(**config, **about, settings=settings)


def export(given: argparse.Namespace) -> Path:
    """Write generator.safetensors, with the weights that samples come from, and the model card README.md."""
    from safetensors.torch import save

    from .files import write_atomically
    from .runs import check_free, load_run

    check_free(given.folder, hint="name a new folder")
    run = load_run(given.run_dir, given.device, given.best)
    weights = save({name: tensor.cpu().contiguous() for name, tensor in run.generator.state_dict().items()})
    card = model_card(run).encode()
    given.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(given.folder / "generator.safetensors", lambda file: file.write(weights))
    write_atomically(given.folder / "README.md", lambda file: file.write(card))
    return given.folder


def main(argv: Iterable[str] | None = None) -> int:
    """Run a command, whose modules are imported only then; the exit code: 0, 1 for what failed, 2 for what is wrong."""
    keep_streams()
    name, *arguments = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if name in ("-h", "--help", "help"):
        lines = [f"  {command:<10} {what}" for command, what in COMMANDS.items()]
        print("usage: wwgan COMMAND [OPTIONS]", "", *lines, "", "wwgan COMMAND --help says more.", sep="\n")
        return 0
    if name in _PROGRAMS:
        code: int = importlib.import_module(f"wwgan.{_PROGRAMS[name]}").main(arguments)
        return code
    try:
        if name not in COMMANDS:
            from .files import unknown_name

            raise unknown_name("command", name, COMMANDS)
        print(dict(sample=sample, evaluate=evaluate, report=report, export=export)[name](_read(name, arguments)))
        return 0
    except ModuleNotFoundError as error:
        print(f"error: wwgan {name} needs the package {error.name}: pip install 'wwgan[all]'", file=sys.stderr)
        return 1
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, (ValueError, FileNotFoundError)) else 1
    except KeyboardInterrupt:
        return 130
