"""Two ranks that share one GPU give the statistics and gradients of one rank."""

from __future__ import annotations

import os

import pytest
import torch
import torch.multiprocessing
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from xai_abn.training.ranks import share_of_batch, synchronize_batch_norms

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def make_network():
    """A small network with torch's and timm's batch normalization."""
    torch.manual_seed(0)
    norms = nn.BatchNorm2d(4), BatchNormAct2d(6)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), norms[0], nn.ReLU(), nn.Conv2d(4, 6, 3), norms[1], nn.Flatten(), nn.Linear(96, 2)
    )


def make_images():
    return torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def state_after_a_step(network, images, share):
    """Return gradients and buffers after one pass in training mode."""
    (network(images).square().mean() * share).backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    return gradients, dict(network.named_buffers())


def run_rank(rank, device, folder):
    """Train on this rank's images: the first three, or the last four."""
    torch.backends.cudnn.allow_tf32 = False
    store = torch.distributed.FileStore(os.path.join(folder, "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    network = synchronize_batch_norms(make_network()).to(device).train()
    images = make_images().split([3, 4])[rank].to(device)
    gradients, buffers = state_after_a_step(network, images, share_of_batch(len(images), 2, torch.device(device)))
    for gradient in gradients.values():
        torch.distributed.all_reduce(gradient)
        gradient /= 2
    cpu = [{name: value.cpu() for name, value in values.items()} for values in (gradients, buffers)]
    torch.save(cpu, os.path.join(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def full_float32(monkeypatch):
    """Switch TF32 off in this process; the ranks do it themselves."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("device", ["cuda:0"])
def test_two_ranks_on_one_device_equal_one(tmp_path, device):
    """Gradients, running means and variances agree up to rounding, with unequal numbers of images per rank."""
    network = make_network().to(device).train()
    expected = state_after_a_step(network, make_images().to(device), 1.0)
    torch.multiprocessing.spawn(run_rank, (device, str(tmp_path)), nprocs=2)
    for rank in (0, 1):
        for found, wanted in zip(torch.load(tmp_path / f"{rank}.pt"), expected, strict=True):
            assert found.keys() == wanted.keys()
            for name, value in wanted.items():
                torch.testing.assert_close(
                    found[name], value.cpu(), atol=1e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
                )
