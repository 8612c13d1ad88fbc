"""The report's files: report.json, report.md, report.html and its plots."""

import base64
from html import escape
from pathlib import Path

from loadtest.plots import draw_plots
from loadtest.results import Report
from loadtest.tables import Table, markdown_rows, tables

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: .5rem 0; }
th, td { border-bottom: 1px solid #8884; padding: .25rem .7rem; text-align: left; }
td { font-variant-numeric: tabular-nums; }
img { max-width: 100%; background: white; border-radius: 4px; }
.passed { color: #0072b2; } .failed { color: #d55e00; font-weight: bold; }
.note { opacity: .8; max-width: 60rem; }
"""


def write_report(report: Report, folder: Path) -> None:
    """Write all files; plots only of what was measured."""
    (folder / "report.json").write_text(report.model_dump_json(indent=1) + "\n", "utf-8")
    plots = draw_plots(report, folder)
    (folder / "report.md").write_text(markdown(report, plots), "utf-8")
    (folder / "report.html").write_text(page(report, folder, plots), "utf-8")


def markdown(report: Report, plots: dict[str, str]) -> str:
    """The report to read as text. `plots`: file names with what each shows."""
    lines = [f"# {_title(report)}", "", _verdict(report), ""]
    for name, what in plots.items():
        lines += [f"![{what}]({name})", ""]
    for table in tables(report):
        lines += [f"## {table.title}", "", *markdown_rows(table), ""]
        lines += [table.note, ""] if table.note else []
    return "\n".join(lines)


def page(report: Report, folder: Path, plots: dict[str, str]) -> str:
    """The report as one HTML file that needs no other."""
    status = "passed" if report.verdict.passed and not report.ended_by else "failed"
    parts = [
        f"<h1>{escape(_title(report))}</h1>",
        f'<p class="{status}">{escape(_verdict(report))}</p>',
    ]
    first, *others = tables(report)
    parts.append(_html(first))
    for name, what in plots.items():
        data = base64.b64encode((folder / name).read_bytes()).decode()
        parts.append(f'<p><img alt="{escape(what)}" src="data:image/png;base64,{data}"></p>')
    parts += [_html(table) for table in others]
    head = f'<meta charset="utf-8"><title>{escape(_title(report))}</title><style>{_STYLE}</style>'
    view = '<meta name="viewport" content="width=device-width">'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}{view}</head><body>{body}</body></html>\n'


def _title(report: Report) -> str:
    return f"Load test: {report.about.scenario_name}"


def _verdict(report: Report) -> str:
    failed = [gate.name for gate in report.verdict.gates if gate.status == "failed"]
    says = "Red. Does not hold: " + "; ".join(failed) + "." if failed else "Green: no gate failed."
    if report.ended_by:
        return f"Ended by an error after {report.runs} runs: {report.ended_by} Until then: {says}"
    return says if report.complete else f"{says} Partial: {report.runs} runs."


def _html(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.header)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return f"<h2>{escape(table.title)}</h2><table><tr>{head}</tr>{rows}</table>{note}"


def _cell(text: str) -> str:
    kind = f' class="{text}"' if text in ("passed", "failed") else ""
    return f"<td{kind}>{escape(text)}</td>"
