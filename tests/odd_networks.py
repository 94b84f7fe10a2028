"""Tiny networks that people bring, each odd in one way, shared by the tests of contracts and models."""

from __future__ import annotations

import tempfile
import threading
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

import xai_abn
from xai_abn.integrations.onnx import export_onnx

CLASSES = 4


class Plain(nn.Module):
    """A convolution, a ReLU, the mean, a linear head: the network from which the others differ."""

    def __init__(self, channels: int = 3, classes: int = CLASSES) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 8, 3, 4, 1), nn.ReLU())
        self.fc = nn.Linear(8, classes)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def head(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))

    def output(self, logits: Tensor) -> Any:
        return logits

    def forward(self, x: Tensor) -> Any:
        return self.output(self.head(self.features(x)))


def plain(**steps: Callable[..., Any]) -> Callable[..., nn.Module]:
    """A plain network in which some of ``features``, ``head`` and ``output`` are other functions of their input."""
    return type("Other", (Plain,), steps)


def altered(change: Callable[[Plain], Any]) -> Callable[[], nn.Module]:
    """A plain network to which something was done in place."""

    def build() -> nn.Module:
        network = Plain().eval()
        change(network)
        return network

    return build


def inside(
    wrapper: Callable[[nn.Module], nn.Module], network: Callable[[], nn.Module] = Plain
) -> Callable[[], nn.Module]:
    """A network inside a wrapper."""
    return lambda: wrapper(network().eval())


class Pair(nn.Module):
    """Takes two images."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Conv2d(3, 8, 3, 4, 1), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.fc((self.body(x) - self.body(y)).mean((2, 3)))


class FirstOfPair(nn.Module):
    """Gives a pair its second image, and the first to be explained."""

    def __init__(self, pair: nn.Module) -> None:
        super().__init__()
        self.pair = pair
        self.register_buffer("other", torch.randn(1, 3, 32, 32))

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(x, self.other)


class Hooked(Plain):
    """The model of the Grad-CAM tutorial: it registers a hook on a tensor in its forward pass."""

    def keep(self, gradient: Tensor) -> None:
        self.gradient = gradient

    def features(self, x: Tensor) -> Tensor:
        self.kept = self.body(x)
        self.kept.register_hook(self.keep)
        return self.kept


class Locked(Plain):
    """Holds a lock, and the tensor of its last pass."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            self.kept = super().forward(x)
            return self.kept


class Mixed(Plain):
    """Body and head compute in two precisions, behind a scale in a third and a table of integers."""

    def __init__(self, first: torch.dtype, second: torch.dtype) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.arange(4), requires_grad=False)
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.body.to(first)
        self.fc.to(second)
        self.second = second

    def head(self, x: Tensor) -> Tensor:
        return super().head(x.to(self.second)) * self.scale.to(self.second)


class Recurrent(nn.Module):
    """The same layer three times, one behind the other; or three layers."""

    def __init__(self, shared: bool = True) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 8, 3, 4, 1), nn.Linear(8, 3)
        self.steps = nn.ModuleList(nn.Conv2d(8, 8, 3, 1, 1) for _ in range(1 if shared else 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for step in range(3):
            x = self.steps[step % len(self.steps)](x).relu()
        return self.fc(x.mean((2, 3)))


class Siamese(nn.Module):
    """Compares an image with a fixed one, through the same layers."""

    def __init__(self, first: bool = True, size: int = 64) -> None:
        super().__init__()
        self.first = first
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU())
        self.fc = nn.Linear(16, 2)
        self.register_buffer("other", torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(9)))

    def forward(self, x: Tensor) -> Tensor:
        images = [x, self.other] if self.first else [self.other, x]
        pooled = [self.encoder(image).mean((2, 3)).expand(len(x), -1) for image in images]
        return self.fc(torch.cat(pooled if self.first else pooled[::-1], 1))


