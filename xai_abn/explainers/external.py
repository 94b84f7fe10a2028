"""Methods of other libraries, and maps made elsewhere, as explainers."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from xai_abn.errors import InvalidInputError
from xai_abn.explainers.base import Explainer
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.forward_pass import ForwardPass


def sum_of_channels(attributions: Tensor) -> Tensor:
    """Return attributions (N, C, h, w) summed over C, signed: (N, h, w)."""
    return attributions.sum(dim=1)


class Adapted(Explainer):
    """A method of another library. It runs on a copy of the network, so whatever it does to it is not seen outside.

    The copy shares the weights' memory, has frozen parameters and is in evaluation mode. Unlike registered methods,
    an adapted one is an object with a name of its own: pass it where a name would stand.

    Args:
        name: how it is called in results. A benchmark keeps values under it: other settings need another name.
        make: class or function that makes the library's object.
        layer: name of the layer to read.
        options: passed on at every call.
    """

    #: The library's name on PyPI.
    package = ""

    def __init__(self, name: str, make: Callable[..., Any], layer: str | None = None, **options: Any) -> None:
        super().__init__(layer)
        self.name = name
        self.source = self.package
        self.make = make
        self.options = options

    @property
    def parameters(self) -> dict[str, Any]:
        """What was called, of which version, with which options."""
        options = {key: _recorded(value) for key, value in sorted(self.options.items())}
        return {"library": f"{self.package} {version(self.package)}", "method": _recorded(self.make), **options}

    def explain(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the library's maps of ``targets``, (N, h, w).

        Raises:
            InvalidInputError: ``targets`` are directions and the library takes indices, or it gave no map an image.
        """
        inputs = forward_pass.inputs.detach().clone().requires_grad_()
        with torch.enable_grad():
            maps = self._maps(forward_pass, inputs, targets).detach().to(forward_pass.logits)
        if maps.dim() != 3 or len(maps) != len(forward_pass):
            raise InvalidInputError(f"{self.name} must give maps ({len(forward_pass)}, h, w), got {tuple(maps.shape)}")
        return maps

    @abstractmethod
    def _maps(self, forward_pass: ForwardPass, inputs: Tensor, targets: Tensor) -> Tensor:
        """Call the library with inputs (N, 3, H, W) that require a gradient; return (N, h, w)."""

    def _indices(self, targets: Tensor) -> Tensor:
        if targets.is_floating_point():
            raise InvalidInputError(
                f"{self.name} takes class indices (N,), got directions {tuple(targets.shape)}; "
                f"{self.package} knows no directions, but GradCAMExplainer and grad-cam do"
            )
        return targets


class CaptumExplainer(Adapted):
    """A method of captum.

    Args:
        name: see :class:`Adapted`.
        make: from the network, and with ``layer`` from the network and that layer, to captum's object: one of its
            classes, or a function such as ``lambda network: NoiseTunnel(Saliency(network))``.
        layer: of the layer methods, such as ``LayerGradCam``.
        reduce: attributions (N, C, h, w) to maps (N, h, w).
        options: of captum's ``attribute``.

    Example:
        >>> from captum.attr import IntegratedGradients
        >>> from xai_abn.explainers.external import CaptumExplainer
        >>> explainer = CaptumExplainer("integrated-gradients", IntegratedGradients, n_steps=20)
    """

    package = "captum"

    def __init__(
        self,
        name: str,
        make: Callable[..., Any],
        layer: str | None = None,
        reduce: Callable[[Tensor], Tensor] = sum_of_channels,
        **options: Any,
    ) -> None:
        super().__init__(name, make, layer, **options)
        self.reduce = reduce

    @property
    def parameters(self) -> dict[str, Any]:
        """What was called, of which version, with which options."""
        return {**super().parameters, "reduce": _recorded(self.reduce)}

    def check(self, model: ModelAdapter) -> None:
        """Refuse a layer that is not there."""
        if self.layer is not None:
            model.check_layer(self.layer)

    def layers(self, model: ModelAdapter) -> tuple[str, ...]:
        """Return nothing: captum runs the network itself."""
        return ()

    def layer_of(self, model: ModelAdapter) -> str:
        """Return the layer given, else ``"input"``."""
        return self.layer or "input"

    def _maps(self, forward_pass: ForwardPass, inputs: Tensor, targets: Tensor) -> Tensor:
        classifier, network = _copied(forward_pass.model)
        places = () if self.layer is None else (network.get_submodule(self.layer),)
        method = self.make(classifier, *places)
        return self.reduce(method.attribute(inputs, target=self._indices(targets), **self.options))


