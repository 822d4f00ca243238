"""Image datasets as one uint8 array, prepared once, memory-mapped, and sampled on the device that trains."""

import contextlib
import gzip
import hashlib
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from .files import impatient, project_root, reach, remove_stale, temporary_beside, unknown_name, writable

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 images in [0, 255], any shape -> float32 in [-1, 1]. ValueError for any other dtype."""
    if images.dtype != torch.uint8:
        raise ValueError(f"to_float expects uint8 images, got {images.dtype}")
    return images.to(torch.float32).div_(127.5).sub_(1)


def to_uint8(x: torch.Tensor) -> torch.Tensor:
    """Floats in [-1, 1], any shape -> uint8 in [0, 255]: the inverse of `to_float`, rounded, clamped to the range."""
    return x.detach().float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def sample_images(images: torch.Tensor, n: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """`n` images drawn uniformly with replacement: uint8 (N, C, H, W) -> float32 (n, C, H, W) in [-1, 1].

    Runs on `images.device` without synchronising with the host; `generator`, if given, must live there too.
    ValueError if the images are not uint8.
    """
    index = torch.randint(len(images), (n,), generator=generator, device=images.device)
    return to_float(images[index])


def pick_images(images: torch.Tensor, n: int, seed: int = 0) -> torch.Tensor:
    """n different images (n, C, H, W) of (N, C, H, W), the same ones for the same seed; all of them if N is less."""
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:n]]


class Dataset(NamedTuple):
    """What is known about a dataset before it is looked for."""

    size: int  # default height and width in pixels
    layout: str  # what to put where, relative to the data folder


DATASETS = {
    "digits": Dataset(16, "nothing: the images come with scikit-learn"),
    "cifar10": Dataset(
        32,
        "an image folder cifar10/train/<class>/*.jpg (png) and cifar10/test/<class>/*, "
        "or the unpacked cifar-10-python.tar.gz as cifar10/cifar-10-batches-py",
    ),
    "fashion_mnist": Dataset(32, "torchvision's FashionMNIST/raw/*-ubyte, or Debian's package dataset-fashion-mnist"),
    "celeba": Dataset(
        64,
        "the aligned images as celeba/img_align_celeba/*.jpg with celeba/list_eval_partition.txt, or as celeba/*.jpg",
    ),
    "folder": Dataset(64, "any folder of images, given by its path"),
}
SPLITS = ("train", "test")


def _parse(dataset: str) -> tuple[str, str]:
    """'cifar10' -> ('cifar10', ''); 'folder:some/path' -> ('folder', 'some/path'). ValueError for anything else."""
    kind, colon, path = str(dataset).partition(":")
    if kind not in DATASETS or (kind == "folder") != bool(colon and path):
        raise unknown_name("dataset", dataset, [k if k != "folder" else "folder:<path>" for k in DATASETS])
    return kind, path


def default_size(dataset: str) -> int:
    """Height and width in pixels that a dataset is prepared at by default. ValueError for an unknown name."""
    return DATASETS[_parse(dataset)[0]].size


_GRAY_MODES = ("1", "L", "I", "I;16", "I;16B", "I;16L")


@contextlib.contextmanager
def _opened(path: str) -> "Iterator[Picture]":
    """An image file, open in PIL. Whatever goes wrong until it is closed becomes a ValueError that names the file."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            yield image
    except Image.DecompressionBombError as e:
        raise ValueError(f"{path} is refused, it claims far too many pixels ({e}): make it smaller or remove it") from e
    except Exception as e:
        raise ValueError(f"{path} cannot be read as an image ({e}): replace it or remove it") from e


def _is_gray(path: str) -> bool:
    """Whether an image file has one channel; reads its header only. True for one that cannot be read, refused later."""
    try:
        with _opened(path) as image:
            return image.mode in _GRAY_MODES
    except ValueError:
        return True


