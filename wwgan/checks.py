"""What the penalty refuses and what it warns of: images, critics and arguments that would mean something else."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite
from numbers import Real
from typing import Any, NamedTuple, NoReturn
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

ImageRange = tuple[float, float]
RANGE: ImageRange = (-1.0, 1.0)  # of black and white
_RESHAPE = {
    2: "reshape: flat images x as x.view(B, C, H, W)",
    3: "reshape: gray images (B, H, W) as x.unsqueeze(1), one image (C, H, W) as x.unsqueeze(0)",
    5: "reshape: a video (B, T, C, H, W) as x.flatten(1, 2), frames as channels, or x.flatten(0, 1), frames as images",
}


def _hint(images: Tensor) -> str:
    if images.dim() == 2 and images.shape[1] == 1:
        return ": these look like scores, pass the images"
    return f": {_RESHAPE[images.dim()]}" if images.dim() in _RESHAPE else ""


def described(value: object) -> str:
    """For messages: numbers and texts as they are, all else, which may be a network, by type."""
    return repr(value) if isinstance(value, (str, Real, type(None))) else type(value).__name__


def check_non_negative(**values: object) -> None:
    """ValueError unless each is a finite number of at least 0; a tensor of one number is let pass on a GPU unseen."""
    for name, value in values.items():
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item() if value.device.type == "cpu" else 0.0
        if not (isinstance(value, Real) and isfinite(value) and float(value) >= 0):
            raise ValueError(f"{name} must be a finite number and not negative, got {value!r}")


def check_image_range(image_range: Any) -> None:
    """ValueError unless it is a pair of finite numbers, black below white."""
    numbers = isinstance(image_range, tuple) and all(isinstance(v, Real) and isfinite(v) for v in image_range)
    if not numbers or len(image_range) != 2 or not image_range[0] < image_range[1]:
        raise ValueError(
            f"image_range must be the values of black and white, such as (-1, 1) or (0, 1), got {image_range!r}"
        )


_Judge = Callable[[float, float], None]
_on_their_way: list[tuple[Any, Tensor, _Judge]] = []  # from a GPU: an event after the copy, two numbers, who asked


def _look(x: Tensor, judge: _Judge) -> None:
    """judge(least, greatest) of the values of x: at once, but for a GPU in a later look, as it is not waited for."""
    if not x.numel() or x.is_meta or isinstance(x, FakeTensor) or torch.compiler.is_compiling():
        return
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    bounds = torch.stack(x.detach().aminmax())
    if not x.is_cuda:
        return judge(*bounds.tolist())
    bounds, arrived = bounds.to("cpu", non_blocking=True), torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(x.device))
    _on_their_way.append((arrived, bounds, judge))
    while _on_their_way and _on_their_way[0][0].query():
        _, bounds, judge = _on_their_way.pop(0)
        judge(*bounds.tolist())


def check_range(x: Tensor, image_range: ImageRange = RANGE) -> None:
    """Raises ValueError for images (B, C, H, W) out of range; for images on a GPU a later call does. NaN passes."""

    def judge(low: float, high: float) -> None:
        black, white = image_range
        slack = (white - black) / 2000
        if low < black - slack or high > white + slack:
            hint = (
                "map images in [0, 1] by 2 * x - 1, those in 0..255 by x / 127.5 - 1, or give the ground metric their "
                "image_range; a generator should end in tanh"
            )
            if image_range != RANGE and -1.001 <= low < 0 <= high <= 1.001:
                hint = "these look like [-1, 1]: leave image_range out"
            got = f"got values from {low:.4g} to {high:.4g}"
            raise ValueError(f"images must lie in [{black:g}, {white:g}], {got}: {hint}")

    _look(x, judge)


def warn_of_unit_range(x: Tensor, image_range: ImageRange | None) -> None:
    """Images in [0, 1] lie in [-1, 1]: a batch (B, C, H, W) of which all values do is warned of, as `check_range`."""

    def judge(low: float, high: float) -> None:
        if 0 <= low <= high <= 1:
            warnings.warn(
                "no value of this batch is below 0, and black is -1: for images in [0, 1] give the ground metric "
                "image_range=(0, 1), such as Wasserstein.released(image_range=(0, 1))",
                stacklevel=5,
            )

    if image_range == RANGE:
        _look(x, judge)


def check_tensors(**values: object) -> None:
    """ValueError unless each is a tensor."""
    for name, value in values.items():
        if not isinstance(value, Tensor):
            hint = ": take [0] of what torch.autograd.grad returns" if isinstance(value, tuple) else ""
            raise ValueError(f"{name} must be a torch.Tensor, got {described(value)}{hint}")


def promoted_images(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Both images (B, C, H, W), detached, in the type of their sum. ValueError unless of one shape on one device."""
    check_tensors(real=real, fake=fake)
    if real.dim() != 4 or real.shape != fake.shape:
        hint = _hint(fake if real.dim() == 4 else real)
        if real.dim() == 2 and real.shape[1] > 1:
            hint += ", with lambda x: critic(x.flatten(1)) for a critic of flat ones"
        if real.dim() == 4 and fake.dim() > 1 and fake.shape[2:].numel() == 1 and fake.numel() != real.numel():
            hint = ": fake are the generator's images, not z"
        got = f"{tuple(real.shape)} and {tuple(fake.shape)}"
        raise ValueError(f"real and fake must have the same shape (B, C, H, W), got {got}{hint}")
    if not (real.is_floating_point() and fake.is_floating_point()):
        got = f"{real.dtype} and {fake.dtype}"
        raise ValueError(f"images must be of floating-point type, got {got}: take x.float() / 127.5 - 1 of bytes x")
    if real.device != fake.device:
        raise ValueError(f"real and fake must be on one device, got {real.device} and {fake.device}")
    dtype = torch.promote_types(real.dtype, fake.dtype)
    # what inference_mode made can be differentiated only as a copy
    copies = (images.clone() if images.is_inference() else images.detach() for images in (real, fake))
    real, fake = (images.to(dtype) for images in copies)
    return real, fake


