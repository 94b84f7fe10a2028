"""Every error xai-abn raises on purpose.

XaiAbnError
├── ImageLoadError(OSError)            a file cannot be read as an image
├── InvalidInputError(ValueError)      an argument has the wrong shape, range or length
├── UnknownNameError(KeyError)         a name (method, model, layer, label) is not known
├── UnsupportedModelError(TypeError)   a method does not apply to a model, or cannot be turned into an ABN
├── WeightsError(OSError)              pretrained weights cannot be downloaded, found or loaded
├── CheckpointError(ValueError)        a checkpoint is damaged, foreign or too new
├── NonFiniteError(ArithmeticError)    a model outputs NaN or infinity
├── UnusableMapError(ValueError)       a map is flat or not finite, so it cannot be scaled
├── DatasetError(ValueError)           a data set is missing, damaged or inconsistent
├── RunError(ValueError)               a run is damaged, busy, or belongs to another model or other data
└── OutputError(OSError)               a result cannot be written, or would replace a foreign file

Each is also a built-in error, so callers need not import this module to catch it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


def shown(value: object, length: int = 80) -> str:
    """Return a value as a message shows it: on one line, cut to so many characters; text as it is."""
    line = " ".join((value if isinstance(value, str) else repr(value)).split())
    return line if len(line) <= length else f"{line[: length - 3]}..."


class XaiAbnError(Exception):
    """Base class of the errors that a user can cause and fix.

    Attributes:
        exit_code: exit code of the command line: 2 if the command itself is wrong, else 1.
    """

    exit_code: ClassVar[int] = 1

    def __str__(self) -> str:
        """Return only the message; OSError and KeyError would add to it."""
        return str(self.args[0]) if self.args else type(self).__name__

    @property
    def line(self) -> str:
        """The message on one line."""
        return " ".join(str(self).split())


class XaiAbnWarning(UserWarning):
    """Base class of warnings: something was skipped or is not used, and the work continues."""


class ImageLoadError(XaiAbnError, OSError):
    """Raised when a file cannot be read as an image."""


class InvalidInputError(XaiAbnError, ValueError):
    """Raised when an argument has the wrong shape, range, type or length."""

    exit_code = 2


class UnsupportedModelError(XaiAbnError, TypeError):
    """Raised when a method does not apply to a model, or cannot be turned into an ABN."""


class WeightsError(XaiAbnError, OSError):
    """Raised when pretrained weights cannot be downloaded, found or loaded."""


class CheckpointError(XaiAbnError, ValueError):
    """Raised when a checkpoint is damaged, foreign, or written by a newer version."""


class NonFiniteError(XaiAbnError, ArithmeticError):
    """Raised when a model's scores contain NaN or infinity."""


class UnusableMapError(XaiAbnError, ValueError):
    """Raised when a flat or non-finite map cannot be scaled to a heatmap."""


class DatasetError(XaiAbnError, ValueError):
    """Raised when a data set is missing, damaged or inconsistent."""


class RunError(XaiAbnError, ValueError):
    """Raised when a run is damaged, in use elsewhere, or belongs to another model or other data."""


class OutputError(XaiAbnError, OSError):
    """Raised when a result cannot be written, or would replace a file that xai-abn did not create."""


class UnknownNameError(XaiAbnError, KeyError):
    """Raised when a name is not known; the message gives the nearest known ones.

    Attributes:
        name: the unknown name.
        nearest: up to three known names that look like it, best first.
    """

    exit_code = 2

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = list(known)
        self.name = name
        by_folded = {k.casefold(): k for k in known}
        close = difflib.get_close_matches(name.casefold(), by_folded, n=3, cutoff=0.5)
        self.nearest = [by_folded[k] for k in close]
        message = f"unknown {kind} {shown(repr(name))}"
        if self.nearest:
            message += f"; did you mean {', '.join(map(repr, self.nearest))}?"
        if len(known) <= 12:
            message += f" Known: {', '.join(known)}." if self.nearest else f"; known: {', '.join(known)}"
        elif not self.nearest:
            message += f"; there are {len(known)} known, such as {', '.join(known[:3])}"
        if hint and message[-1] not in ".?":
            message += "."
        super().__init__(f"{message} {hint}".rstrip())
