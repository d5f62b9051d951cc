"""From nbd-server.conf and the files of its includedir to the exports that are wanted.

What always holds: a broken file takes nothing with it but its own exports; of two exports of one name the
first in file order counts, and the other is a problem; a key that would change what clients see, and that qemu
cannot honour, disables its export, while one that does not matter is a warning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from sendense_exports.keyfile import Group, KeyFileError, read_key_file

GENERIC = "generic"
MAX_NAME_BYTES = 4096 - 1
"""The NBD protocol's limit for an export's name; our own names are shorter (`names`)."""

ImageFormat = Literal["qcow2", "raw"]

_SECTOR = 512
_FORMATS = ("qcow2", "raw")
_SUPPORTED = frozenset({"exportname", "readonly", "format", "trim", "filesize"})
_ALWAYS_SO = frozenset({"flush", "fua", "rotational", "sync", "sdp", "splice"})
"""qemu always offers flush and FUA, and the others change no content."""
_CHANGES_CONTENT = frozenset({"copyonwrite", "temporary", "multifile", "treefiles", "waitfile", "force_tls"})
_ADDRESS = frozenset({"port", "listenaddr"})
_GENERIC_SUPPORTED = frozenset({"includedir"})
_GENERIC_ALWAYS_SO = frozenset({"allowlist", "oldstyle", "max_threads", "splice"})
"""Every client of the socket may list the exports, which the tunnel refuses to agents; oldstyle is long dead."""
_NO_EFFECT = {
    "authfile": "authfile is not enforced: whoever reaches the socket reaches the export",
    "port": "port has no effect: nothing listens on TCP unless SENDENSE_EXPORTS_TCP_LISTEN says so",
    "listenaddr": "listenaddr has no effect: nothing listens on TCP unless SENDENSE_EXPORTS_TCP_LISTEN says so",
    "force_tls": "force_tls has no effect on the Unix socket",
}
"""What a warning says of a key that is not supported; of all others: it has no effect here."""


@dataclass(frozen=True, slots=True)
class ExportSpec:
    """An export as a file wants it.

    Attributes:
        name: What clients ask for.
        path: Absolute path of the image or device.
        format: How its bytes are understood.
        read_only: Whether clients may only read.
        trim: Whether TRIM reaches a raw image (nbd-server's key; qcow2 refuses TRIM, see sendense_qemu.nodes).
        size_bytes: Serve only so many bytes of a raw image, None for all.
        file: The file that wants it.
        line: The line of its group.
        warnings: Keys that have no effect.
    """

    name: str
    path: Path
    format: ImageFormat
    read_only: bool
    trim: bool
    size_bytes: int | None
    file: Path
    line: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """Why something in a file is not served.

    Attributes:
        file: The file.
        line: The line, 0 for the file as a whole.
        name: The export, None when the whole file is broken.
        message: What is wrong.
    """

    file: Path
    line: int
    name: str | None
    message: str


@dataclass(frozen=True, slots=True)
class Configuration:
    """Everything that the files say.

    Attributes:
        exports: The wanted exports by name.
        problems: What is not served, and why.
        warnings: Keys of `[generic]` that have no effect.
        generic: The keys of `[generic]`.
        restricted: Exports with an `authfile`, which nothing here enforces.
    """

    exports: dict[str, ExportSpec]
    problems: list[Problem]
    warnings: list[str]
    generic: Mapping[str, str] = field(default_factory=dict)
    restricted: list[str] = field(default_factory=list)

    def problem_of(self, name: str, file: Path) -> Problem | None:
        """Returns what keeps the file from wanting an export that it wanted before, if it is a problem at all."""
        for problem in self.problems:
            if problem.file == file and problem.name in {None, name}:
                return problem
        return None


@dataclass(slots=True)
class _Draft:
    served_from: Mapping[str, Path]
    exports: dict[str, ExportSpec] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    restricted: list[str] = field(default_factory=list)


def read_configuration(
    conf_file: Path, served_from: Mapping[str, Path] | None = None, *, listens_as_configured: bool = False
) -> Configuration:
    """Reads the main file and its includedir; blocks for the time of reading.

    Args:
        conf_file: nbd-server.conf.
        served_from: For each export that is served now, its file: it wins against another file's of that name.
        listens_as_configured: Whether `port` and `listenaddr` are heeded (a setting).

    Raises:
        KeyFileError: The main file or the folder is unreadable or wrong; nothing may be changed then.
    """
    groups = read_key_file(conf_file)
    generic = groups.pop(GENERIC, None)
    if generic is None:
        raise KeyFileError(conf_file, 0, f"has no [{GENERIC}] group")
    supported = _GENERIC_SUPPORTED | _GENERIC_ALWAYS_SO | (_ADDRESS if listens_as_configured else frozenset())
    warnings = [_warning(generic, key) for key in generic.values if key not in supported]
    draft = _Draft(served_from or {})
    _collect(groups.values(), draft)
    include = generic.text("includedir")
    if include:
        _collect_folder(conf_file.parent / include, generic, draft)
    said = {key: value.text for key, value in generic.values.items()}
    return Configuration(draft.exports, draft.problems, warnings, said, draft.restricted)


def _warning(group: Group, key: str) -> str:
    text = _NO_EFFECT.get(key, f"{key} has no effect here")
    return f"{group.file}:{group.line_of(key)}: {text}"


def _collect_folder(folder: Path, generic: Group, draft: _Draft) -> None:
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix == ".conf" and path.name[0] != ".")
    except OSError as error:
        line = generic.line_of("includedir")
        raise KeyFileError(generic.file, line, f"includedir {folder}: {error.strerror}") from error
    for file in files:
        try:
            groups = read_key_file(file)
        except KeyFileError as error:
            draft.problems.append(Problem(file, error.line, None, error.problem))
            continue
        if GENERIC in groups:
            line = groups.pop(GENERIC).line
            draft.problems.append(Problem(file, line, GENERIC, f"[{GENERIC}] belongs into the main file"))
        _collect(groups.values(), draft)


def _collect(groups: Iterable[Group], draft: _Draft) -> None:
    for group in groups:
        try:
            spec = read_export(group)
        except KeyFileError as error:
            draft.problems.append(Problem(error.file, error.line, group.name, error.problem))
            continue
        if group.text("authfile"):
            draft.restricted.append(spec.name)
        other = draft.exports.get(spec.name)
        if other is None:
            draft.exports[spec.name] = spec
            continue
        first, second = (spec, other) if draft.served_from.get(spec.name) == spec.file else (other, spec)
        draft.exports[spec.name] = first
        draft.problems.append(
            Problem(second.file, second.line, spec.name, f"{first.file}:{first.line} has that name already")
        )


def read_export(group: Group) -> ExportSpec:
    """Reads one export's group.

    Raises:
        KeyFileError: A key is missing, wrong, or would change what clients see in a way that qemu cannot.
    """
    file = group.file
    if len(group.name.encode()) > MAX_NAME_BYTES:
        raise KeyFileError(file, group.line, "the export's name is too long")
    exportname = group.text("exportname")
    if not exportname:
        raise KeyFileError(file, group.line, f"[{group.name}] has no exportname")
    path = Path(exportname)
    if "%s" in exportname:
        line = group.line_of("exportname")
        raise KeyFileError(file, line, "exportname holds %s: another file for each client is not supported")
    if not path.is_absolute() or ".." in path.parts:
        line = group.line_of("exportname")
        raise KeyFileError(file, line, f"exportname {exportname!r} is not an absolute path without '..'")
    said = group.text("format") or "raw"
    if said not in _FORMATS:
        raise KeyFileError(file, group.line_of("format"), f"format is {said!r}, not qcow2 or raw")
    fmt = cast("ImageFormat", said)
    for key in sorted(_CHANGES_CONTENT & group.values.keys()):
        if group.flag(key):
            raise KeyFileError(file, group.line_of(key), f"{key} is not supported: it changes what is served")
    size_bytes = group.number("filesize") or None
    if size_bytes is not None and fmt != "raw":
        raise KeyFileError(file, group.line_of("filesize"), "filesize is for raw images only")
    if size_bytes is not None and size_bytes % _SECTOR:
        raise KeyFileError(file, group.line_of("filesize"), f"filesize is no multiple of {_SECTOR} bytes")
    unknown = group.values.keys() - _SUPPORTED - _ALWAYS_SO - _CHANGES_CONTENT
    warnings = tuple(_warning(group, key) for key in sorted(unknown))
    return ExportSpec(
        name=group.name,
        path=path,
        format=fmt,
        read_only=group.flag("readonly"),
        trim=group.flag("trim"),
        size_bytes=size_bytes,
        file=file,
        line=group.line,
        warnings=warnings,
    )


def write_export(spec: ExportSpec) -> str:
    """Returns the content of a file that wants one export; `read_export` reads the same from it.

    Raises:
        ValueError: The name or path cannot be written in a key file.
    """
    for text in (spec.name, str(spec.path)):
        if text != text.strip() or any(ord(char) < ord(" ") or ord(char) == 0x7F for char in text):
            raise ValueError(f"{text!r} holds characters that a conf file cannot hold")
    if "[" in spec.name or "]" in spec.name:
        raise ValueError(f"{spec.name!r} holds brackets")
    lines = [
        f"[{spec.name}]",
        f"exportname = {spec.path}",
        f"format = {spec.format}",
        f"readonly = {'true' if spec.read_only else 'false'}",
    ]
    if spec.trim:
        lines.append("trim = true")
    if spec.size_bytes is not None:
        lines.append(f"filesize = {spec.size_bytes}")
    return "\n".join(lines) + "\n"
