"""Do the CAM family's maps equal the peer that follows the paper, after the same ReLU, scaling and resize?

    pip install "xai-abn[benchmarks]"
    python -m benchmarks.cam_family.agreement [--output agreement.json]

Networks have seeded random weights; BatchNorm statistics come from one training-mode pass. The images are
scikit-image's, 224x224 (96x96 for the methods that predict once a channel). The figure is the largest difference
anywhere on a [0, 1] map of the network's top-1 class, over all images; "flat" where a map is 0 everywhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytorch_grad_cam as grad_cam
import timm
import torch
import torchcam.methods as torchcam
import torchvision
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection_kernel

import xai_abn
from benchmarks._harness import densenet_out_of_place, machine, make_parser, write_json
from benchmarks.cam_family.peer_variants import (
    CornersScoreCAM,
    EpsilonGradCAMPlusPlus,
    ScaleFirstISCAM,
    ScaleFirstScoreCAM,
)
from xai_abn import explainers as ours
from xai_abn.heatmaps import unit_range, upsample
from xai_abn.images.loading import load_image
from xai_abn.models.forward_pass import ForwardPass

IMAGES = ("astronaut", "cat")

#: Method: how we make it, which peer follows the paper.
METHODS: dict[str, tuple[Callable[[], ours.Explainer], object]] = {
    "grad-cam": (ours.GradCAM, grad_cam.GradCAM),
    "grad-cam++ (its epsilon)": (EpsilonGradCAMPlusPlus, grad_cam.GradCAMPlusPlus),
    "grad-cam++ (as published)": (ours.GradCAMPlusPlus, grad_cam.GradCAMPlusPlus),
    "xgrad-cam": (ours.XGradCAM, grad_cam.XGradCAM),
    "hires-cam": (ours.HiResCAM, grad_cam.HiResCAM),
    "grad-cam-elementwise": (ours.GradCAMElementwise, grad_cam.GradCAMElementWise),
    "layer-cam": (ours.LayerCAM, grad_cam.LayerCAM),
    "shapley-cam": (ours.ShapleyCAM, grad_cam.ShapleyCAM),
    "eigen-cam": (ours.EigenCAM, grad_cam.EigenCAM),
    "eigengrad-cam": (ours.EigenGradCAM, grad_cam.EigenGradCAM),
    "kpca-cam": (ours.KPCACAM, grad_cam.KPCA_CAM),
    "kpca-cam (its function in float64)": (ours.KPCACAM, "float64"),
    "finer-cam": (ours.FinerCAM, torchcam.FinerCAM),
    "layer-cam, torchcam": (ours.LayerCAM, torchcam.LayerCAM),
    "xgrad-cam, torchcam": (ours.XGradCAM, torchcam.XGradCAM),
    "grad-cam++, torchcam": (ours.GradCAMPlusPlus, torchcam.GradCAMpp),
    "legrad": (ours.LeGrad, torchcam.LeGrad),
}
#: Methods with a prediction for each channel.
SLOW: dict[str, tuple[Callable[[], ours.Explainer], object]] = {
    "score-cam (corners)": (CornersScoreCAM, grad_cam.ScoreCAM),
    "score-cam (scale first)": (ScaleFirstScoreCAM, torchcam.ScoreCAM),
    "is-cam (scale first)": (lambda: ScaleFirstISCAM(steps=2), torchcam.ISCAM),
    "ablation-cam": (ours.AblationCAM, grad_cam.AblationCAM),
}
#: A component's sign is arbitrary in grad-cam.
SIGNLESS = ("eigen-cam", "eigengrad-cam", "kpca-cam", "kpca-cam (its function in float64)")


def networks() -> dict[str, Callable[[int], torch.nn.Module]]:
    def vit(size: int) -> torch.nn.Module:
        network: torch.nn.Module = timm.create_model("vit_tiny_patch16_224", img_size=size)
        return network

    def torchvision_vit(size: int) -> torch.nn.Module:
        network: torch.nn.Module = torchvision.models.VisionTransformer(size, 16, 6, 4, 128, 512)
        torch.nn.init.normal_(network.get_parameter("heads.head.weight"), std=0.1)
        return network

    def plain_network(name: str, _: int) -> torch.nn.Module:
        network: torch.nn.Module = torchvision.models.get_model(name)
        return network

    plain = {n: partial(plain_network, n) for n in ("resnet18", "resnet50", "densenet121")}
    return {**plain, "vit_tiny (timm)": vit, "vit (torchvision)": torchvision_vit}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--networks", nargs="+", choices=networks(), default=list(networks()))
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, *SLOW], default=[*METHODS, *SLOW])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    machine()
    result: dict[str, dict[str, float | str]] = {}
    with densenet_out_of_place():  # grad-cam and torchcam read what an in-place ReLU overwrites
        for name in arguments.networks:
            build = networks()[name]
            for size, methods in ((224, METHODS), (96, SLOW)):
                if size == 96 and name not in ("resnet18", "vit_tiny (timm)"):
                    continue
                chosen = {m: pair for m, pair in methods.items() if m in arguments.methods}
                for method, found in compare(build(size), size, chosen).items():
                    result.setdefault(method, {})[name] = found
    columns = arguments.networks
    print("| method | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for method, row in result.items():
        cells = [row.get(c, "") for c in columns]
        print(f"| {method} | " + " | ".join(f"{c:.1e}" if isinstance(c, float) else c for c in cells) + " |")
    write_json(arguments.output, result)


def compare(module: torch.nn.Module, size: int, methods: dict[str, Any]) -> dict[str, float | str]:
    torch.manual_seed(0)
    for member in module.modules():
        if callable(reset := getattr(member, "reset_parameters", None)):
            reset()
    model = xai_abn.wrap(module)
    model = replace(model, preprocess=replace(model.preprocess, size=size))
    inputs = torch.stack([model.preprocess(load_image(f"example:{p}")).tensor for p in IMAGES])
    module.train()
    with torch.no_grad():
        module(inputs)
    module.eval()
    targets = ForwardPass(model, inputs).logits.argmax(dim=1)
    found: dict[str, float | str] = {}
    for method, (make, peer) in methods.items():
        try:
            explainer = make()
            explainer.check(model)
            theirs = peer_maps(peer, model, inputs, targets.tolist())
        except xai_abn.errors.UnsupportedModelError:
            found[method] = "n/a"
            continue
        except (RuntimeError, NotImplementedError) as error:
            found[method] = str(error) if isinstance(error, NotImplementedError) else "peer fails"
            continue
        raw = explainer.explain(ours.run_pass(model, inputs, [explainer]), targets).detach()
        if bool((theirs.amax(dim=(1, 2)) == theirs.amin(dim=(1, 2))).any()):
            found[method] = "flat"
            continue
        signs = [raw, -raw] if method in SIGNLESS else [raw]
        found[method] = float(torch.stack([gap(sign, theirs) for sign in signs]).amin(dim=0).max())
    return found


def gap(raw: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Return the largest difference of each map; both pass a ReLU, ours is then resized as theirs was."""
    size = (theirs.shape[1], theirs.shape[2])
    return (unit_range(upsample(unit_range(raw.relu()), size)) - unit_range(theirs)).abs().amax(dim=(1, 2))


