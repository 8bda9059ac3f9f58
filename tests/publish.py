"""What `python tests/study.py --publish` does: the rows of docs/results/ become tables, in place of
those between "<!-- study: ... -->" and "<!-- end -->" in the pages; pictures go to assets/.
"""

import re
import shutil

import numpy as np
import pandas as pd
from conftest import ROOT
from study import PLACE, RESULTS, SEVEN, Task

import compare
from kit.base import save_text, say

PAGES = ["README.md", "README.zh-CN.md", *(f"docs/{x}results.md" for x in ("", "zh-CN/"))]
# title -> column of study.csv, phrasings, how it is written
QUALITY = {
    "FID": ("fid", "trained", "{:.2f}"),
    "KID x 1000": ("kid_x1000", "trained", "{:.1f}"),
    "density": ("density", "trained", "{:.2f}"),
    "coverage": ("coverage", "trained", "{:.1%}"),
    "diversity (of real)": ("of_real", "trained", "{:.1%}"),
    "train on samples": ("train_on_samples", "trained", "{:.1%}"),
    "copied": ("copied", "trained", "{:.1%}"),
}
RIGHT = {
    "right": ("accuracy", "trained", "{:.1%}"),
    "right, held-out phrasings": ("accuracy", "held out", "{:.1%}"),
    "CLIP similarity": ("clip_similarity", "trained", "{:.3f}"),
    "wrong prompts": ("with_wrong_prompts", "trained", "{:.3f}"),
}
FEW = ("FID", "coverage", "diversity (of real)", "train on samples"), tuple(RIGHT)[:2]
FEW = {name: (QUALITY | RIGHT)[name] for names in FEW for name in names}
NO_FID = {name: FEW[name] for name in (*FEW,)[2:]}
CHINESE = {
    "script": "脚本",
    "scale": "引导强度",
    "seeds": "种子数",
    "density": "密度",
    "coverage": "覆盖率",
    "diversity (of real)": "多样性（相对真实图像）",
    "train on samples": "样本训练准确率",
    "copied": "复制率",
    "right": "准确率",
    "right, held-out phrasings": "未见过的句式",
    "CLIP similarity": "CLIP 相似度",
    "wrong prompts": "错误提示词",
    "thin": "thin（细）",
    "thick": "thick（粗）",
    "leaning left": "leaning left（左倾）",
    "leaning right": "leaning right（右倾）",
    "one word": "一个属性词",
    "said pair": "训练用过的组合",
    "held-out pair": "未见过的组合",
    "without asking": "不提要求时",
    "digit": "数字正确",
    "change": "改动",
    "real images": "真实图像",
    "noise": "噪声",
    "throughout": "全程引导",
}


# ── Tables ──


def over_seeds(rows: pd.DataFrame, column: str, form: str) -> str:
    """Mean and standard deviation over seeds, as text."""
    values = rows[column].dropna().astype(float)
    if values.empty:
        return "–"
    return compare.write(values.mean(), values.std() if len(values) > 1 else np.nan, form)


def named(model: str) -> str:
    """a4_full, throughout -> `a4_full.py`, throughout"""
    script, _, rest = model.partition(", ")
    return f"`{script}.py`" + (f", {rest}" if rest else "") if script in SEVEN else model


def measured(study: str, columns: dict) -> pd.DataFrame:
    """A row for each model and scale, real images and noise last."""
    rows, cells = read("study", study), []
    order = [x for script in SEVEN for x in (script, script + compare.TWIN)]
    for model in [*order, "real images", "noise"]:
        of_model = rows[rows["model"] == model]
        if model not in order:  # measured anew beside each run: all alike
            of_model = of_model[of_model["n"] == of_model["n"].max()].drop_duplicates("model")
        for scale, table in of_model.groupby("scale", dropna=False, sort=False):
            plain = table[table["phrasings"] != "held out"]
            if plain.empty:
                continue
            guided = len({*of_model["scale"]}) > 1 or compare.TWIN in model
            seeds = f"{plain['seed'].nunique()}" if model in order else "–"
            row = {"script": named(model), "scale": f"{scale:g}" if guided else "–"}
            row["seeds"] = seeds
            for title, (column, phrasings, form) in columns.items():
                held_out = table[table["phrasings"] == "held out"]
                part = held_out if phrasings == "held out" else plain
                row[title] = over_seeds(part, column, form)
            cells.append(row)
    return pd.DataFrame(cells)


def words(study: str) -> pd.DataFrame:
    """The share of images that are as words ask, a row for each model and scale."""
    rows, cells = read("asked", study), []
    names = [*dict.fromkeys(rows.loc[rows["kind"] == "one word", "asked"])]
    for (model, scale), table in by_model(rows):
        guided = rows.loc[rows["model"] == model, "scale"].nunique() > 1
        row = {"script": named(model), "scale": f"{scale:g}" if guided else "–"}
        row["seeds"] = f"{table['seed'].nunique()}"
        for word in names:
            row[word] = mean_of(table[table["asked"] == word], "as_asked")
        for kind in ("one word", "said pair", "held-out pair"):
            of_kind = table[table["kind"] == kind]
            row[kind] = mean_of(of_kind, "as_asked")
            if kind != "said pair":
                row[f"{kind}, without asking"] = mean_of(of_kind, "without_asking")
        of_pair = table[table["kind"] == "held-out pair"]
        row["digit, held-out pair"] = mean_of(of_pair, "accuracy")
        cells.append(row)
    return pd.DataFrame(cells)