def check_shares(epsilon: Any, images: Tensor) -> None:
    """ValueError unless it holds one share for each of the images, (B, 1, 1, 1) in [0, 1], as `check_range`."""
    shape = (len(images), 1, 1, 1)
    if not isinstance(epsilon, Tensor):
        hint = f": torch.full({shape}, {epsilon}) gives all the same" * isinstance(epsilon, Real)
        raise ValueError(f"epsilon must be a tensor of shape {shape}, got {described(epsilon)}{hint}")
    if epsilon.shape != shape:
        hint = ": reshape it by .view(-1, 1, 1, 1)" * (epsilon.numel() == len(images))
        raise ValueError(f"epsilon must have shape {shape}, one share for each pair, got {tuple(epsilon.shape)}{hint}")

    def judge(low: float, high: float) -> None:
        if low < 0 or high > 1:
            raise ValueError(f"epsilon, shares of the real images, must lie in [0, 1], got {low:.4g} to {high:.4g}")

    _look(epsilon, judge)


def check_gradient(g: Tensor, x: Tensor) -> None:
    """ValueError unless gradient g and images x are tensors of one shape (B, C, H, W), with pixels."""
    check_tensors(g=g, x=x)
    if g.dim() != 4 or g.shape != x.shape or 0 in g.shape[1:]:
        wanted = "critic gradient g and images x must have the same shape (B, C, H, W) with pixels"
        raise ValueError(f"{wanted}, got {tuple(g.shape)} and {tuple(x.shape)}{_hint(x)}")
    if x.shape[3] in (1, 3) and x.shape[1] == x.shape[2] >= 8:
        raise ValueError(f"images must be (B, C, H, W), {tuple(x.shape)} has channels last: take x.permute(0, 3, 1, 2)")


def warn_without_graph(g: Tensor, x: Tensor) -> None:
    """Warns where gradients have no graph back to the critic, or stand in the place of images that are leaves."""
    if torch.is_grad_enabled() and x.requires_grad and g.is_leaf and not torch.compiler.is_compiling():
        warnings.warn(
            "the norm of these gradients cannot train the critic: take them with create_graph=True, and pass them "
            "first, norm(gradients, images)",
            stacklevel=3,
        )


