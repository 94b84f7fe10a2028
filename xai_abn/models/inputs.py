"""Networks of several inputs, of which one is the image that is explained."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from xai_abn.errors import InvalidInputError, UnknownNameError


class BoundInputs(nn.Module):
    """A network of several inputs as one that takes images alone: the other inputs are bound.

    Args:
        network: its ``forward`` takes the other inputs by name, and the images as the first argument that is not one of
            them.
        others: tensors with one row, (1, ...), which is repeated for every row of the images; or anything else, which
            is passed on as it is.
        given: whether these are the inputs of the image at hand, and not the example from which layers were found.

    Raises:
        UnknownNameError: the network has no such input.
        InvalidInputError: a tensor with another number of rows, or a network whose inputs have no names.
    """

    def __init__(self, network: nn.Module, others: Mapping[str, Any], *, given: bool = False) -> None:
        super().__init__()
        self.network = network
        self.given = given
        self.explained = _explained(network, others)
        self.tensors = sorted(name for name, value in others.items() if isinstance(value, Tensor))
        self.fixed = {name: value for name, value in others.items() if name not in self.tensors}
        for name in self.tensors:
            if others[name].dim() == 0 or len(others[name]) != 1:
                raise InvalidInputError(
                    f"the other input {name!r} must be a tensor with one row, (1, ...), got {tuple(others[name].shape)}"
                )
            self.register_buffer(f"input_{name}", others[name].detach().clone())

    def forward(self, images: Tensor) -> Any:
        """Return the network's output for images (N, C, H, W), each with the bound inputs."""
        rows = {name: self._rows(name, images) for name in self.tensors}
        return self.network(**{self.explained: images, **self.fixed, **rows})

    def _rows(self, name: str, images: Tensor) -> Tensor:
        row: Tensor = getattr(self, f"input_{name}")
        row = row.to(images.device, images.dtype if row.is_floating_point() else row.dtype)
        return row.repeat(len(images), *[1] * (row.dim() - 1))  # a copy, which the network may change in place

    def with_inputs(self, others: Mapping[str, Any]) -> BoundInputs:
        """Return the same network with the other inputs of one image.

        Raises:
            InvalidInputError: not the same inputs, or a tensor with another number of rows.
        """
        names = {*self.tensors, *self.fixed}
        if not isinstance(others, Mapping) or not set(self.tensors) <= set(others) <= names:
            got = ", ".join(map(str, others)) if isinstance(others, Mapping) else type(others).__name__
            raise InvalidInputError(f"other_inputs must give {', '.join(self.tensors)}, got {got or 'none'}")
        return BoundInputs(self.network, {**self.fixed, **others}, given=True)


def rows_of(others: object, number: int) -> list[dict[str, Any]]:
    """Return the other inputs of each of ``number`` images.

    Args:
        others: a mapping from names to tensors with a row for each image, (N, ...), or to anything else, which belongs
            to all of them.
        number: N.

    Raises:
        InvalidInputError: no mapping, or a tensor with another number of rows.
    """
    if not isinstance(others, Mapping):
        raise InvalidInputError(
            f"other_inputs must be a mapping from the names of the inputs to tensors, got {type(others).__name__}"
        )
    for name, value in others.items():
        if isinstance(value, Tensor) and (value.dim() == 0 or len(value) != number):
            raise InvalidInputError(
                f"the other input {name!r} must have a row for each of {number} images, got {tuple(value.shape)}"
            )
    return [
        {name: value[row : row + 1] if isinstance(value, Tensor) else value for name, value in others.items()}
        for row in range(number)
    ]


def _explained(network: nn.Module, others: Mapping[str, Any]) -> str:
    """Return the name of the input that takes the images."""
    if not isinstance(others, Mapping) or not others:
        raise InvalidInputError(
            "other_inputs must be a mapping from names of arguments of forward to their values, got "
            f"{'an empty one' if isinstance(others, Mapping) else type(others).__name__}"
        )
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(network.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in kinds]
    any_name = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    for name in others:
        if name not in names and not any_name:
            raise UnknownNameError("input", str(name), names, "The inputs are the arguments of forward.")
    free = [name for name in names if name not in others]
    if not free:
        raise InvalidInputError(
            f"{type(network).__name__} takes {', '.join(names) or 'no named inputs'}, so none is left for the image; "
            "leave it out of other_inputs, or put the network into a module whose forward names its inputs"
        )
    return free[0]


def others_are_examples(module: nn.Module) -> str:
    """Return the names of the tensors that were given to find layers and not for an image; empty without any."""
    return ", ".join(module.tensors) if isinstance(module, BoundInputs) and not module.given else ""
