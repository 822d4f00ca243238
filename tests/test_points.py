"""Where the penalty is evaluated: displacement interpolation, optimal pairs, and the two as settings of a run."""

from itertools import permutations

import pytest
import torch
from torch.testing import assert_close

from wwgan.data import load_images
from wwgan.penalty import Euclidean, Shuffled, Sobolev, Wasserstein, gradient_penalty
from wwgan.points import displacement_interpolation, matched_pairs, penalty_points
from wwgan.runs import run_config
from wwgan.training import train


def images(*shape, seed=0, dtype=torch.float32):
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) - 1


def blob(y, x, width, side=32):
    i = torch.arange(side, dtype=torch.float64)
    bump = torch.exp(-((i[:, None] - y) ** 2 + (i - x) ** 2) / (2 * width**2))
    return (bump / bump.sum())[None, None]


def moments(image):
    """Mass, centre (row, column) and standard deviation along the rows."""
    p, i = image[0, 0] / image.sum(), torch.arange(image.shape[-1], dtype=image.dtype)
    y, x = (p.sum(1) * i).sum(), (p.sum(0) * i).sum()
    return torch.stack([image.sum(), y, x, (p.sum(1) * (i - y) ** 2).sum().sqrt()])


def share(*values):
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)


@pytest.mark.parametrize("of_a", [1.0, 0.75, 0.5, 0.2, 0.0])
def test_between_two_gaussians_centre_width_and_mass_go_in_a_straight_line(of_a):
    """The closed form: transport between two Gaussians moves mean and standard deviation in a straight line."""
    a, b = 3 * blob(10, 8, 2.0), 5 * blob(20, 21, 3.0)
    expected = of_a * moments(a) + (1 - of_a) * moments(b)
    result = moments(displacement_interpolation(a, b, share(of_a)))
    assert_close(result, expected, rtol=0, atol=0.03)
    straight = moments(of_a * a + (1 - of_a) * b)
    if of_a not in (0, 1):
        assert (straight - expected)[3] > 1  # a double exposure is wider: the check can tell


@pytest.mark.parametrize("size, margin, width", [(32, 1, 1.0), (64, 3, 1.5)])
def test_far_motions_arrive_as_one(size, margin, width):
    """Nearly from corner to corner: halfway there is one spot, not two that fade."""
    a, b = (blob(at, at, width, size) for at in (margin, size - 1 - margin))
    assert moments(displacement_interpolation(a, b, share(0.5)))[3] < 1.5 * width < moments((a + b) / 2)[3]


def test_more_rounds_than_needed_stay_finite(data_dir):
    a, b = load_images("digits", data_dir, 16)[:16].double().div(255).split(8)
    assert displacement_interpolation(a, b, share(*[0.5] * 8), iterations=800).isfinite().all()


def test_each_pair_and_channel_moves_by_itself_and_every_time_the_same():
    a, b = ((images(3, 2, 9, 12, seed=k) + 1) / 2 for k in (0, 1))
    shares = share(0.1, 0.5, 0.9)
    together = displacement_interpolation(a, b, shares)
    assert together.dtype == torch.float32 and torch.equal(together, displacement_interpolation(a, b, shares))
    for k in range(3):
        for c in range(2):
            alone = displacement_interpolation(a[k : k + 1, c : c + 1], b[k : k + 1, c : c + 1], shares[k : k + 1])
            assert_close(together[k : k + 1, c : c + 1], alone)
    assert_close(together.sum((-2, -1)), (shares * a + (1 - shares) * b).sum((-2, -1)).float())
    assert (displacement_interpolation(a, a, shares) - a).abs().max() < 0.01  # nothing moves, and nothing blurs
    assert_close(displacement_interpolation(b, a, 1 - shares), together)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 1, 7), (1, 1, 128, 128)], ids=str)
def test_black_channels_single_pixels_and_wide_images_stay_finite(shape):
    black, dot = torch.zeros(shape), torch.zeros(shape)
    dot[..., 0, 0] = 1
    far = dot.flip(-1, -2)
    for a, b in ((black, black), (black, dot), (dot, far)):
        result = displacement_interpolation(a, b, share(*[0.5] * shape[0]))
        assert result.isfinite().all() and (result >= 0).all()
    x = penalty_points(2 * dot - 1, 2 * far - 1, "geodesic")
    assert x.min() >= -1 and x.max() <= 1


def test_pairs_are_those_of_least_total_distance():
    real, fake = images(5, 2, 4, 4), images(5, 2, 4, 4, seed=1)
    for ground in (None, Euclidean(), Sobolev(-1, 3.0), Wasserstein.with_length(3.0), Shuffled.wasserstein(length=3.0)):
        embedding = ground and ground.embedding
        a, b = (t.flatten(1) if ground is None else embedding(t) for t in (real, fake))
        total = lambda order, a=a, b=b: (a - b[list(order)]).norm(dim=1).sum().item()
        best = min(permutations(range(5)), key=total)
        assert matched_pairs(real, fake, embedding).tolist() == list(best)
        assert total(best) < total(range(5))
    shuffle = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(matched_pairs(real, real[shuffle])[shuffle], torch.arange(5).argsort()[torch.arange(5)])


