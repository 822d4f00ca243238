"""wwgan.data: pictures made into one array, bad input, and prepared arrays that are whole or absent."""

import errno
import os
import pickle
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import alone, class_folders, empty_folder, everything, picture
from PIL import Image

from wwgan import data, files
from wwgan.data import default_size, load_images, load_labels, sample_images, to_float, to_uint8


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path):
    alone(monkeypatch, tmp_path)


@pytest.fixture
def folder(tmp_path):
    return empty_folder(tmp_path)


def arrays(folder):
    return sorted(Path(folder).glob("*.npy"))


# ---- small functions


def test_bytes_and_floats_round_trip():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(every)), every) and to_uint8(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]
    with pytest.raises(ValueError, match="uint8"):
        to_float(torch.zeros(2))


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def test_sampling(device):
    images = torch.arange(5, dtype=torch.uint8, device=device).view(5, 1, 1, 1).repeat(1, 3, 2, 2)
    draw = lambda: sample_images(images, 500, torch.Generator(device).manual_seed(1))
    batch = draw()
    assert batch.device == images.device and batch.dtype == torch.float32 and batch.shape == (500, 3, 2, 2)
    assert torch.equal(batch, draw())
    assert to_uint8(batch)[:, 0, 0, 0].unique().tolist() == [0, 1, 2, 3, 4]


def test_unknown_dataset_offers_the_nearest(tmp_path):
    every = "Known: celeba, cifar10, digits, fashion_mnist, folder:<path>, kmnist, mnist, stl10, svhn"
    for name, hint in dict(cifar="did you mean 'cifar10'", CelebA="did you mean 'celeba'", zzz=every).items():
        for call in (load_images, default_size):
            with pytest.raises(ValueError) as e:
                call(name)
            assert hint in str(e.value) and f"unknown dataset {name!r}" in str(e.value)
    assert everything(tmp_path) == []


def test_import_is_cheap():
    code = "import sys, wwgan.data; print({'torchvision', 'PIL', 'sklearn', 'tqdm.auto', 'scipy'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


# ---- one picture


def test_digits(tmp_path):
    from sklearn.datasets import load_digits

    for size in (None, 8, 32):
        train, test = (load_images("digits", tmp_path, size, s) for s in ("train", "test"))
        assert train.shape == (1500, 1, size or 16, size or 16) and len(test) == 297 and train.dtype == torch.uint8
        if size == 8:
            original = torch.from_numpy(load_digits().images * 255 / 16)
            assert torch.equal(torch.cat([train, test])[:, 0], original.round())
    labels = torch.cat([load_labels("digits", tmp_path, s) for s in ("train", "test")])
    assert labels.tolist() == load_digits().target.tolist()


@pytest.mark.filterwarnings("error")
def test_channels_and_orientation(folder):
    """Gray only if all pictures are; 16-bit gray keeps its range; palettes and alpha become RGB; photos are upright."""
    root, load = folder
    half = np.repeat([[255, 0]], 4, 1).repeat(8, 0).astype(np.uint8)
    exif = Image.Exif()
    exif[0x112] = 6  # to be shown turned by 90 degrees
    Image.fromarray(half).save(root / "0.png", exif=exif)
    picture(root / "1.png", (8, 8), "L", 100)
    picture(root / "2.png", (8, 8), "1", 1)
    Image.fromarray(np.full((8, 8), 200 * 257 + 5, np.uint16)).save(root / "3.png")
    gray = load(8)
    assert gray.shape[1] == 1 and gray[1:, 0, 0, 0].tolist() == [100, 255, 200]
    assert np.array_equal(gray[0, 0], np.rot90(half, -1))
    Image.new("RGB", (8, 8), (10, 20, 30)).quantize(4).save(root / "4.png", transparency=b"\7")
    picture(root / "5.png", (8, 8), "RGBA", (1, 2, 3, 4))
    assert load(8)[1:, :, 0, 0].tolist() == [[100] * 3, [255] * 3, [200] * 3, [10, 20, 30], [1, 2, 3]]


# ---- bad input


def truncated(path):
    picture(path, (64, 64))
    path.write_bytes(path.read_bytes()[:-900])


def postscript(path):
    """Would start another program."""
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n")