class Flipped(nn.Module):
    """Averages an image and its mirror image."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Conv2d(3, 8, 3, 4, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return sum(self.fc(self.body(i).relu().mean((2, 3))) for i in (x, x.flip(-1)))


class Experts(nn.Module):
    """Each image goes through one of two layers, so that neither has a row for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.experts = nn.ModuleList(nn.Conv2d(8, 8, 3, 2, 1) for _ in range(2))
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        chosen = (h.mean((1, 2, 3)) > h.mean()).long()
        found = h.new_zeros(len(x), 8, h.shape[2] // 2, h.shape[3] // 2)
        for number, expert in enumerate(self.experts):
            rows = chosen == number
            if rows.any():
                found[rows] = expert(h[rows])
        return self.fc(found.relu().mean((2, 3)))


class Rows(Plain):
    """Reads the rows of its features with an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(64, 8, batch_first=True)

    def head(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn(x.transpose(1, 2).flatten(2))[0][:, -1])


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter beside it."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.down, self.up = nn.Linear(layer.in_features, 2, False), nn.Linear(2, layer.out_features, False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


def moved(change: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    """A plain network that does something to the places of an image before it looks at it."""
    return plain(features=lambda self, x: self.body(change(x)))


class Columns(nn.Module):
    """Reads the columns of an image as a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn, self.proj = nn.Conv2d(3, 16, 3, 4, 1), nn.Linear(16, 16)
        self.rnn, self.fc = nn.GRU(16, 8, batch_first=True), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn(self.proj(self.cnn(x).mean(2).transpose(1, 2)))[0].mean(1))


class Queries(nn.Module):
    """An encoder of patches, and a decoder with learned queries, as in DETR."""

    def __init__(self, number: int = 4, patch: int = 16) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, patch, patch)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 2, 64, batch_first=True), 2)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(32, 2, 64, batch_first=True), 2)
        self.queries, self.fc = nn.Parameter(torch.randn(1, number, 32)), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.encoder(self.patch(x).flatten(2).transpose(1, 2))
        return self.fc(self.decoder(self.queries.expand(len(x), -1, -1), patches).mean(1))


class Tokens(nn.Module):
    """A transformer with other tokens in front of the patches or behind them; it does not say how many."""

    def __init__(self, other: int, behind: bool = False, batch_first: bool = True, patch: int = 16) -> None:
        super().__init__()
        self.behind, self.batch_first = behind, batch_first
        self.patch, self.other = nn.Conv2d(3, 32, patch, patch), nn.Parameter(torch.randn(1, other, 32))
        layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=batch_first)
        self.encoder, self.fc = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        patches, other = self.patch(x).flatten(2).transpose(1, 2), self.other.expand(len(x), -1, -1)
        tokens = torch.cat([patches, other] if self.behind else [other, patches], dim=1)
        if not self.batch_first:
            tokens = tokens.transpose(0, 1)
        tokens = self.encoder(tokens)
        return self.fc(tokens.mean(1 if self.batch_first else 0))


class Block(nn.Module):
    """Self-attention without a module of its own, with a bias for each pair of positions or without one."""

    def __init__(self, tokens: int = 0, reduction: int = 1) -> None:
        super().__init__()
        self.norm, self.q, self.kv = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 32)
        self.bias = nn.Parameter(torch.randn(1, 2, tokens, tokens)) if tokens else None
        self.reduction = reduction

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q = self.q(normed).unflatten(-1, (2, 8)).transpose(1, 2)
        k, v = self.kv(normed[:, :: self.reduction]).unflatten(-1, (2, 2, 8)).permute(2, 0, 3, 1, 4)
        return x + F.scaled_dot_product_attention(q, k, v, self.bias).transpose(1, 2).flatten(2)


class Transformer(nn.Module):
    """Its blocks attend themselves, in no module of their own."""

    def __init__(self, class_token: bool = True, patch: int = 16, **options: Any) -> None:
        super().__init__()
        self.patches, self.blocks = nn.Conv2d(3, 16, patch, patch), nn.Sequential(Block(**options), Block(**options))
        self.token, self.norm, self.fc = nn.Parameter(torch.randn(1, 1, 16)), nn.LayerNorm(16), nn.Linear(16, 10)
        self.class_token = class_token

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.norm(self.blocks(torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)))
        return self.fc(x[:, 0] if self.class_token else x[:, 1:].mean(dim=1))


