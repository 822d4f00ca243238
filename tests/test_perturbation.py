"""Perturbations are what they say: seeded, growing with their strength, measured in pixels, and refused by name."""

import pytest
import torch

from wwgan.data import load_images, to_float
from wwgan.evidence.perturbation import (
    PERTURBATIONS,
    displacement,
    euclidean_displacement,
    matched,
    perturb,
    radial_power_spectrum,
    unit_mass,
)
from wwgan.evidence.probe import great_circle, response, separation
from wwgan.metric import wasserstein2


def colours(n=12, size=16):
    """Smooth coloured random images in [-1, 1]."""
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return 2 * torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear", align_corners=True) - 1


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_same_seed_same_images_another_seed_others_and_farther_the_greater_the_strength(name):
    x, strength, before = colours(), PERTURBATIONS[name].strongest / 2, torch.get_rng_state()
    first = perturb(x, name, strength, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, perturb(x, name, strength, seed=1)) and not torch.equal(first, x)
    assert torch.equal(first, perturb(x, name, strength, seed=2)) == (name in ("blur", "jpeg"))
    assert torch.equal(perturb(x, name, 0), x) and first.shape == x.shape and first.abs().max() <= 1
    sizes = [euclidean_displacement(x, perturb(x, name, share * strength)).mean() for share in (0.1, 0.4, 1)]
    assert 0 < sizes[0] < sizes[1] < sizes[2]


def test_quarter_turns_are_exact_either_way():
    x = colours()
    quarter = perturb(x, "rotation", 90)
    turned, other = ([torch.allclose(*pair, atol=1e-4) for pair in zip(quarter, x.rot90(k, (2, 3)))] for k in (1, -1))
    assert all(a or b for a, b in zip(turned, other)) and any(turned) and any(other)


@pytest.mark.parametrize("name", ["salt and pepper", "dead pixels", "gaussian noise"])
def test_hits_are_as_frequent_as_the_strength_says(name):
    x = torch.zeros(50, 3, 16, 16)
    changed = perturb(x, name, 0.3) - x
    if name == "gaussian noise":
        assert changed[changed.abs() < 0.999].std() == pytest.approx(0.5, abs=0.03)  # [-1, 1] is twice as wide, clipped
    else:
        hit = changed.ne(0)
        assert hit.double().mean() == pytest.approx(0.3, abs=0.02) and torch.equal(hit.all(1), hit.any(1))


def test_shuffled_blocks_keep_their_pixels():
    x = colours()
    shuffled = perturb(x, "block shuffling", 1)
    blocks = lambda images: torch.nn.functional.unfold(images, 4, stride=4).unflatten(1, (3, 16))
    torch.testing.assert_close(blocks(shuffled).sort(2).values, blocks(x).sort(2).values)


def test_displacement_is_the_root_mean_square_over_channels():
    x = colours(2)
    moved = perturb(x, "translation", 2.0)
    a, b = unit_mass(x)[0], unit_mass(moved)[0]
    per_channel = torch.tensor([wasserstein2(p, q) for p, q in zip(a, b)])
    found = displacement(x, moved)
    assert found.wasserstein[0].item() == pytest.approx(per_channel.square().mean().sqrt().item(), rel=1e-6)
    torch.testing.assert_close(found.euclidean, ((moved - x) / 2).flatten(1).norm(dim=1))
    assert displacement(x, x).wasserstein.max() == displacement(x, x).euclidean.max() == 0
    black = -torch.ones(1, 3, 16, 16)  # has a trace of mass
    assert displacement(black, perturb(black, "salt and pepper", 0.1)).wasserstein.isfinite().all()


def test_answers_do_not_depend_on_the_scale_of_the_critic(data_dir):
    x = to_float(load_images("digits", data_dir, 16)[:20])
    critic = lambda images: images[:, 0, 4:9, 6:11].sum((1, 2))
    moved = perturb(x, "translation", 1.5)
    answers = response(critic, x, moved)
    scaled = response(lambda images: 7 - 100 * critic(images), x, moved)
    torch.testing.assert_close(scaled, answers, rtol=1e-4, atol=1e-4)
    assert answers.mean() > 0.1


