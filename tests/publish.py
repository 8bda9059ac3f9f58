"""What `python tests/study.py --publish` does: the rows of docs/results/ become tables, in place of
those between "<!-- study: ... -->" and "<!-- end -->" in the pages, and differences.csv; pictures
go to assets/.
"""

import re
import shutil
from functools import cache
from pathlib import Path

import bench_sentences
import numpy as np
import pandas as pd
import scipy.stats
from conftest import ROOT
from study import ALL, RESULTS, STUDIES, Task

import compare
from kit.files import save_file, save_table

PAGES = [f"docs/{x}{page}.md" for x in ("", "zh-CN/") for page in ("5-results", "records")]
PAGES += ["README.md", "README.zh-CN.md", "docs/1-diffusion.md", "docs/3-gan-and-vae.md"]
METRICS = {  # what sentences call them -> the column of by_seed(); the first eight have a table
    "FID": "fid", "pixels": "fd_pixels", "style": "fd_style", "diversity": "of_real",
    "right": "accuracy", "held-out phrasings": "held_out_accuracy", "one word": "one word",
    "held-out pair": "held-out pair", "said pairs": "said pair", "coverage": "coverage",
    "words unasked": "one word, without asking",
}  # fmt: skip


@cache
def read(name: str, study: str) -> pd.DataFrame:
    table = pd.read_csv(RESULTS / f"{name}.csv")
    return table[table["study"] == study]


@cache
def by_seed(study: str, script: str, scale: float) -> pd.DataFrame:
    """A row for each seed, a column for each metric: of trials.csv, or study.csv and asked.csv."""
    scale, what = float(scale), "model == @script and scale == @scale"
    trials = read("trials", study).query("script == @script and scale == @scale")
    if len(trials):
        return trials.set_index("seed").rename(columns=lambda name: name.removeprefix("asked: "))
    rows = read("study", study).query(what).set_index("seed")
    table = rows[rows["kind"] != "held-out"].copy()
    table["held_out_accuracy"] = rows.loc[rows["kind"] == "held-out", "accuracy"]
    asked = read("asked", study).query(what)
    one = asked[asked["kind"] == "one word"].assign(kind=asked["asked"])
    words = pd.concat([asked, one]).pivot_table(["as_asked", "without_asking"], "seed", "kind")
    for column, suffix in (("as_asked", ""), ("without_asking", ", without asking")):
        if column in words:
            table = table.join(words[column].add_suffix(suffix))
    return table


def differences() -> pd.DataFrame:
    """Of each claim in PAGES, what - against what: means over paired seeds, 95 % t-intervals."""
    rows, pages = [], "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    for claim in {claim for claims, _ in COMPARED.findall(pages) for claim in claims.split(", ")}:
        one, other = (by_seed(*side.split()) for side in claim.split(" - "))
        for metric in {*METRICS.values()} & {*one} & {*other}:
            pairs = (one[metric] - other[metric]).dropna()
            mean, error = pairs.mean(), pairs.sem()
            low, high = scipy.stats.t.interval(0.95, len(pairs) - 1, mean, error)
            row = {"claim": claim, "metric": metric, "n": len(pairs), "mean": mean}
            rows.append(row | {"low": low, "high": high})
    return pd.DataFrame(rows).dropna().sort_values(["claim", "metric"])


def brought(study: str) -> pd.DataFrame:
    """For the README: a row for each script, with guidance at scale 2."""
    rows = []
    for script in ALL:
        guided = 2 in {*read("study", study).query("model == @script")["scale"]}
        table, row = by_seed(study, script, 2 if guided else 1), {"script": f"`{script}.py`"}
        for title, column in [*METRICS.items()][:8]:
            values = table.get(column, pd.Series(dtype=float)).astype(float)
            form = {"FID": "{:.2f}", "pixels": "{:.2f}", "style": "{:.3f}"}.get(title, "{:.1%}")
            row[title] = compare.write(values, form)
        rows += [row] * (len(table) > 0)
    return pd.DataFrame(rows)


def records(goal: str) -> pd.DataFrame:
    """For docs/records.md: a row for each record of a goal, a or b, with medians over seeds."""
    rows = []
    for name in [name for name in STUDIES if name.startswith(f"record_{goal}")]:
        flags = STUDIES[name].flags.split()[2:]
        runs = by_seed(name, "a4_full", flags[1])
        seen, spent = runs["train_steps"] * runs["batch_size"], runs["train_seconds"]
        row = {"flags": f"`{' '.join(flags)}`", "images": f"{seen.max():,.0f}"}
        row["seconds"] = f"{spent.median():.0f} ({spent.min():.0f}–{spent.max():.0f})"
        row["right"] = f"{runs['accuracy'].median():.2%}"
        rows.append(row | {"pixels": f"{runs['fd_pixels'].median():.2f}"})
    return pd.DataFrame(rows)


BLOCK = r"\s*(.*?)(?=\n\n|\n- |\n\d+\. |\n<!--|\Z)"
SAID = re.compile(r"<!-- from the study: ([\w ]+) -->" + BLOCK, re.S)
COMPARED = re.compile(r"<!-- differences: (.+?) -->" + BLOCK, re.S)
NUMBER = re.compile(r"(?<![\w.,])[-−]?(\d+(?:,\d{3})*(?:\.\d+)?)( ?%)?(?![\w.,]*\d)")
NUM = r"(−?\d+(?:\.\d+)?)"
SIGNED = rf"([+−]\d+(?:\.\d+)?)( points| 个百分点)? ?[(（]{NUM}(?: to | 到 ){NUM}[)）]"


