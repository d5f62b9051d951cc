"""What a check found: what it looked at, how bad it is, its cause and risk, and the one command to run next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check.

    Attributes:
        subject: What was looked at, such as `repository local`.
        level: `ok`, `warning` (something will go wrong) or `error` (something is wrong).
        found: What was seen.
        cause: Why it is so, as far as can be told; empty when all is well.
        risk: What happens if nobody does anything; empty when all is well.
        command: One command to run next; empty when all is well.
    """

    subject: str
    level: Level
    found: str
    cause: str = ""
    risk: str = ""
    command: str = ""
