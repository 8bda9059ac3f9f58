"""All runs of a data set side by side, from what they saved: figures, tables, a report.

Command   python compare.py --dataset mnist
          what evaluate.py has not measured yet, or what has changed since, is measured first
Writes    results/mnist/compare/report.md and report.html (one file with all pictures in it),
          beside their figures; results/mnist/cfg_scale/: what the guidance scale does;
          compare/metrics/rows.csv and asked.csv: all numbers, a row for each seed
Seeds     of one model become mean ± standard deviation:
          python a4_full.py --seed 1 --out results/seed1
Steps     runs that differ in --sample-steps alone become a curve: copy results/mnist/a4_full to
          results/steps50/mnist, then python a4_full.py --sample-steps 50 --out results/steps50
"""

import base64
import html
import io
import math
import os
import re
import zlib
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from urllib.parse import quote

import jinja2
import numpy as np
import pandas as pd
from PIL import Image

import common
import evaluate
from kit import metrics
from kit.base import (
    ROOT,
    UserError,
    load_arrays,
    read_table,
    reading,
    save_file,
    save_table,
    save_text,
    say,
    tell,
)
from kit.captions import UNSAID, combinations, words_of
from kit.datasets import data_kind, typed_dataset, with_words
from kit.pictures import (
    COLORS,
    Figure,
    PowerNorm,
    drawable,
    plain_style,
    save_grid,
    save_loss_plot,
    shown_classes,
    with_scale,
)
from kit.run import clip_now, read_config, sample_files_in
from kit.samples import THROUGHOUT, load_asked, load_film, load_samples

# In what the seeds of one model may differ; in every other choice they are alike.
FREE = "seed out data_dir device fresh prompt n scale scales clip description git_revision python"
FREE = {*FREE.split(), "packages", "text_encoder"}  # which text_encoder_crc32 tells better
SETTINGS = "train_steps batch_size lr widths parameters sample_steps eta seed data_source"
SETTINGS = [*SETTINGS.split(), "image_count", "text_encoder", "device"]
METRICS = {  # column -> its name, 1 if more is better or -1, how it is written
    "fid": ("FID", -1, "{:.3g}"),
    "kid": ("KID x 1000", -1, "{:.3g}"),
    "density": ("density", 1, "{:.2f}"),
    "coverage": ("coverage", 1, "{:.1%}"),
    "of_real": ("diversity (of real)", 1, "{:.0%}"),
    "train_on_samples": ("train on samples", 1, "{:.1%}"),
    "copied": ("copied", -1, "{:.1%}"),
    "clip_similarity": ("CLIP similarity", 1, "{:.3f}"),
    "accuracy": ("accuracy", 1, "{:.1%}"),
}
COSTS = ["sample_images_per_second", "parameters"]
NUMBERS = ["scale", "n", *METRICS, "kid_se", "mse_diversity", "with_wrong_prompts"]
# Of attributes.csv; the last ones are shares.
ASKED = ("model", "scale", "kind", "asked", "n", "as_asked", "without_asking", "of_real",
         "accuracy", "everything", "everything_without_asking")  # fmt: skip
# Beside the numbers of a row of rows.csv: what config.json has of its run.
TOLD = ["train_steps", "batch_size", "data_source", "image_count", "git_revision", "device"]
IN_CSV = {"kid": "kid_x1000", "kid_se": "kid_se_x1000"}  # what rows.csv calls them
TWIN = f", {THROUGHOUT}"  # what follows a model's name where its guidance acts at every step
MATRIX = 26  # classes that a matrix of asked against read has room for


@dataclass
class Config(evaluate.Config):
    """The flags: those of evaluate.py, for what is not measured yet."""


# ── What the runs saved ──


def measured(folder: Path, dataset: str) -> pd.DataFrame:
    """A row for each sample file and floor. UserError if the run was not measured as it is now."""
    again, tables = f"first: python evaluate.py --dataset {dataset}", []
    for name in evaluate.TABLES:
        path = folder / "metrics" / f"{name}.csv"
        tables.append(read_table(path, evaluate.KEYS, again))
    files = evaluate.sample_paths(folder)
    drawn = {zlib.crc32(path.read_bytes()) for path in files}
    if not all(judged_file(path).exists() for path in files):
        raise UserError(f"{folder} was measured in part; {again}")
    with reading(folder / "metrics", again):  # it may have been edited
        table = pd.concat(tables, axis=1)
        table = table.loc[:, ~table.columns.duplicated()]
        extractor = table["extractor"].iloc[0]
        table.columns = table.columns.str.removesuffix(f"_{extractor}")
        table = table.astype(dict.fromkeys(NUMBERS, float))
        table[["kid", "kid_se"]] *= 1000
        if drawn != {*table["samples_crc32"].dropna()} or len({*map(len, tables)}) > 1:
            raise UserError(f"{folder} has other samples than were measured; {again}")
        if {*table["model"]} != {folder.name, "real images", "noise"}:
            raise ValueError(f"models are {', '.join(map(str, table['model'].unique()))}")
    asked_for(folder, again)
    return table


