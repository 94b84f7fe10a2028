"""Ways to compute logits: what each gives, which is chosen, what is refused, and what is kept of it."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import get_args

import pytest
import torch
from support import call, check_error, make_images

import xai_abn
from xai_abn.benchmark import BenchmarkSettings, Store, benchmark
from xai_abn.datasets import read_dataset
from xai_abn.errors import InvalidInputError, UnknownNameError, UnsupportedModelError
from xai_abn.metrics import deletion, insertion
from xai_abn.models import backends, zoo
from xai_abn.models import predictor as chooser
from xai_abn.models.backends import BACKENDS, Backend
from xai_abn.models.predictor import BOUND, Predictor, kept_predictor
from xai_abn.models.settings import BackendName

#: The share of a run's time that trials take outside of tests, as documented.
SHARE = 0.2
#: Those that run here.
HERE = [name for name, backend in BACKENDS.items() if not backend.missing("cpu")]
QUICK_TO_BUILD = [name for name in HERE if name != "torch-compile"]


@pytest.fixture
def images():
    """Inputs (6, 3, 32, 32) for the smallest network."""
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class Clock:
    """Time that passes only in the backends of a test."""

    def __init__(self):
        self.now, self.built = 0.0, []

    def backend(self, name, seconds_an_image, *, seconds=1.0, takes=None, add=0.0, fails="", **facts):
        """Return a backend that takes some time and gives the network's logits, changed by a number."""

        def build(model, bf16, inputs):
            self.built.append(name)
            self.now += seconds if takes is None else takes
            if fails:
                raise RuntimeError(fails)

            def logits(given):
                self.now += seconds_an_image * len(given)
                found = model.module(given)
                return found + add * torch.arange(found.shape[1])

            return logits

        return Backend(name, build, seconds, **{"any_size": True, **facts})


@pytest.fixture
def clock(monkeypatch):
    """The clock of the predictor, which only backends of the test move."""
    made = Clock()
    monkeypatch.setattr(chooser, "perf_counter", lambda: made.now)
    monkeypatch.setattr(chooser, "SHARE", SHARE)
    return made


@pytest.fixture
def offer(monkeypatch, clock):
    """Let there be the network, one second an image, and some other backends."""

    def only(*others):
        made = {b.name: b for b in (clock.backend("network", 1.0, seconds=0.0), *others)}
        for module in (backends, chooser):
            monkeypatch.setattr(module, "BACKENDS", made)

    return only


def predicted(predictor, images, calls=3, coming=1000):
    """Announce images and predict some batches."""
    predictor.expect(coming)
    return [predictor(images) for _ in range(calls)][-1]


def test_the_names_on_the_command_line_are_those_of_the_backends():
    """The settings list them, because they do not import torch."""
    assert set(get_args(BackendName)) == BACKENDS.keys()
    assert {"network", "folded", "onnxruntime"} <= set(HERE)


@pytest.mark.parametrize("name", HERE)
def test_every_backend_gives_the_networks_logits(name, gap_net, images):
    """For the inputs it was built with, for other batch sizes, and for other heights and widths."""
    given = images.clone()
    predictor = Predictor(gap_net, backend=name)
    sizes = [images, images[:1], torch.cat([images, images[:3]]), torch.randn(2, 3, 48, 40)]
    for inputs in sizes:
        with torch.no_grad():
            expected = gap_net.module(inputs)
        torch.testing.assert_close(predictor(inputs), expected, atol=1e-5, rtol=1e-5)
    assert predictor.backend == name
    assert [t.backend for t in predictor.trials] == [name] * (name != "network")
    assert torch.equal(images, given)
    assert predictor.images == sum(map(len, sizes))


@pytest.mark.parametrize("name", QUICK_TO_BUILD)
def test_an_abn_and_a_vision_transformer_are_converted(name, small_abn, small_vit):
    """Their logits are the network's, too: of an ABN those of the perception branch."""
    for model in (small_abn, small_vit):
        size = model.preprocess.side
        inputs = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            found = model.module(inputs)
        expected = found.logits if model.is_abn else found
        torch.testing.assert_close(Predictor(model, backend=name)(inputs), expected, atol=2e-5, rtol=1e-4)


