"""Models as ONNX files with their maps, checked against PyTorch."""

from __future__ import annotations

import copy
import io
import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from xai_abn import __version__
from xai_abn.errors import InvalidInputError, UnsupportedModelError, shown
from xai_abn.explainers import CAM, Explainer, ReciproCAM, make_explainers, parse_spec, run_pass
from xai_abn.explainers.cam import Head
from xai_abn.explainers.recipro_cam import single_positions
from xai_abn.files import replacing
from xai_abn.models.adapter import ModelAdapter
from xai_abn.networks.onnx import require_onnx
from xai_abn.networks.tracing import as_unsupported, copied, hooks, main_tensor, with_main_tensor

#: ONNX operator set written.
OPSET = 17
#: Outputs must agree with PyTorch up to this share of each output's largest value, of logits and ABN's maps at least 1.
TOLERANCE = 1e-4
#: The same for a file that computes in half precision; on images the outputs of abn-lite0 agree up to 4e-3.
HALF_TOLERANCE = 5e-2
_ADAPTIVE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
#: Name of the input, (N, 3, H, W), normalized as the metadata's ``preprocess`` says.
INPUT = "images"
#: The method that stands for no maps.
NONE = "none"


@dataclass(frozen=True)
class OnnxExport:
    """The record of an export.

    Attributes:
        path: the file.
        outputs: names of the outputs: logits (N, K) and, with maps, class_maps (N, K, h, w); for an ABN also
            attention_map (N, 1, h, w), or (N, K, h, w) if it is multi-task.
        maps: for each method whose maps are outputs, the name of the output and the layer.
        any_size: whether H and W are free; otherwise they are the model's own.
        differences: largest absolute difference from PyTorch by output.
        fixed_because: why H and W are not free.
        no_maps_because: why CAM does not apply, if no method was named.
    """

    path: Path
    outputs: tuple[str, ...]
    maps: dict[str, tuple[str, str]]
    any_size: bool
    differences: dict[str, float]
    fixed_because: str = ""
    no_maps_because: str = ""


