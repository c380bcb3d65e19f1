"""A result as a picture: small bar charts, one a question, in SVG written by hand.

Bars of one panel share a linear scale that starts at nothing, so lengths can be compared; panels cannot, which is why
each bar carries its number. Colours tell dvk from the rest and are legible without colour vision.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from benchmarks.results import Result

#: item, verb, field, title
PANELS = (
    ("table", "add", "wall_s", "table: first add, s"),
    ("table", "add-edit", "wall_s", "table: add of an edit, s"),
    ("table", "add", "stored_bytes", "table: stored, MB"),
    ("table", "add-edit", "stored_bytes", "table: new for an edit, MB"),
    ("model", "add", "wall_s", "model: first add, s"),
    ("model", "add-edit", "wall_s", "model: add of a fine-tune, s"),
    ("model", "add", "stored_bytes", "model: stored, MB"),
    ("model", "add-edit", "stored_bytes", "model: new for a fine-tune, MB"),
    ("files", "add", "wall_s", "files: first add, s"),
    ("files", "add-edit", "wall_s", "files: add of an edit, s"),
    ("files", "status", "wall_s", "files: status, s"),
    ("files", "back", "wall_s", "files: checkout back, s"),
    ("files", "push-s3", "wall_s", "files: push to S3, s"),
    ("files", "pull-s3", "wall_s", "files: pull from S3, s"),
    ("table", "push-s3", "wall_s", "table: push to S3, s"),
    ("table", "pull-s3", "wall_s", "table: pull from S3, s"),
)
COLUMNS = 4
PANEL_W, BAR_H, GAP = 250, 15, 22
LABEL_W, VALUE_W = 52, 52
OWN, OTHER = "#b3420f", "#7d8fa3"
FONT = "font-family='system-ui, sans-serif'"


def render(result: Result) -> str:
    """The picture as the text of an SVG document. Panels without a measurement are left out."""
    panels = [p for item, verb, field, title in PANELS if (p := _values(result, item, verb, field, title))]
    rows = [panels[i : i + COLUMNS] for i in range(0, len(panels), COLUMNS)]
    body: list[str] = []
    top = 44.0
    for row in rows:
        height = 20 + max(len(bars) for _, bars in row) * (BAR_H + 3)
        for column, (title, bars) in enumerate(row):
            body += _panel(title, bars, 16 + column * (PANEL_W + GAP), top)
        top += height + GAP
    width = 16 + COLUMNS * (PANEL_W + GAP)
    note = f"shorter is better; scale {result.scale:g}, {result.machine['cpus']} cores, median of {result.rounds}"
    return "\n".join(
        [
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {top:.0f}' role='img'"
            f" aria-label='dvk and its peers: time and size' {FONT} font-size='11'>",
            f"<rect width='{width}' height='{top:.0f}' fill='#ffffff'/>",
            f"<text x='16' y='24' font-size='15' fill='#1b2733'>dvk and its peers</text>"
            f"<text x='160' y='24' fill='#56636f'>{escape(note)}</text>",
            *body,
            "</svg>\n",
        ]
    )


def _values(result: Result, item: str, verb: str, field: str, title: str) -> tuple[str, list[tuple[str, float]]] | None:
    unit = 1e6 if field == "stored_bytes" else 1.0
    bars = [
        (tool, value / unit) for tool in result.tools() if (value := result.median(item, verb, tool, field)) is not None
    ]
    return (title, bars) if bars else None


def _panel(title: str, bars: Sequence[tuple[str, float]], left: float, top: float) -> list[str]:
    longest = max(value for _, value in bars) or 1.0
    room = PANEL_W - LABEL_W - VALUE_W
    out = [f"<text x='{left}' y='{top + 10:.0f}' fill='#1b2733' font-weight='600'>{escape(title)}</text>"]
    y = top + 18
    for tool, value in bars:
        length = max(1.0, value / longest * room)
        colour, weight = (OWN, "700") if tool == "dvk" else (OTHER, "400")
        number = f"{value:.2f}" if value < 10 else f"{value:,.0f}"
        base = y + BAR_H - 4
        out += [
            f"<text x='{left + LABEL_W - 6}' y='{base}' text-anchor='end' fill='#1b2733' font-weight='{weight}'>"
            f"{escape(tool)}</text>",
            f"<rect x='{left + LABEL_W}' y='{y}' width='{length:.1f}' height='{BAR_H}' fill='{colour}'/>",
            f"<text x='{left + LABEL_W + length + 5:.1f}' y='{base}' fill='#1b2733'>{number}</text>",
        ]
        y += BAR_H + 3
    return out
