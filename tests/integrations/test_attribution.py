"""Our methods called as captum's and Quantus's are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xai_abn.errors import InvalidInputError, UnknownNameError, UnsupportedModelError
from xai_abn.explainers import CAM, GradCAM, run_pass
from xai_abn.heatmaps import upsample
from xai_abn.integrations import CaptumStyle, explain_func


def test_attribute_gives_the_methods_maps_at_the_inputs_size(resnet18, inputs):
    """The maps are those of the explainer, enlarged or not, for an index, one each, or the top-1 class."""
    shared = run_pass(resnet18, inputs, [GradCAM()])
    own = GradCAM().explain(shared, torch.tensor([3, 1, 4]))
    method = CaptumStyle(resnet18.module, "grad-cam")
    torch.testing.assert_close(method.attribute(inputs, target=[3, 1, 4], upsample_maps=False)[:, 0], own)
    enlarged = method.attribute(inputs, target=torch.tensor([3, 1, 4]))
    assert enlarged.shape == (3, 1, 64, 64)
    torch.testing.assert_close(enlarged[:, 0], upsample(own, (64, 64)))
    torch.testing.assert_close(method.attribute(inputs, target=3)[0], enlarged[0])
    top = GradCAM().explain(shared, shared.logits.argmax(dim=1))
    torch.testing.assert_close(CaptumStyle(resnet18, GradCAM()).attribute(inputs, upsample_maps=False)[:, 0], top)
    other = CaptumStyle(resnet18, "grad-cam", layer="layer3").attribute(inputs, 3, upsample_maps=False)
    assert other.shape == (3, 1, 4, 4)


def test_bad_calls_are_refused(resnet18, inputs):
    """Shapes, classes and settings are checked; a method that does not apply says so."""
    method = CaptumStyle(resnet18, "cam")
    with pytest.raises(InvalidInputError, match=r"inputs must be a tensor of floats \(N, C, H, W\)"):
        method.attribute(inputs[0])
    with pytest.raises(InvalidInputError, match=r"got 2 targets for 3 images"):
        method.attribute(inputs, target=[1, 2])
    with pytest.raises(InvalidInputError, match="target 1000 is out of range"):
        method.attribute(inputs, target=1000)
    with pytest.raises(UnsupportedModelError, match="needs an Attention Branch Network"):
        CaptumStyle(resnet18, "abn").attribute(inputs)
    with pytest.raises(UnknownNameError, match="unknown setting 'colour'"):
        explain_func(resnet18, inputs, [1, 2, 3], method="cam", colour="red")
    with pytest.raises(InvalidInputError, match="cam is an explainer already; it takes no layer"):
        explain_func(resnet18, inputs, [1, 2, 3], method=CAM(), layer="layer4")


def test_explain_func_takes_and_gives_arrays(resnet18, inputs):
    """As CaptumStyle, in NumPy."""
    targets = np.array([3, 1, 4])
    found = explain_func(resnet18.module, inputs.numpy(), targets, method="cam", device="cpu", layer="layer4")
    assert (found.dtype, found.shape) == (np.float32, (3, 1, 64, 64))
    expected = CaptumStyle(resnet18, "cam").attribute(inputs, torch.tensor(targets))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_quantus_calls_it(resnet18, inputs):
    """A metric of Quantus explains with it."""
    quantus = pytest.importorskip("quantus")
    metric = quantus.Sparseness(abs=True, disable_warnings=True, display_progressbar=False)
    scores = metric(
        model=resnet18.module,
        x_batch=inputs.numpy(),
        y_batch=np.array([3, 1, 4]),
        explain_func=explain_func,
        explain_func_kwargs={"method": "cam"},
    )
    assert len(scores) == 3
    assert all(0 < s < 1 for s in scores)


def test_quantus_evaluate_names_methods_by_its_keys(resnet18, inputs):
    """It replaces any method in explain_func_kwargs by the key, so the key is the method; another key says so."""
    quantus = pytest.importorskip("quantus")

    def evaluate(*keys):
        return quantus.evaluate(
            metrics={"sparseness": quantus.Sparseness(abs=True, disable_warnings=True)},
            xai_methods=dict.fromkeys(keys, explain_func),
            model=resnet18.module,
            x_batch=inputs.numpy(),
            y_batch=np.array([3, 1, 4]),
            explain_func_kwargs={"method": "cam"},
            call_kwargs={"once": {}},
            agg_func=np.mean,
            verbose=False,
        )

    found = evaluate("grad-cam", "finer-cam:strength=0")
    assert found["grad-cam"] == pytest.approx(found["finer-cam:strength=0"], rel=1e-4)
    assert found["grad-cam"] != pytest.approx(evaluate("cam")["cam"], rel=1e-4)
    with pytest.raises(UnknownNameError, match=r"unknown method 'ours'.*keys of xai_methods.*'grad-cam': explain_func"):
        evaluate("ours")
