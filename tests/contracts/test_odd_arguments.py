"""Odd arguments of the public calls: each is taken, or refused with an error of the package that says what to do."""

from __future__ import annotations

import io
from collections.abc import Callable
from decimal import Decimal
from functools import cache

import numpy as np
import pytest
import torch
from odd_networks import Plain
from support import check_error
from torch import nn

import xai_abn
from xai_abn import Difference
from xai_abn.errors import InvalidInputError, UnsupportedModelError, XaiAbnError
from xai_abn.explainers import Explainer, get, make_explainers, names, parse_spec, run_pass
from xai_abn.integrations import BatchExplainer, CaptumStyle, explain_func

QUICK = {
    "feature-ablation": {"segments": 4},
    "gradient-shap": {"samples": 2},
    "integrated-gradients": {"steps": 2},
    "is-cam": {"steps": 1},
    "kernel-shap": {"segments": 4, "samples": 6},
    "lime": {"segments": 4, "samples": 6},
    "occlusion": {"window": 0.5, "stride": 0.5},
    "rise": {"masks": 2, "side": 3},
    "smooth-grad": {"samples": 2},
    "ss-cam": {"samples": 1},
    "var-grad": {"samples": 2},
}
#: Methods that work on a plain network.
WORKING = [n for n in names() if not n.startswith(("abn", "attention", "legrad", "refine"))]


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


IMAGES = noise(2, 3, 32, 32)


@cache
def plain():
    torch.manual_seed(0)
    return xai_abn.wrap(Plain().eval(), preprocess=xai_abn.Preprocess(size=32), labels=["cat", "dog", "cat", "7"])


def refused(call, *arguments, **options):
    """Whether a call is refused; another exception than the package's own fails the test."""
    try:
        call(*arguments, **options)
    except XaiAbnError as error:
        check_error(error)
        return True
    return False


class Bad:
    """A file that cannot be read."""

    def read(self):
        raise ValueError("bad file")


def closed():
    file = io.BytesIO()
    file.close()
    return file


def identified(table):
    """Parameters for pytest, each with a short name of its own."""
    return [pytest.param(value, id=name) for name, value in table.items()]


# Targets.

TAKEN_TARGETS = {
    "none": None,
    "index": 1,
    "text of an index": "1",
    "label of a digit": "7",
    "label": " DOG ",
    "numpy": np.int64(1),
    "array": np.array([0, 1]),
    "tensor": torch.tensor([0, 1]),
    "number as tensor": torch.tensor(1),
    "several": [[0, 1], [2]],
    "none for one": [None, 0],
    "range": range(2),
    "difference": Difference(0, versus=1),
    "difference of top-1": [Difference(versus=3), 0],
    "rows": torch.tensor([[1, 2], [0, 3]]),
    "function": lambda logits: logits[:, 0] - logits[:, 1],
}
REFUSED_TARGETS = {
    "too large": 4,
    "negative": -1,
    "huge": 10**30,
    "bool": True,
    "float": 1.0,
    "nan": float("nan"),
    "complex": 1j,
    "decimal": Decimal(1),
    "unknown label": "horse",
    "ambiguous label": "cat",
    "negative text": "-1",
    "empty text": "",
    "superscript": "\u00b2",
    "bytes": b"1",
    "no targets": [],
    "too few": [0],
    "too many": [0, 1, 2],
    "empty lists": [[], []],
    "nested": [[0, [1]], [2]],
    "mapping": {0: 1, 1: 2},
    "set": {0, 1},
    "object": object(),
    "slice": slice(2),
    "ellipsis": ...,
    "float array": np.array([0.0, 1.0]),
    "objects": np.array([object(), None]),
    "truth values": torch.tensor([True, False]),
    "floats": torch.tensor([0.0, 1.0]),
    "cube": torch.zeros(2, 2, 2),
    "complex tensor": torch.tensor(1j),
    "none left": torch.zeros(0),
    "one-hot": torch.tensor([[0, 1, 0, 0]] * 2),
    "compared with itself": Difference(0, versus=0),
    "compared with nothing": Difference(0, versus=None),
    "compared with a float": Difference(1.5, versus=0),
    "difference of a difference": Difference(Difference(0, versus=1), versus=2),
    "functions": [lambda y: y[:, 0]] * 2,
    "function of another shape": lambda y: y,
    "function that fails": lambda y: 1 / 0,
    "function that gives nothing": lambda y: None,
    "function of integers": lambda y: y.argmax(1),
    "function of two": lambda y, z: y,
    "function of one image": lambda y: y[:1, 0],
    "class": int,
    "very long": "a" * 9999,
}


