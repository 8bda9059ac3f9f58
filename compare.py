"""Compares all runs of a data set: figures, tables, and a report of one file.

Command   python compare.py --dataset mnist
          first measures the runs that evaluate.py has not measured, or that have changed since
Writes    results/mnist/compare/report.html, which contains all pictures, and the pictures beside it
          results/mnist/compare/metrics/rows.csv and asked.csv: all numbers, a row for each seed
          results/mnist/cfg_scale/: what the guidance scale does
Seeds     of one model become mean ± standard deviation:
          python a4_full.py --seed 1 --out results/seed1
Steps     runs that differ in --sample-steps alone become a curve: copy results/mnist/a4_full to
          results/steps50/mnist, then python a4_full.py --sample-steps 50 --out results/steps50
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

import evaluate
from kit import figures, metrics
from kit.files import ROOT, UserError, load_arrays, reading, save_file, save_table, say
from kit.pictures import save_loss_plot, use_plain_style, with_scale
from kit.run import read_config
from kit.samples import load_samples

# The seeds of one model may differ in these; in every other choice they are alike.
FREE = "seed dataset out data_dir device fresh prompt n scale scales clip description git_revision"
FREE = {*FREE.split(), "python", "packages", "text_encoder"}  # text_encoder_crc32 identifies it
SETTINGS = "seed train_steps batch_size lr widths parameters sample_steps eta data_source"
SETTINGS = [*SETTINGS.split(), "image_count", "text_encoder", "device"]
IN_ROWS = ["train_steps", "batch_size", "data_source", "image_count", "git_revision", "device"]
METRICS = {  # column -> its title, how it is written; {}: the extractor
    "fid": ("FID ({})", "{:.3g}"),
    "kid_x1000": ("KID x 1000 ({})", "{:.3g}"),
    "kid_se_x1000": ("standard error of KID", "{:.2g}"),
    "density": ("density ({})", "{:.2f}"),
    "coverage": ("coverage ({})", "{:.1%}"),
    "mse_diversity": ("diversity", "{:.4f}"),
    "of_real": ("diversity (of real)", "{:.0%}"),
    "train_on_samples": ("train on samples", "{:.1%}"),
    "copied": ("copied", "{:.1%}"),
    "accuracy": ("accuracy", "{:.1%}"),  # from here on obedience and costs
    "clip_similarity": ("CLIP similarity", "{:.3f}"),
    "with_wrong_prompts": ("similarity, wrong prompts", "{:.3f}"),
    "sample_images_per_second": ("images/s", "{:.3g}"),
}
CURVES = "fid kid_x1000 density coverage of_real train_on_samples copied clip_similarity accuracy"
TEXT = "model kind asked extractor text_encoder least_class samples_crc32 judge_crc32".split()
MATRIX = 26  # classes that a matrix of asked against read has room for


@dataclass
class Config(evaluate.Config):
    """The flags: those of evaluate.py, for runs that are not measured yet."""


# ── What the runs saved ──


def measured_runs(config: Config) -> list[dict]:
    """Find all runs, and measure those that are not -> load_run() of each."""
    folders = evaluate.find_runs(config)
    new = [folder for folder in folders if not evaluate.is_measured(folder, config)]
    if new or not (config.out / config.name / "compare" / "real.npz").exists():
        evaluator = evaluate.Evaluator(config)
        for folder in new:
            say(f"measuring {folder}")
            evaluator.measure(folder, folders[folder])
        evaluator.save_real()
    runs = [load_run(folder) for folder in folders]
    rows = pd.concat([run["rows"] for run in runs])
    for column in ("extractor", "text_encoder", "reference", "judge_crc32"):
        names = rows[column].dropna().unique()
        if len(names) > 1:
            found = f"runs were measured with more than one {column}: {', '.join(map(str, names))}"
            raise UserError(f"{found}; first: python evaluate.py --dataset {config.dataset}")
    return runs


def load_run(folder: Path) -> dict:
    """-> folder, script, config (config.json), rows, asked. UserError if a file cannot be read.

    rows: a row for each kind of prompt and each scale, and for real images and noise, with all
    metrics, costs, and what IN_ROWS names. asked: attributes.csv, or no rows.
    """
    config, path = read_config(folder), folder / "metrics"
    script = config["script"]
    with reading(path, f"give the command of {script}.py again, then python evaluate.py {script}"):
        rows, *others = (read_table(path / f"{name}.csv") for name in evaluate.TABLES)
        for table in others:
            rows = rows.merge(table, "left")  # on the columns that both have
        costs = read_table(path / "performance.csv").drop(columns="device")
        costs = [costs.assign(kind=kind) for kind in ("trained", "unconditional")]
        rows = rows.merge(pd.concat(costs), "left", ["kind", "scale"])
        rows[["kid", "kid_se"]] *= 1000
        asked = pd.DataFrame(columns=["model", "scale", "seed", "kind", "asked"])
        if config.get("attributes"):
            asked = read_table(path / "attributes.csv")
    rows = rows.rename(columns={"kid": "kid_x1000", "kid_se": "kid_se_x1000"})
    rows = rows.assign(**{name: config.get(name) for name in IN_ROWS})
    floors = rows["scale"].isna()
    rows.loc[floors, ["train_steps", "batch_size", "git_revision", "device"]] = None
    asked["demand"] = asked["asked"].where(asked["kind"] == "one word", asked["kind"])
    return {"folder": folder, "script": script, "config": config, "rows": rows, "asked": asked}


def read_table(path: Path) -> pd.DataFrame:
    """A CSV file. Names such as 007 and null stay text; only empty cells are nan."""
    return pd.read_csv(path, dtype=dict.fromkeys(TEXT, str), keep_default_na=False, na_values=[""])


def choices(run: dict, *besides: str) -> str:
    """All choices that the seeds of one model share, except those named, as text."""
    names = {*run["config"]} - FREE - {*besides}
    return json.dumps({name: run["config"][name] for name in sorted(names)})


def scripts_here() -> list[str]:
    """The names of all models' scripts beside this file."""
    files, head = sorted(ROOT.glob("[!.]*.py")), re.compile(rb"^class \w+\(common\.Config\)", re.M)
    return [file.stem for file in files if file.is_file() and head.search(file.read_bytes())]


