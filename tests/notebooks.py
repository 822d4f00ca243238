"""The notebooks, and how tests run them: with the parameters of papermill, but in this process, which is quick."""

import json
from pathlib import Path
from typing import NamedTuple

import matplotlib
from conftest import ROOT
from execnb.shell import CaptureShell
from IPython.core.interactiveshell import InteractiveShell
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

NBS = ROOT / "nbs"
NOTEBOOKS = sorted(path for path in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
CHAPTERS = [path for path in NOTEBOOKS if path.name[:2].isdigit()]  # executed by nbdev_test
PARAMETERISED = [path for path in NOTEBOOKS if path not in CHAPTERS and path.name != "index.ipynb"]  # by pytest
by_name = dict(ids=lambda path: str(path.relative_to(NBS)))


def cells(path: Path, kind: str | None = None) -> list[dict]:
    """A notebook's cells, or those of one kind."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if kind in (None, cell["cell_type"])]


def source(cell: dict) -> str:
    return "".join(cell["source"])


class Executed(NamedTuple):
    """A notebook after its cells ran: the text of all outputs, how many of them are pictures, and its variables."""

    text: str
    pictures: int
    names: dict


def execute(name: str, /, **parameters) -> Executed:
    """Run nbs/<name>.ipynb with parameters, as `papermill -p` does; what a cell raises is raised here."""
    given = {key: str(value) if isinstance(value, Path) else value for key, value in parameters.items()}
    notebook = parameterize_notebook(load_notebook_node(str(NBS / f"{name}.ipynb")), given)
    shell, outputs = CaptureShell(mpl_format="png"), []
    try:
        for cell in notebook.cells:
            if cell.cell_type == "code":
                outputs += shell.run(cell.source)
                if shell.exc:
                    raise shell.exc
    finally:
        shell.restore_sys_module_state()
        InteractiveShell._instance = None
        matplotlib.pyplot.close("all")
        matplotlib.use("Agg")
    shown = [output.get("data", {"text/plain": output.get("text", "")}) for output in outputs]
    text = ["".join(value) for data in shown for kind, value in data.items() if kind.startswith("text/")]
    return Executed("\n".join(text), sum("image/png" in data for data in shown), shell.user_ns)
