"""Maps made elsewhere, read from a folder."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xai_abn.errors import InvalidInputError
from xai_abn.explainers.base import Explainer
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.forward_pass import ForwardPass


class MapFolder(Explainer):
    """Maps (h, w) from ``.npy`` files named as the pictures, one a picture, whatever the class.

    ``cats/1.jpg`` is looked for as ``cats/1.npy``, then as ``1.npy``, in the folder. A map covers what the network
    sees of the picture, at any resolution, the same for all.

    Args:
        folder: where the files are.
        name: how the method is called in results; default: the folder's name.
        ending: of the files, such as ``".grad-cam.npy"`` for those of ``xai-abn explain --map npy``.

    Raises:
        InvalidInputError: no such folder, or no such file in it.
    """

    class_specific = False
    source = "maps made elsewhere"

    def __init__(self, folder: str | Path, name: str | None = None, ending: str = ".npy") -> None:
        super().__init__()
        self.folder, self.ending = Path(folder), ending
        self.name = name or self.folder.resolve().name
        self._owners: dict[Path, str] = {}
        if not any(self.folder.rglob(f"*{ending}")):
            raise InvalidInputError(f"{self.folder}: no {ending} files there; give a folder with one map a picture")

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """A hash of all files, so that a benchmark notices other maps."""
        content = hashlib.sha256()
        for path in sorted(self.folder.rglob(f"*{self.ending}")):
            content.update(path.relative_to(self.folder).as_posix().encode() + b"\0")
            content.update(hashlib.sha256(path.read_bytes()).digest())
        return {"files": content.hexdigest()[:32]}

    def layers(self, model: ModelAdapter) -> tuple[str, ...]:
        """Return nothing: the network is not asked."""
        return ()

    def layer_of(self, model: ModelAdapter) -> str:
        """Return what is recorded in place of a layer."""
        return "file"

    def explain(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the pictures' maps, (N, h, w); ``targets`` do not matter.

        Raises:
            InvalidInputError: the pass does not know the pictures' names, as with pictures that a metric changed;
                or a picture's map is missing, damaged, not (h, w), not finite, or of another shape than the first.
        """
        if len(forward_pass.sources) != len(forward_pass):
            raise InvalidInputError(
                f"{self.name} reads maps by the pictures' names, and these pictures have none; explain files, "
                "and leave out metrics that change pictures or the model and explain again"
            )
        maps = [self._read(source) for source in forward_pass.sources]
        for source, found in zip(forward_pass.sources, maps, strict=True):
            if found.shape != maps[0].shape:
                first = forward_pass.sources[0]
                raise InvalidInputError(
                    f"{source}: its map has shape {found.shape}, that of {first} {maps[0].shape}; "
                    f"resize all maps in {self.folder} to one shape"
                )
        return torch.from_numpy(np.stack(maps)).to(forward_pass.logits.device)

    def _read(self, source: str) -> np.ndarray:
        path = self._file(source)
        try:
            values = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InvalidInputError(f"{source}: its map {path} cannot be read ({error})") from error
        if (
            not isinstance(values, np.ndarray)
            or values.ndim != 2
            or 0 in values.shape
            or values.dtype.kind not in "fiub"
        ):
            shape = getattr(values, "shape", "several arrays")
            raise InvalidInputError(f"{source}: its map {path} must be numbers (h, w), got {shape}")
        values = values.astype(np.float32)
        if not np.isfinite(values).all():
            raise InvalidInputError(f"{source}: its map {path} holds values that are not finite")
        return values

    def _file(self, source: str) -> Path:
        """Return the file of a picture's map; no file serves two pictures."""
        picture = Path(source)
        same_place = picture.with_name(picture.stem + self.ending)
        places = [] if picture.is_absolute() else [self.folder / same_place]
        places.append(self.folder / same_place.name)
        found = next((path for path in places if path.is_file()), None)
        if found is None:
            raise InvalidInputError(
                f"{source}: no map for it, looked for {' and '.join(map(str, dict.fromkeys(places)))}"
            )
        owner = self._owners.setdefault(found, source)
        if not (owner.endswith(source) or source.endswith(owner)):
            raise InvalidInputError(
                f"{found} would serve {owner} and {source}; keep maps in folders as the pictures are"
            )
        return found
