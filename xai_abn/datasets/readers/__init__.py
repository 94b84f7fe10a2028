"""Readers, one file a layout; importing this package registers them."""

from xai_abn.datasets.readers import attributes, cifar, coco, huggingface, image_folder, imagenet_boxes, voc

__all__ = ["attributes", "cifar", "coco", "huggingface", "image_folder", "imagenet_boxes", "voc"]