class Model:
    """A model in the pictures, which show the samples of its first run."""

    def __init__(self, run: dict):
        self.name, self.config, self.folder = run["script"], run["config"], run["folder"]
        self.guided, scales = "scales" in self.config, self.config.get("scales", [1.0])
        self.scale = min(scales, key=lambda scale: abs(scale - 2))  # of pictures with one scale
        self.caption = with_scale(self.name, self.guided, self.scale)
        self.samples = load_samples(self.folder / "images" / "samples.npz")
        judged = self.folder / "metrics" / "judged.npz"
        with reading(judged, f"delete it, then python evaluate.py {self.name}"):
            self.samples |= load_arrays(judged)
        # Samples whose prompts name the class alone, in trained phrasings; those at one scale.
        self.plain = np.isin(self.samples["kind"], ("trained", "unconditional"))
        self.shown = self.plain & (self.samples["scale"] == self.scale)
        self.conditioned, self.seed = self.samples["labels"][0] >= 0, self.config["seed"]


class Comparison:
    """The runs of a data set, and the numbers that the tables and figures show."""

    def __init__(self, runs: list[dict], out: Path):
        first, uses = {}, []
        for run in runs:
            one = first.setdefault(run["script"], run)
            uses.append(use_of(run, one, [x for x, use in zip(runs, uses) if use == "tables"]))
        rows, asked = (
            pd.concat([run[x].assign(use=use) for run, use in zip(runs, uses)], ignore_index=True)
            for x in ("rows", "asked")
        )
        floors, rows = rows[rows["scale"].isna()], rows.dropna(subset="scale")
        rows = rows.sort_values(["model", "scale"], kind="stable")
        self.floors = floors.drop_duplicates(["model", "n", "data_source", "image_count"])
        self.models = {name: Model(first[name]) for name in sorted(first)}
        self.guided = [name for name, model in self.models.items() if model.guided]
        self.classes = [*map(str, runs[0]["config"]["classes"])]
        self.rows = rows[rows["use"] == "tables"]  # a row for each model, kind, scale and seed
        self.plain = self.rows[self.rows["kind"] != "held-out"]
        self.asked = asked[asked["use"] == "tables"].sort_values(["model", "scale"], kind="stable")
        other_steps = rows[rows["use"] == "steps"]
        seeds = other_steps[["model", "seed"]].drop_duplicates()
        usual = self.plain.merge(seeds, on=["model", "seed"])
        self.steps = pd.concat([other_steps[other_steps["kind"] != "held-out"], usual])
        self.settings = settings_of(runs, uses, out)
        self.extractor = str(rows["extractor"].iloc[0])
        largest = self.floors.sort_values("n", kind="stable").drop_duplicates("model", keep="last")
        self.real, self.noise = (largest[largest["model"] == x] for x in ("real images", "noise"))

    def save_curves(self, path: Path, table: pd.DataFrame, xlabel: str) -> Path:
        """Save a panel for each of CURVES, see figures.save_curves()."""
        titles = {name: METRICS[name][0].format(self.extractor) for name in CURVES.split()}
        return figures.save_curves(path, table, xlabel, titles, self.real.iloc[0])