def by_model(rows: pd.DataFrame):
    """Groups (model, scale) in the order of the ladder."""
    place = rows["model"].map({script: i for i, script in enumerate(SEVEN)})
    rows = rows.assign(place=place).sort_values(["place", "scale"], kind="stable")
    return rows.groupby(["model", "scale"], sort=False)


def mean_of(rows: pd.DataFrame, column: str, form: str = "{:.1%}") -> str:
    return over_seeds(rows.groupby("seed")[column].mean().to_frame(), column, form)


def changes(study: str) -> pd.DataFrame:
    """Each variant beside what it changes: at scale 1, the seeds that both have."""
    cells = []
    variants = {
        "eps": "a0_uncond",
        **dict.fromkeys(("no_ema", "eta0", "steps6", "steps50"), "a4_full"),
    }
    for name, script in variants.items():
        variant, plain = read("study", name), read("study", study)
        plain = plain[(plain["script"] == script) & plain["seed"].isin(variant["seed"])]
        for what, rows in ((script, plain), (f"{script}, {name}", variant)):
            rows = rows[(rows["scale"] == 1) & (rows["phrasings"] != "held out")]
            row = {"change": what, "seeds": f"{rows['seed'].nunique()}"}
            columns = {x: QUALITY[x] for x in ("FID", "coverage", "diversity (of real)")}
            for title, (column, _, form) in (columns | {"right": RIGHT["right"]}).items():
                row[title] = over_seeds(rows, column, form)
            if row not in cells:
                cells.append(row)
    return pd.DataFrame(cells)


def brought(study: str) -> pd.DataFrame:
    """For the README: a line for each script, with guidance at scale 2."""
    cells, rows, asked = [], read("study", study), read("asked", study)
    for script in SEVEN:
        row = {"script": named(script)}
        of_script = rows[rows["model"] == script]
        scale = 2 if 2 in {*of_script["scale"]} else 1
        plain = of_script[(of_script["scale"] == scale) & (of_script["phrasings"] != "held out")]
        row["FID"] = over_seeds(plain, "fid", "{:.2f}")
        row["right"] = over_seeds(plain, "accuracy", "{:.1%}")
        held_out = of_script[of_script["phrasings"] == "held out"]
        row["right, held-out phrasings"] = over_seeds(held_out, "accuracy", "{:.1%}")
        of_words = asked[(asked["model"] == script) & (asked["scale"] == scale)]
        for kind in ("one word", "held-out pair"):
            row[kind] = mean_of(of_words[of_words["kind"] == kind], "as_asked")
        row["diversity (of real)"] = over_seeds(plain, "of_real", "{:.0%}")
        cells.append(row)
    return pd.DataFrame(cells)


TABLES = {
    "quality": lambda study: measured(study, QUALITY),
    "obedience": lambda study: measured(study, RIGHT),
    "few": lambda study: measured(study, FEW),
    "no FID": lambda study: measured(study, NO_FID),
    "words": words,
    "changes": changes,
    "brought": brought,
}


def read(name: str, study: str) -> pd.DataFrame:
    table = pd.read_csv(RESULTS / f"{name}.csv")
    return table[table["study"] == study]


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
    for match in SAID.finditer(text):
        names = match[1].split()
        shares, others = values(names, SHARES), values(names, OTHERS)
        for number in NUMBER.finditer(re.sub(r"`[^`]*`|\]\([^)]*\)", "", match[2])):
            digits, percent = number[1].replace(",", ""), bool(number[2])
            if percent or "." in digits:
                half = 0.5 * 10 ** -len(digits.partition(".")[2]) + 1e-9
                known = 100 * shares if percent else others
                if not (np.abs(known - float(digits)) <= half).any():
                    wrong.append(f"{number[0]} in: {match[2][:60]}")
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
        path = ROOT / page
        save_text(path, filled(path.read_text(encoding="utf-8"), "zh-CN" in page))
        say(f"{page}: its tables are those of docs/results/")
    pictures()


def pictures() -> None:
    """Of the runs of the study, if they are on disk, into assets/."""
    if not Task("mnist", "a4_full", 0).folder.exists():
        say("the pictures of assets/ stay: no runs in results/study")
        return
    data = Task("mnist", "a4_full", 0).data
    flags = ["--clip", "tiny", "--extractor", "judge", *data, "--out", str(PLACE / "mnist")]
    compare.main(flags)
    here, run = PLACE / "mnist" / "mnist", Task("mnist", "a4_full", 0).folder / "images"
    for name, source in {
        "ladder": here / "compare" / "grid.png",
        "guidance": here / "cfg_scale" / "plots" / "scale.png",
        "asked": here / "compare" / "asked_a4_full.png",
        "prompts": run / "prompts.png",
        "denoising": run / "denoising.png",
        "reconstructions": Task("mnist", "cvae", 0).folder / "images" / "reconstructions.png",
        "quickdraw": Task("quickdraw", "a4_full", 0).folder / "images" / "prompts.png",
    }.items():
        shutil.copy(source, ROOT / "assets" / f"{name}.png")
