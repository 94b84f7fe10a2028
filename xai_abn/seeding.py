"""Reproducible randomness: scoped seeding, composite seeds, per-image generators."""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

#: torch has one random state for all threads, so only one thread may seed it at a time.
_SEEDING = threading.RLock()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch and numpy within a ``with`` block, one thread at a time, and restore their states afterwards."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with _SEEDING, torch.random.fork_rng(devices=devices):
        # without an accelerator, torch.manual_seed would only take a trace of the stack, many times, for later
        (torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed)(seed)
        state = np.random.get_state()
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            np.random.set_state(state)


def mixed_seed(*parts: object) -> int:
    """Return a seed of 63 bits that depends on the ``repr`` of every part."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def content_generator(image: Tensor, seed: int = 0) -> torch.Generator:
    """Return a generator seeded by an image's content, so that the image gets the same numbers in any batch."""
    content = image.detach().float().cpu().contiguous().numpy().tobytes()
    return torch.Generator().manual_seed(zlib.crc32(content, seed))
