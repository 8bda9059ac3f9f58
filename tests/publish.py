"""What `python tests/study.py --publish` does: the rows of docs/results/ become tables, in place of
those between "<!-- study: ... -->" and "<!-- end -->" in the pages; pictures go to assets/.
"""

import re
import shutil
from functools import partial

import numpy as np
import pandas as pd
from conftest import ROOT
from study import PLACE, RESULTS, SEVEN, Task

import compare
from kit.files import save_file, say

PAGES = ["README.md", "README.zh-CN.md", *(f"docs/{x}results.md" for x in ("", "zh-CN/"))]
TWIN = ", throughout"  # in the names of models with guidance at every step
# title -> column of study.csv, how it is written
QUALITY = {"FID": ("fid", "{:.2f}"), "KID x 1000": ("kid_x1000", "{:.1f}")}
QUALITY |= {"density": ("density", "{:.2f}"), "coverage": ("coverage", "{:.1%}")}
LAST = {"diversity (of real)": ("of_real", "{:.1%}")}
LAST |= {"train on samples": ("train_on_samples", "{:.1%}")}
QUALITY |= LAST | {"copied": ("copied", "{:.1%}")}
HELD_OUT = "right, held-out phrasings"
NO_FID = LAST | dict.fromkeys(("right", HELD_OUT), ("accuracy", "{:.1%}"))
FEW = {name: QUALITY[name] for name in ("FID", "coverage")} | NO_FID
RIGHT = {name: NO_FID[name] for name in ("right", HELD_OUT)}
RIGHT |= {"CLIP similarity": ("clip_similarity", "{:.3f}")}
RIGHT |= {"wrong prompts": ("with_wrong_prompts", "{:.3f}")}
CHANGED = {"eps": "a0_uncond"} | dict.fromkeys(("eta0", "steps6", "steps50"), "a4_full")
CHINESE = """script=脚本|scale=引导强度|seeds=种子数|density=密度|coverage=覆盖率|copied=复制率|
diversity (of real)=多样性（相对真实图像）|train on samples=样本训练准确率|right=准确率|
right, held-out phrasings=未见过的句式|CLIP similarity=CLIP 相似度|wrong prompts=错误提示词|
thin=thin（细）|thick=thick（粗）|leaning left=leaning left（左倾）|
leaning right=leaning right（右倾）|one word=一个属性词|said pair=训练用过的组合|
held-out pair=未见过的组合|without asking=不提要求时|digit=数字正确|change=改动|
real images=真实图像|noise=噪声|throughout=全程引导"""
CHINESE = dict(pair.split("=") for pair in CHINESE.replace("\n", "").split("|"))


# ── Tables ──


def read(name: str, study: str) -> pd.DataFrame:
    table = pd.read_csv(RESULTS / f"{name}.csv")
    return table[table["study"] == study]


def over_seeds(rows: pd.DataFrame, column: str, form: str) -> str:
    """Mean and standard deviation over seeds, as text."""
    return compare.write(rows.groupby("seed")[column].mean().astype(float), form)


def of_model(name: str, scale: float, guided: bool, seeds) -> dict[str, str]:
    """The first cells of a row; a4_full, throughout is written `a4_full.py`, throughout."""
    script, _, rest = name.partition(", ")
    title = f"`{script}.py`" + (f", {rest}" if rest else "") if script in SEVEN else name
    return {"script": title, "scale": f"{scale:g}" if guided else "–", "seeds": f"{seeds}"}


def ladder(rows: pd.DataFrame):
    """-> model, scale, rows, whether guided, in the order of the ladder."""
    order = [name for script in SEVEN for name in (script, script + TWIN)]
    order += ["real images", "noise"]
    place = rows["model"].map({name: i for i, name in enumerate(order)})
    rows = rows.assign(place=place).dropna(subset="place").sort_values("place", kind="stable")
    for (model, scale), table in rows.groupby(["model", "scale"], sort=False, dropna=False):
        guided = TWIN in model or rows.loc[rows["model"] == model, "scale"].nunique() > 1
        yield model, scale, table, guided


