"""Are the maps of a hundred networks those of plain autograd? Grad-CAM and HiResCAM, random weights.

    python -m benchmarks.models.hundred [--only TEXT]

For every network the target layer that xai-abn finds is hooked by hand, the logit of one class is differentiated by
``torch.autograd.grad``, and the map is formed as in the papers. Weights are drawn again, so that no branch is switched
off by an initial weight of 0, and the networks compute in float64, so that rounding plays no part. Needs
``pip install "xai-abn[test]"``.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn

import xai_abn
from benchmarks._harness import machine, make_parser
from xai_abn.errors import XaiAbnError

CLASSES, TARGET = 7, 3
#: Differences above this share of the largest value of the map are reported.
TOLERANCE = 1e-4

TIMM = [
    "resnet18",
    "resnet50",
    "resnetv2_50",
    "resnext50_32x4d",
    "seresnet50",
    "resnest14d",
    "res2net50_26w_4s",
    "regnetx_002",
    "regnety_002",
    "densenet121",
    "vgg11_bn",
    "dla34",
    "dpn68",
    "hrnet_w18_small",
    "efficientnet_b0",
    "efficientnetv2_rw_t",
    "tf_efficientnet_lite0",
    "mobilenetv2_050",
    "mobilenetv3_small_050",
    "mnasnet_small",
    "ghostnet_050",
    "inception_v3",
    "inception_v4",
    "xception41",
    "cspdarknet53",
    "convnext_atto",
    "convnextv2_atto",
    "repvgg_a0",
    "selecsls42b",
    "skresnet18",
    "rexnet_100",
    "nfnet_l0",
    "gernet_s",
    "tresnet_m",
    "mobileone_s0",
    "fastvit_t8",
    "vit_tiny_patch16_224",
    "vit_small_r26_s32_224",
    "vit_base_patch16_siglip_224",
    "vit_small_patch16_dinov3",
    "vit_relpos_small_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224",
    "beit_base_patch16_224",
    "eva02_tiny_patch14_224",
    "cait_xxs24_224",
    "xcit_nano_12_p16_224",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "pvt_v2_b0",
    "twins_pcpvt_small",
    "convit_tiny",
    "levit_128s",
    "mvitv2_tiny",
    "hiera_tiny_224",
    "maxvit_tiny_tf_224",
    "mobilevit_xxs",
    "mixer_s16_224",
    "poolformer_s12",
    "davit_tiny",
]
TORCHVISION = [
    "alexnet",
    "vgg11",
    "resnet18",
    "wide_resnet50_2",
    "googlenet",
    "inception_v3",
    "densenet121",
    "squeezenet1_1",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "mnasnet0_5",
    "efficientnet_b0",
    "regnet_x_400mf",
    "swin_t",
]
SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
STAGES = {"depths": [1, 1, 1, 1]}
#: Hugging Face's networks: class of the network, arguments of its configuration.
HUGGING_FACE: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("ViTForImageClassification", SMALL),
    "DeiT": ("DeiTForImageClassificationWithTeacher", SMALL),
    "Beit": ("BeitForImageClassification", SMALL),
    "Dinov2": ("Dinov2ForImageClassification", SMALL | {"patch_size": 16}),
    "Dinov2WithRegisters": ("Dinov2WithRegistersForImageClassification", SMALL | {"patch_size": 16}),
    "ViTMSN": ("ViTMSNForImageClassification", SMALL),
    "Swin": ("SwinForImageClassification", STAGES | {"embed_dim": 128, "num_heads": [4, 8, 16, 32]}),
    "Swinv2": ("Swinv2ForImageClassification", STAGES | {"embed_dim": 128, "num_heads": [4, 8, 16, 32]}),
    "FocalNet": ("FocalNetForImageClassification", STAGES | {"embed_dim": 128}),
    "ConvNext": ("ConvNextForImageClassification", STAGES | {"hidden_sizes": [8, 16, 32, 64]}),
    "ConvNextV2": ("ConvNextV2ForImageClassification", STAGES | {"hidden_sizes": [8, 16, 32, 64]}),
    "ResNet": ("ResNetForImageClassification", STAGES | {"embedding_size": 8, "hidden_sizes": [16, 32, 64, 128]}),
    "RegNet": ("RegNetForImageClassification", STAGES | {"hidden_sizes": [16, 32, 64, 128], "groups_width": 8}),
    "PoolFormer": ("PoolFormerForImageClassification", STAGES | {"hidden_sizes": [8, 16, 32, 64]}),
    "Segformer": ("SegformerForImageClassification", {}),
    "PvtV2": ("PvtV2ForImageClassification", {}),
    "MobileViT": ("MobileViTForImageClassification", {}),
}


@dataclass
class Case:
    """One network to explain.

    Attributes:
        network: in evaluation mode.
        size: (H, W) of its input.
        output: where its logits are, as :func:`xai_abn.wrap` takes it.
        logits: the same, by hand.
        prefix: number of tokens in front of the patches.
    """

    network: nn.Module
    size: tuple[int, int] = (224, 224)
    output: str | int | None = None
    logits: Callable[[Any], Tensor] = lambda answer: answer
    prefix: int = 0


def logits(head: nn.Module, features: Tensor) -> Tensor:
    """Return what a head gives for features."""
    found: Tensor = head(features)
    return found


class SequenceFirst(nn.Module):
    """A transformer on (T, N, C), as nn.TransformerEncoder computes by default."""

    def __init__(self, prefix: int = 0, batch_first: bool = False) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.patch, self.other = nn.Conv2d(3, 32, 16, 16), nn.Parameter(torch.randn(1, prefix, 32))
        layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=batch_first)
        self.encoder, self.fc = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images (N, 3, H, W)."""
        patches = self.patch(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.other.expand(len(images), -1, -1), patches], dim=1)
        if self.batch_first:
            return logits(self.fc, self.encoder(tokens).mean(dim=1))
        return logits(self.fc, self.encoder(tokens.transpose(0, 1)).mean(dim=0))