def _read(picture: str | np.ndarray, channels: int) -> "Picture":
    """A path, or a uint8 array (H, W) or (H, W, 3), -> a PIL image, upright, of mode L (1 channel) or RGB (3).

    In files 16-bit gray is scaled to 8 bits, palettes become RGB and alpha is dropped.
    """
    from PIL import Image, ImageOps

    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture)
    with _opened(picture) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
        elif "transparency" in image.info:
            image = image.convert("RGBA")
        return image.convert("L" if channels == 1 else "RGB")


def _square(picture: str | np.ndarray, size: int, channels: int, enlarge: bool = False) -> np.ndarray:
    """The largest centred square of a picture: uint8 (channels, size, size). ValueError if that would enlarge it."""
    from PIL import Image

    image = _read(picture, channels)
    side = min(image.size)
    if side < size and not enlarge:
        name = "an image" if isinstance(picture, np.ndarray) else picture
        raise ValueError(
            f"{name} is {image.width}x{image.height} pixels (width x height), too small for size={size}: "
            f"remove it or ask for a size of at most {side}"
        )
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)


_IMAGE_FILES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_Stamp = tuple[str, int, int]  # path, bytes, mtime_ns
_Pictures = Sequence[str] | np.ndarray  # image paths, or uint8 (N, H, W) or (N, H, W, 3)


class _Source(NamedTuple):
    """One split of a dataset, found but not yet read."""

    files: tuple[_Stamp, ...]  # every file the pictures come from
    pictures: Callable[[], _Pictures]
    total: int | None  # how many pictures; None: known once they are opened
    channels: int | None  # 1 or 3; None: gray if every picture is gray
    enlarge: bool = False  # whether pictures smaller than the size asked for may be enlarged
    labels: Callable[[], Sequence[int] | np.ndarray | None] = lambda: None  # class numbers; None: without classes


def _walk(folder: Path, endings: str | tuple[str, ...] = _IMAGE_FILES, deep: bool = True) -> list[str]:
    """The files in `folder`, and if `deep` in the folders below it, that have one of these endings; sorted.

    Follows links, enters each folder once, skips hidden names.
    """
    found, seen = [], set()
    for where, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if deep and not f.startswith("."))
        found += [os.path.join(where, n) for n in names if n.lower().endswith(endings) and not n.startswith(".")]
    return sorted(found)


def _stamped(paths: list[str]) -> tuple[_Stamp, ...]:
    """Path, bytes and time of change of each file."""
    return tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in zip(paths, map(os.stat, paths)))


def _image_files(folder: Path, paths: list[str], channels: int | None) -> _Source:
    """The source made of these image files in `folder`. FileNotFoundError if there are none."""
    if not paths:
        raise FileNotFoundError(f"no images in {folder} or below: expected files ending in {', '.join(_IMAGE_FILES)}")
    return _Source(_stamped(paths), lambda: paths, len(paths), channels, labels=partial(_classes, folder, paths))


def _classes(folder: Path, paths: list[str]) -> list[int] | None:
    """The number of each file's class, the folder in `folder` that it lies in; None if any lies in none."""
    parts = [os.path.relpath(path, folder).split(os.sep) for path in paths]
    numbers = {name: k for k, name in enumerate(sorted({part[0] for part in parts}))}
    return [numbers[part[0]] for part in parts] if min(map(len, parts)) > 1 else None


def _split_folder(root: Path, split: str, channels: int | None) -> _Source:
    """`root`/train and `root`/test are the splits if there is either, else every image under `root` is for training."""
    if any((root / s).is_dir() for s in SPLITS):
        if not (root / split).is_dir():
            other = "test" if split == "train" else "train"
            raise FileNotFoundError(f"no {split} images: {root} has no folder {split}/ beside {other}/")
        root = root / split
    elif split != "train":
        raise FileNotFoundError(
            f"no {split} images: {root} has no folders train/ and test/, so all of its images are for training; "
            f"use split='train', or sort them into these two folders"
        )
    return _image_files(root, _walk(root), channels)


