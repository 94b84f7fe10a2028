"""Ways to compute a network's logits behind one interface: the network itself, a folded copy, graphs and runtimes."""

from __future__ import annotations

import io
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from xai_abn.errors import InvalidInputError, UnknownNameError
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.folding import FastPredictor
from xai_abn.networks.tracing import evaluating, on_device, without_gradients

#: Inputs (N, C, H, W) to logits (N, K) float32, on the device of the inputs.
Call: TypeAlias = Callable[[Tensor], Tensor]
#: Version of ONNX's operations.
_OPSET = 17


@dataclass(frozen=True)
class Backend:
    """A way to compute a network's logits.

    Attributes:
        name: for ``--backend``.
        build: makes the call for a model, in bfloat16 or not, and inputs (N, C, H, W) of the run.
        seconds: that building and checking it usually takes.
        devices: types of device on which it runs.
        packages: that must be installed.
        programs: that must be installed.
        bf16: whether it also computes in bfloat16.
        any_size: whether what was built for inputs of one height and width takes others.
    """

    name: str
    build: Callable[[ModelAdapter, bool, Tensor], Call]
    seconds: float = 0.0
    devices: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    bf16: bool = False
    any_size: bool = False

    def missing(self, device: str) -> str:
        """Return what keeps it from running on a type of device; empty if nothing does."""
        if self.devices and device not in self.devices:
            return f"it does not run on {device}"
        absent = [package for package in self.packages if find_spec(package) is None]
        absent += [program for program in self.programs if shutil.which(program) is None]
        return f"install {' and '.join(absent)}" if absent else ""


def _network(model: ModelAdapter, _bf16: bool, _inputs: Tensor) -> Call:
    module = model.module
    whole = module.as_classifier() if model.is_abn else module  # type: ignore[operator]

    def call(inputs: Tensor) -> Tensor:
        given = on_device(inputs, module).contiguous(memory_format=model.memory_format)
        with evaluating(module), without_gradients(module):
            return model.logits_of(whole(given)).detach().float().to(inputs.device)

    return call


def _folded(model: ModelAdapter, bf16: bool, inputs: Tensor) -> Call:
    return FastPredictor(model, bf16=bf16, probe=inputs[:2])


class _Logits(nn.Module):
    """A copy of a network that outputs its logits (N, K) alone, to be converted."""

    def __init__(self, model: ModelAdapter, inputs: Tensor) -> None:
        super().__init__()
        self.fast = FastPredictor(model, probe=inputs[:2])
        self.network = self.fast.network
        self.example = self.given(inputs[:1].expand(2, *inputs.shape[1:]))  # a batch of one would be taken as fixed

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fast.logits_of(self.network(inputs)).float()

    def given(self, inputs: Tensor) -> Tensor:
        """Return inputs as the network takes them; it may change them in place."""
        return inputs.detach().to(self.fast.device, self.fast.dtype, copy=True).contiguous()


