"""What the methods say of themselves, without importing them, since importing torch takes seconds.

``methods.json`` holds it. ``python -m xai_abn.cli.methods`` writes that file, and a test compares it with the
methods. Where plug-ins are installed, or the methods are imported already, they are asked.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from xai_abn.errors import UnknownNameError
from xai_abn.settings import split_specs

TABLE = Path(__file__).with_name("methods.json")


def known() -> dict[str, dict[str, Any]]:
    """Return what each method says of itself, by its name; see :func:`asked`."""
    if "xai_abn.explainers" in sys.modules or entry_points(group="xai_abn.explainers"):
        return asked()
    return shipped()


def shipped() -> dict[str, dict[str, Any]]:
    """Return what the file says of the package's own methods."""
    found: dict[str, dict[str, Any]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return found


def asked() -> dict[str, dict[str, Any]]:
    """Return, for each method: whether its maps depend on the class, cost, grid, source, summary and options."""
    from xai_abn import explainers

    def described(name: str) -> dict[str, Any]:
        kind = explainers.get(name)
        plain = kind()
        return {
            "class_specific": plain.class_specific,
            "cost": plain.cost,
            "grid": plain.grid,
            "source": plain.source,
            "summary": (inspect.getdoc(kind) or kind.source).splitlines()[0],
            "options": [list(option) for option in kind.describe()],
        }

    return {name: described(name) for name in explainers.names()}


def check_methods(texts: Sequence[str]) -> None:
    """Refuse an unknown method before torch is imported and a model is loaded, unless a plug-in may have it.

    Raises:
        UnknownNameError: the message suggests the nearest names.
    """
    if not texts or "xai_abn.explainers" in sys.modules:
        return
    own = shipped()
    unknown = [name for text in texts for spec in split_specs(text) if (name := spec.partition(":")[0]) not in own]
    if unknown and not entry_points(group="xai_abn.explainers"):
        raise UnknownNameError("method", unknown[0], own, "See 'xai-abn list methods'.")


if __name__ == "__main__":
    TABLE.write_text(json.dumps(asked(), indent=1) + "\n", encoding="utf-8")
