"""The numbers of READMEs and docs are those of docs/results.

A comment above a table names its files, and if need be a label that its rows have in common, or
the columns they are from: <!-- results/sentences.csv: thin, thick -->. Each number of the table
must be the rounding of a number in those rows of the file whose text columns have the labels of
the comment, of the header and of the table's row.
"""

import ast
import csv
import functools
import re
import statistics
from collections import defaultdict

import publish
import pytest
from conftest import ROOT
from test_readme import ENGLISH, TEXTS

MARK = re.compile(r"<!-- (results/[\w.]+\.csv(?:, results/[\w.]+\.csv)*)(?:: (.+))? -->")
# A number with its unit; none inside a name (a4, ViT-B/32, 2-D).
DIGITS = r"[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e-?\d+)?"
NUMBER = re.compile(rf"(?<![\w./-])({DIGITS})(?![\w-]*[A-Za-z]) ?(%|min\b|h\b|GB\b)?", re.ASCII)
# What a number of the file may be multiplied by to be printed with this unit.
FACTORS = {"%": (100,), "GB": (1, 1e-3), "": (1, 100), "min": (1, 1 / 60), "h": (1, 1 / 3600)}
ABOUT = "hardware date command samples_crc32 judge_crc32 git_revision".split()  # no results
SETTINGS = ["scale", "n", "sample_steps", "train_steps", "batch_size", "images a step", "steps"]


def blocks(text):
    """-> (the match of the comment or None, header and rows of cells) of every table."""
    tables, mark, before = [], None, ""
    for line in text.splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                tables.append((mark, []))
            tables[-1][1].append([cell.strip() for cell in line.strip().strip("|").split("|")])
        mark, before = MARK.fullmatch(line) if line else mark, line
    return [(mark, [rows[0], *rows[2:]]) for mark, rows in tables]


def numbers(cell):
    """-> (text, unit) of each number outside code, links, and sizes such as 14 x 14."""
    return NUMBER.findall(re.sub(r"`[^`]*`|\[[^]]*\]\([^)]*\)|\b(\d+) x \1\b", "", cell))


def value(text):
    text = text.replace(",", "").replace("−", "-")
    return float(text) if re.fullmatch(r"-?[\d.]+(e-?\d+)?", text) else None


def rounds_to(number, digits, unit):
    wanted, half = value(digits), 0.5 * 10 ** -len(digits.partition(".")[2])
    share = 0 < abs(number) < 1 and digits.isdigit()  # never printed as 0 or 1
    factors = [k for k in FACTORS[unit] if k > 1 or not share]
    return any(abs(number * k - wanted) <= half + 1e-9 for k in factors)


@functools.cache
def read(name):
    return list(csv.DictReader((ROOT / "docs" / name).read_text(encoding="utf-8").splitlines()))


def text_columns(rows):
    texts = {x for row in rows for x in row if row[x] and value(row[x]) is None}
    return [column for column in rows[0] if column in texts - {*ABOUT}]


def fitting(rows, labels, header, cells, j):
    """The rows of a file with most of the labels that go with the cell at j; labels: the comment's.

    Of a column that the header or the comment names, without the other columns.
    """
    columns, there = text_columns(rows), {*rows[0]}
    texts = [", ".join(labels), header[j], *cells[:j], *cells[j + 1 :]]
    texts = [re.sub(r"[`*]|\.py\b", "", text) for text in texts]
    for title, cell in zip(header, cells):
        texts += [f"{title} {value(digits)}" for digits, _ in numbers(cell)]
    parts, scores = {x for text in texts for x in re.split(r", | \(|\)", text)}, []
    for row in rows:
        own = [row[column] for column in columns if row[column]]
        own += [f"{x} {value(row[x])}" for x in SETTINGS if row.get(x)]
        scores.append(sum((x in texts) + (x in parts) for x in own))
    keep = {header[j], f"{header[j]}_sd", "seed", *SETTINGS} if header[j] in there else there
    keep = {*columns, *({*labels} & there or keep)}
    best = [row for row, score in zip(rows, scores) if score == max(scores)]
    return [{c: text for c, text in row.items() if c in keep} for row in best]