@pytest.mark.parametrize("targets", identified(TAKEN_TARGETS))
def test_targets_that_are_taken(targets):
    """In all their forms."""
    assert len(xai_abn.explain(plain(), IMAGES, "grad-cam", targets)) == 2


@pytest.mark.parametrize("targets", identified(REFUSED_TARGETS))
def test_targets_that_are_refused(targets):
    """By explain, and by the integrations, which take one class per image."""
    assert refused(xai_abn.explain, plain(), IMAGES, "grad-cam", targets)
    assert refused(CaptumStyle(plain(), "grad-cam").attribute, IMAGES, targets)
    assert refused(explain_func, plain(), IMAGES, targets)
    if not isinstance(targets, Callable):
        assert refused(BatchExplainer(plain(), "grad-cam", target=targets), {"image": list(IMAGES)})


@pytest.mark.parametrize(
    "target", [1, "dog", [1, 0], np.array([1, 0]), torch.tensor([[1], [0]]), torch.tensor(1), None]
)
def test_targets_that_the_integrations_take(target):
    """An index, a label, or one per image."""
    assert CaptumStyle(plain(), "grad-cam").attribute(IMAGES, target).shape == (2, 1, 32, 32)
    assert explain_func(plain(), IMAGES.numpy(), target).shape == (2, 1, 32, 32)


TAKEN_DIRECTLY = {
    "indices": torch.tensor([0, 3]),
    "int32": torch.tensor([0, 3], dtype=torch.int32),
    "bytes": torch.tensor([0, 3], dtype=torch.uint8),
    "directions": torch.eye(4)[[0, 3]],
    "double": torch.eye(4)[[0, 3]].double(),
    "half": torch.eye(4)[[0, 3]].half(),
    "with gradient": torch.eye(4)[[0, 3]].requires_grad_(),
}
REFUSED_DIRECTLY = {
    "too large": torch.tensor([4, 0]),
    "negative": torch.tensor([-1, 0]),
    "too few": torch.tensor([0]),
    "too many": torch.tensor([0, 1, 2]),
    "number": torch.tensor(0),
    "none": torch.zeros(0, dtype=torch.long),
    "row": torch.tensor([[0, 1]]),
    "floats": torch.tensor([0.0, 1.0]),
    "narrow": torch.zeros(2, 3),
    "one row": torch.zeros(1, 4),
    "nan": torch.full((2, 4), float("nan")),
    "truth values": torch.tensor([True, False]),
    "complex": torch.zeros(2, 4, dtype=torch.cfloat),
    "int": 0,
    "list": [0, 1],
    "nothing": None,
    "text": "cat",
    "array": np.array([0, 1]),
}


@cache
def shared(method):
    """The quick form of a method, and a pass for it."""
    explainer = get(method)(**QUICK.get(method, {}))
    return explainer, run_pass(plain(), IMAGES, [explainer])


@pytest.mark.parametrize("method", WORKING)
def test_every_method_called_directly_checks_its_targets(method):
    """They are indices (N,) or directions (N, K); the map of a class is that of its direction, whatever the type."""
    explainer, forward_pass = shared(method)
    maps = [explainer.explain(forward_pass, targets) for targets in TAKEN_DIRECTLY.values()]
    for found in maps:
        assert found.shape == maps[0].shape
        if method != "finer-cam":  # it compares a class with others, and a direction with nothing
            torch.testing.assert_close(found, maps[0], rtol=1e-3, atol=1e-6)
    for targets in REFUSED_DIRECTLY.values():
        with pytest.raises(InvalidInputError, match="targets must be") as caught:
            explainer.explain(forward_pass, targets)
        check_error(caught.value)