class GradCAMExplainer(Adapted):
    """A method of the package grad-cam (``pytorch_grad_cam``). Its maps have the input's size and lie in [0, 1].

    Args:
        name: see :class:`Adapted`.
        make: one of its classes; ``functools.partial`` of it for more arguments.
        layer: the layer to read; default: the model's target layer.
        options: of the call, such as ``aug_smooth=True``.

    Example:
        >>> from pytorch_grad_cam import LayerCAM
        >>> from xai_abn.explainers.external import GradCAMExplainer
        >>> explainer = GradCAMExplainer("layer-cam", LayerCAM)
    """

    package = "grad-cam"

    def _maps(self, forward_pass: ForwardPass, inputs: Tensor, targets: Tensor) -> Tensor:
        classifier, network = _copied(forward_pass.model)
        layer = self.layer_of(forward_pass.model)
        reshape = forward_pass.layout(layer).to_maps
        scores = [_Score(target) for target in targets]
        with self.make(classifier, [network.get_submodule(layer)], reshape_transform=reshape) as method:
            return torch.as_tensor(method(inputs, targets=scores, **self.options))
        raise InvalidInputError(f"{self.name} failed inside grad-cam, which printed why")


class TorchCAMExplainer(Adapted):
    """A method of torchcam. Its maps have the layer's size and are not normalised.

    Args:
        name: see :class:`Adapted`.
        make: one of its classes; ``functools.partial`` of it for more arguments.
        layer: the layer to read; default: the model's target layer.
        options: of the extractor's call.

    Example:
        >>> from torchcam.methods import SmoothGradCAMpp
        >>> from xai_abn.explainers.external import TorchCAMExplainer
        >>> explainer = TorchCAMExplainer("smooth-grad-cam++", SmoothGradCAMpp)
    """

    package = "torchcam"

    def _maps(self, forward_pass: ForwardPass, inputs: Tensor, targets: Tensor) -> Tensor:
        classifier, network = _copied(forward_pass.model)
        layer = self.layer_of(forward_pass.model)
        layout = forward_pass.layout(layer)
        reshape = {} if layout.kind == "channels-first" else {"reshape_transform": layout.to_maps}
        indices = self._indices(targets).tolist()
        with self.make(classifier, network.get_submodule(layer), **reshape) as method:
            (maps,) = method(indices, classifier(inputs), normalized=False, **self.options)
        return maps


class _Score(nn.Module):
    """What grad-cam differentiates: one class's logit, or the logits (K,) along a direction."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self.target = target

    def forward(self, logits: Tensor) -> Tensor:
        if self.target.is_floating_point():
            return (logits * self.target.to(logits)).sum(dim=-1)
        return logits[..., int(self.target)]


class _Logits(nn.Module):
    """A network seen through its adapter: (N, 3, H, W) to logits (N, K), wherever they are in its answer."""

    def __init__(self, network: nn.Module, model: ModelAdapter) -> None:
        super().__init__()
        self.network = network
        self.logits_of = model.logits_of

    def forward(self, images: Tensor) -> Tensor:
        return self.logits_of(self.network(images))


def _copied(model: ModelAdapter) -> tuple[nn.Module, nn.Module]:
    """Return a copy as a function of images to logits, and the copied network itself, which may be the same."""
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.module.parameters()}
    network = copy.deepcopy(model.module, shared).eval()
    plain = model.output is None and not model.is_abn
    return (network if plain else _Logits(network, model)), network


def _recorded(value: object) -> Any:
    """Return a setting as something JSON holds: itself, or what it is called."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, "__qualname__", None) or repr(value)
