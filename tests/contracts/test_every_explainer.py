"""Rules that every registered explainer follows, including plug-ins."""

from __future__ import annotations

import copy
import gc
import re
import threading
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from support import check_error

import xai_abn
from xai_abn import explainers
from xai_abn.errors import UnsupportedModelError
from xai_abn.explainers import Explainer, make_explainers
from xai_abn.networks.tracing import find_classifier
from xai_abn.pipeline import explain

pytestmark = pytest.mark.no_cover  # the same lines hundreds of times; the maps of the case are counted
NAMES = explainers.names()
INPUTS = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
TARGETS = torch.tensor([3, 1, 4])

#: Options that make an expensive method fast; the rules do not depend on them.
QUICK = {
    "integrated-gradients": {"steps": 4},
    "smooth-grad": {"samples": 3},
    "var-grad": {"samples": 3},
    "gradient-shap": {"samples": 3},
    "occlusion": {"window": 0.5, "stride": 0.5},
    "feature-ablation": {"segments": 4},
    "kernel-shap": {"segments": 4, "samples": 8},
    "lime": {"segments": 4, "samples": 8},
    "rise": {"masks": 8, "side": 3},
    "ss-cam": {"samples": 2},
    "is-cam": {"steps": 2},
    "smooth-grad-cam++": {"samples": 2},
}


def make(name):
    """The explainer with this name, with fast options."""
    return explainers.get(name)(**QUICK.get(name, {}))


def run(model, name, inputs, targets):
    explainer = make(name)
    return explainer.explain(explainers.run_pass(model, inputs, [explainer]), targets)


class Fitting(NamedTuple):
    """A model to which a method applies, with the maps of all inputs at once and of each alone."""

    model: xai_abn.ModelAdapter
    maps: torch.Tensor
    singles: list[torch.Tensor]


@pytest.fixture(params=NAMES, scope="module")
def case(request):
    """The name of an explainer and the models to which it applies: at least one. All rules share their maps."""
    name, fitting = request.param, []
    for model in (request.getfixturevalue(n) for n in ("small_resnet", "small_abn", "small_vit")):
        try:
            maps = run(model, name, INPUTS, TARGETS)
        except UnsupportedModelError:
            continue
        singles = [run(model, name, INPUTS[i : i + 1], TARGETS[i : i + 1]) for i in range(3)]
        fitting.append(Fitting(model, maps, singles))
    assert fitting
    return name, fitting


COPIES = {}


@contextmanager
def changed_copy(model, training=False, frozen=False):
    """A copy of a model in that state. The next method gets it, too, unless the test of this one failed."""
    key = (model.name, training, frozen)
    own = COPIES.pop(key, None) or copy.deepcopy(model)
    own.module.requires_grad_(not frozen).train(training)
    yield own
    COPIES[key] = own


def test_maps_have_one_row_an_image_and_are_finite(case):
    """Maps are (N, h, w), finite and detached."""
    for fit in case[1]:
        assert fit.maps.shape[0] == 3
        assert fit.maps.dim() == 3
        assert torch.isfinite(fit.maps).all()
        assert not fit.maps.requires_grad


def test_a_batch_equals_its_singles(case):
    """Images of a batch do not influence each other."""
    for _, maps, singles in case[1]:
        torch.testing.assert_close(maps, torch.cat(singles), rtol=1e-4, atol=1e-5 * float(maps.abs().max()) + 1e-7)


def test_the_same_call_gives_the_same_map(case):
    """Explaining is repeatable and does not change the random state."""
    name, fitting = case
    for model, maps, _ in fitting:
        state = torch.get_rng_state()
        assert torch.equal(run(model, name, INPUTS, TARGETS), maps)
        assert torch.equal(torch.get_rng_state(), state)


def test_class_specific_is_correct(case):
    """The map changes with the target exactly if the explainer is class-specific."""
    name, fitting = case
    for model, maps, _ in fitting:
        same = torch.equal(maps, run(model, name, INPUTS, TARGETS + 1))
        assert same != explainers.get(name).class_specific


def test_needs_gradient_is_correct(case):
    """An explainer that needs no gradient works on a pass without gradients and in inference mode."""
    name, fitting = case
    explainer = make(name)
    for model, *_ in fitting:
        if explainer.needs_gradient:
            with torch.inference_mode(), pytest.raises(ValueError, match="no_grad"):
                run(model, name, INPUTS, TARGETS)
            with torch.no_grad():
                run(model, name, INPUTS, TARGETS)
        else:
            with torch.inference_mode():
                run(model, name, INPUTS, TARGETS)


