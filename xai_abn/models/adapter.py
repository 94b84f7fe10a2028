"""A classifier with all that explaining it needs: preprocessing, labels, target layer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from xai_abn.errors import InvalidInputError, UnknownNameError, UnsupportedModelError
from xai_abn.models.abn import AttentionBranchNetwork
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.models.inspection import LayerOutput, find_classifier, find_target_layer, spatial_layers, trace_outputs
from xai_abn.preprocess import Preprocess


class ModelAdapter:
    """A classifier ready to be explained. Made by :func:`xai_abn.load_model` or :func:`xai_abn.wrap`.

    The module is used as it is: neither its mode, flags, gradients, hooks nor device change.

    Args:
        module: (N, 3, H, W) to logits (N, K), or an :class:`AttentionBranchNetwork`.
        name: how it is called in results.
        preprocess: how pictures become inputs.
        labels: K names; without them, classes are called by number.
        layer: the target layer of CAM methods; default: found, see :attr:`target_layer`.
        weights: where the weights are from, for the record.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str,
        preprocess: Preprocess,
        labels: Sequence[str] | None = None,
        layer: str | None = None,
        weights: str = "as given",
    ) -> None:
        if not isinstance(module, nn.Module):
            raise UnsupportedModelError(f"expected a torch.nn.Module, got {type(module).__name__}")
        self.module = module
        self.name = name
        self.preprocess = preprocess
        self.labels = tuple(labels) if labels is not None else None
        self.weights = weights
        self._layer = layer

    def __repr__(self) -> str:
        """Return name and class."""
        return f"ModelAdapter({self.name!r}, {type(self.module).__name__})"

    @property
    def is_abn(self) -> bool:
        """Whether the network has an attention branch."""
        return isinstance(self.module, AttentionBranchNetwork)

    @property
    def blank_input(self) -> Tensor:
        """A (1, 3, H, W) input of zeros at the size the network expects."""
        return torch.zeros(1, 3, self.preprocess.size, self.preprocess.size)

    @cached_property
    def target_layer(self) -> str:
        """Name of the layer CAM methods read: the given one, or the last with a spatial output.

        Raises:
            UnsupportedModelError: none was given and none can be found.
        """
        return self._layer or find_target_layer(self.module, self.blank_input)

    @cached_property
    def classifier(self) -> nn.Linear:
        """The last linear layer.

        Raises:
            UnsupportedModelError: there is none.
        """
        return find_classifier(self.module)

    @cached_property
    def has_linear_classifier(self) -> bool:
        """Whether there is a linear layer for :attr:`classifier`."""
        return any(isinstance(m, nn.Linear) for m in self.module.modules())

    @cached_property
    def number_of_classes(self) -> int:
        """K: how many classes the network scores."""
        return self.forward_pass(self.blank_input).logits.shape[1]

    def with_module(self, module: nn.Module) -> ModelAdapter:
        """Return an adapter of another network of the same architecture, as one with other weights."""
        return ModelAdapter(
            module, name=self.name, preprocess=self.preprocess, labels=self.labels, layer=self._layer, weights="other"
        )

    def check_layer(self, name: str) -> None:
        """Refuse the name of a layer that is not there.

        Raises:
            UnknownNameError: the message gives the nearest.
        """
        try:
            known = self.module.get_submodule(name) is not self.module
        except AttributeError:
            known = False
        if not known:
            raise UnknownNameError("layer", name, [n for n, _ in self.module.named_modules() if n])

    def spatial_layers(self) -> list[LayerOutput]:
        """Return every layer with a spatial output (N, C, h, w), in order of computing."""
        return spatial_layers(trace_outputs(self.module, self.blank_input))

    def forward_pass(self, inputs: Tensor, layers: Sequence[str] = (), gradients: bool = False) -> ForwardPass:
        """Run the network once on (N, 3, H, W); see :class:`ForwardPass`."""
        return ForwardPass(self, inputs, layers, gradients)

    def label(self, index: int) -> str:
        """Return the name of a class, or ``"class 7"`` without labels."""
        return self.labels[index] if self.labels is not None and index < len(self.labels) else f"class {index}"

    def target_index(self, target: int | str, classes: int) -> int:
        """Return the index of a class given by index or by label text (upper and lower case alike).

        Args:
            target: an index from 0, digits, or a label.
            classes: number of classes K the model scores.

        Raises:
            InvalidInputError: the index is out of range, or the label is carried by several classes.
            UnknownNameError: no class has this label; the message gives the nearest.
        """
        if isinstance(target, str) and target.strip().isdigit():
            target = int(target)
        if isinstance(target, str):
            return self._labelled(target)
        if isinstance(target, bool) or not isinstance(target, int):
            raise InvalidInputError(f"a target is an index or a label, got {type(target).__name__}")
        if not 0 <= target < classes:
            raise InvalidInputError(f"target {target} is out of range; {self.name} has classes 0 to {classes - 1}")
        return target

    def _labelled(self, text: str) -> int:
        if self.labels is None:
            raise InvalidInputError(f"{self.name} has no labels, so a target must be an index, got {text!r}")
        wanted = text.strip().casefold()
        found = [i for i, label in enumerate(self.labels) if label.casefold() == wanted]
        if not found:
            raise UnknownNameError("label", text, dict.fromkeys(self.labels))
        if len(found) > 1:
            raise InvalidInputError(f"label {text!r} names classes {', '.join(map(str, found))}; give the index")
        return found[0]


def wrap(
    module: nn.Module,
    *,
    labels: Sequence[str] | None = None,
    preprocess: Preprocess | None = None,
    layer: str | None = None,
    name: str | None = None,
) -> ModelAdapter:
    """Make any classifier explainable.

    Args:
        module: (N, 3, H, W) to logits (N, K); on any device.
        labels: K class names.
        preprocess: how pictures become inputs; default: 224 pixels, ImageNet mean and deviation.
        layer: the target layer of CAM methods; default: found.
        name: how to call it in results; default: its class name.

    Raises:
        UnsupportedModelError: not a module.
        InvalidInputError: fewer or more labels than the last linear layer has outputs.
        UnknownNameError: there is no such layer.

    Example:
        >>> import torchvision, xai_abn
        >>> model = xai_abn.wrap(torchvision.models.resnet18())
        >>> model.target_layer
        'layer4'
    """
    adapter = ModelAdapter(
        module,
        name=name or type(module).__name__,
        preprocess=preprocess or Preprocess(),
        labels=labels,
        layer=layer,
    )
    if layer is not None:
        adapter.check_layer(layer)
    if labels is not None:
        outputs = [m.out_features for m in module.modules() if isinstance(m, nn.Linear)]
        if outputs and outputs[-1] != len(labels):
            raise InvalidInputError(f"got {len(labels)} labels for a model with {outputs[-1]} classes")
    return adapter