def asked_for(folder: Path, again: str) -> pd.DataFrame:
    """A row for each scale and each combination of attributes that prompts asked for, or none."""
    paths = sample_files_in(folder, "attributes")
    if not paths or not read_config(folder).get("attributes"):
        return pd.DataFrame(columns=ASKED)
    table = read_table(folder / "metrics" / "attributes.csv", ASKED, again)
    with reading(folder / "metrics" / "attributes.csv", again):
        if {*table["samples_crc32"]} != {zlib.crc32(path.read_bytes()) for path in paths}:
            raise UserError(f"{folder} has other samples than were measured; {again}")
        words = [tuple(pair) for pair in read_config(folder)["attributes"].values()]
        every = {", ".join(words_of(words, x)) or "nothing" for x in combinations(len(words))}
        if any({*rows["asked"]} != every for _, rows in table.groupby("scale")):
            raise ValueError("not all that was asked for is in it")
        return table.astype(dict.fromkeys(("scale", *ASKED[4:]), float))


def judged_file(samples: Path) -> Path:
    """What evaluate.py wrote about each image of a sample file."""
    return samples.parent.parent / "metrics" / samples.name.replace("samples", "judged")


def measure_what_is_new(config: Config, folders: list[Path]) -> None:
    """What evaluate.py does, for those runs alone that it has not measured as they are now."""
    extractor = {"inception": "inception_v3", "judge": "judge"}.get(config.extractor)
    done, new = [], []
    for folder in folders:
        try:
            row = measured(folder, typed_dataset(config)).iloc[0]
            same_clip = config.clip in ("auto", row["text_encoder"])
            if same_clip and extractor in (None, row["extractor"]):
                done.append(row)
                continue
        except UserError:  # of no concern: it is measured now
            pass
        new.append(folder)
    if not new and (config.out / config.dataset / "compare" / "real.npz").exists():
        return
    if done and not clip_now(done[0]["text_encoder"], config):  # a file that is gone
        done, new = [], folders
    if done:  # like with like
        config.clip = done[0]["text_encoder"]
        config.extractor = {"inception_v3": "inception"}.get(done[0]["extractor"], "judge")
    evaluator = evaluate.Evaluator(config)
    for folder in new:
        say(f"measuring {folder}")
        evaluator.judge_run(folder)
    evaluator.save_real()


def load_run(folder: Path, dataset: str) -> dict:
    """A run's config, and its rows, with costs where there are some."""
    table, path = measured(folder, dataset), folder / "metrics" / "performance.csv"
    remedy = f"without this file {folder.name}.py's command makes it anew"
    costs = read_table(path, ("scale", "guidance", *COSTS), remedy)
    costs = costs.drop_duplicates(["scale", "guidance"], keep="last")
    with reading(path, remedy):
        numbers = ["scale", *COSTS]
        costs = costs[["guidance", *numbers]].astype(dict.fromkeys(numbers, float))
    table = table.merge(costs, on=["scale", "guidance"], how="left")
    table.loc[table["phrasings"] == "held out", COSTS] = np.nan
    config = {"family": "diffusion", "description": "", "has_guidance": False}
    config |= read_config(folder)
    if config.get("interval"):  # beside it stands guidance on the whole way, as a model of its own
        twins = (table["guidance"] == THROUGHOUT) & (table["scale"] > 1)
        table.loc[twins, "model"] += TWIN
    asked = asked_for(folder, remedy)
    names = {"folder": folder, "script": folder.name, "config": config}
    return names | {"rows": table, "asked": asked}


def same(run: dict, other: dict, besides: str = "seed") -> bool:
    """Whether two runs differ in nothing but this, and in what does not matter."""
    one, two = run["config"], other["config"]
    names = ({*one, *two} - FREE | {"seed"}) - {besides}
    return all(one.get(name) == two.get(name) for name in names)


def differences(config: dict, other: dict) -> str:
    """In what two runs differ, for the reader; at most three choices."""
    names = sorted({*config, *other} - FREE)
    unlike = [x for x in names if config.get(x) != other.get(x)]
    parts = [f"{x} {config.get(x)} instead of {other.get(x)}" for x in unlike[:3]]
    return "; ".join(parts) + (f" and {len(unlike) - 3} more" if len(unlike) > 3 else "")


def check_measured_alike(table: pd.DataFrame, dataset: str) -> None:
    for column in ("extractor", "text_encoder", "reference", "judge_crc32"):
        names = table[column].unique()
        if len(names) > 1:
            listed = f"more than one {column}: {', '.join(map(str, names))}"
            again = f"measure all with one: python evaluate.py --dataset {dataset}"
            raise UserError(f"runs were measured with {listed}; {again}")


def scripts_here() -> list[str]:
    """The names of all models' scripts beside this file."""
    files = [file for file in sorted(ROOT.glob("[!.]*.py")) if file.is_file()]
    texts = {file.stem: file.read_text(encoding="utf-8", errors="replace") for file in files}
    return [x for x in texts if re.search(r"^class \w+\(common\.Config\)", texts[x], re.M)]


# ── Numbers ──


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """(model, phrasings, scale) -> for each column mean, std, size (seeds) and first (run)."""
    groups = table.groupby(["model", "phrasings", "scale"], dropna=False)
    return groups[[*NUMBERS[1:], *COSTS]].agg(["mean", "std", "size", "first"])


def trained_points(numbers: pd.DataFrame, model: str) -> pd.DataFrame:
    """scale -> numbers, of the samples that all tables and curves show."""
    table = numbers.loc[model]
    return table[table.index.get_level_values("phrasings") != "held out"].droplevel("phrasings")