def measured(study: str, columns: dict) -> pd.DataFrame:
    """A row for each model and scale, real images and noise last."""
    rows, cells = read("study", study), []
    if study == "mnist":  # rows published until November 2026 have the twins here already
        twins = read("study", "throughout").query("scale > 1")
        rows = pd.concat([rows, twins.assign(model=twins["model"] + TWIN)])
    for model, scale, table, guided in ladder(rows):
        ours = model.split(",")[0] in SEVEN
        if not ours:  # measured beside each run: all alike
            table = table[table["n"] == table["n"].max()].head(1)
        held_out = table["phrasings"] == "held out"
        if held_out.all():
            continue
        row = of_model(model, scale, guided, table["seed"].nunique() if ours else "–")
        for title, (column, form) in columns.items():
            row[title] = over_seeds(table[held_out == (title == HELD_OUT)], column, form)
        cells.append(row)
    return pd.DataFrame(cells)


def words(study: str) -> pd.DataFrame:
    """The share of images that are as words ask, a row for each model and scale."""
    rows, cells = read("asked", study), []
    names = rows.loc[rows["kind"] == "one word", "asked"].unique()
    for model, scale, table, guided in ladder(rows.sort_values("scale", kind="stable")):
        row = of_model(model, scale, guided, table["seed"].nunique())
        for word in names:
            row[word] = over_seeds(table[table["asked"] == word], "as_asked", "{:.1%}")
        kinds = {x: table[table["kind"] == x] for x in ("one word", "said pair", "held-out pair")}
        for kind, of_kind in kinds.items():
            row[kind] = over_seeds(of_kind, "as_asked", "{:.1%}")
            if kind != "said pair":
                row[f"{kind}, without asking"] = over_seeds(of_kind, "without_asking", "{:.1%}")
        row["digit, held-out pair"] = over_seeds(kinds["held-out pair"], "accuracy", "{:.1%}")
        cells.append(row)
    return pd.DataFrame(cells)


def changes(study: str) -> pd.DataFrame:
    """Each variant beside what it changes: at scale 1, the seeds that both have."""
    cells, columns = [], ("FID", "coverage", "diversity (of real)", "right")
    for name, script in CHANGED.items():
        variant, plain = read("study", name), read("study", study)
        plain = plain[(plain["script"] == script) & plain["seed"].isin(variant["seed"])]
        for what, rows in ((script, plain), (f"{script}, {name}", variant)):
            rows = rows[(rows["scale"] == 1) & (rows["phrasings"] != "held out")]
            row = {"change": what, "seeds": f"{rows['seed'].nunique()}"}
            for title in columns:
                row[title] = over_seeds(rows, *FEW[title])
            cells += [row] * (row not in cells)
    return pd.DataFrame(cells)


def brought(study: str) -> pd.DataFrame:
    """For the README: a row for each script, with guidance at scale 2."""
    cells, rows, asked = [], read("study", study), read("asked", study)
    for script in SEVEN:
        of_script = rows[rows["model"] == script]
        held_out = of_script["phrasings"] == "held out"
        scale = of_script["scale"].clip(upper=2).max()
        plain = of_script[(of_script["scale"] == scale) & ~held_out]
        of_words = asked[(asked["model"] == script) & (asked["scale"] == scale)]
        row = {"script": f"`{script}.py`", "FID": over_seeds(plain, "fid", "{:.2f}")}
        row["right"] = over_seeds(plain, "accuracy", "{:.1%}")
        row[HELD_OUT] = over_seeds(of_script[held_out], "accuracy", "{:.1%}")
        for kind in ("one word", "held-out pair"):
            row[kind] = over_seeds(of_words[of_words["kind"] == kind], "as_asked", "{:.1%}")
        row["diversity (of real)"] = over_seeds(plain, "of_real", "{:.0%}")
        cells.append(row)
    return pd.DataFrame(cells)


TABLES = {"quality": QUALITY, "obedience": RIGHT, "few": FEW, "no FID": NO_FID}
TABLES = {name: partial(measured, columns=columns) for name, columns in TABLES.items()}
TABLES |= {"words": words, "changes": changes, "brought": brought}


# ── Sentences ──

SAID = re.compile(
    r"<!-- from the study: ([\w ]+) -->\s*(.*?)(?=\n\n|\n- |\n\d+\. |\n<!--|\Z)", re.S
)
SHARES = "coverage of_real train_on_samples accuracy as_asked without_asking".split()
OTHERS = "fid kid_x1000 density clip_similarity with_wrong_prompts".split()
NUMBER = re.compile(r"(?<![\w.,])[-−]?(\d+(?:,\d{3})*(?:\.\d+)?)( ?%)?(?![\w.,]*\d)")