@cache
def told(names: str, share: bool) -> np.ndarray:
    """Means and deviations, for the studies and scripts among names, of shares or of distances."""
    names, found, distances = {*names.split()}, [], {"fid", "fd_pixels", "fd_style"}
    for study in names & {*STUDIES}:
        rows = read("study", study).query("model in @names")
        for model, scale in {*zip(rows["model"], rows["scale"])}:
            table = by_seed(study, model, scale)
            words = {*table} - {*rows}  # and the right ones among held-out phrasings
            columns = ({*METRICS.values()} & {*table} | words) - distances if share else distances
            numbers = table[[*columns]].apply(pd.to_numeric)
            found += [numbers.mean(), numbers.std()]
    return pd.concat(found).to_numpy()


def unfounded(text: str) -> list[str]:
    """The numbers with a point or a % in sentences after "<!-- from the study: ... -->" that are
    no rounding of one of the scripts and studies that are named there.
    """
    wrong = []
    for names, sentences in SAID.findall(text):
        for digits, unit in NUMBER.findall(re.sub(r"`[^`]*`|\]\([^)]*\)", "", sentences)):
            half = 0.5 * 10 ** -len(digits.partition(".")[2]) + 1e-9
            known = told(names, bool(unit)) * (100 if unit else 1)
            near = (abs(known - float(digits.replace(",", ""))) <= half).any()
            if (unit or "." in digits) and not near:
                wrong.append(f"{digits}{unit} in: {sentences[:60]}")
    return wrong


def unproven(text: str) -> list[str]:
    """The differences, as in FID +0.37 (0.31 to 0.43), in sentences after "<!-- differences: ...
    -->" that are no rounding of one of these claims, or whose interval holds 0 while the sentence
    does not say "no difference". In Chinese the metric has another name, and is not compared.
    """
    wrong, table = [], pd.read_csv(RESULTS / "differences.csv")
    for claims, block in COMPARED.findall(text):
        for sentence in re.split(r"(?<=[.:])\s|(?<=[。；])", " ".join(block.split())):
            found = re.findall(rf"(?:({'|'.join(METRICS)}) )?{SIGNED}", sentence)
            intervals = re.findall("[(（][^()（）]* (?:to|到) ", sentence)
            wrong += [sentence] * (len(found) != len(intervals))
            same = re.search("no difference|没有差别", sentence)
            for name, mean, unit, *interval in found:
                rows = table[table["claim"].isin(claims.split(", "))]
                if "（" not in sentence:
                    rows = rows[rows["metric"] == METRICS.get(name)]
                rows = rows[["mean", "low", "high"]] * (100 if unit else 1)
                said = [float(x.replace("−", "-")) for x in (mean, *interval)]
                half = 0.5 * 10 ** -len(mean.partition(".")[2]) + 1e-9
                known = ((rows - said).abs() <= half).all(axis=1).any()
                nothing = said[1] <= 0 <= said[2] and not same
                wrong += [f"{name} {mean}"] * bool(nothing or not known)
    return wrong


MARKED = re.compile(r"(<!-- study: (brought|records) (\w+) -->\n)(.*?)(<!-- end -->)", re.S)


def filled(text: str) -> str:
    """A page with all its marked tables made anew, under the titles that they have there."""

    def fill(match) -> str:
        mark, make, of, old, end = match.groups()
        table = {"brought": brought, "records": records}[make](of)
        table.columns = [title.strip() for title in old.split("\n")[1].strip("|").split("|")]
        return f"{mark}\n{table.to_markdown(index=False, disable_numparse=True)}\n\n{end}"

    return MARKED.sub(fill, text)


def main() -> None:
    for page in PAGES:
        text = filled((ROOT / page).read_text(encoding="utf-8"))
        save_file(ROOT / page, lambda file, text=text: file.write(text.encode()))
    save_table(RESULTS / "differences.csv", differences(), "%.4g")
    here = Task("mnist", "a4_full", 3).folder.parent
    if here.exists():  # else the pictures stay
        pictures(here)


def pictures(here: Path) -> None:
    """From the study's runs, of one seed or all, into assets/; sentences.csv, too."""
    for out in (here.parent, here.parent.parent):  # of one seed, of all
        compare.main(["--clip", "tiny", *Task("mnist", "cvae", 3).data, "--out", str(out)])
    for name, source in {
        "ladder": here / "compare/grid.png",
        "guidance": here.parent.parent / "mnist/cfg_scale/plots/scale.png",
        "asked": here / "compare/asked_a4_full.png",
        "prompts": here / "a4_full/images/prompts.png",
        "denoising": here / "a4_full/images/denoising.png",
        "reconstructions": here / "cvae/images/reconstructions.png",
        "quickdraw": Task("quickdraw", "a4_full", 0).folder / "images/prompts.png",
    }.items():
        shutil.copy(source, ROOT / "assets" / f"{name}.png")
    bench_sentences.main()