def _score_hint(score: Tensor, x: Tensor) -> str:
    if score.numel() == 1:
        return "return one score per image, without .mean()"
    if score.shape == x.shape:
        return "these are images: is it the generator?"
    if score.shape[:1] != x.shape[:1]:
        return "labels of another batch, or patches counted as images?"
    if score.dim() == 2:
        return "pick one of the scores of each image, such as its label's, or average them"
    return "average scores of patches, as lambda x: critic(x).flatten(1).mean(1); a sum is steeper by their number"


def check_score(score: Any, x: Tensor) -> None:
    """ValueError unless it is a tensor with one score for each image, which can be differentiated."""
    if not isinstance(score, Tensor):
        got = type(score).__name__
        raise ValueError(
            f"the critic must return a tensor of scores, got {got}: wrap it, such as lambda x: critic(x)[0]"
        )
    if score.shape[:1] != x.shape[:1] or score.numel() != len(x):
        got = f"got shape {tuple(score.shape)}: {_score_hint(score, x)}"
        raise ValueError(f"the critic must give one score for each of the {len(x)} images, {got}")
    if not score.requires_grad:
        raise ValueError("the critic's score cannot be differentiated: it is detached or depends on nothing")


def check_arguments(critic: object, ground: object, weight: object, generator: object) -> None:
    """ValueError for what is no critic, ground metric, weight or random state, and where gradients are switched off."""
    if not callable(critic):
        hint = "pass the critic itself, not its scores" if isinstance(critic, Tensor) else "a network or a function"
        raise ValueError(f"critic must map images to scores, got {described(critic)}: {hint}")
    if weight is not None:
        check_non_negative(weight=weight)
    if isinstance(ground, type) or not hasattr(ground, "squared_norm"):
        raise ValueError(f"ground must be a ground metric such as Wasserstein.released(), got {described(ground)}")
    if generator is not None and not isinstance(generator, torch.Generator):
        hint = ": the network that makes images is not needed, fake is its images" * isinstance(generator, nn.Module)
        got = described(generator)
        raise ValueError(f"generator must be a torch.Generator, for random numbers, or None, got {got}{hint}")
    if not torch.is_grad_enabled():
        mode = "inference_mode" if torch.is_inference_mode_enabled() else "no_grad"
        raise ValueError(f"gradients are off, by torch.{mode}: the penalty would not train the critic")


class _LossAndNorm(NamedTuple):
    loss: Tensor
    norm: Tensor


class Penalty(_LossAndNorm):
    """A gradient penalty: add its .loss to the critic's. norm: (B,), detached. loss: scalar, already weighted.

    Of an empty batch the loss is NaN, as every mean of nothing in PyTorch, and its gradient is zero.

    A tuple would be repeated by a factor and joined by a sum; this one raises TypeError.
    """

    def _is_no_number(self, *_: object) -> NoReturn:
        raise TypeError("a Penalty holds a loss and norms and is no number: use penalty.loss, with the weight in it")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __neg__ = _is_no_number
    backward = item = mean = _is_no_number


_warned_of: "WeakSet[nn.Module]" = WeakSet()


@contextmanager
def batch_norm_warned_of() -> Iterator[None]:
    """Looks at the modules that run meanwhile, whatever wraps them; warns once of each batch norm in training mode."""
    if torch.compiler.is_compiling():
        yield
        return
    found: list[nn.Module] = []

    def look(module: nn.Module, *_: Any) -> None:
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module not in _warned_of:
            found.append(module)

    hook = nn.modules.module.register_module_forward_hook(look)
    try:
        yield
    finally:
        hook.remove()
    _warned_of.update(found)
    if found:
        warnings.warn(
            "the critic has batch norm in training mode: its score of an image depends on the others in the batch, and "
            "the penalty is then no bound on a slope; use layer or instance norm, or none",
            stacklevel=4,
        )
