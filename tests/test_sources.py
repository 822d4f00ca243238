"""wwgan.sources: every layout in which a data set is found, on small fixtures; what is missing; downloads."""

import errno
import gzip
import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets as published
from pictures import alone, class_folders, empty_folder, everything, noise, picture
from PIL import Image
from scipy.io import savemat

from wwgan import sources
from wwgan.data import default_size, load_images, load_labels
from wwgan.runs import run_config
from wwgan.training import train

CIFAR_BATCHES, CELEBA_IMAGES, CELEBA_PARTITION = "cifar-10-batches-py", "img_align_celeba", "list_eval_partition.txt"


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path):
    alone(monkeypatch, tmp_path)


@pytest.fixture
def folder(tmp_path):
    return empty_folder(tmp_path)


def write(path, content):
    """The name and the md5 of a file with this content, as torchvision lists them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return [path.name, hashlib.md5(content, usedforsecurity=False).hexdigest()]


def cifar_batches(root, monkeypatch):
    """torchvision's pickled layout with four images in each file, and its checksums made to fit."""
    pixels, folder = noise(24, 3, 32, 32), root / CIFAR_BATCHES
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


def stl10_files(root, monkeypatch):
    made = {}
    for split in ("train", "test"):
        pixels = noise(2, 3, 96, 96)
        listed = [write(root / f"stl10_binary/{split}_X.bin", pixels.transpose(0, 1, 3, 2).tobytes())]
        listed += [write(root / f"stl10_binary/{split}_y.bin", b"\1\12")]
        monkeypatch.setattr(published.STL10, f"{split}_list", listed)
        made[split] = pixels, [0, 9]
    return made


def celeba(root, n=5):
    for i in range(n):
        picture(root / f"{i:06}.jpg", (178, 218), color=(40 * i, 0, 0))


LAYOUTS = {
    "cifar10": cifar_batches,
    "svhn": svhn_files,
    "stl10": stl10_files,
    "mnist": lambda root, _: idx_files(root / "MNIST/raw"),
    "fashion_mnist": lambda root, _: idx_files(root / "FashionMNIST/raw"),
    "kmnist": lambda root, _: idx_files(root / "KMNIST/raw"),
}


