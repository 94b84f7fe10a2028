"""What works on networks drawn at random: 60 of timm and 15 of torchvision, drawn with a fixed seed.

    python -m benchmarks.models.drawn [--only TEXT] [--count 60]

For each network with random weights, in float64: the map of the default method for the top-1 class and for a class that
is named, Grad-CAM beside plain autograd (see ``benchmarks.models.hundred``), and the ABN made by ``abn_from``, whose
logits without its map must be those of the classifier. Networks of more than 60 million parameters, which would take
minutes each, are left out before the draw. Needs ``pip install "xai-abn[test]"``.
"""

from __future__ import annotations

import random
import textwrap
import time
import warnings
from collections.abc import Iterator
from typing import Any

import timm
import torch
import torchvision
from torch import nn

import xai_abn
from benchmarks._harness import machine, make_parser
from benchmarks.models.hundred import CLASSES, TARGET, TOLERANCE, Case, by_hand, with_new_weights
from xai_abn.errors import XaiAbnError

SEED, LARGEST = 0, 60e6


def drawn(library: str, count: int) -> Iterator[tuple[str, Case]]:
    """Yield that many networks of a library, in the order of the draw."""
    names = timm.list_models() if library == "timm" else torchvision.models.list_models(module=torchvision.models)
    random.Random(SEED).shuffle(names)
    for name in names:
        with torch.device("meta"):
            try:
                size = sum(p.numel() for p in made(library, name).parameters())
            except Exception:  # a network that computes on its weights while it is built
                size = 0
        if size > LARGEST or count == 0:
            continue
        count -= 1
        torch.manual_seed(0)
        network = made(library, name)
        config: Any = getattr(network, "pretrained_cfg", {})
        side = 299 if name == "inception_v3" else 224
        shape = config.get("test_input_size") or config.get("input_size") or (3, side, side)
        yield name, Case(network, shape[1:], prefix=int(getattr(network, "num_prefix_tokens", 0)))


def made(library: str, name: str) -> nn.Module:
    """Return an untrained network by name."""
    network: nn.Module
    if library == "timm":
        network = timm.create_model(name, num_classes=CLASSES)
        return network
    more: dict[str, bool] = (
        {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    )
    network = torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **more)
    return network


def row(case: Case, refusals: list[str]) -> list[str]:
    """Return default method, target, target layer and grid, difference of Grad-CAM, and ABN of a network."""

    def refused(error: XaiAbnError) -> str:
        if error.line not in refusals:
            refusals.append(error.line)
        return f"[{refusals.index(error.line) + 1}]"

    with_new_weights(case.network)
    images = torch.randn(2, 3, *case.size, generator=torch.Generator().manual_seed(2))
    preprocess = xai_abn.Preprocess(size=case.size[0], width=case.size[1])
    model = xai_abn.wrap(case.network, preprocess=preprocess, labels=[f"label {k}" for k in range(CLASSES)])
    cells = []
    try:
        (method,) = xai_abn.explain(model, images[:1])[0]
        cells.append(str(method))
        found = xai_abn.explain(model, images, "grad-cam", f"label {TARGET}")
        cells.append("yes" if all(one["grad-cam"].target == TARGET for one in found) else "WRONG CLASS")
        maps = torch.stack([torch.tensor(one["grad-cam"].map) for one in found])
        cells.append(f"{model.target_layer} {tuple(maps.shape[1:])}")
        right = by_hand(case, model.target_layer, images)["grad-cam"]
        same = maps.shape == right.shape
        difference = float((maps - right).abs().max() / right.abs().max().clamp_min(1e-30)) if same else float("inf")
        cells.append(f"{difference:.0e}" + (" DIFFERENT" if not difference <= TOLERANCE else ""))
    except XaiAbnError as error:
        cells += [refused(error)] + [""] * (3 - len(cells))
    try:
        abn = xai_abn.abn_from(case.network, input_size=case.size[0]).double().eval()
        with torch.no_grad():
            features, expected = images.double(), case.network(images.double())
            answer = abn(features)
            without = abn(features, attention=torch.zeros_like(answer.attention_map)).logits
        difference = float((without - expected).abs().max() / expected.abs().max())
        grid = tuple(answer.attention_map.shape[2:])
        cells.append(f"{grid}, {difference:.0e}" + (" DIFFERENT" if not difference <= TOLERANCE else ""))
    except XaiAbnError as error:
        cells.append(refused(error))
    return cells


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--only", default="", help="measure only networks whose name holds this text")
    parser.add_argument("--count", type=int, default=60, help="networks of timm; a quarter as many of torchvision")
    arguments = parser.parse_args()
    machine()
    warnings.filterwarnings("ignore")
    print("| network | default method | class by name | layer, grid | Grad-CAM, difference | ABN: map, difference |")
    print("|---|---|---|---|---|---|")
    started = time.perf_counter()
    refusals: list[str] = []
    for library, count in (("timm", arguments.count), ("torchvision", arguments.count // 4)):
        for name, case in drawn(library, count):
            if arguments.only in name:
                print(f"| {library} {name} | {' | '.join(row(case, refusals))} |", flush=True)
    print()
    for number, text in enumerate(refusals, 1):
        print("\n".join(textwrap.wrap(f"{number}. {text}", 150, subsequent_indent="   ")))
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
