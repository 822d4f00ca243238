"""wwgan.data: every layout on small fixtures made here, bad input, and a cache that is complete or absent."""

import gzip
import hashlib
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, CelebA

import wwgan
from wwgan import data, files
from wwgan.data import default_size, load_images, load_labels, sample_images, to_float, to_uint8
from wwgan.files import content_hash, project_root, unknown_name

CLASSES = ("cat", "ship")
CIFAR_BATCHES = "cifar-10-batches-py"
CELEBA_IMAGES, CELEBA_PARTITION = "img_align_celeba", "list_eval_partition.txt"
rng = np.random.default_rng(0)


def picture(path, size=(32, 32), mode="RGB", color=None):
    """Save one picture, of noise or of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size[::-1] + ((len(mode),) if mode in ("RGB", "RGBA") else ())
    noise = rng.integers(0, 256, shape, dtype=np.uint8)
    image = Image.fromarray(noise) if color is None else Image.new(mode, size, color)
    image.save(path)
    return np.asarray(image)


def cifar_folder(root, splits=("train", "test"), n=3):
    return {s: np.stack([picture(root / s / c / f"{i}.png") for c in CLASSES for i in range(n)]) for s in splits}


def cifar_batches(root, monkeypatch):
    """torchvision's pickled layout with four images in each file, and its checksums made to fit."""
    folder = root / CIFAR_BATCHES
    folder.mkdir(parents=True)
    made = {}

    def write(name, content):
        raw = pickle.dumps(content)
        (folder / name).write_bytes(raw)
        return [name, hashlib.md5(raw, usedforsecurity=False).hexdigest()]

    def batch(name):
        made[name] = rng.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
        return write(name, {"data": made[name].reshape(4, -1), "labels": [0, 1, 0, 1]})

    monkeypatch.setattr(CIFAR10, "train_list", [batch(f"data_batch_{i}") for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch")])
    name, md5 = write("batches.meta", {"label_names": CLASSES})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "md5": md5, "key": "label_names"})
    return np.concatenate([made[f"data_batch_{i}"] for i in range(1, 6)]), made["test_batch"]


def everything(root):
    return sorted(str(p.relative_to(root)) for p in Path(root).rglob("*"))


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No test touches the user's cache, the repository's data or the network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))

    def no_network(url):
        raise OSError("no network in tests")

    monkeypatch.setattr(data, "reach", no_network)


# ---- small functions


def test_bytes_and_floats_round_trip():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(every)), every)
    assert to_uint8(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]
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


@pytest.mark.parametrize(
    "name, hint",
    [
        ("cifar", "did you mean 'cifar10'"),
        ("CelebA", "did you mean 'celeba'"),
        ("zzz", "Known: celeba, cifar10, digits, fashion_mnist, folder:<path>"),
    ],
)
def test_unknown_dataset_offers_the_nearest(tmp_path, name, hint):
    for call in (lambda: load_images(name, tmp_path), lambda: default_size(name)):
        with pytest.raises(ValueError) as e:
            call()
        assert hint in str(e.value) and f"unknown dataset {name!r}" in str(e.value)
    assert everything(tmp_path) == []


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


def test_import_is_cheap():
    code = "import sys, wwgan.data; print({'torchvision', 'PIL', 'sklearn', 'tqdm.auto', 'scipy'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_content_hash_sees_bytes_order_and_shape():
    x = torch.arange(48, dtype=torch.uint8).view(4, 3, 2, 2)
    assert content_hash(x) == content_hash(x, chunk_bytes=1) == content_hash(x.mT.contiguous().mT)
    assert len({content_hash(y) for y in (x, x ^ 1, x.flip(0), x.view(4, 3, 1, 4), x[:0])}) == 5


# ---- layouts


@pytest.mark.parametrize("size", [None, 8, 32])
def test_digits(tmp_path, size):
    train, test = (load_images("digits", tmp_path, size, s) for s in ("train", "test"))
    assert train.shape == (1500, 1, size or 16, size or 16) and len(test) == 297 and train.dtype == torch.uint8
    if size == 8:
        from sklearn.datasets import load_digits

        original = torch.from_numpy(load_digits().images)
        assert torch.equal(torch.cat([train, test])[:, 0].double(), (original * 255 / 16).round())