@contextmanager
def _quietly() -> Iterator[None]:
    """Leave out what converters warn about: wrong logits are found by comparing them."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def _on_arrays(network: _Logits, run: Callable[[np.ndarray], np.ndarray]) -> Call:
    """Return the call of a runtime that takes arrays, which it leaves as they are, and gives others."""

    def call(inputs: Tensor) -> Tensor:
        pixels = inputs.detach().to("cpu", network.fast.dtype).contiguous().numpy()
        return torch.from_numpy(run(pixels)).to(inputs.device)

    return call


def _onnxruntime(model: ModelAdapter, _bf16: bool, inputs: Tensor) -> Call:
    import onnxruntime

    network, buffer = _Logits(model, inputs), io.BytesIO()
    with _quietly(), torch.no_grad():
        torch.onnx.export(
            network,
            (network.example,),
            buffer,  # type: ignore[arg-type]
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=_OPSET,
            dynamo=False,  # the newer exporter takes several times as long
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors are raised anyway
    session = onnxruntime.InferenceSession(buffer.getvalue(), options, providers=["CPUExecutionProvider"])
    return _on_arrays(network, lambda pixels: session.run(None, {"input": pixels})[0])


def _openvino(model: ModelAdapter, _bf16: bool, inputs: Tensor) -> Call:
    import openvino

    network = _Logits(model, inputs)
    with _quietly(), torch.no_grad():
        shape = openvino.PartialShape([-1, *inputs.shape[1:]])
        converted = openvino.convert_model(network, example_input=network.example, input=[shape])
    wanted = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.compile_model(converted, "CPU", wanted)
    return _on_arrays(network, lambda pixels: compiled(pixels)[0].copy())


def _torch_compile(model: ModelAdapter, _bf16: bool, inputs: Tensor) -> Call:
    import torch._inductor.config as settings

    network = _Logits(model, inputs).eval()
    compiled = torch.compile(network)
    frozen: Any = settings.patch(freezing=network.fast.device.type == "cpu")
    with _quietly(), frozen, torch.no_grad():
        compiled(network.given(inputs))

    @torch.no_grad()
    def call(given: Tensor) -> Tensor:
        found: Tensor = compiled(network.given(given))
        return found.clone().to(given.device)

    return _of_one_size(call, len(inputs))


def _cuda_graph(model: ModelAdapter, bf16: bool, inputs: Tensor) -> Call:
    fast = FastPredictor(model, bf16=bf16, probe=inputs[:2])
    given = inputs.detach().to(fast.device, fast.dtype, copy=True)
    beside = torch.cuda.Stream(fast.device)
    beside.wait_stream(torch.cuda.current_stream(fast.device))
    with torch.cuda.stream(beside):
        for _ in range(3):  # what is chosen and allocated at first is no part of the graph
            fast(given)
    torch.cuda.current_stream(fast.device).wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = fast(given)

    return _of_one_size(partial(_replayed, graph, fast, given, found), len(inputs))


def _replayed(graph: Any, _weights: FastPredictor, given: Tensor, found: Tensor, images: Tensor) -> Tensor:
    """Return logits of a graph, which reads weights at the addresses that it was captured with: they must stay."""
    given.copy_(images)
    graph.replay()
    return found.clone().to(images.device)


def _of_one_size(call: Call, size: int) -> Call:
    """Return a call that repeats images up to a size of batch, so that nothing is built again for another."""

    def padded(given: Tensor) -> Tensor:
        parts = [part if len(part) == size else _repeated(part, size) for part in given.split(size)]
        return torch.cat([call(part) for part in parts])[: len(given)]

    return padded


def _repeated(part: Tensor, size: int) -> Tensor:
    return torch.cat([part, part[-1:].expand(size - len(part), *part.shape[1:])])


#: By name: the network as it is, then the others, the quickest to build first.
BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("network", _network, any_size=True),
        Backend("folded", _folded, 0.3, bf16=True, any_size=True),
        Backend("cuda-graph", _cuda_graph, 0.5, ("cuda",), bf16=True),
        Backend("onnxruntime", _onnxruntime, 2.0, ("cpu",), ("onnx", "onnxruntime")),
        Backend("openvino", _openvino, 4.0, ("cpu",), ("openvino",)),
        Backend("torch-compile", _torch_compile, 60.0, ("cpu", "cuda"), (), ("g++",)),
    )
}


def backend_called(name: str, device: str, bf16: bool) -> Backend:
    """Return a backend by name.

    Raises:
        UnknownNameError: there is none of this name.
        InvalidInputError: it cannot run on this type of device, or not in bfloat16.
    """
    if name not in BACKENDS:
        raise UnknownNameError("backend", name, list(BACKENDS))
    found = BACKENDS[name]
    if problem := found.missing(device):
        raise InvalidInputError(f"the backend {name} cannot be used: {problem}; or choose another, or none")
    if bf16 and not found.bf16:
        raise InvalidInputError(f"the backend {name} computes in float32 only; leave it or bf16 out")
    return found
