"""Data sets in every layout, on small fixtures drawn here; pictures made into one array that is whole or absent."""

import errno
import gzip
import hashlib
import os
import pickle
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets as published
from PIL import Image
from scipy.io import savemat

from wwgan import data, sources
from wwgan.data import default_size, load_images, load_labels, sample_images, to_float, to_uint8
from wwgan.runs import run_config
from wwgan.training import train

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
    """Each split's pictures, n in each of two classes."""
    names = [f"{c}/{i}.png" for c in ("cat", "ship") for i in range(n)]
    return {split: np.stack([picture(root / split / name) for name in names]) for split in splits}


def everything(root, *endings):
    paths = [str(p.relative_to(root)) for p in Path(root).rglob("*")]
    return sorted(path for path in paths if path.endswith(endings or ""))


def arrays(folder):
    return sorted(Path(folder).glob("*.npy"))


def no_network(url):
    raise OSError("no network in tests")


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path):
    """Keeps a test from the user's cache, the system's data sets and the network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(sources, "SYSTEM", str(tmp_path / "system"))
    monkeypatch.setattr(sources, "reach", no_network)


@pytest.fixture
def folder(tmp_path):
    """A folder for pictures, and a function that loads it."""
    (tmp_path / "in").mkdir()
    load = lambda size=16, split="train": load_images(f"folder:{tmp_path / 'in'}", tmp_path / "data", size, split)
    return tmp_path / "in", load


# ---- small functions


def test_bytes_floats_and_samples():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(every)), every) and to_uint8(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]
    with pytest.raises(ValueError, match="uint8"):
        to_float(torch.zeros(2))
    images = every[:5].view(5, 1, 1, 1).repeat(1, 3, 2, 2)
    draw = lambda: sample_images(images, 500, torch.Generator().manual_seed(1))
    batch = draw()
    assert batch.dtype == torch.float32 and batch.shape == (500, 3, 2, 2)
    assert torch.equal(batch, draw()) and to_uint8(batch)[:, 0, 0, 0].unique().tolist() == [0, 1, 2, 3, 4]


# ---- pictures


def test_digits(tmp_path):
    from sklearn.datasets import load_digits

    for size in (None, 8):
        train, test = (load_images("digits", tmp_path, size, s) for s in ("train", "test"))
        assert train.shape == (1500, 1, size or 16, size or 16) and len(test) == 297 and train.dtype == torch.uint8
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


def truncated(path):
    picture(path, (64, 64))
    path.write_bytes(path.read_bytes()[:-900])


def postscript(path):
    """Would start another program."""
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n")


BAD_PICTURES = {
    "truncated jpeg": (truncated, "bad.jpg cannot be read as an image"),
    "empty file": (lambda p: p.touch(), "bad.jpg cannot be read as an image"),
    "another format": (lambda p: Image.new("L", (64, 64)).save(p, "GIF"), "bad.jpg cannot be read as an image"),
    "postscript": (postscript, "bad.jpg cannot be read as an image"),
    "too small": (lambda p: picture(p, (90, 30)), "bad.jpg is 90x30 pixels .* too small for size=32.* at most 30"),
    "bomb": (lambda p: picture(p, (100, 100)), "bad.jpg cannot be read as an image .*exceeds limit"),
    "pipe": (os.mkfifo, "bad.jpg is a pipe or a device"),
    "device": (lambda p: p.symlink_to("/dev/zero"), "bad.jpg is a pipe or a device"),
}


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_bad_picture_is_named_and_leaves_nothing(folder, tmp_path, monkeypatch, kind):
    make, message = BAD_PICTURES[kind]
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("another program was started"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4500)
    for name in ("a", "b", "c"):
        picture(folder[0] / f"{name}.jpg", (64, 64))
    make(folder[0] / "bad.jpg")
    with pytest.raises(ValueError, match=message):
        folder[1](32)
    assert everything(tmp_path, ".part", ".npy", ".sha256") == []


def test_bad_files_are_named_together(folder):
    root, load = folder
    for k in range(12):
        picture(root / f"{k:02d}.png", (8, 8))
    picture(root / "good.png")
    (root / "00.png").write_bytes(b"nothing")
    with pytest.raises(ValueError) as error:
        load()
    first, *lines = str(error.value).splitlines()
    assert first == "12 of 13 images cannot be used:" and len(lines) == 10
    assert all(f"{k:02d}.png" in line for k, line in enumerate(lines))
    assert "cannot be read as an image" in lines[0] and "too small for size=16" in lines[1]


BAD_ARGUMENTS = [
    *((dict(size=size), "positive int") for size in (0, -4, 16.0, True, "16")),
    (dict(dataset="cifar"), "unknown dataset 'cifar': did you mean 'cifar10'"),
    (dict(dataset="zzz"), "Known: " + ", ".join(sorted({*sources.DATASETS, "folder:<path>"} - {"folder"})) + "$"),
    (dict(split="trian"), "did you mean 'train'"),
    (dict(split="valid"), "Known: test, train"),
    (dict(data_dir="file"), "data_dir expects a folder"),
    (dict(dataset="folder:file"), "expects a folder of images"),
    (dict(dataset="folder:"), "folder:<path>"),
    (dict(dataset="folder:nowhere"), "no folder"),
    (dict(size=10**7), "MB too little.*make room or ask for a smaller size"),
    (dict(dataset="folder:empty"), "no images in .*expected files ending in .jpg"),
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
    assert everything(tmp_path, ".part", ".npy", ".sha256") == []


# ---- prepared arrays


def test_array_is_prepared_once_and_protected(tmp_path, monkeypatch, recwarn):
    """By the first of two; writing to the tensor reaches neither the file nor the next caller."""
    made, prepare = [], data._prepare
    monkeypatch.setattr(data, "_prepare", lambda *a: made.append(1) or prepare(*a))
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: load_images("digits", tmp_path), range(2))
    expected = one.clone()
    one.zero_()
    assert torch.equal(two, expected) and torch.equal(load_images("digits", tmp_path), expected)
    assert len(made) == len(arrays(tmp_path / "cache")) == 1 and not recwarn.list


def test_spoilt_array_is_made_anew_with_a_word(folder, tmp_path, capsys):
    """All that a checksum notices, test_files.py shows."""
    class_folders(folder[0], ("cat",))
    expected = folder[1]().clone()
    (path,) = arrays(tmp_path / "data/cache")
    before = path.read_bytes()
    path.write_bytes(before[:-1000] + bytes([before[-1000] ^ 1]) + before[-999:])
    assert torch.equal(folder[1](), expected) and f"{path.name} is damaged: " in capsys.readouterr().err
    assert path.read_bytes() == before and torch.equal(folder[1](), expected)


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


def test_temporaries_of_the_killed_go(folder, tmp_path, monkeypatch):
    class_folders(folder[0], ("cat",))
    square, cache, left = data._square, tmp_path / "data/cache", set()

    def watched(*args):
        left.update(cache.glob(".*.part"))
        return square(*args)

    monkeypatch.setattr(data, "_square", watched)
    expected = folder[1]().clone()
    (begun,), (made,) = left, arrays(cache)
    made.rename(begun)
    other = cache / ".other.npy.0.part"  # of another array: somebody may be at work
    other.touch()
    assert torch.equal(folder[1](), expected) and [*cache.glob(".*.part")] == [other]


def throw(error):
    raise error


def test_read_only_data_dir(tmp_path, monkeypatch):
    """What is prepared there is used, by an account with neither home nor passwd entry; else a clear error."""
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    load_images("digits", tmp_path)
    monkeypatch.setattr("filelock.FileLock", lambda path: throw(OSError(errno.EROFS, "Read-only file system", path)))
    assert len(load_images("digits", tmp_path)) == 1500
    with pytest.raises(OSError, match="kept in .*/cache .*Read-only file system.*pass a data_dir that can be written"):
        load_images("digits", tmp_path, 8)


def test_a_data_dir_that_cannot_be_written_is_prepared_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("wwgan.data.os.access", lambda path, mode: False)
    load_images("digits", tmp_path / "data", 8)
    assert len([*(tmp_path / "home" / "wwgan").glob("digits-*.npy")]) == 1


# ---- layouts


def write(path, content):
    """The name and the md5 of a file with this content, as torchvision lists them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return [path.name, hashlib.md5(content, usedforsecurity=False).hexdigest()]


