"""How much does an explanation cost, as a multiple of one bare forward pass? Ours and three peers, one run.

    pip install "xai-abn[benchmarks]"
    python -m benchmarks.speed.run [--repeats 11] [--output results.json]

Every contender gets the same network (random weights), input and two threads. Within a round each takes its
turn, between two turns of the bare forward (``torch.inference_mode()``, the fastest way to predict). A turn is
the median of three calls in a row (at batch 8, one call), without Python's garbage collector, as timeit does.
The figure is the median over rounds of the ratio to the mean of the two neighboring bare turns, so that a
noisy moment hits both.
"""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Callable
from typing import Any

import psutil
import timm
import torch
import torchvision

import xai_abn
from benchmarks._harness import machine, make_parser, ratios, write_json
from xai_abn.explainers import ABN, CAM, GradCAM
from xai_abn.images.loading import load_image
from xai_abn.models.forward_pass import ForwardPass

TARGET_RATIOS = {"ours: grad-cam": 1.10, "ours: cam + grad-cam": 1.15, "ours: abn / abn's prediction": 1.05}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--explanations", type=int, default=1000, help="for the memory")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    result: dict[str, Any] = {**machine(), "repeats": arguments.repeats, "ratios": {}}
    for name in arguments.networks:
        for batch in arguments.batches:
            result["ratios"][f"{name}, batch {batch}"] = measure(NETWORKS[name], batch, arguments.repeats)
            show(f"{name}, batch {batch}", result["ratios"][f"{name}, batch {batch}"])
    result["memory"] = memory(arguments.explanations)
    print(f"\n{arguments.explanations:,} explanations: {result['memory']}")
    result["left_behind"] = left_behind()
    print(f"left on the model afterwards: {result['left_behind']}")
    write_json(arguments.output, result)


NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "lite0": lambda: timm.create_model("tf_efficientnet_lite0"),
    "resnet50": lambda: torchvision.models.resnet50(),
}


def measure(build: Callable[[], torch.nn.Module], batch: int, repeats: int) -> dict[str, float]:
    """Return each contender's median ratio to the bare forward of the same round."""
    torch.manual_seed(0)
    module = build().eval().to(memory_format=torch.channels_last)
    inputs = torch.randn(batch, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    network = xai_abn.abn_from(module).to(memory_format=torch.channels_last)
    contenders = {**ours(module, inputs), **peers(module, inputs)}
    abn = {"abn's prediction": bare(network, inputs), "ours: abn": explain_abn(network, inputs)}
    calls = 3 if batch == 1 else 1
    plain_ratios = ratios(bare(module, inputs), contenders, repeats, calls)
    abn_ratio = ratios(abn["abn's prediction"], {"ours: abn / abn's prediction": abn["ours: abn"]}, repeats, calls)
    return {**plain_ratios, **abn_ratio}


def bare(module: torch.nn.Module, inputs: torch.Tensor) -> Callable[[], object]:
    def call() -> None:
        with torch.inference_mode():
            module(inputs)

    return call


def explain_abn(network: torch.nn.Module, inputs: torch.Tensor) -> Callable[[], object]:
    model = xai_abn.wrap(network)
    return lambda: ABN().explain(ForwardPass(model, inputs), torch.arange(len(inputs)))


def ours(module: torch.nn.Module, inputs: torch.Tensor) -> dict[str, Callable[[], object]]:
    model = xai_abn.wrap(module)
    layer = model.target_layer
    targets = torch.arange(len(inputs))

    def grad_cam() -> None:
        GradCAM().explain(ForwardPass(model, inputs, [layer], gradients=True), targets)

    def both() -> None:
        shared = ForwardPass(model, inputs, [layer], gradients=True)
        CAM().explain(shared, targets)
        GradCAM().explain(shared, targets)

    return {"ours: grad-cam": grad_cam, "ours: cam + grad-cam": both}


def peers(module: torch.nn.Module, inputs: torch.Tensor) -> dict[str, Callable[[], object]]:
    from captum.attr import LayerGradCam
    from pytorch_grad_cam import GradCAM as PeerGradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    from torchcam.methods import GradCAM as TorchCAMGradCAM

    name = xai_abn.wrap(module).target_layer
    layer = module.get_submodule(name)
    targets = list(range(len(inputs)))

    def grad_cam() -> None:
        with PeerGradCAM(model=module, target_layers=[layer]) as explainer:
            explainer(inputs, [ClassifierOutputTarget(t) for t in targets])
        module.zero_grad(set_to_none=True)

    def torchcam() -> None:
        with TorchCAMGradCAM(module, name) as explainer:
            explainer(targets, module(inputs))

    def captum() -> None:
        LayerGradCam(module, layer).attribute(inputs, target=torch.tensor(targets), relu_attributions=True)

    return {"grad-cam: grad-cam": grad_cam, "torchcam: grad-cam": torchcam, "captum: grad-cam": captum}


def memory(explanations: int) -> dict[str, float]:
    """Resident memory over many explanations of one image: after a tenth, half and all of them, in MiB."""
    model = xai_abn.load_model("lite0")
    image = load_image("example:cat").image
    process, marks = psutil.Process(), {}
    for i in range(1, explanations + 1):
        xai_abn.explain(model, image, ["cam", "grad-cam"])
        if i in (explanations // 10, explanations // 2, explanations):
            gc.collect()
            marks[f"MiB after {i}"] = round(process.memory_info().rss / 2**20, 1)
    return marks


def left_behind() -> dict[str, int]:
    """Count hooks, changed modes, gradients and flags after an explanation of a network in training mode."""
    module = torchvision.models.resnet50().train()
    ForwardPass(xai_abn.wrap(module), torch.zeros(2, 3, 64, 64), ["layer4"], gradients=True).gradients(
        "layer4", torch.tensor([0, 1])
    )
    return {
        "hooks": sum(
            len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in module.modules()
        ),
        "modes changed": sum(not m.training for m in module.modules()),
        "gradients": sum(p.grad is not None for p in module.parameters()),
        "flags changed": sum(not p.requires_grad for p in module.parameters()),
    }


def show(title: str, values: dict[str, float]) -> None:
    print(f"\n{title}: multiples of a bare forward (median)")
    for name, ratio in values.items():
        limit = TARGET_RATIOS.get(name)
        note = "" if limit is None else f"  target {limit:.2f}: {'met' if ratio <= limit else 'MISSED'}"
        print(f"  {name:<32} {ratio:6.2f}{note}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
