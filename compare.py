"""Compares all runs of a data set: figures, tables, and a report of one file.

Command   python compare.py --dataset mnist        measures what evaluate.py has not, first
Writes    results/mnist/compare/report.html, which contains all pictures, and the pictures beside it
          results/mnist/compare/metrics/rows.csv and asked.csv: all numbers, a row for each seed
          results/mnist/cfg_scale/: what the guidance scale does
Seeds     become mean ± standard deviation: python a4_full.py --seed 1 --out results/seed1
Steps     runs that differ in --sample-steps alone become a curve: copy results/mnist/a4_full to
          results/steps50/mnist, then python a4_full.py --sample-steps 50 --out results/steps50
"""

import base64
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd

import evaluate
from kit import figures, metrics
from kit.files import ROOT, UserError, load_arrays, reading, save_file, save_table, say
from kit.pictures import save_loss_plot, use_plain_style, with_scale
from kit.run import read_config
from kit.samples import PLAIN, load_samples

FREE = "seed dataset out data_dir device fresh prompt n scale scales clip description git_revision"
FREE = {*FREE.split(), "python", "packages", "text_encoder"}  # text_encoder_crc32 identifies it
SETTINGS = "seed train_steps batch_size lr widths parameters sample_steps eta data_source"
SETTINGS = [*SETTINGS.split(), "image_count", "text_encoder", "device"]
IN_ROWS = ["train_steps", "batch_size", "data_source", "image_count", "git_revision", "device"]
METRICS = {  # column -> its title, how it is written; {}: the extractor
    "fid": ("FID ({}) ↓", "{:.3g}"),
    "fd_pixels": ("pixel distance ↓", "{:.3g}"),
    "fd_style": ("style distance ↓", "{:.3g}"),
    "fid_balanced": ("FID, classes balanced ↓", "{:.3g}"),
    "kid_x1000": ("KID x 1000 ({}) ↓", "{:.3g}"),
    "kid_se_x1000": ("standard error of KID", "{:.2g}"),
    "density": ("density ({})", "{:.2f}"),
    "coverage": ("coverage ({}) ↑", "{:.1%}"),
    "mse_diversity": ("diversity", "{:.4f}"),
    "of_real": ("diversity (of real)", "{:.0%}"),
    "train_on_samples": ("train on samples ↑", "{:.1%}"),
    "copied": ("copied", "{:.1%}"),
    "nearer_training": ("nearer to training", "{:.0%}"),
    "accuracy": ("accuracy ↑", "{:.1%}"),  # from here on obedience and costs
    "clip_similarity": ("CLIP similarity", "{:.3f}"),
    "with_wrong_prompts": ("similarity, wrong prompts", "{:.3f}"),
    "sample_images_per_second": ("images/s ↑", "{:.3g}"),
}
CURVES = "fid fd_pixels fd_style coverage of_real train_on_samples copied clip_similarity accuracy"
TEXT = "model kind asked extractor text_encoder class_mix samples_crc32 judge_crc32"
KEYS = ["model", "at"]  # of a row of a table; at: the guidance scale as text
EXTRA = ["at", "guided", "use"]  # columns that are not saved
AND_CLASS = ", and the class"


@dataclass
class Config(evaluate.Config):
    """The flags: those of evaluate.py, for runs that are not measured yet."""


