"""Some updates in float64, by as many processes as are started together: what test_distributed.py compares."""

import torch

from wwgan import step
from wwgan.data import load_images
from wwgan.distributed import joined_processes, rank
from wwgan.settings import make_config
from wwgan.step import TrainState, update


def main(path: str, data_dir: str, *options: str) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # the step asks for single precision in places
    single = step.real_images
    step.real_images = lambda *arguments: single(*arguments).double()
    config = make_config("smoke", device="cpu", **dict(option.split("=") for option in options))
    with joined_processes():
        images = load_images("digits", data_dir, config.size)
        state = TrainState(config, images.shape[1], torch.device("cpu"))
        for _ in range(3):
            update(state, images, config.ground())
        if rank() == 0:
            networks = dict(generator=state.generator, critic=state.critic, averaged=state.ema)
            torch.save({name: network.state_dict() for name, network in networks.items()}, path)
