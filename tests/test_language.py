"""One word for one thing: words that the glossary in CONTRIBUTING.md replaces do not come back."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

#: In names of code: British spellings and words that mean the same as another.
NOT_IN_NAMES = re.compile(
    r"picture|photo|centre|colour|grey|(normal|optim|initial|local|random|visual|general)is(e|ed|er|ation|ing)\b|distil\b"
)
#: In docstrings, comments and messages. A word alone in quotes is a key of an earlier format and is not counted.
NOT_IN_TEXT = re.compile(r"(?<![\"\w])(pictures?|photos?|shall|anew|whilst|hitherto|thereof|whereof)(?![\"\w])", re.I)

#: Where text is read.
TEXTS = ("xai_abn/**/*.py", "xai_abn/**/*.j2", "docs/**/*.md", "README.md", "benchmarks/**/*.md", "benchmarks/**/*.py")


def names(tree: ast.AST) -> Iterator[str]:
    """Yield every name that a module defines or uses as its own: functions, classes, arguments, variables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def found() -> dict[str, Counter[str]]:
    """Return the words that should not be there, by kind and place."""
    words: dict[str, Counter[str]] = {"names": Counter(), "text": Counter()}
    for path in sorted((ROOT / "xai_abn").rglob("*.py")):
        place = str(path.relative_to(ROOT))
        for name in {*names(ast.parse(path.read_text())), path.stem}:
            spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ").lower()
            words["names"].update(f"{place}: {name}" for _ in NOT_IN_NAMES.findall(spaced))
    for pattern in TEXTS:
        for path in sorted(ROOT.glob(pattern)):
            text = path.read_text()
            words["text"].update(f"{path.relative_to(ROOT)}: {word}" for word in NOT_IN_TEXT.findall(text))
    return words


def test_words_that_the_glossary_replaces_do_not_come_back():
    """In the names and the text of the package, its report, the docs and the benchmarks."""
    assert found() == {"names": Counter(), "text": Counter()}, "see the glossary in CONTRIBUTING.md"
