"""All that a distillation run depends on, in one record that a YAML file holds."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xai_abn.errors import InvalidInputError
from xai_abn.training.distillation.config import DistillationConfig
from xai_abn.training.settings_file import SETTINGS_FILE, read_settings, typed_settings

#: Settings that may differ when a run goes on: they do not change what it makes.
FREE = frozenset(("photos", "device", "workers", "check_every", "stop_after"))
#: Settings that may name a file; a checkpoint holds the file's name alone.
_PATHS = frozenset(("model", "weights", "continue_from"))


@dataclass(frozen=True)
class DistillationSettings(DistillationConfig):
    """How to distil, and from what.

    Attributes:
        model: the classifier: ``"lite0"``, ``"timm:NAME"``, ``"torchvision:NAME"`` or a checkpoint.
        weights: as for :func:`xai_abn.load_model`.
        device: where to train, such as ``"cpu"`` or ``"cuda"``.
        photos: folders (searched recursively), files or globs; one named twice counts twice.
        exclude: photos whose file name contains one of these are left out.
        least_area: least share of a photo's area that a crop covers, in (0, 1].
        held_out: photos never trained on, with which the map is checked; at most a fifth of all.
        mechanism: see :func:`xai_abn.abn_from`.
        smoothing: the same.
        layer: the same; None finds it.
        continue_from: an ABN checkpoint of the same classifier to start from.
        restore_head: give it the classifier's own perception branch again.
        check_every: steps between two checks, at which the run is also saved.
        stop_after: end after so many steps of the schedule.
        half: store the checkpoint's weights as fp16.

    Raises:
        InvalidInputError: a value is out of its range.
    """

    model: str = "lite0"
    weights: str | None = None
    device: str = "cpu"
    photos: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    least_area: float = 0.25
    held_out: int = 64
    mechanism: str = "residual"
    smoothing: int = 0
    layer: str | None = None
    continue_from: str | None = None
    restore_head: bool = False
    check_every: int = 100
    stop_after: int | None = None
    half: bool = False

    def __post_init__(self) -> None:
        """Check the values before anything is loaded."""
        super().__post_init__()
        if not 0 < self.least_area <= 1:
            raise InvalidInputError(f"least_area must lie in (0, 1], got {self.least_area}")
        for name, least in (("smoothing", 0), ("check_every", 1), ("stop_after", 1), ("held_out", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InvalidInputError(f"{name} must be at least {least}, got {value}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DistillationSettings:
        """Build from plain values, as of a YAML file; the commands and version that a run notes are passed over.

        Raises:
            UnknownNameError: there is no such setting.
            InvalidInputError: a value is of another kind or out of its range.
        """
        return cls(**typed_settings(cls, values))

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as plain values; the opposite of :meth:`from_dict`."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    def portable(self) -> dict[str, Any]:
        """Return the settings without the folders of this machine: no photos, and names in place of paths."""
        values = {name: v for name, v in self.to_dict().items() if name not in ("photos", "device", "workers")}
        return {name: Path(v).name if name in _PATHS and v and Path(v).exists() else v for name, v in values.items()}

    def command(self) -> str:
        """Return the command line that makes this run, with ``DIR...`` in place of the folders."""
        words = ["xai-abn", "distill", "--photos", "DIR..."]
        defaults = DistillationSettings().portable()
        for name, value in self.portable().items():
            if value == defaults[name] and name != "model":
                continue
            option = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{option}" if value else f"--no-{option}")
            else:
                for item in value if isinstance(value, list) else [value]:
                    words += [f"--{option}", str(item)]
        return shlex.join([*words, "--output", "RUN"])


def gather_settings(
    given: Mapping[str, Any], file: str | Path | None = None, run: str | Path | None = None
) -> DistillationSettings:
    """Put settings together: those given go before those of a file, and these before those of a run to go on with.

    Raises:
        UnknownNameError, InvalidInputError: a file cannot be read, or a setting or its value is wrong.
    """
    values: dict[str, Any] = {}
    if run is not None and (Path(run) / SETTINGS_FILE).is_file():
        values |= read_settings(Path(run) / SETTINGS_FILE)
        values.pop("stop_after", None)  # was asked of that call alone
    if file is not None:
        values |= read_settings(file)
    return DistillationSettings.from_dict({**values, **given})
