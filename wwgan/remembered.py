"""What is computed once for each set of arguments and kept for the next call."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

_Result = TypeVar("_Result")


def remembered(function: Callable[..., _Result]) -> Callable[..., _Result]:
    """Computed once for each set of arguments, 64 kept. A plain dictionary, which torch.compile sees through.

    Nothing is kept or taken where new tensors hold no values, under FakeTensorMode.
    """
    results: dict[tuple[Any, ...], _Result] = {}

    @wraps(function)
    def call(*arguments: Any) -> _Result:
        if type(torch.empty(0)) is not torch.Tensor:
            return function(*arguments)
        if arguments not in results:
            if len(results) == 64:  # a length that changes over the updates asks for ever new ones
                del results[next(iter(results))]
            results[arguments] = function(*arguments)
        return results[arguments]

    return call
