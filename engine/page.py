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
    """The first column is a name, the others are figures, in two lines where a cell has a line break. `data` names the
    CSV file with the same figures. A table with a `summary` is folded away under it on a page."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    data: str = ""
    summary: str = ""


@dataclass(frozen=True)
class Figure:
    """A PNG file beside the report. `data` names the CSV file behind it; `narrow` is the same, a PNG for phones."""

    file: str
    caption: str
    data: str
    narrow: bytes | None = None


@dataclass(frozen=True)
class Files:
    """Files beside the report, to be taken along."""

    names: Sequence[str]


@dataclass(frozen=True)
class Picture:
    """A PNG that is in no file."""

    png: bytes
    caption: str


Block = Heading | Paragraph | Bullets | Headline | TableBlock | Figure | Picture | Files


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
        case TableBlock(columns, rows, data, _):
            lines = [columns, ["---", *("---:" for _ in columns[1:])], *rows]
            table = "\n".join(f"| {' | '.join(_markdown_cell(cell) for cell in line)} |" for line in lines)
            return table + (f"\n\nData: [{data}]({data})" if data else "")
        case Files(names):
            return ", ".join(f"[{name}]({name})" for name in names)
        case Figure(file, caption, data):
            return f"![{caption}]({file})\n\n{caption} Data: [{data}]({data})"
        case Picture(_, caption):
            return f"[picture: {caption}]"


def _markdown_cell(cell: str) -> str:
    return cell.replace("|", "&#124;").replace("\n", " ")


def to_html(title: str, blocks: Sequence[Block], folder: Path | None = None) -> str:
    """The page, with the figures and data files that lie in `folder` inside."""
    body = "\n".join(_html(block, folder) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{html.escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _html(block: Block, folder: Path | None) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{html.escape(text)}</p>"
        case Bullets(items):
            return f"<ul>{''.join(f'<li>{html.escape(item)}</li>' for item in items)}</ul>"
        case Headline(items):
            return f'<div class="headline">{"".join(f"<p>{html.escape(item)}</p>" for item in items)}</div>'
        case TableBlock(columns, rows, data, summary):
            head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
            lines = "".join(f"<tr>{_cells(columns, row)}</tr>" for row in rows)
            table = f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
            link = f'<p class="data">{_data(data, folder)}</p>' if data else ""
            whole = f'<div class="table">{table}</div>{link}'
            return f"<details><summary>{html.escape(summary)}</summary>{whole}</details>" if summary else whole
        case Figure(file, caption, data, narrow):
            content = ((folder or Path()) / file).read_bytes()
            return _figure(content, caption, f" {_data(data, folder)}", narrow)
        case Files(names):
            return f"<p>{', '.join(_link(name, folder) for name in names)}</p>"
        case Picture(png, caption):
            return _figure(png, caption)


def _cells(columns: Sequence[str], row: Sequence[str]) -> str:
    """On a phone each row is a card, whose lines have the columns' names."""
    cells = []
    for place, (column, cell) in enumerate(zip(columns, row, strict=True)):
        label = f' data-label="{html.escape(column)}"' if place else ""
        cells.append(f"<td{label}><span>{html.escape(cell).replace(chr(10), ' <br>')}</span></td>")
    return "".join(cells)


def _figure(png: bytes, caption: str, link: str = "", narrow: bytes | None = None) -> str:
    image = f'<img alt="{html.escape(caption)}" src="{_uri(png, "image/png")}">'
    if narrow is not None:
        source = f'<source media="(max-width: {_PHONE}px)" srcset="{_uri(narrow, "image/png")}">'
        image = f"<picture>{source}{image}</picture>"
    return f"<figure>{image}<figcaption>{html.escape(caption)}{link}</figcaption></figure>"


def _data(name: str, folder: Path | None) -> str:
    return f"Data: {_link(name, folder)}"


def _link(name: str, folder: Path | None) -> str:
    """A download: the file's content where it is there, so that the page stands alone."""
    shown = html.escape(name)
    if folder is None or not (folder / name).is_file():
        return f'<a href="{shown}">{shown}</a>'
    kind = _KINDS.get(Path(name).suffix, "application/octet-stream")
    return f'<a download="{shown}" href="{_uri((folder / name).read_bytes(), kind)}">{shown}</a>'


def _uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


_PHONE = 640  # pixels of width up to which a page is for a phone
_KINDS = {".csv": "text/csv", ".json": "application/json", ".md": "text/markdown"}


_STYLE = """
:root { --ink: #1f2933; --soft: #5b6770; --line: #dde3e8; --accent: #0b6e99; --panel: #f3f7f9; }
body { margin: 0; background: #fff; color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1.25rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-top: 1.25rem; border-top: 1px solid var(--line); }
.headline { background: var(--panel); border-left: 4px solid var(--accent); padding: .6rem 1.2rem; }
.headline p { margin: .45rem 0; font-weight: 550; }
.headline p:first-child { font-size: 1.15rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .93rem; }
th, td { text-align: right; padding: .45rem .55rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td { white-space: nowrap; }
th { color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: normal; min-width: 7rem; }
tbody tr:hover { background: var(--panel); }
figure { margin: 1.5rem 0; }
details { margin: 1rem 0; }
summary { cursor: pointer; color: var(--accent); }
img { max-width: 100%; height: auto; }
figcaption, .data, li { color: var(--soft); font-size: .9rem; }
a { color: var(--accent); }
@media (max-width: 640px) {
  main { padding: 1.25rem 1rem 3rem; }
  h1 { font-size: 1.45rem; }
  .headline { padding: .4rem .8rem; }
  thead { display: none; }
  table, tbody, tr, td { display: block; }
  tr { padding: .6rem 0; border-bottom: 1px solid var(--line); }
  td, td:first-child { border: 0; padding: .1rem 0; text-align: right; white-space: normal; overflow-wrap: anywhere; }
  td:first-child { text-align: left; font-weight: 600; }
  td[data-label] { display: flex; justify-content: space-between; gap: 1rem; }
  td br { display: none; }
  td[data-label]::before { content: attr(data-label); color: var(--soft); text-align: left; }
}
"""
