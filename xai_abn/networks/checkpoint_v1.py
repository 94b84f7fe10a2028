"""Reader for the description in checkpoints of format 1, which hold the arguments of ``abn_from``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor

from xai_abn.errors import InvalidInputError
from xai_abn.networks.abn import MAX_SMOOTHING, ABNDescription
from xai_abn.networks.architectures import create_model
from xai_abn.networks.build import abn_from
from xai_abn.networks.weights import on_meta
from xai_abn.settings import Settings


class Arguments(Settings):
    """Arguments of :func:`xai_abn.abn_from`, as version 1 wrote them."""

    mechanism: str = Field("residual", max_length=500, description="Name of the attention mechanism.")
    layer: str | None = Field(None, max_length=500, description="Layer behind which the classifier is cut.")
    input_size: int = Field(224, ge=1, le=1024, description="Height and width of the blank image that finds shapes.")
    dilate: bool = Field(True, description="Whether dilation makes up for removed strides.")
    smoothing: int = Field(0, ge=0, le=MAX_SMOOTHING, description="How many times the map is averaged.")
    stage: str | None = Field(None, max_length=500, description="Module that ends the last stage.")
    start: str = Field("classifier", max_length=500, description="Where the branch's weights come from.")
    maps: str = Field("shared", max_length=500, description="Kind of maps.")


def upgrade(backbone: str, classes: int, arguments: object, state: Mapping[str, Tensor]) -> ABNDescription:
    """Return the description of an ABN for arguments of format 1.

    The cut is not in the file: it is found again, as it was found when the file was written.

    Args:
        backbone: name of the classifier.
        classes: K.
        arguments: of ``abn_from``.
        state: the weights, which must be at least as many as the classifier's before it is built.

    Raises:
        InvalidInputError: an argument is not known or out of its bounds, or the classifier is larger than the file.
        UnknownNameError: the architecture is not known.
    """
    if not isinstance(arguments, dict):
        raise InvalidInputError(f"abn must be an object, got {arguments!r:.60}")
    given: dict[str, Any] = Arguments(**arguments).changed()

    def build() -> Any:
        return create_model(backbone, classes, mechanism=None).eval()

    needed = sum(p.numel() for p in on_meta(build).parameters())
    held = sum(value.numel() for value in state.values())
    if needed > held:
        raise InvalidInputError(f"{backbone} with {classes} classes has {needed} weights, and the file holds {held}")
    description = abn_from(build(), **given).description
    assert description is not None  # abn_from always sets it
    return description