def measured_runs(config: Config) -> list[dict]:
    """Find all runs, and measure those that are not -> load_run() of each."""
    folders = evaluate.find_runs(config)
    new = [folder for folder in folders if not evaluate.is_measured(folder, config)]
    if new or not (config.out / config.name / "compare" / "real.npz").exists():
        evaluator = evaluate.Evaluator(config)
        for folder in new:
            say(f"measuring {folder}")
            evaluator.measure(folder, folders[folder])
        evaluate.save_real(evaluator)
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

    rows: of each kind and scale, real images and noise, all metrics, costs, IN_ROWS. asked: words.
    """
    config, path = read_config(folder), folder / "metrics"
    script = config["script"]
    with reading(path, f"give the command of {script}.py again, then python evaluate.py {script}"):
        rows, *others = (read_table(path / f"{name}.csv") for name in evaluate.TABLES)
        for table in others:
            rows = rows.merge(table, "left")  # on the columns that both have
        costs = read_table(path / "performance.csv").drop(columns="device")
        costs = pd.concat([costs.assign(kind=kind) for kind in PLAIN])
        rows = rows.merge(costs, "left", ["kind", "scale"])
        rows[["kid", "kid_se"]] *= 1000
        asked = pd.DataFrame(columns=["model", "scale", "seed", "kind", "asked"])
        if config.get("attributes"):
            asked = read_table(path / "attributes.csv")
    rows = rows.rename(columns={"kid": "kid_x1000", "kid_se": "kid_se_x1000"})
    rows = rows.assign(**{name: config.get(name) for name in IN_ROWS})
    rows.loc[rows["scale"].isna(), ["train_steps", "batch_size", "git_revision", "device"]] = None
    asked["demand"] = asked["asked"].where(asked["kind"] == "one word", asked["kind"])
    return {"folder": folder, "script": script, "config": config, "rows": rows, "asked": asked}


def read_table(path: Path) -> pd.DataFrame:
    """A CSV file. Names such as 007 and null stay text; only empty cells are nan."""
    texts = dict.fromkeys(TEXT.split(), str)
    return pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])


def choices(run: dict, **others) -> dict:
    """All choices that the seeds of one model share; others replace some of them."""
    return {name: x for name, x in run["config"].items() if name not in FREE} | others


def sort_out(runs: list[dict]) -> dict[str, dict]:
    """Set the use of each run -> the first run of each script.

    use: "tables" for a seed of its model, "steps" for other sampling steps, "–" for all others
    """
    first, seeds = {}, set()
    for run in runs:
        one, seed = first.setdefault(run["script"], run), (run["script"], run["config"]["seed"])
        run["use"] = "–"
        if choices(run) == choices(one):
            run["use"] = "–" if seed in seeds else "tables"
            seeds.add(seed)
        elif choices(run, sample_steps=0) == choices(one, sample_steps=0):
            run["use"] = "steps"
    return dict(sorted(first.items()))


def joined(runs: list[dict], name: str) -> pd.DataFrame:
    """The table of this name of all runs in use, with the columns EXTRA."""
    used = [run for run in runs if run["use"] != "–"]
    tables = [x[name].assign(use=x["use"], guided="scales" in x["config"]) for x in used]
    table = pd.concat(tables, ignore_index=True).sort_values(["model", "scale"], kind="stable")
    guided = table["guided"] & table["scale"].notna()
    return table.assign(at=table["scale"].map("{:g}".format).where(guided, "–"))


def samples_of(run: dict) -> dict:
    """samples.npz and judged.npz; at: the scale that is shown; shown: which images; caption."""
    folder, config, name = run["folder"], run["config"], run["script"]
    scale = min(config.get("scales", [1.0]), key=lambda scale: abs(scale - 2))
    samples = load_samples(folder / "images" / "samples.npz")
    judged = folder / "metrics" / "judged.npz"
    with reading(judged, f"delete it, then python evaluate.py {name}"):
        samples |= load_arrays(judged)
    shown = np.isin(samples["kind"], PLAIN) & (samples["scale"] == scale)
    caption = with_scale(name, "scales" in config, scale)
    return samples | {"at": scale, "shown": shown, "caption": caption}


def write(values: pd.Series, form: str = "{:.3g}") -> str:
    """Mean, and of several seeds the standard deviation."""
    values = values.dropna()
    if values.empty:
        return "–"
    form = form if abs(values.mean()) < 1000 else "{:,.0f}"
    spread = f" ± {form.format(values.std())}" if len(values) > 1 else ""
    return form.format(values.mean()) + spread


def compared(rows: pd.DataFrame, baselines: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Two tables with a row for each model and guidance scale, and for real images and noise."""
    plain, held_out = rows[rows["kind"] != "held-out"], rows[rows["kind"] == "held-out"]
    baselines = baselines.drop_duplicates("model").assign(seed=np.nan)
    groups = pd.concat([plain, baselines]).groupby(KEYS, sort=False)
    table = pd.DataFrame({"n": groups["n"].first().astype(str), "seeds": groups["seed"].nunique()})
    table["seeds"] = table["seeds"].replace(0, "–")
    for column, (title, form) in METRICS.items():
        title = title.format(rows["extractor"].iloc[0])
        table[title] = groups[column].agg(write, form=form)
    unseen = held_out.groupby(KEYS)["accuracy"].agg(write, form="{:.1%}")
    table.insert([*table].index("accuracy ↑") + 1, "accuracy, held-out phrasings ↑", unseen)
    table = table.fillna("–").reset_index().rename(columns={"at": "scale"})
    head, first = [*table][:4], [*table].index("accuracy ↑")
    return {"quality": table.iloc[:, :first], "obedience": table[head + [*table][first:]]}


