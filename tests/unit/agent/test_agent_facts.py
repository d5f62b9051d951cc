"""Every numbered fact that a right backup must honour has a test that names it (`pytest -k fact_07`)."""

from __future__ import annotations

import re
from pathlib import Path

FACTS = {*(f"{number:02}" for number in range(1, 19)), "10a"}
"""Change tracking 1 to 8, snapshots 9 to 12 (and 10a), readers 13 to 17, identity 18."""


def test_every_fact_has_a_test_that_names_it() -> None:
    named: set[str] = set()
    for file in Path(__file__).parents[2].rglob("test_*.py"):
        named |= set(re.findall(r"def test_fact_(\d\d[a-z]?)_", file.read_text()))
    assert sorted(FACTS - named) == []
    assert sorted(named - FACTS) == []