# Images.

TAKEN_IMAGES = {
    "uint8 tensor": torch.zeros(3, 32, 32, dtype=torch.uint8),
    "uint8 batch": torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
    "half": IMAGES.half(),
    "double": IMAGES.double(),
    "not contiguous": IMAGES.transpose(2, 3),
    "strided": noise(3, 64, 64)[:, ::2, ::2],
    "expanded": noise(1, 32, 32).expand(3, -1, -1),
    "with gradient": noise(3, 32, 32).requires_grad_(),
    "with history": noise(3, 32, 32).requires_grad_() * 2,
    "parameter": nn.Parameter(noise(3, 32, 32)),
    "two sizes": [IMAGES[0], noise(3, 16, 16)],
    "uint8 array": np.zeros((32, 32, 3), np.uint8),
    "gray array": np.zeros((32, 32), np.uint8),
    "upside down": np.zeros((32, 32, 3), np.uint8)[::-1],
    "one pixel": noise(3, 1, 1),
    "iterator": iter(IMAGES),
    "no images": torch.zeros(0, 3, 32, 32),
    "empty list": [],
}
REFUSED_IMAGES = {
    "none": None,
    "int": 5,
    "object": object(),
    "objects": [object()],
    "missing file": "missing.png",
    "empty text": "",
    "no file name": "a\0b",
    "empty bytes": b"",
    "bytes": b"abc",
    "bad file": Bad(),
    "closed file": closed(),
    "text file": io.StringIO("a"),
    "nan": torch.full((3, 32, 32), float("nan")),
    "infinite": torch.full((3, 32, 32), float("inf")),
    "overflow": noise(3, 32, 32).double() * 1e300,
    "integers": torch.ones(3, 32, 32, dtype=torch.long),
    "truth values": torch.ones(3, 32, 32, dtype=torch.bool),
    "complex": torch.ones(3, 32, 32, dtype=torch.cfloat),
    "no pixels": torch.zeros(3, 0, 0),
    "number": torch.tensor(1.0),
    "vector": noise(3),
    "matrix": noise(32, 32),
    "five axes": noise(1, 1, 3, 32, 32),
    "channels last": noise(32, 32, 3),
    "sparse": noise(3, 32, 32).to_sparse(),
    "meta": torch.zeros(3, 32, 32, device="meta"),
    "array of objects": np.array([None, 1], dtype=object),
    "array of floats": np.zeros((32, 32, 3)),
    "array of text": np.array("a"),
    "five channels": np.zeros((32, 32, 5), np.uint8),
    "empty array": np.zeros((0, 32, 3), np.uint8),
    "empty mapping": {},
    "other mapping": {"pixel_values": IMAGES},
    "mapping of nothing": {"bytes": None},
    "mapping of a number": {"bytes": 5},
    "one is missing": [IMAGES[0], "missing.png"],
    "one is nothing": [IMAGES[0], None],
    "list of batches": [IMAGES],
    "nested": [[IMAGES[0]]],
}


@pytest.mark.parametrize("images", identified(TAKEN_IMAGES))
def test_images_that_are_taken(images):
    """Each gives a map."""
    for result in xai_abn.explain(plain(), images, "grad-cam", 0):
        assert np.isfinite(result["grad-cam"].map).all()


@pytest.mark.parametrize("images", identified(REFUSED_IMAGES))
def test_images_that_are_refused(images):
    """By explain and, one or several at once, in a column of a table."""
    assert refused(xai_abn.explain, plain(), images, "grad-cam")
    rows = images if isinstance(images, list) else [images]
    columns = BatchExplainer(plain(), "grad-cam", errors="record")({"image": rows})
    assert any(columns["error"])
    assert refused(BatchExplainer(plain(), "grad-cam"), {"image": rows})


