"""Conversion of networks saved by the released ABN code (Fukui et al., CVPR 2019).

The released networks keep three parts in one module; here each part is a module of its own whose weights keep their
names. A file does not state its architecture, which is inferred from the names and shapes of its tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from xai_abn.errors import CheckpointError, OutputError, UnsupportedModelError
from xai_abn.images.preprocess import Preprocess
from xai_abn.networks.abn import AttentionBranchNetwork
from xai_abn.networks.architectures import create_model, find_architecture
from xai_abn.networks.checkpoint import CheckpointConfig, read_checkpoint, save_checkpoint
from xai_abn.networks.weights import load_weights, misfit, on_meta, read_weights, shapes

#: Patterns of the released code's names, and the names here. The first rule that fits counts.
_RENAMED = (
    # CIFAR ResNeXt: its stages, blocks and shortcuts have names of their own
    (r"stage_(\w+?)\.stage_\w+?_bottleneck_(\d+)\.(.+)", r"layer\1.\2.\3"),
    (r"conv_1_3x3\.", "conv1."),
    (r"bn_1\.", "bn1."),
    (r"classifier\.", "fc."),
    # wide ResNet: one more level
    (r"((?:att_)?block\d)\.layer\.(\d+)\.", r"\1.\2."),
)
_RENAMED_IN_BLOCK = (
    (r"conv_reduce\.", "conv1."),
    (r"bn_reduce\.", "bn1."),
    (r"conv_conv\.", "conv2."),
    (r"\.bn\.", ".bn2."),
    (r"conv_expand\.", "conv3."),
    (r"bn_expand\.", "bn3."),
    (r"shortcut\.shortcut_conv\.", "downsample.0."),
    (r"shortcut\.shortcut_bn\.", "downsample.1."),
)
_HEAD = re.compile(r"(bn_att\d?|att_conv\d?)\.")
#: Mean and standard deviation of the released code, by image size.
_PREPROCESS = {
    32: Preprocess(32, 1.0, "bilinear", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    224: Preprocess(224, 0.875, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclass(frozen=True)
class Converted:
    """A network converted from the released code's format.

    Attributes:
        network: in evaluation mode.
        arch: its architecture.
        classes: K.
        preprocess: how the released code prepares images for it.
    """

    network: AttentionBranchNetwork
    arch: str
    classes: int
    preprocess: Preprocess


def convert(state: Mapping[str, Tensor], arch: str | None = None, source: str = "the state dict") -> Converted:
    """Build a network from a state dict of the released code.

    In the released ResNeXt ``bn_att`` exists and is never called; here it is left out.

    Args:
        state: names, with or without ``module.``, and tensors.
        arch: see :func:`find_architecture`; default: read from names and shapes.
        source: for messages.

    Returns:
        A network whose logits, attention logits and map equal those of the released network, also in training.

    Raises:
        CheckpointError: it is not a network of the released code, or not of ``arch``.
        UnsupportedModelError: a released SE-ResNet, whose map is not a sigmoid.
    """
    state = {name.removeprefix("module."): value for name, value in state.items()}
    if "att_conv.weight" not in state or state["att_conv.weight"].dim() != 4:
        raise CheckpointError(f"{source}: no attention branch of the released code in it (no att_conv.weight)")
    if "att_conv3.weight" not in state:
        raise UnsupportedModelError(
            f"{source}: a released SE-ResNet, whose map is a sum of log(1 + A) without bound; xai-abn has only the "
            "paper's sigmoid map"
        )
    classes = state["att_conv.weight"].shape[0]
    ours = rename(state)
    arch = arch or _name_of(ours)
    if arch is None:
        raise CheckpointError(f"{source}: names and shapes are not those of any network of the released code")
    problem = _misfit(arch, classes, ours)
    if problem is not None:
        raise CheckpointError(f"{source}: names and shapes are not those of {arch} with {classes} classes: {problem}")
    network = create_model(arch, classes)
    assert isinstance(network, AttentionBranchNetwork)  # the default mechanism
    if any(name.startswith("stage_att.") for name in state):
        network.attention_branch.bn_att = nn.Identity()
        assert network.description is not None  # abn_from always sets it
        network.description = replace(network.description, normalized=False)
    load_weights(network, _complete(ours, network), source)
    return Converted(network.eval(), arch, classes, _PREPROCESS[find_architecture(arch).size])


def convert_file(path: str | Path, output: str | Path, arch: str | None = None) -> Converted:
    """Read a file of the released code and write a checkpoint that :func:`xai_abn.load_model` reads.

    Args:
        path: a torch file, which is read without running code in it, or ``.safetensors``.
        output: the checkpoint to write.
        arch: see :func:`convert`.

    Raises:
        CheckpointError: the file is missing, damaged, holds more than tensors, or no released network.
        OutputError: the checkpoint cannot be written, or would replace a file that is not a checkpoint.
    """
    output = Path(output)
    if output.exists():
        try:
            read_checkpoint(output)
        except CheckpointError as error:
            raise OutputError(f"{output} exists and is not a checkpoint of xai-abn; give another name") from error
    found = convert(read_weights(path, ["att_conv.weight"]), arch, str(path))
    description = CheckpointConfig(
        backbone=found.arch,
        classes=found.classes,
        abn=found.network.description,
        preprocess=found.preprocess,
        labels="imagenet" if found.classes == 1000 else None,
        training={"method": "converted from the released code's format", "file": Path(path).name},
    )
    save_checkpoint(output, found.network, description)
    return found


def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the names here, once for each part that has them.

    The attention branch's copy of the last stage, ``att_<stage>``, becomes ``attention_branch.stage.<stage>``, its
    head ``attention_branch.<name>``; all others keep their names, without the part they belong to.
    """
    found = {}
    for name, value in state.items():
        for pattern, ours in _RENAMED:
            name, changed = re.subn(f"^{pattern}", ours, name)
            if changed:
                break
        if re.match(r"layer(att|\d+)\.\d+\.(conv_|bn_|bn\.|shortcut)", name):
            for pattern, ours in _RENAMED_IN_BLOCK:
                name = re.sub(pattern, ours, name)
        if _HEAD.match(name):
            name = f"attention_branch.{name}"
        elif name.startswith(("att_", "layeratt.")):
            name = "attention_branch.stage." + re.sub("^layeratt", "layer3", name).removeprefix("att_")
        found[name] = value
    return found


