"""Checkpoints: a model in one plain file, with its architecture, cut, labels, preprocessing and training record.

The format is safetensors with a JSON description in its header, so reading one never runs code. docs/formats.md
describes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from xai_abn.errors import CheckpointError, InvalidInputError, OutputError, UnknownNameError, UnsupportedModelError
from xai_abn.files import replacing
from xai_abn.images.preprocess import Preprocess
from xai_abn.networks.abn import ABNDescription
from xai_abn.networks.checkpoint_v1 import upgrade
from xai_abn.settings import MAX_SIZE

#: Written to and expected in the header.
FORMAT = "xai-abn-checkpoint"
FORMAT_VERSION = 4


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

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    backbone: Annotated[str, Field(max_length=200)]
    classes: Annotated[int, Field(ge=1, le=10_000_000)]
    abn: ABNDescription | None
    preprocess: Preprocess
    labels: list[Annotated[str, Field(max_length=1000)]] | Annotated[str, Field(pattern="^imagenet$")] | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    multi_label: bool = False


#: Descriptions in files are checked by it: types, bounds, unknown fields.
_DESCRIPTION = TypeAdapter(CheckpointConfig)


def save_checkpoint(path: str | Path, module: nn.Module, config: CheckpointConfig, half: bool = False) -> None:
    """Write a checkpoint, replacing the file at once or not at all.

    Args:
        path: the file to write.
        module: the network whose weights to save.
        config: everything except the weights.
        half: store floating-point weights as fp16.

    Raises:
        InvalidInputError: the description would be refused when read, such as one with more labels than classes.
        OutputError: the file cannot be written.
    """
    text = json.dumps(asdict(config), sort_keys=True)
    _checked(text)
    state = {n: _storable(t, half) for n, t in module.state_dict().items()}
    header = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "config": text,
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
    text = header.get("config", "")
    try:
        config = _of_version_1(text, state) if header["format_version"] == "1" else _checked(text)
    except (UnknownNameError, UnsupportedModelError) as error:
        raise CheckpointError(
            f"{path}: {error.line} A newer version of xai-abn, timm or torchvision may have it."
        ) from error
    except (InvalidInputError, ValueError) as error:
        raise CheckpointError(f"{path}: the description is damaged ({str(error)[:500]})") from error
    return config, {n: t.float() if t.is_floating_point() else t for n, t in state.items()}


def _checked(text: str) -> CheckpointConfig:
    """Return a description from its JSON.

    Raises:
        InvalidInputError: the text is not JSON, or a field is missing, unknown, of another type or out of its bounds.
    """
    try:
        config = _DESCRIPTION.validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(map(str, problem["loc"])) or "the whole"
        raise InvalidInputError(f"{field[:100]}: {problem['msg'][:200]}, got {repr(problem['input'])[:60]}") from None
    if max(config.preprocess.height_and_width) > MAX_SIZE:
        raise InvalidInputError(f"preprocess: size must be at most {MAX_SIZE}, got {config.preprocess.size}")
    labels = config.labels
    if labels is not None and config.classes != (1000 if isinstance(labels, str) else len(labels)):
        raise InvalidInputError(f"labels must be one per class, {config.classes}")
    return config


def _of_version_1(text: str, state: Mapping[str, Tensor]) -> CheckpointConfig:
    values = from_json(text)
    if not isinstance(values, dict):
        raise InvalidInputError(f"expected an object, got {type(values).__name__}")
    config = _checked(json.dumps({**values, "abn": None}))
    abn = values.get("abn")
    return config if abn is None else replace(config, abn=upgrade(config.backbone, config.classes, abn, state))


def refuse_newer(path: str | Path, header: Mapping[str, str], known: int) -> None:
    """Refuse a file whose format is newer than ``known``.

    Raises:
        CheckpointError: it is newer, or does not state its format.
    """
    version = header.get("format_version", "missing")
    if not version.isdecimal():
        raise CheckpointError(f"{path}: the description is damaged (format version {version!r})")
    if len(version) > 9 or int(version) > known:
        raise CheckpointError(f"{path}: written by a newer xai-abn (format {version[:9]}); update xai-abn")


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

    It does not depend on how a network prints itself, so it is the same in every version of torch.
    """
    content = hashlib.sha256()
    for name, values in module.state_dict().items():
        content.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        content.update(_flat(values).data)
    return content.hexdigest()[:32]


def fingerprints_v1(module: nn.Module) -> set[str]:
    """Return the hashes that files of version 1 may hold of a network, which also depend on how torch printed it.

    Later versions of torch print whether a normalization has a bias.
    """
    printed = f"{type(module).__name__} {module}"
    without = printed.replace("affine=True, bias=True", "affine=True")
    weights = b"".join(name.encode() + _bytes_of(values) for name, values in module.state_dict().items())
    texts = (printed, without, without.replace("affine=True", "affine=True, bias=True"))
    return {hashlib.sha256(text.encode() + weights).hexdigest()[:32] for text in texts}


def _bytes_of(tensor: Tensor) -> bytes:
    return _flat(tensor).tobytes()


def _flat(tensor: Tensor) -> np.ndarray:
    """Return the bytes of a tensor as an array, which need not be copied."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def _storable(tensor: Tensor, half: bool) -> Tensor:
    tensor = tensor.detach().cpu().contiguous().clone()
    return tensor.half() if half and tensor.is_floating_point() else tensor