INPUTS = {
    n: v
    for n, v in (REFUSED_IMAGES | TAKEN_IMAGES).items()
    if not (isinstance(v, torch.Tensor) and v.dim() == 4 and len(v))
}


@pytest.mark.parametrize("inputs", identified(INPUTS | {"uint8 batch": TAKEN_IMAGES["uint8 batch"]}))
def test_inputs_of_a_pass_are_floats(inputs):
    """(N, C, H, W), for the integrations, too."""
    assert refused(run_pass, plain(), inputs, [get("grad-cam")()])
    for model in (plain(), plain().module):
        assert refused(CaptumStyle(model, "grad-cam").attribute, inputs)


@pytest.mark.parametrize(
    "inputs", [None, "a", [None], [IMAGES[0], IMAGES[:1]], np.array([None]), np.zeros((3, 4)), [["a"]]]
)
def test_inputs_of_quantus_are_numbers(inputs):
    """Anything else is refused."""
    assert refused(explain_func, plain(), inputs, [0])


def test_arrays_of_quantus_may_run_backward():
    """With a negative stride."""
    found = explain_func(plain(), IMAGES.numpy()[::-1], [0, 0])
    np.testing.assert_allclose(found, explain_func(plain(), IMAGES.flip(0), [0, 0]))


# Methods and their options.

REFUSED_METHODS = {
    "empty": "",
    "blank": " ",
    "comma": ",",
    "colon": ":",
    "no name": ":a=1",
    "unknown": "nope",
    "near": "grad-camm",
    "twice": "grad-cam,grad-cam",
    "twice in a list": ["grad-cam", "grad-cam"],
    "twice, once a record": [get("grad-cam")(), "grad-cam"],
    "no methods": [],
    "mapping": {"rise": {"masks": 2}},
    "number": 5,
    "bytes": b"grad-cam",
    "truth value": True,
    "nothing": [None],
    "nested": [["grad-cam"]],
    "class": get("grad-cam"),
    "function": print,
    "very long": "a" * 9999,
    "zero byte": "grad-cam\0",
    "no option": "rise:masks",
    "no value": "rise:masks=",
    "option twice": "rise:masks=1,masks=2",
    "unknown option": "rise:maskss=1",
    "semicolon": "rise;masks=4",
    "options of none": "cam:seed=1",
    "internal option": "grad-cam:name=x",
    "text": "rise:masks=a",
    "zero": "rise:masks=0",
    "negative": "rise:masks=-1",
    "fraction": "rise:masks=1.5",
    "exponent": "rise:masks=1e3",
    "nan": "rise:keep=nan",
    "infinite": "rise:keep=inf",
    "above one": "rise:keep=2",
    "huge": "rise:masks=99999999999999999999",
    "side": "rise:side=100000000",
    "seed": "rise:masks=2,seed=99999999999999999999",
    "nan strength": "finer-cam:strength=nan",
    "infinite strength": "finer-cam:strength=inf",
    "infinite noise": "smooth-grad:noise=inf",
    "steps": "integrated-gradients:steps=1000000000",
    "one superpixel": "lime:segments=1",
    "one layer": "refine-cam:layers=body",
    "same layer": "refine-cam:layers=body+body",
    "unknown layers": "refine-cam:layers=body+nope",
    "flat layer": "refine-cam:layers=body+fc",
    "wrong base": "refine-cam:base=rise",
    "unknown base": "refine-cam:base=nope",
    "unknown layer": "grad-cam:layer=nope",
    "two layers": "grad-cam:layer=body+fc",
    "layer without positions": "grad-cam:layer=fc",
    "no layer": "grad-cam:layer=",
    "layer not read": "rise:layer=body,masks=2",
    "layer of a baseline": "center:layer=body",
}


@pytest.mark.parametrize("methods", identified(REFUSED_METHODS))
def test_methods_that_are_refused(methods):
    """Everywhere a method is named."""
    image = IMAGES[:1]
    assert refused(xai_abn.explain, plain(), image, methods)
    assert refused(CaptumStyle(plain(), methods).attribute, image)
    assert refused(explain_func, plain(), image, [0], method=methods)
    assert refused(BatchExplainer(plain(), methods), {"image": list(image)})


