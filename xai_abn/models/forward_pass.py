"""One forward pass, shared by all explainers."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property
from time import perf_counter
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel

from xai_abn.errors import InvalidInputError, UnsupportedModelError
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.attention import AttentionWatch
from xai_abn.models.detection import Detection
from xai_abn.models.predictor import Predictor, predictor_of
from xai_abn.models.segmentation import Region
from xai_abn.models.sparse import SkippingZeros
from xai_abn.models.targets import checked_targets, target_rows, target_scores
from xai_abn.networks.abn import ABNOutput
from xai_abn.networks.layout import Layout, grid_layout, is_ambiguous
from xai_abn.networks.tracing import (
    NEED_GRADIENTS,
    all_modules,
    as_unsupported,
    evaluating,
    hooks,
    is_not_differentiable,
    main_tensor,
    on_device,
    with_main_tensor,
)

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
_Head: TypeAlias = nn.Linear | nn.Conv2d | nn.Conv3d
#: Networks whose logits do not come from a linear layer, so that 1x1 convolutions are noted in their passes, too.
_CONVOLUTIONS_NOTED: weakref.WeakSet[nn.Module] = weakref.WeakSet()

_RECOMPUTES = "it recomputes parts of itself for gradients (torch.utils.checkpoint); switch this off"


def check_inputs(inputs: object) -> None:
    """Refuse inputs of a network that are not floats (N, C, H, W), or (N, C, D, H, W), of at least one image.

    Raises:
        InvalidInputError: they are something else; the message says what came.
    """
    if not (isinstance(inputs, Tensor) and inputs.dim() in (4, 5) and inputs.is_floating_point() and inputs.numel()):
        got = f"{inputs.dtype} {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
        raise InvalidInputError(
            "inputs must be a tensor of floats (N, C, H, W) of at least one image, or (N, C, D, H, W) of volumes or "
            f"clips, got {got}"
        )


def _check_graph(model: ModelAdapter) -> None:
    """Refuse to keep a graph where there would be none."""
    model.refuse_black_box("create_graph=True differentiates maps by weights")
    if not torch.is_grad_enabled():
        raise InvalidInputError(
            "create_graph=True needs gradients, which are switched off here; leave the block of torch.no_grad() or "
            "torch.inference_mode()"
        )
    if not any(p.requires_grad for p in model.module.parameters()):
        raise InvalidInputError(
            f"create_graph=True differentiates maps by the weights of {model.name}, and none of them requires a "
            "gradient; switch it on with module.requires_grad_(), or leave create_graph out"
        )


class ForwardPass:
    """Everything that a network computed for one batch: scores, activations, ABN's maps, gradients on demand.

    Layers before the first captured one run without autograd; the others run with it if gradients are requested. With
    ``create_graph`` all run with it, and what is read keeps its history, down to every weight. Nothing on the model
    changes: no hook, no ``.grad``, no mode.

    Args:
        model: the model to run.
        inputs: (N, C, H, W), or (N, C, D, H, W) of volumes and clips, normalized, on any device.
        layers: names of the layers whose outputs to keep.
        gradients: whether :meth:`gradients` will be called.
        attentions: whether to keep the attention weights of a transformer.
        create_graph: whether what is read can be differentiated by the network's weights.
        sources: names of the images, if known.
        parts: whether only the score of a part of the output will be explained; see :meth:`scoring`. Until then the
            pass has no scores.

    Attributes:
        model: the model.
        inputs: the inputs on the model's device.
        sources: names of the images, or empty.
        output: what the network output.
        seconds: how long it took.
        backend: what computed it, and in which precision: ``"network, float32"``, see :meth:`given`.
        create_graph: whether what is read keeps its history; only ``logits`` never do.
        logits: (N, K) float32, detached.
        attention_map: ABN's map (N, 1, h, w), or a multi-task ABN's maps (N, K, h, w); None for other networks.
        class_maps: the attention branch's class maps (N, K, h, w), or None.
        classifier: the linear layer, or 1x1 convolution of pooled features, that outputs the logits, or None.
        other_attention: with ``attentions``, how many times the network attended in another form than all tokens to
            all tokens.

    Raises:
        UnknownNameError: no such layer; the message suggests the nearest.
        UnsupportedModelError: the network does not output logits (N, K), or a layer does not output a tensor.
        InvalidInputError: gradients are requested inside ``torch.inference_mode()``, or a graph inside
            ``torch.no_grad()`` or of a network without a weight that requires a gradient, or the inputs are no floats
            (N, C, H, W) or (N, C, D, H, W).

    Examples:
        >>> import torch, xai_abn
        >>> model = xai_abn.load_model("lite0")
        >>> shared = xai_abn.ForwardPass(model, torch.zeros(2, 3, 224, 224), layers=["bn2"], gradients=True)
        >>> shared.gradients("bn2", torch.tensor([281, 3])).shape
        torch.Size([2, 1280, 7, 7])
    """

    def __init__(
        self,
        model: ModelAdapter,
        inputs: Tensor,
        layers: Sequence[str] = (),
        gradients: bool = False,
        *,
        attentions: bool = False,
        create_graph: bool = False,
        sources: Sequence[str] = (),
        parts: bool = False,
    ) -> None:
        if create_graph:
            _check_graph(model)
        if gradients and torch.is_inference_mode_enabled():
            raise InvalidInputError(
                "gradients cannot be computed inside torch.inference_mode(); use torch.no_grad() or leave the block"
            )
        check_inputs(inputs)
        started = perf_counter()
        self.model = model
        self.inputs = on_device(inputs, model.module)
        self.sources = tuple(sources)
        self.create_graph = create_graph
        self._kept: dict[str, Tensor] = {}
        self._runs: dict[str, int] = {}
        self._calls: dict[str, int] = {}
        self._attentions: list[Tensor] = []
        self._predict: Predictor | None = None
        self._gradients: dict[tuple[object, ...], Tensor] = {}
        self._reruns: dict[str, bool] = {}
        self._differentiable = gradients
        self._attends = attentions
        self._parts = parts
        # attention spreads a gradient to all positions, and a graph is differentiated again
        self._sparse = parts and gradients and not create_graph and not model.attends
        self._linear_calls: list[tuple[_Head, Tensor, Tensor, object]] = []
        self.other_attention = 0
        self._run(list(dict.fromkeys(layers)))
        repeated = [layer for layer, runs in self._runs.items() if runs > 1]
        if repeated:
            self._calls = {layer: model.output_of(layer, self.size).call for layer in repeated}
            self._run(list(self._kept))
        if not parts:
            self._read_scores()
        self.backend = f"network, {str(self._scores.dtype).removeprefix('torch.')}" if not parts else "network"
        self.seconds = perf_counter() - started

    def given(
        self,
        inputs: Tensor,
        logits: Tensor,
        read: Mapping[str, Tensor],
        backend: str,
        sources: Sequence[str],
        seconds: float,
    ) -> ForwardPass:
        """Return the pass of other inputs of this size whose outputs another way to compute the network gave.

        Args:
            inputs: the inputs.
            logits: their logits (N, K).
            read: the outputs of the captured layers, as the layers give them, and maps of an ABN, by their names.
            backend: see :attr:`backend`.
            sources: names of the images, if known.
            seconds: how long it took.
        """
        found = copy.copy(self)
        vars(found).pop("_layouts", None)
        found.inputs, found.sources, found.backend, found.seconds = inputs, tuple(sources), backend, seconds
        found.logits, found.output = logits, logits
        found._kept = {layer: read[layer] for layer in self._kept}
        found.attention_map, found.class_maps = read.get("attention_map"), read.get("class_maps")
        found._predict, found._gradients, found._reruns = None, {}, {}
        return found

    def scoring(self, part: Region | Detection) -> ForwardPass:
        """Return this pass with the score of a part of its output as the only class; the network does not run again."""
        found = copy.copy(self)
        found.model = self.model.scoring(part, self.inputs)
        found._predict, found._gradients, found._reruns = None, {}, {}
        found._read_scores()
        return found

    def _read_scores(self) -> None:
        """Find the scores in the output, and run the network again if they need what was not kept."""
        module = self.model.module
        self._find_scores()
        if self._differentiable and self._kept and not self._scores.requires_grad and not self._ran_with_gradients:
            NEED_GRADIENTS.add(module)  # it runs only the part with the layer without gradients, not the head
            self._run(list(self._kept))
            self._find_scores()
        self.classifier, self._pooled = self._linear_layer_of(self._scores)
        if self.classifier is None and not self._parts and module not in _CONVOLUTIONS_NOTED:
            _CONVOLUTIONS_NOTED.add(module)
            if any(isinstance(m, _CONVOLUTIONS) and _multiplies_vectors(m) for m in all_modules(module)):
                self._run(list(self._kept))
                self._find_scores()
                self.classifier, self._pooled = self._linear_layer_of(self._scores)
        self.attention_map: Tensor | None = None
        self.class_maps: Tensor | None = None
        if isinstance(self.output, ABNOutput):
            self.attention_map = self._read(self.output.attention_map)
            self.class_maps = self._read(self.output.class_maps)
        if self.create_graph and _recomputes(self._scores):
            raise UnsupportedModelError(f"{self.model.name} cannot keep a graph: {_RECOMPUTES}")
        self._linear_calls = []
        self.logits = self._scores.detach().float()
        if len(self.logits) != len(self.inputs):
            raise UnsupportedModelError(
                f"{self.model.name} must output one row per image, got {tuple(self.logits.shape)} for "
                f"{len(self.inputs)} images"
            )

    def _find_scores(self) -> None:
        with torch.set_grad_enabled(self._differentiable or self.create_graph):
            self._scores = self.model.logits_of(self.output)

    def __len__(self) -> int:
        """Return the number of images N."""
        return len(self.inputs)

    @property
    def size(self) -> tuple[int, ...]:
        """Size of the inputs, (H, W) or (D, H, W)."""
        return tuple(self.inputs.shape[2:])

    @property
    def probabilities(self) -> Tensor:
        """The logits as probabilities, (N, K); see :meth:`as_probabilities`."""
        return self.as_probabilities(self.logits)

    def as_probabilities(self, logits: Tensor) -> Tensor:
        """Return logits (B, K) as probabilities; see :meth:`ModelAdapter.probabilities`."""
        return self.model.probabilities(logits)

    @property
    def attentions(self) -> list[Tensor]:
        """Attention weights (N, heads, T, T) of each self-attention, in order; empty unless requested."""
        return [self._read(a) for a in self._attentions]

    @property
    def classifier_weights(self) -> Tensor:
        """Weights (K, C) of :attr:`classifier`."""
        assert self.classifier is not None
        return self._read(self.classifier.weight).flatten(1)

    def layout(self, layer: str) -> Layout:
        """Return where the positions are in a captured layer's output.

        Raises:
            InvalidInputError: the layer was not among ``layers``.
            UnsupportedModelError: its output has no positions.
        """
        if layer not in self._layouts:
            return self._layout(layer)  # says why there is none
        self.model.check_positions(layer, self._layouts, self.size)
        return self._layouts[layer][0]

    @cached_property
    def _layouts(self) -> dict[str, tuple[Layout, int]]:
        """The layouts of the captured layers that have positions, and which of their calls was captured."""
        layouts = {}
        for layer in self._kept:
            with suppress(UnsupportedModelError):
                layouts[layer] = (self._layout(layer), self._calls.get(layer, -1))
        return layouts

    def _layout(self, layer: str) -> Layout:
        shape = tuple(self._captured(layer).shape)
        found = grid_layout(shape, self.size)
        if len(shape) == 3 or is_ambiguous(shape, self.size):
            found = self.model.output_of(layer, self.size).layout or found
        if found is None:
            raise UnsupportedModelError(
                f"layer {layer!r} gives {shape}, which has no recognizable grid of positions; choose another layer"
            )
        if shape[found.batch_axis] != len(self.inputs):
            raise UnsupportedModelError(
                f"layer {layer!r} gives {shape} for {len(self.inputs)} images, as in networks that cut "
                "images into windows; choose another layer"
            )
        return found

    def activations(self, layer: str) -> Tensor:
        """Return a captured layer's output as maps (N, C, h, w); do not change it in place.

        Of volumes and clips, they are (N, C, d, h, w).

        For a transformer, they are the patch tokens on their grid; class and register tokens are left out.

        Raises:
            InvalidInputError: the layer was not among ``layers``.
            UnsupportedModelError: its output has no positions.
        """
        layout = self.layout(layer)
        return layout.to_maps(layout.batch_first(self._read(self._captured(layer))))

    def raw_output(self, layer: str) -> Tensor:
        """Return a captured layer's output with the batch first, otherwise as the layer gave it, with its history."""
        return self.layout(layer).batch_first(self._captured(layer))

    def _read(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the network's graph with its history if the pass keeps it, else detached."""
        return tensor if self.create_graph else tensor.detach()

    def _captured(self, layer: str) -> Tensor:
        if layer not in self._kept:
            raise InvalidInputError(
                f"layer {layer!r} was not captured; this pass has {', '.join(self._kept) or 'none'}"
            )
        return self._kept[layer]

    def gradients(self, layer: str, targets: Tensor) -> Tensor:
        """Return d score / d activation as maps, computed once per layer and targets.

        Only the part of the network behind the layer is differentiated.

        Args:
            layer: a captured layer.
            targets: class indices (N,), or directions (N, K); see :func:`xai_abn.models.targets.target_scores`.

        Returns:
            The gradients, shaped as the activations.

        Raises:
            InvalidInputError: the pass was made without gradients, or ``targets`` has another shape.
            UnsupportedModelError: the scores do not depend on the layer.
        """
        targets = self._checked_for_gradients(targets)
        layout = self.layout(layer)
        key = (layer, targets.is_floating_point(), tuple(targets.shape), tuple(targets.flatten().tolist()))
        if key not in self._gradients:
            (found,) = self._differentiate([self._captured(layer)], targets, layer)
            self._gradients[key] = layout.to_maps(layout.batch_first(found))
        return self._gradients[key]

    def input_gradients(self, targets: Tensor) -> Tensor:
        """Return d score / d input, (N, C, H, W), from another pass; ``targets`` and errors as for gradients."""
        targets = self._checked_for_gradients(targets)
        module = self.model.module
        inputs = self.inputs if self.inputs.requires_grad else self.inputs.detach().requires_grad_()
        with evaluating(module), self._running(), torch.enable_grad():
            scores = target_scores(self.model.logits_of(module(inputs.clone())), targets)
        return torch.autograd.grad(scores.sum(), inputs, create_graph=self.create_graph)[0]

    def attention_gradients(self, targets: Tensor) -> list[Tensor]:
        """Return d score / d attention weights, (N, heads, T, T) each; ``targets`` and errors as for gradients."""
        targets = self._checked_for_gradients(targets)
        if not self._attentions:
            raise InvalidInputError("this pass kept no attention; use ForwardPass(..., attentions=True)")
        return self._differentiate(self._attentions, targets, "its attention")

    def attention_gradients_of(self, block_scores: Tensor) -> list[Tensor]:
        """Return the gradient of each of the scores (L,) of L blocks by the attention weights of its own block."""
        pairs = zip(block_scores, self._attentions, strict=True)
        return [
            torch.autograd.grad(score, weights, retain_graph=True, create_graph=self.create_graph)[0]
            for score, weights in pairs
        ]

    def curvature(self, layer: str, targets: Tensor) -> Tensor:
        """Return the change of a layer's gradients along its activations, (d2 score / dA2) A, as maps.

        Arguments and errors as for :meth:`gradients`. Zero where the score is linear in the layer.
        """
        targets = self._checked_for_gradients(targets)
        wanted = self._captured(layer)
        with torch.enable_grad():
            (gradient,) = self._differentiate([wanted], targets, layer, keep_history=True)
            change = None
            if gradient.requires_grad:
                (change,) = torch.autograd.grad(
                    gradient,
                    wanted,
                    self._read(wanted),
                    retain_graph=True,
                    create_graph=self.create_graph,
                    allow_unused=True,
                )
        layout = self.layout(layer)
        return layout.to_maps(layout.batch_first(torch.zeros_like(gradient).detach() if change is None else change))

    def predict(self, inputs: Tensor) -> Tensor:
        """Return logits (B, K) float32 of other inputs, from the quickest way that agrees with the network."""
        return self.predictor(inputs)

    @property
    def predictor(self) -> Predictor:
        """What :meth:`predict` asks. ``predictor.expect(images)`` says how many images will follow."""
        if self._predict is None:
            self._predict = predictor_of(self.model, self.inputs, self.logits)
        return self._predict

    def rerun(self, layer: str, row: int, values: Tensor) -> Tensor:
        """Return the logits (B, K) of one image with a layer's output replaced, B times.

        The layers before the replaced one run for one image where the network allows it (see :meth:`_accepts_rerun`),
        otherwise for B copies of the image. Autograd is off unless ``values`` has a history.

        Args:
            layer: its name.
            row: position of the image in the batch.
            values: (B, ...) outputs of the layer, as the layer gives them but with the batch first; see
                :meth:`Layout.from_maps`.
        """
        if layer not in self._reruns:
            self._reruns[layer] = self._accepts_rerun(layer)
        image = self.inputs[row : row + 1]
        return self._replaced(
            layer, image if self._reruns[layer] else image.expand(len(values), *image.shape[1:]), values
        )

    def _accepts_rerun(self, layer: str) -> bool:
        """Return whether the outputs stay the same with a batch of one before the layer and of two behind it.

        They do not if tensors from before the layer are joined with its output, as inside a dense block.
        """
        values = self.raw_output(layer)[:1].detach()
        try:
            found = self._replaced(layer, self.inputs[:1], torch.cat([values, values]))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # tensors of batch size 1 and 2 do not combine
            return False
        same = self.logits[:1].expand(2, -1)
        return found.shape == same.shape and torch.allclose(found.detach().float(), same, rtol=1e-2, atol=1e-3)

    def _replaced(self, layer: str, images: Tensor, values: Tensor) -> Tensor:
        """Run the network on images with a layer's output replaced at the call whose output was captured."""
        owner, left = threading.get_ident(), self._calls.get(layer, 0) + 1
        new = self.layout(layer).batch_first(values)
        if self.model.needs_gradients:
            new = new if new.requires_grad else new.detach().requires_grad_()

        def hook(_module: nn.Module, _inputs: object, output: object) -> object:
            nonlocal left
            if threading.get_ident() != owner:
                return None
            left -= 1
            if left != 0:
                return None
            torch.set_grad_enabled(new.requires_grad)
            return with_main_tensor(output, new.clone())

        module = self.model.module
        replacing = (module.get_submodule(layer).register_forward_hook(hook),)
        with hooks(replacing), evaluating(module), self._running():
            logits = self.model.logits_of(module(on_device(images, module)))
        return logits if values.requires_grad else logits.detach()

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Run the network without autograd, or for a graph with it and with operations that have second derivatives.

        A part that saves less and runs again in the backward pass would then run in another mode, so it is refused.
        """
        if self.create_graph:
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), disable_saved_tensors_hooks(_RECOMPUTES):
                yield
        else:
            with torch.enable_grad() if self.model.needs_gradients else torch.no_grad():
                yield

    def _checked_for_gradients(self, targets: Tensor) -> Tensor:
        if not self._differentiable:
            raise InvalidInputError("this pass was made without gradients; use ForwardPass(..., gradients=True)")
        return checked_targets(targets, self._scores)

    def _differentiate(
        self, wanted: list[Tensor], targets: Tensor, place: str, keep_history: bool = False
    ) -> list[Tensor]:
        output, seeds = self._seeds(wanted[0], targets)
        with torch.enable_grad():
            score = (output * seeds).sum()  # for gradients of a tensor torch would import its compiler
        problem = as_unsupported(f"{self.model.name} cannot be differentiated; try occlusion, which needs no gradients")
        with problem, SkippingZeros() if self._sparse else nullcontext():
            try:
                history = keep_history or self.create_graph
                return list(torch.autograd.grad(score, wanted, retain_graph=True, create_graph=history))
            except RuntimeError as error:
                if not is_not_differentiable(error):
                    raise
                raise UnsupportedModelError(
                    f"the scores of {self.model.name} do not depend on layer {place!r} in a differentiable way; name "
                    "another layer with layer=, or use occlusion, which needs no gradients"
                ) from error

    def _seeds(self, wanted: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tensors to differentiate, with their gradients.

        Behind a final linear layer the derivative of a logit by the layer's input is a row of its weights. Using the
        row directly saves the product of a one-hot vector with all K rows, a noticeable cost at batch size 1.
        """
        if self._pooled is not None and wanted.dim() > 2:
            return self._pooled, target_rows(self.classifier_weights, targets).to(self._pooled)
        if targets.is_floating_point():
            return self._scores, targets.to(self._scores)
        return self._scores, torch.zeros_like(self._scores).scatter_(1, targets[:, None], 1)

    def _keep_attention(self, weights: Tensor) -> Tensor:
        if self._differentiable:
            torch.set_grad_enabled(True)  # until the surrounding no_grad() block ends
            weights = weights if weights.requires_grad else weights.detach().requires_grad_()
        self._attentions.append(weights)
        return weights

    def _note_other_attention(self) -> None:
        self.other_attention += 1

    def _run(self, layers: list[str]) -> None:
        """Run the network; keep its output, what the layers output, and the calls of linear layers."""
        module = self.model.module
        self._ran_with_gradients = module in NEED_GRADIENTS
        for layer in layers:
            self.model.check_layer(layer)
        self._kept, self._runs, self._attentions, self.other_attention, self._linear_calls = {}, {}, [], 0, []
        watch = AttentionWatch(self._keep_attention, self._note_other_attention) if self._attends else nullcontext()
        note = self._note_linear()
        keeping = (module.get_submodule(layer).register_forward_hook(self._capture(layer)) for layer in layers)
        problem = as_unsupported(
            f"{self.model.name} cannot be run on an input of {tuple(self.inputs.shape)}; give images that it accepts, "
            "one at a time if it takes no more"
        )
        with problem, evaluating(module) as members, hooks(keeping), self._running(), watch:
            kinds = (nn.Linear, *_CONVOLUTIONS) if module in _CONVOLUTIONS_NOTED else nn.Linear
            heads = (m for m in members if isinstance(m, kinds) and _multiplies_vectors(m))
            with hooks(m.register_forward_hook(note) for m in heads):
                self.output = module(self.inputs.clone())  # which it may change in place
        missing = [layer for layer in layers if layer not in self._kept]
        if missing:
            raise UnsupportedModelError(f"layer {missing[0]!r} of {self.model.name} does not run in a forward pass")

    def _capture(self, layer: str) -> Callable[[nn.Module, object, object], object]:
        owner = threading.get_ident()

        def hook(_module: nn.Module, _inputs: object, given: object) -> object:
            if threading.get_ident() != owner:
                return None  # another thread's pass through the same network
            run = self._runs[layer] = self._runs.get(layer, 0) + 1
            if self._calls.get(layer, run - 1) != run - 1:
                return None
            output = main_tensor(given)
            if output is None or not output.is_floating_point():
                got = f"a tensor of {output.dtype}" if output is not None else type(given).__name__
                raise UnsupportedModelError(f"layer {layer!r} gives {got}, not one tensor of floats; choose another")
            if self._differentiable:
                torch.set_grad_enabled(True)  # until the surrounding no_grad() block ends
                output = output if output.requires_grad else output.detach().requires_grad_()
            self._kept[layer] = output
            return with_main_tensor(given, output.clone())  # an in-place operation behind the layer changes the copy

        return hook

    def _linear_layer_of(self, logits: Tensor) -> tuple[_Head | None, Tensor | None]:
        """Return the linear layer that output the logits, and its input if only its weights lie between the two."""
        for module, pooled, output, step in reversed(self._linear_calls):
            if output.flatten(1).shape != logits.shape or not torch.equal(output.flatten(1), logits):
                continue
            # a subclass (cosine, LoRA) or another hook may compute something else than the product with the weights,
            # and the logits may have been changed in place
            plain = type(module).forward is nn.Linear.forward and pooled.requires_grad
            same = output is logits and logits.grad_fn is step
            simple = plain and same and type(step).__name__ in ("AddmmBackward0", "MmBackward0")
            return module, pooled if simple else None
        return None, None

    def _note_linear(self) -> Callable[[_Head, tuple[Tensor, ...], Tensor], None]:
        owner = threading.get_ident()

        def hook(module: _Head, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if threading.get_ident() == owner and inputs[0].dim() > 1 and inputs[0][0].numel() == inputs[0].shape[1]:
                self._linear_calls.append((module, inputs[0], output, output.grad_fn))

        return hook


def _recomputes(scores: Tensor) -> bool:
    """Return whether a part of the network runs again in the backward pass (checkpointing with use_reentrant=True)."""
    waiting, seen = [scores.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            if type(node).__name__ == "CheckpointFunctionBackward":
                return True
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    return False


def _multiplies_vectors(module: nn.Module) -> bool:
    """Return whether a module is a linear layer or a 1x1 convolution, either of which can be a network's head."""
    return isinstance(module, nn.Linear) or (isinstance(module, _CONVOLUTIONS) and set(module.kernel_size) == {1})
