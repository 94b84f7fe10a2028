"""One model in many threads, and many explanations in a row.

    python -m benchmarks.robustness.load [--requests N] [--explanations N]

Requests of several methods go to one model from 8 threads at once, and each map is compared with that of one thread,
bit by bit. Then one small network is explained many times, and the memory of the process is read on the way.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import nn

import xai_abn
from benchmarks._harness import machine, make_parser

METHODS = ("abn", "grad-cam", "saliency", "smooth-grad-cam++")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--explanations", type=int, default=10_000)
    arguments = parser.parse_args()
    machine()
    model = xai_abn.load_model("abn-lite0")
    inputs = [torch.randn(3, 224, 224, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    asked = [(inputs[i % 4], METHODS[i % len(METHODS)]) for i in range(arguments.requests)]

    def ask(request: tuple[torch.Tensor, str]) -> np.ndarray:
        return xai_abn.explain(model, request[0], request[1]).only[request[1]].map

    right = [ask(request) for request in asked]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, asked))
    same = sum(np.array_equal(one, two) for one, two in zip(found, right, strict=True))
    print(f"8 threads, {len(asked)} requests: {same} maps equal those of one thread", flush=True)

    layers = [nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)]
    small = xai_abn.wrap(nn.Sequential(*layers).eval(), preprocess=xai_abn.Preprocess(size=32))
    image = torch.randn(3, 32, 32)
    memory = []
    for number in range(arguments.explanations):
        xai_abn.explain(small, image, ["grad-cam", "score-cam", "integrated-gradients:steps=2"], 1)
        if number in (arguments.explanations // 10, arguments.explanations - 1):
            memory.append(resident())
    grown = memory[-1] - memory[0]
    print(f"{arguments.explanations} explanations: {memory[0]:.0f} MiB after a tenth, {grown:+.1f} MiB at the end")


def resident() -> float:
    """Return the memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


if __name__ == "__main__":
    main()
