"""All runs of a data set side by side, from what they saved: figures, tables, a report.

Command   python compare.py --dataset mnist
          what evaluate.py has not measured yet, or what has changed since, is measured first
Writes    results/mnist/compare/report.md and report.html (one file with all pictures in it),
          beside their figures; results/mnist/cfg_scale/: what the guidance scale does
Seeds     of one model become mean ± standard deviation:
          python a4_full.py --seed 1 --out results/seed1
Steps     runs that differ in --sample-steps alone become a curve: copy results/mnist/a4_full to
          results/steps50/mnist, then python a4_full.py --sample-steps 50 --out results/steps50
"""

import base64
import html
import os
import re
import sys
import zlib
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import common
import evaluate
from kit.base import ROOT, UserError, read_table, reading, save_file, save_table, save_text
from kit.pictures import COLORS, save_grid, save_loss_plot, shown_classes, with_scale
from kit.run import read_config
from kit.samples import load_samples

# In what the seeds of one model may differ; in every other choice they are alike.
FREE = "seed out data_dir device fresh prompt n scale scales clip description git_revision python"
FREE = {*FREE.split(), "packages"}
SETTINGS = "train_steps batch_size lr widths parameters sample_steps eta seed data_source"
SETTINGS = [*SETTINGS.split(), "image_count", "text_encoder", "device"]
METRICS = {  # column -> its name, 1 if more is better or -1, how it is written
    "fid": ("FID", -1, "{:.3g}"),
    "coverage": ("coverage", 1, "{:.1%}"),
    "precision": ("precision", 1, "{:.1%}"),
    "of_real": ("diversity (of real)", 1, "{:.0%}"),
    "clip_similarity": ("CLIP similarity", 1, "{:.3f}"),
    "accuracy": ("accuracy", 1, "{:.1%}"),
}
COSTS = ["sample_images_per_second", "parameters"]
NUMBERS = ["scale", "n", *METRICS, "with_wrong_prompts"]


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
    drawn = {zlib.crc32(path.read_bytes()) for path in folder.glob("images/samples_*.npz")}
    with reading(folder / "metrics", again):  # it may have been edited
        table = pd.concat(tables, axis=1)
        table = table.loc[:, ~table.columns.duplicated()]
        extractor = table["extractor"].iloc[0]
        table.columns = table.columns.str.removesuffix(f"_{extractor}")
        table = table.astype(dict.fromkeys(NUMBERS, float))
        if drawn != {*table["samples_crc32"].dropna()} or len({*map(len, tables)}) > 1:
            raise UserError(f"{folder} has other samples than were measured; {again}")
    return table


def measure_what_is_new(config: Config, folders: list[Path]) -> None:
    """What evaluate.py does, for those runs alone that it has not measured as they are now."""
    extractor = {"inception": "inception_v3", "tiny": "tiny_clip"}.get(config.extractor)
    done, new = [], []
    for folder in folders:
        try:
            row = measured(folder, config.dataset).iloc[0]
            same_clip = config.clip in ("auto", row["text_encoder"])
            if same_clip and extractor in (None, row["extractor"]):
                done.append(row)
                continue
        except UserError:  # of no concern: it is measured now
            pass
        new.append(folder)
    if not new and (config.out / config.dataset / "compare" / "real.npz").exists():
        return
    if done:  # like with like
        config.clip = done[0]["text_encoder"]
        config.extractor = {"inception_v3": "inception"}.get(done[0]["extractor"], "tiny")
    judge = evaluate.Judge(config)
    for folder in new:
        print(f"measuring {folder}", file=sys.stderr)
        judge.judge(folder)
    judge.save_real()


def load_run(folder: Path, dataset: str) -> dict:
    """A run's config, and its rows, with costs where there are some."""
    table, path = measured(folder, dataset), folder / "metrics" / "performance.csv"
    remedy = f"delete it and run {folder.name}.py again"
    costs = read_table(path, ("scale", *COSTS), remedy)
    with reading(path, remedy):
        costs = costs[["scale", *COSTS]].astype(float)
    table = table.merge(costs, on="scale", how="left")
    table.loc[table["phrasings"] == "held out", COSTS] = np.nan
    config = {"family": "diffusion", "description": "", "has_guidance": False}
    config |= read_config(folder)
    return {"folder": folder, "script": folder.name, "config": config, "rows": table}


def same(run: dict, other: dict, besides: str = "seed") -> bool:
    """Whether two runs differ in nothing but this, and in what does not matter."""
    one, two = run["config"], other["config"]
    names = ({*one, *two} - FREE | {"seed"}) - {besides}
    return all(one.get(name) == two.get(name) for name in names)