def values(names: list[str], columns: list[str]) -> np.ndarray:
    """Means and deviations over seeds of these columns, of these scripts in these studies."""
    found = []
    for table, groups in {
        "study": [["model", "phrasings", "scale"]],
        "asked": [["model", "scale", "kind"], ["model", "scale", "asked"]],
    }.items():
        rows = pd.read_csv(RESULTS / f"{table}.csv")
        who = rows["model"].str.split(", ").str[0].str.replace("real images", "real")
        most = rows.groupby(["study", "model"])["n"].transform("max")
        shown = (who != "real") | (rows["n"] == most)  # real images are measured in several numbers
        rows = rows[rows["study"].isin(names) & who.isin(names) & shown]
        there = [column for column in columns if column in rows]
        for group in groups:
            seeds = rows.groupby([*group, "study", "seed"], dropna=False)[there].mean()
            over = seeds.groupby([*group, "study"], dropna=False)
            found += [over.mean().to_numpy().flatten(), over.std().to_numpy().flatten()]
    found = np.concatenate(found)
    return np.abs(found[np.isfinite(found)])


def unfounded(text: str) -> list[str]:
    """The numbers with a point or a % in sentences after "<!-- from the study: ... -->" that are
    no rounding of what was measured of the scripts and studies that are named there.
    """
    wrong = []
    for names, sentences in SAID.findall(text):
        shares, others = values(names.split(), SHARES), values(names.split(), OTHERS)
        for number in NUMBER.finditer(re.sub(r"`[^`]*`|\]\([^)]*\)", "", sentences)):
            digits, percent = number[1].replace(",", ""), bool(number[2])
            if percent or "." in digits:
                half = 0.5 * 10 ** -len(digits.partition(".")[2]) + 1e-9
                known = 100 * shares if percent else others
                if not (np.abs(known - float(digits)) <= half).any():
                    wrong.append(f"{number[0]} in: {sentences[:60]}")
    return wrong


# ── Pages ──

MARKED = re.compile(r"(<!-- study: ([\w ]+?) (\w+) -->\n)(.*?)(<!-- end -->)", re.S)


def filled(text: str, chinese: bool) -> str:
    """A page with all its marked tables made anew."""

    def fill(match) -> str:
        table = TABLES[match[2]](match[3])
        if chinese:
            table = table.rename(columns=translated).map(translated)
        return f"{match[1]}\n{table.to_markdown(index=False, disable_numparse=True)}\n\n{match[5]}"

    return MARKED.sub(fill, text)


def translated(text: str) -> str:
    if text in CHINESE:
        return CHINESE[text]
    head, _, tail = text.partition(", ")
    return f"{CHINESE.get(head, head)}，{CHINESE.get(tail, tail)}" if tail else text


def main() -> None:
    for page in PAGES:
        text = filled((ROOT / page).read_text(encoding="utf-8"), "zh-CN" in page)
        save_file(ROOT / page, lambda file, text=text: file.write(text.encode()))
        say(f"{page}: its tables are those of docs/results/")
    pictures()


def pictures() -> None:
    """Copy those of the study's runs, if they are on disk, into assets/."""
    a4, cvae, drawings = Task("mnist", "a4_full", 0), Task("mnist", "cvae", 0)
    drawings = Task("quickdraw", "a4_full", 0)
    if not a4.folder.exists():
        say("the pictures of assets/ stay: no runs in results/study")
        return
    compare.main(["--clip", "tiny", *a4.data, "--out", str(PLACE / "mnist")])
    here = PLACE / "mnist" / "mnist"
    for name, source in {
        "ladder": here / "compare/grid.png",
        "guidance": here / "cfg_scale/plots/scale.png",
        "asked": here / "compare/asked_a4_full.png",
        "prompts": a4.folder / "images/prompts.png",
        "denoising": a4.folder / "images/denoising.png",
        "reconstructions": cvae.folder / "images/reconstructions.png",
        "quickdraw": drawings.folder / "images/prompts.png",
    }.items():
        shutil.copy(source, ROOT / "assets" / f"{name}.png")
