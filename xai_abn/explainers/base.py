"""What every explainer is, and the table of their names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from xai_abn.errors import InvalidInputError
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.networks.tracing import takes_channels_first
from xai_abn.registry import Registry


class Explainer(ABC):
    """A method that turns a forward pass into maps. A subclass writes one function, :meth:`explain`.

    Args:
        layer: name of the layer to read; default: the model's target layer.

    Attributes:
        name: registered name, set by :func:`register`.
        needs_gradient: whether :meth:`explain` calls ``forward_pass.gradients``.
        needs_attention: whether :meth:`explain` reads ``forward_pass.attentions``.
        class_specific: whether the map depends on the target; see also :meth:`is_class_specific`.
        source: the paper.
        control: whether it only serves for comparison and explains nothing.

    Example:
        >>> from xai_abn.explainers import Explainer, register
        >>> @register("activation-mean")
        ... class ActivationMean(Explainer):
        ...     class_specific = False
        ...     def explain(self, forward_pass, targets):
        ...         return forward_pass.activations(self.layer_of(forward_pass.model)).mean(dim=1)
    """

    name: str = ""
    needs_gradient: ClassVar[bool] = False
    needs_attention: ClassVar[bool] = False
    class_specific: ClassVar[bool] = True
    source: str = ""
    control: ClassVar[bool] = False

    def __init__(self, layer: str | None = None) -> None:
        self.layer = layer

    @abstractmethod
    def explain(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return one map an image, in the method's own units, not scaled.

        Args:
            forward_pass: a pass that captured :meth:`layers`, with gradients if ``needs_gradient``.
            targets: (N,) class indices, or directions (N, K), one class minus another, say; what the method does
                with them goes through ``forward_pass.gradients``, ``.scores`` and ``.weights``, which take both.

        Returns:
            (N, h, w) maps at the method's resolution: the layer's, or the input's.

        Raises:
            UnsupportedModelError: the method does not apply to this model; the message says why.
        """

    def check(self, model: ModelAdapter) -> None:  # noqa: B027 - most methods refuse nothing
        """Refuse a model that this method cannot explain, before it is run.

        Raises:
            UnsupportedModelError: the method does not apply; the message says why and what to do.
        """

    def is_class_specific(self, model: ModelAdapter) -> bool:
        """Return whether the map of this model depends on the target; by default as the class says."""
        return self.class_specific

    def layers(self, model: ModelAdapter) -> tuple[str, ...]:
        """Return the layers the forward pass must capture."""
        return (self.layer_of(model),)

    def layer_of(self, model: ModelAdapter) -> str:
        """Return the layer this explainer reads, and the one recorded with its maps."""
        return self.layer or model.target_layer

    @property
    def parameters(self) -> dict[str, Any]:
        """Settings worth recording with a map."""
        return {}


def run_pass(
    model: ModelAdapter, inputs: Tensor, methods: Iterable[Explainer], sources: Sequence[str] = ()
) -> ForwardPass:
    """Run the network once on (N, 3, H, W) and keep what all of the methods need."""
    chosen = list(methods)
    layers = [layer for method in chosen for layer in method.layers(model)]
    return model.forward_pass(
        inputs,
        layers,
        any(m.needs_gradient for m in chosen),
        attentions=any(m.needs_attention for m in chosen),
        sources=sources,
    )


def run_batch(
    model: ModelAdapter, inputs: Tensor, methods: Iterable[Explainer], sources: Sequence[str] = ()
) -> ForwardPass:
    """Do as :func:`run_pass`, in channels-last layout, which is faster, where the network takes that."""
    chosen = list(methods)
    try:
        return run_pass(model, inputs.contiguous(memory_format=torch.channels_last), chosen, sources)
    except RuntimeError as error:
        if not takes_channels_first(error):
            raise
        return run_pass(model, inputs.contiguous(), chosen, sources)


def _class_name(name: str, item: object) -> str:
    if not (isinstance(item, type) and issubclass(item, Explainer)):
        raise InvalidInputError(f"{name!r} must be a subclass of xai_abn.explainers.Explainer, got {item!r}")
    return name


explainers: Registry[type[Explainer]] = Registry("method", "xai_abn.explainers", _class_name)

E = TypeVar("E", bound=type[Explainer])


def register(name: str) -> Callable[[E], E]:
    """Return a class decorator that makes an explainer known under ``name``, to the CLI and tests too.

    Raises:
        InvalidInputError: the name is taken.
    """
    return explainers.register(name)  # type: ignore[return-value]


def names() -> list[str]:
    """Return the names of all explainers, installed plug-ins included."""
    return explainers.names()


def get(name: str) -> type[Explainer]:
    """Return the explainer class called ``name``.

    Raises:
        UnknownNameError: there is none; the message gives the nearest.
    """
    return explainers.get(name)
