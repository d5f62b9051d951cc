"""Makes the README's picture of a terminal: really runs the commands, and draws what they printed as SVG.

Run: `.venv/bin/python docs/site/terminal_picture.py docs/img/terminal.svg`. It starts a node with the lab in a
temporary directory, so the picture shows what the present code prints.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

import pyte

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from sendense_lab.client import LabClient
from sendense_node.running import RunningNode
from terminal import in_terminal

COLUMNS = 84
CHARACTER, LINE = 8.43, 19
COLOURS = {"green": "#7ee787", "red": "#ff7b72", "brown": "#e3b341", "blue": "#79c0ff", "magenta": "#d2a8ff"}
COMMANDS = (
    "sendense-ctl backup start --vm pgtest2 --type full",
    "sendense-lab guest run pgtest2 --share 0.05",
    "sendense-ctl backup start --vm pgtest2",
    "sendense-ctl backup chain --vm pgtest2",
    "sendense-ctl backup extract --backup-id ID --file /var/www/html/index.php --output index.php",
)


def main() -> None:
    """Writes the picture to the path that is the one argument."""
    target = Path(sys.argv[1])
    home = Path(tempfile.mkdtemp(prefix="picture-", dir="/var/tmp"))  # a short path, for sockets
    try:
        with RunningNode(home) as node:
            LabClient(home).create_vm("pgtest2", ["384M:ext4", "512M:xfs"], small_files=500)
            screen = _record(node)
    finally:
        shutil.rmtree(home)
    target.write_text("\n".join(_svg(list(_lines(screen)))) + "\n")


def _record(node: RunningNode) -> pyte.HistoryScreen:
    screen = pyte.HistoryScreen(COLUMNS, 100)
    stream = pyte.Stream(screen)
    environment = {**node.environment, "TERM": "xterm-256color", "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    backup_id = ""
    for command in COMMANDS:
        line = command.replace("ID", backup_id)
        stream.feed(f"\x1b[34m$\x1b[0m \x1b[1m{line}\x1b[0m\r\n")
        shown = in_terminal(shlex.split(line), environment, columns=COLUMNS)
        if shown.status:
            raise SystemExit(shown.text)
        stream.feed(shown.raw + "\r\n")
        backup_id = next((word for word in shown.text.split() if word.startswith("backup-pg")), backup_id)
    Path("index.php").unlink(missing_ok=True)
    return screen


def _lines(screen: pyte.HistoryScreen) -> Iterator[list[tuple[str, str, bool]]]:
    """Yields each line as runs of text with colour and boldness; empty lines at the end are left out."""
    last = max(row for row, cells in screen.buffer.items() if any(cell.data.strip() for cell in cells.values()))
    for row in range(last + 1):
        runs: list[tuple[str, str, bool]] = []
        for column in range(COLUMNS):
            cell = screen.buffer[row][column]
            if runs and runs[-1][1:] == (cell.fg, cell.bold):
                runs[-1] = (runs[-1][0] + cell.data, cell.fg, cell.bold)
            else:
                runs.append((cell.data, cell.fg, cell.bold))
        yield runs


def _svg(lines: list[list[tuple[str, str, bool]]]) -> Iterator[str]:
    width, height = COLUMNS * CHARACTER + 32, len(lines) * LINE + 56
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" font-size="14" '
        'font-family="ui-monospace, \'DejaVu Sans Mono\', Menlo, monospace" role="img" '
        'aria-label="A full backup, an increment, the chain and a file coming back">'
    )
    yield f'<rect width="{width:.0f}" height="{height}" rx="10" fill="#0d1117"/>'
    for x, colour in ((20, "#ff5f56"), (40, "#ffbd2e"), (60, "#27c93f")):
        yield f'<circle cx="{x}" cy="18" r="6" fill="{colour}"/>'
    for number, runs in enumerate(lines):
        column = 0
        for text, colour, bold in runs:
            if text.strip():
                weight = ' font-weight="bold"' if bold else ""
                fill = COLOURS.get(colour, f"#{colour}" if len(colour) == 6 and colour != "default" else "#c9d1d9")
                # textLength keeps columns in line whatever font the viewer has
                yield (
                    f'<text x="{16 + column * CHARACTER:.1f}" y="{52 + number * LINE}" fill="{fill}"{weight} '
                    f'textLength="{len(text) * CHARACTER:.1f}" xml:space="preserve">{escape(text)}</text>'
                )
            column += len(text)
    yield "</svg>"


if __name__ == "__main__":
    main()
