"""Tables: out of CSV files, into Markdown."""

import re
from pathlib import Path

import numpy as np

import common


def read_table(path: Path, remedy: str) -> list[dict]:
    """Rows of a CSV, numbers as float; UserError if it is cut short."""
    rows = common.read_csv(path)
    if not rows or not path.read_text().endswith("\n") or any(None in (*row, *row.values()) for row in rows):
        raise common.UserError(f"{path} is missing or cut short; {remedy}")
    return [{k: float(v) if re.fullmatch(r"[-+.\de]*\d|nan", v) else v for k, v in row.items()} for row in rows]


def write(values: list[float] | None, form: str = "{:.3g}") -> str:
    """Mean, and with several seeds the standard deviation."""
    if not values or np.isnan(values).any():
        return "–"
    form = form if abs(np.mean(values)) < 1000 else "{:,.0f}"
    spread = f" ± {form.replace('3g', '2g').format(np.std(values, ddof=1))}" if len(values) > 1 else ""
    return form.format(np.mean(values)) + spread


def table(rows: list[dict]) -> str:
    """Markdown whose columns line up in a terminal too."""
    cells = [list(rows[0]), *([f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows)]
    cells = [["–" if cell in ("nan", "") else cell for cell in line] for line in cells]
    width = [max(map(len, column)) for column in zip(*cells)]
    cells.insert(1, ["-" * w for w in width])
    return "\n".join("| " + " | ".join(map(str.ljust, line, width)) + " |" for line in cells)
