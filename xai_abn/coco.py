"""Parts of maps as annotations in COCO's instance format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from xai_abn import __version__
from xai_abn.errors import InvalidInputError
from xai_abn.explanation import Explanation
from xai_abn.heatmaps import parts_of

#: What the file says of itself.
DESCRIPTION = "parts of maps made by xai-abn"


def to_coco(explanations: Iterable[Mapping[Any, Explanation]], threshold: float = 0.5) -> dict[str, Any]:
    """Return the parts of maps as a document in COCO's instance format, to be saved with ``json.dump``.

    Each connected part of :meth:`Explanation.mask` is an annotation, the largest of a map first. Ids of categories are
    the indices of the classes, and ``score`` is the probability of the class, which is left out where there is none.
    ``method`` names the method. Images without a usable map are listed without annotations.

    Args:
        explanations: for each image its explanations, such as the result of :func:`xai_abn.explain`.
        threshold: share of the range of a map; see :meth:`Explanation.mask`.

    Raises:
        InvalidInputError: the threshold is out of range, or a map is of a volume or clip.

    Source: https://cocodataset.org/#format-data.
    """
    records = [e for one in explanations for e in one.values()]
    return coco_document({**e.to_dict(), "annotations": annotations_of(e, threshold)} for e in records)


def annotations_of(explanation: Explanation, threshold: float) -> list[dict[str, Any]]:
    """Return box (left, top, width, height), area and compressed run lengths of each part of a map, the largest first.

    None of a map that means nothing.

    Raises:
        InvalidInputError: the map is of a volume or clip, or the threshold is out of range.
    """
    if explanation.map.ndim != 2:
        raise InvalidInputError(
            f"{explanation.source}: COCO's format holds images; give boxes or masks of a volume or clip instead"
        )
    from pycocotools import mask as run_lengths

    if not explanation.has_parts:
        return []
    annotations = []
    for (left, top, right, bottom), part in parts_of(explanation.mask(threshold)):
        encoded = run_lengths.encode(np.asfortranarray(part.astype(np.uint8)))
        annotations.append(
            {
                "bbox": [left, top, right - left, bottom - top],
                "area": int(part.sum()),
                "segmentation": {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")},
                "iscrowd": 0,
            }
        )
    return annotations


def coco_document(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a document of records (see :meth:`Explanation.to_dict`), each with its ``annotations``."""
    images: dict[str, dict[str, Any]] = {}
    categories: dict[int, str] = {}
    annotations: list[dict[str, Any]] = []
    for record in records:
        height, width = record["image_size"] or record["view_size"]
        image = images.setdefault(
            record["source"],
            {"id": len(images) + 1, "file_name": record["source"], "width": width, "height": height},
        )
        categories[record["target"]] = record["class_label"]
        for part in record["annotations"]:
            which = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": record["target"]}
            certain = {} if record["probability"] is None else {"score": record["probability"]}
            annotations.append({**which, **part, **certain, "method": record["method"]})
    return {
        "info": {"description": DESCRIPTION, "version": __version__},
        "images": list(images.values()),
        "categories": [{"id": index, "name": name} for index, name in sorted(categories.items())],
        "annotations": annotations,
    }
