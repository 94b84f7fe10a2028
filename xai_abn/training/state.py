"""The state of a training run in one file: enough to go on exactly where it stopped.

Like a checkpoint it is plain safetensors with a JSON description, so that reading one never runs code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xai_abn.errors import CheckpointError
from xai_abn.networks.checkpoint import read_tensors, refuse_newer, write_tensors

FORMAT = "xai-abn-training"
FORMAT_VERSION = 1


def save_state(path: Path, tensors: Mapping[str, Mapping[str, Tensor]], record: Mapping[str, Any]) -> None:
    """Write tensors by group and name, and a record that JSON can hold, replacing the file at once or not at all.

    Raises:
        OutputError: the file cannot be written, as with a full disk; what was there stays.
    """
    flat = {
        f"{group}/{name}": value.detach().cpu().contiguous().clone()
        for group, values in tensors.items()
        for name, value in values.items()
    }
    header = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "record": json.dumps(record)}
    write_tensors(path, flat, header)


def read_state(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read what :func:`save_state` wrote.

    Raises:
        CheckpointError: missing, cut short, of another kind, or of a newer format.
    """
    header, flat = read_tensors(path)
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not the state of a training run; give the folder that xai-abn train wrote")
    refuse_newer(path, header, FORMAT_VERSION)
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in flat.items():
        group, _, rest = name.partition("/")
        groups.setdefault(group, {})[rest] = value
    try:
        return groups, json.loads(header["record"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: the description is damaged ({error})") from error


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return what an optimiser remembers, by parameter number and name, such as ``3.momentum_buffer``."""
    state = optimiser.state_dict()["state"]
    return {
        f"{number}.{name}": value
        for number, values in state.items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimiser back what :func:`optimiser_tensors` took, in the parameters' order in memory.

    Raises:
        IndexError, ValueError: it is of other parameters.
    """
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        like = parameters[int(number)]  # sums in another order would round otherwise
        value = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
        state.setdefault(int(number), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
