"""A report's contents, written as Markdown and as one self-contained HTML page."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Bullets:
    items: Sequence[str]


@dataclass(frozen=True)
class Headline:
    """What a hurried reader should take away."""

    items: Sequence[str]


@dataclass(frozen=True)
class TableBlock:
    """The first column is a name, the others are figures. `data` names the CSV file with the same figures."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    data: str = ""


@dataclass(frozen=True)
class Figure:
    """A PNG file beside the report. `data` names the CSV file behind it."""

    file: str
    caption: str
    data: str


@dataclass(frozen=True)
class Picture:
    """A PNG that is in no file."""

    png: bytes
    caption: str


Block = Heading | Paragraph | Bullets | Headline | TableBlock | Figure | Picture


def to_markdown(title: str, blocks: Sequence[Block]) -> str:
    return "\n\n".join([f"# {title}", *(_markdown(block) for block in blocks)]) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Paragraph(text):
            return text
        case Bullets(items):
            return "\n".join(f"- {item}" for item in items)
        case Headline(items):
            return "\n".join(f"- **{item}**" for item in items)
        case TableBlock(columns, rows, data):
            lines = [columns, ["---", *("---:" for _ in columns[1:])], *rows]
            table = "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)
            return table + (f"\n\nData: [{data}]({data})" if data else "")
        case Figure(file, caption, data):
            return f"![{caption}]({file})\n\n{caption} Data: [{data}]({data})"
        case Picture(_, caption):
            return f"[picture: {caption}]"


def to_html(title: str, blocks: Sequence[Block], folder: Path = Path()) -> str:
    """The page, with the figures' files in `folder` inside."""
    body = "\n".join(_html(block, folder) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{html.escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _html(block: Block, folder: Path) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{html.escape(text)}</p>"
        case Bullets(items):
            return f"<ul>{''.join(f'<li>{html.escape(item)}</li>' for item in items)}</ul>"
        case Headline(items):
            return f'<div class="headline">{"".join(f"<p>{html.escape(item)}</p>" for item in items)}</div>'
        case TableBlock(columns, rows, data):
            head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
            lines = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
            return (
                f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'
                + _data_link(data)
            )
        case Figure(file, caption, data):
            return _figure((folder / file).read_bytes(), caption, f" {_link(data)}")
        case Picture(png, caption):
            return _figure(png, caption)


def _figure(png: bytes, caption: str, link: str = "") -> str:
    encoded = base64.b64encode(png).decode()
    return (
        f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{encoded}">'
        f"<figcaption>{html.escape(caption)}{link}</figcaption></figure>"
    )


def _data_link(data: str) -> str:
    return f'<p class="data">{_link(data)}</p>' if data else ""


def _link(data: str) -> str:
    return f'Data: <a href="{html.escape(data)}">{html.escape(data)}</a>'


_STYLE = """
:root { --ink: #1f2933; --soft: #5b6770; --line: #dde3e8; --accent: #0b6e99; --panel: #f3f7f9; }
body { margin: 0; background: #fff; color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 56rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1.25rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-top: 1.25rem; border-top: 1px solid var(--line); }
.headline { background: var(--panel); border-left: 4px solid var(--accent); padding: .6rem 1.2rem; }
.headline p { margin: .45rem 0; font-weight: 550; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .93rem; }
th, td { text-align: right; padding: .45rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tbody tr:hover { background: var(--panel); }
figure { margin: 1.5rem 0; }
img { max-width: 100%; height: auto; }
figcaption, .data, li { color: var(--soft); font-size: .9rem; }
a { color: var(--accent); }
"""