def check_measured_alike(table: pd.DataFrame, dataset: str) -> None:
    for column in ("extractor", "text_encoder", "reference"):
        names = table[column].unique()
        if len(names) > 1:
            listed = f"more than one {column}: {', '.join(map(str, names))}"
            again = f"measure all with one: python evaluate.py --dataset {dataset}"
            raise UserError(f"runs were measured with {listed}; {again}")


def scripts_here() -> list[str]:
    """The names of all models' scripts beside this file."""
    texts = {file.stem: file.read_text(encoding="utf-8") for file in sorted(ROOT.glob("*.py"))}
    return [x for x in texts if re.search(r"^class \w+\(common\.Config\)", texts[x], re.M)]


# ── Numbers ──


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """(model, phrasings, scale) -> for each column mean, std, size (seeds) and first (run)."""
    groups = table.groupby(["model", "phrasings", "scale"], dropna=False)
    return groups[["n", *METRICS, "with_wrong_prompts", *COSTS]].agg(
        ["mean", "std", "size", "first"]
    )


def trained_points(numbers: pd.DataFrame, model: str) -> pd.DataFrame:
    """scale -> numbers, of the samples that all tables and curves show."""
    table = numbers.loc[model]
    return table[table.index.get_level_values("phrasings") != "held out"].droplevel("phrasings")


def write(mean: float, std: float = np.nan, form: str = "{:.3g}") -> str:
    """Mean, and with several seeds the standard deviation."""
    if np.isnan(mean):
        return "–"
    form = form if abs(mean) < 1000 else "{:,.0f}"
    spread = "" if np.isnan(std) else f" ± {form.replace('3g', '2g').format(std)}"
    return form.format(mean) + spread


def compared(numbers: pd.DataFrame, models: list[str], guided, fid: str) -> pd.DataFrame:
    """A row for each model and guidance scale, then what real images and noise score."""
    rows = []
    for model in (*models, "real images", "noise"):
        for scale, row in trained_points(numbers, model).iterrows():
            cells = {"model": model, "scale": f"{scale:g}" if model in guided else "–"}
            cells["n"] = f"{row['n', 'first']:.0f}"
            cells["seeds"] = f"{row['n', 'size']:.0f}" if model in models else "–"
            for column, (title, _, form) in METRICS.items():
                title = fid if column == "fid" else title
                cells[title] = write(*row[column][["mean", "std"]], form)
            wrong = row["with_wrong_prompts"]
            cells["similarity, wrong prompts"] = write(*wrong[["mean", "std"]], "{:.3f}")
            cells["new phrasings"] = "–"
            if (model, "held out", scale) in numbers.index:
                held_out = numbers.loc[(model, "held out", scale)]
                share = write(*held_out["accuracy"][["mean", "std"]], "{:.1%}")
                cells["new phrasings"] = f"{share}, n = {held_out['n', 'first']:.0f}"
            cells["images/s"], cells["parameters"] = (write(row[x, "first"]) for x in COSTS)
            rows.append(cells)
    return pd.DataFrame(rows)


def verdict(model: str, points: pd.DataFrame, fid: str) -> str:
    """Which guidance scale is best at what, from the numbers (index: scale)."""
    best = {}  # the scales that win -> at what
    for column, (name, sign, form) in METRICS.items():
        values = points[column, "mean"].map(lambda value: float(f"{value:.3g}"))
        top = (sign * values).max() * sign
        winners = " and ".join(f"{scale:g}" for scale in values.index[values == top])
        title = fid if column == "fid" else name
        best.setdefault(winners, []).append(f"{title} ({form.format(top)})")
    seeds = int(points["n", "size"].min())
    scales = ", ".join(f"{scale:g}" for scale in points.index)
    parts = [f"scale {winners} is best in {', '.join(what)}" for winners, what in best.items()]
    head = f"{model}, of the scales {scales} ({seeds} seed{'s' if seeds > 1 else ''})"
    return f"{head}: {'; '.join(parts)}."


# ── Figures ──


def save(path: Path, figure: Figure) -> Path:
    save_file(path, lambda file: figure.savefig(file, format="png", dpi=130))
    return path


