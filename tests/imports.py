"""Rules for the package's imports: strictly downward, never sideways, never in a circle; lazy imports count."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

Layers = list[list[str]]


def drawn_layers(page: str) -> Layers:
    """Return the rows of the first drawing under the heading "Layers", lowest first."""
    drawing = page.split("\n## Layers\n", 1)[1].split("```")[1]
    rows = [line.split() for line in drawing.split("\n", 1)[1].splitlines() if line.strip()]
    return rows[::-1]


def import_faults(package: Path, layers: Layers) -> list[str]:
    """Return what breaks the rules in a package, one line for each fault.

    Every import counts: inside functions, under ``TYPE_CHECKING``, relative, ``from package import x`` and
    ``import_module("package.x")``, and each module named in a table. The package's own ``__init__.py`` is exempt,
    because it offers the public names of all parts. So are tables of lazily loaded names in ``__init__.py`` files.
    """
    levels = {part: level for level, parts in enumerate(layers) for part in parts}
    graph = {name: set(imported(name, package)) for name in modules(package) if name != package.name}
    faults = [f"{part} is not drawn" for part in sorted({part_of(n) for n in graph} - levels.keys() - {"weights"})]
    for name, targets in graph.items():
        for target in targets:
            own, other = part_of(name), part_of(target)
            if own == other or own not in levels:
                continue
            if other not in levels:
                faults.append(f"{name} imports {target}, which is not drawn")
            elif levels[other] >= levels[own]:
                where = "beside" if levels[other] == levels[own] else "above"
                faults.append(f"{name} imports {target} {where} it")
    for name, targets in graph.items():
        circular = (target for target in targets if name in reachable(target, graph))
        faults += [f"{name} imports {target} in a circle" for target in circular]
    return sorted(faults)


def modules(package: Path) -> dict[str, Path]:
    """Return every module of the package by its dotted name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def part_of(module: str) -> str:
    """Return the folder or file of the package that a module belongs to."""
    return [*module.split("."), "__init__"][1]


def reachable(start: str, graph: dict[str, set[str]]) -> set[str]:
    """Return a module and everything it imports, also indirectly."""
    seen, waiting = {start}, [start]
    while waiting:
        new = graph.get(waiting.pop(), set()) - seen
        seen |= new
        waiting += new
    return seen


def imported(name: str, package: Path) -> Iterator[str]:
    """Yield the package's modules that one of them imports; a public name counts as the module that defines it."""
    known = modules(package)
    path = known[name]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == package.name)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            texts = (part.value for part in node.args if isinstance(part, ast.Constant))
            yield from (text for text in texts if str(text).split(".")[0] == package.name)
        elif isinstance(node, ast.Dict) and path.name != "__init__.py":
            texts = (part.value for value in node.values for part in ast.walk(value) if isinstance(part, ast.Constant))
            yield from (text for text in texts if text in known)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
                base = ".".join(here[: len(here) - node.level + 1] + ([base] if base else []))
            if base.split(".")[0] != package.name:
                continue
            for alias in node.names:
                full = f"{base}.{alias.name}"
                if full in known:
                    yield full
                elif base != package.name:
                    yield base
                elif alias.name != "__version__":
                    yield public_names(package).get(alias.name, full)


def public_names(package: Path) -> dict[str, str]:
    """Return the module of each name that the package's ``__init__.py`` imports, whether or not it is run."""
    tree = ast.parse((package / "__init__.py").read_text())
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return {alias.name: str(node.module) for node in froms for alias in node.names}
