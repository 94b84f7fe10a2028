"""``xai-abn convert``: a network of the released ABN code as a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    source: Annotated[Path, typer.Argument(help="A .pth or .tar file of the released ABN code.", metavar="FILE")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint to write: a .safetensors file.")],
    arch: Annotated[
        str | None,
        typer.Option(help="Architecture; see 'xai-abn list architectures'. Default: read from the tensors."),
    ] = None,
) -> None:
    """Convert a network saved by the ABN code of Fukui et al. No code in the file is executed."""
    from xai_abn.networks.released_code import convert_file

    found = convert_file(source, output, arch)
    typer.echo(f"{output}: {found.arch}, {found.classes} classes")
