"""States of runs: all that resuming needs, in one safetensors file.

A state holds tensors in groups (``network``, ``optimizer``, ``average``) and a record that JSON can hold. Reading one
never runs code. Version 2; both kinds of version 1 are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xai_abn.errors import CheckpointError
from xai_abn.networks.checkpoint import read_tensors, refuse_newer, write_tensors

FORMAT = "xai-abn-training"
FORMAT_VERSION = 2
#: Format of distillations in version 1.
_DISTILLATION_V1 = "xai-abn-distillation-state-1"


@dataclass
class Position:
    """Where a run is.

    Attributes:
        epoch: complete epochs.
        step: complete steps of the current epoch.
        sums: sums of the logged values over these steps.
        best: validation results of the best epoch so far.
        seconds: time spent training.
        log_length: bytes of the log that belong to the state; None for all lines up to the step.
    """

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    log_length: int | None = 0


@dataclass
class State:
    """The state of a run.

    Attributes:
        kind: ``"train"`` or ``"distill"``.
        tensors: by group and name.
        position: where the run is.
        settings: settings of the run; None if its format did not hold them.
        origin: fingerprints of what the run was started with.
        version: version of the format it was read from.
    """

    kind: str
    tensors: Mapping[str, Mapping[str, Tensor]]
    position: Position
    settings: Mapping[str, Any] | None
    origin: Mapping[str, str]
    version: int = FORMAT_VERSION

    @property
    def record(self) -> dict[str, Any]:
        """Everything but the tensors."""
        names = ("kind", "settings", "origin")
        return {**{name: getattr(self, name) for name in names}, "position": asdict(self.position)}


def save_state(path: Path, state: State) -> None:
    """Write a state, replacing the file at once or not at all.

    Raises:
        OutputError: the file cannot be written, such as on a full disk; an older one stays.
    """
    tensors = {
        f"{group}/{name}": value.detach().cpu().contiguous().clone()
        for group, values in state.tensors.items()
        for name, value in values.items()
    }
    header = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "record": json.dumps(state.record)}
    write_tensors(path, tensors, header)


def read_state(path: Path) -> State:
    """Read a state of version 1 or 2.

    Raises:
        CheckpointError: the file is missing, cut short, of another kind, or of a newer format.
    """
    header, tensors = read_tensors(path)
    if header.get("format") == _DISTILLATION_V1:
        return _read_distillation_v1(header, tensors)
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not the state of a run; give the folder that xai-abn train or distill wrote")
    refuse_newer(path, header, FORMAT_VERSION)
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = value
    try:
        record = json.loads(header["record"])
        if header["format_version"] == "1":
            groups = {"optimizer" if name == "optimiser" else name: values for name, values in groups.items()}
            origin = {"data": record["data"]} if "data" in record else {}
            record = {"kind": "train", "settings": record.get("config"), "origin": origin, **record}
        names = {name: record[name] for name in ("kind", "settings", "origin")}
        version = int(header["format_version"])
        return State(tensors=groups, position=Position(**record["position"]), version=version, **names)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the description is damaged ({error})") from error


def _read_distillation_v1(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> State:
    groups = {
        group: {key.removeprefix(f"{old}."): value for key, value in tensors.items() if key.startswith(f"{old}.")}
        for group, old in (("network", "network"), ("optimizer", "optimiser"))
    }
    skipped = {"skipped": float(tensors["skipped"])}
    position = Position(step=int(tensors["done"]), sums=skipped, log_length=None)
    origin = {name: header[old] for name, old in (("images", "photos"), ("classifier", "classifier")) if old in header}
    return State("distill", groups, position, None, origin, version=1)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the tensors of an optimizer by parameter number and name, such as ``3.momentum_buffer``."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": value
        for number, values in state.items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load what :func:`optimizer_tensors` returned, in the memory layout of the parameters.

    Raises:
        IndexError, ValueError: the tensors belong to other parameters.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        like = parameters[int(number)]  # another layout would add up in another order and round differently
        value = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
