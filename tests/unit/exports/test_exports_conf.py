"""Configuration files: nbd-server's syntax, broken files named with their line, other exports alive."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense_exports.exportconf import ExportSpec, read_configuration, read_export, write_export
from sendense_exports.keyfile import KeyFileError, parse_key_file

FILE = Path("/conf.d/x.conf")


def conf(folder: Path, files: dict[str, str], main: str = "[generic]\nincludedir = conf.d\n") -> Path:
    (folder / "conf.d").mkdir(exist_ok=True)
    (folder / "nbd-server.conf").write_text(main)
    for name, text in files.items():
        (folder / "conf.d" / name).write_text(text)
    return folder / "nbd-server.conf"


def test_a_folder_as_debian_writes_it_is_understood(tmp_path: Path) -> None:
    main = (
        "[generic]\n# comment\n\tuser = nbd\n\tgroup = nbd\n"
        "\tport = 10809\n\tlistenaddr = 0.0.0.0\nincludedir = conf.d\n"
    )
    path = conf(
        tmp_path,
        {
            "one.conf": "[one]\nexportname = /srv/one.raw\nreadonly = true\n"
            "flush = true\nfua = false\nmaxconnections = 3\n",
            "two.conf": "[two]\n\texportname=/dev/vdb\n\tcopyonwrite = false\n",
            "three.conf~": "not read",
            ".hidden.conf": "not read",
        },
        main,
    )
    read = read_configuration(path)
    assert read.problems == []
    assert set(read.exports) == {"one", "two"}
    one = read.exports["one"]
    assert (one.path, one.format, one.read_only, one.line) == (Path("/srv/one.raw"), "raw", True, 1)
    assert [w.rpartition("conf.d/")[2] for w in one.warnings] == ["one.conf:6: maxconnections has no effect here"]
    assert read.exports["two"].warnings == ()
    assert [warning.partition("nbd-server.conf:")[2].partition(":")[0] for warning in read.warnings] == list("3456")
    assert read.warnings[2].endswith(
        "port has no effect: nothing listens on TCP unless SENDENSE_EXPORTS_TCP_LISTEN says so"
    )
    assert (read.generic["port"], read.generic["listenaddr"]) == ("10809", "0.0.0.0")  # noqa: S104
    heeded = read_configuration(path, listens_as_configured=True)
    assert [warning.rpartition(": ")[2] for warning in heeded.warnings] == [
        "user has no effect here",
        "group has no effect here",
    ]


def test_an_authfile_is_named_and_remembered_since_nothing_enforces_it(tmp_path: Path) -> None:
    path = conf(
        tmp_path,
        {
            "a.conf": "[open]\nexportname = /srv/a.raw\nauthfile =\n",
            "b.conf": "[for-some]\nexportname = /srv/b.raw\nauthfile = /etc/nbd-server/allow\n",
        },
    )
    read = read_configuration(path)
    assert read.restricted == ["for-some"]
    (warning,) = read.exports["for-some"].warnings
    assert "b.conf:3: authfile is not enforced: whoever reaches the socket reaches the export" in warning


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("[x]\nreadonly = true\n", 1, "no exportname"),
        ("[x]\n\nexportname = ../../etc/passwd\n", 3, "absolute path"),
        ("[x]\nexportname = /a/../etc/passwd\n", 2, "absolute path"),
        ("[x]\nexportname = /a\nformat = vmdk\n", 3, "vmdk"),
        ("[x]\nexportname = /srv/%s.raw\n", 2, "another file for each client"),
        ("[x]\nexportname = /a\nforce_tls = true\n", 3, "force_tls is not supported"),
        ("[x]\nexportname = /a\nreadonly = perhaps\n", 3, "perhaps"),
        ("[x]\nexportname = /a\ncopyonwrite = true\n", 3, "copyonwrite"),
        ("[x]\nexportname = /a\nfilesize = -5\n", 3, "not a number"),
        ("[x]\nexportname = /a\nfilesize = 100\n", 3, "multiple"),
        ("[x]\nexportname = /a\nformat = qcow2\nfilesize = 512\n", 4, "raw images only"),
        ("exportname = /a\n", 1, "before the first"),
        ("[x\nexportname = /a\n", 1, "no [group]"),
        ("[x]\nexportname /a\n", 2, "neither"),
        ("[x]\nexportname = /a\nexportname = /b\n", 3, "twice"),
        ("[x]\nexportname = /a\n[x]\n", 3, "twice"),
        ("[generic]\nport = 1\n[x]\nexportname = /a\n", 1, "main file"),
    ],
)
def test_a_broken_file_is_named_with_its_line_and_others_live(
    tmp_path: Path, text: str, line: int, problem: str
) -> None:
    path = conf(tmp_path, {"a.conf": text, "good.conf": "[good]\nexportname = /srv/good.raw\n"})
    read = read_configuration(path)
    assert "good" in read.exports
    (found,) = read.problems
    assert (found.file.name, found.line) == ("a.conf", line)
    assert problem in found.message


def test_an_unreadable_file_and_one_of_foreign_bytes_disable_only_themselves(tmp_path: Path) -> None:
    path = conf(tmp_path, {"good.conf": "[good]\nexportname = /srv/good.raw\n"})
    (tmp_path / "conf.d" / "latin.conf").write_bytes(b"[x]\nexportname = /\xff\n")
    (tmp_path / "conf.d" / "folder.conf").mkdir()
    (tmp_path / "conf.d" / "huge.conf").write_bytes(b"#" * (2 << 20))
    read = read_configuration(path)
    assert set(read.exports) == {"good"}
    assert {(p.file.name, p.line) for p in read.problems} == {("latin.conf", 2), ("folder.conf", 0), ("huge.conf", 0)}


def test_of_two_exports_of_one_name_the_served_one_wins(tmp_path: Path) -> None:
    files = {"a.conf": "[x]\nexportname = /srv/a.raw\n", "b.conf": "[x]\nexportname = /srv/b.raw\n"}
    path = conf(tmp_path, files)
    assert read_configuration(path).exports["x"].path == Path("/srv/a.raw")
    read = read_configuration(path, {"x": tmp_path / "conf.d" / "b.conf"})
    assert read.exports["x"].path == Path("/srv/b.raw")
    assert [p.file.name for p in read.problems] == ["a.conf"]


@pytest.mark.parametrize("main", ["", "[other]\n", "[generic\n", "[generic]\nincludedir = missing\n"])
def test_a_broken_main_file_changes_nothing(tmp_path: Path, main: str) -> None:
    with pytest.raises(KeyFileError):
        read_configuration(conf(tmp_path, {}, main))


@given(
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True),
    path=st.text(min_size=1).map(lambda text: "/" + text),
    qcow2=st.booleans(),
    read_only=st.booleans(),
)
def test_what_is_written_is_read_back_or_refused(name: str, path: str, qcow2: bool, read_only: bool) -> None:
    spec = ExportSpec(
        name, Path(path), "qcow2" if qcow2 else "raw", read_only, trim=False, size_bytes=None, file=FILE, line=1
    )
    try:
        text = write_export(spec)
    except ValueError:
        return
    groups = parse_key_file(FILE, text)
    try:
        assert read_export(groups[name]) == spec
    except KeyFileError as error:
        assert "absolute path" in error.problem  # '..' in the path: refused, never served as something else  # noqa: PT017


@given(st.text(max_size=400))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        groups = parse_key_file(FILE, text)
    except KeyFileError as error:
        assert error.line >= 1  # noqa: PT017
        return
    assert all(group.name for group in groups.values())
