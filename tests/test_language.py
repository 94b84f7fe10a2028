"""One word for one thing: words that the glossary in CONTRIBUTING.md replaces do not come back."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

#: British spellings and words that mean the same as another.
NOT_IN_NAMES = re.compile(
    r"picture|photo|centre|colour|grey|(normal|optim|initial|local|random|visual|general)is(e|ed|er|ation|ing)\b|distil\b"
)


def names(tree: ast.AST) -> Iterator[str]:
    """Yield every name that a module defines or uses as its own: functions, classes, arguments, variables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def found() -> Counter[str]:
    """Return the names that should not be there, with their place."""
    words: Counter[str] = Counter()
    for path in sorted((ROOT / "xai_abn").rglob("*.py")):
        place = str(path.relative_to(ROOT))
        for name in {*names(ast.parse(path.read_text())), path.stem}:
            spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ").lower()
            words.update(f"{place}: {name}" for _ in NOT_IN_NAMES.findall(spaced))
    return words


def test_words_that_the_glossary_replaces_do_not_come_back():
    """In the names of the package. In texts, codespell looks for them, in tox -e lint (.ci/style.txt)."""
    assert found() == Counter(), "see the glossary in CONTRIBUTING.md"
