"""Distil the shipped model abn-lite0 from lite0 on folders of unlabelled photos.

    python benchmarks/default_abn/train.py --photos DIR [DIR ...] --output abn_lite0.safetensors

The model is saved every --save-every steps, so that the run may be ended at any time.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import shlex
import sys
from dataclasses import asdict, fields
from pathlib import Path

import torch

from xai_abn import abn_from, load_model
from xai_abn.data.photos import PhotoFolder
from xai_abn.models.checkpoint import CheckpointConfig, load_weights, read_checkpoint, save_checkpoint
from xai_abn.training import DistillationConfig, distill


def main() -> None:
    arguments = parse()
    config = DistillationConfig(**{f.name: getattr(arguments, f.name) for f in fields(DistillationConfig)})
    torch.set_num_threads(arguments.threads)
    teacher = load_model("lite0")
    recipe = {"mechanism": arguments.mechanism, "smoothing": arguments.smoothing}
    network = abn_from(teacher.module, **recipe).to(memory_format=torch.channels_last)
    look = teacher.preprocess
    # ImageNet validation photos that these collections contain are kept for measuring
    photos = PhotoFolder(
        arguments.photos,
        size=look.size,
        mean=look.mean,
        std=look.std,
        scale=(arguments.least_area, 1.0),
        exclude=["_val_"],
    )
    print(f"{len(photos)} photos, {config}", flush=True)
    head = copy.deepcopy(network.perception_branch)
    earlier = []
    if arguments.continue_from:
        before, state = read_checkpoint(arguments.continue_from)
        load_weights(network, state, str(arguments.continue_from))
        if arguments.restore_head:
            network.perception_branch.load_state_dict(head.state_dict())
        earlier = [*before.training.get("earlier", []), {k: v for k, v in before.training.items() if k != "earlier"}]
    training = {
        "method": "self-distillation (xai_abn.training.distill)",
        "teacher": "lite0",
        "photos": len(photos),
        "config": asdict(config),
        "restore_head": arguments.restore_head,
        "least_area": arguments.least_area,
        "earlier": earlier,
        "command": f"python {shlex.join([sys.argv[0], '--photos', 'DIR...', *named_arguments()])}",
    }
    description = CheckpointConfig("lite0", 1000, recipe, look.to_dict(), "imagenet", training)
    with arguments.output.with_suffix(".jsonl").open("w") as record:

        def log(values: dict[str, float]) -> None:
            record.write(json.dumps({k: round(v, 5) for k, v in values.items()}) + "\n")
            record.flush()
            if values["step"] % arguments.save_every == 0:
                print(" ".join(f"{k} {v:.4g}" for k, v in values.items()), flush=True)
                training["steps_done"] = int(values["step"])
                save_checkpoint(arguments.output, network, description, half=True)
            if values["step"] == arguments.stop_after:
                raise Enough

        with contextlib.suppress(Enough):
            distill(network, photos, config, log, teacher=head)
    training["steps_done"] = arguments.stop_after or config.steps
    save_checkpoint(arguments.output, network, description, half=True)


class Enough(Exception):
    """Raised to end a run before its schedule does."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", nargs="+", required=True, type=Path)
    parser.add_argument("--output", type=Path, default=Path("abn_lite0.safetensors"))
    parser.add_argument("--continue-from", type=Path, help="a checkpoint to go on from, with a new schedule")
    parser.add_argument("--restore-head", action="store_true", help="start from the teacher's perception branch again")
    parser.add_argument("--least-area", type=float, default=0.25, help="least share of a photo that a crop covers")
    parser.add_argument("--mechanism", default="residual")
    parser.add_argument("--smoothing", type=int, default=0, help="times the map is averaged over 3x3 neighbours")
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--stop-after", type=int, help="end after so many steps of the schedule")
    parser.add_argument("--threads", type=int, default=2)
    for field in fields(DistillationConfig):
        kind = type(field.default)
        convert = (lambda text: text.lower() in ("1", "true", "yes")) if kind is bool else kind
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=convert, default=field.default)
    return parser.parse_args()


def named_arguments() -> list[str]:
    """Return the command's arguments without the folders, which are somebody's own."""
    kept: list[str] = []
    skipping = False
    for argument in sys.argv[1:]:
        skipping = argument == "--photos" or (skipping and not argument.startswith("--"))
        if not skipping:
            kept.append(Path(argument).name if "/" in argument else argument)
    return kept


if __name__ == "__main__":
    main()