def filed(rows):
    """Every number of the rows, also those inside texts; how many seeds, means, deviations."""
    found, seeds = [], defaultdict(list)
    for row in rows:
        if "seed" in row:
            seeds[tuple(row.get(x) for x in text_columns(rows) + SETTINGS)].append(row)
        for text in [row[column] for column in row if column not in ABOUT and row[column]]:
            inside = [value(digits) for digits in re.findall(DIGITS, text)]
            inside += [part / 100 for part in inside if "%" in text]
            found += inside if value(text) is None else [value(text)]
    for group in seeds.values():
        found.append(len({row["seed"] for row in group}))
        for column in rows[0]:
            numbers = [value(row[column]) for row in group]
            if None not in numbers and len(numbers) > 1:
                found += [statistics.mean(numbers), statistics.stdev(numbers)]
    return found


def faults(text):
    """-> the cells of the marked tables with a number that no fitting row of their files has."""
    bad = []
    for mark, (header, *table) in [block for block in blocks(text) if block[0]]:
        files = [read(name) for name in mark[1].split(", ")]
        labels = mark[2].split(", ") if mark[2] else []
        in_file = {*files[0][0]}.union(*(row.values() for row in files[0]))
        bad += [f"{mark[1]} has no {label}" for label in labels if label not in in_file]
        for cells in table:
            for j, cell in enumerate(cells):
                found = [filed(fitting(rows, labels, header, cells, j)) for rows in files]
                if not all(any(rounds_to(x, *n) for x in sum(found, [])) for n in numbers(cell)):
                    bad.append(f"{mark[1]}: {cells[0]}: {cell}")
    return bad


@pytest.mark.parametrize("name", ENGLISH)
def test_numbers_of_tables_are_those_of_the_files(name):
    assert not faults(TEXTS[name])


def test_there_are_at_most_twelve_findings_and_each_names_its_rows():
    for name in ("docs/5-results.md", "docs/zh-CN/5-results.md"):
        findings = re.findall(r"^\d+\. (<!-- differences: )?", TEXTS[name], re.M)
        assert 8 <= len(findings) <= 12 and all(findings)


@pytest.mark.parametrize("name", publish.PAGES)
def test_tables_and_sentences_about_the_study_have_its_numbers(name):
    assert publish.filled(TEXTS[name]) == TEXTS[name], "study.py --publish"
    assert publish.unfounded(TEXTS[name]) == publish.unproven(TEXTS[name]) == []


@pytest.mark.parametrize(("goal", "right", "pixels"), [("a", 98, 99), ("b", 99, 1.3)])
def test_each_record_reaches_its_goal(goal, right, pixels):
    rows = publish.records(goal)
    assert (rows["right"].str.rstrip("%").astype(float) >= right).all() and len(rows)
    assert (rows["pixels"].astype(float) <= pixels).all()


@pytest.mark.parametrize("script", publish.ALL)
def test_the_result_in_a_scripts_docstring_is_the_studys(script):
    text = ast.get_docstring(ast.parse((ROOT / f"{script}.py").read_text(encoding="utf-8")))
    result = " ".join(text[text.index("\nResult") :].split())
    assert "five seeds" in result and publish.NUMBER.search(result)
    assert publish.unfounded(f"<!-- from the study: mnist {script} -->\n{result}") == []


def test_a_difference_needs_its_row_its_sign_and_an_interval_without_zero():
    claims = "half a1_noisy 1 - half a1_cond 1, half a2_clip 1 - half a1_noisy 1"
    text = f"<!-- differences: {claims} -->\nMore held-out phrasings +36 points (28 to 43)."
    assert publish.unproven(text) == []
    for old, new in ("+36", "−36"), ("28 to", "27 to"), ("held-out phrasings", "right"), ("+", ""):
        assert publish.unproven(text.replace(old, new)), new
    less = text.replace("+36 points (28 to 43)", "−1 points (−6 to 4)")
    assert publish.unproven(less) and not publish.unproven(less.replace("More", "no difference"))
