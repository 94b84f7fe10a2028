"""Explanation of tables by batches, for Ray Data's ``map_batches`` and Hugging Face's ``map(batched=True)``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from xai_abn.errors import InvalidInputError, XaiAbnError
from xai_abn.explainers import Explainer, make_explainers
from xai_abn.models.adapter import ModelAdapter, wrap
from xai_abn.models.targets import Target
from xai_abn.models.zoo import load_model
from xai_abn.pipeline import Result, explain_images

_ERRORS = ("raise", "record")


class BatchExplainer:
    """Explains a batch of rows, given as a mapping from column names to values, and adds columns to it.

    The new columns are ``label`` and ``probability`` of the class explained, a ``<method>_map`` (h, w) float32 for each
    method, and with ``errors="record"`` an ``error``: None, or the reason why the other new columns of the row are
    None. Pickled, it holds the model's name, not its weights; each process loads the model once, when the first batch
    comes.

    Args:
        model: a name for :func:`xai_abn.load_model`; an adapter is pickled whole, and a bare module is wrapped.
        methods: names or :class:`~xai_abn.explainers.Explainer` objects.
        image_column: the column with paths, encoded bytes, ``{"bytes": ..., "path": ...}``, uint8 arrays or Pillow
            images.
        target: index or label of the class to explain in all images; default: each image's top-1 class.
        layer: the layer for every method given by name that reads one.
        weights: see :func:`xai_abn.load_model`.
        device: see :func:`xai_abn.load_model`.
        batch_size: images per forward pass, regardless of the number of rows.
        errors: ``"raise"`` the error of the first bad image, or ``"record"`` the error of each.
        prefix: prefix of the names of all new columns.
        keep: whether to return the given columns, too. Ray needs them; Hugging Face keeps them itself.

    Raises:
        InvalidInputError: ``errors``, ``batch_size`` or ``prefix`` is wrong.

    Examples:
        >>> from xai_abn.integrations import BatchExplainer
        >>> explainer = BatchExplainer("lite0", ["cam"])
        >>> sorted(explainer({"image": ["example:cat"]}))
        ['cam_map', 'image', 'label', 'probability']
    """

    def __init__(
        self,
        model: str | Path | ModelAdapter | nn.Module = "abn-lite0-masks",
        methods: str | Explainer | Sequence[str | Explainer] | None = None,
        image_column: str = "image",
        *,
        target: Target | None = None,
        layer: str | None = None,
        weights: str | None = None,
        device: str = "cpu",
        batch_size: int = 8,
        errors: str = "raise",
        prefix: str = "",
        keep: bool = True,
    ) -> None:
        if errors not in _ERRORS:
            raise InvalidInputError(f"errors must be {' or '.join(_ERRORS)}, got {errors!r}")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise InvalidInputError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
        if not isinstance(prefix, str):
            raise InvalidInputError(f"prefix must be text, got {prefix!r}")
        model = wrap(model) if isinstance(model, nn.Module) else model
        self.model, self.methods, self.image_column = model, methods, image_column
        self.target, self.layer, self.weights, self.device = target, layer, weights, device
        self.batch_size, self.errors, self.prefix, self.keep = batch_size, errors, prefix, keep

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Return the batch with the new columns.

        Raises:
            InvalidInputError: no column of images, or a new column would replace one.
            XaiAbnError: an image cannot be read or explained, with ``errors="raise"``.
        """
        if not isinstance(batch, Mapping):
            raise InvalidInputError(f"a batch must be a mapping from columns to values, got {type(batch).__name__}")
        if self.image_column not in batch:
            raise InvalidInputError(
                f"no column {self.image_column!r}; there are {', '.join(map(str, batch)) or 'none'}: choose with "
                "image_column=..."
            )
        images = batch[self.image_column]
        if isinstance(images, (str, bytes)) or not isinstance(images, Iterable):
            raise InvalidInputError(
                f"column {self.image_column!r} must hold a sequence of images, got {type(images).__name__}"
            )
        model = self._loaded()
        methods = make_explainers(model, self.methods, self.layer)
        rows = self._explained(model, methods, list(images))
        made = {self.prefix + name: column for name, column in self._columns(model, rows, methods).items()}
        taken = [name for name in made if name in batch]
        if taken:
            raise InvalidInputError(
                f"the batch already has a column {taken[0]!r}; rename the new ones with prefix='xai_'"
            )
        return {**batch, **made} if self.keep else made

    def _loaded(self) -> ModelAdapter:
        if isinstance(self.model, ModelAdapter):
            return self.model
        return _load_once(str(self.model), self.weights, self.device)

    def _explained(self, model: ModelAdapter, explainers: Sequence[Explainer], images: Sequence[Any]) -> list[Result]:
        targets = [(self.target,)] * len(images)
        rows = explain_images(model, images, explainers, targets, batch_size=self.batch_size, kind="row")
        results: list[Result] = []
        for result in rows:
            if isinstance(result, XaiAbnError) and self.errors == "raise":
                raise result
            results.append(result)
        return results

    def _columns(
        self, model: ModelAdapter, rows: Sequence[Result], methods: Sequence[Explainer]
    ) -> dict[str, Sequence[Any]]:
        """Return the new columns; for images that failed, None in all but ``error``."""
        good = [None if isinstance(row, XaiAbnError) else row for row in rows]
        asked = next((m.spec for m in methods if m.is_class_specific(model)), methods[0].spec)
        columns: dict[str, Sequence[Any]] = {
            "label": [row and row[asked].label for row in good],
            "probability": [row and row[asked].probability for row in good],
        }
        for method in methods:
            maps = [None if row is None else row[method.spec].map for row in good]
            columns[f"{method.spec}_map"] = _stacked(maps) if self.errors == "raise" else _listed(maps)
        if self.errors == "record":
            columns["error"] = [row.line if isinstance(row, XaiAbnError) else None for row in rows]
        return columns


@lru_cache(maxsize=4)
def _load_once(spec: str, weights: str | None, device: str) -> ModelAdapter:
    return load_model(spec, weights=weights, device=device)


def _stacked(maps: list[np.ndarray | None]) -> Any:
    """Return maps of one shape as (N, h, w), others as a list."""
    whole = [m for m in maps if m is not None]
    return np.stack(whole) if len({m.shape for m in whole}) == 1 else maps


def _listed(maps: list[np.ndarray | None]) -> list[list[list[float]] | None]:
    """Return maps as nested lists: Arrow, which Ray and datasets use, cannot store arrays beside None."""
    return [None if m is None else m.tolist() for m in maps]
