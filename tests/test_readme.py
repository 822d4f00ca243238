"""README's example runs as printed, and what it points to is there."""

import re

import torch
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_examples_run_as_printed():
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        torch.manual_seed(0)
        namespace = {}
        exec(block, namespace)
        assert namespace["penalty"].norm.shape == (8,) and namespace["loss"].isfinite()


def test_links_and_pictures_exist():
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert targets and not [target for target in targets if not (ROOT / target).exists()]


def test_reading_order_names_every_notebook_of_the_package():
    notebooks = {path.name for path in (ROOT / "nbs").glob("*.ipynb")}
    assert notebooks == set(re.findall(r"\(nbs/([^/)]+\.ipynb)\)", README))
