"""A network in an ONNX file, run by onnxruntime: a black box that gives scores and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xai_abn.errors import CheckpointError, InvalidInputError, UnsupportedModelError, shown
from xai_abn.files import digest
from xai_abn.networks.tracing import as_unsupported

#: Numbers of channels by which an input (N, H, W, C) is told from (N, C, H, W).
_CHANNELS = (1, 3, 4)
#: Types of an input, by onnxruntime's names; those of scores are without the last.
_DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(uint8)": torch.uint8,
}
#: What onnxruntime calls its part for CUDA.
_CUDA = "CUDAExecutionProvider"


class OnnxNetwork(nn.Module):
    """The network in an ONNX file: images (N, C, H, W) to class scores, without layers, weights or gradients.

    Images become what the file takes: (N, H, W, C), half or double precision, or pixels. Where its batch size is fixed,
    batches are run in parts. It runs in several threads at once, and its copies share what is loaded. Its only buffer
    is the digest of the file, so that its fingerprint depends on the file's bytes. On CUDA it needs onnxruntime-gpu.

    Args:
        path: the file; other files that hold its weights lie beside it.

    Attributes:
        name: of the file.
        shape: (C, H, W) of the input; H and W are None where they are free.
        pixels: the mean and standard deviation, per channel, by which the images given are normalized, if the file
            takes pixels from 0 to 255, else None.
        metadata: what the program that wrote the file noted in it.
        maps: for each method whose maps the file outputs, the name of the output and the layer.

    Raises:
        CheckpointError: the file is missing or damaged, or onnxruntime cannot run it.
        InvalidInputError: onnx or onnxruntime is not installed.
        UnsupportedModelError: it takes something else than images, or gives no class scores.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        require_onnx("an ONNX file")
        self.name = Path(path).name
        content = bytes.fromhex(_digest(Path(path)))
        self.content: Tensor
        self.register_buffer("content", torch.tensor(list(content), dtype=torch.uint8))
        self._session = _Session(str(path), "cpu")
        self.metadata: dict[str, str] = dict(self._session.run.get_modelmeta().custom_metadata_map)
        self.maps: dict[str, tuple[str, str]] = {}
        self.pixels: tuple[Sequence[float], Sequence[float]] | None = None
        self._input, self._dtype, self._batch, self.shape, self._channels_last = self._read_input()
        self._scores = self._output_with_scores()

    @property
    def takes_pixels(self) -> bool:
        """Whether the input is uint8."""
        return self._dtype == torch.uint8

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores, (N, K), or (N, K, h, w) of a network for segmentation."""
        return self._output(self._scores, images)

    def maps_of(self, method: str, images: Tensor) -> Tensor:
        """Return the maps that the file outputs for a method of ``maps``, (N, 1, h, w) or (N, K, h, w)."""
        return self._output(self.maps[method][0], images)

    def has_map_per_class(self, method: str) -> bool:
        """Return whether the file outputs maps of a method, one for each class."""
        shapes = {o.name: o.shape for o in self._session.run.get_outputs()}
        return method in self.maps and shapes[self.maps[method][0]][1] != 1

    def _output(self, output: str, images: Tensor) -> Tensor:
        given = self._as_given(images.detach())
        batch = self._batch or len(given)
        found = [self._run(output, part, batch) for part in given.split(batch)]
        return torch.cat(found).to(images.device)

    def _run(self, output: str, part: Tensor, batch: int) -> Tensor:
        """Return an output for at most ``batch`` images, repeating the last where there are fewer."""
        last = part[-1:].expand(batch - len(part), -1, -1, -1)
        images = torch.cat([part, last]) if len(last) else part
        size = "x".join(map(str, part.shape[1:]))
        with as_unsupported(
            f"{self.name} cannot be run on an input of {size}; give the size it was made for, as --size or "
            "load_model(..., size=...)"
        ):
            values = torch.from_numpy(self._session(output, {self._input: images.numpy()})).float()
        values = values.flatten(1) if values.dim() == 4 and values[0, 0].numel() == 1 else values
        if values.dim() < 2 or len(values) != batch:
            raise UnsupportedModelError(
                f"{self.name} must output one row for each image, got {tuple(values.shape)} for {batch} images; export "
                "it again with logits (N, K)"
            )
        return values[: len(part)]

    def _as_given(self, images: Tensor) -> Tensor:
        """Return images (N, C, H, W) as the file takes them.

        Raises:
            UnsupportedModelError: they have another size than the file's.
        """
        wanted = zip(self.shape, images.shape[1:], strict=True)
        if any(own is not None and own != side for own, side in wanted):
            own = "x".join("any" if side is None else str(side) for side in self.shape)
            raise UnsupportedModelError(
                f"{self.name} takes inputs of {own} (channels, height, width) only, got "
                f"{'x'.join(map(str, images.shape[1:]))}; leave --size out, or export it again for other sizes"
            )
        if self.pixels is not None:
            mean, std = (torch.tensor(values).view(-1, 1, 1).to(images) for values in self.pixels)
            images = ((images * std + mean) * 255).round().clamp(0, 255)
        if self._channels_last:
            images = images.permute(0, 2, 3, 1)
        return images.cpu().to(self._dtype).contiguous()

    def _read_input(self) -> tuple[str, torch.dtype, int | None, tuple[int, int | None, int | None], bool]:
        """Return the input's name, type, batch size or None, shape (C, H, W), and whether the channels are last."""
        inputs = self._session.run.get_inputs()
        found = ", ".join(f"{i.name} {i.type.removeprefix('tensor')} {shown(str(i.shape))}" for i in inputs)
        if len(inputs) != 1 or inputs[0].type not in _DTYPES or len(inputs[0].shape) != 4:
            raise UnsupportedModelError(
                f"{self.name} must have one input of images, (N, C, H, W) or (N, H, W, C) of floats or uint8, got "
                f"{found or 'none'}; change the network so that it takes only images, and export it again"
            )
        batch, *sides = (side if isinstance(side, int) and side > 0 else None for side in inputs[0].shape)
        last = sides[2] in _CHANNELS and sides[0] not in _CHANNELS
        channels, height, width = (sides[2], sides[0], sides[1]) if last else sides
        return inputs[0].name, _DTYPES[inputs[0].type], batch, (channels or 3, height, width), last

    def _output_with_scores(self) -> str:
        """Return the name of the output with class scores: ``logits``, or the only one that can have them."""
        outputs = self._session.run.get_outputs()
        floats = [o for o in outputs if o.type in _DTYPES and _DTYPES[o.type].is_floating_point]
        named = [o for o in floats if o.name == "logits"]
        rows = [o for o in floats if len(o.shape or ()) == 2]
        chosen = named or rows or [o for o in floats if len(o.shape or ()) in (0, 4)]
        if len(chosen) != 1:
            found = ", ".join(f"{o.name} {o.type.removeprefix('tensor')} {shown(str(o.shape))}" for o in outputs)
            raise UnsupportedModelError(
                f"{self.name} must have one output of class scores (N, K), or one called logits, got "
                f"{shown(found, 200)}; keep that one with onnx.utils.extract_model(FILE, NEW, [INPUT], [OUTPUT])"
            )
        name: str = chosen[0].name
        return name

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OnnxNetwork:
        """Also move the session to another device."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if str(self.content.device) != self._session.device:
            self._session = _Session(self._session.path, str(self.content.device))
        return self


class _Session:
    """A session of onnxruntime on a device. Copies are the session itself; a pickle opens the file again."""

    def __init__(self, path: str, device: str) -> None:
        self.path, self.device = path, device
        import onnxruntime

        kind, _, number = device.partition(":")
        if kind not in ("cpu", "cuda"):
            raise InvalidInputError(f"{Path(path).name} runs on the devices cpu and cuda, not {device}; choose one")
        providers: list[Any] = ["CPUExecutionProvider"]
        if kind == "cuda" and _CUDA in onnxruntime.get_available_providers():
            providers.insert(0, (_CUDA, {"device_id": int(number or 0)}))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # errors are raised anyway
        try:
            self.run = onnxruntime.InferenceSession(path, options, providers=providers)
        except Exception as error:  # onnxruntime's errors have no common base
            raise CheckpointError(
                f"{path} cannot be run by onnxruntime ({shown(str(error), 200)}); give a whole ONNX file, with the "
                "files that hold its weights beside it"
            ) from error
        if kind == "cuda" and _CUDA not in self.run.get_providers():
            raise InvalidInputError(
                f"{Path(path).name} cannot run on {device}, as onnxruntime finds no CUDA; install onnxruntime-gpu, or "
                "use the device cpu"
            )

    def __call__(self, output: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Return one output."""
        found: np.ndarray = self.run.run([output], inputs)[0]
        return found

    def __deepcopy__(self, memo: object) -> _Session:
        return self

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return _Session, (self.path, self.device)


