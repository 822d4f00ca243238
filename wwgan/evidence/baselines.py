"""What the package is held against: the penalty's norm and the training loop with nothing done for speed."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..graph import half_ball
from ..networks import LeakyReLU
from ..settings import TrainConfig
from ..step import TrainState


def _pairs(v: Tensor, dy: int, dx: int, second: float) -> Tensor:
    """v_i + second * v_j along one direction, in each channel, as a convolution over all channels."""
    each = torch.arange(v.shape[1])
    weight = torch.zeros(len(each), len(each), dy + 1, abs(dx) + 1)
    weight[each, each, 0, 0 if dx >= 0 else -1] = 1.0
    weight[each, each, dy, dx if dx >= 0 else 0] = second
    return nn.functional.conv2d(v, weight.to(v))


def written_out_squared_norm(g: Tensor, x: Tensor, neighborhood: str = "von_neumann", radius: int = 2) -> Tensor:
    """`Wasserstein.released().squared_norm(g, x)` by two convolutions for each direction, built at each call."""
    X, squared = (x + 1) / 2, g.square().sum((1, 2, 3))
    for dy, dx in half_ball(neighborhood, radius):
        squared = squared + (_pairs(X, dy, dx, 1.0) * _pairs(g, dy, dx, -1.0).square()).sum((1, 2, 3))
    return squared


def _transformed(transform: Callable[[Tensor], Tensor], images: Iterable[Tensor]) -> Tensor:
    return torch.stack([*map(transform, images)])


def plain_batches(images: Tensor, batch_size: int, workers: int, pin_memory: bool) -> Iterator[Tensor]:
    """Batches in [-1, 1] of uint8 images (N, C, H, W), one image at a time through torchvision's transforms."""
    from torchvision import transforms

    steps = [transforms.ToPILImage(), transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))]
    how: dict[str, Any] = dict(batch_size=batch_size, shuffle=True, drop_last=True, pin_memory=pin_memory)
    if workers:
        how |= dict(num_workers=workers, persistent_workers=True, multiprocessing_context="spawn")
    transformed = partial(_transformed, transforms.Compose(steps))
    loader: DataLoader[Tensor] = DataLoader(**how, dataset=images, collate_fn=transformed)  # type: ignore[arg-type]
    return chain.from_iterable(repeat(loader))


def plain_critic_losses(
    critic: nn.Module, real: Tensor, fake: Tensor, epsilon: Tensor, config: TrainConfig
) -> dict[str, float]:
    """Adds the gradient of WGAN-GP's critic loss to the critic's; the Wasserstein norm is computed by convolutions."""
    real_score, fake_score = critic(real).mean(), critic(fake).mean()
    (-real_score).backward()
    fake_score.backward()
    x = (epsilon * real + (1 - epsilon) * fake).requires_grad_()
    score = critic(x)
    (g,) = torch.autograd.grad(score, x, torch.ones_like(score), create_graph=True, retain_graph=True)
    wasserstein = config.penalty == "wasserstein"
    squared = written_out_squared_norm(g, x.detach()) if wasserstein else g.reshape(len(g), -1).square().sum(1)
    penalty = config.weight * ((squared.sqrt() - 1) ** 2).mean()
    penalty.backward()
    return dict(distance=real_score.item() - fake_score.item(), penalty=penalty.item())


def torch_activations(network: nn.Module) -> nn.Module:
    """The network with PyTorch's LeakyReLU in the place of ours."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, LeakyReLU):
                setattr(module, name, nn.LeakyReLU(child.slope))
    return network


def plain_updates(
    config: TrainConfig, images: Tensor, device: torch.device, workers: int
) -> Iterator[dict[str, float]]:
    """WGAN-GP training as public code has it, on uint8 images (N, C, H, W); a generator update at each turn."""
    state, n = TrainState(config, images.shape[1], device), config.batch_size  # for its networks, and draws of z
    critic, generator = torch_activations(state.critic), state.generator
    critic_optimizer, generator_optimizer = (
        torch.optim.Adam(network.parameters(), lr=config.lr, betas=config.betas) for network in (critic, generator)
    )
    batches = plain_batches(images, n, workers, device.type == "cuda")
    while True:
        for _ in range(config.critic_steps):
            real = next(batches).to(device)
            critic.zero_grad()
            with torch.no_grad():
                fake = generator(state.latent(n))
            losses = plain_critic_losses(critic, real, fake, torch.rand(n, 1, 1, 1, device=device), config)
            critic_optimizer.step()
        critic.requires_grad_(False)
        generator.zero_grad()
        loss = -critic(generator(state.latent(n))).mean()
        loss.backward()
        generator_optimizer.step()
        critic.requires_grad_(True)
        yield losses | dict(generator_loss=loss.item())
