"""Principal components of a layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xai_abn.explainers.base import Explainer, register
from xai_abn.models.forward_pass import ForwardPass

#: Matrices up to this size are decomposed in full on the CPU. For larger ones, Lanczos' method finds only the leading
#: eigenvector, in this number of steps and to this share of the eigenvalue.
SMALL, STEPS, TOLERANCE = 64, 12, 1e-5
#: Why no map is differentiated.
UNSTABLE = "the derivative of a principal component grows without bound as the next one comes close"


def first_component(values: Tensor) -> Tensor:
    """Return the projection of each position of values (N, C, ...) on the first principal component, (N, ...).

    A component has no sign. It is chosen so that the largest magnitude is positive.
    """
    axes = tuple(range(1, values.dim()))
    scale = values.abs().amax(dim=axes, keepdim=True).float().clamp_min(torch.finfo(torch.float32).tiny)
    centered = _centered(values.float() / scale)  # so that squares neither overflow nor vanish
    if centered.shape[1] <= centered.shape[2]:
        projected = _scaled_eigenvector(centered @ centered.mT)
    else:
        direction = _scaled_eigenvector(centered.mT @ centered)
        projected = (centered @ torch.nn.functional.normalize(direction, dim=1).to(centered)[..., None])[..., 0]
    return _as_maps(projected * scale.flatten(1), values)


def _centered(values: Tensor) -> Tensor:
    """Return values (N, C, ...) as (N, positions, C), each channel minus its mean."""
    positions = values.float().flatten(2).transpose(1, 2)
    return positions - positions.mean(dim=1, keepdim=True)


def _scaled_eigenvector(gram: Tensor) -> Tensor:
    """Return the leading eigenvector of symmetric matrices (N, P, P) times the root of its eigenvalue, (N, P).

    Small matrices on the CPU are decomposed in full, as are those for which Lanczos' method does not converge. A GPU
    decomposes one matrix after the other.
    """
    if gram.shape[1] <= SMALL and gram.device.type == "cpu":
        return _decomposed(gram)
    found, converged = _lanczos(gram)
    if not bool(converged.all()):
        found[~converged] = _decomposed(gram[~converged]).to(found)
    return found


def _lanczos(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return what :func:`_scaled_eigenvector` does, and for which matrices (N,) it is exact to ``TOLERANCE``.

    The method starts from the column with the largest diagonal element.
    """
    heaviest = gram.diagonal(dim1=1, dim2=2).argmax(dim=1)
    newest = gram[torch.arange(len(gram), device=gram.device), heaviest][..., None]
    basis = newest / newest.norm(dim=1, keepdim=True)
    for _ in range(min(STEPS, gram.shape[1] - 1)):
        newest = gram @ basis[..., -1:]
        for _ in range(2):
            newest = newest - basis @ (basis.mT @ newest)
        basis = torch.cat([basis, newest / newest.norm(dim=1, keepdim=True)], dim=2)
    finite = basis.isfinite().flatten(1).all(dim=1)
    basis = torch.where(finite[:, None, None], basis, 0.0)
    value, inner = (part[..., -1:] for part in torch.linalg.eigh(basis.mT @ gram @ basis))
    vector = (basis @ inner)[..., 0]
    missed = ((gram @ vector[..., None])[..., 0] - value * vector).norm(dim=1)
    return vector * value.clamp_min(0).sqrt(), finite & (missed <= TOLERANCE * value[:, 0])


def _decomposed(gram: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(gram.double().cpu())
    leading: Tensor = vectors[..., -1] * values[..., -1:].clamp_min(0).sqrt()
    return leading.to(gram.device)


def _as_maps(projected: Tensor, values: Tensor) -> Tensor:
    """Return projections (N, positions) as maps (N, ...), with the sign that makes the largest magnitude positive."""
    flipped = projected.amin(dim=1).abs() > projected.amax(dim=1).abs()
    return torch.where(flipped[:, None], -projected, projected).view(len(values), *values.shape[2:]).float()


@register("eigen-cam")
class EigenCAM(Explainer):
    """The first principal component of the layer at every position. Class-agnostic.

    Source: Muhammad and Yeasin, "Eigen-CAM", IJCNN 2020. Channels are centered first, as in grad-cam (not so in the
    paper's formula); sign as in Chung and Ying, "Seg-Eigen-CAM", Applied Sciences 2025, eq. 13.
    """

    class_specific = False
    maps_read = ()
    no_graph = UNSTABLE
    source = "Muhammad and Yeasin, IJCNN 2020"

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return signed maps, (N, h, w); ``targets`` do not matter."""
        return first_component(forward_pass.activations(self.layer_of(forward_pass.model)))


@register("eigengrad-cam")
class EigenGradCAM(Explainer):
    """The first principal component of activation times gradient.

    Source: Gildenblat et al., pytorch-grad-cam, 2021 (no paper); sign as in :class:`EigenCAM`.
    """

    needs_gradient = True
    no_graph = UNSTABLE
    source = "pytorch-grad-cam, 2021"

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return signed maps of ``targets``, (N, h, w)."""
        layer = self.layer_of(forward_pass.model)
        return first_component(forward_pass.activations(layer) * forward_pass.gradients(layer, targets))


@register("kpca-cam")
class KPCACAM(Explainer):
    """The first component of the layer under the kernel ``tanh(x y / C + 1)``. Class-agnostic.

    Source: Karmani et al., "KPCA-CAM", IEEE MMSP 2024; kernel and its parameters as the default of grad-cam
    (scikit-learn's sigmoid), channels centered first; sign as in :class:`EigenCAM`.
    """

    class_specific = False
    maps_read = ()
    no_graph = UNSTABLE
    source = "Karmani et al., MMSP 2024"

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return signed maps, (N, h, w); ``targets`` do not matter."""
        values = forward_pass.activations(self.layer_of(forward_pass.model))
        centered = _centered(values)
        inner = centered @ centered.mT / centered.shape[2]
        kernel = inner.tanh() * (
            1 - math.tanh(1) * (inner + 1).tanh()
        )  # tanh(inner + 1) - tanh(1), without cancellation
        kernel = kernel - kernel.mean(dim=1, keepdim=True)
        kernel = kernel - kernel.mean(dim=2, keepdim=True)
        return _as_maps(_scaled_eigenvector(kernel), values)