def use_of(run: dict, first: dict, earlier: list[dict]) -> str:
    """-> "tables": a seed of its model; "steps": a point on the curves of sampling steps; or "–".

    first: the first run of its script. earlier: the runs that are in the tables already.
    """
    seeds = [x["config"]["seed"] for x in earlier if x["script"] == run["script"]]
    seed, steps = (run["config"].get(name) for name in ("seed", "sample_steps"))
    if choices(run) == choices(first) and seed not in seeds:
        return "tables"
    other_steps = seed == first["config"]["seed"] and steps != first["config"].get("sample_steps")
    alike = choices(run, "sample_steps") == choices(first, "sample_steps")
    return "steps" if alike and other_steps else "–"


# ── Tables ──


def write(values: pd.Series, form: str = "{:.3g}") -> str:
    """Mean, and of several seeds the standard deviation."""
    values = values.dropna()
    if values.empty:
        return "–"
    form = form if abs(values.mean()) < 1000 else "{:,.0f}"
    spread = f" ± {form.format(values.std())}" if len(values) > 1 else ""
    return form.format(values.mean()) + spread


def settings_of(runs: list[dict], uses: list[str], out: Path) -> pd.DataFrame:
    """A row for each run: SETTINGS, and all choices in which runs of one script differ."""
    table = pd.DataFrame([run["config"] for run in runs]).map(lambda x: str(x)[:60])
    differ = (table.groupby("script").nunique(dropna=False) > 1).any()
    others = [name for name in differ[differ].index if name not in {*FREE, *SETTINGS}]
    table = table.reindex(columns=[*SETTINGS, *others], fill_value="–").replace("nan", "–")
    table.insert(0, "run", [run["folder"].relative_to(out).as_posix() for run in runs])
    table.insert(1, "used in", uses)
    return table


def accuracies(rows: pd.DataFrame) -> str:
    """Accuracy over all seeds, and its 95 % interval (Wilson)."""
    if rows["accuracy"].isna().all():
        return "–"
    low, high = metrics.wilson(rows["accuracy"].mean(), int(rows["n"].sum()))
    return f"{write(rows['accuracy'], '{:.1%}')} ({100 * low:.1f}–{100 * high:.1f})"


def scales_of(table: pd.DataFrame, guided: list[str]) -> pd.Series:
    """The column scale as text; – for models without guidance."""
    return table["scale"].map("{:g}".format).where(table["model"].isin(guided), "–")