@pytest.mark.parametrize("spec", ["grad-cam:", "grad-cam\n", " grad-cam , rise:masks=2,side=1", "rise:masks=2,seed=-1"])
def test_methods_that_are_taken(spec):
    """White space does not matter."""
    assert xai_abn.explain(plain(), IMAGES[:1], spec)[0]


@pytest.mark.parametrize("spec", [None, 5, [], b"cam", GradCAM := get("grad-cam"), GradCAM()])
def test_a_specification_is_text(spec):
    """Where only one is taken."""
    assert refused(parse_spec, spec)


ODD_NUMBERS = [True, None, [5], "x", 5.5, float("nan"), float("inf"), 10**400, -1, object(), {}]


@pytest.mark.parametrize("method", WORKING)
def test_every_numeric_option_of_every_method_is_checked(method):
    """None takes another type, or a number without bounds; a seed may be negative, and a batch size left out."""
    kind = get(method)
    numbers = {n: f for n, f in kind.model_fields.items() if f.annotation in (int, float, int | None)}
    unchecked = [
        f"{name}={value!r} of {method}"
        for name, field in numbers.items()
        for value in ODD_NUMBERS
        if not is_allowed(method, name, field, value) and not refused(kind, **{name: value})
    ]
    assert unchecked == []


def is_allowed(method, name, field, value):
    """Whether a numeric option may have this value."""
    allowed = (name == "seed" and value == -1) or (value is None and field.default is None)
    allowed |= (
        field.annotation is float and (value == 5.5 or name == "strength") and method not in ("rise", "occlusion")
    )
    allowed &= value not in (True, None) or field.default is None
    return allowed and value in (5.5, -1, None)


NO_LAYERS = [
    5, b"body", ["body"], nn.ReLU(), "", " body", "body.", ".body", "fc.weight", "forward", "training", "body\n"
]  # fmt: skip


@pytest.mark.parametrize("method", [n for n in WORKING if get(n).reads_layer])
def test_every_method_refuses_what_is_no_layer(method):
    """Whether it is another type, or no module of the network."""

    def explain(layer):
        xai_abn.explain(plain(), IMAGES[:1], get(method)(layer=layer, **QUICK.get(method, {})), 0)

    assert [f"layer={layer!r} of {method}" for layer in NO_LAYERS if not refused(explain, layer)] == []


# Models and what wrap takes.


@pytest.mark.parametrize(
    "model", [5, None, "x", nn.Module, [nn.Identity()], print, IMAGES, nn.Module(), nn.ModuleDict(), nn.Identity()]
)
def test_a_model_gives_scores(model):
    """Anything else is refused."""
    assert refused(xai_abn.explain, model, IMAGES)
    assert refused(lambda: CaptumStyle(model, "grad-cam").attribute(IMAGES))


REFUSED_OPTIONS = {
    "layer": [5, "", "nope", [], ["body"], nn.Linear(1, 1), b"body", True, IMAGES],
    "labels": [
        [],
        {},
        {0: "a"},
        {"a": "b"},
        {-1: "a"},
        {"\u00b2": "a"},
        {1.5: "a"},
        "abcd",
        5,
        b"abcd",
        ["a"] * 3,
        [1] * 4,
        [None] * 4,
        torch.zeros(4),
    ],
    "name": [5, ["a"], object()],
    "example_input": [
        5,
        "a",
        IMAGES[0],
        IMAGES[:0],
        noise(1, 3, 0, 0),
        IMAGES.numpy(),
        [IMAGES],
        torch.full((1, 3, 8, 8), float("nan")),
        IMAGES.to("meta"),
        IMAGES.to_sparse(),
        IMAGES.to(torch.cfloat),
    ],
    "preprocess": [
        5,
        "a",
        {},
        [],
        print,
        {"mean": 1, "std": 2},
        {"mean": (0.0,), "std": (1.0,)},
        {"mean": None, "std": None, "size": 32},
        {"mean": (0, 0, 0), "std": (0, 0, 0), "size": 32},
        {"mean": (0, 0, 0), "std": (1, 1, 1), "size": "a"},
        {"mean": (0, 0, 0), "std": (1, 1, 1), "input_size": 3},
        {"mean": (0, 0, 0), "std": (1, 1, 1), "input_size": ()},
        {"mean": (0, 0), "std": (1, 1), "size": 32},
    ],
}


