"""What every registered metric promises: a name, a definition, a range, a record in JSON."""

from __future__ import annotations

import inspect
import json

import pytest
import torch
from torch import nn

from xai_abn import metrics
from xai_abn.errors import InvalidInputError, UnknownNameError
from xai_abn.metrics import Metric, Objects, Scores, Subject

NAMES = metrics.names()
BLACK = {"black": torch.tensor([-2.1, -2.0, -1.8])}
PUBLIC = [name for name in metrics.__all__ if inspect.isfunction(getattr(metrics, name))]


def random_case(metric, seed):
    """Return the metric's values (N,) on three seeded images of 64 pixels, with signed maps of 8x8."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 4))
    net.eval()
    inputs, maps, targets = torch.randn(3, 3, 64, 64), torch.randn(3, 8, 8), torch.tensor([0, 3, 1])

    def boxes():
        corners = torch.randint(0, 40, (2, 2))
        return Objects.from_boxes(torch.cat([corners, corners + torch.randint(5, 24, (2, 2))], dim=1), (64, 64))

    def explain(inputs, targets, module=None):
        module = net if module is None else module
        with torch.enable_grad():
            features = module[:2](inputs)
            chosen = module[2:](features).gather(1, targets[:, None]).sum()
            gradient = torch.autograd.grad(chosen, features)[0]
        return (gradient * features).sum(dim=1).detach()

    own, others = [boxes() for _ in range(3)], [boxes() for _ in range(3)]
    known = {"maps": maps, "inputs": inputs, "targets": targets, "predict": net, "objects": own, "others": others}
    known |= {"explain": explain, "module": net, "classes": 4}
    given = {name: known[name] for name in metric.arguments}
    return metric.function(**given, **(BLACK if metric.protocol == "pid-2022" else {}))


def test_names_are_unique_and_hold_a_protocol():
    """``name:protocol`` of each is its key, and no two are alike."""
    assert len(NAMES) == len(set(NAMES)) > 20
    for name in NAMES:
        assert name == metrics.get(name).full_name
        assert all(part and part == part.strip() for part in name.split(":"))
        assert name.count(":") == 1


@pytest.mark.parametrize("short", list(dict.fromkeys(name.split(":")[0] for name in NAMES)))
def test_a_name_alone_is_its_first_protocol(short):
    """The default protocol is the one registered first."""
    first = next(name for name in NAMES if name.split(":")[0] == short)
    assert metrics.get(short) is metrics.get(first)


def test_the_default_protocols():
    """Changing a default changes everybody's numbers: they are these."""
    assert metrics.get("deletion").protocol == metrics.get("insertion").protocol == "xai-abn"
    assert metrics.get("average-drop").protocol == "grad-cam++-2018"
    assert metrics.get("max-box-accuracy").protocol == "wsol-v1"
    assert metrics.get("pointing-game").protocol == "torchray-15px"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("deletoin", "deletion"),
        ("pointing_game", "pointing-game"),
        ("deletion:rise-2019", "deletion:rise-2018"),
        ("Gini", "gini"),
    ],
)
def test_an_unknown_name_is_met_with_the_nearest(wrong, right):
    """The error is typed and its message suggests what was meant."""
    with pytest.raises(UnknownNameError, match=right) as caught:
        metrics.get(wrong)
    assert right in caught.value.nearest
    assert isinstance(caught.value, LookupError)


def test_a_taken_name_is_refused():
    """Registering ``name:protocol`` twice is an error, and the first stays."""
    metric = metrics.get("gini")
    with pytest.raises(InvalidInputError, match="registered already"):
        metrics.register(metric)
    assert metrics.get("gini") is metric


@pytest.mark.parametrize("name", NAMES)
def test_the_record_is_strict_json(name):
    """No NaN, no infinity, no functions; an open end of the range is null; reading it back gives the same."""
    metric = metrics.get(name)
    record = metric.to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == json.loads(json.dumps(record))
    assert (record["name"], record["protocol"]) == (metric.name, metric.protocol)
    assert record["subject"] in [s.value for s in Subject]
    assert record["aggregated"] in ("mean", "data-set")
    assert len(record["range"]) == 2


@pytest.mark.parametrize("name", NAMES)
def test_definitions_say_something(name):
    """Definition, source and units are there; the definition is a sentence; a range has its ends in order."""
    metric = metrics.get(name)
    assert isinstance(metric, Metric)
    assert len(metric.definition.split()) > 5
    assert metric.definition.endswith(".")
    assert metric.source
    assert metric.units
    assert metric.range[0] < metric.range[1]
    assert metric.higher_is_better in (True, False, None)
    assert metric.flat_counts_as is None or metric.range[0] <= metric.flat_counts_as <= metric.range[1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_values_stay_in_the_range(name, seed):
    """On random images every map has one value, inside the range; curves, where there are any, have a row an image."""
    metric = metrics.get(name)
    found = random_case(metric, seed)
    values = found.values if isinstance(found, Scores) else found
    assert values.shape == (3,)
    if name.split(":")[0] not in ("pointing-game-difficult", "model-parameter-randomization"):
        assert values.isfinite().all()
    known = values[~values.isnan()].double()
    low, high = metric.range
    assert ((known >= low - 1e-6) & (known <= high + 1e-6)).all()
    if isinstance(found, Scores) and found.curves is not None:
        assert len(found.curves) == 3
        assert found.curves.isfinite().all()
    assert not values.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_values_are_reproducible(name):
    """The same call twice gives the same values, and leaves the random state alone."""
    metric = metrics.get(name)
    first = random_case(metric, 5)
    state = torch.get_rng_state()
    again = random_case(metric, 5)
    assert torch.get_rng_state().equal(state)
    values = [f.values if isinstance(f, Scores) else f for f in (first, again)]
    torch.testing.assert_close(*values, equal_nan=True)


def test_metrics_that_combine_curves_return_them():
    """An aggregate over the data set needs curves, takes (N, T) and weights, and stays in the range."""
    combined = [metrics.get(name) for name in NAMES if metrics.get(name).aggregate]
    assert len(combined) >= 3
    for metric in combined:
        found = random_case(metric, 0)
        value = metric.aggregate(found.curves.numpy(), torch.full((3,), 1 / 3).double().numpy())
        assert isinstance(value, float)
        assert metric.range[0] <= value <= metric.range[1]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_are_documented(name):
    """Each has a docstring whose first line is a sentence or the start of one."""
    text = inspect.getdoc(getattr(metrics, name))
    assert text
    assert text.split("\n")[0].rstrip().endswith((".", ","))


def test_everything_public_exists():
    """``__all__`` is sorted and every name in it can be had."""
    assert sorted(metrics.__all__) == list(metrics.__all__)
    for name in metrics.__all__:
        assert hasattr(metrics, name)


def test_the_function_of_a_metric_names_what_it_needs():
    """Parameters with a default are options; any other name is refused when the metric is made."""
    fields = {"higher_is_better": None, "range": (0, 1), "units": "1", "source": "here", "definition": "A test."}
    made = Metric("some", "test", function=lambda maps, objects, share=0.2: maps, **fields)
    assert made.arguments == ("maps", "objects")
    with pytest.raises(InvalidInputError, match=r"some:test must name what it needs, out of maps, .*; got 'heatmaps'"):
        Metric("some", "test", function=lambda heatmaps: heatmaps, **fields)
