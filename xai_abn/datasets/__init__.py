"""Data: pictures to train on (:func:`read_training_data`), and annotated photos to measure on (:func:`read_data`).

Importing this package fills the registries of readers. Unlabelled photos are in :mod:`xai_abn.datasets.photos`, which
is not imported here.
"""

from __future__ import annotations

from xai_abn.datasets import (  # noqa: F401 (each registers its reader)
    attributes,
    cifar,
    class_folders,
    coco,
    folder,
    hugging_face,
    imagenet_boxes,
    shards,
    voc,
)
from xai_abn.datasets.annotated import AnnotatedData, AnnotatedImage, AnnotatedObject, datasets, read_data
from xai_abn.datasets.training_data import ReadOptions, TrainingData, read_training_data, training_data

__all__ = [
    "AnnotatedData",
    "AnnotatedImage",
    "AnnotatedObject",
    "ReadOptions",
    "TrainingData",
    "datasets",
    "read_data",
    "read_training_data",
    "training_data",
]
