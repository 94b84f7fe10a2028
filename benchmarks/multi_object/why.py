"""Why does ABN's map not lead in deletion and insertion? Maps between ABN's and Grad-CAM's, scored alike.

    python -m benchmarks.multi_object.why --data imagenet-boxes:CSV [--limit 40]

The ladder: the attention map M; the logarithm behind it; the attention branch's evidence of any class at the same
resolution; the same of the top-1 class; Grad-CAM mixed over the five likeliest classes; Grad-CAM of the top-1 class.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

import xai_abn
from benchmarks._harness import machine, make_parser, write_json
from xai_abn.datasets import read_dataset
from xai_abn.explainers import ABNClass, GradCAM
from xai_abn.metrics import perturbation_curves, upsample
from xai_abn.metrics.curves import area
from xai_abn.metrics.deletion_insertion import PROTOCOLS
from xai_abn.models.folding import FastPredictor
from xai_abn.models.forward_pass import ForwardPass


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine()
    model = xai_abn.load_model()
    predict, preprocess = FastPredictor(model, bf16=True), replace(model.preprocess, crop="squash")
    images = list(read_dataset(arguments.data).samples)[: arguments.limit]
    found: dict[str, list[Any]] = {}
    for start in range(0, len(images), 10):
        tensors = [preprocess(image.load()).tensor for image in images[start : start + 10]]
        inputs = torch.stack(tensors).contiguous(memory_format=torch.channels_last)
        maps, top = ladder(model, inputs)
        large = torch.stack([upsample(m, (224, 224)) for m in maps.values()], dim=1)
        targets = top[:, None].expand(-1, len(maps))
        curves = perturbation_curves(predict, inputs, large, targets, PROTOCOLS["xai-abn"])
        assert curves.deletion is not None
        assert curves.insertion is not None
        for i, name in enumerate(maps):
            areas = [area(c[:, i], curves.axis) for c in (curves.deletion, curves.insertion)]
            found.setdefault(name, []).append(torch.stack(areas, dim=1))
    print(f"{arguments.data.split(':')[0]}, {len(images)} images: deletion (lower is better), insertion (higher)")
    result = {name: torch.cat(parts).mean(dim=0).tolist() for name, parts in found.items()}
    for name, (deletion, insertion) in result.items():
        print(f"  {name:<44} {deletion:.3f} {insertion:.3f}")
    write_json(arguments.output, result)


def ladder(model: xai_abn.ModelAdapter, inputs: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    assert isinstance(model.module, xai_abn.AttentionBranchNetwork)
    kept: dict[str, torch.Tensor] = {}
    norm = model.module.get_submodule("attention_branch.bn_att3")
    handle = norm.register_forward_hook(lambda m, i, o: kept.update(z=o.detach()))
    shared = ForwardPass(model, inputs, [model.target_layer], gradients=True)
    handle.remove()
    assert shared.attention_map is not None
    assert shared.class_maps is not None
    top = shared.logits.argmax(dim=1)
    five = shared.probabilities.topk(5)
    weights = five.values[:, :, None, None]
    each = torch.stack([GradCAM().explain(shared, five.indices[:, k]) for k in range(5)], dim=1)
    return {
        "M": shared.attention_map[:, 0],
        "M before sigmoid and smoothing": kept["z"][:, 0],
        "attention branch, any class (log-sum-exp)": shared.class_maps.logsumexp(dim=1),
        "attention branch, top-1 class (abn-class)": ABNClass().explain(shared, top),
        "Grad-CAM, five classes by probability": (weights * each).sum(dim=1),
        "Grad-CAM, top-1 class": GradCAM().explain(shared, top),
    }, top


if __name__ == "__main__":
    main()
