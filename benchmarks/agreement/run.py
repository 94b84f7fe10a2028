"""Do our maps equal the peers', after the same ReLU, normalization and resize?

    pip install "xai-abn[benchmarks]"
    python -m benchmarks.agreement.run [--output results.json]

Networks have seeded random weights; BatchNorm statistics come from one training-mode pass, so that
activations and gradients have ordinary sizes. The images are scikit-image's.
"""

from __future__ import annotations

import contextlib
import warnings

import torch
import torchvision
from captum.attr import LayerAttribution, LayerGradCam
from pytorch_grad_cam import GradCAM as PeerGradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torchcam.methods import CAM as TorchCAM
from torchcam.methods import GradCAM as TorchCAMGradCAM

import xai_abn
from benchmarks._harness import densenet_out_of_place, machine, make_parser, write_json
from xai_abn.errors import UnsupportedModelError
from xai_abn.explainers import CAM, GradCAM
from xai_abn.heatmaps import unit_range, upsample
from xai_abn.images.loading import load_image
from xai_abn.models.forward_pass import ForwardPass

NETWORKS = ("resnet18", "resnet50", "efficientnet_b0", "vgg11_bn", "densenet121", "densenet121, ReLU not in place")
IMAGES = ("astronaut", "cat", "coffee", "rocket")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    machine()
    result = {name: compare(name) for name in arguments.networks}
    columns = list(next(iter(result.values())))
    print(f"largest difference over {len(IMAGES)} images\n{'network':<32}" + "".join(f"{c:>22}" for c in columns))
    for name, row in result.items():
        cells = [f"{row[c]:.1e}" if row[c] is not None else "n/a" for c in columns]
        print(f"{name:<32}" + "".join(f"{c:>22}" for c in cells))
    write_json(arguments.output, result)


def compare(title: str) -> dict[str, float | None]:
    name, _, variant = title.partition(", ")
    with densenet_out_of_place() if variant else contextlib.nullcontext():
        return compare_network(name)


def compare_network(name: str) -> dict[str, float | None]:
    torch.manual_seed(0)
    module = torchvision.models.get_model(name, weights=None).eval()
    model = xai_abn.wrap(module)
    inputs = torch.stack([model.preprocess(load_image(f"example:{p}")).tensor for p in IMAGES])
    module.train()
    with torch.no_grad():
        module(inputs)
    module.eval()
    targets = [1, 20, 300, 999]
    layer = module.get_submodule(model.target_layer)
    shared = ForwardPass(model, inputs, [model.target_layer], gradients=True)
    raw = GradCAM().explain(shared, torch.tensor(targets))
    mine = normalized(upsample(raw, (224, 224)))
    with PeerGradCAM(model=module, target_layers=[layer]) as peer:
        theirs = torch.from_numpy(peer(inputs, [ClassifierOutputTarget(t) for t in targets]))
    captum_map = LayerGradCam(module, layer).attribute(inputs, target=torch.tensor(targets)).relu()
    large = LayerAttribution.interpolate(captum_map, (224, 224), "bilinear")[:, 0].detach()
    with TorchCAMGradCAM(module, model.target_layer) as extractor:
        small = extractor(targets, module(inputs), normalized=True)[0].detach()
    return {
        "grad-cam (grad-cam)": difference(mine, normalized(theirs)),
        "grad-cam (captum)": difference(mine, normalized(large)),
        "grad-cam (torchcam)": difference(normalized(raw), normalized(small)),
        "cam (torchcam)": compare_cam(module, model, shared, inputs, targets),
        "cam (plain formula)": plain_cam(model, shared, targets),
    }


def compare_cam(
    module: torch.nn.Module, model: xai_abn.ModelAdapter, shared: ForwardPass, inputs: torch.Tensor, targets: list[int]
) -> float | None:
    """Against torchcam's CAM, where the layer it hooks is what is pooled."""
    if not describes(shared, targets) or (model.target_layer == "features" and "DenseNet" in type(module).__name__):
        return None  # DenseNet pools a functional ReLU of the layer, which torchcam cannot hook
    name = next(n for n, m in module.named_modules() if m is shared.classifier)
    with torch.no_grad(), TorchCAM(module, model.target_layer, name) as extractor:
        theirs = extractor(targets, module(inputs), normalized=False)[0]
    ours = CAM().explain(shared, torch.tensor(targets))
    return difference(normalized(ours.relu()), normalized(theirs.relu()))


def plain_cam(model: xai_abn.ModelAdapter, shared: ForwardPass, targets: list[int]) -> float | None:
    """Against the sum written out channel by channel, relative to the largest value."""
    if not describes(shared, targets):
        return None
    ours = CAM().explain(shared, torch.tensor(targets)).double()
    pooled = shared.activations(model.target_layer).double()
    pooled = pooled.relu() if "DenseNet" in type(model.module).__name__ else pooled
    assert shared.classifier is not None
    weight = shared.classifier.weight.detach().double()
    plain = torch.zeros_like(ours)
    for n, target in enumerate(targets):
        for k in range(pooled.shape[1]):
            plain[n] += weight[target, k] * pooled[n, k]
    return difference(ours / plain.abs().max(), plain / plain.abs().max())


def describes(shared: ForwardPass, targets: list[int]) -> bool:
    try:
        CAM().explain(shared, torch.tensor(targets))
    except UnsupportedModelError:
        return False
    return True


def normalized(maps: torch.Tensor) -> torch.Tensor:
    """Scale each map (N, h, w) to [0, 1], in float64."""
    return unit_range(maps.double())


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


if __name__ == "__main__":
    main()
