"""Files written whole or not at all, and never over those of others; digests; names of files as text."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from xai_abn.errors import OutputError, XaiAbnError


@contextlib.contextmanager
def replacing(path: Path, kind: str = "") -> Iterator[Path]:
    """Yield the path of a draft that replaces ``path`` when the block ends, and is removed if the block fails.

    Args:
        path: the file to make or replace.
        kind: what it is, for the message, such as ``"checkpoint "``.

    Raises:
        OutputError: the file cannot be written; what was there stays.
    """
    draft = path.with_name(path.name + ".part")
    try:
        draft.unlink(missing_ok=True)
        yield draft
        os.replace(draft, path)
    except XaiAbnError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {kind}{path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def refuse_foreign(path: Path, is_ours: Callable[[Path], bool], way_out: str = "give --overwrite") -> None:
    """Refuse to replace what xai-abn did not create.

    Args:
        path: the file to make or replace; it need not exist.
        is_ours: whether a file is one of ours; it may raise what reading the file raises.
        way_out: what to do besides choosing another place, for the message.

    Raises:
        OutputError: something is there that is not ours.
    """
    if not os.path.lexists(path):
        return
    try:
        ours = path.is_file() and is_ours(path)
    except (OSError, SyntaxError, ValueError):
        ours = False
    if not ours:
        raise OutputError(f"{path} exists and was not created by xai-abn; choose another --output or {way_out}")


def name_as_text(name: str) -> str:
    """Return the name of a file, which may be any bytes, as text that can be printed and stored."""
    return os.fsencode(name).decode(errors="backslashreplace")


def digest(*contents: bytes | memoryview) -> str:
    """Return a hash of bytes."""
    found = hashlib.blake2b(digest_size=16)
    for content in contents:
        found.update(content)
    return found.hexdigest()


def key_of(**facts: Any) -> str:
    """Return a key: a hash of everything that a result depends on, given as JSON values."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def package_folder(name: str) -> str:
    """Return the folder of an installed package without importing it; empty if there is no such package."""
    found = find_spec(name)
    return next(iter((found and found.submodule_search_locations) or ()), "")