@pytest.mark.parametrize("below", ["", "own"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_torchvision(tmp_path, monkeypatch, name, below):
    """In the data folder, or in the data set's own folder there. Too small pictures and damaged files are refused."""
    made = LAYOUTS[name](tmp_path / (below and name), monkeypatch)
    for split, (pixels, labels) in made.items():
        images = load_images(name, tmp_path, pixels.shape[-1], split)
        assert np.array_equal(images, pixels) and load_labels(name, tmp_path, split).tolist() == labels
    assert load_images(name, tmp_path).shape[-1] == default_size(name)
    with pytest.raises(ValueError, match="too small for size=128"):
        load_images(name, tmp_path, 128)
    for path in tmp_path.rglob("*"):
        if path.is_file() and "cache" not in path.parts:
            path.write_bytes(b"half")
    with pytest.raises(ValueError, match="is incomplete or damaged.*unpack it again"):
        load_images(name, tmp_path)


def test_fashion_mnist_of_debian(tmp_path):
    for split, (pixels, labels) in idx_files(tmp_path / "system", ".gz").items():
        assert np.array_equal(load_images("fashion_mnist", tmp_path, split=split), pixels)
        assert load_labels("fashion_mnist", tmp_path, split).tolist() == labels
    (tmp_path / "system/t10k-images-idx3-ubyte.gz").write_bytes(b"half")
    with pytest.raises(ValueError, match="system is incomplete or damaged"):
        load_images("fashion_mnist", tmp_path, split="test")


def test_cifar10_image_folder(tmp_path):
    for split, expected in class_folders(tmp_path / "cifar10").items():
        images = load_images("cifar10", tmp_path, split=split)
        assert np.array_equal(images.numpy(), expected.transpose(0, 3, 1, 2))
        assert load_labels("cifar10", tmp_path, split).tolist() == [0, 0, 0, 1, 1, 1]


def test_cifar10_order_of_layouts(tmp_path, monkeypatch):
    cifar_batches(tmp_path / "cifar10", monkeypatch)
    assert len(load_images("cifar10", tmp_path)) == 20
    class_folders(tmp_path, ("train",), n=2)
    assert len(load_images("cifar10", tmp_path)) == 4
    with pytest.raises(FileNotFoundError, match="no folder test/ beside train/"):  # not completed from elsewhere
        load_images("cifar10", tmp_path, split="test")
    class_folders(tmp_path / "cifar10", ("train",), n=1)
    assert len(load_images("cifar10", tmp_path)) == 2


def test_cifar10_download(tmp_path, monkeypatch):
    """A download that works ends in torchvision's layout; the archive is not kept."""
    made = {}

    def download(self):
        made.update(cifar_batches(Path(self.root), monkeypatch))
        (Path(self.root) / self.filename).write_bytes(b"archive")

    monkeypatch.setattr(sources, "reach", lambda url: None)
    monkeypatch.setattr(published.CIFAR10, "download", download)
    assert np.array_equal(load_images("cifar10", tmp_path / "new"), made["train"][0])
    assert os.listdir(tmp_path / "new/cifar10") == [CIFAR_BATCHES]


@pytest.mark.parametrize("name", [*LAYOUTS, "celeba"])
@pytest.mark.parametrize("reachable", [False, True])
def test_failed_download(tmp_path, monkeypatch, name, reachable):
    """Says what was looked for and what to do, and leaves nothing behind."""
    if reachable:
        monkeypatch.setattr(sources, "reach", lambda url: None)

    def half(self):
        (Path(self.root) / "half.zip").write_bytes(b"half")
        raise OSError("connection lost")

    monkeypatch.setattr(getattr(published, sources.DATASETS[name].torchvision), "download", half)
    for folder in (tmp_path / "a/b", tmp_path):
        with pytest.raises(FileNotFoundError) as e:
            load_images(name, folder)
        for part in (str(folder / name), "connection lost" if reachable else "no network", "by hand", "data_dir"):
            assert part in str(e.value)
        assert ("/system" in str(e.value)) == (name == "fashion_mnist")
        assert everything(tmp_path) == []


def test_download_that_brings_no_images(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "reach", lambda url: None)
    monkeypatch.setattr(sources, "_torchvision", lambda name, root, *a, **k: (root / "celeba").mkdir())
    with pytest.raises(FileNotFoundError, match="download of celeba brought none"):
        load_images("celeba", tmp_path)


def test_celeba_partition_and_crop(tmp_path):
    root = tmp_path / "celeba"
    celeba(root / CELEBA_IMAGES)
    top = np.zeros((218, 178, 3), np.uint8)
    top[20:198] = 255
    Image.fromarray(top).save(root / CELEBA_IMAGES / "000009.png")
    (root / CELEBA_PARTITION).write_text("000000.jpg 0\n000001.jpg 1\n000002.jpg 2\n000003.jpg 0\n000009.png 0\n")
    train, test = load_images("celeba", tmp_path), load_images("celeba", tmp_path, 32, "test")
    assert train.shape == (3, 3, 64, 64) and test.shape == (1, 3, 32, 32)
    assert [round(v / 40) for v in (*train[:2, 0, 0, 0].tolist(), test[0, 0, 0, 0].item())] == [0, 3, 2]
    assert train[2].min() == 255  # the centred 178 x 178 square and nothing else
    assert len(load_images("celeba", root, 32)) == 3  # data_dir may be the data set's own folder
    (root / CELEBA_PARTITION).write_text("<html>quota exceeded</html>")
    with pytest.raises(ValueError, match="list_eval_partition.txt expects lines like"):
        load_images("celeba", tmp_path)


@pytest.mark.parametrize("below", ["celeba", ".", "celeba/img_align_celeba", "img_align_celeba"])
def test_celeba_without_its_list(tmp_path, below):
    celeba(tmp_path / below)
    if "img" not in below:
        celeba(tmp_path / below / "elsewhere")  # flat means flat
    assert load_images("celeba", tmp_path).shape == (5, 3, 64, 64)
    with pytest.raises(FileNotFoundError, match="list_eval_partition.txt"):
        load_images("celeba", tmp_path, split="test")
    celeba(tmp_path / below / "train", 3)
    celeba(tmp_path / below / "test", 2)
    assert [len(load_images("celeba", tmp_path, split=s)) for s in ("train", "test")] == [3, 2]


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
    with pytest.raises(FileNotFoundError, match="train/ and test/"):
        load_images("folder:in", "data", 32, "test")
    with pytest.raises(ValueError, match="has no classes"):
        load_labels("folder:in", "data")


def test_folder_splits(folder):
    """A class called train is not taken for a split."""
    root, load = folder
    class_folders(root, ("train",))
    assert len(load()) == 6
    with pytest.raises(FileNotFoundError, match="no folder test/ beside train/"):
        load(split="test")
    class_folders(root, ("test",), 1)
    assert len(load(split="test")) == 2
    class_folders(root, ("car", "plane"), 1)
    with pytest.raises(ValueError, match="car, plane beside"):
        load()


def test_a_class_that_cannot_be_read_is_not_left_out(folder, monkeypatch):
    root, load = folder
    class_folders(root, ("cat", "ship"))

    def scandir(path, scandir=os.scandir):
        if Path(path).name == "ship":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(OSError, match="ship cannot be read .Permission denied.: make it readable"):
        load()


def test_a_run_among_the_pictures_does_not_change_them(folder, smoke):
    """Its folder may hold the data folder, too; what it draws is not trained on when it goes on."""
    class_folders(folder[0], ("cat", "ship"), 16)
    run_dir = folder[0] / "run"
    run = train(smoke(dataset=f"folder:{folder[0]}", steps=1, run_dir=run_dir, data_dir=run_dir / "data"), False)
    assert run.samples and len(folder[1]()) == 64
    train(run_config(run_dir=run_dir, resume=True, steps=2), progress=False)


def test_real_cifar10(root, tmp_path):
    real = root / "data/cifar10"
    if not (real / "test").is_dir():
        pytest.skip("no real CIFAR-10 in data/cifar10")
    (tmp_path / "cifar10").symlink_to(real, target_is_directory=True)
    images = load_images("cifar10", tmp_path, split="test")
    assert images.shape == (10_000, 3, 32, 32)
    published = torch.tensor([0.4942, 0.4851, 0.4504], dtype=torch.float64)  # means of the test split
    torch.testing.assert_close(images.double().mean((0, 2, 3)) / 255, published, atol=0.005, rtol=0)
    assert len({image.numpy().tobytes() for image in images}) > 9_990