def _find_digits(split: str) -> _Source:
    def pictures() -> np.ndarray:
        from sklearn.datasets import load_digits

        images = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
        return images[:1500] if split == "train" else images[1500:]

    def labels() -> np.ndarray:
        from sklearn.datasets import load_digits

        return load_digits().target[:1500] if split == "train" else load_digits().target[1500:]

    return _Source((), pictures, total=1500 if split == "train" else 297, channels=1, enlarge=True, labels=labels)


def _find_folder(path: str, split: str) -> _Source:
    root = Path(path).expanduser().absolute()
    if not root.exists():
        raise FileNotFoundError(
            f"no folder {root}: folder:<path> expects a folder of images, relative paths start at the working directory"
        )
    if not root.is_dir():
        raise ValueError(f"{root} is a file: folder:<path> expects a folder of images")
    beside = [name for name in sorted(os.listdir(root)) if name not in (*SPLITS, "val") and _has_images(root / name)]
    if beside and any((root / s).is_dir() for s in SPLITS):
        raise ValueError(
            f"{root} has images in {', '.join(beside[:3])} beside train/ or test/: is this a split or a class? "
            "Use a folder with nothing but train/ and test/, or rename the class"
        )
    return _split_folder(root, split, channels=None)


def _has_images(path: Path) -> bool:
    return path.is_dir() and bool(_walk(path)) or path.suffix.lower() in _IMAGE_FILES


def _download(dataset: str, url: str, fetch: Callable[[Path], Path], target: Path, looked_for: list[Path]) -> None:
    """Run `fetch` in a temporary folder, and move the contents of the folder that it returns into `target`.

    A failure leaves nothing behind: FileNotFoundError with what was looked for, what went wrong and what to do.
    """
    tmp = temporary_beside(target)
    missing = [p for p in (target, *target.parents) if not p.exists()]
    try:
        reach(url)
        tmp.mkdir(parents=True)
        remove_stale(target.parent)
        with impatient():
            made = fetch(tmp)
        target.mkdir(exist_ok=True)
        for item in sorted(made.iterdir(), key=Path.is_dir):  # files first: a folder of images makes a dataset complete
            if not (target / item.name).exists():
                os.replace(item, target / item.name)
    except Exception as e:
        raise FileNotFoundError(
            f"{dataset} is not on disk and cannot be downloaded. Looked for: {'; '.join(map(str, looked_for))}. "
            f"Download from {url} failed: {e}. "
            f"Put it there by hand (below {target.parent}: {DATASETS[dataset].layout}), "
            f"or pass the data_dir that holds it."
        ) from e
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only empty ones go


_CIFAR_BATCHES = "cifar-10-batches-py"


def _cifar_batches(root: Path, split: str) -> _Source:
    """torchvision's layout: five pickled files for training and one for testing. torchvision checks and reads them."""

    def read() -> Any:
        from torchvision.datasets import CIFAR10

        try:
            return CIFAR10(root, train=split == "train")
        except Exception as e:
            raise ValueError(
                f"{root / _CIFAR_BATCHES} is incomplete or damaged ({e}): remove it to have it downloaded anew, "
                f"or unpack cifar-10-python.tar.gz again"
            ) from e

    files = _stamped(_walk(root / _CIFAR_BATCHES, ""))
    return _Source(files, lambda: read().data, total=None, channels=3, labels=lambda: read().targets)


def _has_classes(folder: Path) -> bool:
    return folder.is_dir() and any(f.is_dir() for f in folder.iterdir())


def _fetch_cifar10(folder: Path) -> Path:
    from torchvision.datasets import CIFAR10

    CIFAR10(folder, download=True)
    (folder / CIFAR10.filename).unlink()
    return folder


