"""Options of methods: as fields, in specifications, and through the command line, ``explain`` and a benchmark."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import Field
from typer.testing import CliRunner

import xai_abn
from xai_abn import explainers
from xai_abn.benchmark import Store, benchmark
from xai_abn.cli.main import app
from xai_abn.datasets import read_dataset
from xai_abn.errors import InvalidInputError, UnknownNameError
from xai_abn.explainers import RISE, Explainer, make_explainers, parse_spec
from xai_abn.explainers.base import EXPLAINERS
from xai_abn.models import zoo
from xai_abn.settings import split_specs


def test_an_option_is_a_validated_field():
    """Explainers are immutable records that can be compared and changed."""
    assert RISE(masks=500).masks == 500
    assert RISE(masks=500) == RISE(masks=500) != RISE()
    assert RISE(masks=500).replace(seed=1) == RISE(masks=500, seed=1)
    with pytest.raises(UnknownNameError, match="unknown setting 'mask'; did you mean 'masks'"):
        RISE(mask=500)
    with pytest.raises(ValueError, match="frozen"):
        RISE().masks = 3


@pytest.mark.parametrize("name", explainers.names())
def test_a_specification_is_the_inverse_of_spec(name):
    """Every option has a sentence; changed values survive the way through text."""
    kind = explainers.get(name)
    assert kind().spec == name
    assert parse_spec(name) == kind()
    changed = {}
    for option, default, meaning in kind.describe():
        assert meaning.endswith(".")
        if option == "batch_size":
            changed[option] = 3
        elif default and default[0].isdigit():
            changed[option] = float(default) / 2 if "." in default else int(default) + 1
    explainer = kind(**changed)
    assert parse_spec(explainer.spec).spec == explainer.spec
    assert parse_spec(explainer.spec).options == explainer.options


def test_a_specification_has_only_what_affects_the_result():
    """Neither defaults, nor a batch size that only limits memory."""
    assert RISE(masks=2000, seed=3, batch_size=5).spec == "rise:seed=3"
    assert explainers.GradCAM(layer="layer2").spec == "grad-cam:layer=layer2"
    assert explainers.SmoothGrad(batch_size=5).spec == "smooth-grad:batch_size=5"  # determines how noise is drawn
    layers = explainers.RefineCAM(layers=("layer2", "layer3"))
    assert layers.spec == "refine-cam:layers=layer2+layer3"
    assert parse_spec(layers.spec) == layers
    assert parse_spec("grad-cam:layer=layer2") == parse_spec("grad-cam", layer="layer2")


def test_the_identity_holds_all_options(resnet18):
    """Also defaults, so that a changed default is another method."""
    assert RISE(seed=3).identity(resnet18) == {
        "name": "rise",
        "version": 1,
        "options": {"masks": 2000, "side": 7, "keep": 0.5, "seed": 3},
        "layer": "input",
    }


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("cam", ["cam"]),
        ("cam, grad-cam,", ["cam", "grad-cam"]),
        ("rise:masks=500,seed=1,cam", ["rise:masks=500,seed=1", "cam"]),
        ("rise,masks=500,cam,finer-cam:references=1", ["rise:masks=500", "cam", "finer-cam:references=1"]),
    ],
)
def test_a_list_is_split_at_methods(text, specs):
    """A piece ``option=value`` belongs to the method before it."""
    assert split_specs(text) == specs


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("ries", UnknownNameError, "unknown method 'ries'; did you mean 'rise'"),
        (
            "rise:mask=5",
            UnknownNameError,
            "unknown option of rise 'mask'; did you mean 'masks'.*Known: masks, side",
        ),
        ("cam:masks=5", UnknownNameError, "unknown option of cam 'masks'; known: layer"),
        ("saliency:masks=5", InvalidInputError, "saliency: it has no options, leave out masks"),
        ("rise:masks=many", InvalidInputError, "rise: masks must be a whole number, got 'many'"),
        ("rise:masks=0", InvalidInputError, "rise: masks must be at least 1, got '0'"),
        ("rise:masks", InvalidInputError, "rise: expected options such as 'masks=500,seed=1', got 'masks'"),
        ("rise:seed=1,seed=2", InvalidInputError, "rise: option 'seed' is given twice"),
        ("refine-cam:layers=a", InvalidInputError, "refine-cam: layers must name at least two different layers, got a"),
        ("refine-cam:base=cam", InvalidInputError, "refine-cam: base must be a method that combines"),
    ],
)
def test_mistakes_are_explained(spec, error, message):
    """An unknown option lists the known ones; a bad value says what is expected."""
    with pytest.raises(error, match=message):
        parse_spec(spec)


def test_a_method_is_given_once_with_the_same_options(gap_net):
    """Other options make another key; the same ones, however written, do not."""
    made = make_explainers(gap_net, ["rise:masks=5,cam", "rise", RISE(masks=7)])
    assert [e.spec for e in made] == ["rise:masks=5", "cam", "rise", "rise:masks=7"]
    with pytest.raises(InvalidInputError, match="only once, got rise:masks=5, rise:masks=5"):
        make_explainers(gap_net, ["rise:masks=5", RISE(masks=5, batch_size=3)])


def test_options_change_the_map(gap_net, image):
    """Results have the specification as key."""
    result = xai_abn.explain(gap_net, image, "rise:masks=20,seed=1,rise:masks=20")
    assert list(result[0]) == ["rise:masks=20,seed=1", "rise:masks=20"]
    assert not np.array_equal(result["rise:masks=20,seed=1"].map, result["rise:masks=20"].map)
    assert result["rise:masks=20"].method == "rise:masks=20"
    assert result["rise:masks=20"].parameters["masks"] == 20


@pytest.fixture
def activation_power():
    """A method with an option, registered as a plug-in would be."""

    @explainers.register("activation-power")
    class ActivationPower(Explainer):
        """The mean power of the activations."""

        class_specific = False
        power: float = Field(1.0, gt=0, description="Exponent of the activations.")

        def compute(self, forward_pass, targets):
            return forward_pass.activations(self.layer_of(forward_pass.model)).pow(self.power).mean(dim=1)

    yield
    EXPLAINERS.pop("activation-power")


@pytest.mark.usefixtures("activation_power")
def test_a_new_method_has_its_option_everywhere(gap_net, image_file, tmp_path, monkeypatch):
    """One class is enough for ``explain``, the command line and a benchmark."""
    monkeypatch.setitem(zoo.models, "small", lambda: gap_net)
    result = xai_abn.explain(gap_net, str(image_file), ["activation-power:power=2", "activation-power"])
    assert not np.array_equal(result["activation-power:power=2"].map, result["activation-power"].map)

    arguments = [
        "--model",
        "small",
        "--method",
        "activation-power:power=2",
        "--output",
        str(tmp_path / "out"),
        "--json",
    ]
    done = CliRunner().invoke(app, ["explain", str(image_file), *arguments])
    assert done.exit_code == 0, done.output
    (record,) = json.loads(done.stdout)["explanations"]
    assert record["method"] == "activation-power:power=2"
    assert record["parameters"] == {"power": 2.0}
    assert (tmp_path / "out" / "image.activation-power-power=2.png").is_file()
    listed = CliRunner().invoke(app, ["list", "methods", "--verbose", "--search", "activation"])
    assert "Exponent of the activations." in listed.stdout

    (tmp_path / "set").mkdir()
    Image.open(image_file).save(tmp_path / "set" / "a.png")
    methods, run = ["activation-power:power=2,cam", "activation-power"], tmp_path / "run.sqlite"
    benchmark(gap_net, read_dataset(f"images:{tmp_path / 'set'}"), methods, ["gini"], run)
    with Store.read(run) as store:
        values = {row.method: row.value for row in store.results("gini:raw-map")}
    assert set(values) == {"activation-power:power=2", "cam", "activation-power"}
    assert values["activation-power:power=2"] != values["activation-power"]


def test_a_batch_size_does_not_change_the_map(gap_net):
    """Options that are not recorded do not affect the result."""
    inputs = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for kind in map(explainers.get, explainers.names()):
        if kind.model_fields.get("batch_size") is not None and kind.model_fields["batch_size"].exclude:
            quick = {"masks": 20, "samples": 20, "steps": 4, "segments": 9}
            options = {option: value for option, value in quick.items() if option in kind.model_fields}
            maps = []
            for batch_size in (1, 7):
                explainer = kind(batch_size=batch_size, **options)
                forward_pass = explainers.run_pass(gap_net, inputs, [explainer])
                maps.append(explainer.explain(forward_pass, torch.tensor([3])))
            torch.testing.assert_close(*maps, rtol=1e-3, atol=1e-5)
