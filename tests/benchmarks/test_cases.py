"""The table of cases names tests that exist."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
TABLE = TESTS.parent / "benchmarks/robustness/cases.md"


def test_every_case_names_a_test_or_says_why_there_is_none():
    """A test that is renamed or removed is noticed here."""
    rows = [line.split(" | ") for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    cases = [row for row in rows if len(row) == 3 and row[0] != "| case"]
    assert len(cases) > 100
    missing = []
    for case, _, named in cases:
        found = re.findall(r"`([\w/]+\.py)::(\w+)`", named)
        if not found and not named.startswith("no test: "):
            missing.append(case)
        missing += [f"{file}::{name}" for file, name in found if f"def {name}(" not in (TESTS / file).read_text()]
    assert not missing
