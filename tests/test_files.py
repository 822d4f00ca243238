"""wwgan.files: names, paths, hashes and servers."""

import errno
import hashlib
import os
import socket
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from wwgan import files
from wwgan.files import (
    check_checksum,
    checksum_file,
    content_hash,
    load_tensors,
    project_root,
    reach,
    save_tensors,
    unknown_name,
    write_atomically,
)


def test_unknown_name_offers_a_near_match_or_only_lists():
    near = "unknown dataset 'cifar': did you mean 'cifar10'? Known: cifar10, digits"
    assert str(unknown_name("dataset", "cifar", ["digits", "cifar10"])) == near
    assert str(unknown_name("field", "qqq", ["lr", "betas"])) == "unknown field 'qqq'. Known: betas, lr"


def test_project_root(tmp_path, monkeypatch):
    (tmp_path / "a/b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a/b")
    assert project_root() == ROOT  # where this package is, without a repository upwards
    monkeypatch.setattr(files, "__file__", str(tmp_path / "site-packages" / "files.py"))
    assert project_root() == Path.cwd()
    (tmp_path / "a/settings.ini").write_text("[DEFAULT]\nlib_name = wwgan_other\n")
    (tmp_path / "settings.ini").write_text("[DEFAULT]\n# 100%\ntitle = %(lib_name)s\nlib_name = wwgan\n")
    assert project_root() == tmp_path.resolve()


def test_content_hash_sees_bytes_order_and_shape():
    x = torch.arange(48, dtype=torch.uint8).view(4, 3, 2, 2)
    assert content_hash(x) == content_hash(x.mT.contiguous().mT)
    assert len({content_hash(y) for y in (x, x ^ 1, x.flip(0), x.view(4, 3, 1, 4), x[:0])}) == 5


def test_a_name_that_does_not_resolve_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: time.sleep(30))
    start = time.monotonic()
    with pytest.raises(OSError, match="cannot be reached: no answer within 0.2 seconds"):
        reach("http://example.invalid", 0.2)
    assert time.monotonic() - start < 5


def test_a_checksum_is_there_before_its_file_and_holds_for_its_content_alone(tmp_path, monkeypatch):
    path, replaced, replace = tmp_path / "x.pt", [], os.replace
    monkeypatch.setattr(os, "replace", lambda one, two: replaced.append(two) or replace(one, two))
    save_tensors(path, dict(x=torch.arange(3)))
    assert replaced == [checksum_file(path), path] and load_tensors(path)["x"].tolist() == [0, 1, 2]
    assert sorted(os.listdir(tmp_path)) == ["x.pt", "x.pt.sha256"]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert checksum_file(path).read_text() == f"{digest}  x.pt\n"  # as `sha256sum --check` reads it
    for other in (f"{digest}  y.pt\n".encode(), b"0" * 64 + b"  x.pt\n", b"\xff" * 64):  # the first: of another file
        checksum_file(path).write_bytes(other)
        with pytest.raises(ValueError, match="x.pt is damaged"):
            check_checksum(path)
    checksum_file(path).write_text(f"{digest}  x.pt\n")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="x.pt is damaged: its checksum is not the one in x.pt.sha256"):
        load_tensors(path)
    checksum_file(path).unlink()
    with pytest.raises(ValueError, match="x.pt is damaged: it or its checksum cannot be read"):
        check_checksum(path)


def test_a_full_disk_names_the_file_and_other_words_stay(tmp_path):
    def fail(*arguments):
        raise OSError(*arguments)

    with pytest.raises(OSError, match=r"No space left on device: '.*/numbers.json'"):
        write_atomically(tmp_path / "numbers.json", lambda file: fail(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="^make room$"):
        write_atomically(tmp_path / "numbers.json", lambda file: fail("make room"))
    assert os.listdir(tmp_path) == []
