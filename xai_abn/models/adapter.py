"""A classifier with everything needed to explain it: preprocessing, labels, target layer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from types import NoneType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from xai_abn.errors import InvalidInputError, NonFiniteError, UnknownNameError, UnsupportedModelError, shown
from xai_abn.images.loading import load_image
from xai_abn.images.preprocess import PreparedImage, Preprocess
from xai_abn.models.detection import Detection, Detections, backbone_layer, detections, scores_of_detections
from xai_abn.models.editing import EditableImage
from xai_abn.models.inputs import BoundInputs, others_are_examples
from xai_abn.models.layers import (
    AttentionPlace,
    attention_blocks,
    attention_places,
    find_target_layer,
    runs_in_series,
)
from xai_abn.models.metadata import (
    as_labels,
    as_preprocess,
    is_of_hugging_face,
    own_labels,
    own_preprocess,
    yolo_classes,
)
from xai_abn.models.segmentation import Region, class_scores
from xai_abn.models.video import FramesFirst, assumed_clips, check_order, takes_frames_first
from xai_abn.networks.abn import ABNOutput, AttentionBranchNetwork
from xai_abn.networks.layout import Layout
from xai_abn.networks.multi_task import MultiTaskABN
from xai_abn.networks.onnx import OnnxNetwork
from xai_abn.networks.tracing import (
    NEED_GRADIENTS,
    LayerOutput,
    as_unsupported,
    changed_by_noise,
    evaluating,
    misplaced,
    of_the_image,
    on_device,
    prefix_tokens,
    spatial_layers,
    trace_outputs,
    without_gradients,
)
from xai_abn.seeding import seeded

_log = logging.getLogger(__name__)

#: Where the logits are in a network's output: None if they are the output itself, a key or attribute, a position, or
#: a function of the output that gives logits (N, K) or one score per image (N,).
Output: TypeAlias = str | int | Callable[[Any], Tensor] | None


#: Where a model keeps the predictor that was made of it.
KEPT = "_predictor"


@dataclass(frozen=True, eq=False, repr=False)
class ModelAdapter:
    """A classifier ready to be explained. Made by :func:`xai_abn.load_model` or :func:`xai_abn.wrap`.

    The module is used as it is: its mode, flags, gradients, hooks and device do not change.

    Attributes:
        module: (N, C, H, W) or (N, C, D, H, W) to logits (N, K), or an :class:`AttentionBranchNetwork`.
        name: its name in results.
        preprocess: how images become inputs.
        labels: K names; without them, classes are called by number.
        layer: the target layer of CAM methods; default: see :attr:`target_layer`.
        weights: where the weights come from, for the record.
        output: where the logits are in the network's output; see ``Output``.
        multi_label: whether classes are attributes that can hold at once, each with a probability of its own (the
            sigmoid of its logit, not a share of a softmax); always so of a multi-task ABN.
        scores_only: whether the outputs are values or user-defined scores, so that there are no probabilities.
        example_input: (1, C, H, W) input that the network accepts, or (1, C, D, H, W) of a network for volumes or
            clips, used to find its layers; default: zeros of the size of the preprocessing.
        assumed_preprocessing: whether the network's own preprocessing is unknown and ImageNet's is assumed.
        backend: name of the way to predict many changed images; default: the quickest that gives what the network
            gives, see :class:`~xai_abn.models.predictor.Predictor`.
    """

    module: nn.Module
    _: KW_ONLY
    name: str
    preprocess: Preprocess
    labels: tuple[str, ...] | None = None
    layer: str | None = None
    weights: str = "as given"
    output: Output = None
    multi_label: bool = False
    scores_only: bool = False
    example_input: Tensor | None = None
    assumed_preprocessing: bool = False
    backend: str | None = None

    def __repr__(self) -> str:
        """Return name and class."""
        return f"ModelAdapter({self.name!r}, {type(self.module).__name__})"

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles hold: all but its predictor, whose runtimes stay in this process."""
        return {name: value for name, value in vars(self).items() if name != KEPT}

    def read_as(self) -> dict[str, str]:
        """Return how the network's output is read, which values in files depend on beside its weights."""
        kind = "attributes" if self.multi_label else "values" if self.scores_only else "classes"
        place = (
            getattr(self.output, "__qualname__", type(self.output).__name__) if callable(self.output) else self.output
        )
        return {"outputs": kind} | ({} if place is None else {"output": str(place)})

    @property
    def uses_attention_map(self) -> bool:
        """Whether the model is an ABN whose prediction depends on its attention map."""
        return isinstance(self.module, AttentionBranchNetwork) and self.module.uses_map

    @property
    def is_abn(self) -> bool:
        """Whether the network has an attention branch."""
        return isinstance(self.module, AttentionBranchNetwork)

    @property
    def is_multi_task(self) -> bool:
        """Whether the network has an attention map for each attribute."""
        if isinstance(self.module, OnnxNetwork):
            return self.module.has_map_per_class("abn")
        return isinstance(self.module, MultiTaskABN)

    @property
    def black_box(self) -> bool:
        """Whether the network only gives scores, as in an ONNX file: nothing inside can be read or differentiated."""
        return isinstance(self.module, OnnxNetwork)

    @property
    def maps_given(self) -> dict[str, str]:
        """For each method whose maps an ONNX file outputs, the layer that it read; none for a score of the output."""
        maps = self.module.maps if isinstance(self.module, OnnxNetwork) and self.output is None else {}
        return {method: layer for method, (_, layer) in maps.items()}

    def refuse_black_box(self, what: str) -> None:
        """Refuse what needs more of the network than its scores, if it is a black box.

        Raises:
            UnsupportedModelError: it is; the message starts with ``what``.
        """
        if self.black_box:
            own = "".join(f"{method}, whose maps it outputs, " for method in self.maps_given)
            raise UnsupportedModelError(
                f"{what}, and {self.name} is an ONNX file, a black box that only gives scores; use {own}occlusion, "
                "rise, lime, kernel-shap or feature-ablation, or the network from which the file was exported"
            )

    @property
    def example(self) -> Tensor:
        """An input (1, ...) that the network accepts: the given example, or zeros of the size of the preprocessing.

        Raises:
            UnsupportedModelError: the network does not accept it; the message says what it raised and what to do.
        """
        return self._tried[0]

    @property
    def gives_map(self) -> bool:
        """Whether the network scores every class at every position, as for segmentation."""
        return self.output is None and self._kind == "class scores"

    @property
    def detects(self) -> bool:
        """Whether the network outputs boxes with classes and scores."""
        return self.output is None and self._kind == "detections"

    @property
    def _kind(self) -> str:
        """What the network outputs: ``"class scores"``, ``"detections"`` or ``"logits"``."""
        return "logits" if self._is_plain_abn else self._tried[1]

    @property
    def _is_plain_abn(self) -> bool:
        """Whether the network was made by :func:`xai_abn.abn_from`, so that what it outputs is known without a run."""
        return isinstance(self.module, AttentionBranchNetwork) and self.module.description is not None

    @cached_property
    def _tried(self) -> tuple[Tensor, str]:
        """The example, and what the network outputs for it: ``"class scores"``, ``"detections"`` or ``"logits"``."""
        given = self.example_input
        example = torch.zeros(1, *self.preprocess.shape) if given is None else given[:1].detach().float().cpu()
        shape = "x".join(map(str, example.shape))
        with (
            as_unsupported(
                f"{self.name} does not accept an input of {shape}; give one that it accepts, as xai_abn.wrap(..., "
                "example_input=tensor of (1, C, H, W) or (1, C, D, H, W)) or preprocess=Preprocess(size=...), or the "
                "other inputs of a network with several as other_inputs={'name': tensor}"
            ),
            evaluating(self.module),
        ):
            try:
                with torch.no_grad():
                    output = self.module(on_device(example, self.module))
            except Exception:  # a network that uses gradients in its forward pass can raise anything
                with torch.enable_grad():
                    output = self.module(on_device(example, self.module))
                NEED_GRADIENTS.add(self.module)
        kind = "logits" if class_scores(output) is None else "class scores"
        return example, kind if self.detections_in((1, 1))(output) is None else "detections"

    @property
    def needs_gradients(self) -> bool:
        """Whether the network cannot run under ``torch.no_grad()``, such as one that registers hooks on tensors."""
        if self._is_plain_abn:  # abn_from runs it so
            return False
        try:
            _ = self.example
        except UnsupportedModelError:  # reported when the network is run on the real input
            return False
        return self.module in NEED_GRADIENTS

    @property
    def device(self) -> torch.device:
        """The device of the network's weights."""
        weight = next(chain(self.module.parameters(), self.module.buffers()), None)
        return torch.device("cpu") if weight is None else weight.device

    @property
    def channels(self) -> int:
        """Number of channels of the network's input."""
        return self.preprocess.shape[0] if self.example_input is None else self.example_input.shape[1]

    @property
    def axes(self) -> int:
        """Number of axes of the network's input behind the channels: 2 for images, 3 for volumes and clips."""
        return len(self.preprocess.shape) - 1 if self.example_input is None else self.example_input.dim() - 2

    @cached_property
    def memory_format(self) -> torch.memory_format:
        """Memory format for batches: channels-last, which is faster, unless the network cannot compute with it.

        It is channels-last if the weights are, and contiguous on a GPU, where channels-last is slower in float32.
        Otherwise the network is tried once on an example, because a network that calls ``view`` on feature maps does
        not accept channels-last.
        """
        if self.axes == 3:  # volumes have no such format
            return torch.contiguous_format
        weights = [m.weight for m in self.module.modules() if isinstance(m, nn.Conv2d)]
        if any(w.is_contiguous(memory_format=torch.channels_last) and not w.is_contiguous() for w in weights):
            return torch.channels_last
        if any(p.dim() == 5 for p in self.module.parameters()):  # a network of volumes has no such format
            return torch.contiguous_format
        if self.device.type != "cpu":
            return torch.contiguous_format
        try:
            example = self.example
            with evaluating(self.module), without_gradients(self.module):
                example = on_device(example, self.module)
                self.module(example.contiguous(memory_format=torch.channels_last))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # a network can raise anything
            return torch.contiguous_format
        return torch.channels_last

    @cached_property
    def target_layer(self) -> str:
        """Name of the layer that CAM methods read: the given one, or the last with a spatial output.

        In a multi-task ABN it is the last of the feature extractor, as layers behind the maps run once for each
        attribute.

        Raises:
            UnsupportedModelError: none was given and none can be found.
        """
        if self.layer is not None:
            return self.layer
        _log.info("target layer of %s: %s", self.name, self._found_layer)
        return self._found_layer

    @cached_property
    def _found_layer(self) -> str:
        self.refuse_black_box("layers are inside the network")
        outputs = self._outputs
        if self.detects:
            maps = [o for o in spatial_layers(outputs) if o.layout is not None and min(o.layout.grid) > 1]
            if (layer := backbone_layer(changed_by_noise(self.module, self.example, maps))) is not None:
                return layer
        if self.is_multi_task:
            outputs = [o for o in outputs if o.name.startswith("feature_extractor.")]
        with as_unsupported(f"no layer of {self.name} can be chosen; name one with layer="):
            scores = scores_of_detections if self.detects else self.logits_of
            return find_target_layer(self.module, self.example, outputs, self._attention_places, scores, self.name)

    @cached_property
    def attention_blocks(self) -> tuple[str, ...]:
        """Names of a transformer's blocks, one for each self-attention; empty for other networks."""
        return tuple(attention_blocks(self._attention_places))

    @property
    def attends(self) -> bool:
        """Whether tokens attend to tokens anywhere in the network."""
        return bool(self._attention_places)

    @property
    def attends_to_all(self) -> bool:
        """Whether wherever tokens attend, all tokens of an image attend to all of them."""
        return all(place.whole for place in self._attention_places)

    @cached_property
    def _attention_places(self) -> list[AttentionPlace]:
        with self._tracing:
            return attention_places(self.module, self.example)

    @property
    def _tracing(self) -> AbstractContextManager[None]:
        return as_unsupported(f"{self.name} cannot be run with hooks on its layers; use a method that reads no layer")

    @cached_property
    def prefix_tokens(self) -> int | None:
        """How many of a transformer's tokens are not patches; None if the network does not say."""
        return prefix_tokens(self.module)

    @cached_property
    def reads_class_token(self) -> bool:
        """Whether a transformer predicts from its class token, so that no patch counts behind the last attention."""
        if not self.attention_blocks:
            return False
        found, last = self._found_layer, self.attention_blocks[-1]
        if found.startswith(f"{last}."):
            return True
        order = {o.name: o.order for o in self._outputs}
        return order.get(found, len(order)) < order.get(last, -1)

    @cached_property
    def number_of_classes(self) -> int:
        """K: how many classes the network scores."""
        example = self.example
        with evaluating(self.module), without_gradients(self.module):
            return self.logits_of(self.module(on_device(example, self.module))).shape[1]

    def with_module(self, module: nn.Module) -> ModelAdapter:
        """Return an adapter of another network of the same architecture, such as one with other weights."""
        other = replace(self, module=module, weights="other")
        vars(other)["_places"] = self._places  # do not depend on the weights
        return other

    def check_layer(self, name: str) -> None:
        """Refuse the name of a layer that does not exist, or whose output does not have one row per image.

        Raises:
            UnknownNameError: there is no such layer; the message suggests the nearest.
            UnsupportedModelError: the layer is behind the maps of a multi-task ABN, or the network is a black box.
        """
        self.refuse_black_box(f"layer {name!r} is inside the network")
        try:
            layer = self.module.get_submodule(name)
        except AttributeError:
            layer = self.module
        if layer is self.module:
            layers = [n for n, _ in self.module.named_modules() if n]
            raise UnknownNameError("layer", name, layers, "See 'xai-abn list layers'.")
        if isinstance(layer, torch.jit.ScriptModule):
            raise UnsupportedModelError(
                f"layer {name!r} of {self.name} is a TorchScript module, whose output cannot be read; name another "
                "layer, or give the network that it was made from"
            )
        if self.is_multi_task and name.split(".")[0] in ("perception_branch", "mechanism"):
            raise UnsupportedModelError(
                f"layer {name!r} of {self.name} runs once for each attribute, so it does not have one output per "
                f"image; name one in front of the maps, such as {self._found_layer!r}, or use abn"
            )

    def check_labels(self, classes: int) -> None:
        """Refuse labels that are not as many as the classes of the network.

        Raises:
            InvalidInputError: there are fewer or more.
        """
        if self.labels is not None and len(self.labels) != classes:
            raise InvalidInputError(
                f"{self.name} has {classes} classes, got {len(self.labels)} labels; give one label per class"
            )

    @cached_property
    def has_probabilities(self) -> bool:
        """Whether the outputs give probabilities of classes.

        A user-defined score and a map of class scores do not. A single output does if ``multi_label`` says that it is a
        class's logit.
        """
        if self.scores_only or self.gives_map:
            return False
        return self.multi_label or self.detects or self.number_of_classes > 1

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return logits (N, K) as probabilities.

        The softmax, or the sigmoid for attributes; the outputs themselves if the network ends in a softmax or sigmoid
        of its own; NaN if there are no probabilities.
        """
        if self.scores_only or (logits.shape[1] == 1 and not self.multi_label) or self.gives_map:
            return logits * float("nan")
        if self.output_kind(logits) == "probabilities":
            return logits
        return logits.sigmoid() if self.multi_label else logits.softmax(dim=1)

    def output_kind(self, logits: Tensor) -> str:
        """Return the kind of the outputs (N, K): ``"logits"``, ``"probabilities"`` or ``"log-probabilities"``.

        Outputs that look like probabilities count as such only if the network's outputs also do on an example and on
        noise.
        """
        kind = "logits" if self.scores_only else _kind_of_outputs(logits, self.multi_label)
        return kind if kind == "logits" or kind == self._usual_kind else "logits"

    @cached_property
    def _usual_kind(self) -> str:
        with seeded(0):
            inputs = [self.example, *(torch.randn_like(self.example) for _ in range(3))]
        with evaluating(self.module), without_gradients(self.module):
            found = [self.logits_of(self.module(on_device(i, self.module))).detach().float() for i in inputs]
        return _kind_of_outputs(torch.cat(found), self.multi_label)

    def notes(self, logits: Tensor) -> tuple[str, ...]:
        """Return notes for a reader on the outputs (N, K) and the preprocessing."""
        notes = []
        kind = self.output_kind(logits)
        if kind != "logits":
            notes.append(f"{self.name} outputs {kind}, so the map explains these and not logits")
        if logits.shape[1] == 1 and not (self.multi_label or self.scores_only):
            notes.append(
                f"{self.name} has one output, shown as a score; if it is the logit of a class, wrap it with "
                "multi_label=True, and if it is a value, with scores_only=True; on the command line say --outputs "
                "attributes or --outputs values"
            )
        if others := others_are_examples(self.module):
            notes.append(
                f"the other inputs of {self.name} ({others}) are those given to wrap; give each image its own with "
                "explain(..., other_inputs=...)"
            )
        if self.assumed_preprocessing:
            notes.append(
                f"the preprocessing of {self.name} is unknown and assumed to be ImageNet's; give wrap(..., "
                "preprocess=...), such as its image processor, or --mean and --std"
            )
        return tuple(notes)

    def spatial_layers(self) -> list[LayerOutput]:
        """Return every layer with positions in its output, on a grid or as tokens, in order of computing."""
        spatial = {o.order for o in spatial_layers(self._outputs)}
        tokens = [o for o in self._outputs if o.layout is not None and o.layout.kind == "tokens"]
        named = {o.order for o in tokens if o.name and not o.transparent}
        return [o for o in self._outputs if o.order in spatial | named]

    @property
    def _outputs(self) -> list[LayerOutput]:
        return self.outputs(tuple(self.example.shape[2:]))

    def outputs(self, size: tuple[int, ...]) -> list[LayerOutput]:
        """Return the outputs of every module for an input of that size, traced once per size."""
        if size not in self._traces:
            with self._tracing:
                self._traces[size] = trace_outputs(self.module, self._sample(size))
        return self._traces[size]

    def _sample(self, size: tuple[int, ...]) -> Tensor:
        example = self.example
        return example if tuple(example.shape[2:]) == size else torch.zeros(1, example.shape[1], *size)

    @cached_property
    def _traces(self) -> dict[tuple[int, ...], list[LayerOutput]]:
        return {}

    def layout_of_tokens(self, length: int, size: tuple[int, ...]) -> Layout | None:
        """Return how ``length`` tokens are arranged as patches for an input of that size; None if not."""
        layouts = [o.layout for o in self.outputs(size) if o.sequence and max(o.shape[:2]) == length]
        return next((layout for layout in layouts if layout is not None), None)

    def output_of(self, layer: str, size: tuple[int, ...]) -> LayerOutput:
        """Return the output of a layer that belongs to the image, for an input of that size.

        For a layer that runs several times, this is the output of the only call that depends on the image; or, if each
        call feeds the next, of the last call.

        Raises:
            UnsupportedModelError: the layer runs several times side by side on the image, or does not output a tensor.
        """
        outputs = [o for o in self.outputs(size) if o.name == layer]
        found = of_the_image(outputs) or outputs
        with self._tracing:
            in_series = len(found) < 2 or runs_in_series(self.module, self._sample(size), layer)
        if not found or not in_series:
            problem = f"runs {len(found)} times side by side on an image" if found else "outputs no tensor"
            raise UnsupportedModelError(
                f"layer {layer!r} of {self.name} {problem}, so it has no single map; choose another layer"
            )
        return found[-1]

    def check_positions(self, layer: str, layers: Mapping[str, tuple[Layout, int]], size: tuple[int, ...]) -> None:
        """Refuse a layer whose positions are not those of the image, as in networks that crop, turn or pad it inside.

        Args:
            layer: its name.
            layers: by name the layouts of this layer's output and of others that will be read, and which of their
                calls in a pass. All that are new are checked at once. Tokens, small grids, grids of volumes and those
                of detectors are not checked.
            size: of the input, (H, W).

        Raises:
            UnsupportedModelError: its map would lie in the wrong place.
        """
        if (layer, size) not in self._places:
            self._places.update(((name, size), "") for name in layers)
            grids = {n: (g, call) for n, (g, call) in layers.items() if g.kind != "tokens" and min(g.grid) >= 3}
            if grids and len(size) == 2 and self._kind != "detections":  # detectors resize images by themselves
                with self._tracing:
                    problems = misplaced(self.module, self._sample(size), grids)
                self._places.update(((name, size), problem) for name, problem in problems.items())
        if problem := self._places[layer, size]:
            raise UnsupportedModelError(
                f"layer {layer!r} of {self.name} {problem}, so its map would lie in the wrong place; do this to the "
                "images before they are given, or use a method that reads no layer, such as occlusion"
            )

    @cached_property
    def _places(self) -> dict[tuple[str, tuple[int, ...]], str]:
        return {}

    def logits_of(self, output: object) -> Tensor:
        """Return the logits (N, K) in the network's output; of a map of class scores the mean over all positions.

        Raises:
            UnsupportedModelError: there are none; the message says what came and what to do.
        """
        own = getattr(output, "logits", None)
        named = isinstance(output, ABNOutput) or (self.output is None and isinstance(own, Tensor) and own.dim() == 2)
        found = own if named else output
        if callable(self.output):
            given = type(found).__name__
            with as_unsupported(f"change the function for the logits or score of {self.name}; it fails on {given}"):
                found = self.output(found)
        elif self.output is not None:
            found = self._part(found, self.output)
        elif (scores := class_scores(found)) is not None:
            found = scores.mean(dim=tuple(range(2, scores.dim())))
        if isinstance(found, Tensor) and found.dim() < 2:  # one value per image, squeezed
            found = found.reshape(-1, 1)
        if not isinstance(found, Tensor) or found.dim() != 2 or not found.shape[1] or not found.is_floating_point():
            got = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise UnsupportedModelError(
                f"{self.name} must output logits (N, K), got {got}; say where they are, as floats, with "
                "xai_abn.wrap(..., output=...): a key, a position, or a function of the output"
            )
        return found

    def _part(self, output: object, place: str | int) -> object:
        try:
            if isinstance(place, str) and hasattr(output, place):
                return getattr(output, place)
            return output[place]  # type: ignore[index]
        except (LookupError, TypeError) as error:
            known = f" with {', '.join(map(str, output))}" if isinstance(output, dict) else ""
            raise UnsupportedModelError(
                f"{self.name} outputs {type(output).__name__}{known}, which has no {place!r}; give another output="
            ) from error

    def with_output(self, score: Callable[[Any], Tensor], name: str) -> ModelAdapter:
        """Return this model with a score (N,) of its output as its only class, called ``name``."""

        def one_per_image(output: object) -> Tensor:
            found = score(self.logits_of(output) if self.output is not None else output)
            if not isinstance(found, Tensor) or found.dim() not in (1, 2) or found[:1].numel() != 1:
                got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise InvalidInputError(f"the score {name} must give one number per image, (N,), got {got}")
            return found

        return replace(self, labels=(name,), output=one_per_image, scores_only=True)

    def scoring(self, part: Region | Detection, image: Tensor) -> ModelAdapter:
        """Return this model with the score of a part of its output as its only class, which reads the same layers.

        The score of a detection is a probability. The example is the image (1, C, H, W) of the part: in others a
        detector finds something else, or nothing.
        """
        scored = replace(self.with_output(part.score, part.label), scores_only=self.gives_map, multi_label=self.detects)
        vars(scored).update({name: value for name, value in vars(self).items() if name in _OF_LAYERS})
        vars(scored)["_tried"] = (image.detach().float().cpu(), self._tried[1])
        if self.detects:
            vars(scored)["_usual_kind"] = "probabilities"  # without trying it on other inputs
        return scored

    def with_inputs(self, others: Mapping[str, Any]) -> ModelAdapter:
        """Return this model with other inputs than those given to :func:`wrap`: those of one image.

        Args:
            others: a tensor with one row, (1, ...), for each name.

        Raises:
            InvalidInputError: the model has no other inputs, or other ones.
        """
        if not isinstance(self.module, BoundInputs):
            raise InvalidInputError(
                f"{self.name} takes only images; give examples of its other inputs to xai_abn.wrap(..., "
                "other_inputs={'name': tensor})"
            )
        return replace(self, module=self.module.with_inputs(others)).knowing(self)

    def knowing(self, other: ModelAdapter) -> ModelAdapter:
        """Return this model with what another has found out about the layers of the same network."""
        vars(self).update({name: value for name, value in vars(other).items() if name in _OF_LAYERS})
        if other.module in NEED_GRADIENTS:
            NEED_GRADIENTS.add(self.module)
        return self

    def class_map(self, output: object, source: str) -> Tensor:
        """Return the scores (K, h, w) or (K, d, h, w) of all classes at all positions in the output for one image.

        Raises:
            UnsupportedModelError: there is no such map.
            NonFiniteError: a score is NaN or infinite.
        """
        scores = class_scores(output)
        if scores is None:
            raise UnsupportedModelError(f"{self.name} outputs no map of class scores for {source}")
        if not bool(scores.isfinite().all()):
            raise self.not_finite(source)
        return scores[0].detach().float()

    def not_finite(self, source: str) -> NonFiniteError:
        """Return the error for an image whose scores are NaN or infinite."""
        return NonFiniteError(
            f"{source}: {self.name} outputs NaN or infinite scores; check its weights and preprocessing"
        )

    def detections_in(self, size: tuple[int, int]) -> Callable[[object], list[Detections] | None]:
        """Return a function of the network's output that returns what it found in each input of ``size`` (H, W)."""
        return partial(detections, size=size, yolo=yolo_classes(self.module))

    def detections(self, output: object, image: PreparedImage) -> Detections:
        """Return what a detector found, from its output for one image.

        Raises:
            UnsupportedModelError: the network is no detector.
            NonFiniteError: a box or score is NaN or infinite.
        """
        found = self.detections_in((image.tensor.shape[1], image.tensor.shape[2]))(output)
        if found is None or len(found) != 1:
            raise UnsupportedModelError(f"{self.name} outputs no boxes with classes and scores for {image.source}")
        if not bool(found[0].boxes.isfinite().all() and found[0].scores.isfinite().all()):
            raise NonFiniteError(
                f"{image.source}: {self.name} outputs NaN or infinite boxes or scores; check its weights and "
                "preprocessing"
            )
        return found[0]

    def edit(self, image: PreparedImage | str | Path) -> EditableImage:
        """Return an image whose maps can be changed, to see what the network answers then.

        Args:
            image: a path, ``"example:NAME"``, or an image from :attr:`preprocess`.

        Raises:
            UnsupportedModelError: the network is no Attention Branch Network that uses its map.
            ImageLoadError: the image cannot be read.
        """
        network = self.module
        if not isinstance(network, AttentionBranchNetwork) or not network.uses_map:
            raise UnsupportedModelError(
                f"{self.name} has no attention map that it uses, so a changed map changes nothing; use the model "
                "abn-lite0, or make an Attention Branch Network with xai_abn.abn_from(...)"
            )
        prepared = image if isinstance(image, PreparedImage) else self.preprocess(load_image(image))
        classes = self.number_of_classes

        def index_of(target: int | str) -> int:
            return self.target_index(target, classes)

        with as_unsupported(f"{self.name} cannot be run on an input of {tuple(prepared.tensor.shape)}"):
            return EditableImage(network, prepared, self.memory_format, index_of, self.probabilities)

    def label(self, index: int) -> str:
        """Return the name of a class, or ``"class 7"`` without labels, or ``"output 7"`` where outputs are values."""
        if self.labels is not None and index < len(self.labels):
            return self.labels[index]
        return f"{self._unnamed} {index}"

    @cached_property
    def _unnamed(self) -> str:
        """What an output without a label is called."""
        return "class" if self.gives_map or self.has_probabilities else "output"

    def target_index(self, target: int | str, classes: int | None) -> int:
        """Return the index of a class given by index or by label text (case is ignored).

        Args:
            target: an index from 0, a label, or digits, which mean the label spelled so if there is one, else the
                index.
            classes: number of classes K the model scores; None if unknown.

        Raises:
            InvalidInputError: the index is out of range, or several classes have the label.
            UnknownNameError: no class has this label; the message suggests the nearest.
        """
        if isinstance(target, str) and target.strip().isdecimal() and target.strip() not in (self.labels or ()):
            target = int(target)
        if isinstance(target, str):
            return self.index_of_label(target)
        if isinstance(target, bool) or not isinstance(target, int):
            raise InvalidInputError(f"a target must be an index or a label, got {type(target).__name__}")
        if target < 0 or (classes is not None and target >= classes):
            known = "classes from 0" if classes is None else f"classes 0 to {classes - 1}"
            raise InvalidInputError(f"target {target} is out of range; {self.name} has {known}")
        return target

    def index_of_label(self, text: str) -> int:
        """Return the index of the class with a label; see :meth:`target_index`."""
        if self.labels is None:
            raise InvalidInputError(f"{self.name} has no labels, so a target must be an index, got {shown(repr(text))}")
        wanted = text.strip().casefold()
        found = [i for i, label in enumerate(self.labels) if label.casefold() == wanted]
        if not found:
            raise UnknownNameError("label", text, dict.fromkeys(self.labels), "See 'xai-abn list labels'.")
        if len(found) > 1:
            raise InvalidInputError(f"label {text!r} names classes {', '.join(map(str, found))}; give the index")
        return found[0]