def compared(it: Comparison) -> dict[str, pd.DataFrame]:
    """Two tables with a row for each model and guidance scale, and for real images and noise."""
    keys, columns = ["model", "scale"], {}
    groups = pd.concat([it.plain, it.real, it.noise]).groupby(keys, sort=False, dropna=False)
    head = pd.DataFrame({"n": groups["n"].first(), "seeds": groups["seed"].nunique()}).astype(str)
    for column, (title, form) in METRICS.items():
        columns[title.format(it.extractor)] = groups[column].agg(write, form=form)
    quality, others = [*columns][:9], [*columns][10:]
    held_out = it.rows[it.rows["kind"] == "held-out"].groupby(keys)[["accuracy", "n"]]
    columns["accuracy (95 %)"] = groups[["accuracy", "n"]].apply(accuracies)
    columns["held-out phrasings (95 %)"] = held_out.apply(accuracies)
    table = head.assign(**columns).fillna("–").reset_index()
    table["seeds"] = table["seeds"].where(table["model"].isin(it.models), "–")
    table["scale"] = scales_of(table, it.guided)
    head, right = [*keys, *head], [name for name in columns if "(95 %)" in name]
    return {"quality": table[head + quality], "obedience": table[head + right + others]}


def obeyed(it: Comparison) -> pd.DataFrame:
    """A row for each model and scale: shares as asked, in brackets the shares without asking."""
    keys, columns = ["model", "scale"], {}
    asked = it.asked[it.asked["kind"] != "nothing"]
    for share, floor, by, title in (
        ("as_asked", "without_asking", "demand", "{}"),
        ("everything", "everything_without_asking", "kind", "{}, and the class"),
    ):
        for demand, rows in asked.groupby(by, sort=False):
            seeds = rows.groupby([*keys, "seed"], sort=False)[[share, floor]].mean()
            groups = seeds.groupby(keys, sort=False)
            floors = groups[floor].mean().map(" ({:.0%})".format)
            columns[title.format(demand)] = groups[share].agg(write, form="{:.1%}") + floors
    seeds = asked.groupby([*keys, "seed"], sort=False)["accuracy"].mean()
    columns["the class"] = seeds.groupby(keys, sort=False).agg(write, form="{:.1%}")
    table = pd.DataFrame(columns).fillna("–").reset_index()
    return table.assign(scale=scales_of(table, it.guided))


# ── Figures ──


def save_figures(it: Comparison, folder: Path) -> dict[str, Path]:
    """-> the pictures of the report, by name."""
    use_plain_style()
    here, models, losses = folder / "compare", it.models, {}
    with reading(here / "real.npz", "delete it, and compare.py writes it again"):
        rows = {"real images": load_arrays(here / "real.npz")["images"]}
    for name, model in models.items():
        title = model.caption if model.conditioned else f"{model.caption} (unconditional)"
        rows[title] = model.samples["images"][model.shown]
        path = model.folder / "metrics" / "loss.csv"
        with reading(path, f"train {name} again with --fresh"):
            losses[name] = read_table(path).to_dict("records")
    saved = {"grid": figures.save_rows(here / "grid.png", it.classes, rows)}
    saved["loss"] = save_loss_plot(here / "loss.png", losses)
    for name, asked in it.asked.groupby("model"):
        path, shares = here / f"asked_{name}.png", asked[asked["seed"] == models[name].seed]
        saved[f"asked_{name}"] = figures.save_words(path, models[name], shares)
    for name, model in models.items():
        path = model.folder / "images" / "reconstructions.png"
        saved |= {f"reconstructions_{name}": path} if path.exists() else {}
    saved |= guidance_figures(it, folder / "cfg_scale") if it.guided else {}
    saved |= judged_figures(it, here)
    if it.real["fid"].notna().all():
        path = here / "speed.png"
        saved["speed"] = figures.save_speed(path, it.plain, it.guided, it.real.iloc[0])
    if len(it.steps):
        lines = it.steps["model"] + it.steps["scale"].map(", scale {:g}".format)
        steps = it.steps.assign(x=it.steps["sample_steps"], line=lines)
        saved["steps"] = it.save_curves(here / "steps.png", steps, "sampling steps")
    return saved