class PoolingHead(nn.Module):
    """One learned query attends to the positions and gives the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.query = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU()), nn.Parameter(torch.randn(1, 1, 8))
        self.attention, self.fc = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.body(x).flatten(2).transpose(1, 2)
        return self.fc(self.attention(self.query.expand(len(x), -1, -1), tokens, tokens)[0][:, 0])


class OwnAttention(nn.Module):
    """Positions attend to positions, in a form that attention methods do not read."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.body, self.fc = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU()), nn.Linear(8, CLASSES)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.query = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.body(x).flatten(2).transpose(1, 2)
        return self.fc(self.attention(tokens * self.query, tokens, tokens, need_weights=False)[0].mean(1))


class Windows(nn.Module):
    """Cuts images into four, and computes on each."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Conv2d(3, 8, 3, 4, 1), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2] // 2
        cut = x.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        return self.fc(self.body(cut).relu().mean((2, 3)).unflatten(0, (len(x), 4)).mean(1))


class Cosine(nn.Linear):
    """A linear layer by name only."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x), F.normalize(self.weight))


class UNet(nn.Module):
    """Gives a map of class scores."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.bottom = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.up, self.head = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down(x).relu()
        return self.head(torch.cat([self.up(self.bottom(fine).relu()).relu(), fine], 1))


class WithDecoder(nn.Module):
    """A classifier that also reconstructs its input, behind or in front of the head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Conv2d(3, 8, 3, 4, 1), nn.Linear(8, 3)
        self.decoder = nn.ConvTranspose2d(8, 3, 4, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(x).relu()
        return {"logits": self.fc(features.mean((2, 3))), "image": self.decoder(features)}


class Doubling(torch.autograd.Function):
    """A step with a backward pass of its own."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


class Lazy(Plain):
    """Makes its head when it first runs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = None

    def head(self, x: Tensor) -> Tensor:
        if self.fc is None:
            self.fc = nn.Linear(8, CLASSES)
        return super().head(x)


class Counting(Plain):
    """Counts its passes in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return super().forward(x)


class Volume(nn.Module):
    """Stacks the channels as slices of a volume."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Conv3d(1, 8, 3, (1, 4, 4), 1), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x[:, None]).relu().mean((2, 3, 4)))


class OneByOne(nn.Module):
    """No layer has more than one position."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Conv2d(3, 8, 32), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).relu().flatten(1))


class ChannelsLast(nn.Module):
    """Its features are (N, h, w, C) views that are not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mlp, self.fc = nn.Conv2d(3, 8, 3, 4, 1), nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.mlp(self.conv(x).permute(0, 2, 3, 1)).relu().mean((1, 2)))


class NoWeights(nn.Module):
    """The mean color is the score; there is nothing to learn."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Frequencies(nn.Module):
    """Computes on complex numbers between two of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.filter = nn.Conv2d(3, 8, 3, 4, 1), nn.Parameter(torch.randn(8, 8, 5, dtype=torch.cfloat))
        self.last, self.fc = nn.ReLU(), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        frequencies = torch.fft.rfft2(self.body(x)) * self.filter
        return self.fc(self.last(torch.fft.irfft2(frequencies)).mean((2, 3)))


class ComplexLayer(nn.Module):
    """One of its layers outputs complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.turn = nn.Conv2d(3, 8, 3, 4, 1), nn.Conv2d(8, 8, 1, dtype=torch.cfloat)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.turn(self.body(x).to(torch.cfloat)).abs().mean((2, 3)))


class BatchStatistics(Plain):
    """Normalizes by its batch, also in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.body.insert(1, nn.BatchNorm2d(8, track_running_stats=False))


class Normalized(Plain):
    """Batch normalization, whose statistics must not change."""

    def __init__(self) -> None:
        super().__init__()
        self.body.insert(1, nn.BatchNorm2d(8))


class Raising(Plain):
    """Fails in its forward pass."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


class Autocast(Plain):
    """Switches mixed precision on in its forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


class Tied(Plain):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.same = self.body


