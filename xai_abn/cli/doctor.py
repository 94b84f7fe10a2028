"""``xai-abn doctor``: what is installed, what a model can run on, and what is missing for what."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING, NamedTuple

import typer

if TYPE_CHECKING:
    from packaging.requirements import Requirement

#: What each extra is for; those for work on the package itself are left out.
PURPOSES = {
    "app": "the page in the browser, xai-abn app",
    "onnx": "xai-abn export, and ONNX files as models",
    "openvino": "--backend openvino",
    "transformers": "models of Hugging Face, hf:NAME",
    "datasets": "data of Hugging Face, hf:NAME",
    "volumes": "NIfTI files",
    "tensorboard": "xai-abn train --tensorboard",
    "lightning": "maps while Lightning trains",
    "ray": "explain and benchmark run --engine ray, and maps in Ray Data",
    "parquet": "xai-abn benchmark export to .parquet",
}


class Missing(NamedTuple):
    """A requirement that is not met.

    Attributes:
        needed: as the package states it, such as ``onnx>=1.16``.
        found: the version that is installed, or None.
    """

    needed: str
    found: str | None

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.needed} ({f'found {self.found}' if self.found else 'not installed'})"


def missing() -> dict[str | None, list[Missing]]:
    """Return the requirements that are not met, by extra; None stands for those of the package itself."""
    from packaging.requirements import Requirement

    lacks: dict[str | None, list[Missing]] = {extra: [] for extra in (None, *PURPOSES)}
    for line in metadata.requires("xai-abn") or []:
        requirement = Requirement(line)
        found = _version(requirement.name)
        if found is not None and requirement.specifier.contains(found, prereleases=True):
            continue
        for extra in _extras_of(requirement):
            if extra in lacks:
                lacks[extra].append(Missing(f"{requirement.name}{requirement.specifier}", found))
    return lacks


def _extras_of(requirement: Requirement) -> list[str | None]:
    """Return the extras to which a requirement belongs with this Python; None alone if it belongs to the package."""
    if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
        return [None]
    return [extra for extra in PURPOSES if requirement.marker.evaluate({"extra": extra})]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def command() -> None:
    """Show versions, devices and extras, and make one map. Include the output in a bug report.

    Example: xai-abn doctor
    """
    from xai_abn import __version__

    lacks = missing()
    typer.echo(f"xai-abn {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    shown = ("torch", "torchvision", "timm", "captum", "numpy", "pillow")
    typer.echo("  " + ", ".join(f"{name} {_version(name)}" for name in shown))
    for lack in lacks[None]:
        typer.echo(f"  needed: {lack}; run: pip install '{lack.needed}'")
    if any(lack.found is None for lack in lacks[None]):
        raise typer.Exit(1)
    typer.echo("\nDevices")
    for line in _devices():
        typer.echo(f"  {line}")
    typer.echo("\nExtras")
    for extra, purpose in PURPOSES.items():
        typer.echo(f"  {extra:<13} {'missing  ' if lacks[extra] else 'installed'}  {purpose}")
        if lacks[extra]:
            typer.echo(f"  {'':<13} {'; '.join(map(str, lacks[extra]))}; run: pip install 'xai-abn[{extra}]'")
    typer.echo("\nA first map")
    typer.echo(f"  {_first_map()}")
    if lacks[None]:
        raise typer.Exit(1)


def _devices() -> Iterator[str]:
    """Yield a line for each device and for what runs on it."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    yield f"cpu: {os.cpu_count()} cores, threads of torch: {torch.get_num_threads()}, {capability}"
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        yield f"cuda:{number}: {device.name}, {device.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    if torch.backends.mps.is_available():
        yield "mps: Apple GPU"
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        yield "no GPU that torch can use"
    if _version("onnxruntime") or _version("onnxruntime-gpu"):
        import onnxruntime

        yield f"onnxruntime {onnxruntime.__version__}: {', '.join(onnxruntime.get_available_providers())}"
    compiler = shutil.which(os.environ.get("CXX", "c++" if sys.platform != "win32" else "cl"))
    yield f"C++ compiler, for the backend torch-compile: {compiler or 'none found'}"


def _first_map() -> str:
    """Explain a bundled image with the model that ships; return one line."""
    from xai_abn.models.zoo import load_model
    from xai_abn.pipeline import explain

    model = load_model()
    record = explain(model, "example:cat", "abn")[0]["abn"]
    return f"example:cat with {model.name}: {record.answer}, a map of {'x'.join(map(str, record.map.shape))}"
