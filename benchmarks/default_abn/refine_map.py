"""Train the map head of an ABN on pictures from which its map's dark or bright part was taken.

    python benchmarks/default_abn/refine_map.py --photos DIR [DIR ...] --start abn-lite0 --output refined.safetensors

Only the head's 9,000 weights move. A random share of the picture, the brightest of the map, is kept and the rest is
blurred: the frozen teacher should answer as on the whole picture; and with that share blurred, it should not. The
network's own answer is held.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from xai_abn import load_model
from xai_abn.data.photos import PhotoFolder, stack_readable
from xai_abn.metrics.deletion_insertion import PROTOCOLS
from xai_abn.models.checkpoint import CheckpointConfig, read_checkpoint, save_checkpoint
from xai_abn.training.distillation import make_mosaics


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    model, teacher = load_model(arguments.start), load_model("lite0")
    network = model.module.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    head = [network.attention_branch.att_conv3.weight, *network.attention_branch.bn_att3.parameters()]
    teacher.module.requires_grad_(False)
    for parameter in head:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(head, lr=arguments.lr, weight_decay=0)
    look = model.preprocess
    photos = PhotoFolder(
        arguments.photos, size=look.size, mean=look.mean, std=look.std, scale=(0.4, 1.0), exclude=["_val_"]
    )
    loader = DataLoader(photos, arguments.batch_size, shuffle=True, collate_fn=stack_readable, num_workers=1)
    generator = torch.Generator().manual_seed(arguments.seed)
    started, step = time.time(), 0
    while step < arguments.steps:
        for images, _ in loader:
            if arguments.mosaics:
                images = torch.cat([images, make_mosaics(images, arguments.mosaics, generator)[0]])
            for group in optimiser.param_groups:
                group["lr"] = arguments.lr * (1 - step / arguments.steps)
            losses = one_step(network, teacher.module, images.contiguous(memory_format=torch.channels_last), arguments)
            optimiser.zero_grad()
            sum(losses.values()).backward()
            optimiser.step()
            step += 1
            if step % 20 == 0 or step == arguments.steps:
                shown = " ".join(f"{k} {float(v.detach()):.4f}" for k, v in losses.items())
                print(f"step {step} {time.time() - started:.0f} s {shown}", flush=True)
            if step % 100 == 0 or step == arguments.steps:
                save(network, arguments, step, len(photos))
            if step == arguments.steps:
                break


def one_step(network, teacher, images: torch.Tensor, arguments) -> dict[str, torch.Tensor]:
    """Return the three losses of one batch."""
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            truth = teacher(images).float().softmax(dim=1)
            blurred = PROTOCOLS["xai-abn"].deletion.make(images, torch.zeros(3))
        output = network(images)
        kept = soft_top(output.attention_map.float(), arguments.softness)
        kept = F.interpolate(kept, images.shape[2:], mode="bilinear", align_corners=False)
        both = torch.cat([kept * images + (1 - kept) * blurred, (1 - kept) * images + kept * blurred])
        inserted, deleted = teacher(both.contiguous(memory_format=torch.channels_last)).float().chunk(2)
    own = (truth.clamp_min(1e-8).log() * truth).sum(1)
    return {
        "sufficiency": (own - (truth * inserted.log_softmax(dim=1)).sum(1)).mean(),
        "necessity": arguments.necessity_weight * (truth * deleted.softmax(dim=1)).sum(1).mean(),
        "answer": arguments.answer_weight * (own - (truth * output.logits.float().log_softmax(dim=1)).sum(1)).mean(),
    }


def soft_top(maps: torch.Tensor, softness: float) -> torch.Tensor:
    """Return about 1 for the top cells of each map (N, 1, h, w), about 0 for the rest; the share is random."""
    flat = maps.flatten(1)
    shares = torch.rand(len(flat), 1) * 0.5 + 0.05
    ordered = flat.detach().sort(dim=1, descending=True).values
    border = ordered.gather(1, (shares * flat.shape[1]).long())
    spread = flat.detach().std(dim=1, keepdim=True).clamp_min(1e-4)
    return torch.sigmoid((flat - border) / (softness * spread)).view_as(maps)


def save(network, arguments, step: int, photos: int) -> None:
    shipped = resources.files("xai_abn.weights") / "abn_lite0.safetensors"
    before, _ = read_checkpoint(str(shipped) if arguments.start == "abn-lite0" else arguments.start)
    earlier = [*before.training.get("earlier", []), {k: v for k, v in before.training.items() if k != "earlier"}]
    training = {
        "method": "map head on blurred pictures (benchmarks/default_abn/refine_map.py)",
        "teacher": "lite0",
        "photos": photos,
        "steps_done": step,
        "command": f"python {shlex.join([sys.argv[0], '--photos', 'DIR...', *named_arguments()])}",
        "earlier": earlier,
    }
    facts = {
        **{k: getattr(before, k) for k in ("backbone", "classes", "abn", "preprocess", "labels")},
        "training": training,
    }
    save_checkpoint(arguments.output, network, CheckpointConfig(**facts), half=True)


def named_arguments() -> list[str]:
    """Return the command line without the folders, whose places mean nothing elsewhere."""
    kept, skipping = [], False
    for word in sys.argv[1:]:
        skipping = word == "--photos" or (skipping and not word.startswith("--"))
        if not skipping:
            kept.append(word)
    return kept


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", nargs="+", required=True)
    parser.add_argument("--start", default="abn-lite0")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--mosaics", type=int, default=3)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--softness", type=float, default=0.3)
    parser.add_argument("--necessity-weight", type=float, default=1.0)
    parser.add_argument("--answer-weight", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
