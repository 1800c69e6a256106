"""A study's tables and figures as one page: `python -m delta_transcoders.report.html STUDY`.

Writes `STUDY/report/index.html`, which holds its images and needs no other file.
"""

from __future__ import annotations

import argparse
import base64
import html
from pathlib import Path

from delta_transcoders.command import run
from delta_transcoders.files import write_text
from delta_transcoders.report.summary import (
    EXPERIMENTS,
    LEGEND,
    SPLIT_TITLE,
    behaviour_table,
    intervention_table,
    reconstruction_table,
    split_table,
    times_line,
)

STYLE = """body { font-family: sans-serif; margin: 2em auto; max-width: 90em; padding: 0 1em; }
pre { font-size: 12px; overflow-x: auto; } img { max-width: 100%; }"""


def _image(path: Path) -> str:
    encoded = base64.b64encode(path.read_bytes()).decode("ascii")
    name = html.escape(path.stem.replace("_", " "))
    return f'<h3>{name}</h3>\n<img alt="{name}" src="data:image/png;base64,{encoded}">'


def render(study: Path) -> str:
    """The page of a study; experiments that have not been run are left out."""
    parts = [
        ("What the models do", behaviour_table(study), []),
        ("What the dictionaries reconstruct (held-out tokens)", reconstruction_table(study), []),
    ]
    for name, title in EXPERIMENTS.items():
        figures = sorted((study / name / "plots").glob("*.png"))
        parts.append((title, intervention_table(study, name), figures))
    figures = sorted((study / "exp2a" / "comparisons").glob("*.png"))
    parts.append((SPLIT_TITLE, split_table(study), figures))
    body = [f"<h1>{html.escape(str(study))}</h1>", f"<p>{html.escape(times_line(study))}</p>"]
    body.append(f"<p>{html.escape(LEGEND)}</p>")
    for title, table, figures in parts:
        if table:
            body.append(f"<h2>{html.escape(title)}</h2>\n<pre>{html.escape(table)}</pre>")
            body += [_image(path) for path in figures]
    head = f'<meta charset="utf-8"><title>{html.escape(str(study))}</title><style>{STYLE}</style>'
    return (
        f"<!doctype html>\n<html><head>{head}</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="folder of a study, for example runs/tiny")
    study = parser.parse_args().study
    path = study / "report" / "index.html"
    write_text(path, render(study))
    print(f"report: {path}")


if __name__ == "__main__":
    run(main)
