"""Rules that every registered explainer follows, including plug-ins."""

from __future__ import annotations

import copy
import gc
import re
import threading

import pytest
import torch
from support import check_error

from xai_abn import explainers
from xai_abn.errors import UnsupportedModelError
from xai_abn.explainers import Explainer, make_explainers
from xai_abn.networks.tracing import find_classifier
from xai_abn.pipeline import explain

NAMES = explainers.names()
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


#: The test models to which each method applies, determined once.
FITTING = {}


def models_for(name, request):
    """The test models to which this explainer applies: at least one."""
    candidates = [request.getfixturevalue(n) for n in ("small_resnet", "small_abn", "small_vit")]
    if name in FITTING:
        return FITTING[name]
    fitting = FITTING.setdefault(name, [])
    for model in candidates:
        try:
            make(name).check(model)
            run(model, name, torch.zeros(1, 3, 64, 64), TARGETS[:1])
        except UnsupportedModelError:
            continue
        fitting.append(model)
    assert fitting
    return fitting


@pytest.fixture(params=NAMES)
def case(request):
    """The name of an explainer and the models to which it applies."""
    return request.param, models_for(request.param, request)


def test_maps_have_one_row_an_image_and_are_finite(case, inputs):
    """Maps are (N, h, w), finite and detached."""
    name, models = case
    for model in models:
        maps = run(model, name, inputs, TARGETS)
        assert maps.shape[0] == 3
        assert maps.dim() == 3
        assert torch.isfinite(maps).all()
        assert not maps.requires_grad


def test_a_batch_equals_its_singles(case, inputs):
    """Images of a batch do not influence each other."""
    name, models = case
    for model in models:
        batch = run(model, name, inputs, TARGETS)
        singles = torch.cat([run(model, name, inputs[i : i + 1], TARGETS[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(batch, singles, rtol=1e-4, atol=1e-5 * float(batch.abs().max()) + 1e-7)


def test_the_same_call_gives_the_same_map(case, inputs):
    """Explaining is repeatable and does not change the random state."""
    name, models = case
    for model in models:
        state = torch.get_rng_state()
        assert torch.equal(run(model, name, inputs, TARGETS), run(model, name, inputs, TARGETS))
        assert torch.equal(torch.get_rng_state(), state)


def test_class_specific_is_correct(case, inputs):
    """The map changes with the target exactly if the explainer is class-specific."""
    name, models = case
    for model in models:
        same = torch.equal(run(model, name, inputs, TARGETS), run(model, name, inputs, TARGETS + 1))
        assert same != explainers.get(name).class_specific


def test_needs_gradient_is_correct(case, inputs):
    """An explainer that needs no gradient works on a pass without gradients and in inference mode."""
    name, models = case
    explainer = make(name)
    for model in models:
        if explainer.needs_gradient:
            with torch.inference_mode(), pytest.raises(ValueError, match="no_grad"):
                run(model, name, inputs, TARGETS)
            with torch.no_grad():
                run(model, name, inputs, TARGETS)
        else:
            with torch.inference_mode():
                run(model, name, inputs, TARGETS)


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
def test_model_and_inputs_are_left_as_they_were(case, inputs, training, frozen):
    """Modes, flags, gradients, hooks, weights, statistics and inputs do not change, for frozen weights or not."""
    name, models = case
    for model in models:
        model = copy.deepcopy(model)
        model.module.requires_grad_(not frozen).train(training)
        next(model.module.children()).eval()  # a mixture of modes must stay as it is
        before = snapshot(model, inputs)
        run(model, name, inputs, TARGETS)
        assert_same(before, snapshot(model, inputs))


def test_model_and_inputs_are_left_as_they_were_after_an_error(case, inputs):
    """The same holds when a layer of the network fails in the middle of the pass."""
    name, models = case
    for model in models:
        model = copy.deepcopy(model)
        last = find_classifier(getattr(model.module, "perception_branch", model.module))
        original = last.forward

        def fail(_):
            raise RuntimeError("boom")

        before = snapshot(model, inputs)
        last.forward = fail
        with pytest.raises(UnsupportedModelError, match="boom"):
            run(model, name, inputs, TARGETS)
        last.forward = original
        assert_same(before, snapshot(model, inputs))


def test_training_mode_does_not_change_the_map(case, inputs):
    """A model left in training mode is explained as in evaluation mode."""
    name, models = case
    for model in models:
        expected = run(model, name, inputs, TARGETS)
        trained = copy.deepcopy(model)
        trained.module.train()
        assert torch.equal(run(trained, name, inputs, TARGETS), expected)


def test_memory_is_flat(case, inputs):
    """No tensor survives an explanation."""
    name, models = case

    def explain_all():
        for model in models:
            run(model, name, inputs, TARGETS)

    explain_all()
    gc.collect()
    gc.freeze()  # ignore all existing objects
    try:
        for _ in range(5):
            explain_all()
        gc.collect()
        assert not [type(o) for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]
    finally:
        gc.unfreeze()


def test_threads_sharing_a_model_get_the_single_thread_maps(case, inputs):
    """Eight threads at once on one model, left in training mode, give the maps that one thread gives."""
    name, models = case
    for model in models:
        model = copy.deepcopy(model)
        model.module.train()
        expected = [run(model, name, inputs[i : i + 1], TARGETS[i : i + 1]) for i in range(3)]
        found = {}

        def work(number, model=model, found=found):
            found[number] = run(model, name, inputs[number % 3 : number % 3 + 1], TARGETS[number % 3 : number % 3 + 1])

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert len(found) == 8
        for number, maps in found.items():
            torch.testing.assert_close(maps, expected[number % 3])


def test_records_are_complete(case, image):
    """Every explanation records method, layer, probability and versions, and whether it is class-specific."""
    name, models = case
    for model in models:
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


def test_maps_lie_on_what_is_stated(case, inputs):
    """The layer, the input, the patches or a grid of that many cells."""
    name, models = case
    for model in models:
        explainer = make(name)
        shared = explainers.run_pass(model, inputs, [explainer])
        shape = tuple(explainer.explain(shared, TARGETS).shape[1:])
        grid = explainer.grid
        if grid == "layer":
            assert shape == tuple(shared.activations(explainer.layer_of(model)).shape[2:])
        elif grid == "attention branch":
            assert shape == tuple(shared.attention_map.shape[2:])
        elif grid == "mask branch":
            assert shape == tuple(2 * side for side in shared.class_maps.shape[2:])
        elif grid in ("patches", "finest layer"):
            assert shape[0] < inputs.shape[2]
        elif grid[0].isdigit():
            assert grid == f"{shape[0]}x{shape[1]}"
        else:
            assert grid in ("input", "windows", "superpixels") or grid.startswith("masks")
            assert shape == tuple(inputs.shape[2:])