def with_twins(numbers: pd.DataFrame, models) -> list[str]:
    """models, each followed by its twin, whose guidance acts throughout, if it has one."""
    known = numbers.index.get_level_values("model")
    return [name for model in models for name in (model, model + TWIN) if name in known]


def write(mean: float, std: float = np.nan, form: str = "{:.3g}") -> str:
    """Mean, and with several seeds the standard deviation."""
    if np.isnan(mean):
        return "–"
    form = form if abs(mean) < 1000 else "{:,.0f}"
    spread = "" if np.isnan(std) else f" ± {form.replace('3g', '2g').format(std)}"
    return form.format(mean) + spread


def share_with_interval(row: pd.Series) -> str:
    """Accuracy over all seeds, and where it lies with 95 % (Wilson)."""
    mean, std = row["accuracy"][["mean", "std"]]
    if np.isnan(mean):
        return "–"
    low, high = metrics.wilson(mean, int(row["n", "first"] * row["n", "size"]))
    return f"{write(mean, std, '{:.1%}')} ({100 * low:.1f}–{100 * high:.1f})"


def titled(extractor: str) -> dict[str, str]:
    """column of METRICS -> its name, with the extractor where one has made it."""
    names = {column: name for column, (name, _, _) in METRICS.items()}
    return names | {x: f"{names[x]} ({extractor})" for x in names if x in evaluate.DISTANCES}


def compared(numbers: pd.DataFrame, models: list[str], guided, extractor: str):
    """Two tables: how real and various, and how obedient and costly.

    A row for each model and guidance scale, then what real images and noise score.
    """
    first, second, titles = [], [], titled(extractor)
    twins = [model + TWIN for model in guided]
    for model in (*with_twins(numbers, models), "real images", "noise"):
        for scale, row in trained_points(numbers, model).iterrows():
            cells = {"model": model}
            cells["scale"] = f"{scale:g}" if model in (*guided, *twins) else "–"
            cells["n"] = f"{row['n', 'first']:.0f}"
            cells["seeds"] = f"{row['n', 'size']:.0f}" if model in (*models, *twins) else "–"
            written = {}
            for column, (_, _, form) in METRICS.items():
                written[column] = write(*row[column][["mean", "std"]], form)
            if not np.isnan(row["kid_se", "mean"]):
                written["kid"] += f" (s.e. {write(row['kid_se', 'mean'])})"
            names = "fid", "kid", "density", "coverage"
            first.append(cells | {titles[name]: written[name] for name in names})
            first[-1]["diversity"] = write(*row["mse_diversity"][["mean", "std"]], "{:.4f}")
            for name in ("of_real", "train_on_samples", "copied"):
                first[-1][titles[name]] = written[name]
            second.append(cells | {"accuracy (95 %)": share_with_interval(row)})
            held_out = "–"
            if (model, "held out", scale) in numbers.index:
                there = numbers.loc[(model, "held out", scale)]
                held_out = f"{share_with_interval(there)}, n = {there['n', 'first']:.0f}"
            second[-1]["held-out phrasings (95 %)"] = held_out
            second[-1][titles["clip_similarity"]] = written["clip_similarity"]
            wrong = row["with_wrong_prompts"]
            second[-1]["similarity, wrong prompts"] = write(*wrong[["mean", "std"]], "{:.3f}")
            speed, parameters = (write(row[x, "first"]) for x in COSTS)
            second[-1] |= {"images/s": speed, "parameters": parameters}
    return pd.DataFrame(first), pd.DataFrame(second)


def obeyed(asked: pd.DataFrame) -> pd.DataFrame:
    """Rows of asked_for(), of all seeds -> a row for each model and scale, as text.

    Cells are shares, and behind them in brackets the same share without asking.
    """
    rows = []
    words = [*dict.fromkeys(asked.loc[asked["kind"] == "one word", "asked"])]
    pairs = [kind for kind in ("said pair", "held-out pair") if kind in {*asked["kind"]}]
    for (model, scale), table in asked.groupby(["model", "scale"], sort=False):
        plain = table[table["kind"] == "nothing"]
        cells = {"model": model, "scale": f"{scale:g}", "n of each": f"{plain['n'].iloc[0]:.0f}"}
        cells["seeds"] = f"{len(plain)}"
        for word in words:
            cells[word] = beside_floor(table[table["asked"] == word], "as_asked", "without_asking")
        for kind in pairs:
            of_kind = table[table["kind"] == kind]
            cells[f"{kind}: both"] = beside_floor(of_kind, "as_asked", "without_asking")
        for kind in ("one word", *pairs):
            of_kind = table[table["kind"] == kind]
            floor = "everything_without_asking"
            cells[f"{kind}: everything"] = beside_floor(of_kind, "everything", floor)
        for kind in ("nothing", "one word", *pairs):
            of_kind = table[table["kind"] == kind].groupby("seed")["accuracy"].mean()
            cells[f"{kind}: class"] = write(of_kind.mean(), of_kind.std(), "{:.1%}")
        rows.append(cells)
    return pd.DataFrame(rows)


def beside_floor(rows: pd.DataFrame, share: str, floor: str) -> str:
    seeds = rows.groupby("seed")[share].mean()
    return f"{write(seeds.mean(), seeds.std(), '{:.1%}')} ({rows[floor].mean():.0%})"