def peer_maps(peer: Any, model: xai_abn.ModelAdapter, inputs: torch.Tensor, targets: list[int]) -> torch.Tensor:
    maps: torch.Tensor
    module = model.module
    if peer is torchcam.LeGrad:
        if not isinstance(module, torchvision.models.VisionTransformer):
            raise NotImplementedError("peer refuses")
        with peer(module, list(module.encoder.layers)) as extractor:
            module(inputs)
            maps = extractor(targets, normalized=False)[0].detach()
        return maps
    layer = module.get_submodule(model.target_layer)
    if peer == "float64":
        activations = ForwardPass(model, inputs, [model.target_layer]).activations(model.target_layer)
        return torch.from_numpy(get_2d_projection_kernel(activations.double().numpy())).relu()
    tokens = ForwardPass(model, inputs, [model.target_layer]).layout(model.target_layer)
    reshape = (lambda values: tokens.to_maps(values).clone()) if tokens.kind == "tokens" else None
    if peer.__module__.startswith("pytorch_grad_cam"):
        extra = {}
        if peer is grad_cam.AblationCAM and reshape is not None:
            extra["ablation_layer"] = grad_cam.ablation_layer.AblationLayerVit()
        with peer(model=module, target_layers=[layer], reshape_transform=reshape, **extra) as extractor:
            maps = torch.from_numpy(extractor(inputs, [ClassifierOutputTarget(t) for t in targets]))
        return maps
    extra = {"num_samples": 2} if peer is torchcam.ISCAM else {}
    if reshape is not None:
        if peer is torchcam.FinerCAM:
            extra["reshape_transform"] = reshape
        else:
            raise NotImplementedError("")
    with peer(module, model.target_layer, **extra) as extractor:
        scores = module(inputs)
        maps = extractor(targets, scores, normalized=True)[0].detach()
    return maps


if __name__ == "__main__":
    main()
