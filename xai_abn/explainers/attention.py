"""Maps from the attention of Vision Transformers."""

from __future__ import annotations

import torch
from torch import Tensor

from xai_abn.errors import UnsupportedModelError
from xai_abn.explainers.base import Explainer, register
from xai_abn.heatmaps import at_least_float32
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.models.targets import target_scores
from xai_abn.networks.layout import Layout


class _AttentionExplainer(Explainer):
    """A map from the attention of every block, from the token that gives the prediction to the patches."""

    needs_attention = True
    reads_layer = False
    no_graph = ""

    def check(self, model: ModelAdapter) -> None:
        """Refuse a layer, networks without attention over all tokens, and Attention Branch Networks."""
        super().check(model)
        if not model.attention_blocks:
            reason = "does not attend exactly once in each block" if model.attends else "has no self-attention"
            raise UnsupportedModelError(
                f"{self.name} needs a Vision Transformer, and {model.name} {reason}; use grad-cam"
            )
        if model.is_abn:
            raise UnsupportedModelError(
                f"{self.name} follows attention from block to block, and {model.name} has two parallel branches; "
                "use abn, abn-class or grad-cam"
            )
        if not model.attends_to_all:
            raise self._other_attention(model)
        if model.detects:
            raise UnsupportedModelError(
                f"{self.name} reads the class token, and the detections of {model.name} come from other tokens; use "
                "grad-cam"
            )

    @property
    def grid(self) -> str:
        """What the values lie on, in words."""
        return "patches"

    def layer_of(self, model: ModelAdapter) -> str:
        """Return the name recorded with the map."""
        return f"attention of {len(model.attention_blocks)} blocks"

    def patches(self, forward_pass: ForwardPass) -> Layout:
        """Return how the patches are arranged among the tokens.

        Raises:
            UnsupportedModelError: attention does not cover all tokens of an image, for example with windows.
        """
        model, attentions = forward_pass.model, forward_pass.attentions
        tokens = attentions[0].shape[-1]
        layout = model.layout_of_tokens(tokens, forward_pass.size)
        over_all = all(a.shape[0] == len(forward_pass) and a.shape[-1] == tokens for a in attentions)
        if layout is None or not over_all or forward_pass.other_attention:
            raise self._other_attention(model)
        return layout

    def _other_attention(self, model: ModelAdapter) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{self.name} needs attention over all patches in every block; {model.name} has attention within "
            "windows, in stages, over other tokens or without patches. Use grad-cam"
        )

    def read_out(self, forward_pass: ForwardPass, relevance: Tensor) -> Tensor:
        """Return maps (N, h, w) from relevance (N, T, T): that of the class token, or the mean over all patches.

        Which one is used depends on what the head reads. A distillation token is ignored.
        """
        layout = self.patches(forward_pass)
        from_class = forward_pass.model.reads_class_token
        rows = relevance[:, 0] if from_class else relevance[:, layout.prefix :].mean(dim=1)
        return layout.to_maps(rows[..., None])[:, 0]


@register("attention-rollout")
class AttentionRollout(_AttentionExplainer):
    """The product of the attention of all blocks, half of each being the skip connection. Class-agnostic.

    Source: Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, eq. 1; heads averaged.
    """

    class_specific = False
    source = "Abnar and Zuidema, ACL 2020"

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the maps, (N, h, w), at least 0, for any ``targets``."""
        self.patches(forward_pass)
        rolled: Tensor | None = None
        for attention in forward_pass.attentions:
            mean = at_least_float32(attention).mean(dim=1)
            step = (mean + torch.eye(mean.shape[-1], device=mean.device)) / 2
            rolled = step if rolled is None else step @ rolled
        assert rolled is not None  # check() refuses networks without attention
        return self.read_out(forward_pass, rolled)


@register("attention-relevance")
class AttentionRelevance(_AttentionExplainer):
    """Attention weighted by the positive part of its gradient, accumulated from block to block.

    ``R <- R + mean_heads(ReLU(dA * A)) R``, starting from the identity.

    Source: Chefer et al., "Generic Attention-model Explainability", ICCV 2021, eq. 5 and 6 (self-attention).
    """

    needs_gradient = True
    source = "Chefer et al., ICCV 2021"

    @property
    def cost(self) -> str:
        """Passes beyond the shared one, in words."""
        return "1 backward"

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the maps of ``targets``, (N, h, w), at least 0."""
        self.patches(forward_pass)
        attentions, gradients = forward_pass.attentions, forward_pass.attention_gradients(targets)
        tokens = attentions[0].shape[-1]
        relevance = torch.eye(tokens, device=attentions[0].device).expand(len(forward_pass), -1, -1)
        for attention, gradient in zip(attentions, gradients, strict=True):
            step = at_least_float32((attention * gradient).relu().mean(dim=1))
            relevance = relevance + step @ relevance.to(step)
        if not forward_pass.model.reads_class_token:  # the identity at the start says nothing about a patch
            relevance = relevance - torch.eye(tokens, device=relevance.device)
        return self.read_out(forward_pass, relevance)


@register("legrad")
class LeGrad(_AttentionExplainer):
    """How much the score of each block would gain from more attention to a patch, averaged over blocks.

    The score of a block is that of the mean of its tokens, passed through the norm and head of the network. The
    positive gradients of it with respect to the attention of the block are averaged over heads and queries.

    Source: Bousselham et al., "LeGrad", ICCV 2025, eq. 6 to 9; all blocks.
    """

    needs_gradient = True
    source = "Bousselham et al., ICCV 2025"

    @property
    def cost(self) -> str:
        """Passes beyond the shared one, in words."""
        return "1 backward and forward of the head per block"

    def layers_read(self, model: ModelAdapter) -> tuple[str, ...]:
        """Return the blocks, whose tokens are scored."""
        return model.attention_blocks

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the maps of ``targets``, (N, h, w), at least 0."""
        layout = self.patches(forward_pass)
        with torch.enable_grad():
            gradients = forward_pass.attention_gradients_of(self._block_scores(forward_pass, targets))
        keys = torch.stack([at_least_float32(g.relu()).mean(dim=(1, 2)) for g in gradients]).mean(dim=0)
        return layout.to_maps(keys[..., None])[:, 0]

    def _block_scores(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the score of each block, summed over the batch, (L,)."""
        blocks = forward_pass.model.attention_blocks
        means = torch.stack([forward_pass.raw_output(name).mean(dim=1) for name in blocks])
        length = forward_pass.raw_output(blocks[-1]).shape[1]
        scores = []
        for row in range(len(forward_pass)):
            logits = forward_pass.rerun(blocks[-1], row, means[:, row, None].expand(-1, length, -1))
            scores.append(target_scores(logits, targets[row : row + 1].expand(len(blocks), *targets.shape[1:])))
        return torch.stack(scores).sum(dim=0)
