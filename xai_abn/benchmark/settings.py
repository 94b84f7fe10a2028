"""How a benchmark is run. Importing this does not import torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from xai_abn.errors import InvalidInputError
from xai_abn.models.settings import PredictionSettings


class BenchmarkSettings(PredictionSettings):
    """How a benchmark is run. Only ``bf16``, ``crop`` and ``exif`` change values by more than rounding."""

    batch_size: int = Field(
        8, ge=1, description="Images per forward pass. An interrupted run loses at most the images of one pass."
    )
    evaluations: int | None = Field(
        None,
        ge=1,
        description="Perturbed images per forward pass; limits memory. Without it 16 on a CPU, 256 on a GPU.",
    )
    bf16: bool = Field(
        False, description="Predict perturbed images in bfloat16, which is faster if the processor supports it."
    )
    crop: Literal["squash", "center"] = Field(
        "squash", description="'squash' shows the network the whole image, 'center' its usual crop."
    )
    shard: tuple[int, int] = Field(
        (1, 1),
        description="I/N measures every N-th image, starting with the I-th; 'xai-abn benchmark merge' joins the files.",
    )
    limit: int | None = Field(None, ge=1, description="Measure only this many images, from the first one on.")
    exif: Literal["apply", "ignore"] = Field(
        "apply",
        description="'apply' rotates images by their EXIF orientation; 'ignore' uses the stored pixels, for "
        "annotations that refer to these.",
    )

    @field_validator("shard", mode="before")
    @classmethod
    def _split_shard(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        index, slash, number = value.partition("/")
        if not (slash and index.isdigit() and number.isdigit()):
            raise InvalidInputError(f"shard takes I/N, such as 2/8, got {value!r}")
        return int(index), int(number)

    @model_validator(mode="after")
    def _check_shard(self) -> BenchmarkSettings:
        index, number = self.shard
        if not 1 <= index <= number:
            raise InvalidInputError(f"a shard is I/N with 1 <= I <= N, got {index}/{number}")
        return self