def test_the_quickest_that_agrees_is_taken(gap_net, images, clock, offer):
    """All are tried in turn, each against the one in use; the record and the line say what was measured."""
    offer(
        clock.backend("slower", 1.5),
        clock.backend("quick", 0.5),
        clock.backend("equal", 0.49),
        clock.backend("quickest", 0.2, add=1e-7),
    )
    predictor = Predictor(gap_net)
    predicted(predictor, images, coming=10_000)
    assert clock.built == ["network", "slower", "quick", "equal", "quickest"]
    assert predictor.backend == "quickest"
    assert [t.taken for t in predictor.trials] == [False, True, False, True]
    assert [t.before for t in predictor.trials] == pytest.approx([1000, 1000, 500, 500])
    assert predictor.trials[-1].milliseconds == pytest.approx(200)
    assert 0 < predictor.trials[-1].difference < 1e-6
    assert "quickest, float32: 200.0 ms an image, 1000.0 with network; largest difference" in str(predictor)
    record = predictor.record()
    assert record["choice"] == str(predictor)
    assert record["images"] == 18
    assert [t["backend"] for t in record["trials"]] == ["slower", "quick", "equal", "quickest"]


def test_one_that_gives_other_values_is_refused(gap_net, images, clock, offer):
    """However quick it is; by name it is an error that says what to do."""
    offer(clock.backend("wrong", 0.01, add=1e-2), clock.backend("nan", 0.01, add=float("nan")))
    predictor = Predictor(gap_net)
    found = predicted(predictor, images)
    assert predictor.backend == "network"
    with torch.no_grad():
        assert torch.equal(found, gap_net.module(images))
    assert [note.split(",")[0] for note in predictor.notes] == [
        "wrong gives other values than gap-net",
        "nan gives other values than gap-net",
    ]
    for name in ("wrong", "nan"):
        with pytest.raises(
            UnsupportedModelError, match=f"{name} gives other values .* choose another backend"
        ) as caught:
            Predictor(gap_net, backend=name)(images)
        check_error(caught.value)


def test_the_bound_is_that_of_probabilities_and_of_scores(gap_net, images):
    """A shift of all scores leaves probabilities and changes what methods read, so it is refused."""
    predictor = Predictor(gap_net)
    logits = torch.tensor([[1.0, 2.0, 4.0]])
    assert predictor.agreement(logits, logits) == (0.0, True)
    assert predictor.agreement(logits + 0.01, logits)[1] is False
    bumped = logits.clone()
    bumped[0, 0] += 1e-3 * BOUND
    assert predictor.agreement(bumped, logits)[1] is True
    bumped[0, 0] += 100 * BOUND
    difference, agrees = predictor.agreement(bumped, logits)
    assert not agrees
    expected = (bumped.double().softmax(1) - logits.double().softmax(1)).abs().max()
    assert difference == pytest.approx(float(expected), rel=0.01)
    hidden = torch.tensor([[1.0, -torch.inf, 4.0]])
    assert predictor.agreement(hidden, hidden) == (0.0, True)
    assert predictor.agreement(logits, hidden)[1] is False


def test_one_that_fails_costs_a_note(gap_net, images, clock, offer):
    """The next is tried; by name it is an error."""
    offer(clock.backend("broken", 0.1, fails="no such operator\nmore"), clock.backend("works", 0.1))
    predictor = Predictor(gap_net)
    predicted(predictor, images)
    assert predictor.backend == "works"
    assert predictor.notes == ["broken does not run gap-net: no such operator"]
    with pytest.raises(UnsupportedModelError, match="broken does not run gap-net: no such operator; choose another"):
        Predictor(gap_net, backend="broken")(images)


def test_a_few_predictions_pay_nothing(gap_net, images, clock, offer):
    """Nothing is built until trying it takes at most a fifth of the predictions, made or announced."""
    offer(clock.backend("quick", 0.1, seconds=10.0))
    few, announced, unannounced = (Predictor(gap_net) for _ in range(3))
    cost = 10 + 6 * len(images)  # of building, and of timing both three times
    predicted(few, images, calls=2, coming=5 * cost - 1)
    assert (clock.built, few.backend) == (["network"], "network")
    predicted(announced, images, calls=2, coming=5 * cost)
    assert announced.backend == "quick"
    calls = 0
    while unannounced.backend == "network":
        unannounced(images)
        calls += 1
    assert (calls - 1) * len(images) < 5 * cost <= calls * len(images)