def _find_cifar10(data_dir: Path, split: str) -> _Source:
    home = data_dir / "cifar10"
    roots = (home, data_dir)
    for root in roots:
        if any(_has_classes(root / s) for s in SPLITS):
            return _split_folder(root, split, channels=3)
    for root in roots:
        if (root / _CIFAR_BATCHES).is_dir():
            return _cifar_batches(root, split)
    looked_for = [root / name for name in (f"{split}/<class>/*", _CIFAR_BATCHES) for root in roots]
    _download("cifar10", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", _fetch_cifar10, home, looked_for)
    return _cifar_batches(home, split)


_SYSTEM = Path("/usr/share/datasets")  # where Debian's packages dataset-* put theirs


def _fashion_mnist(files: Sequence[Path], split: str) -> _Source:
    """The four files of FashionMNIST, gzipped or not: 28 x 28 pixels, with two black ones added on every side."""

    def read() -> Any:
        from torchvision.datasets import FashionMNIST

        with tempfile.TemporaryDirectory() as folder:
            raw = Path(folder) / "FashionMNIST" / "raw"
            raw.mkdir(parents=True)
            for file in files:
                with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as source:
                    (raw / file.name.removesuffix(".gz")).write_bytes(source.read())
            try:
                return FashionMNIST(folder, train=split == "train")
            except Exception as e:
                raise ValueError(f"{files[0].parent} is incomplete or damaged ({e})") from e

    def pictures() -> np.ndarray:
        return np.pad(read().data.numpy(), ((0, 0), (2, 2), (2, 2)))

    stamps = _stamped([str(file) for file in files])
    return _Source(stamps, pictures, total=None, channels=1, labels=lambda: read().targets.numpy())


def _find_fashion_mnist(data_dir: Path, split: str) -> _Source:
    raw = Path("FashionMNIST", "raw")
    folders = [data_dir / "fashion_mnist" / raw, data_dir / raw, _SYSTEM / "fashion-mnist"]
    for folder in folders:
        if files := sorted(folder.glob("*-ubyte")) or sorted(folder.glob("*-ubyte.gz")):
            return _fashion_mnist(files, split)
    raise FileNotFoundError(
        f"fashion_mnist is not on disk. Looked for *-ubyte or *-ubyte.gz in {'; '.join(map(str, folders))}. "
        "Install Debian's package dataset-fashion-mnist, or put the four files there by hand."
    )


_CELEBA_IMAGES, _CELEBA_PARTITION = "img_align_celeba", "list_eval_partition.txt"


def _partition(path: Path, split: str) -> set[str]:
    """The names of the images that list_eval_partition.txt, lines of `name number`, gives to a split."""
    try:
        pairs = [line.split() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f"{path} cannot be read ({e})") from e
    if any(len(p) != 2 or p[1] not in "012" for p in pairs):
        raise ValueError(f"{path} expects lines like '000001.jpg 0', with 0, 1 or 2 for train, validation or test")
    return {name for name, part in pairs if part == ("0" if split == "train" else "2")}


def _celeba_folder(root: Path, split: str) -> _Source | None:
    """The split of the CelebA images in `root`, or None if there are no images at all."""
    flat = not (root / _CELEBA_IMAGES).is_dir()
    images = root if flat else root / _CELEBA_IMAGES
    if (partition := root / _CELEBA_PARTITION).is_file():
        names = _partition(partition, split)
        if paths := _walk(images):
            return _image_files(images, [p for p in paths if os.path.basename(p) in names], channels=3)
    if any((images / s).is_dir() for s in SPLITS):
        return _split_folder(images, split, channels=3)
    paths = _walk(images, deep=not flat)
    if flat and not paths:
        return None
    if split != "train":
        raise FileNotFoundError(
            f"no {split} images: the splits of {images} are not known without {partition}; "
            f"add that file (it comes with CelebA), or use split='train', which then has all images"
        )
    return _image_files(images, paths, channels=3)


def _fetch_celeba(folder: Path) -> Path:
    from torchvision.datasets import CelebA

    CelebA(folder, download=True)
    (folder / "celeba" / "img_align_celeba.zip").unlink()
    return folder / "celeba"


def _find_celeba(data_dir: Path, split: str) -> _Source:
    home = data_dir / "celeba"
    roots = (home, data_dir)
    for root in roots:
        if source := _celeba_folder(root, split):
            return source
    looked_for = [root / name for root in roots for name in (f"{_CELEBA_IMAGES}/*.jpg", "*.jpg")]
    _download("celeba", "https://drive.google.com", _fetch_celeba, home, looked_for)
    source = _celeba_folder(home, split)
    if source is None:
        raise FileNotFoundError(f"no images in {home}: the download of celeba brought none")
    return source


_CACHE_FORMAT = 1  # part of the fingerprint: raise it when the array made from the same files changes


def _cache_name(kind: str, path: str, split: str, size: int, files: tuple[_Stamp, ...]) -> str:
    """The file name of a prepared array, for example cifar10-train-32-<fingerprint>.npy."""
    fingerprint = hashlib.sha256(repr((_CACHE_FORMAT, kind, split, size, files)).encode()).hexdigest()[:16]
    label = re.sub(r"[^\w.-]+", "_", Path(path).name or kind)[:40]
    return f"{label}-{split}-{size}-{fingerprint}.npy"


def _open_cache(path: Path, source: _Source, size: int) -> torch.Tensor | None:
    """The prepared array, memory-mapped, or None if the file is missing, truncated or not the array of this source.

    Writing to the tensor never reaches the file.
    """
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if not isinstance(array, np.memmap) or array.dtype != np.uint8 or array.ndim != 4 or not array.flags.c_contiguous:
        return None
    total = len(array) if source.total is None else source.total
    expected = (total, source.channels or array.shape[1], size, size)
    complete = path.stat().st_size == array.offset + array.nbytes
    return torch.from_numpy(array) if complete and array.shape == expected else None


_MOST_REFUSED = 10  # pictures named in one error


def _fill(array: np.ndarray, pictures: _Pictures, square: Callable[[str | np.ndarray], np.ndarray]) -> None:
    """array[i] = square(pictures[i]) for all i, in threads: decoding and resizing release the interpreter's lock.

    ValueError names all pictures that are refused, or the first ten.
    """
    from tqdm import tqdm

    refused: list[str] = []

    def fill_rows(start: int) -> int:
        rows = range(start, min(start + 64, len(array)))
        for i in rows:
            if len(refused) >= _MOST_REFUSED:
                break
            try:
                array[i] = square(pictures[i])
            except ValueError as error:
                refused.append(str(error))
        return len(rows)

    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(array), desc="preparing", unit="image", delay=1) as bar:
        try:
            for done in pool.map(fill_rows, range(0, len(array), 64)):
                bar.update(done)
        finally:
            pool.shutdown(cancel_futures=True)
    if refused:
        raise ValueError(_together(sorted(refused)))


