"""Reader for the description in checkpoints of format 1, which hold the arguments of ``abn_from``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from xai_abn.errors import CheckpointError
from xai_abn.networks.architectures import create_model
from xai_abn.networks.build import abn_from


def upgrade(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a description of format 1 as one of format 2.

    The cut is not in the file: it is found again, as it was found when the file was written.

    Raises:
        CheckpointError: an argument of ``abn_from`` is not known.
        UnknownNameError: the architecture is not known.
    """
    arguments = values["abn"]
    if arguments is None:
        return dict(values)
    unknown = sorted(set(arguments) - set(inspect.signature(abn_from).parameters))
    if unknown:
        raise CheckpointError(f"the description has the unknown ABN settings {', '.join(unknown)}; update xai-abn")
    classifier = create_model(values["backbone"], values["classes"], mechanism=None).eval()
    description = abn_from(classifier, **arguments).description
    assert description is not None  # abn_from always sets it
    return {**values, "abn": asdict(description)}