def test_matched_sets_have_their_sizes_and_leave_out_what_never_gets_there(data_dir):
    x = to_float(load_images("digits", data_dir, 16)[:20])
    found = matched(x, [1.0, 2.0], ["blur", "gaussian noise", "hue"], seed=1)
    assert found.keys() == {"blur", "gaussian noise"}  # grey images have no hue
    for name, (strengths, images) in found.items():
        for size, strength, moved in zip((1.0, 2.0), strengths, images):
            assert euclidean_displacement(x, moved).mean().item() == pytest.approx(size, rel=1e-3)
            torch.testing.assert_close(moved, perturb(x, name, strength, seed=1))


def test_spectrum_of_a_wave_is_its_power_at_its_frequency():
    across = torch.arange(24.0)
    wave = 0.5 * torch.cos(2 * torch.pi * 3 * across / 24).expand(4, 1, 16, 24)  # 1/8 cycles per pixel
    for images in (wave, wave.to(torch.bfloat16), wave.repeat(75, 1, 1, 1), wave.expand(-1, 3, -1, -1), wave.mT):
        frequency, power = radial_power_spectrum(images)
        assert frequency.tolist() == [k / 16 for k in range(len(power))] and power.argmax() == 2
        radius = torch.hypot(torch.fft.fftfreq(16)[:, None], torch.fft.fftfreq(24))
        modes = (16 * radius).round().long().flatten().bincount()
        assert (modes * power).sum() / 384 == pytest.approx(0.125, rel=5e-3)  # Parseval
        assert power[2] * modes[2] / 384 == pytest.approx(0.125, rel=5e-3)
    grey = torch.full((2, 3, 8, 8), 128, dtype=torch.uint8)
    assert radial_power_spectrum(grey)[1][0].item() == pytest.approx(64 * (1 / 255) ** 2, rel=1e-3)


def test_separation_is_the_share_of_pairs_in_the_right_order():
    first = lambda x: x[:, 0, 0, 0]
    real, fake = (torch.tensor(values).view(-1, 1, 1, 1) for values in ([0.1, 0.5, 0.9], [0.2, 0.4]))
    assert separation(first, real, fake) == pytest.approx(4 / 6)
    assert separation(lambda x: -first(x), real, fake) == pytest.approx(2 / 6)


def test_great_circles():
    a, b = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    circle = great_circle(a, b, 6)
    torch.testing.assert_close(circle[:, 0], a)
    torch.testing.assert_close(circle[:, -1], b)
    torch.testing.assert_close(circle[:, 3].norm(dim=1), (a.norm(dim=1) + b.norm(dim=1)) / 2)
    torch.testing.assert_close(great_circle(a, a, 6), a[:, None].expand(5, 7, 32))
    with pytest.raises(ValueError, match="not zero and not opposite"):
        great_circle(a, 0 * a)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda x: perturb(x, "rotate", 1), "did you mean 'rotation'"),
        (lambda x: perturb(x, "rotation", 91), r"from 0 to 90 \(degrees\), got 91"),
        (lambda x: perturb(x, "blur", float("nan")), "got nan"),
        (lambda x: perturb(2 * x, "blur", 1), r"must lie in \[-1, 1\]"),
        (lambda x: perturb(x[:, :2], "blur", 1), r"\(12, 2, 16, 16\)"),
        (lambda x: perturb(x.to(torch.uint8), "blur", 1), "uint8"),
        (lambda x: great_circle(x[0, 0], -x[0, 0]), "not zero and not opposite"),
        (lambda x: radial_power_spectrum(x[0]), r"needs images .* got \(3, 16, 16\)"),
        (lambda x: response(lambda images: images.new_zeros(len(images)), x, x), "same output"),
    ],
)
def test_wrong_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call(colours())
