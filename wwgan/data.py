"""Image data sets as one uint8 array, prepared once, memory-mapped, and sampled on the device that trains."""

import hashlib
import math
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch

from .files import kept, project_root, write_atomically
from .sources import DATASETS, Pictures, Source, find, parse

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


def default_size(dataset: str) -> int:
    """Height and width in pixels that a data set is prepared at by default. ValueError for an unknown name."""
    return DATASETS[parse(dataset)[0]].size


def preparation(dataset: str, size: int) -> dict[str, str]:
    """What a protocol must say of how images of that size are made, under "preparation"; nothing if only resized."""
    about = DATASETS[parse(dataset)[0]]
    resized = f", resized to {size}" if size != about.size else ""
    padded = f"padded from {about.padded_from} to {about.size} pixels{resized}"
    return dict(preparation=padded) if about.padded_from else {}


def load_images(
    dataset: str = "digits", data_dir: str | Path | None = None, size: int | None = None, split: str = "train"
) -> torch.Tensor:
    """One split of a data set: uint8 (N, C, size, size) in [0, 255], sorted by file, memory-mapped; C is 1 or 3.

    dataset: "digits", "mnist", "fashion_mnist", "kmnist" (28 pixels, padded to 32 with black), "svhn", "stl10",
    "cifar10", "celeba" or "folder:<path>"; what is not on disk is downloaded if it can be. data_dir: the folder that
    holds the data sets, or the data set's own; default: data/ of the repository. size: height and width in pixels, to
    which each picture's largest centred square is resized; default: `default_size(dataset)`. split: "train" or "test".

    The first call prepares the array in <data_dir>/cache, or in the user's cache folder if that cannot be written;
    later ones compare it with its checksum and open it. Writing to the tensor never reaches the file. ValueError for a
    wrong argument and for unusable pictures; FileNotFoundError for missing data; OSError without room for the array, or
    where it cannot be written.
    """
    size = default_size(dataset) if size is None else size
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size is the images' height and width in pixels, a positive int, got {size!r}")
    data_dir = _data_folder(data_dir)
    source, (kind, path) = find(dataset, data_dir, split), parse(dataset)
    fingerprint = hashlib.sha256(repr((_CACHE_FORMAT, kind, split, size, source.files)).encode()).hexdigest()[:16]
    label = re.sub(r"[^\w.-]+", "_", Path(path).name or kind)[:40]
    name = f"{label}-{split}-{size}-{fingerprint}.npy"
    return kept(_cache_folder(data_dir, name) / name, _open, lambda path: _prepare(source, size, path))


def load_labels(dataset: str = "digits", data_dir: str | Path | None = None, split: str = "train") -> torch.Tensor:
    """The class of each image of `load_images`, in the same order: int64 (N,), numbered from 0.

    Data sets with a name have classes, except CelebA, and so has a folder whose images all lie in folders of their
    class, numbered by name. Arguments and errors as `load_images`; ValueError for a data set without classes.
    """
    _, labels = find(dataset, _data_folder(data_dir), split).read()
    if labels is None:
        raise ValueError(f"{dataset} has no classes: expected its images in folders of their class, <class>/*.jpg")
    return torch.from_numpy(np.array(labels, dtype=np.int64))


def _data_folder(data_dir: str | Path | None) -> Path:
    folder = project_root() / "data" if data_dir is None else Path(data_dir).expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"data_dir expects a folder, {folder} is a file")
    return folder


def _cache_folder(data_dir: Path, name: str) -> Path:
    """Where the array of that name is or will be: in the user's cache if data_dir neither has it nor can be written."""
    folder, home = data_dir / "cache", os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    usable = (
        (folder / name).is_file() or os.access(folder, os.W_OK) or not os.path.isabs(home)
    )  # an account without home
    return folder if usable else Path(home, "wwgan")


# ---- one picture

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # what is decoded, whatever a name ends in; others may start other programs
_GRAY_MODES = ("1", "L", "I", "I;16", "I;16B", "I;16L")


