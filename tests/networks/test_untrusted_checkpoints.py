"""A checkpoint's description is not trusted: each odd one is one error, before any memory is taken for a network."""

from __future__ import annotations

import contextlib
import json
import resource
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import xai_abn
from xai_abn.errors import CheckpointError, InvalidInputError, XaiAbnError
from xai_abn.networks.checkpoint import CheckpointConfig, read_tensors, save_checkpoint

FORMATS = Path(__file__).parents[1] / "formats"
GOLDEN = {path.stem: read_tensors(path) for path in sorted(FORMATS.glob("checkpoint-*.safetensors"))}
SECONDS, BYTES = 15, 300 * 2**20


def changed(name, path, *place, value):
    """Write a golden checkpoint with another value at a place of its description."""
    header, state = GOLDEN[name]
    config = json.loads(header["config"])
    inner = config
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    save_file(state, path, metadata={**header, "config": json.dumps(config)})
    return path


def refused(path, message="x.safetensors"):
    """Loading raises one error of the package, soon and without much memory."""
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=message) as caught:
        xai_abn.load_model(path)
    assert time.monotonic() - started < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES
    assert len(caught.value.line) < 1000


LARGE = [
    (("classes",), 10_000_000),
    (("classes",), 10**30),
    (("classes",), 0),
    (("backbone",), "timm:eva_giant_patch14_224"),
    (("backbone",), "torchvision:vit_h_14"),
    (("backbone",), "torchvision:regnet_y_128gf"),
    (("preprocess", "size"), 1_000_000),
    (("preprocess", "mean"), [0.5] * 100_000),
    (("labels",), ["x" * 100_000] * 3),
    (("labels",), ["x"] * 100_000),
    (("labels",), "imagenet"),
    (("backbone",), "resnet" * 100_000),
    (("backbone",), "resnet1994"),
    (("backbone",), "resnet1994-bottleneck"),
    (("backbone",), "densenet-bc-250-48"),
    (("backbone",), "wrn-196-32"),
    (("backbone",), "resnext200-64x64d"),
    (("backbone",), "wrn-28-999999999"),
]


@pytest.mark.parametrize("name", ["checkpoint-v1-abn", "checkpoint-v2-abn", "checkpoint-v2-classifier"])
@pytest.mark.parametrize(("place", "value"), LARGE, ids=lambda v: str(v)[:30])
def test_numbers_and_names_take_no_memory(name, place, value, tmp_path):
    """Large networks, inputs and labels are refused before they are built, by the tensors in the file."""
    refused(changed(name, tmp_path / "x.safetensors", *place, value=value))


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("checkpoint-v1-abn", ("abn", "smoothing"), 1_000_000),
        ("checkpoint-v1-abn", ("abn", "input_size"), 1_000_000),
        ("checkpoint-v1-abn", ("abn", "start"), 5),
        ("checkpoint-v1-abn", ("abn", "other"), 5),
        ("checkpoint-v1-abn", ("abn", "layer"), "x" * 100_000),
        ("checkpoint-v1-abn", ("abn", "mechanism"), "x" * 100_000),
        ("checkpoint-v2-abn", ("abn", "layer"), "x" * 100_000),
        ("checkpoint-v2-abn", ("abn", "mechanism"), "x" * 100_000),
        ("checkpoint-v2-abn", ("abn", "smoothing"), 1_000_000),
        ("checkpoint-v2-abn", ("abn", "channels"), 10_000_000),
        ("checkpoint-v2-abn", ("abn", "stage_channels"), 50_000),
        ("checkpoint-v2-abn", ("abn", "windows"), {"blocks.4.0.conv_dw": {"forward": [1, 1]}}),
        ("checkpoint-v2-abn", ("abn", "windows"), {"no.such.module": {"stride": [1, 1]}}),
        ("checkpoint-v2-abn", ("abn", "windows"), {"blocks.4.0.conv_dw": {"stride": [1] * 1000}}),
        ("checkpoint-v2-abn", ("abn", "stage"), "node:nothing"),
        ("checkpoint-v2-abn", ("abn", "maps"), "all"),
        ("checkpoint-v2-vit", ("abn", "layer"), "blocks.x"),
        ("checkpoint-v2-vit", ("abn", "layer"), "blocks.-5"),
        ("checkpoint-v2-vit", ("abn", "layer"), "blocks.99"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_cuts_that_are_none_are_refused(name, place, value, tmp_path):
    """Bounds, unknown modules, attributes that are no window's."""
    refused(changed(name, tmp_path / "x.safetensors", *place, value=value))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_value_anywhere_gives_a_model_or_one_error(data, tmp_path_factory):
    """Every field of every kind of checkpoint, with values of every type."""
    name = data.draw(st.sampled_from(sorted(GOLDEN)))
    config = json.loads(GOLDEN[name][0]["config"])
    places = [(field,) for field in config]
    places += [(o, field) for o in ("abn", "preprocess") if config[o] for field in config[o]]
    place = data.draw(st.sampled_from(places))
    path = changed(name, tmp_path_factory.getbasetemp() / "any.safetensors", *place, value=data.draw(VALUES))
    with contextlib.suppress(XaiAbnError):
        assert xai_abn.load_model(path).number_of_classes == 3


@pytest.mark.parametrize("name", ["checkpoint-v1-abn", "checkpoint-v2-abn"])
@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "", "5", "[]", "null", '{"classes": ' + "9" * 5000 + "}", "{", "é"],
    ids=lambda text: text[:12],
)
def test_texts_that_are_no_description_are_refused(name, text, tmp_path):
    """Nested without end, numbers without end, no JSON."""
    header, state = GOLDEN[name]
    save_file(state, tmp_path / "x.safetensors", metadata={**header, "config": text})
    refused(tmp_path / "x.safetensors", "the description is damaged")