def _digest(path: Path) -> str:
    """Return the digest of a file and of the files beside it that hold its weights.

    Raises:
        CheckpointError: a file is missing, or it is not an ONNX file.
    """
    import onnx

    try:
        content = path.read_bytes()
        graph = onnx.load_model_from_string(content).graph
    except OSError as error:
        raise CheckpointError(f"{path}: expected an ONNX file ({error.strerror or error})") from error
    except Exception as error:  # of protobuf, which has several kinds
        raise CheckpointError(f"{path}: expected an ONNX file, got something else or a part of one") from error
    beside = sorted({entry.value for t in _tensors(graph) for entry in t.external_data if entry.key == "location"})
    try:
        return digest(content, *((path.parent / name).read_bytes() for name in beside))
    except OSError as error:
        raise CheckpointError(
            f"{path} keeps weights in {', '.join(beside)}, which cannot be read ({error.strerror or error}); give all "
            "files, side by side"
        ) from error


def _tensors(graph: Any) -> Iterator[Any]:
    """Yield every tensor that a graph holds, also in the branches inside it."""
    yield from graph.initializer
    for attribute in (a for node in graph.node for a in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            if inner.node:
                yield from _tensors(inner)


def require_onnx(what: str) -> None:
    """Refuse work that needs onnx and onnxruntime if one is not installed.

    Raises:
        InvalidInputError: it is not.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise InvalidInputError(f"{what} needs {error.name}: pip install 'xai-abn[onnx]'") from error
