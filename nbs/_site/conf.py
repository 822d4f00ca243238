"""The site of the notebooks: `make site` builds it, and it needs no network, neither to build nor to read."""

import importlib
import json
import os
import pkgutil
import re
import sys
from configparser import ConfigParser
from dataclasses import fields, is_dataclass
from importlib.util import find_spec
from inspect import getsource, isroutine, signature
from pathlib import Path
from textwrap import indent

from sphinx.util.matching import patfilter

NOTEBOOKS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(NOTEBOOKS.parent))
import wwgan  # noqa: E402

# What a pattern matches is listed without being named; it may match nothing.
SIDEBAR = {
    "Guide": ["self", "train", "explore*"],
    "How-to": ["howto/own_gan", "howto/own_metric", "howto/*"],
    "Theory": ["theory/*"],
    "Method": ["method/*"],
    "Evidence": ["evidence/*"],
    "Figures": ["figures/idea", "figures/*"],
    "API reference": ["api/*"],
}

config = ConfigParser(delimiters=["="])
config.read(NOTEBOOKS.parent / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]
project, author, release = settings["lib_name"], settings["author"], settings["version"]
project_copyright = settings["copyright"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
exclude_patterns = ["_site", "**.ipynb_checkpoints"]

html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False
html_show_search_summary = False  # would be fetched, which browsers refuse for files
# One file holds MathJax with all its extensions, and draws in SVG: there are no fonts to load.
_mathjax = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax" / "tex-svg-full.js"
mathjax_path = _mathjax.name
html_static_path = ["static", str(_mathjax)]
html_css_files = ["site.css"]

# Notebooks without outputs in git are run while the site is built, as in the tests: training takes its smallest size.
os.environ["IN_TEST"] = "1"
nb_execution_mode = "force"
nb_execution_excludepatterns = ["*/[0-9][0-9]_*"]
nb_execution_show_tb = True
nb_execution_timeout = 600
nb_output_stderr = "remove"  # progress bars
nb_render_markdown_format = "myst"  # tables and links of outputs as those of cells
nb_ipywidgets_js = {}  # would come over a network
myst_enable_extensions = ["amsmath", "dollarmath", "html_image"]
myst_dmath_double_inline = True  # $$ within a paragraph
smartquotes = False
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100


def api_entry(module, name):
    """Directives that document a public name: from its docstring, or as it is defined if it is a constant."""
    value = getattr(module, name)
    if isinstance(value, type):
        return [f".. autoclass:: {name}", "   :members:", ""]
    if isroutine(value):
        return [f".. autofunction:: {name}", ""]
    definition = re.search(rf"^{name}\b.*?(?=\n[^\s)\]}}])", getsource(module), re.MULTILINE | re.DOTALL)[0]
    return [f".. py:data:: {name}", "", "   .. code-block:: python", "", indent(definition.rstrip(), 6 * " "), ""]


def public_names(module):
    """What a module offers: `__all__` where a notebook wrote it, else its own functions, classes and constants."""
    own = (name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__)
    return getattr(module, "__all__", None) or [name for name in own if not name.startswith("_")]


def write_api_pages(app):
    """One page for each module, in a folder that git ignores."""
    folder = Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    derivations = {
        path.stem[3:]: path.relative_to(folder.parent) for path in folder.parent.glob("*/[0-9][0-9]_*.ipynb")
    }
    modules = [module.name for module in pkgutil.walk_packages(wwgan.__path__, "wwgan.") if not module.ispkg]
    names = [name for name in modules if not name.rpartition(".")[2].startswith("_")]
    for path in folder.glob("*.rst"):
        if f"wwgan.{path.stem}" not in names:
            path.unlink()
    for name in names:
        module, path = importlib.import_module(name), folder / f"{name.removeprefix('wwgan.')}.rst"
        lines = [name, "=" * len(name), "", f".. automodule:: {name}", ""]
        if derivation := derivations.get(name.rpartition(".")[2]):
            lines += [f"Derived in :doc:`/{derivation.with_suffix('')}`.", ""]
        text = "\n".join(lines + [line for public in public_names(module) for line in api_entry(module, public)])
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def sidebar(documents):
    """The table of contents, as Markdown."""
    lines = []
    for caption, patterns in SIDEBAR.items():
        found = [name for pattern in patterns for name in sorted(patfilter({"self", *documents}, pattern))]
        names = [*dict.fromkeys(found)]  # once, where they are named first
        if names:
            lines += ["```{toctree}", ":hidden:", f":caption: {caption}", "", *names, "```", ""]
    return "\n".join(lines)


def prepare_notebook(app, docname, source):
    """Takes nbdev's directives out of the cells, marks what they export, and gives the root page the sidebar.

    Links to modules lead to their reference; those to Markdown files that are no pages, such as the README, become
    downloads.
    """
    if Path(app.env.doc2path(docname)).suffix != ".ipynb":
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        lines = "".join(cell["source"]).split("\n")
        if "#| export" in lines:
            cell["metadata"].setdefault("tags", []).append("exported")
        cell["source"] = "\n".join(line for line in lines if not line.startswith("#|"))
        if cell["cell_type"] == "markdown":
            text = re.sub(r"\]\((?=\.\./[^)]+\.md\))", "](path:", cell["source"])
            reference = lambda link: f"](/api/{link[1].replace('/', '.')}.rst)"
            cell["source"] = re.sub(r"\]\((?:\.\./)+wwgan/([\w/]+)\.py\)", reference, text)
    notebook["cells"] = [cell for cell in notebook["cells"] if cell["source"]]
    if docname == app.config.root_doc:
        contents = sidebar(app.env.found_docs)
        notebook["cells"].append(dict(cell_type="markdown", id="sidebar", metadata={}, source=contents))
    source[0] = json.dumps(notebook)


def restructured(prose):
    """Plain prose, with code between single backticks, as reStructuredText."""
    parts = re.split(r"`([^`]+)`", prose)  # every second one is code
    parts[::2] = [re.sub(r"([\\*_|`<>])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [f"``{part}``" for part in parts[1::2]]
    return "\\ ".join(parts)


def paragraphs(text, names):
    """A docstring's paragraphs; what it says of an argument, `name: ...`, is an item of a list."""
    name = "|".join(map(re.escape, names)) or "(?!)"  # without names: matches nothing
    opening = rf"(?:{name})(?:, (?:{name}))*: "
    for block in text.split("\n\n"):
        for part in re.split(rf"(?:^|(?<=\. ))(?={opening}|Raises |Returns )", " ".join(block.split())):
            item = re.match(opening, part)
            yield f"- ``{item[0][:-2]}``: {restructured(part[item.end() :])}" if item else restructured(part)
            yield ""


def write_docstring(app, what, name, obj, options, lines):
    """Docstrings as reStructuredText, a dataclass's with what each of its settings means."""
    names = [*signature(obj).parameters] if isinstance(obj, type) or isroutine(obj) else []
    for field in fields(obj) if is_dataclass(obj) else []:
        if "help" in field.metadata:
            lines += ["", f"{field.name}: {field.metadata['help']}"]
    lines[:] = paragraphs("\n".join(lines), names)


def skip_member(app, what, name, obj, skip, options):
    """Fields of named tuples stand in the signature."""
    return True if str(obj.__doc__).startswith("Alias for field number") else None


def setup(app):
    app.connect("builder-inited", write_api_pages)
    app.connect("source-read", prepare_notebook)
    app.connect("autodoc-process-docstring", write_docstring)
    app.connect("autodoc-skip-member", skip_member)