def _name_of(ours: Mapping[str, Tensor]) -> str | None:
    """Return the name of the architecture with as many blocks and channels, or None."""

    def blocks(stage: str) -> int:
        return len({name.split(".")[1] for name in ours if name.startswith(f"{stage}.")})

    def channels(name: str) -> int:
        return ours[name].shape[0] if name in ours and ours[name].dim() else 0

    bottlenecks = "layer1.0.conv3.weight" in ours
    if blocks("dense1"):
        return f"densenet-bc-{6 * blocks('dense1') + 4}-{channels('conv1.weight') // 2}"
    if blocks("block1"):
        return f"wrn-{6 * blocks('block1') + 4}-{channels('block1.0.conv1.weight') // 16}"
    if blocks("layer4"):
        return f"resnet{(3 if bottlenecks else 2) * sum(blocks(f'layer{i}') for i in range(1, 5)) + 2}"
    if bottlenecks and channels("conv1.weight") == 64:
        return f"resnext{9 * blocks('layer1') + 2}-{channels('layer1.0.conv1.weight') // 64}x64d"
    if blocks("layer1"):
        return f"resnet{6 * blocks('layer1') + 2}{'-bottleneck' if bottlenecks else ''}"
    return None


def _misfit(arch: str, classes: int, ours: Mapping[str, Tensor]) -> str | None:
    """Return how the tensors outside the attention branch differ from those of an architecture, or None."""
    own = on_meta(partial(find_architecture(arch).build, classes)).state_dict()
    return misfit(shapes(own), shapes({n: v for n, v in ours.items() if not n.startswith("attention_branch.")}))


def _complete(ours: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return the tensors under the network's full names, with the network's own where the released code has none."""
    full = {}
    for name, own in network.state_dict().items():
        part, _, rest = name.partition(".")
        key = name if part == "attention_branch" else rest
        if key in ours:
            full[name] = ours[key]
        elif name.endswith("num_batches_tracked") or part == "mechanism":
            full[name] = own
    return full
