"""Draws the figures that have a goal as bars: 1 is the floor, to the right is better, a diamond is what is wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from figures import Row

_LABEL_WIDTH = 420
_PLOT_WIDTH = 520
_LINE = 24
_TOP = 48
_LARGEST = 4.0
_COLOURS = {"wanted": "#2e7d32", "floor": "#f9a825", "missed": "#c62828"}


def _score(row: Row, figure: float) -> float:
    """Returns how often a figure reaches its floor; above 1 it is reached, whichever direction is better."""
    goal = row.goal
    if goal is None or not goal.floor or not figure:
        return 0.0
    return figure / goal.floor if goal.better == "higher" else goal.floor / figure


def _place(score: float) -> float:
    """Returns the place of a score: logarithmic from a quarter to four times the floor."""
    clipped = min(max(score, 1 / _LARGEST), _LARGEST)
    return _LABEL_WIDTH + _PLOT_WIDTH * (math.log(clipped, _LARGEST) + 1) / 2


def plot(rows: Sequence[Row], title: str) -> str:
    """Returns an SVG document."""
    shown = [row for row in rows if row.goal is not None]
    height = _TOP + _LINE * len(shown) + 16
    width = _LABEL_WIDTH + _PLOT_WIDTH + 130
    zero, one = _place(1 / _LARGEST), _place(1.0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif"'
        ' font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="8" y="18" font-size="14">{escape(title)}</text>',
        '<text x="8" y="36" fill="#555">bar: figure ÷ floor (logarithmic, ¼ to 4); diamond: wanted</text>',
    ]
    for number, row in enumerate(shown):
        goal = row.goal
        if goal is None:
            continue
        y = _TOP + number * _LINE
        end = _place(_score(row, row.median))
        colour = _COLOURS[goal.judge(row.median)]
        parts.append(f'<text x="8" y="{y + 15}">{escape(row.name)}</text>')
        parts.append(
            f'<rect x="{zero:.1f}" y="{y + 3}" width="{max(end - zero, 2):.1f}" height="{_LINE - 8}" fill="{colour}"/>'
        )
        if goal.wanted:
            x, middle = _place(_score(row, goal.wanted)), y + _LINE / 2 - 1
            parts.append(
                f'<path d="M{x:.1f} {middle - 6} l6 6 l-6 6 l-6 -6 z" fill="none" stroke="#222" stroke-width="1.5"/>'
            )
        parts.append(f'<text x="{_LABEL_WIDTH + _PLOT_WIDTH + 10}" y="{y + 15}">{row.median:.3g} {row.unit}</text>')
    parts.append(f'<line x1="{one:.1f}" y1="{_TOP - 4}" x2="{one:.1f}" y2="{height - 12}" stroke="#222"/>')
    parts.append("</svg>")
    return "\n".join(parts) + "\n"
