"""Pictures for tests of data sets, drawn here."""

from pathlib import Path

import numpy as np
from PIL import Image

from wwgan import sources
from wwgan.data import load_images

rng = np.random.default_rng(0)


def noise(*shape, below=256):
    return rng.integers(0, below, shape, dtype=np.uint8)


def picture(path, size=(32, 32), mode="RGB", color=None):
    """Save one picture, of noise or of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(noise(*size[::-1], 3)) if color is None else Image.new(mode, size, color)
    image.save(path)
    return np.asarray(image)


def class_folders(root, splits=("train", "test"), n=3):
    return {
        s: np.stack([picture(root / s / c / f"{i}.png") for c in ("cat", "ship") for i in range(n)]) for s in splits
    }


def everything(root):
    return sorted(str(p.relative_to(root)) for p in Path(root).rglob("*"))


def alone(monkeypatch, tmp_path):
    """Keep a test from the user's cache, the system's data sets and the network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    debian = sources.DATASETS["fashion_mnist"]._replace(debian=str(tmp_path / "system"))
    monkeypatch.setitem(sources.DATASETS, "fashion_mnist", debian)

    def no_network(url):
        raise OSError("no network in tests")

    monkeypatch.setattr(sources, "reach", no_network)


def empty_folder(tmp_path):
    """A folder for pictures, and a function that loads it."""
    (tmp_path / "in").mkdir()
    load = lambda size=16, split="train": load_images(f"folder:{tmp_path / 'in'}", tmp_path / "data", size, split)
    return tmp_path / "in", load
