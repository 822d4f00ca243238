"""Draw the pictures in nbs/images/ anew, one for each notebook that has something to show.

A figure's picture is what its notebook saves; of other notebooks it is the output of one cell, as committed or, for
notebooks committed without outputs, as run here. `make pictures` runs this; names of notebooks choose some of them.
"""

import argparse
import base64
import io
import sys
import tempfile
from pathlib import Path

import nbformat
import papermill
from PIL import Image
from tqdm import tqdm

NBS = Path(__file__).resolve().parent.parent
MOST = 900  # pixels in width
CELLS = {
    "theory/00_graph": "plot-a-digit-its-graph-and-its-motion",
    "theory/01_sweep": "plot-one-offset-of-the-sweep",
    "theory/02_metric": "plot-lengths-of-three-paths",
    "theory/02_points": "plot-fading-and-moving",
    "theory/03_penalty": "plot-cost-against-frequency",
    "theory/04_distances": "plot-a-digit-moves",
    "method/05_networks": "plot-initial-images-and-gradients",
    "method/07_evaluation": "check-scores-grow-with-damage",
    "evidence/08_perturbation": "plot-wasserstein-at-matched-euclidean-size",
    "evidence/08_attack": "plot-attacks",
    "evidence/08_probe": "check-paths",
    "evidence/09_statistics": "plot-coverage",
    "explore": "examples",
    "howto/own_gan": "critic-gradients",
    "howto/own_metric": "what-it-finds-near",
    "howto/own_data": "preparation",
}


def picture_of(notebook: nbformat.NotebookNode, cell_id: str) -> bytes:
    """The first PNG among the outputs of a cell. ValueError if there is none."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []) if cell.id == cell_id else []:
            if "image/png" in output.get("data", {}):
                return base64.b64decode(output.data["image/png"])
    raise ValueError(f"no picture below cell {cell_id!r}")


def drawn(name: str) -> bytes:
    """The picture of a notebook, named by its path below nbs/ without ending."""
    path = NBS / f"{name}.ipynb"
    with tempfile.TemporaryDirectory() as folder:
        if name.startswith("figures/"):
            saved = Path(folder) / "picture.png"
            papermill.execute_notebook(path, None, dict(save=str(saved)), progress_bar=False)
            return saved.read_bytes()
        notebook = nbformat.read(path, as_version=4)
        if not any(cell.get("outputs") for cell in notebook.cells):
            notebook = papermill.execute_notebook(path, None, progress_bar=False)
        return picture_of(notebook, CELLS[name])


def main() -> int:
    figures = sorted(f"figures/{path.stem}" for path in NBS.glob("figures/*.ipynb"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="path below nbs/ without ending; default: all")
    for name in tqdm(parser.parse_args().names or [*CELLS, *figures], unit="notebook"):
        with Image.open(io.BytesIO(drawn(name))) as picture:
            picture.thumbnail((MOST, 10 * MOST))
            picture.convert("RGB").quantize(256).save(NBS / "images" / f"{Path(name).name}.png", optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
