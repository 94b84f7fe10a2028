"""Data: photos for training, and annotated photos in the formats that :func:`read_data` knows.

Importing this package fills the registry of readers. Photos for training are in :mod:`xai_abn.data.photos`, which
is not imported here.
"""

from __future__ import annotations

from xai_abn.data import coco, folder, imagenet_boxes, voc  # noqa: F401 (each registers its reader)
from xai_abn.data.annotated import AnnotatedData, AnnotatedImage, AnnotatedObject, datasets, read_data

__all__ = ["AnnotatedData", "AnnotatedImage", "AnnotatedObject", "datasets", "read_data"]
