"""What do ten CAM methods cost together, and Score-CAM and Ablation-CAM beside their peers? One run.

    pip install "xai-abn[benchmarks]"
    python -m benchmarks.cam_family.speed [--repeats 7] [--output speed.json]

scikit-image's images, 224x224, float32; lite0 has its own weights, the others random ones. Within a round every
contender takes its turn between two turns of the bare forward (``torch.inference_mode()``), all in channels_last; the
figure is the median over rounds of the ratio to their mean. Score-CAM and Ablation-CAM take turns with their peers, on
the network as it is loaded, one image, and the last layer cut to --channels channels (the same for all: the cost is
linear in them); the maps are compared.
"""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import warnings
from collections.abc import Callable
from typing import Any

import pytorch_grad_cam as grad_cam
import timm
import torch
import torchcam.methods as torchcam
import torchvision
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

import xai_abn
from benchmarks._harness import machine, make_parser, ratios, time_in_turns, write_json
from benchmarks.cam_family.peer_variants import CornersScoreCAM, ScaleFirstScoreCAM
from xai_abn import explainers as ours
from xai_abn.heatmaps import unit_range, upsample
from xai_abn.images.loading import load_image
from xai_abn.models.forward_pass import ForwardPass

NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "resnet50": torchvision.models.resnet50,
    "lite0": lambda: xai_abn.load_model("lite0").module,
    "vit_small": lambda: timm.create_model("vit_small_patch16_224"),
}
TEN = {
    "cnn": "cam grad-cam grad-cam++ hires-cam xgrad-cam layer-cam eigen-cam eigengrad-cam grad-cam-elementwise "
    "finer-cam",
    "vit": "kpca-cam grad-cam grad-cam++ hires-cam xgrad-cam layer-cam eigen-cam eigengrad-cam grad-cam-elementwise "
    "finer-cam",
}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--channels", type=int, default=128)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    result: dict[str, Any] = {**machine(), "ten": {}, "masked": {}}
    for name in arguments.networks:
        build = NETWORKS[name]
        torch.manual_seed(0)
        module = build().eval().to(memory_format=torch.channels_last)
        for batch in arguments.batches:
            title = f"{name}, batch {batch}"
            result["ten"][title] = ten(module, batch, "vit" if "vit" in name else "cnn", arguments.repeats)
            print(title, result["ten"][title], flush=True)
        if "vit" not in name:
            torch.manual_seed(0)
            result["masked"][name] = masked(build().eval(), arguments.channels, (arguments.repeats + 1) // 2)
            print(name, json.dumps(result["masked"][name], indent=1), flush=True)
    write_json(arguments.output, result)


def ten(module: torch.nn.Module, batch: int, kind: str, repeats: int) -> dict[str, float]:
    """Return the cost of contenders as multiples of a bare forward."""
    inputs = load_images(batch).contiguous(memory_format=torch.channels_last)
    model, targets = xai_abn.wrap(module), torch.arange(batch)
    methods = [ours.get(name)() for name in TEN[kind].split()]
    assert len(methods) == 10

    def bare() -> None:
        with torch.inference_mode():
            module(inputs)

    def all_ten() -> None:
        shared = ours.run_pass(model, inputs, methods)
        for method in methods:
            method.explain(shared, targets)

    def one() -> None:
        ours.GradCAM().explain(ours.run_pass(model, inputs, [ours.GradCAM()]), targets)

    layer = module.get_submodule(model.target_layer)
    layout = ForwardPass(model, inputs, [model.target_layer]).layout(model.target_layer)

    def reshape(values: torch.Tensor) -> torch.Tensor:
        return layout.to_maps(values).clone()

    def peer_grad_cam() -> None:
        with grad_cam.GradCAM(model=module, target_layers=[layer], reshape_transform=reshape) as peer:
            peer(inputs, [ClassifierOutputTarget(int(t)) for t in targets])
        module.zero_grad(set_to_none=True)

    def peer_torchcam() -> None:
        with torchcam.GradCAM(module, model.target_layer, reshape_transform=reshape) as peer:
            peer(targets.tolist(), module(inputs))

    contenders = {
        "ours: ten methods": all_ten,
        "ours: grad-cam": one,
        "grad-cam: grad-cam": peer_grad_cam,
        "torchcam: grad-cam": peer_torchcam,
    }
    return ratios(bare, contenders, repeats)


def load_images(number: int) -> torch.Tensor:
    """Return four images (N, 3, 224, 224), normalized, again and again."""
    names = ("cat", "astronaut", "coffee", "rocket")
    preprocess = xai_abn.Preprocess()
    return torch.stack([preprocess(load_image(f"example:{names[n % 4]}")).tensor for n in range(number)])


def masked(module: torch.nn.Module, channels: int, repeats: int) -> dict[str, dict[str, float]]:
    """Return the peers' times as multiples of ours, and the largest difference of the maps."""
    cut = FewChannels(module, channels).eval()
    model = xai_abn.wrap(cut, layer="few")
    inputs = load_images(1)
    contenders = {
        "score-cam, grad-cam": (CornersScoreCAM(), grad_cam.ScoreCAM),
        "score-cam, torchcam": (ScaleFirstScoreCAM(), torchcam.ScoreCAM),
        "ablation-cam, grad-cam": (ours.AblationCAM(), grad_cam.AblationCAM),
    }
    found = {}
    for title, (explainer, peer) in contenders.items():
        maps: dict[str, torch.Tensor] = {}

        def ours_(explainer: ours.Explainer = explainer, maps: dict[str, Any] = maps) -> None:
            maps["ours"] = explainer.explain(ours.run_pass(model, inputs, [explainer]), torch.tensor([3]))

        def theirs(peer: type = peer, maps: dict[str, Any] = maps) -> None:
            maps["theirs"] = run_peer(peer, cut, inputs)

        times = time_in_turns({"ours": ours_, "theirs": theirs}, repeats)
        multiples = [b / a for a, b in zip(times["ours"], times["theirs"], strict=True)]
        mine = unit_range(upsample(unit_range(maps["ours"]), (maps["theirs"].shape[1], maps["theirs"].shape[2])))
        gap = float((mine - unit_range(maps["theirs"])).abs().max())
        found[title] = {"times ours": round(statistics.median(multiples), 2), "largest difference": gap}
    return found


class FewChannels(torch.nn.Module):
    """A network whose last layer gives only some channels; its own head reads those, the rest being 0."""

    def __init__(self, network: torch.nn.Module, channels: int) -> None:
        super().__init__()
        self.network, self.few, self.channels = network, torch.nn.Identity(), channels
        name = xai_abn.wrap(network).target_layer
        network.get_submodule(name).register_forward_hook(self._cut)

    def _cut(self, _module: torch.nn.Module, _inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        kept = self.few(output[:, : self.channels])
        return torch.cat([kept, output.new_zeros(len(kept), output.shape[1] - self.channels, *output.shape[2:])], 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:  # noqa: D102
        logits: torch.Tensor = self.network(inputs)
        return logits


def run_peer(peer: Any, module: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    with contextlib.redirect_stderr(io.StringIO()):
        if peer.__module__.startswith("pytorch_grad_cam"):
            with peer(model=module, target_layers=[module.few]) as extractor:
                return torch.from_numpy(extractor(inputs, [ClassifierOutputTarget(3)]))
        with torch.no_grad(), peer(module, "few") as extractor:
            maps: torch.Tensor = extractor([3], module(inputs))[0]
            return maps


if __name__ == "__main__":
    main()
