"""One report of one or several runs: a page to read, JSON to compute with, Markdown to paste."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from xai_abn.benchmark.report import tables
from xai_abn.benchmark.report.gallery import make_gallery
from xai_abn.benchmark.report.reading import Run, Section, read_sections
from xai_abn.benchmark.store import as_damaged
from xai_abn.files import refuse_foreign, replacing

#: Text that every file of a report holds near its start; files without it are not replaced.
MARK = "made by xai-abn"


@dataclass(frozen=True)
class Report:
    """The results of runs, ready to be written.

    Attributes:
        runs: each run's files, identity and sessions.
        sections: tables of the runs that can be compared, as plain JSON values; see docs/how-to/benchmark.md.
        drawings: data URI of each drawing of the gallery by (section, row, method).
    """

    runs: tuple[dict[str, Any], ...]
    sections: tuple[dict[str, Any], ...]
    drawings: dict[tuple[int, int, str], str] = field(default_factory=dict, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the drawings as plain JSON values, with None for numbers that are not finite."""
        from xai_abn import __version__

        found = {"about": f"{MARK} {__version__}", "runs": list(self.runs), "sections": list(self.sections)}
        result: dict[str, Any] = _strict(found)
        return result

    def markdown(self) -> str:
        """Return the tables as Markdown."""
        from xai_abn.benchmark.report.text import markdown

        return markdown(self.to_dict())

    def html(self) -> str:
        """Return one self-contained page."""
        return self._page

    @cached_property
    def _page(self) -> str:
        from xai_abn.benchmark.report.page import page

        return page(self.to_dict(), self.drawings)

    def save(self, folder: str | Path) -> list[Path]:
        """Write ``report.html``, ``report.json`` and ``report.md``, each whole or not at all.

        Returns:
            Their paths in that order.

        Raises:
            OutputError: a file cannot be written, or exists and was not created by xai-abn; then none is written.
        """
        folder = Path(folder)
        contents = {
            folder / "report.html": self.html(),
            folder / "report.json": json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
            folder / "report.md": self.markdown(),
        }
        for path in contents:
            refuse_foreign(path, _is_ours, "delete it")
        for path, content in contents.items():
            _write(path, content)
        return list(contents)


def make_report(runs: Sequence[str | Path], reference: str | None = None, gallery: int = 12) -> Report:
    """Read runs and compute their tables, intervals and tests.

    Runs of the same data and metrics are compared; others get a section of their own.

    Args:
        runs: files made by ``xai-abn benchmark``; they are not changed.
        reference: method that the others are compared with; default ``abn``, or the first.
        gallery: number of images to show.

    Raises:
        RunError: a file is no run, is damaged, or has no results.
        UnknownNameError: there is no such reference method.

    Examples:
        >>> from xai_abn.benchmark.report.build import make_report
        >>> make_report(["run.sqlite"]).save("report")  # doctest: +SKIP
    """
    with as_damaged(", ".join(map(str, runs))):
        found = read_sections([Path(run) for run in runs], reference)
        sections, drawings = [], {}
        for index, section in enumerate(found):
            facts, drawn = _section(section, reference, gallery)
            sections.append(facts)
            drawings.update({(index, *place): uri for place, uri in drawn.items()})
        made = Report(tuple(_run(run) for section in found for run in section.runs), tuple(sections), drawings)
        made.html()  # rendered now, so that values a template cannot show are reported as damage
    return made


def _section(
    section: Section, reference: str | None, gallery: int
) -> tuple[dict[str, Any], dict[tuple[int, str], str]]:
    against = section.reference(reference) or section.reference(None)
    assert against is not None
    shown = make_gallery(section, against, gallery)
    data = section.runs[0].identity.get("data")
    summary = tables.summary_table(section)
    facts = {
        "data": data if isinstance(data, dict) else {"kind": "data" if data is None else str(data)},
        "models": list(dict.fromkeys(run.model for run in section.runs)),
        "images": len(section.images),
        "superseded": len(set().union(*(run.superseded - set(run.images) for run in section.runs))),
        "reference": against.name,
        "methods": tables.method_table(section),
        "metrics": tables.metric_table(section),
        "summary": summary,
        "sanity": tables.sanity_table(section, summary),
        "comparisons": tables.comparison_table(section, against),
        "agreement": tables.agreement_table(section),
        "curves": tables.curve_table(section),
        "classes": tables.class_table(section),
        "failures": tables.failure_table(section),
        "gallery": shown.facts if shown else None,
    }
    return facts, shown.drawings if shown else {}


def _run(run: Run) -> dict[str, Any]:
    return {"files": run.files, "identity": run.identity, "sessions": run.sessions, "images": len(run.images)}


def _strict(value: Any) -> Any:
    """Return JSON values with None for every number that is not finite."""
    if isinstance(value, dict):
        return {str(key): _strict(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return MARK.encode() in file.read(1000)


def _write(path: Path, content: str) -> None:
    with replacing(path) as draft:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(content, encoding="utf-8")
