"""Where the pictures of a data set are: found on disk or downloaded, split, with their classes; nothing is decoded."""

import gzip
import os
import stat
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .files import reach, unknown_name


class Dataset(NamedTuple):
    """What is known about a data set before it is looked for."""

    size: int  # default height and width in pixels
    # torchvision's class, which downloads it and, unless it comes as image files, reads it: into .data with .labels or
    # .targets, for train=True or False or for split="train" or "test"
    torchvision: str = ""
    server: str = ""  # from where
    places: tuple[str, ...] = ()  # what is looked for in <data_dir>/<name> and in data_dir; the last is torchvision's
    padded_from: int | None = None  # pixels of its images, to which a black frame is added


_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
SYSTEM = "/usr/share/datasets"  # where Debian's packages dataset-* put those of MNIST's format
DATASETS = {
    "digits": Dataset(16),  # comes with scikit-learn
    "mnist": Dataset(32, "MNIST", "https://ossci-datasets.s3.amazonaws.com", ("MNIST/raw",), 28),
    "fashion_mnist": Dataset(32, "FashionMNIST", _FASHION, ("FashionMNIST/raw",), 28),
    "kmnist": Dataset(32, "KMNIST", "http://codh.rois.ac.jp", ("KMNIST/raw",), 28),
    "svhn": Dataset(32, "SVHN", "http://ufldl.stanford.edu", ("{split}_32x32.mat",)),
    "stl10": Dataset(64, "STL10", "http://ai.stanford.edu", ("stl10_binary",)),
    "cifar10": Dataset(32, "CIFAR10", "https://www.cs.toronto.edu", ("{split}/<class>/*.jpg", "cifar-10-batches-py")),
    "celeba": Dataset(64, "CelebA", "https://drive.google.com", ("img_align_celeba/*.jpg",)),
    "folder": Dataset(64),  # any folder of images, given by its path
}
SPLITS = ("train", "test")
IMAGE_FILES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

Pictures = Sequence[str] | np.ndarray  # image paths, or uint8 (N, H, W) or (N, H, W, 3)
Labels = Sequence[int] | np.ndarray | None  # class numbers; None: without classes


class Source(NamedTuple):
    """One split of a data set, found but not yet read."""

    files: tuple[tuple[str, int, int, int], ...]  # path, bytes, mtime and ctime in ns of every file it comes from
    read: Callable[[], tuple[Pictures, Labels]]
    enlarge: bool = False  # whether pictures smaller than the size asked for may be enlarged


def parse(dataset: str) -> tuple[str, str]:
    """'cifar10' -> ('cifar10', ''); 'folder:some/path' -> ('folder', 'some/path'). ValueError for anything else."""
    kind, colon, path = str(dataset).partition(":")
    if kind not in DATASETS or (kind == "folder") != bool(colon and path):
        raise unknown_name("dataset", dataset, [k if k != "folder" else "folder:<path>" for k in DATASETS])
    return kind, path


def find(dataset: str, data_dir: Path, split: str) -> Source:
    """One split of a data set, downloaded into `data_dir` if it is nowhere.

    ValueError for a name or a split that is not known, FileNotFoundError for what is neither on disk nor downloaded.
    """
    kind, path = parse(dataset)
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    if kind == "folder":
        return _find_folder(Path(path).expanduser().absolute(), split)
    if kind == "digits":
        return Source((), partial(_read_digits, split), enlarge=True)
    return _locate(kind, data_dir, split) or _downloaded(kind, data_dir, split)


def _locate(name: str, data_dir: Path, split: str) -> Source | None:
    """A named data set in the first of its places that is there: image files, then torchvision's, then Debian's."""
    about, roots = DATASETS[name], [root for root in (data_dir / name, data_dir) if root.is_dir()]
    for root in roots:
        if name == "celeba" and (source := _find_celeba(root, split)):
            return source
        if name == "cifar10" and any(entry.is_dir() for s in _splits(root) for entry in (root / s).iterdir()):
            return _split_folder(root, split)
    for root in roots if name != "celeba" else ():
        if (place := root / about.places[-1].format(split=split)).exists():
            return _arrays(place, about, partial(_read_torchvision, name, root, split))
    if about.padded_from and (place := Path(SYSTEM, name.replace("_", "-"))).is_dir():
        return _arrays(place, about, partial(_read_debian, place, split))
    return None


