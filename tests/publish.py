"""What `python tests/study.py --publish` does: the rows of docs/results/ become tables, in place of
those between "<!-- study: ... -->" and "<!-- end -->" in the pages; pictures go to assets/.
"""

import itertools
import re
import shutil
from functools import cache, partial

import pandas as pd
from conftest import ROOT
from study import ALL, PLACE, RESULTS, STUDIES, Task

import compare
from kit.files import save_file, say

PAGES = ["README.md", "README.zh-CN.md", *(f"docs/{x}5-results.md" for x in ("", "zh-CN/"))]
TWIN = ", throughout"  # in the names of models with guidance at every step
HELD_OUT, SHARE = "right, held-out phrasings", "{:.1%}"
COLUMNS = {  # title -> column of study.csv, how it is written
    "FID": ("fid", "{:.2f}"), "coverage": ("coverage", SHARE), "right": ("accuracy", SHARE),
    "diversity (of real)": ("of_real", SHARE), "diversity": ("of_real", "{:.0%}"),
    HELD_OUT: ("accuracy", SHARE),
}  # fmt: skip
CHANGED = {"eps": "a0_uncond"} | dict.fromkeys(("no_ema", "eta0", "steps6", "steps50"), "a4_full")
CHINESE = """script=脚本|right=准确率|right, held-out phrasings=未见过的句式|one word=一个属性词|
held-out pair=未见过的组合|diversity (of real)=多样性（相对真实图像）"""
CHINESE = dict(pair.split("=") for pair in CHINESE.replace("\n", "").split("|"))


@cache
def read(name: str, study: str) -> pd.DataFrame:
    table = pd.read_csv(RESULTS / f"{name}.csv")
    return table[table["study"] == study]


def over_seeds(rows: pd.DataFrame, column: str, form: str = SHARE) -> str:
    """Mean and standard deviation over seeds, as text."""
    return compare.write(rows.groupby("seed")[column].mean().astype(float), form)


def of_model(name: str, scale: float, guided: bool, seeds) -> dict[str, str]:
    """The first cells of a row; a4_full, throughout is written `a4_full.py`, throughout."""
    script, _, rest = name.partition(", ")
    title = f"`{script}.py`" + (f", {rest}" if rest else "") if script in ALL else name
    return {"script": title, "scale": f"{scale:g}" if guided else "–", "seeds": f"{seeds}"}


def ladder(rows: pd.DataFrame):
    """-> model, scale, rows, whether guided, in the order of the ladder."""
    order = [name for script in ALL for name in (script, script + TWIN)]
    order += ["real images", "noise"]
    place = rows["model"].map({name: i for i, name in enumerate(order)})
    rows = rows.assign(place=place).dropna(subset="place").sort_values("place", kind="stable")
    for (model, scale), table in rows.groupby(["model", "scale"], sort=False, dropna=False):
        guided = TWIN in model or rows.loc[rows["model"] == model, "scale"].nunique() > 1
        yield model, scale, table, guided


def measured(study: str, titles: list[str]) -> pd.DataFrame:
    """A row for each model and scale, real images and noise last."""
    rows, cells = read("study", study), []
    if study == "early":  # rows published until November 2026 have the twins here already
        twins = read("study", "throughout").query("scale > 1")
        rows = pd.concat([rows, twins.assign(model=twins["model"] + TWIN)])
    for model, scale, table, guided in ladder(rows):
        ours = model.split(",")[0] in ALL
        if not ours:  # measured beside each run: all alike
            table = table[table["n"] == table["n"].max()].head(1)
        held_out = table["phrasings"] == "held out"
        if held_out.all():
            continue
        row = of_model(model, scale, guided, table["seed"].nunique() if ours else "–")
        for title in titles:
            row[title] = over_seeds(table[held_out == (title == HELD_OUT)], *COLUMNS[title])
        cells.append(row)
    return pd.DataFrame(cells)


def words(study: str) -> pd.DataFrame:
    """The share of images that are as words ask, a row for each model and scale."""
    rows, cells = read("asked", study), []
    names = rows.loc[rows["kind"] == "one word", "asked"].unique()
    for model, scale, table, guided in ladder(rows.sort_values("scale", kind="stable")):
        row = of_model(model, scale, guided, table["seed"].nunique())
        for word in names:
            row[word] = over_seeds(table[table["asked"] == word], "as_asked")
        for kind in ("one word", "said pair", "held-out pair"):
            of_kind = table[table["kind"] == kind]
            row[kind] = over_seeds(of_kind, "as_asked")
            row[f"{kind}, without asking"] = over_seeds(of_kind, "without_asking")
        cells.append(row)
    return pd.DataFrame(cells)