def export_onnx(
    model: ModelAdapter, path: str | Path, half: bool = False, method: str | Explainer | None = None
) -> OnnxExport:
    """Write a model as one ONNX file, whole or not at all, for any batch size and, where possible, any input size.

    The file is run in onnxruntime on noise of several batch and input sizes, and its logits and maps are compared with
    the network's and the method's before it is kept. Labels, preprocessing, name and version are in its metadata
    (``preprocess``, ``labels``, ``maps`` and ``multi_label``, whether probabilities are sigmoids, are JSON), so
    ``xai_abn.load_model("onnx:FILE")`` needs nothing else.

    Args:
        model: from :func:`xai_abn.load_model` or :func:`xai_abn.wrap`; it is not changed.
        path: a ``.onnx`` file.
        half: weights and computation in float16, which halves the file; input and outputs stay float32. The outputs
            must agree with those in float32 up to ``HALF_TOLERANCE``.
        method: whose maps of all classes the file outputs: ``"cam"``, ``"recipro-cam"``, one of them with a layer
            (``"recipro-cam:layer=layer3"``), or ``"none"``. Default: the own maps of an ABN, of other networks those of
            CAM if it applies.

    Raises:
        InvalidInputError: the path does not end in .onnx, a package is missing, or another method.
        UnsupportedModelError: the network cannot be exported, the method does not apply to it, or the file's outputs
            differ from PyTorch's.
        OutputError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise InvalidInputError(f"{path}: the file must end in .onnx")
    require_onnx("writing .onnx")
    if model.black_box:
        raise UnsupportedModelError(f"{model.name} is an ONNX file already; give the network that it was made from")
    if model.axes != 2:
        raise UnsupportedModelError(
            f"{model.name} takes volumes or clips, and only networks for images can be exported; use torch.onnx.export"
        )
    size = (model.example.shape[2], model.example.shape[3])
    own = replace(model, module=copied(model.module).cpu().eval().requires_grad_(False))
    network, no_maps = _chosen(own, method)
    written = network.in_half() if half else network
    sizes = [size, (size[0] + 32, size[1]), (size[0], size[1] + 64)]
    why_fixed = _why_fixed(network, sizes[1])
    with replacing(path) as draft:
        if not why_fixed:
            try:
                differences = _write(written, network, draft, sizes)
                return OnnxExport(path, network.names, network.maps, True, differences, "", no_maps)
            except UnsupportedModelError as error:
                why_fixed = f"with other sizes, {error.line}"
        differences = _write(_with_windows(written, size), network, draft, sizes[:1])
        return OnnxExport(path, network.names, network.maps, False, differences, why_fixed, no_maps)


def _chosen(model: ModelAdapter, method: str | Explainer | None) -> tuple[_Outputs, str]:
    """Return the network with the outputs asked for, and why it has no maps although a method might have been."""
    if method == NONE or (method is None and model.is_abn):
        return _Outputs(model, own_maps=method is None), ""
    explainer = CAM() if method is None else parse_spec(method) if isinstance(method, str) else method
    if not isinstance(explainer, CAM | ReciproCAM):
        raise InvalidInputError(
            f"an ONNX file outputs the maps of cam or recipro-cam, which need no gradients, not of {explainer.spec}; "
            "give one of these, or none"
        )
    if model.is_abn:
        raise InvalidInputError(
            f"{model.name} outputs the maps of its attention branch; leave {explainer.spec} out, or give none for the "
            "logits alone"
        )
    try:
        return _WithClassMaps(model, explainer), ""
    except UnsupportedModelError as error:
        if method is not None:
            raise
        return _Outputs(model), error.line


class _Outputs(nn.Module):
    """A model's network that returns plain tensors, named by ``names``. It takes and gives float32.

    Attributes:
        dtype: in which it computes.
        methods: whose maps of all classes it computes from a layer.
        maps: see :class:`OnnxExport`.
    """

    def __init__(self, model: ModelAdapter, own_maps: bool = False) -> None:
        super().__init__()
        self.model, self.network, self.dtype = model, model.module, torch.float32
        self.names: tuple[str, ...] = ("logits",)
        self.methods: list[Explainer] = []
        self.maps: dict[str, tuple[str, str]] = {}
        if own_maps:
            self.names = ("logits", "attention_map", "class_maps")
            self.maps = {"abn": ("attention_map", "attention_branch")} if model.uses_attention_map else {}
            self.maps |= {"abn-class": ("class_maps", "attention_branch")}

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        answer = self.network(images.to(self.dtype))
        found = (self.model.logits_of(answer), *(getattr(answer, name) for name in self.names[1:]))
        return tuple(output.float() for output in found)

    def in_half(self) -> _Outputs:
        """Return a copy that computes in float16."""
        made = copy.deepcopy(self).half()
        made.dtype = torch.float16
        return made


class _WithClassMaps(_Outputs):
    """The network with the maps of all classes of a method that reads a layer.

    Raises:
        UnsupportedModelError: the method does not apply.
    """

    def __init__(self, model: ModelAdapter, explainer: CAM | ReciproCAM) -> None:
        super().__init__(model)
        make_explainers(model, explainer)
        images = _noise(2, (model.example.shape[2], model.example.shape[3]), model.channels)
        shared = run_pass(model, images, [explainer])
        self.layer = explainer.layer_of(model)
        self.layout = shared.layout(self.layer)
        self.call = model.output_of(self.layer, (images.shape[2], images.shape[3])).call
        self.head = explainer.head(shared) if isinstance(explainer, CAM) else None
        self.methods, self.names = [explainer], ("logits", "class_maps")
        self.maps = {explainer.name: ("class_maps", self.layer)}
        with as_unsupported(
            f"the part of {model.name} behind {self.layer!r} cannot run on several versions of the layer's output; "
            "name another layer, or give none"
        ):
            self(images)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        images = images.to(self.dtype)
        answer, output = self._run(images)
        output = self.layout.batch_first(output)
        maps = self._recipro_cam(images, output) if self.head is None else self._cam(output, self.head)
        return self.model.logits_of(answer).float(), maps

    def _cam(self, output: Tensor, head: Head) -> Tensor:
        pooled = head.pooled(self.layout.to_maps(output))
        if head.classifier is None:
            return pooled.float()
        weights = head.classifier.weight.flatten(1)  # as the head has them, so that the file holds them once
        maps: Tensor = weights @ pooled.flatten(2)
        return maps.reshape(-1, len(weights), *pooled.shape[2:]).float()

    def _recipro_cam(self, images: Tensor, output: Tensor) -> Tensor:
        features = self.layout.to_maps(output)
        height, width = features.shape[2:]
        alone = (features[:, None] * single_positions(height, width).to(features)).flatten(0, 1)
        like = output[:, None].expand(output.shape[0], height * width, *output.shape[1:]).flatten(0, 1)
        answer, _ = self._run(images, self.layout.batch_first(self.layout.from_maps(alone, like)))
        logits = self.model.logits_of(answer).float()
        scores = self.model.probabilities(logits) if self.model.has_probabilities else logits
        maps = scores.reshape(-1, height * width, scores.shape[1]).transpose(1, 2)
        return maps.reshape(-1, scores.shape[1], height, width)

    def _run(self, images: Tensor, instead: Tensor | None = None) -> tuple[object, Tensor]:
        """Return the network's output and that of the layer, which is replaced if another is given."""
        outputs: list[Tensor] = []

        def hook(_module: nn.Module, _inputs: object, given: object) -> object:
            output = main_tensor(given)
            assert output is not None  # a pass has captured it
            outputs.append(output)
            if len(outputs) - 1 != self.call:
                return None
            return with_main_tensor(given, (output if instead is None else instead).clone())

        with hooks(h for h in [self.network.get_submodule(self.layer).register_forward_hook(hook)]):
            answer = self.network(images)
        return answer, outputs[self.call]


