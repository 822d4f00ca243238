"""Names, paths, JSON and downloads: what the rest of the package knows of files."""

import contextlib
import difflib
import errno
import hashlib
import io
import json
import os
import re
import sys
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch

T = TypeVar("T")


def unknown_name(kind: str, name: object, known: Iterable[object]) -> ValueError:
    """The error to raise for a `name` that is not one of the `known` ones of its `kind`; offers the nearest one."""
    lower = {str(k).lower(): str(k) for k in known}
    near = difflib.get_close_matches(str(name).lower(), lower, n=1)
    hint = f": did you mean '{lower[near[0]]}'?" if near else "."
    return ValueError(f"unknown {kind} {str(name)!r}{hint} Known: {', '.join(sorted(lower.values()))}")


def first_line(error: BaseException) -> str:
    """What an error says, on one line; its kind if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def check_names(given: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError for the first given parameter that is not known, with the nearest match."""
    for name in given:
        if name not in known:
            raise unknown_name("parameter", name, known)


def project_root() -> Path:
    """The repository's folder: the first one upwards whose settings.ini names this library, else the working directory.

    Looked for from the working directory, then from the installed package: an editable install lies in its repository.
    """
    starts = (Path.cwd(), Path(__file__).parent)
    for folder in (folder for start in starts for folder in (start, *start.parents)):
        with contextlib.suppress(OSError):
            settings = (folder / "settings.ini").read_text(encoding="utf-8", errors="replace")
            if re.search(r"^lib_name\s*=\s*wwgan\s*$", settings, re.MULTILINE):
                return folder
    return starts[0]


def write_atomically(path: Path, write: Callable[[BinaryIO], object], checksum: bool = False) -> None:
    """Call write(file) on a temporary binary file beside `path`, flush it to the disk, and rename it to `path`.

    checksum: write also, before there is a file of that name, what `check_checksum` compares it with.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")  # nobody mistakes it for the finished file
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if checksum:
            _write_text(checksum_file(path), f"{file_sha256(temporary)}  {path.name}\n")
        os.replace(temporary, path)
        to_disk(path.parent)
    except OSError as error:
        if error.errno and not error.filename:  # a full disk does not say of which file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """What was written to a file, or which files a folder has, survives a power cut once this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot do this for a folder
            raise
    finally:
        os.close(descriptor)


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


def kept(path: Path, read: Callable[[Path], T], make: Callable[[Path], object]) -> T:
    """read(path) of a file that make(path) writes with its checksum: once, and anew if it was damaged, with a word.

    Of several processes one makes it, the others wait. OSError where there is none and the folder cannot be written.
    """
    from filelock import FileLock

    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path.with_name(f".{path.name}.lock")))
        except OSError as error:
            if not path.is_file():
                hint = "pass a data_dir that can be written, with links to the data in it"
                raise OSError(f"nothing can be kept in {path.parent} ({error}): {hint}") from None
        if path.is_file():
            try:
                check_checksum(path)
                return read(path)
            except Exception as error:  # whatever a foreign file makes the reader stumble over
                print(f"{error}; it is made anew", file=sys.stderr)
        for left in path.parent.glob(f".{path.name}.*.part"):  # by a process that was killed: its lock is ours now
            left.unlink()
        make(path)
        return read(path)


def save_tensors(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain containers with their checksum, whole or not at all."""
    buffer = io.BytesIO()  # torch.save would hide an OSError behind an error of its own
    torch.save(content, buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()), checksum=True)


def load_tensors(path: Path) -> Any:
    """What `save_tensors` wrote, on the CPU; no code in the file is run. Raises as `check_checksum` and torch.load."""
    check_checksum(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _integer(digits: str) -> int:
    if not -(2**63) <= int(digits) < 2**63:
        raise ValueError(f"{digits[:40]} is no integer of 64 bits")
    return int(digits)


def read_json(path: Path) -> Any:
    """The plain values in a JSON file. Raises FileNotFoundError, or ValueError for a file without JSON, naming it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} does not hold JSON: {error}") from None


def write_json(path: Path, value: object) -> None:
    """Write plain values as JSON to `path`, whole or not at all; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one a line; none if it is not there. A last line cut short is left out.

    Each must have an integer "step": ValueError naming file and line for others.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line, parse_int=_integer))
            if type(found[-1]["step"]) is not int:
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ValueError(
                f"line {number} of {path} must be an object with a step, got {line[:80]!r}: remove it to go on without"
            ) from None
    return found


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write objects as JSON, one a line, whole or not at all."""
    _write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def content_hash(images: torch.Tensor) -> str:
    """sha256 (hex) of shape and bytes of uint8 images (N, C, H, W), on any device."""
    digest = hashlib.sha256(repr(tuple(images.shape)).encode())
    for some in images.split(256):
        digest.update(some.cpu().contiguous().numpy())
    return digest.hexdigest()


def reach(url: str, seconds: float = 4) -> None:
    """Raise OSError within so many seconds if the server of `url` cannot be reached.

    A thread asks, because no timeout of Python's holds for the resolution of a name.
    """
    outcome = [f"no answer within {seconds:g} seconds"]

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
            outcome[0] = ""
        except Exception as error:  # of HTTP, it is an answer
            outcome[0] = "" if isinstance(error, urllib.error.HTTPError) else first_line(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if outcome[0]:
        raise OSError(f"{url} cannot be reached: {outcome[0]}")