@dataclass(frozen=True)
class Odd:
    """How an odd network is built and wrapped, and which layer CAM methods read.

    Attributes:
        build: makes the network.
        layer: the layer that CAM methods read by themselves, or None if they refuse.
        shape: (C, H, W) of its input.
        maps: how the output of the layer becomes maps (N, C, h, w).
        call: which call of the layer counts.
        gradients: whether the output depends on the input differentiably.
        behind: whether it depends on the layer differentiably although it does not on the input.
        runs: whether it gives scores of two images; None if only for some methods.
        refused: what is said when the network is refused at once; empty if it is not.
        random: whether it draws random numbers.
        keeps: whether it changes itself when it runs.
        adapt: what is done to the model after wrapping.
        options: of :func:`xai_abn.wrap`.
    """

    build: Callable[[], nn.Module]
    layer: str | None = "body"
    shape: tuple[int, int, int] = (3, 32, 32)
    maps: Callable[[Tensor], Tensor] = lambda values: values
    call: int = -1
    gradients: bool = True
    behind: bool = False
    runs: bool | None = True
    refused: str = ""
    random: bool = False
    keeps: bool = False
    adapt: Callable[[xai_abn.ModelAdapter], xai_abn.ModelAdapter] = lambda model: model
    options: Mapping[str, Any] = field(default_factory=dict)

    def model(self) -> xai_abn.ModelAdapter:
        """The seeded network, wrapped."""
        torch.manual_seed(0)
        network = self.build()
        example = torch.zeros(1, *self.shape)
        return self.adapt(xai_abn.wrap(network, **{"example_input": example, **self.options}))

    @property
    def images(self) -> Tensor:
        """Two seeded inputs."""
        return torch.randn(2, *self.shape, generator=torch.Generator().manual_seed(1))


def patches(rows: int, prefix: int = 0, batch_axis: int = 0) -> Callable[[Tensor], Tensor]:
    """Patch tokens as maps."""
    return lambda v: v.transpose(0, batch_axis)[:, prefix:].transpose(1, 2).unflatten(2, (rows, -1))