#: What an adapter knows of its layers, which does not depend on the score that is explained.
_OF_LAYERS = (
    "_tried",
    "memory_format",
    "_places",
    "target_layer",
    "_found_layer",
    "_traces",
    "_attention_places",
    "attention_blocks",
    "reads_class_token",
    "prefix_tokens",
)


def _kind_of_outputs(values: Tensor, multi_label: bool) -> str:
    """Return what kind the outputs (N, K) look like: ``"logits"``, ``"probabilities"`` or ``"log-probabilities"``."""
    if bool(((values >= 0) & (values <= 1)).all()):
        if multi_label or bool(((values.sum(dim=1) - 1).abs() < 1e-3).all()):
            return "probabilities"
    elif not multi_label and values.shape[1] > 1 and bool((values.logsumexp(dim=1).abs() < 1e-3).all()):
        return "log-probabilities"
    return "logits"


def wrap(
    module: nn.Module,
    *,
    labels: Sequence[str] | Mapping[int, str] | None = None,
    preprocess: Any = None,
    layer: str | nn.Module | None = None,
    name: str | None = None,
    output: Output = None,
    multi_label: bool = False,
    scores_only: bool = False,
    example_input: Tensor | None = None,
    other_inputs: Mapping[str, Any] | None = None,
) -> ModelAdapter:
    """Make any classifier explainable.

    Args:
        module: (N, C, H, W), or (N, C, D, H, W) of volumes and clips, to logits (N, K); on any device.
        labels: K class names, or a mapping from index to name; default: those that a network of Hugging Face or timm
            carries.
        preprocess: how images become inputs: a :class:`Preprocess`, the ``transforms()`` of torchvision's weights, a
            data configuration of timm or open_clip, or an image processor of Hugging Face; default: what a network of
            timm or open_clip carries, else 224 pixels, ImageNet's mean and deviation.
        layer: the target layer of CAM methods, or its name; default: see :attr:`ModelAdapter.target_layer`.
        name: its name in results; default: its class name.
        output: where the logits are in its output, if they are not the output itself or its ``logits``: a key or
            attribute, a position in a tuple, or a function of the output.
        multi_label: whether classes are attributes that can hold at once; probabilities are then sigmoids.
        scores_only: whether the outputs are values, as of a regression, and not logits of classes: they are shown as
            they are, without probabilities, and all are explained unless targets are given. One per image, (N,) or
            (N, 1), or several, (N, K).
        example_input: (1, C, H, W) input that the network accepts, for networks that do not accept RGB images of the
            size of the preprocessing: rectangles, or one, four or more channels; (1, C, D, H, W) for a network that
            takes volumes, or clips of D frames. It is used to find layers.
        other_inputs: for a network of several inputs, the others than the image, by the names of the arguments of its
            ``forward``: tensors with one row, (1, ...), or anything else, which is passed on as it is. The image goes
            to the first argument that is not among them. They are used to find layers, and for images whose own are
            not given to :func:`xai_abn.explain`. The network is then the submodule ``network``.

    Raises:
        UnsupportedModelError: not a module, a scripted module, or weights that are missing or cannot be differentiated.
        InvalidInputError: fewer or more labels than the network has outputs, or an argument of a wrong type.
        UnknownNameError: there is no such layer.

    Examples:
        >>> import torchvision, xai_abn
        >>> model = xai_abn.wrap(torchvision.models.resnet18())
        >>> model.target_layer
        'layer4'
    """
    module = plain_module(module)
    if multi_label and scores_only:
        raise InvalidInputError("give multi_label for attributes or scores_only for values, not both")
    if not isinstance(name, (str, NoneType)):
        raise InvalidInputError(f"name must be text, got {type(name).__name__}")
    name = " ".join((name or type(module).__name__).split())
    video = takes_frames_first(module)
    own = as_preprocess(preprocess) if preprocess is not None else None if video else own_preprocess(module)
    default = assumed_clips(module) if video else Preprocess()
    module = FramesFirst(module) if video else module
    whole = module if other_inputs is None else BoundInputs(module, other_inputs)
    adapter = ModelAdapter(
        whole,
        name=name,
        preprocess=own or default,
        labels=own_labels(module) if labels is None else as_labels(labels),
        layer=_layer_name(whole, layer),
        output=output,
        multi_label=multi_label or isinstance(module, MultiTaskABN),
        scores_only=scores_only,
        example_input=_checked_example(example_input),
        assumed_preprocessing=own is None and is_of_hugging_face(module),
    )
    if adapter.example_input is not None:
        check_order(module, adapter.example_input)
    if adapter.layer is not None:
        adapter.check_layer(adapter.layer)
    if labels is not None and not adapter.detects:
        adapter.check_labels(adapter.number_of_classes)
    return adapter


