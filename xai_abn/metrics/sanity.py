"""Sanity and stability: a map should change with the network and the target, and not with noise.

These metrics take a callable ``explain(inputs, targets, module=None)`` that returns maps (N, h, w); ``module`` replaces
the network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from xai_abn.errors import InvalidInputError
from xai_abn.heatmaps import upsample, usable
from xai_abn.metrics.base import Metric, Predict, register
from xai_abn.metrics.faithfulness import check_numbers, check_targets
from xai_abn.metrics.similarity import rank_correlation
from xai_abn.seeding import content_generator, seeded


class Explain(Protocol):
    """Computes maps (N, h, w) of inputs (N, 3, H, W) and targets (N,), of ``module`` instead of the model if given."""

    def __call__(self, inputs: Tensor, targets: Tensor, module: nn.Module | None = None) -> Tensor:
        """Return the maps."""


def model_parameter_randomization(
    explain: Explain, module: nn.Module, inputs: Tensor, targets: Tensor, *, stages: int = 5, seed: int = 0
) -> Tensor:
    """Return the rank correlation of the maps with those after randomizing layers from the output backwards.

    A map that stays the same without the learned weights does not explain them: near 0 is good.

    Args:
        explain: see the module.
        module: the network; it is copied, not changed.
        inputs: (N, 3, H, W), normalized.
        targets: (N,) class indices.
        stages: how often maps are compared; the layers with parameters are split evenly among the stages.
        seed: of the new weights.

    Returns:
        (N, stages) Spearman correlations in [-1, 1], after 1/stages ... all of the layers; NaN where a map is flat.

    Raises:
        InvalidInputError: there is no stage, or no layer that can be randomized.

    Source: Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, section 3. Layers use their own
    initialization; parameters outside such layers (tokens, positions, projections) become normal noise of 0.02, last.
    """
    layers = [name for name, m in module.named_modules() if callable(getattr(m, "reset_parameters", None))]
    if stages < 1 or not layers:
        raise InvalidInputError(
            f"expected stages >= 1 and layers with reset_parameters, got {stages} stages and {len(layers)} layers"
        )
    original = explain(inputs, targets)
    broken = copy.deepcopy(module)
    own = {id(p) for name in layers for p in broken.get_submodule(name).parameters(recurse=False)}
    bare = [p for p in broken.parameters() if id(p) not in own]
    backwards, done, values = layers[::-1], 0, []
    check_targets(inputs, targets)
    with seeded(seed):
        for stage in range(1, stages + 1):
            until = round(stage * len(backwards) / stages)
            for name in backwards[done:until]:
                broken.get_submodule(name).reset_parameters()  # type: ignore[operator]
            done = until
            if stage == stages:
                for parameter in bare:  # such as tokens and positions, which no layer initializes
                    torch.nn.init.normal_(parameter.data, std=0.02)
            values.append(rank_correlation(original, explain(inputs, targets, module=broken)))
    return torch.stack(values, dim=1)


def random_logit(explain: Explain, inputs: Tensor, targets: Tensor, classes: int, *, seed: int = 0) -> Tensor:
    """Return the rank correlation of the target's map with that of another, random class.

    Near 1 means that the map does not depend on the class. Maps of methods without class always give 1.

    Args:
        explain: see the module.
        inputs: (N, 3, H, W), normalized.
        targets: (N,) class indices.
        classes: number K of classes, at least 2.
        seed: of the random class, together with the image's content, so that it is the same in any batch.

    Returns:
        (N,) in [-1, 1]; NaN where a map is flat.

    Source: Sixt et al., "When Explanations Lie", ICML 2020, section 4 (random logit), with Spearman's correlation.
    """
    if classes < 2:
        raise InvalidInputError(f"expected at least 2 classes, got {classes}")
    check_targets(inputs, targets, classes)
    steps = [torch.randint(1, classes, (), generator=content_generator(image, seed)) for image in inputs]
    others = (targets.cpu() + torch.stack(steps)) % classes
    return rank_correlation(explain(inputs, targets), explain(inputs, others))


def sensitivity_max(
    explain: Explain, inputs: Tensor, targets: Tensor, *, radius: float = 0.02, samples: int = 10, seed: int = 0
) -> Tensor:
    """Return the largest relative change of the map under small uniform noise, by captum. Lower is more stable.

    Args:
        explain: see the module.
        inputs: (N, 3, H, W), normalized.
        targets: (N,) class indices.
        radius: of the noise, in normalized units.
        samples: number of noise samples.
        seed: of the noise.

    Returns:
        (N,) >= 0; NaN where the map is flat.

    Source: Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", 2019; captum's ``sensitivity_max``.
    """
    import captum.metrics

    check_targets(inputs, targets)

    def of_image(image: Tensor, target: Tensor) -> Tensor:
        def attribute(noisy: tuple[Tensor, ...]) -> tuple[Tensor]:
            return (explain(noisy[0], target.expand(len(noisy[0]))).detach(),)

        with seeded(seed):
            result: Tensor = captum.metrics.sensitivity_max(
                attribute, image, perturb_radius=radius, n_perturb_samples=samples
            ).cpu()
            return result

    values = torch.cat([of_image(inputs[n : n + 1], targets[n]) for n in range(len(inputs))])
    return values.masked_fill(~usable(explain(inputs, targets)).cpu(), float("nan"))


def infidelity(
    predict: Predict,
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    samples: int = 10,
    noise: float = 0.2,
    seed: int = 0,
) -> Tensor:
    """Return the squared error of the enlarged map as a linear model of the logit under Gaussian noise, by captum.

    The map is scaled by the factor that fits best (captum's ``normalize=True``), because CAM maps have no scale. Lower
    is better.

    Args:
        predict: inputs (B, 3, H, W) to logits (B, K).
        inputs: (N, 3, H, W), normalized.
        maps: (N, h, w), used for all channels.
        targets: (N,) class indices.
        samples: number of noise samples.
        noise: standard deviation, in normalized units.
        seed: of the noise.

    Returns:
        (N,) >= 0; NaN for a flat or non-finite map.

    Source: Yeh et al., 2019, eq. 1; captum's ``infidelity``.
    """
    import captum.metrics

    check_numbers(inputs, maps, targets)
    good = usable(maps).cpu()
    large = upsample(maps, inputs.shape[2:])[:, None].expand_as(inputs).nan_to_num()

    def perturb(values: Tensor) -> tuple[Tensor, Tensor]:
        step = torch.randn_like(values) * noise
        return step, values - step

    def of_image(n: int) -> Tensor:
        with seeded(seed), torch.no_grad():
            result: Tensor = captum.metrics.infidelity(
                lambda x: _logits(predict, x, targets[n : n + 1]),
                perturb,
                inputs[n : n + 1],
                large[n : n + 1],
                target=int(targets[n]),
                n_perturb_samples=samples,
                normalize=True,
            ).cpu()
            return result

    values = torch.cat([of_image(n) for n in range(len(inputs))])
    return values.masked_fill(~good, float("nan"))


def _logits(predict: Predict, inputs: Tensor, target: Tensor) -> Tensor:
    logits = predict(inputs).float()
    check_targets(target, target, logits.shape[1])
    return logits


def _mean_over_stages(explain: Explain, module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return model_parameter_randomization(explain, module, inputs, targets).nanmean(dim=1)


_TABLE: tuple[tuple[str, str, Callable[..., Tensor], bool | None, tuple[float, float], str, str, str], ...] = (
    (
        "model-parameter-randomization",
        "cascading-5",
        _mean_over_stages,
        None,
        (-1, 1),
        "Spearman correlation with the map after randomizing the network from the output backwards, mean of five "
        "stages (flat maps are left out). Near 0 is sane; near 1 means that the map ignores the weights.",
        "Adebayo et al., NeurIPS 2018",
        "the weights",
    ),
    (
        "random-logit",
        "spearman",
        random_logit,
        None,
        (-1, 1),
        "Spearman correlation with the map of a random class. Near 1 means that the map ignores the class, as maps of "
        "methods without class always do.",
        "Sixt et al., ICML 2020",
        "the class",
    ),
    (
        "sensitivity-max",
        "captum",
        sensitivity_max,
        False,
        (0, float("inf")),
        "Largest relative change of the map under ten samples of uniform noise of radius 0.02.",
        "Yeh et al., NeurIPS 2019; captum",
        "",
    ),
)
for _name, _protocol, _function, _better, _range, _definition, _source, _depends_on in _TABLE:
    register(
        Metric(
            name=_name,
            protocol=_protocol,
            function=_function,
            higher_is_better=_better,
            range=_range,
            units="1",
            definition=_definition,
            source=_source,
            depends_on=_depends_on,
        )
    )
register(
    Metric(
        name="infidelity",
        protocol="captum",
        function=infidelity,
        higher_is_better=False,
        range=(0, float("inf")),
        units="logit squared",
        definition="Squared error of the map, scaled to fit, as a linear model of the logit under ten samples of "
        "Gaussian noise with standard deviation 0.2.",
        source="Yeh et al., NeurIPS 2019; captum",
    )
)
