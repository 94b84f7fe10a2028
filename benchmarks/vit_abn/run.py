"""Does an Attention Branch Network of a Vision Transformer learn to show where the evidence is?

    python -m benchmarks.vit_abn.run [--output results.json]

The toy problem of tests/networks/test_vit_abn.py: 32x32 noise with one brighter 8x8 patch, in one of three channels
(the class) and at one of sixteen places of the grid. Trained from scratch by the published loss: the sum of both
branches' cross-entropies.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import VisionTransformer

import xai_abn
from benchmarks._harness import machine, make_parser, write_json


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--steps", nargs="+", type=int, default=[150, 600])
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine()
    rows = []
    for pool, steps in itertools.product(("token", "avg"), arguments.steps):
        runs = [trained(pool, steps, seed) for seed in range(arguments.seeds)]
        rows.append({"pool": pool, "steps": steps} | {name: [run[name] for run in runs] for name in runs[0]})
        ranges = {name: (min(v), max(v)) for name, v in rows[-1].items() if isinstance(v, list)}
        print(
            f"| {pool} | {steps} |" + "".join(f" {low:.2f} to {high:.2f} |" for low, high in ranges.values()),
            flush=True,
        )
    write_json(arguments.output, rows)


def trained(pool: str, steps: int, seed: int) -> dict[str, float]:
    """Train one network and return its accuracies and how often its maps peak on the patch."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 3,
        "num_heads": 2,
        "num_classes": 3,
    }
    options |= {"class_token": pool == "token", "global_pool": pool}
    vit = VisionTransformer(**options)
    network = xai_abn.abn_from(vit, layer="blocks.1").train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for _ in range(steps):
        images, labels, _ = toy_images(32, generator)
        output = network(images)
        loss = F.cross_entropy(output.attention_logits, labels) + F.cross_entropy(output.logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, labels, places = toy_images(500, generator)
    with torch.no_grad():
        output = network.eval()(images)
    class_maps = output.class_maps[torch.arange(len(labels)), labels].flatten(1)
    attention = output.attention_map.flatten(1)
    return {
        "accuracy": (output.logits.argmax(dim=1) == labels).float().mean().item(),
        "class map peaks on the patch": (class_maps.argmax(dim=1) == places).float().mean().item(),
        "M peaks on the patch": (attention.argmax(dim=1) == places).float().mean().item(),
        "M on the patch": attention.gather(1, places[:, None]).mean().item(),
        "mean of M": attention.mean().item(),
    }


def toy_images(number: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return images (N, 3, 32, 32), their classes and places (N,)."""
    images = torch.randn(number, 3, 4, 8, 4, 8, generator=generator)
    labels, places = torch.randint(3, (number,), generator=generator), torch.randint(16, (number,), generator=generator)
    images[torch.arange(number), labels, places // 4, :, places % 4] += 1.5
    return images.reshape(number, 3, 32, 32), labels, places


if __name__ == "__main__":
    main()