# ---- folders of images


def _walk(folder: Path) -> list[str]:
    """The image files in `folder` and below, sorted. OSError for an unreadable folder.

    Follows links, enters each folder once, skips hidden names and the samples of a run that lies among the pictures.
    """

    def refuse(error: OSError) -> None:
        raise OSError(f"{error.filename} cannot be read ({error.strerror}): make it readable or remove it") from error

    found, seen = [], set()
    for where, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(where)) in seen:
            folders.clear()
            continue
        seen.add(real)
        pictures = (n for n in names if n.lower().endswith(IMAGE_FILES) and not n.startswith("."))
        found += [os.path.join(where, name) for name in pictures]
        of_a_run = "config.json" in names and "checkpoints" in folders
        folders[:] = sorted(f for f in folders if not f.startswith(".") and not (of_a_run and f == "samples"))
    return sorted(found)


def _stamps(paths: Sequence[str]) -> tuple[tuple[str, int, int, int], ...]:
    """Path, size and times of each file. ValueError for a pipe or a device, which reading might wait for forever."""
    found = [(path, os.stat(path)) for path in paths]
    for path, status in found:
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is a pipe or a device, expected a file: remove it")
    return tuple((path, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path, s in found)


def _image_files(folder: Path, paths: list[str]) -> Source:
    """The source made of these image files in `folder`. FileNotFoundError if there are none."""
    if not paths:
        raise FileNotFoundError(f"no images in {folder} or below: expected files ending in {', '.join(IMAGE_FILES)}")
    return Source(_stamps(paths), lambda: (paths, _classes(folder, paths)))


def _classes(folder: Path, paths: list[str]) -> list[int] | None:
    """The number of each file's class, the folder in `folder` that it lies in; None if any lies in none."""
    parts = [os.path.relpath(path, folder).split(os.sep) for path in paths]
    numbers = {name: k for k, name in enumerate(sorted({part[0] for part in parts}))}
    return [numbers[part[0]] for part in parts] if min(map(len, parts)) > 1 else None


def _splits(root: Path) -> list[str]:
    return [split for split in SPLITS if (root / split).is_dir()]


def _split_folder(root: Path, split: str) -> Source:
    """`root`/train and `root`/test are the splits if there is either, else all images are for training."""
    if split not in (_splits(root) or ["train"]):
        raise FileNotFoundError(
            f"no {split} images: {root} has no folder {split}/; without train/ and test/ all images are for training"
        )
    folder = root / split if _splits(root) else root
    return _image_files(folder, _walk(folder))


def _find_folder(root: Path, split: str) -> Source:
    if not root.is_dir():
        raise FileNotFoundError(
            f"no folder {root}: folder:<path> expects a folder of images, relative to the working directory"
        )
    others = (f for f in root.iterdir() if f.is_dir() and f.name not in (*SPLITS, "val"))
    if _splits(root) and (beside := sorted(f.name for f in others if _walk(f))):
        raise ValueError(
            f"{root} has images in {', '.join(beside[:3])} beside train/ or test/: is this a split or a class? "
            "Use a folder with nothing but train/ and test/, or rename the class"
        )
    return _split_folder(root, split)


def _find_celeba(root: Path, split: str) -> Source | None:
    """The aligned images in `root`/img_align_celeba; CelebA's list says which are of the split."""
    folder, listed = root / "img_align_celeba", root / "list_eval_partition.txt"
    if not folder.is_dir():
        return None
    paths = _walk(folder)
    if listed.is_file():
        lines = [line.split() for line in listed.read_text(errors="replace").splitlines()]
        names = {line[0] for line in lines if line[1:] == ["0" if split == "train" else "2"]}
        paths = [path for path in paths if os.path.basename(path) in names]
        if not paths:
            raise ValueError(f"{listed} names no {split} image of {folder}, expected lines like '000001.jpg 0'")
    elif split != "train":
        raise FileNotFoundError(f"no {split} images without {listed}, which says which they are: all are for training")
    return _image_files(folder, paths)


# ---- data sets that are arrays


def _arrays(place: Path, about: Dataset, read: Callable[[], tuple[np.ndarray, Labels]]) -> Source:
    """The source made of what lies in `place`, a folder or a file."""

    def padded() -> tuple[np.ndarray, Labels]:
        try:
            pictures, labels = read()
        except Exception as e:
            raise ValueError(
                f"{place} is incomplete or damaged ({e}): remove it to have it downloaded anew, or unpack it again"
            ) from e
        frame = (about.size - about.padded_from) // 2 if about.padded_from else 0
        return np.pad(pictures, ((0, 0), (frame, frame), (frame, frame))) if frame else pictures, labels

    files = sorted(path for path in place.iterdir() if not path.is_dir()) if place.is_dir() else [place]
    return Source(_stamps([*map(str, files)]), padded)


def _torchvision(name: str, root: Path, split: str, download: bool = False) -> Any:
    """A split as torchvision's own class, which checks and reads the files in `root`, or first downloads them there."""
    import torchvision

    kind = getattr(torchvision.datasets, DATASETS[name].torchvision)
    which = dict(split=split) if "split" in signature(kind).parameters else dict(train=split == "train")
    return kind(root, **which, download=download)


def _read_torchvision(name: str, root: Path, split: str) -> tuple[np.ndarray, Labels]:
    found = _torchvision(name, root, split)
    pictures = np.asarray(found.data)
    if pictures.shape[1] == 3:  # channels first
        pictures = pictures.transpose(0, 2, 3, 1)
    return pictures, np.asarray(found.labels if hasattr(found, "labels") else found.targets)


def _read_debian(folder: Path, split: str) -> tuple[np.ndarray, Labels]:
    """MNIST's own format, gzipped: bytes after a header of 16 bytes for images, of 8 for labels."""
    stem = "train" if split == "train" else "t10k"
    images, labels = (
        np.frombuffer(gzip.decompress((folder / f"{stem}-{kind}-ubyte.gz").read_bytes()), np.uint8, offset=header)
        for kind, header in (("images-idx3", 16), ("labels-idx1", 8))
    )
    return images.reshape(len(labels), 28, 28), labels


def _read_digits(split: str) -> tuple[np.ndarray, Labels]:
    from sklearn.datasets import load_digits

    digits, part = load_digits(), slice(1500) if split == "train" else slice(1500, None)
    return np.rint(digits.images[part] * (255 / 16)).astype(np.uint8), digits.target[part]


def _downloaded(name: str, data_dir: Path, split: str) -> Source:
    """What was downloaded into <data_dir>/<name>, by way of a temporary folder: a failure leaves nothing behind."""
    about, target = DATASETS[name], data_dir / name
    home = next(folder for folder in target.parents if folder.exists())  # nothing else is made before there are images
    try:
        reach(about.server)
        with tempfile.TemporaryDirectory(".part", f".{name}.", home) as temporary:
            _torchvision(name, Path(temporary), split, download=True)
            made = Path(temporary, "celeba" if name == "celeba" else "")
            target.mkdir(parents=True, exist_ok=True)
            for item in sorted(made.iterdir(), key=Path.is_dir):  # files first: a folder of images makes it complete
                if item.suffix not in (".gz", ".zip") and not (target / item.name).exists():
                    os.replace(item, target / item.name)
        if source := _locate(name, data_dir, split):
            return source
        raise OSError("it brought no images")
    except Exception as e:
        places = [root / place.format(split=split) for place in about.places for root in (target, data_dir)]
        places += [Path(SYSTEM, name.replace("_", "-"))] if about.padded_from else []
        raise FileNotFoundError(
            f"{name} is not on disk and cannot be downloaded. Looked for: {'; '.join(map(str, places))}. "
            f"Download from {about.server} failed: {e}. Put it into one of these places by hand, "
            "or pass the data_dir that holds it."
        ) from None
