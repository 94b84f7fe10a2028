"""Checkpoints: a model in one plain file, with its architecture, cut, labels, preprocessing and training record.

The format is safetensors with a JSON description in its header, so reading one never runs code. docs/formats.md
describes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from xai_abn.errors import CheckpointError, OutputError, UnknownNameError
from xai_abn.files import replacing
from xai_abn.images.preprocess import Preprocess
from xai_abn.networks.abn import ABNDescription
from xai_abn.networks.checkpoint_v1 import upgrade

#: Written to and expected in the header.
FORMAT = "xai-abn-checkpoint"
FORMAT_VERSION = 2


@dataclass(frozen=True)
class CheckpointConfig:
    """Everything in a checkpoint except the weights.

    Attributes:
        backbone: spec of the classifier the model was made from, such as ``"timm:resnet50"`` or ``"lite0"``.
        classes: number of classes K.
        abn: how the ABN was made of the classifier, or None for a plain classifier.
        preprocess: how images become inputs.
        labels: K names, ``"imagenet"`` for the ImageNet-1k names, or None.
        training: how the weights were made: data, recipe, seed, command, measurements.
        multi_label: whether the classes are attributes that can hold at once.
    """

    backbone: str
    classes: int
    abn: ABNDescription | None
    preprocess: Preprocess
    labels: list[str] | str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    multi_label: bool = False


def save_checkpoint(path: str | Path, module: nn.Module, config: CheckpointConfig, half: bool = False) -> None:
    """Write a checkpoint, replacing the file at once or not at all.

    Args:
        path: where to.
        module: the network whose weights to save.
        config: the rest.
        half: store floating-point weights as fp16.

    Raises:
        OutputError: the file cannot be written.
    """
    state = {n: _storable(t, half) for n, t in module.state_dict().items()}
    header = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "config": json.dumps(asdict(config), sort_keys=True),
    }
    write_tensors(path, state, header)


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write contiguous tensors and a header as safetensors, replacing the file at once or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    path = Path(path)
    with replacing(path, "checkpoint ") as draft:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.touch()
        rights = draft.stat().st_mode  # safetensors >= 0.8 makes the file readable only by its owner
        try:
            save_file(dict(tensors), draft, metadata=dict(header))
            draft.chmod(rights)
        except SafetensorError as error:
            raise OutputError(f"cannot write checkpoint {path}: {error}") from error


def read_checkpoint(path: str | Path) -> tuple[CheckpointConfig, dict[str, Tensor]]:
    """Read a checkpoint's description and weights (as float32).

    Raises:
        CheckpointError: missing, damaged, of another kind, or of a newer format.
    """
    header, state = read_tensors(path)
    kind = header.get("format", "")
    if kind.startswith("xai-abn-") and kind != FORMAT:
        raise CheckpointError(
            f"{path} is a training state, not a model; load the model file in the same folder (final.safetensors, "
            "best.safetensors or model.safetensors)"
        )
    if kind != FORMAT:
        raise CheckpointError(
            f"{path} holds weights without a description; say for which network: --model timm:NAME or "
            f"torchvision:NAME with --weights {path}, in Python load_model('timm:NAME', weights={str(path)!r})"
        )
    refuse_newer(path, header, FORMAT_VERSION)
    try:
        values = json.loads(header["config"])
        values = upgrade(values) if header["format_version"] == "1" else values
        abn = values["abn"] and ABNDescription(**values["abn"])
        config = CheckpointConfig(**{**values, "abn": abn, "preprocess": Preprocess.from_dict(values["preprocess"])})
    except UnknownNameError as error:
        raise CheckpointError(
            f"{path}: {error.line} A newer version of xai-abn, timm or torchvision may have it."
        ) from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the description is damaged ({error})") from error
    return config, {n: t.float() if t.is_floating_point() else t for n, t in state.items()}


def refuse_newer(path: str | Path, header: Mapping[str, str], known: int) -> None:
    """Refuse a file of a newer format than the one known.

    Raises:
        CheckpointError: it is newer, or does not say what it is.
    """
    version = header.get("format_version", "0")
    if not version.isdecimal():
        raise CheckpointError(f"{path}: the description is damaged (format version {version!r})")
    if int(version) > known:
        raise CheckpointError(f"{path}: written by a newer xai-abn (format {version}); update xai-abn")


def read_tensors(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read the header and the tensors of a safetensors file.

    Raises:
        CheckpointError: missing or damaged.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            return file.metadata() or {}, {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors checkpoint ({error})") from error


def fingerprint(module: nn.Module) -> str:
    """Return a hash of a network's weights: names, types, shapes and values of its state dict, 32 hexadecimal digits.

    Nothing of how a network or its layers print themselves enters, so another version of torch gives the same hash.
    """
    content = hashlib.sha256()
    for name, values in module.state_dict().items():
        content.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        content.update(_bytes_of(values))
    return content.hexdigest()[:32]


def fingerprint_v1(module: nn.Module) -> str:
    """Return the hash that benchmark runs of format 1 hold, which also depends on how the network is printed."""
    content = hashlib.sha256(f"{type(module).__name__} {module}".encode())
    for name, values in module.state_dict().items():
        content.update(name.encode())
        content.update(_bytes_of(values))
    return content.hexdigest()[:32]


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _storable(tensor: Tensor, half: bool) -> Tensor:
    tensor = tensor.detach().cpu().contiguous().clone()
    return tensor.half() if half and tensor.is_floating_point() else tensor