@pytest.mark.parametrize(("option", "value"), [(n, v) for n, values in REFUSED_OPTIONS.items() for v in values])
def test_options_of_wrap_are_checked(option, value):
    """At once."""
    assert refused(xai_abn.wrap, plain().module, **{"preprocess": xai_abn.Preprocess(size=32), option: value})


@pytest.mark.parametrize(
    "output",
    [
        5,
        -1,
        0,
        "logits",
        "",
        True,
        lambda o: o[0],
        lambda o: o.tolist(),
        lambda: 1,
        int,
        [0],
        {},
        1.5,
        b"x",
        slice(1),
        "shape",
        "__class__",
        "data",
        lambda o: o[:1],
        lambda o: o.long(),
    ],
)
def test_an_output_is_logits(output):
    """Wherever it is said to be."""
    assert refused(
        lambda: xai_abn.explain(
            xai_abn.wrap(plain().module, output=output, preprocess=plain().preprocess), IMAGES, "grad-cam", 0
        )
    )


# Tables.


@pytest.mark.parametrize(
    "options",
    [
        {"errors": None},
        {"batch_size": 0},
        {"batch_size": "a"},
        {"batch_size": None},
        {"batch_size": 1.5},
        {"prefix": 5},
        {"layer": 5},
        {"layer": nn.ReLU()},
        {"layer": "nope"},
        {"image_column": 5},
        {"methods": []},
        {"model": 5},
        {"model": None},
    ],
)
def test_options_of_a_batch_explainer_are_checked(options):
    """When it is made or called."""
    assert refused(
        lambda: BatchExplainer(**{"model": plain(), "methods": "grad-cam", **options})({"image": list(IMAGES)})
    )


@pytest.mark.parametrize(
    "batch",
    [
        None,
        [],
        "abc",
        IMAGES,
        {},
        {"image": None},
        {"image": 5},
        {"image": "example:cat"},
        {5: [1]},
        {"image": [IMAGES[0]], "label": [1]},
    ],
)
def test_a_batch_is_a_mapping_with_a_column_of_images(batch):
    """Anything else is refused."""
    assert refused(BatchExplainer(plain(), "grad-cam"), batch)


def test_a_batch_explainer_takes_a_bare_module():
    """As explain does."""
    made = BatchExplainer(plain().module, "grad-cam", target=0)({"image": list(IMAGES)})
    assert made["label"] == ["class 0"] * 2


# What a method of a plug-in gives.


@pytest.mark.parametrize(
    "result", [None, 1, "map", np.zeros((2, 4, 4)), torch.zeros(2, 4), torch.zeros(1, 4, 4), torch.zeros(2, 0, 0)]
)
def test_a_method_gives_a_map_per_image(result):
    """Anything else is refused, with what came."""

    class Other(Explainer):
        name = "other"
        reads_layer = False

        def compute(self, forward_pass, targets):
            return result

    with pytest.raises(InvalidInputError, match=r"other must compute maps \(N, h, w\)"):
        xai_abn.explain(plain(), IMAGES, Other(), 0)


def test_a_check_that_fails_is_a_refusal():
    """Also of a plug-in, and in every way to call it."""

    class Failing(Explainer):
        name = "failing"
        reads_layer = False

        def check(self, model):
            raise KeyError("no such thing")

        def compute(self, forward_pass, targets):
            raise AssertionError

    for call in (
        lambda: make_explainers(plain(), Failing()),
        lambda: Failing().explain(run_pass(plain(), IMAGES, []), torch.tensor([0, 0])),
    ):
        with pytest.raises(UnsupportedModelError, match="failing fails on Plain"):
            call()
