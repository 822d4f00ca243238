"""The program `wwgan`: one command for each thing that a user does with a run."""

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from .stopping import keep_streams

COMMANDS = {  # name: the module whose main does it, none for those below; and what it does
    "train": ("training", "train a generator, or go on with a run"),
    "sample": (None, "draw images from a run's generator"),
    "evaluate": (None, "score a run's generator: JSON with protocol, and what real images score"),
    "report": ("report", "write a run's pictures, numbers and settings as one page, report.html"),
    "study": ("evidence.study", "train what is not yet recorded of a study, and record it"),
    "bench": ("evidence.cost", "measure what the ground metric costs"),
}


def usage() -> str:
    """What `wwgan --help` prints."""
    lines = [f"  {name:<10} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(["usage: wwgan COMMAND [OPTIONS]", "", *lines, "", "wwgan COMMAND --help says more."])


def _parser(command: str) -> argparse.ArgumentParser:
    description = COMMANDS[command][1].capitalize() + "."
    parser = argparse.ArgumentParser(prog=f"wwgan {command}", allow_abbrev=False, description=description)
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="folder of a run that has a checkpoint")
    parser.add_argument("--best", action="store_true", help="its state with the best evaluation, not the newest one")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<number>")
    return parser


def sample(arguments: Sequence[str]) -> None:
    """Write generated images: as numbered PNG files into a new folder, or as one grid."""
    parser = _parser("sample")
    parser.add_argument("-n", type=int, default=64, help="number of images [64]")
    parser.add_argument("--out", type=Path, required=True, help="a new folder, or a file <name>.png for a grid")
    parser.add_argument("--seed", type=int, default=0, help="of the latent vectors [0]")
    given = parser.parse_args(arguments)
    import torch

    from .data import to_uint8
    from .runs import check_free, image_grid, load_run, save_picture
    from .step import generate

    if given.n < 1:
        raise ValueError(f"n must be at least 1, got {given.n}")
    if given.out.suffix != ".png":
        check_free(given.out)
    state = load_run(given.run_dir, given.device, given.best).state
    z = state.latent(given.n, torch.Generator(state.device).manual_seed(given.seed))
    images = torch.cat([to_uint8(generate(state.ema, part)).cpu() for part in z.split(250)])
    if given.out.suffix == ".png":
        save_picture(given.out, image_grid(images, columns=round(given.n**0.5)))
    else:
        for k, image in enumerate(images):
            save_picture(given.out / f"{k:06d}.png", image)
    print(given.out)


def evaluate(arguments: Sequence[str]) -> None:
    """Print the scores of generated images with their protocol, and what as many real images score."""
    parser = _parser("evaluate")
    parser.add_argument("--features", help="inception, efficientnet or pixels; default: as the run's settings say")
    parser.add_argument("--samples", type=int, help="number of generated images; default: as the run's settings say")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="real images; default: those of the training")
    given = parser.parse_args(arguments)
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
    scores = make_evaluator(config, images)(draw_many(run.state, config.eval_samples))
    print(json.dumps(dict(run=str(given.run_dir), step=run.state.step) | scores, indent=1))


def _guarded(command: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> int:
    """The exit code: 0, 1 for what failed, 2 for names and values that are wrong, 130 when interrupted."""
    try:
        command(arguments)
        return 0
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def main(argv: Iterable[str] | None = None) -> int:
    """Run a command; returns the exit code. A command's modules are imported when it is asked for."""
    keep_streams()
    name, *arguments = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name not in COMMANDS:
        from .files import unknown_name

        print(f"error: {unknown_name('command', name, COMMANDS)}", file=sys.stderr)
        return 2
    module, _ = COMMANDS[name]
    if module is None:
        return _guarded(dict(sample=sample, evaluate=evaluate)[name], arguments)
    code: int = importlib.import_module(f"wwgan.{module}").main(arguments)
    return code