def snapshot(model, inputs):
    module = model.module
    return {
        "modes": [m.training for m in module.modules()],
        "flags": [p.requires_grad for p in module.parameters()],
        "grads": [p.grad for p in module.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in module.modules()],
        "state": {k: v.clone() for k, v in module.state_dict().items()},
        "inputs": inputs.clone(),
        "grad_mode": torch.is_grad_enabled(),
    }


def assert_same(before, after):
    for key in ("modes", "flags", "grads", "hooks", "grad_mode"):
        assert before[key] == after[key], key
    assert torch.equal(before["inputs"], after["inputs"])
    assert all(torch.equal(v, after["state"][k]) for k, v in before["state"].items())


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_model_and_inputs_are_left_as_they_were(case, training, frozen):
    """Modes, flags, gradients, hooks, weights, statistics and inputs do not change, for frozen weights or not."""
    name, fitting = case
    for fit in fitting:
        with changed_copy(fit.model, training, frozen) as model:
            next(model.module.children()).eval()  # a mixture of modes must stay as it is
            inputs = INPUTS.clone()
            before = snapshot(model, inputs)
            run(model, name, inputs, TARGETS)
            assert_same(before, snapshot(model, inputs))


def test_model_and_inputs_are_left_as_they_were_after_an_error(case):
    """The same holds when a layer of the network fails in the middle of the pass."""
    name, fitting = case

    def fail(_):
        raise RuntimeError("boom")

    for fit in fitting:
        with changed_copy(fit.model) as model:
            last = find_classifier(getattr(model.module, "perception_branch", model.module))
            inputs = INPUTS.clone()
            before = snapshot(model, inputs)
            last.forward = fail
            with pytest.raises(UnsupportedModelError, match="boom"):
                run(model, name, inputs, TARGETS)
            del last.forward
            assert_same(before, snapshot(model, inputs))


def test_training_mode_does_not_change_the_map(case):
    """A model left in training mode is explained as in evaluation mode."""
    name, fitting = case
    for fit in fitting:
        with changed_copy(fit.model, training=True) as trained:
            assert torch.equal(run(trained, name, INPUTS, TARGETS), fit.maps)


def test_memory_is_flat(case):
    """No tensor survives an explanation."""
    name, fitting = case

    def explain_all():
        for model, *_ in fitting:
            run(model, name, INPUTS, TARGETS)

    explain_all()
    gc.collect()
    gc.freeze()  # ignore all existing objects
    for _ in range(2):
        explain_all()
    gc.collect()
    assert not [type(o) for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]


def test_threads_sharing_a_model_get_the_single_thread_maps(case):
    """Eight threads at once on one model, left in training mode, give the maps that one thread gives."""
    name, fitting = case
    for fit in fitting:
        found = {}
        with changed_copy(fit.model, training=True) as model:

            def work(number, model=model, found=found):
                row = slice(number % 3, number % 3 + 1)
                found[number] = run(model, name, INPUTS[row], TARGETS[row])

            threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
            [t.start() for t in threads]
            [t.join() for t in threads]
            assert len(found) == 8
            for number, maps in found.items():
                torch.testing.assert_close(maps, fit.singles[number % 3])


def test_records_are_complete(case, image):
    """Every explanation records method, layer, probability and versions, and whether it is class-specific."""
    name, fitting = case
    for model, *_ in fitting:
        explainer = make(name)
        record = explain(model, image, explainer)[explainer.spec]
        assert record.method == explainer.spec
        assert record.layer or explainers.get(name).baseline  # baselines read no layer
        assert record.versions["torch"] == torch.__version__
        assert 0 <= record.probability <= 1
        assert record.class_specific == explainers.get(name).class_specific
        assert record.map.dtype.name == "float32"


def test_each_names_its_source(case):
    """A registered explainer has a source."""
    assert explainers.get(case[0]).source


def test_a_new_method_is_one_class_with_one_method(resnet18, image):
    """A class that implements ``compute``, with the decorator, is a complete method."""

    @explainers.register("test-mean")
    class Mean(Explainer):
        def compute(self, forward_pass, targets):
            return forward_pass.activations(self.layer_of(forward_pass.model)).mean(dim=1)

    try:
        assert "test-mean" in explainers.names()
        assert explain(resnet18, image, ["test-mean", "cam"])["test-mean"].layer == "layer4"
        with pytest.raises(ValueError, match="registered already"):
            explainers.register("test-mean")(Mean)
    finally:
        explainers.base.EXPLAINERS.pop("test-mean")


