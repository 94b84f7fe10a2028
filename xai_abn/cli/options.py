"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[
    str, typer.Option("--model", "-m", help="abn-lite0, lite0, timm:NAME, torchvision:NAME or a checkpoint.")
]
Weights = Annotated[
    str | None,
    typer.Option(help="For timm: and torchvision: models: weights file, or 'random'.", metavar="FILE|random"),
]
Device = Annotated[str, typer.Option(help="Where to run the model, such as cpu or cuda.")]