class Siamese(nn.Module):
    """Compares an image with a fixed one, which goes through the same layers behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Conv2d(3, 8, 3, 4, 1), nn.Linear(16, CLASSES)
        self.register_buffer("other", torch.randn(1, 3, 64, 64))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images (N, 3, H, W)."""
        pooled = [self.body(i).relu().mean(dim=(2, 3)).expand(len(images), -1) for i in (images, self.other)]
        return logits(self.fc, torch.cat(pooled, dim=1))


class Hooked(nn.Module):
    """Registers a hook on a tensor in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Conv2d(3, 8, 3, 4, 1), nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images (N, 3, H, W)."""
        features = self.body(images)
        features.register_hook(lambda gradient: None)
        return logits(self.fc, features.relu().mean(dim=(2, 3)))


class WithDecoder(nn.Module):
    """Reconstructs its input behind the head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc, self.decoder = nn.Conv2d(3, 8, 3, 4, 1), nn.Linear(8, CLASSES), nn.Conv2d(8, 3, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the logits of images (N, 3, H, W)."""
        features = self.body(images).relu()
        return {"logits": self.fc(features.mean(dim=(2, 3))), "image": self.decoder(features)}


class TwoHeads(nn.Module):
    """Two heads, the explained one registered first."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU())
        self.age, self.gender = nn.Linear(8, CLASSES), nn.Linear(8, 2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of images (N, 3, H, W)."""
        features = self.body(images).mean(dim=(2, 3))
        return self.age(features), self.gender(features)


class Columns(nn.Module):
    """Reads the columns of an image as a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn, self.rnn, self.fc = nn.Conv2d(3, 16, 3, 4, 1), nn.GRU(16, 8, batch_first=True), nn.Linear(8, CLASSES)
        self.proj = nn.Linear(16, 16)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images (N, 3, H, W)."""
        return logits(self.fc, self.rnn(self.proj(self.cnn(images).mean(dim=2).transpose(1, 2)))[0].mean(dim=1))


def oddities() -> Iterator[tuple[str, Callable[[], Case]]]:
    """Yield hand-written networks."""
    small = (64, 64)
    yield "sequence-first", lambda: Case(SequenceFirst(), small)
    yield "sequence-first, 3 tokens in front", lambda: Case(SequenceFirst(3), small, prefix=3)
    yield "batch-first, 5 tokens in front, 96x48", lambda: Case(SequenceFirst(5, True), (96, 48), prefix=5)
    yield "siamese", lambda: Case(Siamese(), small)
    yield "hook in forward", lambda: Case(Hooked(), small)
    yield "decoder behind the head", lambda: Case(WithDecoder(), small, "logits", lambda a: a["logits"])
    yield "two heads", lambda: Case(TwoHeads(), small, 0, lambda a: a[0])
    yield "columns", lambda: Case(Columns(), small)


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    """Yield the name of every network and how to make it."""
    for name in TIMM:

        def make(name: str = name) -> Case:
            network = timm.create_model(name, num_classes=CLASSES)
            config: Any = network.pretrained_cfg
            size = config.get("test_input_size") or config["input_size"]
            return Case(network, (size[1], size[2]), prefix=int(getattr(network, "num_prefix_tokens", 0)))

        yield f"timm {name}", make
    for name in TORCHVISION:

        def make_torchvision(name: str = name) -> Case:
            more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
            network = getattr(torchvision.models, name)(weights=None, num_classes=CLASSES, **more)
            return Case(network, (299, 299) if name == "inception_v3" else (224, 224))

        yield f"torchvision {name}", make_torchvision
    prefixes = {"ViT": 1, "DeiT": 2, "Beit": 1, "Dinov2": 1, "Dinov2WithRegisters": 5, "ViTMSN": 1}
    for name, (kind, options) in HUGGING_FACE.items():

        def make_hf(name: str = name, kind: str = kind, options: dict[str, Any] = options) -> Case:
            config = getattr(transformers, f"{name}Config")(num_labels=CLASSES, **options)
            size = getattr(config, "image_size", 224)
            size = size if isinstance(size, int) else size[0]
            network = getattr(transformers, kind)(config)
            return Case(network, (size, size), "logits", lambda answer: answer.logits, prefixes.get(name, 0))

        yield f"transformers {kind}", make_hf
    yield from oddities()