def save_curves(path: Path, curves: dict, real: pd.Series, xlabel: str, fid: str) -> Path:
    """curves: line -> numbers (index: x); bars: deviation over seeds; dashed: real images."""
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    for axes, (column, (name, _, _)) in zip(figure.subplots(2, 3).flat, METRICS.items()):
        for (line, points), color, marker in zip(curves.items(), cycle(COLORS), cycle("os^Dv*")):
            mean, spread = points[column, "mean"], points[column, "std"].fillna(0)
            style = {"label": line, "color": color, "marker": marker, "capsize": 3}
            axes.errorbar(points.index, mean, spread, **style)
        axes.axhline(real[column], color="grey", linestyle="--", label="real images")
        axes.set(xlabel=xlabel, ylabel=fid if column == "fid" else name)
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    return save(path, figure)


def save_speed(path: Path, numbers, models: list[str], real: pd.Series, fid: str) -> Path:
    """FID against images drawn per second, a point for every model and scale."""
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    for model, color, marker in zip(models, cycle(COLORS), cycle("os^Dv*")):
        points = trained_points(numbers, model)
        speed, distance = points["sample_images_per_second", "first"], points["fid", "mean"]
        axes.plot(speed, distance, marker, color=color, label=model, markersize=8)
        if len(points) > 1:
            for scale, x, y in zip(points.index, speed, distance):
                axes.annotate(f"{scale:g}", (x, y), (5, 5), textcoords="offset points", fontsize=8)
    axes.axhline(real["fid"], color="grey", linestyle="--", label="real images")
    axes.set(xlabel="images drawn per second (numbers: guidance scale)", ylabel=fid)
    axes.set(xscale="log", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return save(path, figure)


def save_rows(path: Path, names: list[str], files: dict[str, Path]) -> Path:
    """Images of every file (caption -> path), a row each: two of each class or one, at most 26."""
    arrays = {caption: load_samples(file) for caption, file in files.items()}
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


def samples_shown(run: dict) -> tuple[str, Path]:
    """The caption and the sample file that stand for a run: at scale 2 if there is one."""
    files = sorted(run["folder"].glob("images/samples_w*.npz"))
    file = next((file for file in files if "_w2.0" in file.name), files[0])
    scale = float(file.stem.split("_w")[1])
    return with_scale(run["script"], run["config"]["has_guidance"], scale), file


# ── The study of the guidance scale, and the report ──


def guidance_study(folder: Path, runs: dict, numbers, real: pd.Series, fid: str, names) -> dict:
    """Figures and a table of the models with guidance (runs: name -> run) -> the figures."""
    curves = {model: trained_points(numbers, model) for model in runs}
    figures, rows = {}, []
    for model, points in curves.items():
        images = runs[model]["folder"] / "images"
        files = {f"scale {scale:g}": images / f"samples_w{scale}.npz" for scale in points.index}
        files = {caption: path for caption, path in files.items() if path.exists()}
        figures[model] = save_rows(folder / "images" / f"{model}.png", names, files)
        for scale, row in points.iterrows():
            cells = {"model": model, "scale": str(scale), "n": int(row["n", "first"])}
            cells |= {"seeds": int(row["n", "size"]), "extractor": fid[5:-1]}  # of "FID (...)"
            for column in METRICS:
                cells |= {f"{column}_{x}": row[column, x] for x in ("mean", "std")}
            rows.append(cells)
    save_table(folder / "metrics" / "cfg_scale.csv", rows, "%.5g")
    plot = save_curves(folder / "plots" / "scale.png", curves, real, "guidance scale", fid)
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


def html_table(table: pd.DataFrame) -> str:
    with pd.option_context("display.max_colwidth", None):  # else long texts are cut
        return f"<div>{table.to_html(index=False, border=0)}</div>"


def save_report(folder: Path, figures: dict[str, Path], **facts) -> None:
    """report.md, whose pictures are files beside it, and report.html, which holds them itself."""
    loader = jinja2.FileSystemLoader(ROOT / "kit", encoding="utf-8")
    environment = jinja2.Environment(loader=loader, trim_blocks=True)
    links, data = {}, {}
    for name, path in figures.items():
        links[name] = f"![{name}]({Path(os.path.relpath(path, folder)).as_posix()})"
        content = base64.b64encode(path.read_bytes()).decode()
        data[name] = f'<img alt="{name}" src="data:image/png;base64,{content}">'
    markdown = {
        "h": lambda text, level: f"{'#' * level} {text}",
        "p": lambda text: " ".join(text.split()),
        "table": lambda table: table.to_markdown(index=False, disable_numparse=True),
        "figure": links.get,
    }
    page = {
        "h": lambda text, level: f"<h{level}>{html.escape(text)}</h{level}>",
        "p": lambda text: f"<p>{html.escape(' '.join(text.split()))}</p>",
        "table": html_table,
        "figure": data.get,
    }
    for name, functions in {"report.md": markdown, "report.html": page}.items():
        environment.filters.update(functions)
        template = environment.get_template("report.jinja")
        is_page = name.endswith("html")
        save_text(folder / name, template.render(facts, write=write, page=is_page, **functions))


@dataclass
class Comparison:
    """What the figures and tables are made of."""

    first: dict[str, dict]  # model -> its first run, by name
    steps: dict[str, pd.DataFrame]  # see step_curves()
    apart: list[str]  # folders of the runs that are in none of these
    numbers: pd.DataFrame  # see over_seeds(); floors included
    floors: pd.DataFrame  # "real images", "noise" -> their rows
    fid: str  # with its extractor
    guided: dict[str, dict]  # those of first that have guidance


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
    used = [run["folder"] for run in alike + drawn]
    apart = [str(run["folder"]) for run in runs if run["folder"] not in used]
    floors = table[table["scale"].isna()].sort_values("n", kind="stable")
    floors = floors.drop_duplicates("model", keep="last")  # on the largest n
    rows = [run["rows"].dropna(subset="scale") for run in alike]
    numbers, fid = over_seeds(pd.concat([*rows, floors])), f"FID ({table['extractor'].iloc[0]})"
    first, floors = dict(sorted(first.items())), floors.set_index("model")
    guided = {model: run for model, run in first.items() if run["config"]["has_guidance"]}
    return Comparison(first, steps, apart, numbers, floors, fid, guided)


def save_figures(it: Comparison, folder: Path, classes: list[str]) -> dict[str, Path]:
    """-> the report's figures, by name."""
    here, real = folder / "compare", it.floors.loc["real images"]
    losses = {model: run["folder"] / "metrics" / "loss.csv" for model, run in it.first.items()}
    pictured = {"real images": here / "real.npz", **dict(map(samples_shown, it.first.values()))}
    figures = {
        "grid": save_rows(here / "grid.png", classes, pictured),
        "loss": save_loss_plot(here / "loss.png", losses),
        "speed": save_speed(here / "speed.png", it.numbers, [*it.first], real, it.fid),
    }
    if it.guided:
        study = folder / "cfg_scale"
        figures |= guidance_study(study, it.guided, it.numbers, real, it.fid, classes)
    if it.steps:
        path = here / "steps.png"
        figures["steps"] = save_curves(path, it.steps, real, "sampling steps", it.fid)
    return figures


def facts_of(it: Comparison) -> dict:
    """What the report's template says in words and tables."""
    settings = []
    for model, run in it.first.items():
        values = {name: str(run["config"].get(name, "–")) for name in SETTINGS}
        settings.append({"script": model, **values})
    families = {model: run["config"]["family"] for model, run in it.first.items()}
    ladder = [model for model, family in families.items() if family == "diffusion"]
    points = {model: trained_points(it.numbers, model) for model in it.guided}
    return {
        "apart": it.apart,
        "models": {model: run["config"]["description"] for model, run in it.first.items()},
        "settings": pd.DataFrame(settings),
        "fid": it.fid,
        "real": it.floors.loc["real images"],
        "noise": it.floors.loc["noise"],
        "families": sorted({*families.values()}),
        "comparison": compared(it.numbers, [*it.first], it.guided, it.fid),
        "ablation": compared(it.numbers, ladder, it.guided, it.fid),
        "guided": [*it.guided],
        "verdicts": [verdict(model, table, it.fid) for model, table in points.items()],
        "steps": bool(it.steps),
    }


def main(argv: list[str] | None = None) -> None:
    config = Config.parse(argv)
    folders, missing = evaluate.find_runs(config), []
    measure_what_is_new(config, folders)
    it = put_together([load_run(path, config.dataset) for path in folders], config.dataset)
    folder, classes = config.out / config.dataset, config.classes
    figures = save_figures(it, folder, classes)
    for name in [] if config.models else scripts_here():
        if name not in it.first:
            missing.append(f"{name} (python {name}.py --dataset {config.dataset})")
    facts = {"dataset": config.dataset, "classes": classes, "missing": missing, **facts_of(it)}
    save_report(folder / "compare", figures, **facts)
    for text in missing:
        print(f"missing: {text}", file=sys.stderr)
    print(folder / "compare" / "report.html")


if __name__ == "__main__":
    common.cli(main)