@pytest.mark.parametrize("below", ["cifar10", "."])
def test_cifar10_image_folder(tmp_path, below):
    made = cifar_folder(tmp_path / below)
    for split, expected in made.items():
        images = load_images("cifar10", tmp_path, split=split)
        assert images.shape == (6, 3, 32, 32) and np.array_equal(images.numpy(), expected.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("below", ["cifar10", "."])
def test_cifar10_batches(tmp_path, monkeypatch, below):
    train, test = cifar_batches(tmp_path / below, monkeypatch)
    assert np.array_equal(load_images("cifar10", tmp_path), train)
    assert np.array_equal(load_images("cifar10", tmp_path, split="test"), test)
    with pytest.raises(ValueError, match="too small for size=64"):
        load_images("cifar10", tmp_path, 64)


def fashion_files(folder, ending=""):
    """The four files of FashionMNIST with a few images each."""
    folder.mkdir(parents=True)
    made = {}
    for split, stem, n in (("train", "train", 5), ("test", "t10k", 3)):
        pixels, classes = (rng.integers(0, top, shape, dtype=np.uint8) for top, shape in ((256, (n, 28, 28)), (10, n)))
        for kind, array in (("images-idx3", pixels), ("labels-idx1", classes)):
            raw = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">i4").tobytes() + array.tobytes()
            file = folder / f"{stem}-{kind}-ubyte{ending}"
            file.write_bytes(gzip.compress(raw) if ending else raw)
        made[split] = pixels, classes
    return made


@pytest.mark.parametrize("where", ["FashionMNIST/raw", "fashion_mnist/FashionMNIST/raw", "system/fashion-mnist"])
def test_fashion_mnist(tmp_path, monkeypatch, where):
    """From torchvision's layout and from Debian's package; 28 pixels are padded to 32, not enlarged."""
    monkeypatch.setattr(data, "_SYSTEM", tmp_path / "system")
    with pytest.raises(FileNotFoundError, match="Looked for.*fashion-mnist.*dataset-fashion-mnist"):
        load_images("fashion_mnist", tmp_path)
    made = fashion_files(tmp_path / where, ".gz" if "system" in where else "")
    for split, (pixels, classes) in made.items():
        images = load_images("fashion_mnist", tmp_path, split=split)
        assert images.shape == (len(pixels), 1, 32, 32)
        assert np.array_equal(images[:, 0, 2:-2, 2:-2], pixels) and images.sum() == pixels.sum(dtype=int)
        assert load_labels("fashion_mnist", tmp_path, split).tolist() == classes.tolist()


def test_cifar10_order_of_layouts(tmp_path, monkeypatch):
    cifar_batches(tmp_path / "cifar10", monkeypatch)
    assert len(load_images("cifar10", tmp_path)) == 20
    cifar_folder(tmp_path, ("train",), n=2)
    assert len(load_images("cifar10", tmp_path)) == 4
    with pytest.raises(FileNotFoundError, match="no folder test/ beside train/"):  # not completed from elsewhere
        load_images("cifar10", tmp_path, split="test")
    cifar_folder(tmp_path / "cifar10", ("train",), n=1)
    assert len(load_images("cifar10", tmp_path)) == 2


def test_cifar10_damaged_batches(tmp_path, monkeypatch):
    cifar_batches(tmp_path / "cifar10", monkeypatch)
    (tmp_path / "cifar10" / CIFAR_BATCHES / "data_batch_3").write_bytes(b"half")
    with pytest.raises(ValueError, match="incomplete or damaged.*unpack cifar-10-python.tar.gz again"):
        load_images("cifar10", tmp_path)


def test_cifar10_download(tmp_path, monkeypatch):
    """A download that works ends in torchvision's layout; the archive is not kept."""
    made = {}

    def download(self):
        folder = Path(self.root)
        if not (folder / CIFAR10.base_folder).exists():
            made["train"], made["test"] = cifar_batches(folder, monkeypatch)
            (folder / CIFAR10.filename).write_bytes(b"archive")

    monkeypatch.setattr(data, "reach", lambda url: None)
    monkeypatch.setattr(CIFAR10, "download", download)
    images = load_images("cifar10", tmp_path / "new")
    assert np.array_equal(images, made["train"])
    assert os.listdir(tmp_path / "new/cifar10") == [CIFAR_BATCHES]


