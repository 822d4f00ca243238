"""wwgan.files: names, paths, hashes and servers."""

import os
import socket
import time
from pathlib import Path

import pytest
import torch

import wwgan
from wwgan.files import content_hash, project_root, reach, unknown_name, writable


def test_unknown_name_offers_a_near_match_or_only_lists():
    near = "unknown dataset 'cifar': did you mean 'cifar10'? Known: cifar10, digits"
    assert str(unknown_name("dataset", "cifar", ["digits", "cifar10"])) == near
    assert str(unknown_name("field", "qqq", ["lr", "betas"])) == "unknown field 'qqq'. Known: betas, lr"


def test_project_root(tmp_path, monkeypatch):
    (tmp_path / "a/b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a/b")
    installed = Path(wwgan.__file__).parent  # in its repository when the install is editable
    assert project_root() == (installed.parent if (installed.parent / "settings.ini").exists() else Path.cwd())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert project_root() == Path.cwd()
    (tmp_path / "a/settings.ini").write_text("[DEFAULT]\nlib_name = wwgan_other\n")
    (tmp_path / "settings.ini").write_text("[DEFAULT]\n# 100%\ntitle = %(lib_name)s\nlib_name = wwgan\n")
    assert project_root() == tmp_path.resolve()


def test_content_hash_sees_bytes_order_and_shape():
    x = torch.arange(48, dtype=torch.uint8).view(4, 3, 2, 2)
    assert content_hash(x) == content_hash(x, chunk_bytes=1) == content_hash(x.mT.contiguous().mT)
    assert len({content_hash(y) for y in (x, x ^ 1, x.flip(0), x.view(4, 3, 1, 4), x[:0])}) == 5


def test_writable_probe(tmp_path):
    (tmp_path / "file").touch()
    assert writable(tmp_path / "new/cache") and os.listdir(tmp_path / "new/cache") == []
    assert not writable(tmp_path / "file/cache")


def test_a_name_that_does_not_resolve_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: time.sleep(30))
    start = time.monotonic()
    with pytest.raises(OSError, match="cannot be reached: no answer within 0.2 seconds"):
        reach("http://example.invalid", 0.2)
    assert time.monotonic() - start < 5