def test_images_that_are_not_finite_have_no_pairs():
    with pytest.raises(ValueError, match="invalid numeric entries"):
        matched_pairs(images(2, 1, 3, 3), images(2, 1, 3, 3) * torch.nan)


def test_the_embeddings_distance_is_dual_to_the_norm():
    """sup of <g, x> over norm(g) at most 1 is the distance: reached by the gradient g = M^-1 x."""
    x = images(1, 1, 12, 12, dtype=torch.float64)
    ground = Sobolev(-1, 2.5)
    g = x.clone().requires_grad_()
    (metric,) = torch.autograd.grad(ground.squared_norm(g, x).sum() / 2, g, create_graph=True)  # M g
    columns = torch.stack(
        [torch.autograd.grad(metric.flatten()[k], g, retain_graph=True)[0].flatten() for k in range(144)]
    )
    dual = (x.flatten() @ torch.linalg.solve(columns, x.flatten())).sqrt()
    assert_close(ground.embedding(x).norm(), dual)
    assert_close(Wasserstein.with_length(2.5, l2=4.0).embedding(x).norm(), dual / 2)
    assert (dual - x.norm()).abs() > 0.1


def test_points_lie_between_the_two_images_and_follow_the_generator():
    real, fake = images(64, 1, 4, 4), images(64, 1, 4, 4, seed=1)
    draw = lambda seed, *points, **more: penalty_points(
        real, fake, *points, generator=torch.Generator().manual_seed(seed), **more
    )
    share = ((draw(0) - fake) / (real - fake)).flatten(1)
    assert_close(share, share[:, :1].expand_as(share), rtol=1e-3, atol=1e-3)  # one share for each image
    assert share.min() > -1e-3 and share.max() < 1.001 and share[:, 0].std() > 0.2
    for how in (dict(), dict(points="geodesic"), dict(pairs="matched")):
        assert torch.equal(draw(0, **how), draw(0, **how)) and not torch.equal(draw(0, **how), draw(1, **how))
    assert torch.equal(draw(0, "real"), real) and torch.equal(draw(0, "fake"), fake)


def test_points_follow_pairs_and_path():
    real, fake = images(6, 1, 8, 8), images(6, 1, 8, 8, seed=1)
    partner = matched_pairs(real, fake)
    assert not torch.equal(partner, torch.arange(6))
    quarter = torch.full((6, 1, 1, 1), 0.25)
    matched = penalty_points(real, fake, epsilon=quarter, pairs="matched")
    assert torch.equal(matched, 0.25 * real + 0.75 * fake[partner])
    geodesic = penalty_points(real, fake, "geodesic", epsilon=quarter, pairs="matched")
    expected = 2 * displacement_interpolation((real + 1) / 2, (fake[partner] + 1) / 2, quarter).clamp_max(1) - 1
    assert torch.equal(geodesic, expected)
    critic = lambda x: (x**2).sum((1, 2, 3))
    norm = lambda **more: gradient_penalty(critic, real, fake, Wasserstein(), epsilon=quarter, **more).norm
    assert not torch.equal(norm(), norm(pairs="matched-ground")) and norm(points="geodesic").isfinite().all()


@pytest.mark.parametrize(
    "settings", [dict(points="geodesic"), dict(pairs="matched-ground", points="geodesic")], ids=str
)
def test_runs_with_other_points_and_pairs_differ_and_resume_exactly(smoke, settings):
    whole = train(smoke("whole", steps=4, **settings), progress=False)
    train(smoke("parts", steps=2, **settings), progress=False)
    parts = train(run_config(resume=True, run_dir=smoke("parts").run_dir, steps=4), progress=False)
    plain = train(smoke("plain", steps=4), progress=False)
    values = [[line["penalty"] for line in run.history] for run in (whole, parts, plain)]
    assert values[0] == values[1] != values[2] and parts.state.config.points == "geodesic"
    weights = lambda run: torch.cat([p.detach().flatten() for p in run.critic.parameters()])
    assert torch.equal(weights(whole), weights(parts))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_gpu_gives_the_points_of_the_cpu():
    real, fake, half = images(6, 3, 16, 16), images(6, 3, 16, 16, seed=1), torch.full((6, 1, 1, 1), 0.5)
    on_cpu = penalty_points(real, fake, "geodesic", epsilon=half, pairs="matched")
    on_gpu = penalty_points(real.cuda(), fake.cuda(), "geodesic", epsilon=half.cuda(), pairs="matched")
    assert_close(on_gpu.cpu(), on_cpu, rtol=1e-4, atol=1e-5)