def guidance_figures(it: Comparison, folder: Path) -> dict[str, Path]:
    """Save the study of the guidance scale -> its pictures, by name."""
    table = it.plain[it.plain["model"].isin(it.guided)]
    groups = table.groupby(["model", "scale"], sort=False)
    means = groups[["n", *METRICS]].agg(["mean", "std"])
    means.columns = ["_".join(names) for names in means.columns]
    means = means.assign(seeds=groups["seed"].nunique(), extractor=it.extractor).reset_index()
    save_table(folder / "metrics" / "cfg_scale.csv", means, "%.5g")
    path = folder / "plots" / "scale.png"
    curves = table.assign(x=table["scale"], line=table["model"])
    saved = {"scale": it.save_curves(path, curves, "guidance scale")}
    asked = it.asked[it.asked["model"].isin(it.guided)]
    if len(asked):
        saved["obedience"] = figures.save_obedience(folder / "plots" / "obedience.png", asked)
    for name in it.guided:
        samples, plain, rows = it.models[name].samples, it.models[name].plain, {}
        for scale in sorted({*samples["scale"][plain].tolist()}):
            rows[f"scale {scale:g}"] = samples["images"][plain & (samples["scale"] == scale)]
        path = folder / "images" / f"{name}.png"
        saved[f"guidance_{name}"] = figures.save_rows(path, it.classes, rows)
    return saved


def judged_figures(it: Comparison, here: Path) -> dict[str, Path]:
    """Save what the judge read, and the nearest training images -> pictures, by name."""
    saved, matrices, lines, pairs = {}, {}, {}, {}
    for model in it.models.values():
        samples, shown = model.samples, model.shown
        if model.conditioned and len(it.classes) <= MATRIX:
            labels, read = samples["labels"][shown], samples["read"][shown]
            matrices[model.caption] = metrics.confusion(labels, read, len(it.classes))
        if "nearest" in samples:
            lines["held-out real images"] = samples["real_distances"][:, 0]
            lines[model.caption] = samples["distances"][shown, 0]
            rows, nearest = samples["nearest_rows"], samples["nearest"]
            pairs[model.caption] = samples["images"][rows][shown[rows]], nearest[shown[rows]]
    if matrices:
        saved["confusion"] = figures.save_confusion(here / "confusion.png", it.classes, matrices)
    if pairs:
        saved["nearest"] = figures.save_nearest(here / "nearest.png", pairs)
        saved["distances"] = figures.save_distances(here / "distances.png", lines)
    return saved


# ── Report ──


def save_numbers(it: Comparison, folder: Path) -> None:
    """rows.csv and asked.csv: the numbers of all tables and curves, a row for each seed."""
    save_table(folder / "rows.csv", pd.concat([it.rows, it.floors]).drop(columns="use"), "%.8g")
    (folder / "asked.csv").unlink(missing_ok=True)  # that of other runs
    if len(it.asked):
        save_table(folder / "asked.csv", it.asked.drop(columns=["demand", "use"]), "%.8g")


def html_of(table: pd.DataFrame) -> Markup:
    with pd.option_context("display.max_colwidth", None):  # otherwise long cells are cut
        return Markup(table.to_html(index=False, border=0))


def save_report(path: Path, it: Comparison, pictures: dict[str, Path], **facts) -> None:
    """Write report.html, which contains all its pictures."""
    loader = jinja2.FileSystemLoader(ROOT / "kit", encoding="utf-8")
    environment = jinja2.Environment(loader=loader, trim_blocks=True, autoescape=True)
    tables = compared(it) | {"settings": it.settings}
    tables |= {"obeyed": obeyed(it)} if len(it.asked) else {}
    films = {name: model.folder / "images" / "film.npz" for name, model in it.models.items()}
    html = environment.get_template("report.jinja").render(
        facts,
        models=it.models,
        tables={name: html_of(table) for name, table in tables.items()},
        pictures={x: figures.data_address(path.read_bytes()) for x, path in pictures.items()},
        films=figures.load_films(films),
    )
    save_file(path, lambda file: file.write(html.encode()))


def main(argv: list[str] | None = None) -> None:
    config = Config.parse(argv)
    it = Comparison(measured_runs(config), config.out)
    missing = [] if config.models else [name for name in scripts_here() if name not in it.models]
    folder = config.out / config.name
    save_numbers(it, folder / "compare" / "metrics")
    report = folder / "compare" / "report.html"
    pictures, facts = save_figures(it, folder), {"dataset": config.name, "typed": config.dataset}
    save_report(report, it, pictures, missing=missing, **facts)
    for name in missing:
        say(f"missing: {name} (python {name}.py --dataset {config.dataset})")
    print(report)


if __name__ == "__main__":
    main()
