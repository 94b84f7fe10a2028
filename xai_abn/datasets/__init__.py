"""Data sets to train on, to distill on and to measure on. Importing this package registers its readers."""

from xai_abn.datasets import readers as _readers  # noqa: F401
from xai_abn.datasets.batches import ReadOptions
from xai_abn.datasets.sample import READERS, AnnotatedObject, Dataset, Sample, read_dataset
from xai_abn.datasets.training_data import TrainingData, read_training_data

__all__ = [
    "READERS",
    "AnnotatedObject",
    "Dataset",
    "ReadOptions",
    "Sample",
    "TrainingData",
    "read_dataset",
    "read_training_data",
]