def shares_of(asked: pd.DataFrame) -> pd.DataFrame:
    """A row for each scale, seed and demand: the share as asked, and the share without asking."""
    asked = asked[asked["kind"] != "nothing"]
    both = asked.assign(demand=asked["kind"] + AND_CLASS, as_asked=asked["everything"])
    both["without_asking"] = both["everything_without_asking"]
    right = asked.assign(demand="the class", as_asked=asked["accuracy"], without_asking=np.nan)
    keys = [*KEYS, "scale", "seed", "demand"]
    groups = pd.concat([asked, both, right]).groupby(keys, sort=False)
    return groups[["as_asked", "without_asking"]].mean().reset_index()


def obeyed(shares: pd.DataFrame) -> pd.DataFrame:
    """A row for each model and scale: shares as asked, in brackets the shares without asking."""
    groups = shares.groupby([*KEYS, "demand"], sort=False)
    baselines = groups["without_asking"].mean().map(" ({:.0%})".format, na_action="ignore")
    texts = groups["as_asked"].agg(write, form="{:.1%}") + baselines.fillna("")
    table = texts.unstack(sort=False).fillna("–").rename_axis(columns=None)
    return table.reset_index().rename(columns={"at": "scale"})


def settings_of(runs: list[dict], out: Path) -> pd.DataFrame:
    """A row for each run: SETTINGS, and all choices in which runs of one script differ."""
    table = pd.DataFrame([run["config"] for run in runs]).map(lambda x: str(x)[:49])
    differ = (table.groupby("script").nunique(dropna=False) > 1).any()
    others = [name for name in differ[differ].index if name not in {*FREE, *SETTINGS}]
    table = table.reindex(columns=[*SETTINGS, *others], fill_value="–").replace("nan", "–")
    table.insert(0, "run", [run["folder"].relative_to(out).as_posix() for run in runs])
    table.insert(1, "used in", [run["use"] for run in runs])
    return table


def save_images(models: dict[str, dict], here: Path) -> dict[str, Path]:
    """Save pictures of the first run of each model -> the pictures, by name."""
    with reading(here / "real.npz", "delete it, and compare.py writes it again"):
        rows = {"real images": load_arrays(here / "real.npz")["images"]}
    losses, matrices, pairs, saved = {}, {}, {}, {}
    for name, run in models.items():
        samples, classes = samples_of(run), run["config"]["classes"]
        shown, caption = samples["shown"], samples["caption"]
        images, labels = samples["images"], samples["labels"][shown]
        rows[caption] = images[shown]
        losses[name] = read_table(run["folder"] / "metrics" / "loss.csv").to_dict("records")
        if labels[0] >= 0 and len(classes) <= 26:  # a matrix has no room for more
            matrices[caption] = metrics.confusion(labels, samples["read"][shown], len(classes))
        if "nearest" in samples:
            chosen = shown[samples["nearest_rows"]]
            pairs[caption] = images[samples["nearest_rows"][chosen]]
            pairs[f"nearest in training, {name}"] = samples["nearest"][chosen]
        if len(run["asked"]):
            saved[f"asked_{name}"] = figures.save_words(here / f"asked_{name}.png", run, samples)
        path = run["folder"] / "images" / "reconstructions.png"
        saved |= {f"reconstructions_{name}": path} if path.exists() else {}
    saved["loss"] = save_loss_plot(here / "loss.png", losses, figures.colors())
    saved["grid"] = figures.save_rows(here / "grid.png", classes, rows)
    if matrices:
        saved["confusion"] = figures.save_confusion(here / "confusion.png", classes, matrices)
    if pairs:
        saved["nearest"] = figures.save_rows(here / "nearest.png", classes, pairs)
    return saved