def _layer_name(module: nn.Module, layer: object) -> str | None:
    """Return the name of a layer given by name or as a module of the network."""
    if layer is None or isinstance(layer, str):
        return layer
    if not isinstance(layer, nn.Module):
        raise InvalidInputError(f"layer must be the name of one layer, or the layer, got {type(layer).__name__}")
    found: str = next((n for n, m in module.named_modules() if m is layer), "")
    if not found:
        raise InvalidInputError(f"the layer {type(layer).__name__} is not one of {type(module).__name__}; name one")
    return found


def _checked_example(example: object) -> Tensor | None:
    """Return an example input, or refuse anything that is not (1, C, H, W) or (1, C, D, H, W) of finite numbers."""
    if example is None:
        return None
    if isinstance(example, Tensor) and example.dim() in (4, 5) and example.numel():
        numbers = example.layout == torch.strided and not (example.is_meta or example.is_complex())
        if numbers and bool(example.isfinite().all()):
            return example
    got = f"{example.dtype} {tuple(example.shape)}" if isinstance(example, Tensor) else type(example).__name__
    raise InvalidInputError(
        f"example_input must be a tensor (1, C, H, W) or (1, C, D, H, W) of finite numbers, got {got}; give the other "
        "inputs of a network with several as other_inputs={'name': tensor}"
    )