def cifar_batches(root, monkeypatch):
    """torchvision's pickled layout with four images in each file, and its checksums made to fit."""
    pixels, folder = noise(24, 3, 32, 32), root / "cifar-10-batches-py"
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    listed = [
        write(folder / name, pickle.dumps({"data": batch.reshape(4, -1), "labels": [0, 1, 0, 1]}))
        for name, batch in zip(names, np.split(pixels, 6))
    ]
    monkeypatch.setattr(published.CIFAR10, "train_list", listed[:5])
    monkeypatch.setattr(published.CIFAR10, "test_list", listed[5:])
    name, md5 = write(folder / "batches.meta", pickle.dumps({"label_names": ["cat", "ship"]}))
    monkeypatch.setattr(published.CIFAR10, "meta", {"filename": name, "md5": md5, "key": "label_names"})
    return {"train": (pixels[:20], [0, 1] * 10), "test": (pixels[20:], [0, 1] * 2)}


def idx_files(folder, ending=""):
    """The four files of MNIST's format, with a few images; each split's images padded, and labels."""
    made = {}
    for split, stem, n in (("train", "train", 5), ("test", "t10k", 3)):
        pixels, labels = noise(n, 28, 28), noise(n, below=10)
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            raw = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">i4").tobytes() + array.tobytes()
            write(folder / f"{stem}-{kind}-ubyte{ending}", gzip.compress(raw) if ending else raw)
        made[split] = np.pad(pixels, ((0, 0), (2, 2), (2, 2)))[:, None], labels.tolist()
    return made