def _together(refused: Sequence[str]) -> str:
    """One message of several."""
    if len(refused) == 1:
        return refused[0]
    more = ", and perhaps more" if len(refused) >= _MOST_REFUSED else ""
    return "\n  ".join([f"{len(refused)} images cannot be used{more}:", *refused[:_MOST_REFUSED]])


def _prepare(source: _Source, size: int, path: Path) -> None:
    """Write the array of a source to `path`, at once and complete, or not at all."""
    pictures = source.pictures()
    channels = source.channels or (1 if all(map(_is_gray, pictures)) else 3)
    shape = (len(pictures), channels, size, size)
    if (need := math.prod(shape)) > (free := shutil.disk_usage(path.parent).free):
        raise OSError(
            f"{len(pictures)} images of size={size} take {need / 1e6:.0f} MB, but {path.parent} has "
            f"{free / 1e6:.0f} MB free: make room or ask for a smaller size"
        )
    remove_stale(path.parent)
    tmp = temporary_beside(path)
    try:
        array = np.lib.format.open_memmap(tmp, mode="w+", dtype=np.uint8, shape=shape)
        _fill(array, pictures, partial(_square, size=size, channels=channels, enlarge=source.enlarge))
        array.flush()
        del array  # on disk and unmapped before it gets its name
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


