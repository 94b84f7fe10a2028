"""Make a notebook of each tutorial: docs/tutorials/NAME.ipynb.

    python docs/make_notebooks.py

Blocks of Python become cells, and commands of the shell become cells of ``!`` lines. ``<!-- show: FILE -->`` becomes a
cell that shows an image; images of the page are left out. A cell that installs xai-abn replaces the section "Install".
The app, which needs a browser, stays text.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

TUTORIALS = Path(__file__).parent / "tutorials"
INSTALL = "# where xai-abn is not installed yet, such as in Colab\n%pip install --quiet xai-abn"
#: Images with their captions, the link to the notebook itself, and the installation, which has a cell of its own.
LEFT_OUT = re.compile(r"^(?:!\[.*(?:\n\n\*.*\*$)?|.*\.ipynb\).*|## Install\n(?s:.*?)(?=^## ))\n*", re.MULTILINE)
#: A block to run, or an image to show.
PARTS = re.compile(r"^```(python|bash)\n(.*?)^```$|^<!-- show: (\S+) -->$", re.DOTALL | re.MULTILINE)


def notebook(tutorial: Path) -> str:
    """Return the notebook of a tutorial as the text of its file."""
    text = LEFT_OUT.sub("", tutorial.read_text())
    place = text.index("\n## ")
    cells = [new_markdown_cell(text[:place].strip()), new_code_cell(INSTALL)]
    for part in PARTS.finditer(text):
        language, block, image = part.groups()
        if block and "xai-abn app" in block:
            continue
        cells += [new_markdown_cell(text[place : part.start()].strip()), new_code_cell(code(language, block, image))]
        place = part.end()
    cells = [cell for cell in (*cells, new_markdown_cell(text[place:].strip())) if cell.source]
    for number, cell in enumerate(cells):
        cell.id = str(number)  # the same each time
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.writes(new_notebook(cells=cells, metadata={"kernelspec": kernel})) + "\n"


def code(language: str | None, block: str | None, image: str | None) -> str:
    """Return the source of a cell: of a block, or of an image that it shows."""
    if image:
        return f'import IPython.display\n\nIPython.display.Image("{image}")'
    assert block is not None
    if language == "python":
        return block.strip()
    return "\n".join(f"!{line}" for line in block.splitlines())


def main() -> None:
    for tutorial in sorted(TUTORIALS.glob("*.md")):
        tutorial.with_suffix(".ipynb").write_text(notebook(tutorial))


if __name__ == "__main__":
    main()