def test_trials_together_take_a_share_of_the_run(gap_net, images, clock, offer):
    """Also where none of many is taken, as what was tried counts."""
    offer(*(clock.backend(f"slow-{number}", 1.0, seconds=5.0) for number in range(9)))
    predictor = Predictor(gap_net)
    for calls in range(1, 200):
        predictor(images)
        plain = calls * len(images)
        assert clock.now <= (1 + SHARE) * plain + len(images)  # of the check against the network
    assert 2 <= len(predictor.trials) < 9
    assert predictor.backend == "network"


def test_a_slow_machine_tries_less(gap_net, images, clock, offer):
    """Where a trial took longer than it should, the next are expected to, too."""
    for takes, tried in ((1.0, ["first", "second"]), (90.0, ["first"])):
        offer(clock.backend("first", 1.0, takes=takes), clock.backend("second", 1.0, seconds=5.0))
        predictor = Predictor(gap_net)
        predicted(predictor, images, coming=600)
        assert [trial.backend for trial in predictor.trials] == tried


def test_another_size_of_image_goes_to_the_network(gap_net, images, clock, offer):
    """Unless the backend takes any size; the batch may have any size."""
    offer(clock.backend("fixed", 0.1, any_size=False))
    predictor = Predictor(gap_net)
    predicted(predictor, images)
    now = clock.now
    predictor(images[:2])
    assert clock.now - now == pytest.approx(0.2)
    predictor(torch.randn(2, 3, 48, 48))
    assert clock.now - now == pytest.approx(2.2)


def test_bfloat16_that_does_not_pay_is_said(gap_net, images, monkeypatch, clock):
    """How much slower it is, in one line."""

    def build(model, bf16, inputs):
        return clock.backend("folded", 5.0 if bf16 else 2.0).build(model, bf16, inputs)

    monkeypatch.setitem(BACKENDS, "folded", replace(BACKENDS["folded"], build=build))
    assert [name for name, backend in BACKENDS.items() if backend.bf16] == ["folded", "cuda-graph"]
    predictor = Predictor(gap_net, bf16=True)
    predicted(predictor, images, coming=0)
    assert predictor.precision == "bfloat16"
    assert predictor.notes == [
        "bfloat16 takes 2.5 times as long as float32 on this machine (5000.0 against 2000.0 ms an image); "
        "leave bf16 out"
    ]


@pytest.mark.parametrize("name", QUICK_TO_BUILD)
def test_values_and_maps_do_not_depend_on_the_backend(name, small_resnet):
    """Areas to 1e-4, maps of methods that ask many times to 5e-6 of their largest value."""
    inputs = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    methods = ["rise:masks=40", "score-cam", "occlusion", "lime:samples=30"]
    plain, other = (replace(small_resnet, backend=backend) for backend in ("network", name))
    expected, found = (xai_abn.explain(model, inputs, methods) for model in (plain, other))
    for left, right in zip(expected, found, strict=True):
        for method in methods:
            gap = abs(left[method].map - right[method].map).max() / abs(left[method].map).max()
            exact = method in ("rise:masks=40", "score-cam")  # of the others a map is a difference of scores
            assert gap <= (5e-6 if exact else 1e-4), method
    maps, targets = torch.rand(2, 4, 4), torch.tensor([1, 3])
    for metric in (deletion, insertion):
        left, right = (metric(Predictor(model), inputs, maps, targets) for model in (plain, other))
        torch.testing.assert_close(left, right, atol=1e-4, rtol=0)
    assert kept_predictor(other).backend == name


def test_explanations_keep_one_predictor_while_the_network_stays_the_same(small_resnet):
    """Changed weights are predicted with; copies and pickles of the model go without it."""
    model = replace(small_resnet, module=copy.deepcopy(small_resnet.module), backend="folded")
    inputs = torch.randn(1, 3, 64, 64)
    before = xai_abn.explain(model, inputs, "rise:masks=8")
    made = kept_predictor(model)
    xai_abn.explain(model, inputs, "rise:masks=8")
    assert kept_predictor(model) is made
    with torch.no_grad():
        for weight in model.module.parameters():
            weight.mul_(1.1)
    changed = xai_abn.explain(model, inputs, "rise:masks=8")
    assert kept_predictor(model) is not made
    plain = xai_abn.explain(replace(model, backend="network"), inputs, "rise:masks=8")
    assert abs(changed["rise:masks=8"].map - plain["rise:masks=8"].map).max() < 1e-5
    assert abs(changed["rise:masks=8"].map - before["rise:masks=8"].map).max() > 1e-5
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert kept_predictor(other) is None
        assert other.backend == "folded"