BAD_PICTURES = {
    "truncated jpeg": (truncated, "bad.jpg cannot be read as an image"),
    "not an image": (lambda p: p.write_text("<html>"), "bad.jpg cannot be read as an image"),
    "empty file": (lambda p: p.touch(), "bad.jpg cannot be read as an image"),
    "another format": (lambda p: Image.new("L", (64, 64)).save(p, "GIF"), "bad.jpg cannot be read as an image"),
    "postscript": (postscript, "bad.jpg cannot be read as an image"),
    "too small": (lambda p: picture(p, (90, 30)), "bad.jpg is 90x30 pixels .* too small for size=32.* at most 30"),
    "bomb": (lambda p: picture(p, (100, 100)), "bad.jpg cannot be read as an image .*exceeds limit"),
    "pipe": (os.mkfifo, "bad.jpg is a pipe or a device"),
    "device": (lambda p: p.symlink_to("/dev/zero"), "bad.jpg is a pipe or a device"),
}


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_bad_picture_is_named_and_leaves_nothing(tmp_path, monkeypatch, kind):
    make, message = BAD_PICTURES[kind]
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("another program was started"))
    if kind == "bomb":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4500)
    picture(tmp_path / "in/000.jpg", (64, 64))
    for i in range(1, 200):
        os.link(tmp_path / "in/000.jpg", tmp_path / f"in/{i:03}.jpg")
    make(tmp_path / "in/bad.jpg")
    for dataset in (f"folder:{tmp_path / 'in'}", "celeba"):
        if dataset == "celeba":
            os.rename(tmp_path / "in", tmp_path / "celeba")
        with pytest.raises(ValueError, match=message):
            load_images(dataset, tmp_path, 32)
        assert [p for p in everything(tmp_path) if p.endswith((".part", ".npy", ".sha256"))] == []


def test_all_bad_files_are_named_at_once(folder):
    root, load = folder
    small, broken, good = (8, 10, 11, 13, 14, 16, 17, 19), (0, 3), (6, 9, 12, 15, 18)
    for k in (*small, *broken, *good):
        picture(root / f"{k:02d}.png", (8, 8) if k in small else (32, 32))
    for k in broken:
        (root / f"{k:02d}.png").write_bytes(b"nothing" * k)
    with pytest.raises(ValueError) as error:
        load()
    lines = str(error.value).splitlines()
    assert lines[0] == "10 images cannot be used, and perhaps more:" and len(lines) == 11
    assert all(f"{k:02d}.png" in line for k, line in zip(sorted(small + broken), lines[1:]))
    assert "cannot be read as an image" in lines[1] and "too small for size=16" in lines[3]


BAD_ARGUMENTS = [
    *((dict(size=size), "positive int") for size in (0, -4, 16.0, True, "16")),
    (dict(split="trian"), "did you mean 'train'"),
    (dict(split="valid"), "Known: test, train"),
    (dict(data_dir="file"), "data_dir expects a folder"),
    (dict(dataset="folder:file"), "is a file"),
    (dict(dataset="folder:"), "folder:<path>"),
    (dict(dataset="folder:nowhere"), "no folder"),
    (dict(size=10**7), "MB too little.*make room or ask for a smaller size"),
    (dict(dataset="folder:empty"), "no images in .*expected files ending in .jpg"),
    (dict(dataset="folder:split"), "no images in .*expected files ending in .jpg"),
    (dict(dataset="cifar10", data_dir="split"), "no images in .*expected files ending in .jpg"),
    (dict(dataset="celeba", data_dir="faces"), "no images in .*expected files ending in .jpg"),
]