def _cached(source: _Source, size: int, name: str, folders: Sequence[Path]) -> torch.Tensor:
    """The array of a source: from the first folder that has it, else prepared in the first that can be written."""
    for folder in folders:
        if (images := _open_cache(folder / name, source, size)) is not None:
            return images
    place = next(filter(writable, folders), None)
    if place is None:
        raise OSError(
            f"the prepared images can be written neither to {' nor to '.join(map(str, folders))}: "
            f"set XDG_CACHE_HOME to a folder that can be written"
        )
    _prepare(source, size, place / name)
    images = _open_cache(place / name, source, size)
    if images is None:
        raise OSError(f"{place / name} was just written and cannot be read back: is another process removing it?")
    return images


def _find(kind: str, path: str, data_dir: Path, split: str) -> _Source:
    """The split of the dataset of this kind. FileNotFoundError if it is neither on disk nor to be downloaded."""
    if kind == "digits":
        return _find_digits(split)
    if kind == "folder":
        return _find_folder(path, split)
    find = {"cifar10": _find_cifar10, "celeba": _find_celeba, "fashion_mnist": _find_fashion_mnist}[kind]
    return find(data_dir, split)


def load_images(
    dataset: str = "digits", data_dir: str | Path | None = None, size: int | None = None, split: str = "train"
) -> torch.Tensor:
    """One split of a dataset: uint8 (N, C, size, size) in [0, 255], sorted by file, memory-mapped; C is 1 or 3.

    dataset: "digits", "cifar10", "celeba", "fashion_mnist" (28 pixels, padded to 32 with black) or "folder:<path>";
        what is not on disk is downloaded if it can be.
    data_dir: the folder that holds the datasets, or the dataset's own; default: data/ of the repository.
    size: height and width in pixels, to which each picture's largest centred square is resized;
        default: `default_size(dataset)`.
    split: "train" or "test".

    The first call prepares the array in <data_dir>/cache, or in the user's cache folder if that cannot be written;
    later ones only open it. Writing to the tensor never reaches the file.
    ValueError for a wrong argument and for an unreadable or too small picture; FileNotFoundError for missing data;
    OSError if there is no room for the array.
    """
    if size is None:
        size = default_size(dataset)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size is the images' height and width in pixels, a positive int, got {size!r}")
    kind, path = _parse(dataset)
    source, data_dir = _locate(dataset, data_dir, split)
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = _cache_name(kind, path, split, size, source.files)
    return _cached(source, size, name, [data_dir / "cache", user_cache / "wwgan"])


def load_labels(dataset: str = "digits", data_dir: str | Path | None = None, split: str = "train") -> torch.Tensor:
    """The class of each image of `load_images`, in the same order: int64 (N,), numbered from 0.

    Digits and CIFAR-10 have classes, and so has a folder whose images all lie in folders of their class, numbered by
    name. Arguments and errors as `load_images`; ValueError for a dataset without classes.
    """
    source, _ = _locate(dataset, data_dir, split)
    labels = source.labels()
    if labels is None:
        raise ValueError(f"{dataset} has no classes: expected its images in folders of their class, <class>/*.jpg")
    return torch.as_tensor(np.asarray(labels), dtype=torch.int64)


def _locate(dataset: str, data_dir: str | Path | None, split: str) -> tuple[_Source, Path]:
    """One split of a dataset, found, and the data folder."""
    kind, path = _parse(dataset)
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    data_dir = project_root() / "data" if data_dir is None else Path(data_dir).expanduser().absolute()
    if data_dir.exists() and not data_dir.is_dir():
        raise ValueError(f"data_dir expects a folder, {data_dir} is a file")
    return _find(kind, path, data_dir, split), data_dir