def changes(study: str) -> pd.DataFrame:
    """Each variant beside what it changes: at scale 1, the seeds that both have."""
    cells = []
    for name, script in CHANGED.items():
        variant, plain = read("study", name), read("study", study)
        plain = plain[(plain["script"] == script) & plain["seed"].isin(variant["seed"])]
        for what, rows in ((script, plain), (f"{script}, {name}", variant)):
            rows = rows[(rows["scale"] == 1) & (rows["phrasings"] != "held out")]
            row = {"change": what, "seeds": f"{rows['seed'].nunique()}"}
            for title in ("FID", "coverage", "diversity (of real)", "right"):
                row[title] = over_seeds(rows, *COLUMNS[title])
            cells += [row] * (row not in cells)
    return pd.DataFrame(cells)


def brought(study: str) -> pd.DataFrame:
    """For the README: a row for each script, with guidance at scale 2."""
    table = measured(study, ["FID", "right", HELD_OUT, "diversity"])
    table = table.merge(words(study), "left", ["script", "scale"]).fillna("–")
    table = table.rename(columns={"diversity": "diversity (of real)"})
    shown = table["scale"].isin(["–", "2"]) & table["script"].str.endswith("`")
    titles = ["FID", "right", HELD_OUT, "one word", "held-out pair", "diversity (of real)"]
    return table.loc[shown, ["script", *titles]]


SAID = re.compile(
    r"<!-- from the study: ([\w ]+) -->\s*(.*?)(?=\n\n|\n- |\n\d+\. |\n<!--|\Z)", re.S
)
NUMBER = re.compile(r"(?<![\w.,])[-−]?(\d+(?:,\d{3})*(?:\.\d+)?)( ?%)?(?![\w.,]*\d)")


@cache
def told(names: str) -> list[tuple[str, str]]:
    """The numbers in the tables of the studies among names, in the rows of the scripts there."""
    tables, cells = (partial(measured, titles=[*COLUMNS]), words, changes), []
    for make, study in itertools.product(tables, {*names.split()} & {*STUDIES}):
        for script, *row in make(study).to_numpy().tolist():
            cells += row if re.search(r"\w+", script)[0] in names.split() else []
    return NUMBER.findall(" ".join(cells))


def unfounded(text: str) -> list[str]:
    """The numbers with a point or a % in sentences after "<!-- from the study: ... -->" that are
    no rounding of one in the tables of the scripts and studies that are named there.
    """
    wrong = []
    for names, sentences in SAID.findall(text):
        for digits, unit in NUMBER.findall(re.sub(r"`[^`]*`|\]\([^)]*\)", "", sentences)):
            half = 0.5 * 10 ** -len(digits.partition(".")[2]) + 1e-9
            known = [float(x.replace(",", "")) for x, other in told(names) if unit[-1:] == other]
            near = any(abs(x - float(digits.replace(",", ""))) <= half for x in known)
            if (unit or "." in digits) and not near:
                wrong.append(f"{digits}{unit} in: {sentences[:60]}")
    return wrong


MARKED = re.compile(r"(<!-- study: brought (\w+) -->\n)(.*?)(<!-- end -->)", re.S)


def filled(text: str, chinese: bool) -> str:
    """A page with all its marked tables made anew."""

    def fill(match) -> str:
        table = brought(match[2])
        if chinese:
            table = table.rename(columns=CHINESE)
        return f"{match[1]}\n{table.to_markdown(index=False, disable_numparse=True)}\n\n{match[4]}"

    return MARKED.sub(fill, text)


def main() -> None:
    for page in PAGES:
        text = filled((ROOT / page).read_text(encoding="utf-8"), "zh-CN" in page)
        save_file(ROOT / page, lambda file, text=text: file.write(text.encode()))
    pictures()


def pictures() -> None:
    """Copy those of the study's runs, if they are on disk, into assets/."""
    a4, cvae = (Task("mnist", script, 0).folder / "images" for script in ("a4_full", "cvae"))
    if not a4.exists():
        say("the pictures of assets/ stay: no runs in results/study")
        return
    compare.main(["--clip", "tiny", *Task("mnist", "cvae", 0).data, "--out", str(PLACE / "mnist")])
    here = PLACE / "mnist" / "mnist"
    for name, source in {
        "ladder": here / "compare/grid.png",
        "guidance": here / "cfg_scale/plots/scale.png",
        "asked": here / "compare/asked_a4_full.png",
        "prompts": a4 / "prompts.png",
        "denoising": a4 / "denoising.png",
        "reconstructions": cvae / "reconstructions.png",
        "quickdraw": Task("quickdraw", "a4_full", 0).folder / "images/prompts.png",
    }.items():
        shutil.copy(source, ROOT / "assets" / f"{name}.png")
