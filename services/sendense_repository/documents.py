"""JSON documents of the repository format: each carries its format version and a digest over itself.

The digest is the BLAKE3 of the document without the member `digest`, as JSON with sorted keys, no spaces and UTF-8
(docs/repository-format.md). A document that is cut, edited or of a newer format is refused by name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blake3 import blake3

FORMAT_VERSION = 1
MAX_DOCUMENT_BYTES = 16 << 20
"""No document of ours is longer; what is was not written by us."""


class DocumentError(Exception):
    """A document is not as written.

    Attributes:
        path: The file.
        finding: What is wrong, in one clause.
    """

    def __init__(self, path: Path, finding: str) -> None:
        super().__init__(f"{path}: {finding}")
        self.path = path
        self.finding = finding


def digest_of(document: dict[str, Any]) -> str:
    """Returns the digest of a document, its own member `digest` left out."""
    plain = {key: value for key, value in document.items() if key != "digest"}
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return blake3(canonical.encode()).hexdigest()


def encode(kind: str, members: dict[str, Any]) -> tuple[bytes, str]:
    """Returns a document's bytes, for people to read too, and its digest."""
    document: dict[str, Any] = {"format": FORMAT_VERSION, "kind": kind, **members}
    digest = digest_of(document)
    document["digest"] = digest
    return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode(), digest


def read(path: Path, kind: str) -> dict[str, Any]:
    """Reads a document.

    Raises:
        DocumentError: It is damaged, of another kind or of an unknown format.
        FileNotFoundError: There is none.
    """
    with path.open("rb") as stream:
        content = stream.read(MAX_DOCUMENT_BYTES + 1)
    if len(content) > MAX_DOCUMENT_BYTES:
        raise DocumentError(path, "it is too long")
    try:
        document = json.loads(content)
    except ValueError as error:
        raise DocumentError(path, "it is no JSON: damaged or cut") from error
    if not isinstance(document, dict) or document.get("kind") != kind:
        raise DocumentError(path, f"it is no document of kind '{kind}'")
    version = document.get("format")
    if version != FORMAT_VERSION:
        raise DocumentError(path, f"its format is {version!r}, this version of Sendense knows {FORMAT_VERSION}")
    if document.get("digest") != digest_of(document):
        raise DocumentError(path, "its digest does not fit: damaged or edited")
    return document
