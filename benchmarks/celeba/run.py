"""Train the networks that are compared: plain, one shared map, a map for each attribute, the published signed maps.

    python -m benchmarks.celeba.run --data DATA --runs RUNS

``DATA`` is made by prepare.py. Each run is a folder ``RUNS/NAME-SEED`` as ``xai-abn train`` writes it; what is finished
is skipped, what was interrupted is resumed. Then report.py measures them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks._harness import machine, make_parser
from xai_abn.errors import NonFiniteError
from xai_abn.training import TrainingSettings, train
from xai_abn.training.supervised import read_data

#: What is compared: settings of :class:`TrainingSettings` by name.
NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {"mechanism": "none"},
    "shared": {"maps": "shared"},
    "per-attribute": {"maps": "per-attribute"},
    "signed": {"maps": "per-attribute-signed", "mechanism": "product"},
}
SIZE = 32
#: The same for all: what 45 minutes of one CPU core allow. The rate is high because the loss is a mean over attributes.
RECIPE: dict[str, Any] = {
    "arch": "resnet20",
    "size": SIZE,
    "epochs": 10,
    "batch_size": 32,
    "lr": 0.3,
    "nesterov": True,
    "weight_decay": 2e-4,
    "schedule": "cosine",
    "warmup": 1.0,
    "bf16": True,
    "maps_every": 0,
}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=RECIPE["epochs"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine()
    source = f"attributes:{arguments.data / 'faces.csv'}"
    data = read_data(TrainingSettings(data=source, **RECIPE))
    assert data.validation is not None
    assert data.test is not None
    print(f"{len(data.train)} training, {len(data.validation)} validation, {len(data.test)} test images", flush=True)
    for seed in arguments.seeds:
        for name in arguments.networks:
            folder = arguments.runs / f"{name}-{seed}"
            if (folder / "result.json").exists():
                continue
            settings = {**RECIPE, "epochs": arguments.epochs, **NETWORKS[name], "seed": seed}
            config = TrainingSettings(data=source, **settings)
            started = (folder / "state.safetensors").exists()
            try:
                result = train(config, folder, resume=started, overwrite=not started, data=data, progress=show_progress)
            except NonFiniteError as error:
                print(f"\n{name}, seed {seed}: {error}", flush=True)
                continue
            test, seconds = result["final"]["test_accuracy"], result["training_seconds"]
            print(f"\n{name}, seed {seed}: test accuracy {test:.4f} after {seconds} s", flush=True)


def show_progress(done: int, total: int, words: str) -> None:
    """Show how far a run is."""
    print(f"\r{done}/{total} steps, {words}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