def svhn_files(root, monkeypatch):
    made, listed = {}, {}
    for split in ("train", "test"):
        pixels, path = noise(3, 3, 32, 32), root / f"{split}_32x32.mat"
        root.mkdir(parents=True, exist_ok=True)
        savemat(path, dict(X=pixels.transpose(2, 3, 1, 0), y=np.array([[1], [10], [2]])))
        listed[split] = ["", *write(path, path.read_bytes())]
        made[split] = pixels, [1, 0, 2]
    monkeypatch.setattr(published.SVHN, "split_list", listed)
    return made


LAYOUTS = {
    "cifar10": cifar_batches,
    "svhn": svhn_files,
    "mnist": lambda root, _: idx_files(root / "MNIST/raw"),
    "fashion_mnist": lambda root, _: idx_files(root / "FashionMNIST/raw"),
    "kmnist": lambda root, _: idx_files(root / "KMNIST/raw"),
    "fashion_mnist of Debian": lambda root, _: idx_files(Path(sources.SYSTEM, "fashion-mnist"), ".gz"),
}


@pytest.mark.parametrize("below", ["", "own"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_torchvision_and_debian(tmp_path, monkeypatch, layout, below):
    """In the data folder, or in the data set's own folder there. Too small pictures and damaged files are refused."""
    name, root = layout.split()[0], tmp_path / "data"
    made = LAYOUTS[layout](root / (below and name), monkeypatch)
    for split, (pixels, labels) in made.items():
        images = load_images(name, root, pixels.shape[-1], split)
        assert np.array_equal(images, pixels) and load_labels(name, root, split).tolist() == labels
    assert load_images(name, root).shape[-1] == default_size(name)
    with pytest.raises(ValueError, match="too small for size=128"):
        load_images(name, root, 128)
    for path in tmp_path.rglob("*"):
        if path.is_file() and "cache" not in path.parts:
            path.write_bytes(b"half")
    with pytest.raises(ValueError, match="is incomplete or damaged.*unpack it again"):
        load_images(name, root)


def test_cifar10_image_folder_and_order_of_layouts(tmp_path, monkeypatch):
    cifar_batches(tmp_path / "cifar10", monkeypatch)
    assert len(load_images("cifar10", tmp_path)) == 20
    class_folders(tmp_path, ("train",), n=2)
    assert len(load_images("cifar10", tmp_path)) == 4
    with pytest.raises(FileNotFoundError, match="has no folder test/"):  # not completed from elsewhere
        load_images("cifar10", tmp_path, split="test")
    for split, expected in class_folders(tmp_path / "cifar10").items():
        images = load_images("cifar10", tmp_path, split=split)
        assert np.array_equal(images.numpy(), expected.transpose(0, 3, 1, 2))
        assert load_labels("cifar10", tmp_path, split).tolist() == [0, 0, 0, 1, 1, 1]


def test_cifar10_download(tmp_path, monkeypatch):
    """A download that works ends in torchvision's layout; the archive is not kept."""
    made = {}

    def download(self):
        made.update(cifar_batches(Path(self.root), monkeypatch))
        (Path(self.root) / self.filename).write_bytes(b"archive")

    monkeypatch.setattr(sources, "reach", lambda url: None)
    monkeypatch.setattr(published.CIFAR10, "download", download)
    assert np.array_equal(load_images("cifar10", tmp_path / "new"), made["train"][0])
    assert os.listdir(tmp_path / "new/cifar10") == ["cifar-10-batches-py"]


@pytest.mark.parametrize("name", [name for name, about in sources.DATASETS.items() if about.torchvision])
@pytest.mark.parametrize("reachable", [False, True])
def test_failed_download(tmp_path, monkeypatch, name, reachable):
    """Says what was looked for and what to do, and leaves nothing behind."""

    def half(self):
        (Path(self.root) / "half.zip").write_bytes(b"half")
        raise OSError("connection lost")

    monkeypatch.setattr(sources, "reach", (lambda url: None) if reachable else no_network)
    monkeypatch.setattr(getattr(published, sources.DATASETS[name].torchvision), "download", half)
    for folder in (tmp_path / "a/b", tmp_path):
        with pytest.raises(FileNotFoundError) as e:
            load_images(name, folder)
        for part in (str(folder / name), "connection lost" if reachable else "no network", "by hand", "data_dir"):
            assert part in str(e.value)
        assert ("/system/" in str(e.value)) == bool(sources.DATASETS[name].padded_from)
        assert everything(tmp_path) == []


def celeba(root, n=5):
    for i in range(n):
        picture(root / f"{i:06}.jpg", (178, 218), color=(40 * i, 0, 0))


def test_celeba_partition_and_crop(tmp_path):
    root, listed = tmp_path / "celeba", tmp_path / "celeba/list_eval_partition.txt"
    celeba(root / "img_align_celeba")
    top = np.zeros((218, 178, 3), np.uint8)
    top[20:198] = 255
    Image.fromarray(top).save(root / "img_align_celeba/000009.png")
    listed.write_text("000000.jpg 0\n000001.jpg 1\n000002.jpg 2\n000003.jpg 0\n000009.png 0\n")
    train, test = load_images("celeba", tmp_path), load_images("celeba", tmp_path, 32, "test")
    assert train.shape == (3, 3, 64, 64) and test.shape == (1, 3, 32, 32)
    assert [round(v / 40) for v in (*train[:2, 0, 0, 0].tolist(), test[0, 0, 0, 0].item())] == [0, 3, 2]
    assert train[2].min() == 255  # the centred 178 x 178 square and nothing else
    assert len(load_images("celeba", root, 32)) == 3  # data_dir may be the data set's own folder
    listed.write_text("<html>quota exceeded</html>")
    with pytest.raises(ValueError, match="list_eval_partition.txt names no train image .*expected lines like"):
        load_images("celeba", tmp_path)


@pytest.mark.parametrize("below", ["celeba/img_align_celeba", "img_align_celeba"])
def test_celeba_without_its_list(tmp_path, below):
    celeba(tmp_path / below)
    assert load_images("celeba", tmp_path).shape == (5, 3, 64, 64)
    with pytest.raises(FileNotFoundError, match="list_eval_partition.txt"):
        load_images("celeba", tmp_path, split="test")
    with pytest.raises(ValueError, match="has no classes"):
        load_labels("celeba", tmp_path)


def test_folder_is_recursive_sorted_and_cropped(tmp_path, monkeypatch):
    for i, name in enumerate(("b/z.png", "a/b/c.jpg", "a.PNG")):
        picture(tmp_path / "in" / name, (48 + i, 64), color=(0, 100 * i, 0))
    for name in ("in/notes.txt", "in/.x.png"):
        (tmp_path / name).write_text("not a picture")
    picture(tmp_path / "in/.hidden/y.png")
    (tmp_path / "in/a/loop").symlink_to(tmp_path / "in", target_is_directory=True)
    (tmp_path / "in/link.png").symlink_to(tmp_path / "in/b/z.png")
    monkeypatch.chdir(tmp_path)
    images = load_images("folder:in", "data", 32)
    assert images.shape == (4, 3, 32, 32)
    assert [round(v / 100) for v in images[:, 1, 5, 5].tolist()] == [2, 1, 0, 0]  # a.PNG, a/b/c.jpg, b/z.png, link.png
    with pytest.raises(ValueError, match="has no classes"):
        load_labels("folder:in", "data")


def test_folder_splits(folder):
    """A class called train is not taken for a split."""
    root, load = folder
    class_folders(root, ("train",))
    assert len(load()) == 6
    with pytest.raises(FileNotFoundError, match="has no folder test/"):
        load(split="test")
    class_folders(root, ("test",), 1)
    assert len(load(split="test")) == 2
    class_folders(root, ("car", "plane"), 1)
    with pytest.raises(ValueError, match="car, plane beside"):
        load()


@pytest.mark.parametrize("name", ["ship", "train"])
def test_a_folder_that_cannot_be_read_is_not_left_out(tmp_path, monkeypatch, name):
    class_folders(tmp_path / "cifar10", ("train",))

    def scandir(path, scandir=os.scandir):
        return scandir(path) if Path(path).name != name else throw(PermissionError(errno.EACCES, "denied", path))

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "listdir", lambda path: [entry.name for entry in scandir(path)])
    with pytest.raises(OSError, match=f"denied.*{name}|{name} cannot be read .denied.: make it readable"):
        load_images("cifar10", tmp_path)


def test_a_run_among_the_pictures_does_not_change_them(folder, smoke):
    """Its folder may hold the data folder, too; what it draws is not trained on when it goes on."""
    class_folders(folder[0], ("cat", "ship"), 16)
    run_dir = folder[0] / "run"
    run = train(smoke(dataset=f"folder:{folder[0]}", steps=1, run_dir=run_dir, data_dir=run_dir / "data"), False)
    assert run.samples and len(folder[1]()) == 64
    train(run_config(run_dir=run_dir, resume=True, steps=2), progress=False)
