"""``xai-abn list``: names and options that the other commands take."""

from __future__ import annotations

import inspect
from enum import Enum
from typing import Annotated

import typer


class Subject(str, Enum):
    """What can be listed."""

    METHODS = "methods"
    METRICS = "metrics"
    MODELS = "models"
    DATASETS = "datasets"
    ARCHITECTURES = "architectures"
    LAYERS = "layers"


def command(
    subject: Annotated[Subject, typer.Argument(help="What to list.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="For layers: the model whose layers to list.", metavar="MODEL")
    ] = "abn-lite0",
    weights: Annotated[
        str | None, typer.Option(help="For layers: weights file, or 'random'.", metavar="FILE|random")
    ] = None,
    search: Annotated[str, typer.Option("--search", "-s", help="Show only names that contain this text.")] = "",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="For methods: list the options of each.")] = False,
) -> None:
    """List the methods, metrics, models, kinds of data sets, networks to train, or the layers of a model."""
    from xai_abn.cli._console import print_table

    if subject is Subject.METHODS and verbose:
        print_table(("method", "option", "default", "meaning"), _method_options(search))
        return
    rows = [row for row in _BUILDERS[subject](model, weights) if search.casefold() in row[0].casefold()]
    print_table(_COLUMNS[subject], rows)


_COLUMNS = {
    Subject.METHODS: ("method", "per class", "cost beyond the prediction", "map on", "source"),
    Subject.METRICS: ("metric", "better", "maps scored", "source"),
    Subject.MODELS: ("model", "what it is"),
    Subject.DATASETS: ("data", "what it is"),
    Subject.ARCHITECTURES: ("architecture", "input", "what it is"),
    Subject.LAYERS: ("layer", "kind", "output", ""),
}


def _methods(model: str, weights: str | None) -> list[tuple[str, ...]]:
    from xai_abn import explainers

    found = [(name, explainers.get(name)()) for name in explainers.names()]
    return [(name, "yes" if e.class_specific else "no", e.cost, e.grid, e.source) for name, e in found]


def _method_options(search: str) -> list[tuple[str, str, str, str]]:
    """Return, for each method whose name contains a text, one row about the method and one for each option."""
    from xai_abn import explainers

    rows = []
    for name in explainers.names():
        if search.casefold() in name.casefold():
            kind = explainers.get(name)
            rows.append((name, "", "", (inspect.getdoc(kind) or kind.source).splitlines()[0]))
            rows += [("", *option) for option in kind.describe()]
    return rows


def _metrics(model: str, weights: str | None) -> list[tuple[str, ...]]:
    from xai_abn import metrics

    better = {True: "higher", False: "lower", None: "neither"}
    found = [metrics.get(name) for name in metrics.names()]
    return [(m.full_name, better[m.higher_is_better], m.subject.value, m.source) for m in found]


def _models(model: str, weights: str | None) -> list[tuple[str, ...]]:
    from xai_abn.models import zoo
    from xai_abn.networks import architectures

    rows: list[tuple[str, ...]] = [
        (name, (inspect.getdoc(zoo.models[name]) or "a plug-in").splitlines()[0]) for name in zoo.models
    ]
    rows += [(f"torchvision:{name}", "torchvision") for name in architectures.torchvision_names()]
    return rows + [(f"timm:{name}", "timm") for name in architectures.timm_names()]


def _datasets(model: str, weights: str | None) -> list[tuple[str, ...]]:
    from xai_abn.datasets import READERS

    return [(f"{name}:", (inspect.getdoc(READERS[name]) or "a plug-in").splitlines()[0]) for name in READERS]


def _architectures(model: str, weights: str | None) -> list[tuple[str, ...]]:
    from xai_abn.networks.architectures import FAMILIES, architectures

    found = [(name, architectures[name]) for name in architectures.names()]
    rows: list[tuple[str, ...]] = [(name, f"{a.size}x{a.size}", a.description) for name, a in found]
    return rows + [(family.form.replace("{}", "N"), "32x32", "of any size; N is a number") for family in FAMILIES]


def _layers(model: str, weights: str | None) -> list[tuple[str, ...]]:
    from xai_abn.models.zoo import load_model

    adapter = load_model(model, weights=weights)
    target = adapter.target_layer
    return [
        (o.name, o.kind, "x".join(map(str, o.shape[1:])), "target layer" if o.name == target else "")
        for o in adapter.spatial_layers()
    ]


_BUILDERS = {
    Subject.METHODS: _methods,
    Subject.METRICS: _metrics,
    Subject.MODELS: _models,
    Subject.DATASETS: _datasets,
    Subject.ARCHITECTURES: _architectures,
    Subject.LAYERS: _layers,
}