@pytest.mark.parametrize("dataset", ["cifar10", "celeba"])
@pytest.mark.parametrize("reachable", [False, True])
def test_failed_download(tmp_path, monkeypatch, dataset, reachable):
    """Says what was looked for and what to do, in seconds, and leaves nothing behind."""
    if reachable:
        monkeypatch.setattr(data, "reach", lambda url: None)

    def half(self):
        (Path(self.root) / "half.zip").write_bytes(b"half")
        raise OSError("connection lost")

    for kind in (CIFAR10, CelebA):
        monkeypatch.setattr(kind, "download", half)
    for folder in (tmp_path / "a/b", tmp_path):
        with pytest.raises(FileNotFoundError) as e:
            load_images(dataset, folder)
        for part in (str(folder / dataset), "connection lost" if reachable else "no network", "by hand", "data_dir"):
            assert part in str(e.value)
        assert everything(tmp_path) == []


def test_download_that_brings_no_images(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "reach", lambda url: None)
    monkeypatch.setattr(data, "_fetch_celeba", lambda folder: folder)
    with pytest.raises(FileNotFoundError, match="download of celeba brought none"):
        load_images("celeba", tmp_path)


def celeba(root, n=5, ending="jpg"):
    for i in range(n):
        picture(root / f"{i:06}.{ending}", (178, 218), color=(40 * i, 0, 0))


def test_celeba_partition_and_crop(tmp_path):
    root = tmp_path / "celeba"
    celeba(root / CELEBA_IMAGES)
    top = np.zeros((218, 178, 3), np.uint8)
    top[20:198] = 255
    Image.fromarray(top).save(root / CELEBA_IMAGES / "000009.png")
    (root / CELEBA_PARTITION).write_text("000000.jpg 0\n000001.jpg 1\n000002.jpg 2\n000003.jpg 0\n000009.png 0\n")
    train = load_images("celeba", tmp_path)
    assert train.shape == (3, 3, 64, 64)
    assert [round(v / 40) for v in train[:2, 0, 0, 0].tolist()] == [0, 3]
    assert train[2].min() == 255  # the centred 178 x 178 square and nothing else
    test = load_images("celeba", tmp_path, 32, "test")
    assert test.shape == (1, 3, 32, 32) and round(test[0, 0, 0, 0].item() / 40) == 2
    assert len(load_images("celeba", root, 32)) == 3  # data_dir may be the dataset's own folder


@pytest.mark.parametrize("below", ["celeba", ".", "celeba/img_align_celeba", "img_align_celeba"])
def test_celeba_flat(tmp_path, below):
    celeba(tmp_path / below)
    if "img" not in below:
        celeba(tmp_path / below / "elsewhere")  # flat means flat
    assert load_images("celeba", tmp_path).shape == (5, 3, 64, 64)
    with pytest.raises(FileNotFoundError, match="list_eval_partition.txt"):
        load_images("celeba", tmp_path, split="test")


def test_celeba_split_folders_and_bad_partition(tmp_path):
    celeba(tmp_path / "celeba/train", 3)
    celeba(tmp_path / "celeba/test", 2)
    assert [len(load_images("celeba", tmp_path, split=s)) for s in ("train", "test")] == [3, 2]
    (tmp_path / "celeba" / CELEBA_PARTITION).write_text("<html>quota exceeded</html>")
    with pytest.raises(ValueError, match="list_eval_partition.txt expects lines like"):
        load_images("celeba", tmp_path)


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


def test_folder_splits(tmp_path):
    cifar_folder(tmp_path / "in", ("train",))
    load = lambda split: load_images(f"folder:{tmp_path / 'in'}", tmp_path / "data", 16, split)
    assert len(load("train")) == 6
    with pytest.raises(FileNotFoundError, match="no folder test/ beside train/"):
        load("test")
    cifar_folder(tmp_path / "in", ("test",), 1)
    assert len(load("test")) == 2


