"""What is kept between calls: bounded, and never made of tensors without values; batches without images."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from wwgan.penalty import GROUND_METRICS, Shuffled, Wasserstein, gradient_penalty
from wwgan.remembered import remembered

FORMS = {name: make() for name, make in GROUND_METRICS.items()}
FORMS |= {"range": Wasserstein(image_range=(0, 1)), "shuffled paper": Shuffled(Wasserstein.paper())}
forms = pytest.mark.parametrize("name", FORMS)


@forms
@pytest.mark.parametrize("without_values", [FakeTensorMode, lambda: torch.device("meta")], ids=["fake", "meta"])
def test_constants_made_without_values_do_not_reach_later_calls(name, without_values):
    """Nor do kept ones stand in the way; images of a size that no other test takes."""
    ground, shape = FORMS[name], (2, 1, 9, 11 if without_values is FakeTensorMode else 12)
    squared = lambda: ground.squared_norm(torch.rand(shape), torch.rand(shape))
    for _ in range(2):
        with without_values():
            assert squared().shape == (2,)
        assert squared().isfinite().all()
    with torch.device("meta"):
        g, x = torch.rand(2, *shape, device="cpu")
        assert ground.squared_norm(g, x).isfinite().all()


def test_at_most_64_results_are_kept():
    made = []
    call = remembered(lambda n: made.append(n) or [n])
    assert all(call(n) is call(n) for n in range(100)) and made == [*range(100)]
    call(99)
    call(0)
    assert made == [*range(100), 0]


@forms
def test_an_empty_batch_has_no_norms_and_a_loss_like_any_mean_of_nothing(name):
    """NaN, as the critic's mean score has, while the weights get zeros: nothing is trained by nothing."""
    critic = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(2 * 36, 1))
    x, ground = torch.zeros(0, 1, 8, 8), FORMS[name]
    for points in ("interpolated", "geodesic"):
        found = gradient_penalty(critic, x, x, ground, points=points, pairs="matched")
        found.loss.backward()
        assert found.norm.shape == (0,) and found.loss.isnan()
        assert not any(p.grad is not None and p.grad.any() for p in critic.parameters())
    assert ground.norm(x.flatten(1), x).shape == (0,)
    if "paper" not in name:  # whose length goes with the image
        assert len(ground.embedding(x)) == 0