def by_hand(case: Case, layer: str, images: Tensor) -> dict[str, Tensor]:
    """Return Grad-CAM and HiResCAM (N, h, w) of a layer, by a hook and plain autograd."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        kept.append(output)
        return output.clone()  # the next operation may work in place, as torchvision's DenseNet does

    handle = case.network.get_submodule(layer).register_forward_hook(keep)
    score = case.logits(case.network(images.double()))[:, TARGET].sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept[0])
    activations, gradients = (as_maps(t.detach(), case, len(images)) for t in (kept[0], gradient))
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    return {"grad-cam": (weights * activations).sum(dim=1).relu(), "hires-cam": (gradients * activations).sum(dim=1)}


def as_maps(values: Tensor, case: Case, number: int) -> Tensor:
    """Return a layer's output as maps (N, C, h, w)."""
    if values.dim() == 4:
        last = values.shape[1] == values.shape[2] != values.shape[3]
        return values.permute(0, 3, 1, 2) if last else values
    maps: Tensor
    if values.shape[0] != number:
        values = values.transpose(0, 1)
    patches = values.shape[1] - case.prefix
    rows = round((patches * case.size[0] / case.size[1]) ** 0.5)
    if rows * (patches // rows) != patches:  # a stage without the tokens in front, or a network that does not tell
        rows = int(values.shape[1] ** 0.5)
        patches = rows * rows
    maps = values[:, -patches:].transpose(1, 2).unflatten(2, (rows, patches // rows))
    return maps


def with_new_weights(network: nn.Module) -> nn.Module:
    """Return the network in evaluation mode with every parameter moved, none of them 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
            parameter.add_(torch.randn(parameter.shape, generator=generator) * max(0.1 * spread, 0.01))
    return network.double().eval()


def measure(make: Callable[[], Case]) -> tuple[str, str]:
    """Return the layer and grid, and the largest relative difference of each method or the refusal."""
    torch.manual_seed(0)
    case = make()
    with_new_weights(case.network)
    images = torch.randn(2, 3, *case.size, generator=torch.Generator().manual_seed(2))
    preprocess = xai_abn.Preprocess(size=case.size[0], width=case.size[1])
    model = xai_abn.wrap(case.network, output=case.output, preprocess=preprocess)
    try:
        results = xai_abn.explain(model, images, ["grad-cam", "hires-cam"], TARGET)
    except XaiAbnError as error:
        return "refused", error.line
    differences = []
    for method, right in by_hand(case, model.target_layer, images).items():
        found = torch.stack([torch.tensor(result[method].map) for result in results])
        if found.shape != right.shape:
            return model.target_layer, f"DIFFERENT SHAPES {tuple(found.shape)} {tuple(right.shape)}"
        differences.append(float((found - right).abs().max() / right.abs().max().clamp_min(1e-30)))
    flag = " DIFFERENT" if max(differences) > TOLERANCE else ""
    return f"{model.target_layer} {tuple(found.shape[1:])}", " / ".join(f"{d:.0e}" for d in differences) + flag


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--only", default="", help="measure only networks whose name holds this text")
    arguments = parser.parse_args()
    machine()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    print("| network | target layer and grid | Grad-CAM / HiResCAM, largest difference |\n|---|---|---|")
    counts = {"equal": 0, "refused": 0, "different": 0}
    started = time.perf_counter()
    for name, make in cases():
        if arguments.only not in name:
            continue
        layer, result = measure(make)
        kind = "refused" if layer == "refused" else "different" if "DIFFERENT" in result else "equal"
        counts[kind] += 1
        print(f"| {name} | {layer} | {result} |", flush=True)
    print(f"\n{', '.join(f'{n} {kind}' for kind, n in counts.items())}; {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