@pytest.mark.filterwarnings("error")
def test_channels(tmp_path):
    """Gray only if all pictures are; 16-bit gray keeps its range; palettes and alpha become RGB."""
    load = lambda: load_images(f"folder:{tmp_path / 'in'}", tmp_path / "data", 8)
    picture(tmp_path / "in/1.png", (8, 8), "L", 100)
    picture(tmp_path / "in/2.png", (8, 8), "1", 1)
    Image.fromarray(np.full((8, 8), 200 * 257 + 5, np.uint16)).save(tmp_path / "in/3.png")
    gray = load()
    assert gray.shape[1] == 1 and gray[:, 0, 0, 0].tolist() == [100, 255, 200]
    Image.new("RGB", (8, 8), (10, 20, 30)).quantize(4).save(tmp_path / "in/4.png", transparency=b"\7")
    picture(tmp_path / "in/5.png", (8, 8), "RGBA", (1, 2, 3, 4))
    assert load()[:, :, 0, 0].tolist() == [[100] * 3, [255] * 3, [200] * 3, [10, 20, 30], [1, 2, 3]]


def test_photos_are_turned_upright(tmp_path):
    (tmp_path / "in").mkdir()
    half = np.zeros((8, 8), np.uint8)
    half[:, :4] = 255
    exif = Image.Exif()
    exif[0x112] = 6  # to be shown turned by 90 degrees
    Image.fromarray(half).save(tmp_path / "in/1.png", exif=exif)
    assert np.array_equal(load_images(f"folder:{tmp_path / 'in'}", tmp_path, 8)[0, 0], np.rot90(half, -1))


# ---- bad input


def truncated(path):
    picture(path, (64, 64))
    path.write_bytes(path.read_bytes()[:-900])