def _why_fixed(network: _Outputs, other: tuple[int, int]) -> str:
    """Return why the network or ONNX requires inputs of one size; an empty text if those of another (H, W) work."""
    for name, module in network.network.named_modules():
        pooled = module.output_size if isinstance(module, _ADAPTIVE) else 1
        if any(side != 1 for side in (pooled if isinstance(pooled, tuple) else (pooled,))):
            return f"{name} pools adaptively to {pooled}, which ONNX supports only for one input size"
    try:
        network(_noise(1, other, network.model.channels))
    except (RuntimeError, ValueError, AssertionError) as error:
        return f"the network does not accept other sizes: {str(error).strip().splitlines()[0]}"
    return ""


def _with_windows(network: _Outputs, size: tuple[int, int]) -> _Outputs:
    """Return a copy in which each pooling to a number of positions has the window that gives it for inputs of a size.

    Where no window does, the pooling stays. The exporter looks for these windows itself, but only where it knows the
    size of the pooling's input, not behind masked features.
    """
    made, sides = copy.deepcopy(network), {}
    poolings = {name: m for name, m in made.network.named_modules() if isinstance(m, _ADAPTIVE)}

    def note(name: str) -> Callable[..., None]:
        return lambda _module, inputs: sides.update({name: inputs[0].shape[2:]})

    with hooks(m.register_forward_pre_hook(note(name)) for name, m in poolings.items()):
        made(_noise(1, size, made.model.channels))
    for name, given in sides.items():
        pooled = poolings[name].output_size
        rows, columns = pooled if isinstance(pooled, tuple) else (pooled, pooled)
        rows, columns = rows or given[0], columns or given[1]
        if given[0] % rows == given[1] % columns == 0:
            window = (given[0] // rows, given[1] // columns)
            kind = nn.AvgPool2d if isinstance(poolings[name], nn.AdaptiveAvgPool2d) else nn.MaxPool2d
            parent, _, child = name.rpartition(".")
            setattr(made.network.get_submodule(parent), child, kind(window))
    return made


def _write(network: _Outputs, reference: _Outputs, path: Path, sizes: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Write the file and return the largest differences from PyTorch; with one size, H and W are fixed.

    Args:
        network: what is written.
        reference: the same in float32.
        path: the file.
        sizes: (H, W) of the inputs on which they are compared.

    Raises:
        UnsupportedModelError: the network cannot be exported, or the file's outputs differ.
    """
    name = network.model.name
    try:
        content = _exported(network, sizes)
    except Exception as error:  # the exporter raises errors of many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedModelError(f"{name} cannot be exported to ONNX: {shown(reason, 200)}") from error
    differences = _differences(reference, content, sizes, network.dtype == torch.float16)
    path.write_bytes(content)
    return differences


def _exported(network: _Outputs, sizes: Sequence[tuple[int, int]]) -> bytes:
    import onnx

    free = {0: "batch", 2: "height", 3: "width"} if len(sizes) > 1 else {0: "batch"}
    maps = {0: "batch", 2: "map_height", 3: "map_width"} if len(sizes) > 1 else {0: "batch"}
    axes = {INPUT: free, "logits": {0: "batch"}, **dict.fromkeys(network.names[1:], maps)}
    buffer = io.BytesIO()
    with warnings.catch_warnings(), _without_fast_attention():
        warnings.simplefilter("ignore")  # the comparison below finds what tracing warns about
        torch.onnx.export(
            network,
            (_noise(2, sizes[0], network.model.channels),),
            buffer,  # type: ignore[arg-type]
            input_names=[INPUT],
            output_names=list(network.names),
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,  # the newer exporter takes minutes with free heights and widths
        )
    made = onnx.load_model_from_string(buffer.getvalue())
    onnx.helper.set_model_props(made, _metadata(network))
    made.producer_name, made.producer_version = "xai-abn", __version__
    result: bytes = made.SerializeToString()
    return result


@contextmanager
def _without_fast_attention() -> Iterator[None]:
    """Let ``nn.MultiheadAttention`` compute with operations that ONNX has."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _metadata(network: _Outputs) -> dict[str, str]:
    """Return the file's metadata."""
    model = network.model
    return {
        "xai-abn": __version__,
        "model": model.name,
        "weights": Path(model.weights).name,
        "preprocess": json.dumps(model.preprocess.to_dict()),
        "labels": json.dumps(model.labels),
        "multi_label": json.dumps(model.multi_label),
        "maps": json.dumps(network.maps),
    }


def _differences(reference: _Outputs, content: bytes, sizes: Sequence[tuple[int, int]], half: bool) -> dict[str, float]:
    """Return the largest absolute difference between the file and the model in float32 by output.

    Raises:
        UnsupportedModelError: one is above the tolerance, or the file does not run.
    """
    import onnxruntime

    name, tolerance = reference.model.name, HALF_TOLERANCE if half else TOLERANCE
    largest = dict.fromkeys(reference.names, 0.0)
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised anyway
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        for batch, size in [(3, sizes[0]), *((1, size) for size in sizes)]:
            images = _noise(batch, size, reference.model.channels)
            found = dict(zip(reference.names, session.run(None, {INPUT: images.numpy()}), strict=True))
            for output, got, expected, least in _compared(reference, images, found):
                difference = _difference(got, expected)
                if not difference <= tolerance * max(least, float(expected.abs().max())):
                    raise UnsupportedModelError(
                        f"{name}: the exported file's {output} differ from PyTorch's by {difference:.2g} at "
                        f"{size[0]}x{size[1]}{'; export it without half precision' if half else ''}"
                    )
                largest[output] = max(largest[output], difference)
    except UnsupportedModelError:
        raise
    except Exception as error:  # onnxruntime's errors have no common base
        reason = str(error).strip().splitlines()[0]
        raise UnsupportedModelError(f"{name}: the exported file does not run in onnxruntime: {reason}") from error
    return largest


def _compared(
    reference: _Outputs, images: Tensor, found: dict[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray, Tensor, float]]:
    """Yield the name of each output, what the file gives, what it must give, and what counts as its least size.

    Of the maps of a method, a random mixture of all classes is compared with what the method gives for that direction.
    """
    shared = run_pass(reference.model, images, reference.methods)
    yield "logits", found["logits"], shared.logits, 1.0
    for name in reference.names[1:]:
        if not reference.methods:
            yield name, found[name], getattr(shared, name), 1.0
    for explainer in reference.methods:
        mixture = torch.randn(shared.logits.shape, generator=torch.Generator().manual_seed(1))
        mixed = np.einsum("nk,nkhw->nhw", mixture.numpy(), found["class_maps"])
        yield "class_maps", mixed, explainer.explain(shared, mixture), 0.0


def _difference(got: np.ndarray, expected: Tensor) -> float:
    return float((torch.from_numpy(got) - expected).abs().max()) if got.shape == expected.shape else math.nan


def _noise(batch: int, size: tuple[int, int], channels: int) -> Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(0))