def save_curves(rows: pd.DataFrame, real: pd.Series, folder: Path) -> dict[str, Path]:
    """Save the curves of the metrics -> the pictures, by name. real: those of real images."""
    titles = {name: METRICS[name][0].format(real["extractor"]) for name in CURVES.split()}
    rows, saved = rows[rows["kind"] != "held-out"], {}
    usual = rows[rows["use"] == "tables"]
    guided = usual[usual["guided"]]
    if len(guided):
        path, x = folder / "cfg_scale/plots/scale.png", guided["scale"].rename("guidance scale")
        saved["scale"] = figures.save_curves(path, guided, guided["model"], x, titles, real)
    if not np.isnan(real["fid"]):
        saved["speed"] = figures.save_speed(folder / "compare" / "speed.png", rows, titles, real)
    lines = rows.groupby(["model", "scale", "seed"])
    steps = rows[lines["sample_steps"].transform("nunique") > 1]
    if len(steps):
        path, x = folder / "compare" / "steps.png", steps["sample_steps"].rename("sampling steps")
        lines = steps["model"] + steps["scale"].map(", scale {:g}".format)
        saved["steps"] = figures.save_curves(path, steps, lines, x, titles, real)
    return saved


def save_report(path: Path, tables: dict, pictures: dict[str, Path], films, **facts) -> None:
    """Write report.html, which contains all its pictures."""
    loader = jinja2.FileSystemLoader(ROOT / "kit")
    environment = jinja2.Environment(loader=loader, trim_blocks=True, autoescape=True)
    html = environment.get_template("report.jinja").render(
        facts,
        tables={name: table.to_html(index=False, border=0) for name, table in tables.items()},
        pictures={x: base64.b64encode(path.read_bytes()).decode() for x, path in pictures.items()},
        films=figures.load_films(films),
    )
    save_file(path, lambda file: file.write(html.encode()))


def main(argv: list[str] | None = None) -> None:
    config = Config.parse(argv)
    use_plain_style()
    runs, folder = measured_runs(config), config.out / config.name
    here, models = folder / "compare", sort_out(runs)
    curves, asked = joined(runs, "rows"), joined(runs, "asked")
    baselines = curves[curves["scale"].isna()].sort_values(["model", "n"], ascending=False)
    baselines = baselines.drop_duplicates(["model", "n", "data_source", "image_count"])
    curves, asked = curves.dropna(subset="scale"), asked[asked["use"] == "tables"]
    rows = curves[curves["use"] == "tables"]
    tables = compared(rows, baselines) | {"settings": settings_of(runs, config.out)}
    pictures = save_images(models, here) | save_curves(curves, baselines.iloc[0], folder)
    both = pd.concat([rows, baselines]).drop(columns=EXTRA)
    save_table(here / "metrics" / "rows.csv", both, "%.8g")
    (here / "metrics" / "asked.csv").unlink(missing_ok=True)  # that of other runs
    if len(asked):
        asked, shares = asked.drop(columns=[*EXTRA, "demand"]), shares_of(asked)
        save_table(here / "metrics" / "asked.csv", asked, "%.8g")
        tables["obeyed"] = obeyed(shares)
        guided = shares[(shares["at"] != "–") & ~shares["demand"].str.endswith(AND_CLASS)]
        if len(guided):
            path = folder / "cfg_scale" / "plots" / "obedience.png"
            pictures["obedience"] = figures.save_obedience(path, guided)
    missing = [] if config.models else [x for x in figures.colors() if x not in models]
    films = {name: model["folder"] / "images" / "film.npz" for name, model in models.items()}
    facts = {"models": models, "missing": missing, "dataset": config.name, "typed": config.dataset}
    save_report(here / "report.html", tables, pictures, films, **facts)
    for name in missing:
        say(f"missing: {name} (python {name}.py --dataset {config.dataset})")
    print(here / "report.html")


if __name__ == "__main__":
    main()