def _opened(picture: str | np.ndarray) -> "Picture":
    """An image file, of which only the header is read, or a uint8 array (H, W) or (H, W, 3), in PIL."""
    from PIL import Image

    return Image.fromarray(picture) if isinstance(picture, np.ndarray) else Image.open(picture, formats=_FORMATS)


def _is_gray(picture: str | np.ndarray) -> bool:
    """Whether a picture has one channel. True for one that is refused later."""
    try:
        with _opened(picture) as image:
            return image.mode in _GRAY_MODES
    except Exception:  # of many kinds
        return True


def _square(picture: str | np.ndarray, size: int, channels: int, enlarge: bool) -> np.ndarray:
    """The largest centred square of a picture, upright, without palette and alpha: uint8 (channels, size, size).

    16-bit gray is scaled to 8 bits. ValueError names a file that cannot be read, or that would have to be enlarged.
    """
    from PIL import Image, ImageOps

    name = "an image" if isinstance(picture, np.ndarray) else picture
    try:
        with _opened(picture) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):
                image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
            elif "transparency" in image.info:
                image = image.convert("RGBA")
            image = image.convert("L" if channels == 1 else "RGB")
    except Exception as e:  # of many kinds, also for far too many pixels
        raise ValueError(f"{name} cannot be read as an image ({e}): replace it or remove it") from e
    side = min(image.size)
    if side < size and not enlarge:
        raise ValueError(
            f"{name} is {image.width}x{image.height} pixels (width x height), too small for size={size}: "
            f"remove it or ask for a size of at most {side}"
        )
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)


# ---- the prepared array

_BLOCK = 1024  # pictures in memory while they are decoded
_CACHE_FORMAT = 2  # part of the fingerprint: raise it when the array made from the same files changes


def _open(path: Path) -> torch.Tensor:
    """The prepared array, memory-mapped; writing to the tensor never reaches the file."""
    return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))


def _prepare(source: Source, size: int, path: Path) -> None:
    """Write the array of a source with its checksum beside it, or nothing at all."""
    pictures, _ = source.read()
    channels = 1 if all(map(_is_gray, pictures)) else 3
    shape = (len(pictures), channels, size, size)
    need, free = math.prod(shape) / 1e6, shutil.disk_usage(path.parent).free / 1e6
    if need > free:  # before hours are spent on what cannot be kept
        raise OSError(
            f"the prepared images take {need:.1f} MB, but {path.parent} has {free:.1f} MB free, {need - free:.1f} MB "
            "too little: make room or ask for a smaller size"
        )

    def write(file: BinaryIO) -> None:
        np.lib.format.write_array_header_1_0(file, dict(descr="|u1", fortran_order=False, shape=shape))
        for block in _squares(pictures, size, channels, source.enlarge):
            file.write(block.data)

    write_atomically(path, write, checksum=True)


def _squares(pictures: Pictures, size: int, channels: int, enlarge: bool) -> Iterator[np.ndarray]:
    """Blocks (n, channels, size, size) in order, made in threads: decoding and resizing release Python's lock.

    ValueError names the pictures of a block that are refused, ten at most.
    """
    from .progress import Progress

    refused: list[str] = []

    def square(picture: str | np.ndarray) -> np.ndarray | None:
        try:
            return _square(picture, size, channels, enlarge)
        except ValueError as error:
            refused.append(str(error))
            return None

    workers, total = min(8, os.cpu_count() or 1), len(pictures)
    with ThreadPoolExecutor(workers) as pool, Progress(total=total, desc="preparing", unit="image", delay=1) as bar:
        for start in range(0, total, _BLOCK):
            made = [*pool.map(square, pictures[start : start + _BLOCK])]
            if refused[1:]:
                refused[:] = [f"{len(refused)} of {start + len(made):,} images cannot be used:", *sorted(refused)[:10]]
            if refused:
                raise ValueError("\n  ".join(refused))
            yield np.array(made, dtype=np.uint8)
            bar.update(len(made))