def verdict(model: str, points: pd.DataFrame, extractor: str) -> str:
    """Which guidance scale is highest or lowest in what, from the numbers (index: scale)."""
    best, titles = {}, titled(extractor)  # best: the scales that win -> at what
    for column, (_, sign, form) in METRICS.items():
        values = points[column, "mean"].map(lambda value: float(f"{value:.3g}"))
        if values.nunique() < 2:  # nowhere better than elsewhere, or not measured
            continue
        top, word = (sign * values).max() * sign, "highest" if sign > 0 else "lowest"
        winners = " and ".join(f"{scale:g}" for scale in values.index[values == top])
        best.setdefault(winners, []).append(f"{word} {titles[column]} ({form.format(top)})")
    seeds = int(points["n", "size"].min())
    scales = ", ".join(f"{scale:g}" for scale in points.index)
    parts = [f"scale {winners}: {', '.join(what)}" for winners, what in best.items()]
    head = f"{model}, of the scales {scales} ({seeds} seed{'s' if seeds > 1 else ''})"
    return f"{head}: {'; '.join(parts) or 'no difference'}."


# ── Figures ──


def save(path: Path, figure: Figure) -> Path:
    save_file(path, lambda file: figure.savefig(file, format="png", dpi=130))
    return path


def save_curves(path: Path, curves: dict, real: pd.Series, xlabel: str, extractor: str) -> Path:
    """curves: line -> numbers (index: x); bars: deviation over seeds; dashed: real images."""
    figure, titles = Figure(figsize=(10, 8.4), layout="constrained"), titled(extractor)
    for axes, column in zip(figure.subplots(3, 3).flat, METRICS):
        for (line, points), color, marker in zip(curves.items(), cycle(COLORS), cycle("os^Dv*")):
            mean, spread = points[column, "mean"], points[column, "std"].fillna(0)
            style = {"label": line, "color": color, "marker": marker, "capsize": 3}
            axes.errorbar(points.index, mean, spread if spread.any() else None, **style)
        axes.axhline(real[column], color="grey", linestyle="--", label="real images")
        if column == "copied":
            axes.set_ylim(-0.02, 1.02)  # zeros all along have no scale of their own
        axes.set(xlabel=xlabel, ylabel=titles[column])
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    return save(path, figure)