def plain_module(module: nn.Module) -> nn.Module:
    """Return the network inside ``torch.compile``, ``DataParallel``, ``DistributedDataParallel`` and ``YOLO``.

    Hooks inside a compiled graph are not called, and those on a parallel wrapper's replicas are lost; the network
    inside has the same weights.

    Raises:
        UnsupportedModelError: not a module, a TorchScript module, or weights that are on the meta device, not yet
            initialized, or made in inference mode.
    """
    while isinstance(module, nn.Module):
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        elif isinstance(getattr(module, "_orig_mod", None), nn.Module):
            module = module._orig_mod  # type: ignore[assignment]
        elif hasattr(module, "predictor") and hasattr(module, "task") and isinstance(module.model, nn.Module):
            module = module.model
        else:
            break
    if not isinstance(module, nn.Module):
        raise UnsupportedModelError(f"expected a torch.nn.Module, got {type(module).__name__}")
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            "the layers of a TorchScript module cannot be read or differentiated; give the network that it was made "
            "from"
        )
    weights = [*module.parameters(), *module.buffers()]
    if any(is_lazy(w) for w in weights):
        raise UnsupportedModelError(
            f"weights of {type(module).__name__} are not initialized yet; run it once on an input first"
        )
    if any(w.is_meta for w in weights):
        raise UnsupportedModelError(
            f"the weights of {type(module).__name__} are on the meta device, so there is nothing to compute with; load "
            "them first, as with module.to_empty(device=...) and load_state_dict"
        )
    if any(w.is_inference() for w in weights):
        raise UnsupportedModelError(
            f"weights of {type(module).__name__} were made inside torch.inference_mode(), so nothing can be "
            "differentiated; give a copy made outside of it: copy.deepcopy(module)"
        )
    return module
