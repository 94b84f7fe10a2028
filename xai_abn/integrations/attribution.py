"""The methods, called as captum and Quantus call theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xai_abn.errors import InvalidInputError, UnknownNameError, shown
from xai_abn.explainers import Explainer, make_explainers, names, parse_spec, run_pass
from xai_abn.heatmaps import upsample
from xai_abn.images.preprocess import Preprocess
from xai_abn.models.adapter import ModelAdapter, wrap
from xai_abn.models.forward_pass import check_inputs
from xai_abn.pipeline import targets_per_image


class CaptumStyle:
    """A method with captum's call: ``CaptumStyle(model, "grad-cam").attribute(inputs, target=3)``.

    Args:
        model: from :func:`xai_abn.load_model` or :func:`xai_abn.wrap`; a bare module is wrapped.
        method: a name or an :class:`~xai_abn.explainers.Explainer`.
        layer: read by a method given by name; default: the model's target layer.

    Examples:
        >>> import torch, xai_abn
        >>> from xai_abn.integrations import CaptumStyle
        >>> method = CaptumStyle(xai_abn.load_model("lite0"), "cam")
        >>> method.attribute(torch.zeros(2, 3, 224, 224), target=281).shape
        torch.Size([2, 1, 224, 224])
    """

    def __init__(self, model: ModelAdapter | nn.Module, method: str | Explainer, layer: str | None = None) -> None:
        self.model, self.method, self.layer = model, method, layer

    def attribute(
        self,
        inputs: Tensor,
        target: int | str | Sequence[int | str] | np.ndarray | Tensor | None = None,
        *,
        upsample_maps: bool = True,
    ) -> Tensor:
        """Return one map per image, detached, in the method's own units.

        Args:
            inputs: (N, C, H, W), normalized; volumes and clips (N, C, D, H, W).
            target: one class, by index or label, for all images, one per image, or None for each image's top-1 class.
            upsample_maps: enlarge to (H, W), bilinear with half-pixel centers; otherwise the method's own resolution.

        Returns:
            (N, 1, H, W), or (N, 1, h, w); of volumes and clips with one more axis.

        Raises:
            InvalidInputError: inputs or targets of another shape, or a class that does not exist.
            UnsupportedModelError: the method does not apply to the model.
        """
        check_inputs(inputs)
        model = self.model if isinstance(self.model, ModelAdapter) else _wrapped(self.model, inputs)
        (explainer,) = make_explainers(model, self.method, self.layer)
        shared = run_pass(model, inputs, [explainer])
        chosen = _indices(target, shared.logits, model)
        maps = explainer.explain(shared, chosen).detach()
        maps = upsample(maps, inputs.shape[2:]) if upsample_maps else maps
        return maps[:, None]


def explain_func(
    model: ModelAdapter | nn.Module,
    inputs: np.ndarray | Tensor,
    targets: np.ndarray | Tensor | Sequence[int],
    *,
    method: str | Explainer = "grad-cam",
    device: str | torch.device | None = None,
    **settings: Any,
) -> np.ndarray:
    """Return maps as Quantus expects of its ``explain_func``.

    A metric of Quantus takes the method in ``explain_func_kwargs={"method": "cam"}``. ``quantus.evaluate`` instead
    passes the key in ``xai_methods`` as the method, so the key is a name or specification: ``{"rise:masks=500":
    explain_func}``.

    Args:
        model: the network, or a :class:`~xai_abn.ModelAdapter`; it stays on its device.
        inputs: (N, 3, H, W), normalized.
        targets: (N,) class indices.
        method: a name or an :class:`~xai_abn.explainers.Explainer`.
        device: ignored, since the inputs are moved to the model's own device; Quantus passes it.
        settings: options of a method given by name, such as ``layer="layer3"``.

    Returns:
        (N, 1, H, W) float32 maps, enlarged to the input's size.

    Raises:
        InvalidInputError: inputs, targets or settings are wrong.
        UnsupportedModelError: the method does not apply to the model.
    """
    chosen = _with_settings(method, settings)
    try:
        images = inputs if isinstance(inputs, Tensor) else torch.from_numpy(np.array(inputs, np.float32))
        images = images.float()
    except (TypeError, ValueError, RuntimeError) as error:
        got = f"{type(inputs).__name__} ({shown(str(error))})"
        raise InvalidInputError(f"inputs must be numbers (N, C, H, W), got {got}") from error
    return CaptumStyle(model, chosen).attribute(images, targets).float().cpu().numpy()


def _with_settings(method: str | Explainer, settings: dict[str, Any]) -> Explainer:
    if isinstance(method, Explainer):
        if settings:
            raise InvalidInputError(f"{method.spec} is an explainer already; it takes no {', '.join(settings)}")
        return method
    try:
        return parse_spec(method).replace(**settings)
    except UnknownNameError as error:
        if error.name != method.partition(":")[0].strip():  # a setting
            raise
        hint = "quantus.evaluate passes the keys of xai_methods as methods: write {'grad-cam': explain_func}."
        raise UnknownNameError("method", error.name, names(), hint) from None


def _wrapped(module: nn.Module, inputs: Tensor) -> ModelAdapter:
    if inputs.dim() == 5:
        return wrap(module, example_input=torch.zeros_like(inputs[:1]))
    return wrap(module, preprocess=Preprocess(size=max(inputs.shape[2:])))


def _indices(
    target: int | str | Sequence[int | str] | np.ndarray | Tensor | None, logits: Tensor, model: ModelAdapter
) -> Tensor:
    """Return (N,) indices of classes that exist."""
    number, classes = logits.shape
    if target is None:
        return logits.argmax(dim=1)
    wanted = targets_per_image(target, number)
    if any(len(one) > 1 for one in wanted):
        raise InvalidInputError("target must be one class per image, got several for an image; call once for each")
    return torch.tensor([model.target_index(one, classes) for (one,) in wanted], device=logits.device)  # type: ignore[arg-type]
