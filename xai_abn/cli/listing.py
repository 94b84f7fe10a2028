"""``xai-abn list``: names and options that the other commands take."""

from __future__ import annotations

import inspect
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xai_abn.cli import methods, options
from xai_abn.cli.settings import with_settings
from xai_abn.errors import InvalidInputError
from xai_abn.models.settings import ModelSettings

if TYPE_CHECKING:
    from xai_abn.models.adapter import ModelAdapter


class Subject(str, Enum):
    """What can be listed."""

    METHODS = "methods"
    METRICS = "metrics"
    MODELS = "models"
    DATASETS = "datasets"
    ARCHITECTURES = "architectures"
    LAYERS = "layers"
    LABELS = "labels"


@with_settings(
    {"model": ModelSettings}, short={"model": "-m"}, panels={options.MODEL: tuple(ModelSettings.model_fields)}
)
def command(
    subject: Annotated[Subject, typer.Argument(help="What to list. Layers and labels are those of --model.")],
    model: dict[str, Any],
    search: Annotated[str, typer.Option("--search", "-s", help="Show only names that contain this text.")] = "",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="For methods: list the options of each.")] = False,
) -> None:
    """List methods, metrics, models, kinds of data sets, networks to train, or a model's layers or labels."""
    from xai_abn.cli._console import print_table

    columns = _COLUMNS[subject]
    if subject in _OF_MODEL or model:  # settings that are given are checked, whether or not they matter
        chosen = options.chosen_model(model)
    found = _OF_MODEL[subject](chosen.load()) if subject in _OF_MODEL else _BUILDERS[subject]()
    rows = [row for row in found if search.casefold() in row[0].casefold()]
    if search and not rows:
        raise InvalidInputError(f"no {columns[0]} contains {search!r}")
    if subject is Subject.METHODS and verbose:
        columns, rows = ("method", "option", "default", "meaning"), _method_options([row[0] for row in rows])
    print_table(columns, [tuple(cell.replace("``", "") for cell in row) for row in rows])


_COLUMNS: dict[Subject, tuple[str, ...]] = {
    Subject.METHODS: ("method", "per class", "cost beyond the prediction", "map on", "source"),
    Subject.METRICS: ("metric", "better", "maps scored", "source"),
    Subject.MODELS: ("model", "what it is"),
    Subject.DATASETS: ("data", "what it is"),
    Subject.ARCHITECTURES: ("architecture", "input", "what it is"),
    Subject.LAYERS: ("layer", "kind", "output", ""),
    Subject.LABELS: ("label", "index"),
}


def _methods() -> list[tuple[str, ...]]:
    return [
        (name, "yes" if m["class_specific"] else "no", m["cost"], m["grid"], m["source"])
        for name, m in methods.known().items()
    ]


def _method_options(names: list[str]) -> list[tuple[str, ...]]:
    """Return, for each method, one row about the method and one for each option."""
    rows: list[tuple[str, ...]] = []
    for name, method in methods.known().items():
        if name in names:
            rows.append((name, "", "", method["summary"]))
            rows += [("", *option) for option in method["options"]]
    return rows


def _metrics() -> list[tuple[str, ...]]:
    from xai_abn import metrics

    better = {True: "higher", False: "lower", None: "neither"}
    found = [metrics.get(name) for name in metrics.names()]
    return [(m.full_name, better[m.higher_is_better], m.subject.value, m.source) for m in found]


def _models() -> list[tuple[str, ...]]:
    from xai_abn.models import zoo
    from xai_abn.networks import architectures

    rows: list[tuple[str, ...]] = [
        (name, (inspect.getdoc(zoo.models[name]) or "a plug-in").splitlines()[0]) for name in zoo.models
    ]
    rows += [(f"torchvision:{name}", "torchvision") for name in architectures.torchvision_names()]
    for task in ("segmentation", "detection"):
        rows += [(f"torchvision:{name}", f"torchvision, {task}") for name in architectures.torchvision_names(task)]
    return rows + [(f"timm:{name}", "timm") for name in architectures.timm_names()]


def _datasets() -> list[tuple[str, ...]]:
    from xai_abn.datasets import READERS

    return [(f"{name}:", (inspect.getdoc(READERS[name]) or "a plug-in").splitlines()[0]) for name in READERS]


def _architectures() -> list[tuple[str, ...]]:
    from xai_abn.networks.architectures import FAMILIES, architectures

    found = [(name, architectures[name]) for name in architectures.names()]
    rows: list[tuple[str, ...]] = [(name, f"{a.size}x{a.size}", a.description) for name, a in found]
    return rows + [(family.form.replace("{}", "N"), "32x32", "of any size; N is a number") for family in FAMILIES]


def _layers(adapter: ModelAdapter) -> list[tuple[str, ...]]:
    target = adapter.target_layer
    return [
        (o.name, o.kind, "x".join(map(str, o.shape[1:])), "target layer" if o.name == target else "")
        for o in adapter.spatial_layers()
    ]


def _labels(adapter: ModelAdapter) -> list[tuple[str, ...]]:
    if adapter.labels is None:
        raise InvalidInputError(
            f"{adapter.name} has no labels; give them with --labels FILE, or use indices as targets"
        )
    return [(label, str(index)) for index, label in enumerate(adapter.labels)]


_BUILDERS = {
    Subject.METHODS: _methods,
    Subject.METRICS: _metrics,
    Subject.MODELS: _models,
    Subject.DATASETS: _datasets,
    Subject.ARCHITECTURES: _architectures,
}
_OF_MODEL = {Subject.LAYERS: _layers, Subject.LABELS: _labels}
