"""Export of models to ONNX, checked against PyTorch."""

from __future__ import annotations

import copy
import io
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from xai_abn import __version__
from xai_abn.errors import InvalidInputError, UnsupportedModelError
from xai_abn.files import replacing
from xai_abn.models.adapter import ModelAdapter

#: ONNX operator set written.
OPSET = 17
#: Outputs must agree with PyTorch up to this share of each output's largest value (at least 1).
TOLERANCE = 1e-4
#: The same for a file that computes in half precision; on images the outputs of abn-lite0 agree up to 4e-3.
HALF_TOLERANCE = 5e-2
_ADAPTIVE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
#: Name of the input, (N, 3, H, W), normalized as the metadata's ``preprocess`` says.
INPUT = "images"


@dataclass(frozen=True)
class OnnxExport:
    """The record of an export.

    Attributes:
        path: the file.
        outputs: names of the outputs: logits (N, K); for an ABN also attention_map (N, 1, h, w), or (N, K, h, w) if it
            is multi-task, and class_maps (N, K, h, w).
        any_size: whether H and W are free; otherwise they are the model's own.
        differences: largest absolute difference from PyTorch by output.
        fixed_because: why H and W are not free.
    """

    path: Path
    outputs: tuple[str, ...]
    any_size: bool
    differences: dict[str, float]
    fixed_because: str = ""


def export_onnx(model: ModelAdapter, path: str | Path, half: bool = False) -> OnnxExport:
    """Write a model as one ONNX file, whole or not at all, for any batch size and, where possible, any input size.

    The file is run in onnxruntime on noise of several batch and input sizes and compared with PyTorch before it is
    kept. Labels, preprocessing, name and version are in its metadata (``preprocess``, ``labels`` and ``multi_label``,
    whether probabilities are sigmoids, are JSON).

    Args:
        model: from :func:`xai_abn.load_model` or :func:`xai_abn.wrap`; it is not changed.
        path: a ``.onnx`` file.
        half: weights and computation in float16, which halves the file; input and outputs stay float32. The outputs
            must agree with those in float32 up to ``HALF_TOLERANCE``.

    Raises:
        InvalidInputError: the path does not end in .onnx, or a package is missing.
        UnsupportedModelError: the network cannot be exported, or the file's outputs differ from PyTorch's.
        OutputError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise InvalidInputError(f"{path}: the file must end in .onnx")
    _require_packages()
    network, (height, width) = _Outputs(model, half), (model.example.shape[2], model.example.shape[3])
    why_fixed = _why_fixed(network, (height, width))
    with replacing(path) as draft:
        if not why_fixed:
            try:
                differences = _write(
                    network, model, draft, [(height, width), (height + 32, width), (height, width + 64)]
                )
                return OnnxExport(path, network.names, True, differences)
            except UnsupportedModelError as error:
                why_fixed = f"with other sizes, {error.line}"
        differences = _write(network, model, draft, [(height, width)])
        return OnnxExport(path, network.names, False, differences, why_fixed)


class _Outputs(nn.Module):
    """A copy of a model's network that returns plain tensors, named by ``names``.

    With ``half`` it computes in float16 and still takes and gives float32.
    """

    def __init__(self, model: ModelAdapter, half: bool) -> None:
        super().__init__()
        self.network = copy.deepcopy(model.module).cpu()
        self.dtype = torch.float16 if half else torch.float32
        if half:
            self.network.half()
        self.logits_of = model.logits_of
        self.channels = model.example.shape[1]
        self.names = ("logits", "attention_map", "class_maps") if model.is_abn else ("logits",)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        answer = self.network(images.to(self.dtype))
        found = (self.logits_of(answer), *(getattr(answer, name) for name in self.names[1:]))
        return tuple(output.float() for output in found)


def _why_fixed(network: _Outputs, size: tuple[int, int]) -> str:
    """Return why the network or ONNX requires inputs of that size (H, W); an empty text if other sizes work."""
    for name, module in network.network.named_modules():
        pooled = module.output_size if isinstance(module, _ADAPTIVE) else 1
        if any(side != 1 for side in (pooled if isinstance(pooled, tuple) else (pooled,))):
            return f"{name} pools adaptively to {pooled}, which ONNX supports only for one input size"
    try:
        network(_noise(1, (size[0] + 32, size[1]), network.channels))
    except (RuntimeError, ValueError, AssertionError) as error:
        return f"the network does not accept other sizes: {str(error).strip().splitlines()[0]}"
    return ""


def _write(network: _Outputs, model: ModelAdapter, path: Path, sizes: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Write the file and return the largest differences from PyTorch; with one size, H and W are fixed.

    Raises:
        UnsupportedModelError: the network cannot be exported, or the file's outputs differ.
    """
    try:
        content = _exported(network, _metadata(model), sizes)
    except Exception as error:  # the exporter raises errors of many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedModelError(f"{model.name} cannot be exported to ONNX: {reason}") from error
    differences = _differences(network, content, sizes, model)
    path.write_bytes(content)
    return differences