def quantized(network: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(network, {nn.Linear}, dtype=torch.qint8)


def exported(network: nn.Module) -> nn.Module:
    shapes = {"x": {0: torch.export.Dim.DYNAMIC}}
    return torch.export.export(network, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=shapes).module()


def onnx_file(network: nn.Module) -> nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        export_onnx(xai_abn.wrap(network, preprocess=xai_abn.Preprocess(size=32)), path)
        return xai_abn.load_model(f"onnx:{path}").module


def inference_weights() -> nn.Module:
    with torch.inference_mode():
        return Plain()


def small_abn() -> nn.Module:
    backbone = timm.create_model("resnet10t", channels=(4, 6, 8, 10), num_classes=CLASSES)
    return xai_abn.abn_from(backbone, input_size=32, masks=True).eval()


Result = namedtuple("Result", ["logits", "extra"])

ODD: dict[str, Odd] = {
    # the input
    "plain": Odd(Plain),
    "one channel": Odd(lambda: Plain(1), shape=(1, 32, 32)),
    "four channels": Odd(lambda: Plain(4), shape=(4, 32, 32)),
    "rectangle": Odd(Plain, shape=(3, 24, 40)),
    "two inputs": Odd(Pair, None, runs=False),
    "two inputs, one given": Odd(inside(FirstOfPair, Pair), "pair.body", call=0),
    "images one at a time": Odd(plain(features=lambda self, x: self.body(x.view(1, *x.shape[1:]))), runs=None),
    "integers as input": Odd(lambda: nn.Sequential(nn.Flatten(), nn.Embedding(4, 4)), None, runs=False),
    # what it does to tensors
    "needs gradients": Odd(Hooked, keeps=True),
    "keeps a tensor and a lock": Odd(Locked, keeps=True),
    "gradients off inside": Odd(
        plain(features=torch.no_grad()(lambda self, x: self.body(x))), gradients=False, behind=True
    ),
    "inference mode inside": Odd(
        plain(features=torch.inference_mode()(lambda self, x: self.body(x))), None, gradients=False
    ),
    "detached": Odd(plain(features=lambda self, x: self.body(x).detach()), None, gradients=False),
    "in place on the layer": Odd(
        plain(forward=lambda self, x: self.fc(self.body[0](x).relu_().mean((2, 3)))), "body.0"
    ),
    "in place on the input": Odd(plain(features=lambda self, x: self.body(x.sub_(0.1).div_(2)))),
    "in place on the logits": Odd(plain(output=lambda self, x: x.mul_(2))),
    "in-place modules": Odd(altered(lambda n: setattr(n.body[1], "inplace", True))),
    "views": Odd(plain(output=lambda self, x: x.t().contiguous().t()[:, 1:])),
    "not contiguous": Odd(ChannelsLast, "mlp", maps=lambda v: v.movedim(-1, 1)),
    "channels-last weights": Odd(altered(lambda n: n.to(memory_format=torch.channels_last))),
    "view of features": Odd(plain(head=lambda self, x: self.fc(x.view(len(x), 8, -1).mean(2)))),
    "view by the input": Odd(plain(forward=lambda self, x: self.fc(self.body(x).reshape(x.size(0), 8, -1).mean(2)))),
    "custom function": Odd(plain(features=lambda self, x: Doubling.apply(self.body(x)))),
    "complex inside": Odd(Frequencies, "last"),
    "complex layer": Odd(ComplexLayer),
    "random": Odd(plain(features=lambda self, x: self.body(x + 0.1 * torch.randn_like(x))), random=True),
    "dropout in evaluation": Odd(plain(head=lambda self, x: self.fc(F.dropout(x.mean((2, 3)), 0.5))), random=True),
    "counts its passes": Odd(Counting, keeps=True),
    "head made later": Odd(Lazy, keeps=True, random=True),
    "autocast inside": Odd(Autocast),
    # weights
    "half": Odd(lambda: Plain().half()),
    "bfloat16": Odd(lambda: Plain().bfloat16()),
    "float64": Odd(lambda: Plain().double()),
    "bfloat16 and float32": Odd(lambda: Mixed(torch.bfloat16, torch.float32)),
    "float32 and half": Odd(lambda: Mixed(torch.float32, torch.float16)),
    "weights of inference mode": Odd(inference_weights, refused="inference_mode"),
    "meta weights": Odd(lambda: Plain().to("meta"), refused="meta device"),
    "uninitialized": Odd(lambda: nn.Sequential(nn.LazyConv2d(8, 3), nn.Flatten()), refused="run it once"),
    "frozen": Odd(altered(lambda n: n.requires_grad_(False))),
    "weight norm": Odd(altered(lambda n: nn.utils.parametrizations.weight_norm(n.body[0]))),
    "weight norm by hooks": Odd(altered(lambda n: nn.utils.weight_norm(n.body[0]))),
    "spectral norm": Odd(altered(lambda n: nn.utils.parametrizations.spectral_norm(n.fc))),
    "spectral norm by hooks": Odd(
        altered(lambda n: nn.utils.spectral_norm(n.fc, n_power_iterations=9).train()(torch.ones(1, 8)))
    ),
    "pruned": Odd(altered(lambda n: prune.l1_unstructured(n.fc, "weight", 0.5))),
    "cosine head": Odd(altered(lambda n: setattr(n, "fc", Cosine(8, CLASSES)))),
    "quantized": Odd(inside(quantized), None, gradients=False),
    "no weights": Odd(NoWeights, None),
    "tied": Odd(altered(lambda n: setattr(n, "same", n.body))),
    "zero head": Odd(altered(lambda n: nn.init.zeros_(n.fc.weight))),
    # wrappers
    "compiled": Odd(inside(partial(torch.compile, backend="eager"))),
    "compiled in place": Odd(altered(lambda n: n.compile(backend="eager"))),
    "compiled part": Odd(altered(lambda n: setattr(n, "body", torch.compile(n.body, backend="eager")))),
    "data-parallel": Odd(inside(nn.DataParallel)),
    "traced by fx": Odd(inside(torch.fx.symbolic_trace), "body.1"),
    "scripted": Odd(inside(torch.jit.script), refused="TorchScript"),
    "traced": Odd(inside(lambda n: torch.jit.trace(n, torch.zeros(1, 3, 32, 32))), refused="TorchScript"),
    "scripted part": Odd(altered(lambda n: setattr(n, "body", torch.jit.script(n.body))), None),
    "scripted head": Odd(altered(lambda n: setattr(n, "fc", torch.jit.script(n.fc)))),
    "exported": Odd(inside(exported), None),
    "ONNX file": Odd(inside(onnx_file, plain(head=lambda self, x: self.fc(x.amax((2, 3))))), None, gradients=False),
    "ONNX file with maps": Odd(inside(onnx_file), None, gradients=False),
    "in a sequence": Odd(inside(lambda n: nn.Sequential(n, nn.Identity())), "0.body"),
    # batches and memory
    "statistics of the batch": Odd(BatchStatistics),
    "batch normalization in training": Odd(lambda: Normalized().train()),
    "checkpointed": Odd(plain(features=lambda self, x: checkpoint(self.body, x, use_reentrant=False))),
    "checkpointed by a function of its own": Odd(
        plain(features=lambda self, x: checkpoint(self.body, x, use_reentrant=True)), None, gradients=False
    ),
    "checkpointed head": Odd(plain(head=lambda self, x: checkpoint(self.fc, x.mean((2, 3)), use_reentrant=False))),
    "head checkpointed by a function of its own": Odd(
        plain(head=lambda self, x: checkpoint(self.fc, x.mean((2, 3)), use_reentrant=True)), None, gradients=False
    ),
    # layers that run several times, and sequences
    "recurrent": Odd(Recurrent, "stem"),
    "siamese": Odd(lambda: Siamese(size=32), "encoder", call=0),
    "siamese, second": Odd(lambda: Siamese(False, 32), "encoder"),
    "flipped": Odd(Flipped, None),
    "experts": Odd(Experts, None, runs=None),
    "rows": Odd(Rows),
    "low-rank adapter": Odd(altered(lambda n: setattr(n, "fc", Adapted(n.fc)))),
    "hooks of another library": Odd(altered(lambda n: n.body.register_forward_hook(lambda m, i, o: 2 * o))),
    # the places of the image
    "mirrored inside": Odd(moved(lambda x: x.flip(-1)), None),
    "turned inside": Odd(moved(lambda x: x.rot90(1, (2, 3))), None),
    "transposed inside": Odd(moved(lambda x: x.transpose(2, 3)), None),
    "cropped inside": Odd(moved(lambda x: x[..., 8:24, 8:24]), None),
    "borders inside": Odd(moved(lambda x: F.pad(x, (0, 32, 0, 32))), None),
    "channels last as input": Odd(moved(lambda x: x.permute(0, 3, 1, 2)), None, shape=(32, 32, 3)),
    "columns": Odd(Columns, None),
    "queries": Odd(lambda: Queries(4, 8), "encoder", maps=patches(4)),
    "sequence first": Odd(lambda: Tokens(1, batch_first=False, patch=8), "encoder", maps=patches(4, 1, 1)),
    "class token": Odd(lambda: Transformer(patch=8), "blocks.0", maps=patches(4, 1)),
    "relative positions": Odd(lambda: Transformer(False, 8, tokens=17), "norm", maps=patches(4, 1)),
    "reduced attention": Odd(lambda: Transformer(False, 8, reduction=3), "norm", maps=patches(4, 1)),
    "separate projections": Odd(lambda: OwnAttention(kdim=8, vdim=8)),
    "attention to nothing": Odd(lambda: OwnAttention(add_zero_attn=True, add_bias_kv=True)),
    "pooling head": Odd(PoolingHead),
    "windows": Odd(Windows, None),
    "volume": Odd(Volume, None),
    "one position": Odd(OneByOne, None),
    # the output
    "softmax": Odd(plain(output=lambda self, x: x.softmax(1))),
    "log-softmax": Odd(plain(output=lambda self, x: x.log_softmax(1))),
    "sigmoid of one": Odd(plain(output=lambda self, x: x[:, :1].sigmoid()), options={"multi_label": True}),
    "attributes": Odd(Plain, options={"multi_label": True}),
    "regression": Odd(lambda: Plain(classes=1)),
    "one class": Odd(lambda: Plain(classes=1), options={"labels": ["only"], "multi_label": True}),
    "one number": Odd(plain(output=lambda self, x: x[:, 0])),
    "one number, said": Odd(plain(output=lambda self, x: x[:, 0]), options={"output": lambda o: o}),
    "a score": Odd(Plain, adapt=lambda m: m.with_output(lambda y: y[:, 1] - y[:, 0], "gain")),
    "segmentation": Odd(UNet, "bottom"),
    "segmentation, score": Odd(UNet, "bottom", adapt=lambda m: m.with_output(lambda o: o[:, 1].mean((1, 2)), "sky")),
    "decoder": Odd(WithDecoder, options={"output": "logits"}),
    "object": Odd(plain(output=lambda self, x: SimpleNamespace(logits=x, loss=None))),
    "ordered dict": Odd(plain(output=lambda self, x: OrderedDict(logits=x)), options={"output": "logits"}),
    "dict": Odd(plain(output=lambda self, x: {"out": x, "aux": x}), options={"output": "out"}),
    "dict, not said": Odd(plain(output=lambda self, x: {"out": x, "aux": x}), None, runs=False),
    "dict, wrong key": Odd(plain(output=lambda self, x: {"out": x}), None, options={"output": "logits"}, runs=False),
    "tuple": Odd(plain(output=lambda self, x: (x.detach(), x)), options={"output": 1}),
    "tuple, not said": Odd(plain(output=lambda self, x: (x, x)), None, runs=False),
    "tuple, wrong position": Odd(plain(output=lambda self, x: (x,)), None, options={"output": 3}, runs=False),
    "named tuple": Odd(plain(output=lambda self, x: Result(x, None))),
    "list": Odd(plain(output=lambda self, x: [x]), options={"output": 0}),
    "nothing": Odd(plain(output=lambda self, x: None), None, runs=False),
    "array": Odd(plain(output=lambda self, x: x.detach().numpy()), None, runs=False),
    "output function that fails": Odd(Plain, None, options={"output": lambda o: o["logits"]}, runs=False),
    "squeezed": Odd(plain(head=lambda self, x: self.fc(x.mean((2, 3)).squeeze())), None, runs=None),
    "integers": Odd(plain(output=lambda self, x: (100 * x).long()), None, runs=False),
    "truth values": Odd(plain(output=lambda self, x: x > 0), None, runs=False),
    "complex": Odd(plain(output=lambda self, x: x.to(torch.cfloat)), None, runs=False),
    "rounded": Odd(plain(output=lambda self, x: x.round())),
    "constant": Odd(plain(output=lambda self, x: torch.ones_like(x)), gradients=False),
    "NaN": Odd(plain(output=lambda self, x: x * float("nan")), runs=False),
    "infinite": Odd(plain(output=lambda self, x: x / 0), runs=False),
    "masked class": Odd(plain(output=lambda self, x: x.index_fill(1, torch.tensor([3]), float("-inf")))),
    "huge": Odd(plain(output=lambda self, x: x * 1e30)),
    "tiny": Odd(plain(output=lambda self, x: x * 1e-30)),
    "no classes": Odd(plain(output=lambda self, x: x[:, :0]), None, runs=False),
    "mean over the batch": Odd(plain(output=lambda self, x: x.mean(0, keepdim=True)), runs=False),
    # what fails
    "no forward": Odd(lambda: nn.ModuleList([Plain()]), None, runs=False),
    "raises an unknown key": Odd(lambda: Raising(KeyError("x")), None, runs=False),
    "raises without a word": Odd(lambda: Raising(AssertionError()), None, runs=False),
    "raises a long text": Odd(lambda: Raising(RuntimeError("\n\n" + "many words " * 200 + "\nmore")), None, runs=False),
    "raises StopIteration": Odd(lambda: Raising(StopIteration()), None, runs=False),
    "attention branch": Odd(small_abn, "perception_branch.layer3"),
}
