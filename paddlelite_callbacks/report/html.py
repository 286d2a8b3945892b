"""One self-contained HTML file from the report's Markdown: no script, no network, pictures inside."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping
from pathlib import Path

__all__ = ["html_page"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --line: #d7dce1; --soft: #f4f6f8; --link: #2b5fd9;
  --good: #1a7f37; --bad: #c0262d; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --paper: #14171a; --line: #353b42; --soft: #1e2328;
  --link: #8ab0ff; --good: #56d364; --bad: #ff7b72; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; color: var(--ink); background: var(--paper);
  font: 16px/1.55 system-ui, "Noto Sans", "Noto Sans CJK SC", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
h3 { font-size: 1.05rem; margin-bottom: .3rem; }
.table { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .88rem; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { background: var(--soft); } tr:last-child td { border-bottom: 0; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--soft); z-index: 1; }
.text { text-align: left; } td.long { text-align: left; white-space: normal; min-width: 16rem; }
code { background: var(--soft); border-radius: 4px; padding: .1em .3em; font-size: .88em; }
pre { background: var(--soft); border-radius: 6px; padding: .8rem; overflow-x: auto; font-size: .82rem; }
pre code { padding: 0; } a { color: var(--link); }
picture img { width: 100%; height: auto; background: #fff; border-radius: 6px; }
ul { padding-left: 1.2rem; } li.tick { list-style: none; margin-left: -1.2rem; }
li.tick ul { padding-left: 2.4rem; list-style: disc; }
.yes { color: var(--good); font-weight: 600; } .no { color: var(--bad); font-weight: 600; }
"""


def html_page(markdown: str, pictures: Mapping[str, tuple[Path, Path]], *, title: str) -> str:
    """Turn the report into a page.

    Args:
        markdown: headings, tables, lists, fenced code, ``![text](name)``, bold and code spans: what the report uses.
        pictures: wide and narrow PNG by the name that the Markdown gives.
        title: of the page.
    """
    body: list[str] = []
    lines = markdown.splitlines()
    while lines:
        line = lines.pop(0)
        if line.startswith("```"):
            end = next((i for i, item in enumerate(lines) if item.startswith("```")), len(lines))
            body.append("<pre><code>" + html.escape("\n".join(lines[:end])) + "</code></pre>")
            del lines[: end + 1]
        elif line.startswith("|"):
            block = [line, *_taken(lines, "|")]
            body.append(_table(block))
        elif line.lstrip().startswith("- "):
            body.append(_list([line, *_taken(lines, "- ")]))
        elif match := re.match(r"(#{1,4}) (.*)", line):
            level = len(match[1])
            body.append(f"<h{level}>{_inline(match[2])}</h{level}>")
        elif match := re.match(r"!\[(.*)\]\((.*)\)", line):
            body.append(_picture(match[1], match[2], pictures))
        elif line.strip():
            body.append(f"<p>{_inline(line)}</p>")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n"
        "</body>\n</html>\n"
    )


def _taken(lines: list[str], start: str) -> list[str]:
    count = next((i for i, line in enumerate(lines) if not line.lstrip().startswith(start)), len(lines))
    taken = lines[:count]
    del lines[:count]
    return taken


def _table(block: list[str]) -> str:
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]] for line in block]
    left = [not mark.endswith(":") for mark in rows[1]]
    heads = [f'<th scope="col"{_kind(left[i] and i > 0, "")}>{_inline(cell)}</th>' for i, cell in enumerate(rows[0])]
    cells = ["<tr>" + "".join(heads) + "</tr>"]
    for row in rows[2:]:
        done = [f"<td{_kind(left[i] and i > 0, cell)}>{_inline(cell)}</td>" for i, cell in enumerate(row)]
        cells.append("<tr>" + "".join(done) + "</tr>")
    return f'<div class="table" tabindex="0" role="region" aria-label="table"><table>{"".join(cells)}</table></div>'


def _kind(left: bool, cell: str) -> str:
    return f' class="{"long" if len(cell) > 24 else "text"}"' if left else ""


def _list(block: list[str]) -> str:
    items: list[tuple[str, list[str]]] = []
    for line in block:
        text = line.strip()[2:]
        if line.startswith(" ") and items:
            items[-1][1].append(f"<li>{_inline(text)}</li>")
        else:
            items.append((text, []))
    return "<ul>" + "".join(_item(text, inner) for text, inner in items) + "</ul>"


def _item(text: str, inner: list[str]) -> str:
    below = f"<ul>{''.join(inner)}</ul>" if inner else ""
    if tick := re.match(r"\[([ x])\] (.*)", text):
        met = tick[1] == "x"
        word = '<span class="yes">&#10003; met:</span>' if met else '<span class="no">&#10007; open:</span>'
        return f'<li class="tick">{word} {_inline(tick[2])}{below}</li>'
    return f"<li>{_inline(text)}{below}</li>"


def _inline(text: str) -> str:
    parts = re.split(r"(`[^`]*`)", text.replace("\\|", "|"))
    done = []
    for part in parts:
        if part.startswith("`") and part.endswith("`") and len(part) > 1:
            done.append(f"<code>{html.escape(part[1:-1])}</code>")
        else:
            plain = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(part))
            plain = plain.replace("<strong>fail</strong>", '<strong class="no">fail</strong>')
            done.append(re.sub(r"^(pass|fail)(?=:|$)", _word, plain))
    return "".join(done)


def _word(match: re.Match[str]) -> str:
    return f'<span class="{"yes" if match[1] == "pass" else "no"}">{match[1]}</span>'


def _picture(text: str, name: str, pictures: Mapping[str, tuple[Path, Path]]) -> str:
    if name not in pictures:
        return ""
    wide, narrow = (base64.b64encode(path.read_bytes()).decode() for path in pictures[name])
    return (
        f'<picture><source media="(max-width: 640px)" srcset="data:image/png;base64,{narrow}">'
        f'<img alt="{html.escape(text)}" src="data:image/png;base64,{wide}"></picture>'
    )