def test_a_wrong_type_is_told_with_field_and_value(tmp_path):
    """What was expected, and what came."""
    for place, value, message in (
        (("classes",), "100", r"classes: .*integer, got '100'"),
        (("backbone",), None, r"backbone: .*string, got None"),
        (("abn",), 5, r"abn: .*got 5"),
        (("abn", "smoothing"), True, r"abn\.smoothing: .*integer, got True"),
        (("preprocess", "size"), "64", r"preprocess\.size: .*integer, got '64'"),
        (("labels",), 5, r"labels.*got 5"),
    ):
        refused(changed("checkpoint-v2-abn", tmp_path / "x.safetensors", *place, value=value), message)
    header, state = GOLDEN["checkpoint-v2-abn"]
    for version, message in (("9" * 5000, "written by a newer xai-abn"), ("-1", "format version '-1'")):
        save_file(state, tmp_path / "x.safetensors", metadata={**header, "format_version": version})
        refused(tmp_path / "x.safetensors", message)


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_tensors_of_other_shapes_are_refused(name, tmp_path):
    """One less axis, one more row, an empty one, another type: before they are loaded."""
    header, state = GOLDEN[name]
    first = next(n for n, t in state.items() if t.dim() == 4)
    for value in (state[first][0], torch.cat([state[first]] * 2), torch.zeros(0), state[first].to(torch.int8)):
        save_file({**state, first: value.contiguous()}, tmp_path / "x.safetensors", metadata=header)
        refused(tmp_path / "x.safetensors", "do not fit|weights, and the file holds")


def test_what_could_not_be_read_is_not_written(tmp_path):
    """The same check when saving: labels of another number, and a size beyond the bound."""
    network = torch.nn.Linear(1, 1)
    for config in (
        CheckpointConfig("resnet20", 10, None, xai_abn.Preprocess(), ["a"]),
        CheckpointConfig("resnet20", 10, None, xai_abn.Preprocess(size=5000)),
        CheckpointConfig("resnet20", 0, None, xai_abn.Preprocess()),
    ):
        with pytest.raises(InvalidInputError):
            save_checkpoint(tmp_path / "x.safetensors", network, config)
    assert not list(tmp_path.iterdir())
