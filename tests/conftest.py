"""Small models and images shared by the tests; nothing is downloaded."""

from __future__ import annotations

import gc
import os
import signal

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from support import GapNet, open_browser

import xai_abn
from xai_abn.images.preprocess import Preprocess
from xai_abn.models import predictor

predictor.SHARE = 0.0  # the network predicts where a test names no backend, so that no bit depends on time
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells start jobs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # each worker keeps to its share of the cores, and so do the processes that its tests start
    torch.set_num_threads(max(1, torch.get_num_threads() // int(workers)))
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())


def pytest_collection_finish():
    """Spare each collection of garbage the objects of all libraries and tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def gap_net() -> xai_abn.ModelAdapter:
    """A seeded GapNet with five labels, for 32-pixel inputs."""
    torch.manual_seed(0)
    labels = ["cat", "dog", "bicycle", "sofa", "kite"]
    return xai_abn.wrap(GapNet().eval(), labels=labels, preprocess=Preprocess(size=32), name="gap-net")


@pytest.fixture(scope="session")
def resnet18() -> xai_abn.ModelAdapter:
    """A seeded, untrained torchvision ResNet-18."""
    torch.manual_seed(0)
    return xai_abn.wrap(torchvision.models.resnet18().eval(), preprocess=Preprocess(size=64), name="resnet18")


@pytest.fixture(scope="session")
def abn_resnet18() -> xai_abn.ModelAdapter:
    """A seeded, untrained ABN made from ResNet-18."""
    torch.manual_seed(0)
    network = xai_abn.abn_from(torchvision.models.resnet18(), input_size=64)
    return xai_abn.wrap(network, preprocess=Preprocess(size=64), name="abn-resnet18")


@pytest.fixture(scope="session")
def small_resnet() -> xai_abn.ModelAdapter:
    """A seeded, untrained ResNet of few channels and ten classes, for 64-pixel inputs."""
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", channels=(8, 8, 12, 16), stem_width=8, num_classes=10)
    return xai_abn.wrap(network.eval(), preprocess=Preprocess(size=64), name="small-resnet")


@pytest.fixture(scope="session")
def small_abn() -> xai_abn.ModelAdapter:
    """A seeded, untrained ABN made from such a ResNet."""
    torch.manual_seed(0)
    backbone = timm.create_model("resnet10t", channels=(8, 8, 12, 16), stem_width=8, num_classes=10)
    network = xai_abn.abn_from(backbone, input_size=64, masks=True)
    return xai_abn.wrap(network, preprocess=Preprocess(size=64), name="small-abn")


@pytest.fixture(scope="session")
def small_vit() -> xai_abn.ModelAdapter:
    """A seeded, untrained Vision Transformer of three blocks with a class token, for 64-pixel inputs."""
    torch.manual_seed(0)
    options = {"img_size": 64, "num_classes": 10, "depth": 3, "embed_dim": 24}
    network = timm.create_model("vit_tiny_patch16_224", **options)
    return xai_abn.wrap(network.eval(), preprocess=Preprocess(size=64), name="small-vit")


@pytest.fixture(scope="session")
def abn_lite0() -> xai_abn.ModelAdapter:
    """The shipped model."""
    return xai_abn.load_model("abn-lite0")


@pytest.fixture
def inputs() -> torch.Tensor:
    """Three seeded inputs (3, 3, 64, 64)."""
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def image() -> np.ndarray:
    """A seeded uint8 image (60, 80, 3) with a bright square."""
    pixels = np.random.default_rng(0).integers(0, 120, (60, 80, 3), dtype=np.uint8)
    pixels[20:40, 30:50] = 250
    return pixels


@pytest.fixture
def image_file(tmp_path, image):
    """The image as a PNG file."""
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    return path


@pytest.fixture
def browser():
    """A headless Chromium."""
    found = open_browser()
    yield found
    found.quit()
