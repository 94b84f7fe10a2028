"""Settings in YAML files, read as the types that a configuration's fields have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from xai_abn.errors import InvalidInputError, UnknownNameError
from xai_abn.files import replacing

#: A run's settings, in its folder.
SETTINGS_FILE = "config.yaml"
#: What a run writes into its file beside the settings.
_NOTES = frozenset(("commands", "xai_abn_version"))


def read_settings(path: str | Path) -> dict[str, Any]:
    """Read a YAML (or JSON) file of settings, such as a run's ``config.yaml``, with what the run noted beside them.

    Raises:
        InvalidInputError: missing, not YAML, or not a table of settings.
    """
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInputError(f"{path}: not a readable YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(found, dict):
        raise InvalidInputError(f"{path}: expected lines such as 'steps: 1000', got {type(found).__name__}")
    return found


def write_settings(path: Path, settings: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
    """Write settings and notes (the commands, the version) as YAML.

    Raises:
        OutputError: the file cannot be written.
    """
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    with replacing(path, "settings ") as draft:
        draft.write_text(yaml.safe_dump({**notes, **plain}, sort_keys=False), encoding="utf-8")


def typed_settings(config: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values, as of a YAML file or a command line, as the types of a dataclass's fields, without a run's notes.

    Raises:
        UnknownNameError: there is no such setting.
        InvalidInputError: a value is of another kind.
    """
    kinds = {f.name: str(f.type) for f in fields(config)}
    given = {name: value for name, value in values.items() if name not in _NOTES}
    for name in given:
        if name not in kinds:
            raise UnknownNameError("setting", str(name), kinds)
    return {name: _typed(name, value, kinds[name]) for name, value in given.items()}


def _typed(name: str, value: Any, kind: str) -> Any:
    """Return a value as a field's kind; YAML reads 1e-4 as text, whole numbers do for others, and 1,2 for a list."""
    if value is None and kind.endswith("| None"):
        return None
    kind = kind.removesuffix(" | None")
    if kind.startswith("tuple[float") and isinstance(value, Sequence):
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(_typed(name, part, "float") for part in parts)
    if kind.startswith("tuple") and isinstance(value, Sequence):
        return tuple(map(str, [value] if isinstance(value, str) else value))
    if kind == "float" and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif type(value).__name__ == kind:
        return value
    wanted = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
    listed = "a list of numbers" if kind.startswith("tuple[float") else "a list of texts"
    raise InvalidInputError(f"the setting {name} must be {wanted.get(kind, listed)}, got {value!r}")
