"""The rules for public identifiers. Pure: no clock, no database; who calls passes the moment and asks for another one.

What always holds: an identifier consists of ASCII letters, digits, `.`, `_` and `-`, begins with a letter or digit,
holds no `/`, and is no longer than its limit. Two different VM names (or context ids) never give the same one at the
same moment: where a name had to change or be cut, a hash of the whole name stays in it. The rule for export names is in
`exports`.

    slug("pgtest2")                                          -> "pgtest2"
    slug("SQL Server (prod)")                                -> "SQL-Server-prod-1f4e0c2b"
    backup_id("pgtest2", moment)                             -> "backup-pgtest2-20251004120000"
    vm_context_id("pgtest2", moment)                         -> "ctx-pgtest2-20251005-120000"
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime

from sendense_naming.exports import export_name
from sendense_naming.moments import utc

__all__ = ["MAX_IDENTIFIER", "MAX_SLUG", "MAX_SUFFIX", "backup_id", "export_name", "job_id", "slug", "vm_context_id"]

MAX_IDENTIFIER = 64
"""Longest backup or context id; the catalogue's column is as wide (the spec's VARCHAR(64))."""

MAX_SLUG = 37
"""Longest slug: it leaves room for prefix, moment and a suffix of five characters in a backup id."""

MAX_SUFFIX = 9999
"""Largest suffix that tells identifiers of one second apart."""

_AFTER_SLUG = len("--YYYYMMDDhhmmss-9999")
_HASH_DIGITS = 8
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FOREIGN = re.compile(r"[^A-Za-z0-9._]+")


def slug(name: str, limit: int = MAX_SLUG) -> str:
    """Returns a VM's name as part of an identifier.

    Args:
        name: The VM's name as vCenter shows it; any text.
        limit: Longest result, at least 10.

    A name that is fine as it is stays; else its foreign characters become `-` and a hash of the whole name follows.
    """
    if limit < _HASH_DIGITS + 2:
        raise ValueError(f"a slug of {limit} characters cannot hold a hash")
    if len(name) <= limit and _PLAIN.fullmatch(name):
        return name
    words = _FOREIGN.sub("-", name).strip("-._")
    head = words[: limit - _HASH_DIGITS - 1].rstrip("-._") or "vm"
    return f"{head}-{_digest(name)}"


def backup_id(vm_name: str, moment: datetime, suffix: int = 0) -> str:
    """Returns `backup-{vm_name}-{YYYYMMDDhhmmss}`.

    Args:
        vm_name: The VM's name.
        moment: When the backup was asked for, with a time zone.
        suffix: 0, or a number from 2 when the identifier of that second is taken.
    """
    return job_id("backup", vm_name, moment, suffix)


def job_id(kind: str, scope: str, moment: datetime, suffix: int = 0) -> str:
    """Returns `{kind}-{scope}-{YYYYMMDDhhmmss}`.

    Args:
        kind: What is done, such as `backup`, `delete` or `verify`: lower-case letters.
        scope: What it is done to: the VM's name, or any word.
        moment: When it was asked for, with a time zone.
        suffix: 0, or a number from 2 when the identifier of that second is taken.
    """
    limit = min(MAX_SLUG, MAX_IDENTIFIER - len(kind) - _AFTER_SLUG)
    return f"{kind}-{slug(scope, limit)}-{utc(moment):%Y%m%d%H%M%S}{_suffix(suffix)}"


def vm_context_id(vm_name: str, moment: datetime, suffix: int = 0) -> str:
    """Returns `ctx-{vm_name}-{YYYYMMDD-hhmmss}`; the arguments are those of `backup_id`."""
    return f"ctx-{slug(vm_name)}-{utc(moment):%Y%m%d-%H%M%S}{_suffix(suffix)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_DIGITS]


def _suffix(number: int) -> str:
    if not 0 <= number <= MAX_SUFFIX:
        raise ValueError(f"more than {MAX_SUFFIX} identifiers in one second")
    return f"-{number}" if number else ""
