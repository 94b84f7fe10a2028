"""A copy of a network for fast predictions without gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from xai_abn.errors import XaiAbnWarning
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.targets import can_be_explained
from xai_abn.networks.tracing import (
    NEED_GRADIENTS,
    copied,
    evaluating,
    hooks,
    on_device,
    trace_outputs,
    without_gradients,
)

#: With bfloat16, this many convolutions after the input stay in float32: rounding there shifts every layer behind them,
#: and caused most of the error of deletion areas on lite0 (benchmarks/engine).
FLOAT32_LAYERS = 3
_CONVOLUTIONS, _NORMS = (nn.Conv2d, nn.Conv3d), (nn.BatchNorm2d, nn.BatchNorm3d)
#: The copy must give the network's logits within this share of the largest one.
TOLERANCE = 1e-3


class SlowPrecisionWarning(XaiAbnWarning):
    """Given when bfloat16 is requested on a processor that has no units for it."""


def check_bfloat16(device: torch.device) -> None:
    """Warn if bfloat16 is slower than float32 on a device: several times so on a CPU without units for it."""
    if device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        warnings.warn(
            SlowPrecisionWarning(
                "this processor has no bfloat16 units, so bfloat16 is several times slower than float32; leave bf16 out"
            ),
            stacklevel=3,
        )


class FastPredictor:
    """Logits of a model, from a copy with folded batch normalization in channels-last layout.

    The copy is compared with the network when it is made: if folding changes the logits by more than rounding, the
    layers are left as they are.

    Args:
        model: the model; it is not changed.
        bf16: run in bfloat16 autocast, except the first ``FLOAT32_LAYERS`` convolutions.
        probe: inputs (N, 3, H, W) on which the copy is compared with the network; default: noise.

    Attributes:
        folded: how many batch normalizations were folded into the convolution before them.
        precision: ``"float32"`` or ``"bfloat16"``.
        probabilities: converts logits (N, K) to the model's probabilities.

    Raises:
        NonFiniteError: the network outputs NaN or infinity for noise.
    """

    def __init__(self, model: ModelAdapter, *, bf16: bool = False, probe: Tensor | None = None) -> None:
        self.precision = "bfloat16" if bf16 else "float32"
        self._needs_gradients = model.module in NEED_GRADIENTS
        example = on_device(noise_like(model.example) if probe is None else probe, model.module)
        self.device, self.dtype = example.device, example.dtype
        self.logits_of = model.logits_of
        self.probabilities = model.probabilities
        self.network, self.folded = frozen_copy(model, example)
        if bf16:
            check_bfloat16(self.device)
            _keep_float32(self.network, example)
        self._layout = model.memory_format
        self.network = self.network.to(memory_format=self._layout)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return logits (N, K) float32 of inputs (N, C, H, W) or (N, C, D, H, W), on the device of the inputs."""
        device = inputs.device
        inputs = inputs.to(self.device, self.dtype, memory_format=self._layout, copy=True)  # it may change its input
        bf16 = self.precision == "bfloat16"
        with (
            torch.set_grad_enabled(self._needs_gradients),
            torch.autocast(self.device.type, torch.bfloat16, enabled=bf16),
        ):
            return self.logits_of(self.network(inputs)).detach().float().to(device)


def frozen_copy(model: ModelAdapter, example: Tensor) -> tuple[nn.Module, int]:
    """Return a copy of a network, with batch normalizations folded where that changes nothing, and how many were.

    Of an Attention Branch Network it outputs the logits alone. Its weights need no gradients.

    Args:
        model: the model; it is not changed.
        example: inputs (N, 3, H, W) on its device, on which the copy is compared with the network.

    Raises:
        NonFiniteError: the network outputs NaN or infinity for them.
    """
    with evaluating(model.module):
        whole = model.module.as_classifier() if model.is_abn else model.module  # type: ignore[operator]
        plain = copied(whole).eval()
    plain.requires_grad_(model.module in NEED_GRADIENTS)
    return _folded(plain, example, model)


def noise_like(blank: Tensor) -> Tensor:
    """Return two seeded inputs of noise, shaped as those of ``blank`` (N, ...), on the CPU."""
    return torch.randn(2, *blank.shape[1:], generator=torch.Generator().manual_seed(0))


def _folded(plain: nn.Module, example: Tensor, model: ModelAdapter) -> tuple[nn.Module, int]:
    """Return the network with batch normalizations folded where that changes nothing, and how many were."""
    with without_gradients(model.module):
        expected = model.logits_of(plain(example.clone()))
        if not bool(can_be_explained(expected).all()):
            raise model.not_finite("noise")
        pairs = _pairs(plain, example)
        folded = copied(plain)
        for convolution, norm in pairs:
            _fold(folded, convolution, norm)
        shown = expected.isfinite()  # a masked class has minus infinity
        expected, found = expected[shown], model.logits_of(folded(example.clone()))[shown]
        close = (found - expected).abs().max() <= TOLERANCE * expected.abs().max()
    return (folded, len(pairs)) if bool(close) else (plain, 0)


def _pairs(network: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """Return the names of convolutions, each with the batch normalization that reads its output; both run once."""
    made: dict[int, tuple[str, Tensor]] = {}
    runs: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            runs[name] = runs.get(name, 0) + 1
            if isinstance(module, _CONVOLUTIONS):
                made[id(output)] = (name, output)  # kept alive, so that no other tensor gets its id
            elif id(inputs[0]) in made:
                pairs.append((made[id(inputs[0])][0], name))

        return hook

    kinds = (*_CONVOLUTIONS, *_NORMS)
    with hooks(m.register_forward_hook(watch(n)) for n, m in network.named_modules() if isinstance(m, kinds)):
        network(example.clone())
    norms = {n: m for n, m in network.named_modules() if isinstance(m, _NORMS)}
    return [(c, b) for c, b in pairs if runs[c] == runs[b] == 1 and norms[b].running_mean is not None]


def _fold(network: nn.Module, convolution: str, norm: str) -> None:
    """Fold one normalization, in place; what a subclass does after it (timm's activation) stays."""
    old = network.get_submodule(norm)
    rest = [getattr(old, part) for part in ("drop", "act") if isinstance(getattr(old, part, None), nn.Module)]
    fused = fuse_conv_bn_eval(network.get_submodule(convolution), old)  # type: ignore[type-var, arg-type]
    _replace(network, convolution, fused)
    _replace(network, norm, nn.Sequential(*rest))


class _Float32(nn.Module):
    """A layer that leaves autocast while it runs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, enabled=False):
            result: Tensor = self.layer(inputs.float())
            return result


def _keep_float32(network: nn.Module, example: Tensor) -> None:
    """Keep the first convolutions, in order of running, in float32."""
    layers = [o.name for o in trace_outputs(network, example)]
    order = [n for n in layers if isinstance(network.get_submodule(n), _CONVOLUTIONS)]
    for name in dict.fromkeys(order[:FLOAT32_LAYERS]):
        if name:
            _replace(network, name, _Float32(network.get_submodule(name)))


def _replace(network: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, new)