BAD_PICTURES = {
    "truncated jpeg": (truncated, "bad.jpg cannot be read as an image"),
    "not an image": (lambda p: p.write_text("<html>"), "bad.jpg cannot be read as an image"),
    "empty file": (lambda p: p.touch(), "bad.jpg cannot be read as an image"),
    "too small": (lambda p: picture(p, (90, 30)), "bad.jpg is 90x30 pixels .* too small for size=32.* at most 30"),
    "bomb": (lambda p: picture(p, (100, 100)), "bad.jpg is refused"),
}


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_bad_picture_is_named_and_leaves_nothing(tmp_path, monkeypatch, kind):
    make, message = BAD_PICTURES[kind]
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
        assert [p for p in everything(tmp_path) if p.endswith((".part", ".npy"))] == []


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(size=0), "positive int"),
        (dict(size=-4), "positive int"),
        (dict(size=16.0), "positive int"),
        (dict(size=True), "positive int"),
        (dict(size="16"), "positive int"),
        (dict(split="trian"), "did you mean 'train'"),
        (dict(split="valid"), "Known: test, train"),
        (dict(data_dir="file"), "data_dir expects a folder"),
        (dict(dataset="folder:file"), "is a file"),
        (dict(dataset="folder:"), "folder:<path>"),
        (dict(size=10**7), "make room or ask for a smaller size"),
    ],
)
def test_bad_arguments(tmp_path, monkeypatch, kwargs, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises((ValueError, OSError), match=message):
        load_images(**{"data_dir": "data", **kwargs})
    assert [p for p in everything(tmp_path) if p not in ("file", "data", "data/cache")] == []


@pytest.mark.parametrize(
    "make, dataset",
    [
        ("in", "folder:in"),
        ("in/train", "folder:in"),
        ("cifar10/train/cat", "cifar10"),
        ("celeba/img_align_celeba", "celeba"),
    ],
)
def test_empty_folder(tmp_path, monkeypatch, make, dataset):
    monkeypatch.chdir(tmp_path)
    (tmp_path / make).mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no images in .*expected files ending in .jpg"):
        load_images(dataset, ".")
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_images("folder:nowhere", ".")


# ---- cache


def test_cache_is_used_and_protected(tmp_path, monkeypatch):
    """The second call opens the file of the first; writing to the tensor reaches neither file nor next caller."""
    first = load_images("digits", tmp_path)
    expected = first.clone()
    monkeypatch.setattr(data, "_prepare", lambda *a: pytest.fail("prepared twice"))
    first.zero_()
    assert torch.equal(load_images("digits", tmp_path), expected)
    assert len(os.listdir(tmp_path / "cache")) == 1


def test_no_warning_from_memory_mapping(tmp_path, recwarn):
    load_images("digits", tmp_path)
    load_images("digits", tmp_path)
    assert [str(w.message) for w in recwarn if "writ" in str(w.message)] == []


def foreign(path, shape=(1500, 1, 16, 16), dtype=np.uint8):
    np.save(path, np.zeros(shape, dtype))


SPOILT = {
    "a byte short": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "a byte long": lambda p: p.write_bytes(p.read_bytes() + b"x"),
    "empty": lambda p: p.write_bytes(b""),
    "text": lambda p: p.write_text("hello"),
    "half a header": lambda p: p.write_bytes(p.read_bytes()[:40]),
    "pickle": lambda p: p.write_bytes(pickle.dumps([1])),
    "count": lambda p: foreign(p, (3, 1, 16, 16)),
    "channels": lambda p: foreign(p, (1500, 3, 16, 16)),
    "size": lambda p: foreign(p, (1500, 1, 8, 8)),
    "dtype": lambda p: foreign(p, dtype=np.int8),
    "no dimensions": lambda p: foreign(p, ()),
    "npz": lambda p: np.savez(p.open("wb"), x=np.zeros(3)),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_spoilt_cache_is_made_anew(tmp_path, kind):
    expected = load_images("digits", tmp_path).clone()
    (path,) = (tmp_path / "cache").iterdir()
    SPOILT[kind](path)
    assert torch.equal(load_images("digits", tmp_path), expected) and path.stat().st_size == 128 + expected.numel()


def test_cache_that_vanishes_once_written(tmp_path, monkeypatch):
    def prepare(source, size, path, prepare=data._prepare):
        prepare(source, size, path)
        path.unlink()

    monkeypatch.setattr(data, "_prepare", prepare)
    with pytest.raises(OSError, match="cannot be read back"):
        load_images("digits", tmp_path)


def test_changed_sources_give_a_new_array(tmp_path):
    made = cifar_folder(tmp_path / "cifar10", ("train",))["train"]
    load = lambda: load_images("cifar10", tmp_path)
    old = load()
    picture(tmp_path / "cifar10/train/cat/0.png", color=(1, 2, 3))
    assert load()[0, :, 0, 0].tolist() == [1, 2, 3] and np.array_equal(old[0], made[0].transpose(2, 0, 1))
    os.rename(tmp_path / "cifar10/train/cat/0.png", tmp_path / "cifar10/train/ship/9.png")
    assert load()[-1, :, 0, 0].tolist() == [1, 2, 3]
    last = tmp_path / "cifar10/train/ship/z.bmp"
    for stamp, red in enumerate((7, 9)):  # as many bytes, a nanosecond later
        picture(last, color=(red, 2, 3))
        os.utime(last, ns=(stamp, stamp))
        assert load()[-1, :, 0, 0].tolist() == [red, 2, 3]


def test_crash_leaves_only_a_temporary_which_is_swept_when_stale(tmp_path):
    code = f"""
import os, wwgan.data as d
square, count = d._square, list(range(15))
d._square = lambda *a, **k: square(*a, **k) if count.pop() else os._exit(9)
d.load_images("cifar10", {str(tmp_path)!r})"""
    cifar_folder(tmp_path / "cifar10", ("train",), n=10)
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    (left,) = (tmp_path / "cache").iterdir()
    assert left.suffix == ".part"
    assert load_images("cifar10", tmp_path).flatten(1).any(1).all()  # no unwritten rows
    assert left.exists()  # may be another process at work
    os.utime(left, (time.time() - 2 * files._STALE,) * 2)
    load_images("cifar10", tmp_path, 8)
    assert not left.exists() and len(os.listdir(tmp_path / "cache")) == 2


def test_two_processes_prepare_the_same(tmp_path):
    """Another process and this one start at the same time, both succeed, one file is left."""
    cifar_folder(tmp_path / "cifar10", ("train",), n=100)
    code = f"""
import wwgan.data as d
print("ready", flush=True)
input()
print(d.content_hash(d.load_images("cifar10", {str(tmp_path)!r})))"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout.readline() == "ready\n"
        other.stdin.write("go\n")
        other.stdin.flush()
        ours = content_hash(load_images("cifar10", tmp_path))
        assert other.communicate(timeout=60)[0].strip() == ours
    assert len(os.listdir(tmp_path / "cache")) == 1


def test_interleaved_preparation(tmp_path, monkeypatch):
    """Another process finishes the same file while this one is still writing."""
    plain = data._fill

    def fill(*args):
        monkeypatch.setattr(data, "_fill", plain)
        load_images("digits", tmp_path)
        plain(*args)

    monkeypatch.setattr(data, "_fill", fill)
    assert len(load_images("digits", tmp_path)) == 1500 and len(os.listdir(tmp_path / "cache")) == 1


def test_read_only_data_dir(tmp_path, monkeypatch):
    """What is prepared there is used; what is not goes to the user's cache folder; without any, a clear error."""
    ours = tmp_path / "data"
    load_images("digits", ours)
    writable = data.writable
    monkeypatch.setattr(data, "writable", lambda folder: ours not in folder.parents and writable(folder))
    load_images("digits", ours)
    assert not (tmp_path / "xdg").exists()
    expected = load_images("digits", ours, 8)
    assert len(os.listdir(tmp_path / "xdg/wwgan")) == 1 and len(os.listdir(ours / "cache")) == 1
    monkeypatch.setattr(data, "_prepare", lambda *a: pytest.fail("prepared twice"))
    assert torch.equal(load_images("digits", ours, 8), expected)
    monkeypatch.setattr(data, "writable", lambda folder: False)
    with pytest.raises(OSError, match="written neither to .*XDG_CACHE_HOME"):
        load_images("digits", ours, 4)


def test_writable_probe(tmp_path):
    (tmp_path / "file").touch()
    assert data.writable(tmp_path / "new/cache") and os.listdir(tmp_path / "new/cache") == []
    assert not data.writable(tmp_path / "file/cache")


# ---- real images


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


def test_a_class_called_train_is_not_taken_for_a_split(tmp_path):
    for name in ("car", "plane", "train"):
        (tmp_path / name).mkdir()
        Image.new("L", (16, 16)).save(tmp_path / name / "1.png")
    with pytest.raises(ValueError, match="car, plane beside"):
        load_images(f"folder:{tmp_path}", tmp_path / "data", 16)


def test_labels_are_those_of_the_images(tmp_path, monkeypatch):
    for split in ("train", "test"):
        for color, name in ((10, "ant"), (200, "bee")):
            for i in range(3):
                picture(tmp_path / "cifar10" / split / name / f"{i}.png", color=(color,) * 3)
        images, labels = load_images("cifar10", tmp_path, split=split), load_labels("cifar10", tmp_path, split)
        assert labels.tolist() == [0, 0, 0, 1, 1, 1] and labels.dtype == torch.int64
        assert ((images.float().mean((1, 2, 3)) > 100) == (labels == 1)).all()
    assert torch.equal(load_labels(f"folder:{tmp_path / 'cifar10'}", tmp_path), load_labels("cifar10", tmp_path))
    cifar_batches(tmp_path / "batches" / "cifar10", monkeypatch)
    assert load_labels("cifar10", tmp_path / "batches").tolist() == [0, 1, 0, 1] * 5


def test_images_without_classes_have_no_labels(tmp_path):
    for path in ("a.png", "class/b.png"):
        picture(tmp_path / "pictures" / path)
    with pytest.raises(ValueError, match="has no classes"):
        load_labels(f"folder:{tmp_path / 'pictures'}", tmp_path)
    assert load_labels("digits", tmp_path, "test").shape == (297,)


def test_all_bad_files_are_named_at_once(tmp_path):
    for k in range(20):
        picture(tmp_path / f"in/{k:02d}.png", (8, 8) if k % 3 else (32, 32), "RGB")
    (tmp_path / "in" / "00.png").write_bytes(b"nothing")
    (tmp_path / "in" / "03.png").write_bytes(b"")
    for k in (1, 2, 4, 5, 7):
        (tmp_path / "in" / f"{k:02d}.png").unlink()
    with pytest.raises(ValueError) as error:
        load_images(f"folder:{tmp_path / 'in'}", tmp_path / "data", size=16)
    lines = str(error.value).splitlines()
    assert lines[0] == "10 images cannot be used, and perhaps more:" and len(lines) == 11
    assert all(f"{k:02d}.png" in str(error.value) for k in (0, 3, 8, 10, 11, 13, 14, 16, 17, 19))
    assert "cannot be read as an image" in lines[1] and "too small for size=16" in lines[3]
    assert not list((tmp_path / "data" / "cache").iterdir())