def test_a_hook_that_changes_the_scores_is_noticed(small_resnet):
    """A copy made before it no longer gives the network's scores, so it is not asked again."""
    model = replace(small_resnet, module=copy.deepcopy(small_resnet.module), backend="folded")
    inputs = torch.randn(1, 3, 64, 64)
    xai_abn.explain(model, inputs, "rise:masks=8")
    made = kept_predictor(model)
    with model.module.get_submodule("fc").register_forward_hook(lambda module, given, output: output * 3):
        xai_abn.explain(model, inputs, "rise:masks=8")
    assert kept_predictor(model) is not made


def test_what_cannot_be_used_is_refused_at_once(gap_net, monkeypatch):
    """An unknown name, one of another device, one without its package, one in the wrong precision."""
    monkeypatch.setitem(BACKENDS, "openvino", replace(BACKENDS["openvino"], packages=("no_such_package",)))
    cases = [
        ({"backend": "onnxruntme"}, UnknownNameError, "did you mean 'onnxruntime'"),
        ({"backend": "cuda-graph"}, InvalidInputError, "does not run on cpu"),
        ({"backend": "openvino"}, InvalidInputError, "install no_such_package"),
        ({"backend": "onnxruntime", "bf16": True}, InvalidInputError, "float32 only; leave it or bf16 out"),
    ]
    for arguments, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            Predictor(gap_net, **arguments)
        check_error(caught.value)


def test_a_run_notes_its_backend_beside_the_values(gap_net, tmp_path):
    """It is no part of what values are found by: a run goes on with another backend."""
    data = read_dataset(f"coco:{make_images(tmp_path, 4)}")
    path = tmp_path / "run.sqlite"
    arguments = (gap_net, data, ["grad-cam", "rise:masks=8"], ["deletion", "insertion"], path)
    summary = benchmark(*arguments, BenchmarkSettings(backend="onnxruntime", limit=2))
    assert summary.predictions.startswith("onnxruntime, float32: ")
    summary = benchmark(*arguments, BenchmarkSettings(backend="folded"))
    assert (summary.known, summary.measured) == (2, 2)
    assert benchmark(*arguments).predictions == ""
    with Store.read(path) as store:
        noted = [session.get("predictions") for session in store.sessions]
        values = sorted((r.image, r.method, r.metric, r.value) for r in store.results())
    assert [n and n["choice"].split(",")[0] for n in noted] == ["onnxruntime", "folded", None]
    (trial,) = noted[0]["trials"]
    assert trial["backend"] == "onnxruntime"
    assert trial["difference"] <= BOUND
    plain = tmp_path / "plain.sqlite"
    benchmark(*arguments[:-1], plain, BenchmarkSettings(backend="network"))
    with Store.read(plain) as store:
        expected = sorted((r.image, r.method, r.metric, r.value) for r in store.results())
    assert [row[:3] for row in values] == [row[:3] for row in expected]
    assert [row[3] for row in values] == pytest.approx([row[3] for row in expected], abs=1e-4)


def test_the_commands_take_a_backend(gap_net, tmp_path, monkeypatch):
    """They say what was chosen and how far it is from the network; wrong names are one line."""
    monkeypatch.setitem(zoo.models, "small", lambda: gap_net)
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path, 2)
    run = ("benchmark", "run", "--data", "coco:.", "--model", "small", "--method", "cam", "--metric", "deletion")
    code, out, err = call(*run, "--backend", "onnxruntime")
    assert code == 0, err
    assert "predictions: onnxruntime, float32: " in out
    assert "largest difference" in out
    explain = ("explain", "images/0.png", "--model", "small", "--method", "rise:masks=20", "--output", "out")
    code, _, err = call(*explain, "--backend", "folded")
    assert code == 0, err
    assert "note: predictions: folded, float32: " in err
    code, _, err = call(*explain)
    assert (code, "predictions" in err) == (0, False)
    for command in (run, explain):
        code, _, err = call(*command, "--backend", "tensorrt")
        assert code == 2
        assert "onnxruntime" in err
        code, _, err = call(*command, "--backend", "cuda-graph")
        assert code == 2
        assert "does not run on cpu" in err
