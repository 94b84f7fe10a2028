"""Does an Attention Branch Network of a Vision Transformer learn to show where the evidence is?

    python benchmarks/vit_abn/run.py [--output results.json]

The toy problem of tests/test_vit_abn.py: 32x32 noise with one brighter 8x8 patch, in one of three channels (the class)
and at one of sixteen places of the grid. Trained from scratch by the published loss, both branches' cross-entropies.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.models import VisionTransformer

import xai_abn

SETTINGS = [(pool, steps) for pool in ("token", "avg") for steps in (150, 600)]
SEEDS = range(5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows = []
    for pool, steps in SETTINGS:
        runs = [trained(pool, steps, seed) for seed in SEEDS]
        rows.append({"pool": pool, "steps": steps} | {name: [run[name] for run in runs] for name in runs[0]})
        ranges = {name: (min(v), max(v)) for name, v in rows[-1].items() if isinstance(v, list)}
        print(
            f"| {pool} | {steps} |" + "".join(f" {low:.2f} to {high:.2f} |" for low, high in ranges.values()),
            flush=True,
        )
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=1) + "\n")


def trained(pool: str, steps: int, seed: int) -> dict[str, float]:
    """Train one network and return its accuracies and how often its maps peak on the patch."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 3}
    vit = VisionTransformer(**options, class_token=pool == "token", global_pool=pool)
    network = xai_abn.abn_from(vit, layer="blocks.1").train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for _ in range(steps):
        images, labels, _ = pictures(32, generator)
        output = network(images)
        loss = F.cross_entropy(output.attention_logits, labels) + F.cross_entropy(output.logits, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    images, labels, places = pictures(500, generator)
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


def pictures(number: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return pictures (N, 3, 32, 32), their classes and places (N,)."""
    images = torch.randn(number, 3, 4, 8, 4, 8, generator=generator)
    labels, places = torch.randint(3, (number,), generator=generator), torch.randint(16, (number,), generator=generator)
    images[torch.arange(number), labels, places // 4, :, places % 4] += 1.5
    return images.reshape(number, 3, 32, 32), labels, places


if __name__ == "__main__":
    main()