@pytest.mark.parametrize("kwargs, message", BAD_ARGUMENTS)
def test_bad_arguments_and_empty_folders(tmp_path, monkeypatch, kwargs, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for empty in ("empty", "split/train/cat", "faces/img_align_celeba"):
        (tmp_path / empty).mkdir(parents=True)
    with pytest.raises((ValueError, OSError), match=message):
        load_images(**{"data_dir": "data", **kwargs})
    assert [p for p in everything(tmp_path) if p.endswith((".part", ".npy", ".sha256"))] == []


# ---- prepared arrays


def test_cache_is_used_and_protected(tmp_path, monkeypatch, recwarn):
    """The second call opens the file of the first; writing to the tensor reaches neither file nor next caller."""
    first = load_images("digits", tmp_path)
    expected = first.clone()
    monkeypatch.setattr(data, "_prepare", lambda *a: pytest.fail("prepared twice"))
    first.zero_()
    assert torch.equal(load_images("digits", tmp_path), expected)
    assert len(arrays(tmp_path / "cache")) == 1 and not recwarn.list
    subprocess.run(
        ["sha256sum", "--check", "--status", *(tmp_path / "cache").glob("*.sha256")], cwd=tmp_path / "cache", check=True
    )


def one_bit(path):
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


SPOILT = {
    "one bit": one_bit,
    "a byte short": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "pickle": lambda p: p.write_bytes(pickle.dumps([1])),
    "another array": lambda p: np.save(p, np.zeros((1500, 1, 16, 16), np.uint8)),
    "no checksum": lambda p: Path(f"{p}.sha256").unlink(),
    "a checksum in no text": lambda p: Path(f"{p}.sha256").write_bytes(b"\xff" * 64),
    "a checksum of another array": lambda p: Path(f"{p}.sha256").write_text("0" * 64 + f"  {p.name}\n"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_spoilt_array_is_made_anew_with_a_word(tmp_path, kind):
    expected = load_images("digits", tmp_path).clone()
    (path,) = arrays(tmp_path / "cache")
    before = path.read_bytes()
    SPOILT[kind](path)
    with pytest.warns(UserWarning, match=f"{path.name} is damaged: .*prepared again"):
        assert torch.equal(load_images("digits", tmp_path), expected)
    assert path.read_bytes() == before and torch.equal(load_images("digits", tmp_path), expected)


def test_array_that_vanishes_once_written(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_prepare", lambda *a: None)
    with pytest.raises(OSError, match="cannot be read back"):
        load_images("digits", tmp_path)


def test_changed_sources_give_a_new_array(tmp_path):
    """Also when the changed file is as long as before and as old as before."""
    made = class_folders(tmp_path / "cifar10", ("train",))["train"]
    load = lambda: load_images("cifar10", tmp_path)
    old = load()
    picture(tmp_path / "cifar10/train/cat/0.png", color=(1, 2, 3))
    assert load()[0, :, 0, 0].tolist() == [1, 2, 3] and np.array_equal(old[0], made[0].transpose(2, 0, 1))
    os.rename(tmp_path / "cifar10/train/cat/0.png", tmp_path / "cifar10/train/ship/9.png")
    assert load()[-1, :, 0, 0].tolist() == [1, 2, 3]
    last = tmp_path / "cifar10/train/ship/z.bmp"
    for red in (7, 9):
        picture(last, color=(red, 2, 3))
        os.utime(last, ns=(0, 0))
        assert load()[-1, :, 0, 0].tolist() == [red, 2, 3]


def test_a_kill_leaves_a_temporary_which_the_next_one_removes(folder, tmp_path, monkeypatch):
    class_folders(folder[0], ("cat",), n=10)
    square, cache = data._square, tmp_path / "data/cache"

    def killed_here(*args):
        if not (tmp_path / "killed").exists():
            shutil.copytree(cache, tmp_path / "killed")
        return square(*args)

    monkeypatch.setattr(data, "_square", killed_here)
    expected = folder[1]().clone()
    assert sorted(Path(p).suffix for p in os.listdir(tmp_path / "killed")) == [".lock", ".part"]
    shutil.rmtree(cache)
    shutil.copytree(tmp_path / "killed", cache)
    other = cache / ".other.npy.0.part"  # of another array: somebody may be at work
    other.touch()
    assert torch.equal(folder[1](), expected) and [*cache.glob(".*.part")] == [other]
    os.utime(other, (time.time() - 2 * files._STALE,) * 2)
    folder[1](8)
    assert not other.exists()


def test_two_at_once_prepare_once(tmp_path, monkeypatch):
    prepared, prepare = [], data._prepare
    monkeypatch.setattr(data, "_prepare", lambda *a: prepared.append(prepare(*a)))
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: load_images("digits", tmp_path), range(2))
    assert torch.equal(one, two) and len(prepared) == len(arrays(tmp_path / "cache")) == 1


@pytest.mark.parametrize("when", ["before", "reserving", "writing"])
def test_full_disk(tmp_path, monkeypatch, when):
    """Says how much is missing before anything is decoded, and leaves nothing behind."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(*a):
        raise full

    if when == "before":
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**5))
    if when == "reserving":  # what is free is not all ours
        monkeypatch.setattr(os, "posix_fallocate", fail)
    if when == "writing":
        monkeypatch.setattr(data, "_squares", fail)
    else:
        monkeypatch.setattr(data, "_squares", lambda *a: pytest.fail("decoded"))
    message = "384000|0.4 MB, .* MB free, .* MB too little .No space left" if when != "writing" else "No space left"
    with pytest.raises(OSError, match=message):
        load_images("digits", tmp_path)
    assert [p for p in everything(tmp_path / "cache") if not p.endswith(".lock")] == []


def test_read_only_data_dir(tmp_path, monkeypatch):
    """What is prepared there is used; what is not goes to the user's cache folder; without any, a clear error."""
    ours = tmp_path / "data"
    load_images("digits", ours)
    writable = data.writable
    monkeypatch.setattr(data, "writable", lambda folder: ours not in folder.parents and writable(folder))
    load_images("digits", ours)
    assert not (tmp_path / "xdg").exists()
    expected = load_images("digits", ours, 8)
    assert len(arrays(tmp_path / "xdg/wwgan")) == len(arrays(ours / "cache")) == 1
    monkeypatch.setattr(data, "_prepare", lambda *a: pytest.fail("prepared twice"))
    assert torch.equal(load_images("digits", ours, 8), expected)
    monkeypatch.setattr(data, "writable", lambda folder: False)
    with pytest.raises(OSError, match="written neither to .*XDG_CACHE_HOME"):
        load_images("digits", ours, 4)


def test_no_home(tmp_path, monkeypatch):
    """An account without HOME and passwd entry needs nothing but a data_dir."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    assert len(load_images("digits", tmp_path)) == 1500
    monkeypatch.setattr(data, "writable", lambda folder: False)
    with pytest.raises(OSError, match="cannot|written neither to|set XDG_CACHE_HOME"):
        load_images("digits", tmp_path, 8)
