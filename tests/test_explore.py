"""The explore notebook: its numbers are those of the modules, its widgets answer, and it does without widgets."""

import io
import sys

import matplotlib.pyplot as plt
import numpy as np
import plain
import pytest
import torch
from notebooks import NBS, cells, execute, source
from PIL import Image
from test_end_to_end import write_images

from wwgan.data import load_images, load_labels, to_float
from wwgan.evidence.perturbation import unit_mass
from wwgan.metric import wasserstein2
from wwgan.settings import make_config
from wwgan.training import train


@pytest.fixture(scope="module")
def notebook(data_dir):
    """The notebook's variables after it ran as under nbdev_test, which has it train at smoke size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IN_TEST", "1")
        return execute("explore", data_dir=data_dir).names


@pytest.fixture
def explorer(notebook):
    """Fresh widgets."""
    return notebook["Explorer"]()


@pytest.fixture(scope="module")
def digits(data_dir):
    return to_float(load_images("digits", data_dir, 16))


@pytest.fixture(scope="module")
def coloured(tmp_path_factory, data_dir):
    """The notebook on a run on 32 x 32 pixels in colour, without classes."""
    folder = tmp_path_factory.mktemp("coloured")
    write_images(folder / "images", (40, 36), 12)
    given = dict(dataset=f"folder:{folder / 'images'}", size=32, data_dir=data_dir, run_dir=folder / "run")
    train(make_config("smoke", device="cpu", **given), progress=False)
    return execute("explore", run_dir=folder / "run", number=3)


def test_numbers_are_those_of_the_formulas(notebook, digits):
    a, b = digits[3:4], digits[7:8]
    found, critic = notebook["describe"](a, b), notebook["critic"]
    x = b.clone().requires_grad_()
    (g,) = torch.autograd.grad(critic(x).sum(), x)
    squared = dict(euclidean=g.square().sum(), wasserstein=plain.released_squared_norm(g[0], b[0]))
    for name, value in squared.items():
        assert found[f"norm_{name}"] == pytest.approx(value.sqrt().item(), rel=1e-4)
        assert found[f"penalty_{name}"] == pytest.approx((value.sqrt().item() - 1) ** 2, rel=1e-4)
    assert found["euclidean"] == pytest.approx(((a - b) / 2).norm().item(), rel=1e-5)
    assert found["wasserstein"] == pytest.approx(wasserstein2(unit_mass(a)[0], unit_mass(b)[0]), rel=1e-5)
    scores = critic(a).item(), critic(x).item()
    assert (found["score"], found["score_changed"]) == pytest.approx(scores)


def test_sliders_change_the_panel(notebook, explorer):
    assert explorer.numbers["euclidean"] == explorer.numbers["wasserstein"] == 0
    explorer.source.value = "drawing"
    before, open_before = explorer.picture.value, plt.get_fignums()
    found = {}
    for pixels in (2, 4, 6):
        explorer.strengths["right"].value = pixels
        found[pixels] = explorer.numbers
        assert explorer.numbers["wasserstein"] == pytest.approx(pixels, rel=0.02)
    assert found[6]["euclidean"] == pytest.approx(found[4]["euclidean"], rel=1e-3)  # the block has left its place
    assert found[4]["norm_wasserstein"] != found[6]["norm_wasserstein"]
    assert explorer.picture.value != before and Image.open(io.BytesIO(explorer.picture.value)).size == (960, 232)
    assert plt.get_fignums() == open_before  # the panels' figures are closed again


@pytest.mark.parametrize("name, strength", [("turn", 90), ("blur", 1), ("blocks", 1), ("pixels", 0.5), ("noise", 0.1)])
def test_every_slider_is_the_change_of_its_name(notebook, explorer, digits, name, strength):
    explorer.strengths[name].value = strength
    expected = notebook["describe"](digits[:1], notebook["change"](digits[:1], **{name: strength}))
    assert explorer.numbers == expected and expected["wasserstein"] > 0.2
    assert torch.equal(notebook["change"](digits[:1], **{name: 0.0}), digits[:1])
    if name == "noise":
        explorer.seed.value = 1
        assert explorer.numbers["euclidean"] != expected["euclidean"]


def test_moves_go_where_they_are_told_and_repeat_the_border(notebook, digits):
    x, move = digits[:3] / 2, notebook["move"]
    right, close = move(x, right=3), dict(atol=1e-5, rtol=0)
    torch.testing.assert_close(right[..., 3:], x[..., :-3], **close)
    torch.testing.assert_close(right[..., :3], x[..., :1].expand(-1, -1, -1, 3), **close)
    torch.testing.assert_close(move(x, down=-2)[..., :-2, :], x[..., 2:, :], **close)
    torch.testing.assert_close(move(x, right=0.25)[..., 1:], 0.75 * x[..., 1:] + 0.25 * x[..., :-1], **close)
    torch.testing.assert_close(move(x, turn=90), x.rot90(-1, (2, 3)), atol=1e-4, rtol=0)  # clockwise
    turned_first = move(move(x, turn=90), right=3, down=-2)
    torch.testing.assert_close(move(x, right=3, down=-2, turn=90), turned_first, atol=1e-4, rtol=0)


def test_shuffled_pixels_change_places_with_all_their_channels_more_of_them_the_larger_the_share(notebook):
    x, moved = torch.rand(1, 3, 16, 16), torch.zeros(256, dtype=torch.bool)
    for share in (0, 0.3, 1):
        shuffled = notebook["shuffle_pixels"](x, share, seed=1)
        less, moved = moved, (shuffled != x).flatten(2).all(1)[0]
        assert moved.sum() == round(share * 256) and (less <= moved).all()
        assert sorted(shuffled[0].flatten(1).T.tolist()) == sorted(x[0].flatten(1).T.tolist())


def test_reset_draws_once_and_undoes_all_changes(notebook, explorer, monkeypatch):
    for slider in explorer.strengths.values():
        slider.value = slider.max / 2
    changed, calls = explorer.numbers, []
    draw = notebook["panel"]
    monkeypatch.setitem(notebook, "panel", lambda *images: calls.append(1) or draw(*images))
    explorer.reset.click()
    assert len(calls) == 1 and changed["euclidean"] > 0 == explorer.numbers["euclidean"]


def test_drawing(notebook, explorer):
    explorer.clear.click()
    assert explorer.source.value == "drawing" and explorer.image().max() == -1
    assert all(np.isfinite(list(explorer.numbers.values())))
    explorer.source.value = "picture"
    explorer.cells[8 * 1 + 5].value = True  # second row, sixth column
    assert explorer.source.value == "drawing"
    lit = (explorer.image()[0, 0] == 1).nonzero()
    assert lit.tolist() == [[2, 10], [2, 11], [3, 10], [3, 11]]  # 16 pixels from 8 cells
    score = notebook["critic"](explorer.image()).item()
    assert explorer.numbers["score"] == pytest.approx(score)
    explorer.number.value = 5
    assert explorer.source.value == "picture"


def test_class_and_number_choose_the_image(explorer, digits, data_dir):
    sevens = digits[load_labels("digits", data_dir) == 7]
    assert explorer.label.index == 0 and explorer.label.label == "all"
    explorer.number.value = 1000
    explorer.label.value = 7
    assert explorer.number.value == 0 and explorer.number.max == len(sevens) - 1
    explorer.number.value = 3
    assert torch.equal(explorer.image(), sevens[3:4])
    explorer.label.value = "all"
    assert torch.equal(explorer.image(), digits[:1]) and explorer.number.max == len(digits) - 1


def test_larger_images_in_colour_are_averaged_for_transport_alone(coloured):
    notebook = coloured.names
    assert coloured.pictures == 3 and "32 × 32" in coloured.text
    blob = notebook["blob"](32, 9.5, 2.0).expand(1, 3, 32, 32)
    euclidean, wasserstein = notebook["distances"](blob, notebook["move"](blob, right=6))
    assert wasserstein.item() == pytest.approx(6, rel=0.02)
    assert euclidean.item() == pytest.approx((blob - blob.roll(6, 3)).norm().item() / 2, rel=1e-3)
    figure, _ = notebook["panel"](blob, blob)
    assert any("averaged to 16 × 16" in text.get_text() for text in figure.axes[-1].texts)
    plt.close(figure)
    explorer = notebook["explorer"]
    assert [text for text, _ in explorer.label.options] == ["all"]  # the folder has no classes
    explorer.source.value = "drawing"
    assert explorer.image().shape == (1, 3, 32, 32) and explorer.image().max() == 1


def test_runs_without_ipywidgets(monkeypatch, coloured):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    executed = execute("explore", run_dir=coloured.names["run_dir"])
    assert executed.names["explorer"] is None and executed.pictures == 3


def test_own_run_is_trained_once_gone_on_with_and_kept(notebook, tmp_path):
    own = lambda **changes: notebook["own_run"](tmp_path / "run", "smoke", **changes)
    times = lambda: {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    first, before = own(), times()
    again = own()
    assert times() == before and again.state.step == 4
    torch.testing.assert_close(again.critic.state_dict(), first.critic.state_dict(), rtol=0, atol=0)
    for path in (tmp_path / "run" / "checkpoints").glob("step_0000004*"):
        path.unlink()  # as if cut off
    assert own().state.step == 4
    with pytest.raises(ValueError, match="width 8 -> 16"):
        own(width=16)


@pytest.mark.parametrize("number", [-1, 10**6, 1.5])
def test_number_of_no_image_is_refused(notebook, number):
    (code,) = [source(cell) for cell in cells(NBS / "explore.ipynb", "code") if cell["id"] == "changes"]
    with pytest.raises(ValueError, match=f"from 0 to 1.*got {number}"):
        exec(code, notebook | dict(number=number))


def test_wrong_names_and_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'run_dir'"):
        execute("explore", run_dr="x")
    with pytest.raises(FileNotFoundError, match="has no checkpoints"):
        execute("explore", run_dir=tmp_path)
