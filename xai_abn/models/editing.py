"""Changed maps: what both branches of an Attention Branch Network answer if its maps are others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from xai_abn.errors import InvalidInputError, shown
from xai_abn.images.preprocess import PreparedImage
from xai_abn.networks.abn import AttentionBranchNetwork
from xai_abn.networks.tracing import evaluating, on_device, without_gradients

#: A part of the image: a box, the corners of a polygon, or a mask; see :meth:`PreparedImage.cells`.
Part: TypeAlias = Sequence[float] | Sequence[Sequence[float]] | np.ndarray


@dataclass(frozen=True, eq=False)
class Answers:
    """What both branches answer, and the maps from which they do.

    Attributes:
        logits: (K,) of the perception branch, the prediction.
        attention_logits: (K,) of the attention branch.
        probabilities: (K,) of the perception branch; NaN for a model without probabilities.
        attention_probabilities: (K,) of the attention branch, likewise.
        attention_map: (h, w) M, or (K, h, w) of a multi-task ABN.
        class_maps: (K, h, w).
    """

    logits: Tensor
    attention_logits: Tensor
    probabilities: Tensor
    attention_probabilities: Tensor
    attention_map: Tensor
    class_maps: Tensor


class EditableImage:
    """One image whose maps can be changed. Made by :meth:`xai_abn.ModelAdapter.edit`.

    The features are computed once, so each further answer costs a run of the perception branch alone.

    Args:
        network: the network.
        image: the image.
        memory_format: of the input.
        index_of: the index of a class given by index or label.
        probabilities: logits (N, K) to probabilities.

    Attributes:
        image: the image.
        own: the answers from the network's own maps.

    Examples:
        >>> import xai_abn
        >>> edit = xai_abn.load_model().edit("example:cat")
        >>> other = edit.marked("tabby", look=(140, 20, 330, 250))  # a box: left, top, right, bottom
        >>> rise = other.probabilities - edit.own.probabilities
    """

    def __init__(
        self,
        network: AttentionBranchNetwork,
        image: PreparedImage,
        memory_format: torch.memory_format,
        index_of: Callable[[int | str], int],
        probabilities: Callable[[Tensor], Tensor],
    ) -> None:
        self.image = image
        self._network, self._index_of, self._probabilities = network, index_of, probabilities
        inputs = on_device(image.tensor[None].contiguous(memory_format=memory_format), network)
        with evaluating(network), without_gradients(network):
            self._features = network.feature_extractor(inputs).detach()
            attention_logits, attention_map, class_maps = network.attention_branch(self._features)
            logits = network.perceive(self._features, attention_map)
        self._attention_map = attention_map.detach()
        self.own = self._answers(logits, attention_logits, self._attention_map, class_maps.detach())

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the maps."""
        return self._attention_map.shape[2], self._attention_map.shape[3]

    def answers(self, attention: Any = None, class_maps: Mapping[int | str, Any] | None = None) -> Answers:
        """Return what the branches answer from other maps.

        The perception branch then sees its features weighted by ``attention``, as in ``network(inputs,
        attention=...)``. In the attention branch, the logit of a class becomes the mean of its new map (the maximum, if
        maps are signed).

        Args:
            attention: (h, w), or (K, h, w) for a multi-task ABN: in place of M, in [0, 1] unless maps are signed;
                default: the network's own.
            class_maps: by class, (h, w) in place of its map.

        Raises:
            InvalidInputError: a map of another size, values out of range or not finite, or an unknown class.
        """
        own, network = self.own, self._network
        attention_map, logits = self._attention_map, own.logits[None]
        if attention is not None:
            attention_map = self._as_map(attention, tuple(own.attention_map.shape), "attention").view_as(attention_map)
            if network.bounded and not bool(((attention_map >= 0) & (attention_map <= 1)).all()):
                raise InvalidInputError("attention must lie in [0, 1]; scale it before passing it")
            with evaluating(network), without_gradients(network):
                logits = network.perceive(self._features, attention_map).detach()
        attention_logits, maps = own.attention_logits[None].clone(), own.class_maps[None].clone()
        changed = [self._index_of(target) for target in class_maps or {}]
        for index, values in zip(changed, (class_maps or {}).values(), strict=True):
            maps[0, index] = self._as_map(values, self.grid, f"the map of class {index}")
        pooled = maps.mean(dim=(2, 3)) if network.bounded else maps.amax(dim=(2, 3))
        attention_logits[0, changed] = pooled[0, changed].to(attention_logits)
        return self._answers(logits, attention_logits, attention_map, maps)

    def marked(
        self,
        target: int | str,
        look: Part | None = None,
        avoid: Part | None = None,
        on: Literal["attention-map", "class-map"] | None = None,
    ) -> Answers:
        """Return what the branches answer if a person marks where to look for a class, and where not to.

        Args:
            target: the class, by index or label.
            look: where the map becomes 1 (the class map its largest value): a box, the corners of a polygon or a
                mask, in pixels of the image.
            avoid: where the map, and the class map, become 0.
            on: the only map that is marked, ``"attention-map"`` or ``"class-map"``; default: both.

        Raises:
            InvalidInputError: no such class or map, nothing that the network saw, or marks that contradict each other.
            UnknownNameError: no such label.
        """
        raised, lowered = (
            np.zeros(self.grid, np.float32) if p is None else self.image.cells(p, self.grid) for p in (look, avoid)
        )
        return self.marked_cells(target, raised, lowered, on)

    def marked_cells(
        self,
        target: int | str,
        look: np.ndarray,
        avoid: np.ndarray,
        on: Literal["attention-map", "class-map"] | None = None,
    ) -> Answers:
        """Return what :meth:`marked` does, for marks given as the share of each cell (h, w), in [0, 1]."""
        if float((look + avoid).max()) > 1 + 1e-6:
            raise InvalidInputError(
                "the marks contradict each other: a part is marked both ways, and must be marked one way"
            )
        if on not in ("attention-map", "class-map", None):
            raise InvalidInputError(f"on must be 'attention-map' or 'class-map', or None, got {shown(on)}")
        index, attention = self._index_of(target), None
        class_maps: dict[int | str, Tensor] = {}
        if on != "class-map":
            attention = self.own.attention_map.clone()
            own = attention if attention.dim() == 2 else attention[index]
            bounded = self._network.bounded
            painted = _painted(own, look, avoid, 1.0 if bounded else float(own.max()))
            own.copy_(painted.clamp(0, 1) if bounded else painted)  # rounding may leave the range
        if on != "attention-map":
            class_map = self.own.class_maps[index]
            class_maps = {index: _painted(class_map, look, avoid, max(0.0, float(class_map.max())))}
        return self.answers(attention, class_maps)

    def _as_map(self, values: Any, shape: tuple[int, ...], what: str) -> Tensor:
        try:
            tensor = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
            found = tensor.detach().to(self._attention_map)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidInputError(f"{what} must be an array {shape}, got {type(values).__name__}") from error
        if tuple(found.shape) != shape or not bool(found.isfinite().all()):
            raise InvalidInputError(f"{what} must be {shape} of finite numbers, got {tuple(found.shape)}")
        return found

    def _answers(self, logits: Tensor, attention_logits: Tensor, attention_map: Tensor, class_maps: Tensor) -> Answers:
        logits, attention_logits = logits.detach().float(), attention_logits.detach().float()
        maps = attention_map[0]
        return Answers(
            logits[0],
            attention_logits[0],
            self._probabilities(logits)[0],
            self._probabilities(attention_logits)[0],
            maps[0] if len(maps) == 1 else maps,
            class_maps[0],
        )


def _painted(map_: Tensor, look: np.ndarray, avoid: np.ndarray, top: float) -> Tensor:
    """Return a map (h, w) that is moved to ``top`` where marked to look, and to 0 where not to, by the shares given."""
    raised, lowered = (torch.as_tensor(part, dtype=map_.dtype, device=map_.device) for part in (look, avoid))
    return map_ * (1 - raised - lowered) + top * raised
