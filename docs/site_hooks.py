"""What the site holds beside the pages of this folder: other pages of the repository, and lists made from the code."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
#: Pages of the repository that the site shows under their own paths, and files that they link.
ELSEWHERE = ("*.md", "benchmarks/**/*.md", "benchmarks/training_speed/results.json", "xai_abn/weights/*.md")
#: Pages that only make sense in the repository.
LEFT_OUT = ("README.md",)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the repository that lie outside of this folder."""
    from mkdocs.structure.files import File

    for pattern in ELSEWHERE:
        for path in sorted(ROOT.glob(pattern)):
            place = path.relative_to(ROOT).as_posix()
            if place not in LEFT_OUT:
                files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links between files of the repository into links between pages, and fill in lists made from the code."""
    here = page.file.src_uri
    source = here if (ROOT / here).is_file() else f"docs/{here}"

    def moved(match: re.Match[str]) -> str:
        path, hash_, anchor = match[1].partition("#")
        if not path or re.match(r"\w+:", path):
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path)).removeprefix("docs/")
        return f"]({os.path.relpath(target, posixpath.dirname(here) or '.')}{hash_}{anchor})"

    markdown = re.sub(r"\]\(([^)\s]+)\)", moved, markdown)
    return re.sub(r"^<!-- made from the code: (\w+) -->$", lambda m: LISTS[m[1]](), markdown, flags=re.MULTILINE)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Turn the roles of docstrings, such as :func:`xai_abn.wrap`, into links where the site has an entry."""

    def link(match: re.Match[str]) -> str:
        name = match[1]
        shown = name.lstrip("~").rsplit(".", 1)[-1] if name.startswith("~") else name
        target = name.lstrip("~") if "." in name else f"xai_abn.{name}"
        return f'<autoref optional identifier="{target}"><code>{shown}</code></autoref>'

    return re.sub(r":(?:func|class|meth|mod|attr|data):<code>(~?[\w.]+)</code>", link, html)


def commands() -> str:
    """Return every command of ``xai-abn`` with its arguments and options, as Markdown."""
    import typer

    from xai_abn.cli.main import app

    def walk(command: Any, name: str) -> list[str]:
        if hasattr(command, "commands"):
            return [line for n, child in command.commands.items() for line in walk(child, f"{name} {n}")]
        text, _, example = (command.help or "").partition("Example: ")
        lines = [f"## `{name}`", "", _cell(text), ""]
        if example:
            lines += ["```bash", " ".join(example.split("\n\n")[0].split()), "```", ""]
            lines += [_cell(more) for more in example.split("\n\n")[1:]] + [""]
        panels: dict[str, list[Any]] = {}
        for parameter in command.params:
            title = "Arguments" if parameter.param_type_name == "argument" else parameter.rich_help_panel or "Options"
            if not getattr(parameter, "hidden", False) and parameter.name != "help":
                panels.setdefault(title, []).append(parameter)
        for title, parameters in panels.items():
            lines += [f"| {title} | | default |", "|---|---|---|"]
            for p in parameters:
                names = [p.metavar or p.name.upper()] if title == "Arguments" else [*p.opts, *p.secondary_opts]
                value = getattr(p.default, "value", p.default)
                default = "" if value in (None, False, "", (), []) or callable(value) else f"`{value}`"
                default = "required" if p.required else default
                lines.append(f"| {', '.join(f'`{n}`' for n in names)} | {_cell(p.help or '')} | {default} |")
            lines.append("")
        return lines

    return "\n".join(walk(typer.main.get_command(app), "xai-abn"))


def metrics() -> str:
    """Return every metric under every protocol, as Markdown."""
    from xai_abn import metrics as package

    better = {True: "higher", False: "lower", None: "neither"}
    lines = ["| metric | better | range, unit | what it is | source |", "|---|---|---|---|---|"]
    for name in package.names():
        m = package.get(name)
        low, high = (f"{bound:g}" for bound in m.range)
        cells = (f"`{m.full_name}`", better[m.higher_is_better], f"{low} to {high}, {m.units}", m.definition, m.source)
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines)


def options() -> str:
    """Return every option of every method, as Markdown."""
    from xai_abn import explainers

    lines = ["| method | option | default | meaning |", "|---|---|---|---|"]
    for method in explainers.names():
        for name, default, meaning in explainers.get(method).describe():
            if name != "layer":
                lines.append(f"| `{method}` | `{name}` | {_cell(default)} | {_cell(meaning)} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Return a text on one line, as a cell of a table."""
    plain = re.sub(r"\[/?(?:bold|dim|italic|cyan)\]", "", " ".join(text.split()))
    return plain.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


LISTS = {"commands": commands, "metrics": metrics, "options": options}
