"""Both families: published layers, initial weights, what the penalty needs; the chapter checks shapes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad
from torch.testing import assert_close

from wwgan.networks import (
    ARCHITECTURES,
    DCGANGenerator,
    LeakyReLU,
    ResNetCritic,
    ResNetGenerator,
    make_networks,
)

families = pytest.mark.parametrize("architecture", ARCHITECTURES)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def critic_and_images(architecture, batch=3):
    """A small float64 critic and a batch for it."""
    critic = make_networks(architecture, 32, width=8)[1].double()
    return critic, torch.rand(batch, 3, 32, 32, dtype=torch.float64) * 2 - 1


def convolutions(module):
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


def test_resnet_critic_is_the_published_sequence():
    critic, x = critic_and_images("resnet")
    first, down, *plain = [(*convolutions(b.branch), *convolutions(b.shortcut)) for b in critic.net[:4]]
    expected = F.avg_pool2d(first[1](F.relu(first[0](x))), 2) + first[2](F.avg_pool2d(x, 2))
    expected = F.avg_pool2d(down[1](F.relu(down[0](F.relu(expected)))), 2) + F.avg_pool2d(down[2](expected), 2)
    for one, two in plain:
        expected = two(F.relu(one(F.relu(expected)))) + expected
    assert_close(critic(x), critic.net[-1](F.relu(expected).mean((2, 3))).squeeze(1))


def test_resnet_generator_is_the_published_sequence():
    generator = ResNetGenerator(latent_dim=7, width=8).double()
    z = torch.randn(3, 7, dtype=torch.float64)

    def activate(x):
        return F.relu(F.batch_norm(x, None, None, training=True))

    def upsample(x):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    expected = generator.net[0](z).reshape(3, 8, 4, 4)
    for block in generator.net[2:5]:
        (one, two), (short,) = convolutions(block.branch), convolutions(block.shortcut)
        expected = two(activate(one(upsample(activate(expected))))) + short(upsample(expected))
    assert_close(generator(z), torch.tanh(generator.net[-2](activate(expected))))


def test_dcgan_initial_batch_norm():
    """The convolutions' weights are checked in 05_networks."""
    norms = [m for m in DCGANGenerator(64).modules() if isinstance(m, nn.BatchNorm2d)]
    scale = torch.cat([m.weight for m in norms])
    assert abs(scale.mean() - 1) < 3 * 0.02 / scale.numel() ** 0.5
    assert abs(scale.std() - 0.02) < 3 * 0.02 / (2 * scale.numel()) ** 0.5
    assert all(m.bias.eq(0).all() for m in norms)


@pytest.mark.parametrize("network", [ResNetGenerator, ResNetCritic])
def test_resnet_initial_weights(network):
    """Uniform, variance 2 gain^2 / (fan in + fan out); gain^2 is 2 for 3x3 convolutions inside blocks, otherwise 1."""
    for name, layer in network().named_modules():
        if not isinstance(layer, (nn.Conv2d, nn.Linear)):
            continue
        in_block = "branch" in name
        area = layer.weight[0, 0].numel()  # 1 for a linear layer
        fans = area * (layer.weight.shape[0] + layer.weight.shape[1])
        sigma = ((4 if in_block else 2) / fans) ** 0.5
        assert layer.weight.abs().max() <= sigma * 3**0.5 * (1 + 1e-6), name
        assert abs(layer.weight.std() - sigma) < 4 * sigma * (0.2 / layer.weight.numel()) ** 0.5, name
        assert layer.bias.eq(0).all(), name


@families
def test_channels_last_changes_nothing(architecture):
    nets = [net.double() for net in make_networks(architecture, 32, width=8)]
    z = torch.randn(3, nets[0].latent_dim, dtype=torch.float64)
    scores = nets[1](nets[0](z))
    for net in nets:
        net.to(memory_format=torch.channels_last)
    images = nets[0](z).contiguous(memory_format=torch.channels_last)
    assert_close(nets[1](images), scores)


@families
def test_works_under_torch_func(architecture):
    generator, critic = make_networks(architecture, 32, width=8)
    z = torch.randn(2, generator.latent_dim)
    images = functional_call(generator, {k: v.clone() for k, v in generator.state_dict().items()}, (z,))
    assert_close(images, generator(z))

    def squared_slope(weights):
        slope = grad(lambda x: functional_call(critic, weights, (x,)).sum())
        return slope(images.detach()).square().sum()

    weights = dict(critic.named_parameters())
    by_func = grad(squared_slope)(weights)
    x = images.detach().requires_grad_()
    (g,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    names = [k for k in weights if k.endswith("weight")]
    by_tape = torch.autograd.grad(g.square().sum(), [weights[k] for k in names])
    for name, expected in zip(names, by_tape):
        assert_close(by_func[name], expected)


@pytest.mark.parametrize(
    "args, message",
    [
        (("dcgann", 32), "dcgan"),
        (("dcgan", 48), r"\(16, 32, 64, 128, 256\), got 48"),
        (("resnet", 64), r"\(32,\), got 64"),
        (("dcgan", 32, 0), "channels.*positive.*got 0"),
        (("dcgan", 32, 3, -1), "latent_dim.*positive.*got -1"),
        (("dcgan", 32, 3, 100, 0), "width.*positive.*got 0"),
        (("dcgan", 32, 3, 100, 1.5), r"width.*integer.*got 1\.5"),
    ],
)
def test_bad_settings_are_refused(args, message):
    with pytest.raises(ValueError, match=message):
        make_networks(*args)


@families
def test_wrong_shapes_are_refused_with_both_shapes(architecture):
    generator, critic = make_networks(architecture, 32, channels=1, latent_dim=7, width=4)
    with pytest.raises(ValueError, match=r"\(batch, 7\), got \(2, 8\)"):
        generator(torch.zeros(2, 8))
    for shape in [(2, 3, 32, 32), (2, 1, 64, 64), (1, 32, 32)]:
        with pytest.raises(ValueError, match=r"\(batch, 1, 32, 32\), got \(" + ", ".join(map(str, shape))):
            critic(torch.zeros(shape))


@families
def test_critics_differentiate_twice_as_with_torch_activations(architecture):
    """The package's activation sends nothing where PyTorch's send zeros: the same numbers, to the last digit."""
    ours = make_networks(architecture, 32, width=4)[1]
    theirs = copy.deepcopy(ours)
    for module in theirs.modules():
        for name, child in module.named_children():
            if isinstance(child, LeakyReLU):
                setattr(module, name, nn.LeakyReLU(child.slope))
    assert sum(isinstance(m, nn.LeakyReLU) for m in theirs.modules()) > 1
    x = torch.randn(3, *ours.image_shape)
    gradients = []
    for critic in (ours, theirs):
        x = x.detach().requires_grad_()
        score = critic(x)
        (first,) = torch.autograd.grad(score.sum(), x, create_graph=True)
        (score.sum() + first.square().sum()).backward()
        gradients.append([first.detach(), *(p.grad for p in critic.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_critics_can_be_mapped():
    critic, x = make_networks("dcgan", 16, width=4)[1].double(), torch.randn(3, 3, 16, 16, dtype=torch.float64)
    each = torch.func.vmap(torch.func.grad(lambda image: critic(image[None]).sum()))(x)
    assert_close(each, torch.func.grad(lambda x: critic(x).sum())(x))