def save_speed(path: Path, numbers, models: list[str], real: pd.Series, extractor: str) -> Path:
    """FID against images drawn per second, a point for every model and scale."""
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    for model, color, marker in zip(with_twins(numbers, models), cycle(COLORS), cycle("os^Dv*")):
        points = trained_points(numbers, model)
        speed, distance = points["sample_images_per_second", "first"], points["fid", "mean"]
        axes.plot(speed, distance, marker, color=color, label=model, markersize=8)
        if len(points) > 1:
            for scale, x, y in zip(points.index, speed, distance):
                axes.annotate(f"{scale:g}", (x, y), (5, 5), textcoords="offset points", fontsize=8)
    axes.axhline(real["fid"], color="grey", linestyle="--", label="real images")
    axes.set(xlabel="images drawn per second (numbers: guidance scale)")
    axes.set_ylabel(titled(extractor)["fid"])
    axes.set(xscale="log", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return save(path, figure)


def save_rows(path: Path, names: list[str], files: dict[str, Path]) -> Path:
    """Images of every file (caption -> path), a row each: two of each class or one, at most 26."""
    arrays = {}
    for caption, file in files.items():
        anew = ("move it away: it is made anew",) if file.name == "real.npz" else ()
        arrays[caption] = load_samples(file, 2**31, *anew)
    n = min(len(labels) for _, labels, _ in arrays.values())
    shown = np.arange(min(2 * len(names), n))
    if len(names) > 13:
        shown = shown_classes(len(names), n)
    captions = []
    for caption, (_, labels, _) in arrays.items():
        captions.append(f"{caption} (asked for nothing)" if labels[0] < 0 else caption)
    pixels = np.concatenate([images[shown] for images, _, _ in arrays.values()])
    title = f"{len(shown)} of {len(names)} classes" if len(shown) < len(names) else ""
    titles = [names[i % len(names)] for i in shown]
    save_grid(path, pixels, len(shown), title, titles, captions, inches=0.35)
    return path


def files_by_scale(folder: Path) -> dict[str, Path]:
    """caption -> sample file of trained phrasings, such as "scale 2, throughout", by scale."""
    files = []
    for path in sample_files_in(folder):
        scale, _, where = path.stem.split("_w")[1].partition("_")
        files.append((float(scale), where, path))
    return {f"scale {w:g}{where and f', {where}'}": path for w, where, path in sorted(files)}


def samples_shown(run: dict) -> tuple[str, Path]:
    """The caption and the sample file that stand for a run: at scale 2 if there is one."""
    files = sample_files_in(run["folder"])
    file = next((file for file in files if "_w2.0" in file.name), files[0])
    scale = float(file.stem.split("_w")[1])
    return with_scale(run["script"], run["config"]["has_guidance"], scale), file


def save_asked(path: Path, run: dict) -> Path:
    """What a run drew for each combination of attributes (rows), of two or one of each class.

    The same noise in every column, at the script's default scale or the nearest.
    """
    names, words = run["config"]["classes"], [*run["config"]["attributes"].values()]
    wanted = run["config"].get("scale") or 1.0
    files = {float(path.stem.split("_w")[1]): path
             for path in sample_files_in(run["folder"], "attributes")}  # fmt: skip
    scale = min(files, key=lambda scale: abs(scale - wanted))
    pixels, labels, _ = load_samples(files[scale])
    asked = load_asked(files[scale], len(words))
    table = run["asked"][run["asked"]["scale"] == scale].set_index("asked")
    rows, captions = [], []
    for combination in dict.fromkeys(map(tuple, asked.tolist())):
        group = pixels[(asked == combination).all(1)]
        shown = np.arange(min(2 * len(names), len(group)))
        if len(names) > 10:
            shown = shown_classes(len(names), len(group))
        rows.append(group[shown])
        said = words_of([tuple(pair) for pair in words], combination)
        star = " *" if combination == UNSAID else ""
        share = table.loc[", ".join(said) or "nothing", "as_asked"]
        so = f": {share:.0%} are so" if said else ""
        captions.append(f"{with_words('…', said) if said else 'no words'}{star}{so}")
    title = with_scale(run["script"], run["config"]["has_guidance"], scale)
    title += "; in a column the same noise; * = never said together in training"
    titles = [names[i % len(names)] for i in shown]
    save_grid(path, np.concatenate(rows), len(shown), title, titles, captions, inches=0.35)
    return path


def save_obedience(path: Path, asked: pd.DataFrame, models) -> Path:
    """Against the guidance scale, a panel for each model: the shares that are as was asked."""
    figure = Figure(figsize=(5 * len(models), 4.2), layout="constrained")
    lines = {"class": ("accuracy", asked["kind"] != "nothing")}
    for word in dict.fromkeys(asked.loc[asked["kind"] == "one word", "asked"]):
        lines[word] = "as_asked", asked["asked"] == word
    for kind in ("said pair", "held-out pair"):
        lines[f"{kind}, both"] = "as_asked", asked["kind"] == kind
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models):
        for (line, (column, chosen)), color, marker in zip(
            lines.items(), ("black", *COLORS), cycle("os^Dv*X")
        ):
            table = asked[chosen & (asked["model"] == model)]
            if table.empty:
                continue
            seeds = table.groupby(["scale", "seed"])[column].mean().groupby("scale")
            mean, spread = seeds.mean(), seeds.std().fillna(0)
            style = {"label": line, "color": color, "marker": marker, "capsize": 3}
            axes.errorbar(mean.index, mean, spread if spread.any() else None, **style)
            if column == "as_asked":
                floor = table.groupby("scale")["without_asking"].mean()
                axes.plot(floor.index, floor, ":", color=color)
        axes.set(title=model, xlabel="guidance scale", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("share as asked (dotted: without asking)")
    figure.axes[0].legend(fontsize=8, ncols=2, loc="center", bbox_to_anchor=(0.5, 0.43))
    return save(path, figure)


def save_confusion(path: Path, names: list[str], files: dict[str, Path]) -> Path:
    """For every file (caption -> path): of each class that was asked for, what share is read so."""
    columns = min(3, len(files))
    names = [*map(drawable, names)]
    rows, size = math.ceil(len(files) / columns), max(2.4, 0.6 + 0.26 * len(names))
    figure = Figure(figsize=(columns * size, rows * size + 0.3), layout="constrained")
    panels = [*figure.subplots(rows, columns, squeeze=False).flat]
    for (caption, file), axes in zip(files.items(), panels):
        _, asked, _ = load_samples(file)
        matrix = metrics.confusion(asked, read_judged(file)["read"], len(names))
        axes.imshow(matrix, cmap="Blues", norm=PowerNorm(0.4, 0, 1))  # so that 1 % is seen too
        for (row, column), share in np.ndenumerate(matrix):
            if share:
                color = "white" if share > 0.4 else "black"
                style = {"ha": "center", "va": "center", "fontsize": 6, "color": color}
                text = f"{100 * share:.0f}" if share >= 0.01 else "<1"
                axes.text(column, row, text, **style)
        places = np.arange(len(names))
        axes.set_xticks(places, names, rotation=90, fontsize=7)
        axes.set_yticks(places, names, fontsize=7)
        axes.set_title(caption, fontsize=8)
        axes.set_xlabel("read by the judge, %", fontsize=7)
        axes.set_ylabel("asked for", fontsize=7)
    for axes in panels[len(files) :]:
        axes.remove()
    return save(path, figure)


def save_nearest(path: Path, files: dict[str, Path], columns: int) -> Path:
    """The first images of every file (caption -> path), and below each its nearest training one."""
    pixels, captions = [], []
    for caption, file in files.items():
        nearest = read_judged(file)["nearest"][:columns]
        shown = load_samples(file)[0][: len(nearest)]
        blank = np.full((columns - len(nearest), 28, 28), 255, np.uint8)
        pixels += [shown, blank, nearest, blank]
        captions += [caption, "nearest in training"]
    save_grid(path, np.concatenate(pixels), columns, captions=captions, inches=0.35)
    return path


def save_distances(path: Path, files: dict[str, Path]) -> Path:
    """How far the images of every file, and held-out real ones, are from the nearest training."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes, judged = figure.subplots(), {name: read_judged(file) for name, file in files.items()}
    lines = {"held-out real images": next(iter(judged.values()))["real_distances"]}
    lines |= {caption: arrays["distances"] for caption, arrays in judged.items()}
    most = max(distances[:, 0].max() for distances in lines.values())
    for (caption, distances), color in zip(lines.items(), ("black", *COLORS * len(lines))):
        weights = np.full(len(distances), 100 / len(distances))
        bins = np.linspace(0, most, 41)
        style = {"histtype": "step", "label": caption, "color": color}
        axes.hist(distances[:, 0], bins, weights=weights, **style)
    axes.set(xlabel="distance to the nearest training image (root mean square of a pixel, 0 to 1)")
    axes.set(ylabel="% of the images")
    axes.legend(fontsize=8)
    return save(path, figure)


def read_judged(samples: Path) -> dict[str, np.ndarray]:
    path = judged_file(samples)
    with reading(path, "measure anew: python evaluate.py"):
        arrays = load_arrays(path)
        arrays["read"]  # KeyError if it lacks
        return arrays


# ── The study of the guidance scale, and the report ──


def guidance_study(folder: Path, runs: dict, numbers, real: pd.Series, extractor: str, names):
    """Figures and a table of the models with guidance (runs: name -> run) -> the figures."""
    curves = {model: trained_points(numbers, model) for model in with_twins(numbers, runs)}
    figures, rows = {}, []
    for model, run in runs.items():
        files = files_by_scale(run["folder"])
        figures[model] = save_rows(folder / "images" / f"{model}.png", names, files)
    for model, points in curves.items():
        for scale, row in points.iterrows():
            cells = {"model": model, "scale": str(scale), "n": int(row["n", "first"])}
            cells |= {"seeds": int(row["n", "size"]), "extractor": extractor}
            for column in METRICS:
                cells |= {f"{column}_{x}": row[column, x] for x in ("mean", "std")}
            rows.append(cells)
    save_table(folder / "metrics" / "cfg_scale.csv", rows, "%.5g")
    plot = save_curves(folder / "plots" / "scale.png", curves, real, "guidance scale", extractor)
    return {"scale": plot, **figures}


def step_curves(runs: list[dict], first: dict) -> dict[str, pd.DataFrame]:
    """line -> numbers (index: sampling steps), of runs that differ in nothing else."""
    curves = {}
    for model, one in first.items():
        alike = [run for run in runs if run["script"] == model and same(run, one, "sample_steps")]
        for scale in sorted({scale for run in alike for scale in run["rows"]["scale"].dropna()}):
            points = {}
            for run in alike:
                table = trained_points(over_seeds(run["rows"]), model)
                if scale in table.index:
                    points[run["config"].get("sample_steps")] = table.loc[scale]
            if len(points) > 1:
                curves[f"{model}, scale {scale:g}"] = pd.DataFrame(points).T.sort_index()
    return curves


def films_of(runs: dict[str, dict]) -> list[dict]:
    """The films of runs (model -> run): prompts, scales, moments, and sprites: model -> address.

    One for all models whose film has the same prompts, scales and moments. A sprite is one picture
    of all frames, as a data: address: a row for each prompt and scale, a column for each moment.
    """
    films = {}
    for model, run in runs.items():
        path = run["folder"] / "images" / "film.npz"
        if not path.exists():  # a run of an earlier version has none
            continue
        film = load_film(path)
        prompts, scales, moments = film["frames"].shape[:3]
        rows = film["frames"].swapaxes(2, 3)  # (P, S, 28, M, 28)
        sprite = Image.fromarray(rows.reshape(prompts * scales * 28, moments * 28))
        content = io.BytesIO()
        sprite.save(content, "PNG", optimize=True)
        names = {name: film[name].tolist() for name in ("prompts", "scales", "moments")}
        alike = films.setdefault(str(names), {**names, "sprites": {}})
        alike["sprites"][model] = png_address(content.getvalue())
    return [*films.values()]


def png_address(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def anchor(heading: str) -> str:
    """As GitHub makes it of a heading in Markdown."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


class Markdown:
    """How report.md writes what the template names; pictures: name -> where its file lies."""

    def __init__(self, pictures: dict[str, str]):
        self.pictures = pictures

    def h(self, text: str, level: int) -> str:
        return f"{'#' * level} {text}"

    def p(self, text: str) -> str:
        return " ".join(text.split())

    def see(self, heading: str) -> str:
        return f"[{heading}](#{anchor(heading)})"

    def table(self, caption: str, table: pd.DataFrame) -> str:
        cells = table.to_markdown(index=False, disable_numparse=True)
        return f"{self.p(caption)}\n\n{cells}"

    def figure(self, caption: str, name: str) -> str:
        return f"![{name}]({self.pictures[name]})\n\n{self.p(caption)}"


class Page:
    """How report.html does; pictures: name -> address."""

    def __init__(self, pictures: dict[str, str]):
        self.pictures = pictures

    def h(self, text: str, level: int) -> str:
        return f'<h{level} id="{anchor(text)}">{html.escape(text)}</h{level}>'

    def p(self, text: str) -> str:
        return f"<p>{html.escape(' '.join(text.split()))}</p>"

    def see(self, heading: str) -> str:
        return f'<p><a href="#{anchor(heading)}">{html.escape(heading)}</a></p>'

    def caption(self, text: str) -> str:
        return f"<figcaption>{html.escape(' '.join(text.split()))}</figcaption>"

    def table(self, caption: str, table: pd.DataFrame) -> str:
        with pd.option_context("display.max_colwidth", None):  # else long texts are cut
            cells = table.to_html(index=False, border=0)
        return f'<figure>{self.caption(caption)}<div class="wide">{cells}</div></figure>'

    def figure(self, caption: str, name: str) -> str:
        picture = f'<img alt="{html.escape(name)}" src="{self.pictures[name]}">'
        return f"<figure>{picture}{self.caption(caption)}</figure>"


def save_report(folder: Path, figures: dict[str, Path], **facts) -> None:
    """report.md, whose pictures are files beside it, and report.html, which holds them itself."""
    loader = jinja2.FileSystemLoader(ROOT / "kit", encoding="utf-8")
    environment = jinja2.Environment(loader=loader, trim_blocks=True)
    links, data = {}, {}
    for name, path in figures.items():
        links[name] = quote(Path(os.path.relpath(path, folder)).as_posix())
        data[name] = png_address(path.read_bytes())
    for name, writer in {"report.md": Markdown(links), "report.html": Page(data)}.items():
        functions = {x: getattr(writer, x) for x in ("h", "p", "see", "table", "figure")}
        environment.filters.update(functions)
        template = environment.get_template("report.jinja")
        facts |= {"pictures": figures, "write": write, "page": name.endswith("html")}
        save_text(folder / name, template.render(facts, **functions))


@dataclass
class Comparison:
    """What the figures and tables are made of."""

    first: dict[str, dict]  # model -> its first run, by name
    steps: dict[str, pd.DataFrame]  # see step_curves()
    apart: list[str]  # the runs that are in none of these, and why
    rows: pd.DataFrame  # of the samples of all seeds, with what TOLD names
    numbers: pd.DataFrame  # see over_seeds(), without floors
    floors: dict[str, pd.DataFrame]  # model -> what real images and noise scored beside its first
    extractor: str
    guided: dict[str, dict]  # those of first that have guidance
    asked: pd.DataFrame  # see asked_for(); of all seeds

    @property
    def groups(self) -> list[tuple[str, list[str]]]:
        """The models by what they have in common; see evaluate.like_with_like()."""
        runs = {model: run["config"] for model, run in self.first.items()}
        return evaluate.like_with_like(runs)

    def tables(self) -> list[tuple]:
        """For each group a line about it, and the tables of compared()."""
        tables = []
        for line, names in self.groups:
            numbers = pd.concat([self.numbers, over_seeds(self.floors[names[0]])])
            tables.append((line, *compared(numbers, names, self.guided, self.extractor)))
        return tables


def put_together(runs: list[dict], dataset: str) -> Comparison:
    table = pd.concat([run["rows"] for run in runs])
    check_measured_alike(table, dataset)
    first, seeds = {}, {}  # seeds: (model, seed) -> a run
    for run in runs:
        first.setdefault(run["script"], run)
        if same(run, first[run["script"]]):
            seeds.setdefault((run["script"], run["config"]["seed"]), run)
    steps, alike = step_curves(runs, first), [*seeds.values()]
    drawn = [run for run in runs if steps and same(run, first[run["script"]], "sample_steps")]
    used, apart, floors = [run["folder"] for run in alike + drawn], [], {}
    for run in runs:
        if run["folder"] not in used:
            unlike = differences(run["config"], first[run["script"]]["config"])
            apart.append(f"{run['folder']} ({unlike or 'a seed that is there already'})")
    for model, run in first.items():
        rows = run["rows"][run["rows"]["scale"].isna()].sort_values("n", kind="stable")
        floors[model] = rows.drop_duplicates("model", keep="last")  # on the largest n
    rows = pd.concat([with_settings(run["rows"].dropna(subset="scale"), run) for run in alike])
    first = dict(sorted(first.items()))
    guided = {model: run for model, run in first.items() if run["config"]["has_guidance"]}
    extractor = table["extractor"].iloc[0]
    asked = pd.concat([run["asked"].assign(seed=run["config"]["seed"]) for run in alike])
    numbers = over_seeds(rows)
    return Comparison(first, steps, apart, rows, numbers, floors, extractor, guided, asked)


def with_settings(rows: pd.DataFrame, run: dict) -> pd.DataFrame:
    """Rows of a run, or its floors, with what TOLD names of its config."""
    return rows.assign(**{name: run["config"].get(name) for name in TOLD})


def save_numbers(it: Comparison, folder: Path) -> None:
    """All that tables and curves are made of: rows.csv and asked.csv."""
    floors = [with_settings(table, it.first[model]) for model, table in it.floors.items()]
    floors = pd.concat(floors).drop_duplicates(["model", "n", "data_source", "image_count"])
    floors = floors.drop(columns=["train_steps", "batch_size", "git_revision", "device"])
    rows = pd.concat([it.rows, floors]).rename(columns=IN_CSV)
    rows = rows.astype({"samples_crc32": "Int64"})  # floors have none
    save_table(folder / "rows.csv", rows.to_dict("records"), "%.8g")
    (folder / "asked.csv").unlink(missing_ok=True)  # that of other runs
    if len(it.asked):
        save_table(folder / "asked.csv", it.asked.to_dict("records"), "%.8g")


def save_figures(it: Comparison, folder: Path, classes: list[str]) -> dict[str, Path]:
    """-> the report's figures, by name."""
    here, (_, commonest) = folder / "compare", it.groups[0]
    real = it.floors[commonest[0]].set_index("model").loc["real images"]
    losses = {model: run["folder"] / "metrics" / "loss.csv" for model, run in it.first.items()}
    shown = dict(map(samples_shown, it.first.values()))
    figures = {
        "grid": save_rows(here / "grid.png", classes, {"real images": here / "real.npz", **shown}),
        "loss": save_loss_plot(here / "loss.png", losses),
    }
    if not np.isnan(real["fid"]):
        path = here / "speed.png"
        figures["speed"] = save_speed(path, it.numbers, [*it.first], real, it.extractor)
    asked = {caption: file for caption, file in shown.items() if load_samples(file)[1][0] >= 0}
    if asked and len(classes) <= MATRIX:
        figures["confusion"] = save_confusion(here / "confusion.png", classes, asked)
    traced = {caption: file for caption, file in shown.items() if "nearest" in read_judged(file)}
    if traced:
        columns = min(evaluate.SHOWN, max(10, len(shown_classes(len(classes), 10**6))))
        figures["nearest"] = save_nearest(here / "nearest.png", traced, columns)
        figures["distances"] = save_distances(here / "distances.png", traced)
    for model in dict.fromkeys(it.asked["model"]):
        path = here / f"asked_{model}.png"
        figures[f"asked_{model}"] = save_asked(path, it.first[model])
    if it.guided:
        study = folder / "cfg_scale"
        figures |= guidance_study(study, it.guided, it.numbers, real, it.extractor, classes)
        models = [model for model in it.guided if model in {*it.asked["model"]}]
        if models:
            path = study / "plots" / "obedience.png"
            figures["obedience"] = save_obedience(path, it.asked, models)
            of_guided = it.asked[it.asked["model"].isin(models)]
            save_table(study / "metrics" / "obedience.csv", of_guided.to_dict("records"), "%.5g")
    for model, run in it.first.items():
        path = run["folder"] / "images" / "reconstructions.png"
        if path.exists():  # an autoencoder's
            figures[f"reconstructions_{model}"] = path
    if it.steps:
        path = here / "steps.png"
        figures["steps"] = save_curves(path, it.steps, real, "sampling steps", it.extractor)
    return figures


def measured_attributes(it: Comparison) -> str:
    """For the reader, by the first run that has some: the words, and where they begin."""
    for run in it.first.values():
        parts = []
        for name, words in (run["config"].get("attributes") or {}).items():
            (low, least), (high, most) = words.items()
            parts.append(f"{name}: {low!r} below {least:.3g}, {high!r} above {most:.3g}")
        if parts:
            return "; ".join(parts)
    return ""


def facts_of(it: Comparison) -> dict:
    """What the report's template says in words and tables."""
    settings = []
    for model, run in it.first.items():
        values = {name: str(run["config"].get(name, "–")) for name in SETTINGS}
        settings.append({"script": model, **values})
    families = {model: run["config"]["family"] for model, run in it.first.items()}
    guided = with_twins(it.numbers, it.guided)
    points = {model: trained_points(it.numbers, model) for model in guided}
    floors = it.floors[it.groups[0][1][0]].set_index("model")
    return {
        "apart": it.apart,
        "models": {model: run["config"]["description"] for model, run in it.first.items()},
        "settings": pd.DataFrame(settings),
        "extractor": it.extractor,
        "real": floors.loc["real images"],
        "noise": floors.loc["noise"],
        "families": sorted({*families.values()}),
        "tables": it.tables(),
        "obeyed": obeyed(it.asked),
        "asked_models": [*dict.fromkeys(it.asked["model"])],
        "attributes": measured_attributes(it),
        "held_out_pair": "".join(it.asked.loc[it.asked["kind"] == "held-out pair", "asked"][:1]),
        "seeds": max(size for size in it.numbers["n", "size"]),
        "guided": [*it.guided],
        "films": films_of(it.guided),
        "verdicts": [verdict(model, table, it.extractor) for model, table in points.items()],
        "steps": bool(it.steps),
    }


def main(argv: list[str] | None = None) -> None:
    config = Config.parse(argv)
    folders, missing = evaluate.find_runs(config), []
    measure_what_is_new(config, folders)
    dataset = typed_dataset(config)
    it = put_together([load_run(path, dataset) for path in folders], dataset)
    folder, classes = config.out / config.dataset, config.classes
    for name in [] if config.models else scripts_here():
        if name not in it.first:
            missing.append(f"{name} (python {name}.py --dataset {typed_dataset(config)})")
    facts = {"dataset": config.dataset, "classes": classes, "missing": missing, **facts_of(it)}
    facts["held_out"] = len(common.HELDOUT_TEMPLATES[data_kind(config)])
    save_numbers(it, folder / "compare" / "metrics")
    with plain_style():
        figures = save_figures(it, folder, classes)
    save_report(folder / "compare", figures, **facts)
    for text in missing:
        say(f"missing: {text}")
    tell(folder / "compare" / "report.html")


if __name__ == "__main__":
    common.cli(main)