def test_a_method_is_given_only_once(resnet18):
    """An empty list and a repeated method are refused."""
    for wrong in ([], ["cam", "cam"]):
        with pytest.raises(ValueError, match="once"):
            make_explainers(resnet18, wrong)


#: Images that stand behind "per ..." in the cost of a method, for the case below: 12 channels, 4 windows and the
#: image itself, 4 superpixels and the image itself, 8x8 positions.
PER = {"channel": 12, "window": 5, "superpixel": 5, "position": 64}


@pytest.mark.parametrize("name", [n for n in NAMES if "forward" in explainers.get(n)().cost and n != "legrad"])
def test_the_stated_cost_is_the_number_of_images_that_the_network_sees(name, gap_net, monkeypatch):
    """With the options that the cost is stated for; LeGrad runs the head alone."""
    from xai_abn.explainers.captum_methods import TargetScore
    from xai_abn.models.forward_pass import ForwardPass

    explainer = make(name)
    count, unit = re.match(r"(\d+) .*?(?:per (\w+))?$", explainer.cost).groups()
    seen = []

    def counted(original, images):
        def call(*arguments):
            seen.append(len(images(arguments)))
            return original(*arguments)

        return call

    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    shared = explainers.run_pass(gap_net, image, [explainer])
    monkeypatch.setattr(TargetScore, "forward", counted(TargetScore.forward, lambda a: a[1]))
    monkeypatch.setattr(ForwardPass, "predict", counted(ForwardPass.predict, lambda a: a[1]))
    monkeypatch.setattr(ForwardPass, "rerun", counted(ForwardPass.rerun, lambda a: a[3]))
    started = ForwardPass.__init__

    def start(self, model, inputs, *more, **options):
        seen.append(len(inputs))
        started(self, model, inputs, *more, **options)

    monkeypatch.setattr(ForwardPass, "__init__", start)
    explainer.explain(shared, torch.tensor([1]))
    expected = int(count) * PER.get(unit, 1)
    assert 0.9 * expected <= sum(seen) <= expected + 2  # a channel may be constant; captum asks for the image itself


#: Methods that no network of volumes has: of Attention Branch Networks and of transformers.
OF_OTHER_NETWORKS = {"abn-mask", "abn", "abn-class", "attention-rollout", "attention-relevance", "legrad"}


@pytest.mark.parametrize("name", NAMES)
def test_volumes_are_explained_or_refused(name):
    """Each alone as in a batch, with a map (d, h, w); or with an error that names a way out."""
    from volumes import net3d, seeded_volumes

    model, volumes, targets = net3d(), seeded_volumes(2, 1, 12, 16, 20), torch.tensor([1, 2])
    if name in OF_OTHER_NETWORKS:
        with pytest.raises(UnsupportedModelError) as caught:
            run(model, name, volumes, targets)
        return check_error(caught.value)
    maps = run(model, name, volumes, targets)
    assert maps.dim() == 4
    assert torch.isfinite(maps).all()
    single = run(model, name, volumes[1:], targets[1:])
    torch.testing.assert_close(maps[1:], single, rtol=1e-4, atol=1e-5 * float(maps.abs().max()) + 1e-7)
    spec = make(name).spec
    record = explain(model, volumes[1], make(name), 2)[spec]
    torch.testing.assert_close(torch.tensor(record.map)[None], single.float(), rtol=1e-4, atol=1e-6)
    assert record.flaw is None or name == "uniform"
    assert min(record.overlay().size) > 100
    return None


def test_maps_lie_on_what_is_stated(case):
    """The layer, the input, the patches or a grid of that many cells."""
    name, fitting = case
    for model, *_ in fitting:
        explainer = make(name)
        shared = explainers.run_pass(model, INPUTS, [explainer])
        shape = tuple(explainer.explain(shared, TARGETS).shape[1:])
        grid = explainer.grid
        if grid == "layer":
            assert shape == tuple(shared.activations(explainer.layer_of(model)).shape[2:])
        elif grid == "attention branch":
            assert shape == tuple(shared.attention_map.shape[2:])
        elif grid == "mask branch":
            assert shape == tuple(2 * side for side in shared.class_maps.shape[2:])
        elif grid in ("patches", "finest layer"):
            assert shape[0] < INPUTS.shape[2]
        elif grid[0].isdigit():
            assert grid == f"{shape[0]}x{shape[1]}"
        else:
            assert grid in ("input", "windows", "superpixels") or grid.startswith("masks")
            assert shape == tuple(INPUTS.shape[2:])
