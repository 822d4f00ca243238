"""The site: every notebook and every public name has its place, no link is broken, and nothing comes over a network."""

import inspect
import re
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from types import FunctionType
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup
from conftest import ROOT
from notebooks import NBS, NOTEBOOKS

from wwgan.settings import TrainConfig

PATHS = [path.relative_to(ROOT / "wwgan").with_suffix("") for path in (ROOT / "wwgan").rglob("[!_]*.py")]
MODULES = sorted(".".join(path.parts) for path in PATHS)


def build(source: Path, folder: Path, *flags: str) -> subprocess.CompletedProcess:
    """`make site` without the environment; warnings are errors."""
    program = Path(sys.executable).parent / "sphinx-build"
    command = [program, "-W", "--keep-going", "-q", "-c", NBS / "_site", "-d", folder / "doctrees"]
    return subprocess.run([*command, *flags, source, folder / "html"], capture_output=True, text=True)


class Page:
    """A page's ids, the targets of its links, what it loads, its text, and its prose, neither code nor mathematics."""

    def __init__(self, path: Path):
        page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        self.ids = {tag["id"] for tag in page.select("[id]")}
        self.links = [tag["href"] for tag in page.select("a[href]")]
        attributes = ("src", "srcset", "href", "data", "poster")
        self.loaded = [tag[name] for name in attributes for tag in page.select(f":not(a)[{name}]")]
        self.text = " ".join(page.get_text().split())
        for apart in page.select("pre, code, script, .math"):
            apart.decompose()
        self.prose = page.get_text()


@pytest.fixture(scope="module")
def site(once) -> Path:
    """The folder of the site's pages, of the notebooks as they are in git."""

    def make(folder: Path) -> None:
        result = build(NBS, folder, "-D", "nb_execution_mode=off")
        assert result.returncode == 0, result.stdout + result.stderr

    return once("site", make) / "html"


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def test_every_notebook_has_its_page_and_the_sidebar_leads_to_every_page(site, pages):
    assert {site / path.relative_to(NBS).with_suffix(".html") for path in NOTEBOOKS} <= pages.keys()
    linked = {(site / link).resolve() for link in pages[site / "search.html"].links}  # it has no others
    apart = {"genindex.html", "py-modindex.html", "search.html"}
    assert {path for path in pages if path.name not in apart} <= linked


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_in_the_reference(site, pages, name):
    module, page = import_module(f"wwgan.{name}"), pages[site / "api" / f"{name}.html"]
    own = [public for public, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    offered = getattr(module, "__all__", None) or [public for public in own if not public.startswith("_")]
    assert {f"{module.__name__}.{public}" for public in offered} <= page.ids
    values = (getattr(module, public) for public in offered)
    for value in (value for value in values if isinstance(value, (type, FunctionType))):
        first = (inspect.getdoc(value) or "").split("\n")[0].replace("`", "")
        assert first and " ".join(first.split()) in page.text, value


def test_reference_shows_types_and_settings(site, pages):
    assert "train(config: TrainConfig, progress: bool = True) → Run" in pages[site / "api" / "training.html"].text
    text = pages[site / "api" / "settings.html"].text
    assert not [field.name for field in fields(TrainConfig) if f"{field.name}: {field.metadata['help']}" not in text]


def test_no_link_is_broken_no_equation_left_and_nothing_loaded_over_a_network(site, pages):
    broken, unread = [], []
    for path, page in pages.items():
        for link in {*page.links, *page.loaded}:
            url = urlsplit(link)
            if url.scheme or url.netloc or link == "#":
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            if not target.is_file() or (url.fragment and target in pages and url.fragment not in pages[target].ids):
                broken.append((path.name, link))
        unread += re.findall(r".*(?:\$|\\[a-z]+).*", page.prose)
    assert not broken and sum(len(page.links) for page in pages.values()) > 1000
    assert not unread and sum(len(page.prose) for page in pages.values()) > 100_000
    loaded = {link for page in pages.values() for link in page.loaded}
    assert not {link for link in loaded if urlsplit(link).netloc} and any("tex-svg" in link for link in loaded)
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert styles and not [found for style in styles for found in re.findall(r"(?:url\(|@import)[^;)]*//[^;)]*", style)]


@pytest.mark.parametrize("name", ["index", "theory/03_penalty", "search"])
def test_page_in_a_browser_without_a_network(site, browser, name):
    page, requests, complaints = browser.new_page(), [], []
    page.route(re.compile("^(?!file:)"), lambda route: route.abort())
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto((site / f"{name}.html").as_uri() + ("?q=laplacian" if name == "search" else ""))
    equations = page.locator(".math").count()
    page.wait_for_function("n => document.querySelectorAll('mjx-container').length >= n", arg=equations)
    sizes = page.locator("mjx-container > svg").evaluate_all("all => all.map(e => e.getBoundingClientRect().height)")
    assert len(sizes) >= equations and all(height > 2 for height in sizes)
    assert page.locator("[data-mjx-error], mjx-merror").count() == 0
    assert (equations > 20) == name.startswith("theory/")
    if name == "search":
        assert page.locator("#search-results li").first.inner_text()
    assert requests and not [url for url in requests if not url.startswith(("file:", "data:", "blob:"))]
    assert not complaints
    page.close()
