"""Similarity to reference images as the score: which parts make an image similar to another one?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xai_abn.errors import NonFiniteError, UnsupportedModelError
from xai_abn.models.adapter import ModelAdapter, Output, wrap
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.models.metadata import own_preprocess
from xai_abn.models.zero_shot import CosineScores, image_encoder
from xai_abn.networks.tracing import as_unsupported, copied, evaluating, on_device, without_gradients
from xai_abn.pipeline import prepare

#: Where embeddings (N, D) are in the outputs of Hugging Face's networks, the first that is there.
_PLACES = ("image_embeds", "pooler_output", "logits")


class _Embedding(nn.Module):
    """A network that outputs embeddings, wherever they are in its output, as (N, D)."""

    def __init__(self, network: nn.Module, output: Output) -> None:
        super().__init__()
        self.network, self.place = network, output

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings of images (N, C, H, W)."""
        found = self.network(images)
        if callable(self.place):
            found = self.place(found)
        elif self.place is not None:
            named = isinstance(self.place, str) and hasattr(found, self.place)
            found = getattr(found, str(self.place)) if named else found[self.place]
        elif not isinstance(found, Tensor):
            values = (getattr(found, place, None) for place in _PLACES)
            found = next((value for value in values if isinstance(value, Tensor)), found)
        if not isinstance(found, Tensor) or found.dim() < 2 or found[0].numel() != found.shape[1]:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UnsupportedModelError(
                f"{type(self.network).__name__} must output embeddings (N, D), got {got}; say where they are with "
                "similar_to(..., output=...), a key, an attribute or a position"
            )
        return found.flatten(1)


def similar_to(
    model: ModelAdapter | nn.Module,
    references: Any,
    *,
    preprocess: Any = None,
    layer: str | None = None,
    name: str | None = None,
    output: Output = None,
) -> ModelAdapter:
    """Make a model whose score is the similarity of an image to a reference image, to be explained by any method.

    The score is the cosine of the embeddings of the two, in [-1, 1]. Each reference is one output, so of several all
    are explained unless targets are given; their mean is ``targets=lambda scores: scores.mean(dim=1)``.

    Args:
        model: a network that outputs embeddings (N, D), such as one of timm with ``num_classes=0``, a backbone of
            Hugging Face (its ``image_embeds`` or ``pooler_output``), or a network of transformers or open_clip that
            compares images with texts. Or an adapter of a classifier, from :func:`xai_abn.load_model` or
            :func:`xai_abn.wrap`, whose embedding is what its final linear layer reads.
        references: one image or several, as :func:`xai_abn.explain` takes them.
        preprocess: how images become inputs; see :func:`xai_abn.wrap`.
        layer: the target layer of CAM methods, inside ``encoder``; default: it is found.
        name: its name in results; default: that of the model.
        output: where the embeddings are in the output of a network: a key, an attribute, a position, or a function of
            the output; default for an adapter: its own.

    Raises:
        ImageLoadError: a reference cannot be read.
        UnsupportedModelError: the network outputs no embeddings, or the classifier does not end in a linear layer.
        NonFiniteError: the embedding of a reference is zero, NaN or infinite.

    Example::

        network = timm.create_model("resnet50", pretrained=True, num_classes=0)
        model = xai_abn.similar_to(network, "sofa.jpg")
        xai_abn.explain(model, "living-room.jpg", "grad-cam")

    Source: Zhu et al., "Visual Explanation for Deep Metric Learning", IEEE TIP 2021, who explain the similarity of two
    embeddings by gradients.
    """
    if isinstance(model, ModelAdapter):
        encoder: nn.Module = _Embedding(_without_classifier(model), model.output if output is None else output)
        preprocess, name = preprocess or model.preprocess, name or model.name
    else:
        preprocess = own_preprocess(model) if preprocess is None and isinstance(model, nn.Module) else preprocess
        plain = wrap(model, preprocess=preprocess).module
        encoder, name = _Embedding(image_encoder(plain) or plain, output), name or type(plain).__name__
    reader = wrap(encoder, preprocess=preprocess, name=name)
    prepared = prepare(reader, references, "reference")
    rows = []
    with as_unsupported(f"{name} cannot be run on the reference"), evaluating(encoder), without_gradients(encoder):
        for image in prepared:
            row = encoder(on_device(image.tensor[None], encoder)).detach()
            if not bool(row.isfinite().all()) or not bool(row.any()):
                raise NonFiniteError(f"{image.source}: {name} gives it an embedding that is zero, NaN or infinite")
            rows.append(row)
    features = torch.cat(rows)
    return wrap(
        CosineScores(encoder, features, features.new_ones(()), None),
        labels=[f"similarity to {Path(image.source).name}" for image in prepared],
        preprocess=preprocess,
        layer=layer,
        name=name,
        scores_only=True,
    )


def _without_classifier(model: ModelAdapter) -> nn.Module:
    """Return a copy of a classifier that outputs what its final linear layer reads.

    Raises:
        UnsupportedModelError: it does not end in a linear layer.
    """
    with evaluating(model.module):
        network = copied(model.module.as_classifier() if model.is_abn else model.module)  # type: ignore[operator]
    head = ForwardPass(model.with_module(network), model.example).classifier
    place = next((name for name, member in network.named_modules() if member is head and name), None)
    if place is None:
        raise UnsupportedModelError(
            f"{model.name} does not end in a linear layer in front of which its embedding could be read; give a "
            "network that outputs embeddings, as a module"
        )
    parent, _, child = place.rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    return network