def _exported(network: _Outputs, metadata: dict[str, str], sizes: Sequence[tuple[int, int]]) -> bytes:
    import onnx

    free = {0: "batch", 2: "height", 3: "width"} if len(sizes) > 1 else {0: "batch"}
    maps = {0: "batch", 2: "map_height", 3: "map_width"} if len(sizes) > 1 else {0: "batch"}
    axes = {INPUT: free, "logits": {0: "batch"}, **dict.fromkeys(network.names[1:], maps)}
    buffer = io.BytesIO()
    with warnings.catch_warnings(), _without_fast_attention():
        warnings.simplefilter("ignore")  # the comparison below finds what tracing warns about
        torch.onnx.export(
            network,
            (_noise(2, sizes[0], network.channels),),
            buffer,  # type: ignore[arg-type]
            input_names=[INPUT],
            output_names=list(network.names),
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,  # the newer exporter takes minutes with free heights and widths
        )
    made = onnx.load_model_from_string(buffer.getvalue())
    onnx.helper.set_model_props(made, metadata)
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


def _metadata(model: ModelAdapter) -> dict[str, str]:
    """Return the file's metadata."""
    return {
        "xai-abn": __version__,
        "model": model.name,
        "weights": Path(model.weights).name,
        "preprocess": json.dumps(model.preprocess.to_dict()),
        "labels": json.dumps(model.labels),
        "multi_label": json.dumps(model.multi_label),
    }


@torch.no_grad()
def _differences(
    network: _Outputs, content: bytes, sizes: Sequence[tuple[int, int]], model: ModelAdapter
) -> dict[str, float]:
    """Return the largest absolute difference between the file and the network in float32 by output.

    Raises:
        UnsupportedModelError: one is above the tolerance, or the file does not run.
    """
    import onnxruntime

    name, half = model.name, network.dtype == torch.float16
    reference = _Outputs(model, half=False) if half else network
    tolerance = HALF_TOLERANCE if half else TOLERANCE
    largest = dict.fromkeys(network.names, 0.0)
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised anyway
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        for batch, size in [(3, sizes[0]), *((1, size) for size in sizes)]:
            images = _noise(batch, size, network.channels)
            answers = session.run(None, {INPUT: images.numpy()})
            for output, got, expected in zip(network.names, answers, reference(images), strict=True):
                difference = _difference(got, expected)
                if not difference <= tolerance * max(1.0, float(expected.abs().max())):
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


def _difference(got: np.ndarray, expected: Tensor) -> float:
    return float((torch.from_numpy(got) - expected).abs().max()) if got.shape == expected.shape else math.nan


def _noise(batch: int, size: tuple[int, int], channels: int) -> Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(0))


def _require_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise InvalidInputError(f"writing .onnx needs {error.name}: pip install 'xai-abn[onnx]'") from error
