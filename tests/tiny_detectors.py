"""Small detectors with random weights, of the classes of their libraries; built offline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision.models import detection

LABELS = ["background", "a", "b", "c", "d"]
_NAMED = {"id2label": dict(enumerate(LABELS))}
_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1] * 4, "layer_type": "basic"}
_PARTS = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
_SMALL = _PARTS | {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 8}
_HYBRID = {
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [20, 30, 40],
    "encoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "d_model": 32,
    "decoder_in_channels": [32] * 3,
    "decoder_ffn_dim": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "num_queries": 10,
}
_VIT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 128}
_GROUPED = {
    "d_model": 32,
    "decoder_ffn_dim": 32,
    "decoder_layers": 2,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 2,
    "num_queries": 8,
    "group_detr": 1,
    "c2f_num_blocks": 1,
}


def of_torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    plain = {"weights": None, "weights_backbone": None, "num_classes": len(LABELS)}
    return lambda: getattr(detection, name)(**plain, **options)


def of_hugging_face(name: str, backbone: tuple[str, dict[str, Any]] | None = None, **options: Any) -> Any:
    def build() -> nn.Module:
        import transformers

        own = {} if backbone is None else {"backbone_config": getattr(transformers, backbone[0])(**backbone[1])}
        config = getattr(transformers, f"{name}Config")(**own, **options, **_NAMED)
        made: nn.Module = getattr(transformers, f"{name}ForObjectDetection")(config)
        return made

    return build


_LAST = ("ResNetConfig", _RESNET | {"out_features": ["stage4"]})
_THREE = ("ResNetConfig", _RESNET | {"out_features": ["stage2", "stage3", "stage4"]})
_RT = (
    "RTDetrResNetConfig",
    {
        "embedding_size": 10,
        "hidden_sizes": [10, 20, 30, 40],
        "depths": [1, 1, 2, 1],
        "out_features": ["stage2", "stage3", "stage4"],
    },
)
_HGNET = (
    "HGNetV2Config",
    {
        "embedding_size": 8,
        "stem_channels": [3, 8, 8],
        "depths": [1] * 4,
        "hidden_sizes": [8, 20, 30, 40],
        "stage_in_channels": [8, 8, 20, 30],
        "stage_mid_channels": [8] * 4,
        "stage_out_channels": [8, 20, 30, 40],
        "stage_num_blocks": [1] * 4,
        "stage_numb_of_layers": [1] * 4,
        "out_features": ["stage2", "stage3", "stage4"],
    },
)

DETECTORS: dict[str, Callable[[], nn.Module]] = {
    "Faster R-CNN": of_torchvision("fasterrcnn_mobilenet_v3_large_320_fpn", box_score_thresh=0.0),
    "RetinaNet": of_torchvision("retinanet_resnet50_fpn", score_thresh=0.0, min_size=96),
    "FCOS": of_torchvision("fcos_resnet50_fpn", score_thresh=0.0, min_size=96),
    "SSDlite": of_torchvision("ssdlite320_mobilenet_v3_large", score_thresh=0.0),
    "DETR": of_hugging_face("Detr", _LAST, **_SMALL, d_model=32),
    "Table Transformer": of_hugging_face("TableTransformer", _LAST, **_SMALL, d_model=32),
    "Conditional DETR": of_hugging_face("ConditionalDetr", _LAST, **_SMALL, d_model=32),
    "DAB-DETR": of_hugging_face("DabDetr", _LAST, **_SMALL, hidden_size=32),
    "Deformable DETR": of_hugging_face("DeformableDetr", _THREE, **_SMALL, d_model=32),
    "Deformable DETR, two stages": of_hugging_face(
        "DeformableDetr", _THREE, **_SMALL, d_model=32, two_stage=True, with_box_refine=True, two_stage_num_proposals=8
    ),
    "RT-DETR": of_hugging_face("RTDetr", _RT, **_HYBRID),
    "RT-DETR v2": of_hugging_face("RTDetrV2", _RT, **_HYBRID),
    "D-FINE": of_hugging_face("DFine", _HGNET, **_HYBRID),
    "DEIM v2": of_hugging_face("Deimv2", _HGNET, **_HYBRID),
    "LW-DETR": of_hugging_face(
        "LwDetr",
        ("LwDetrViTConfig", _VIT | {"num_windows": 4, "out_features": ["stage1", "stage3"]}),
        **_GROUPED,
        projector_scale_factors=[1.0],
    ),
    "RF-DETR": of_hugging_face(
        "RfDetr",
        ("RfDetrDinov2Config", _VIT | {"patch_size": 16, "num_windows": 2, "out_features": ["stage1", "stage3"]}),
        **_GROUPED,
    ),
    "YOLOS": of_hugging_face(
        "Yolos",
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=[128, 128],
        num_detection_tokens=20,
    ),
}
