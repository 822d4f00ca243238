"""Names, paths, JSON and downloads: what the rest of the package knows of files."""

import contextlib
import difflib
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch


def unknown_name(kind: str, name: object, known: Iterable[object]) -> ValueError:
    """The error, for the caller to raise, for a `name` that is not one of the `known` names of this `kind`.

    Offers the nearest known name, upper and lower case alike, if there is one.
    """
    lower = {str(k).lower(): str(k) for k in known}
    near = difflib.get_close_matches(str(name).lower(), lower, n=1)
    hint = f": did you mean '{lower[near[0]]}'?" if near else "."
    return ValueError(f"unknown {kind} {str(name)!r}{hint} Known: {', '.join(sorted(lower.values()))}")


def check_names(given: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError for the first given parameter that is not known, with the nearest match."""
    for name in given:
        if name not in known:
            raise unknown_name("parameter", name, known)


def project_root() -> Path:
    """The repository's folder: the first one upwards whose settings.ini names this library.

    Looked for from the working directory, then from the installed package (an editable install lies in its
    repository). The working directory when there is no repository.
    """
    package = importlib.util.find_spec("wwgan")
    starts = [Path.cwd()] + ([Path(package.origin).parent] if package and package.origin else [])
    for start in starts:
        for folder in (start, *start.parents):
            with contextlib.suppress(OSError):
                settings = (folder / "settings.ini").read_text(encoding="utf-8", errors="replace")
                if re.search(r"^lib_name\s*=\s*wwgan\s*$", settings, re.MULTILINE):
                    return folder
    return starts[0]


_STALE = 24 * 3600  # seconds after which a temporary that nobody touched is left over from a crash


def temporary_beside(target: Path) -> Path:
    """A name beside `target` that no other process uses and nobody mistakes for the finished thing."""
    return target.parent / f".{target.name}.{uuid.uuid4().hex}.part"


def remove_stale(folder: Path) -> None:
    """Remove the temporaries that a crash long ago left in `folder`."""
    for left in folder.glob(".*.part"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def writable(folder: Path) -> bool:
    """Whether files can be made in `folder`, which is made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def write_atomically(path: Path, write: Callable[[BinaryIO], object], checksum: bool = False) -> None:
    """Call write(file) on a temporary binary file beside `path`, flush it to the disk, and rename it to `path`.

    checksum: write also, before there is a file of that name, what `check_checksum` compares it with.
    """
    temporary = temporary_beside(path)
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if checksum:
            line = f"{file_sha256(temporary)}  {path.name}\n"
            write_atomically(checksum_file(path), lambda beside: beside.write(line.encode()))
        os.replace(temporary, path)
    except OSError as error:
        if error.errno and not error.filename:  # a full disk does not say of which file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def checksum_file(path: Path) -> Path:
    """Where the checksum of `path` stands, as `sha256sum --check` reads it."""
    return path.with_name(f"{path.name}.sha256")


def check_checksum(path: Path) -> None:
    """ValueError unless the file has the content that `write_atomically` wrote with a checksum under this name."""
    try:
        found, expected = f"{file_sha256(path)}  {path.name}\n", checksum_file(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: it or its checksum cannot be read: {error}") from None
    if found != expected:
        raise ValueError(f"{path} is damaged: its checksum is not the one in {checksum_file(path).name}")


def save_tensors(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain containers with their checksum, whole or not at all."""
    buffer = io.BytesIO()  # torch.save would hide an OSError behind an error of its own
    torch.save(content, buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()), checksum=True)


def load_tensors(path: Path) -> Any:
    """What `save_tensors` wrote, on the CPU; no code in the file is run. Raises as `check_checksum` and torch.load."""
    check_checksum(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def read_json(path: Path) -> Any:
    """The plain values in a JSON file. Raises FileNotFoundError, or ValueError for a file without JSON, naming it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} does not hold JSON: {error}") from None


def write_json(path: Path, value: object) -> None:
    """Write plain values as JSON to `path`, whole or not at all; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one a line; none if it is not there. A last line cut short is left out.

    Each must have an integer "step": ValueError naming file and line for others.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
            if type(found[-1]["step"]) is not int:
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ValueError(f"line {number} of {path} must be an object with a step, got {line[:80]!r}") from None
    return found


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write objects as JSON, one a line, whole or not at all."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_atomically(path, lambda file: file.write(text.encode()))


def content_hash(images: torch.Tensor, chunk_bytes: int = 2**24) -> str:
    """sha256 (hex) of the shape and bytes of uint8 images (N, C, H, W), the same on every device.

    chunk_bytes: about how much is copied to the host at a time; changes nothing. ValueError for any other dtype.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"content_hash expects uint8 images, got {images.dtype}")
    digest = hashlib.sha256(repr(tuple(images.shape)).encode())
    rows = max(1, chunk_bytes // max(1, images[:1].numel()))
    for chunk in images.split(rows):
        digest.update(chunk.cpu().contiguous().numpy())
    return digest.hexdigest()


_DOWNLOAD_TIMEOUT = 20  # seconds without an answer after which a server counts as unreachable


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """In here a server that is silent for long is an error, an OSError."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(timeout)


def reach(url: str, seconds: float = 4) -> None:
    """Raise OSError within so many seconds if the server of `url` cannot be reached.

    A thread asks, because no timeout of Python's holds for the resolution of a name.
    """
    outcome: list[Exception | None] = []

    def ask() -> None:
        try:
            with contextlib.suppress(urllib.error.HTTPError):  # any answer is an answer
                urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
            outcome.append(None)
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    error = outcome[0] if outcome else f"no answer within {seconds:g} seconds"
    if error:
        raise OSError(f"{url} cannot be reached: {error}")
