"""All runs of a data set side by side, from what they saved and evaluate.py measured: figures, tables, a report.

Command   python compare.py --dataset mnist
Writes    results/mnist/compare/report.md and report.html (one file with all pictures in it), beside their figures;
          results/mnist/cfg_scale/{images,plots,metrics}: what the guidance scale does
Seeds     of one model become mean ± standard deviation: python a4_full.py --seed 1 --out results/seed1
Steps     runs of a4 that differ in --sample-steps alone become a curve: copy results/mnist/a4_full to
          results/steps50/mnist, then python a4_full.py --sample-steps 50 --out results/steps50
"""

import base64
import html
import os
import sys
import zlib
from pathlib import Path

import jinja2
import numpy as np
from matplotlib.figure import Figure

import common
import drawing
import evaluate
from drawing.report import TEMPLATE
from drawing.tables import read_table, table, write

MODELS = "a0_uncond", "a1_cond", "a2_clip", "a3_cfg", "a4_full", "cgan"
SAME = "seed sample_steps train_steps batch_size lr samples eta image_count data_source text_encoder_crc32".split()
SETTINGS = "script train_steps batch_size lr sample_steps eta seed data_source image_count text_encoder device".split()
METRICS = {  # column -> its name, 1 if more is better or -1, how it is written
    "fid": ("FID", -1, "{:.3g}"),
    "coverage": ("coverage", 1, "{:.1%}"),
    "precision": ("precision", 1, "{:.1%}"),
    "of_real": ("diversity (of real)", 1, "{:.0%}"),
    "clip_similarity": ("CLIP similarity", 1, "{:.3f}"),
    "accuracy": ("accuracy", 1, "{:.1%}"),
}


# ── What the runs saved ──


def load_run(folder: Path) -> dict:
    """A run's config, and a row for each of its sample files and floors, with speed where there is one."""
    config, measure = (
        drawing.read_config(folder),
        f"first: python evaluate.py --dataset {folder.parent.name}",
    )
    parts = [read_table(folder / "metrics" / f"{name}.csv", measure) for name in evaluate.TABLES]
    drawn = {zlib.crc32(path.read_bytes()) for path in folder.glob("images/samples_*.npz")}
    if (
        drawn != {row["samples_crc32"] for row in parts[0]} - {""}
        or len({len(part) for part in parts}) > 1
    ):
        raise common.UserError(f"{folder} has other samples than were measured; {measure}")
    performance = read_table(folder / "metrics" / "performance.csv", f"run {folder.name}.py again")
    speed = {row["scale"]: row for row in performance}
    rows = []
    for cut in zip(*parts):
        row = {k: v for part in cut for k, v in part.items()}
        row = {k.removesuffix(f"_{row['extractor']}"): v for k, v in row.items()}
        rows.append((speed.get(row["scale"], {}) if row["phrasings"] != "held out" else {}) | row)
    return {"folder": folder, "script": folder.name, "config": config, "rows": rows}


def same(run: dict, other: dict, besides: str = "seed") -> bool:
    """Whether two runs differ in nothing but this."""
    return all(run["config"].get(name) == other["config"].get(name) for name in {*SAME} - {besides})


def mean_rows(runs: list[dict]) -> dict[tuple, dict]:
    """(model, phrasings, scale) -> column -> array (seeds,): the same row of every run."""
    groups = {}
    for row in (row for run in runs for row in run["rows"] if row["scale"] != ""):
        group = groups.setdefault((row["model"], row["phrasings"], row["scale"]), {})
        for name, value in row.items():
            group.setdefault(name, []).append(value)
    return groups


# ── Figures ──


def save(path: Path, figure: Figure) -> Path:
    common.save_file(path, lambda file: figure.savefig(file, format="png", dpi=130))
    return path


def save_curves(
    path: Path, curves: dict[str, list[tuple]], real: dict, xlabel: str, fid: str
) -> Path:
    """curves: model -> (x, its row of mean_rows) each; bars: standard deviation of seeds; dashed: real images."""
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    for axes, (column, (name, _, _)) in zip(figure.subplots(2, 3).flat, METRICS.items()):
        for (model, points), color, marker in zip(
            curves.items(), drawing.COLORS * len(curves), "os^Dv*" * len(curves)
        ):
            x, values = [x for x, _ in points], [row[column] for _, row in points]
            spread = [np.std(v, ddof=1) if len(v) > 1 else 0 for v in values]
            axes.errorbar(
                x,
                [np.mean(v) for v in values],
                spread,
                label=model,
                color=color,
                marker=marker,
                capsize=3,
            )
        axes.axhline(np.mean(real[column]), color="grey", linestyle="--", label="real images")
        axes.set(xlabel=xlabel, ylabel=fid if column == "fid" else name)
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    return save(path, figure)


def save_speed(path: Path, rows: dict[tuple, dict], real: dict, fid: str) -> Path:
    """FID against images drawn per second, a point for every model and scale."""
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    for model, color, marker in zip(MODELS, drawing.COLORS, "os^Dv*"):
        points = {
            key[2]: row
            for key, row in rows.items()
            if key[0] == model and "sample_images_per_second" in row
        }
        xy = [[row["sample_images_per_second"][-1], np.mean(row["fid"])] for row in points.values()]
        if xy:
            axes.plot(*np.transpose(xy), marker, color=color, label=model, markersize=8)
        for scale, point in zip(points if len(points) > 1 else (), xy):
            axes.annotate(f"{scale:g}", point, (5, 5), textcoords="offset points", fontsize=8)
    axes.axhline(np.mean(real["fid"]), color="grey", linestyle="--", label="real images")
    axes.set(
        xlabel="images drawn per second (numbers: guidance scale)",
        ylabel=fid,
        xscale="log",
        yscale="log",
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return save(path, figure)


def save_rows(path: Path, names: list[str], files: dict[str, Path]) -> Path:
    """Images of every file, a row each, beside a caption: two of each class or one, at most 26 of them."""
    arrays = {caption: drawing.load_samples(file) for caption, file in files.items()}
    n = min(len(labels) for _, labels, _ in arrays.values())
    shown = (
        np.arange(min(2 * len(names), n))
        if len(names) <= 13
        else drawing.shown_classes(len(names), n)
    )
    captions = [
        name + " (asked for nothing)" * bool(labels[0] < 0)
        for name, (_, labels, _) in arrays.items()
    ]
    pixels = np.concatenate([images[shown] for images, _, _ in arrays.values()])
    title = f"{len(shown)} of {len(names)} classes" * (len(shown) < len(names))
    drawing.save_grid(
        path,
        pixels,
        len(shown),
        title,
        [names[i % len(names)] for i in shown],
        captions,
        inches=0.35,
    )
    return path


# ── Tables and words ──


def compared(
    rows: dict[tuple, dict], models: tuple, fid: str, floors: dict[str, dict]
) -> list[dict]:
    """A row for each model and guidance scale, then what real images and noise score."""
    keys = [
        key for model in models for key in sorted(rows) if key[0] == model and key[1] != "held out"
    ]
    picked = [
        (key[0], f"{key[2]:g}" * (not common.meaningless(key[0], "scale")), key, rows[key])
        for key in keys
    ]
    result = []
    for name, scale, key, row in picked + [(name, "", None, row) for name, row in floors.items()]:
        new = rows.get((key[0], "held out", key[2]), {}) if key else {}
        seeds = str(len(row["n"])) if key else "–"
        cells = {"model": name, "scale": scale or "–", "n": f"{row['n'][0]:.0f}", "seeds": seeds}
        cells |= {
            fid if c == "fid" else title: write(row[c], form)
            for c, (title, _, form) in METRICS.items()
        }
        cells["similarity, wrong prompts"] = write(row["with_wrong_prompts"], "{:.3f}")
        count = f", n = {new['n'][0]:.0f}" if new else ""
        cells["new phrasings"] = write(new.get("accuracy"), "{:.1%}") + count
        cells["images/s"] = write(
            row.get("sample_images_per_second", [])[-1:]
        )  # load, not the seed, moves it
        cells["parameters"] = f"{row['parameters'][0]:,.0f}" if "parameters" in row else "–"
        result.append(cells)
    return result


def verdict(model: str, points: list[tuple], fid: str) -> str:
    """Which guidance scale is best at what, from the numbers."""
    best = {}
    for column, (name, sign, form) in METRICS.items():
        values = [(sign * float(f"{np.mean(row[column]):.3g}"), w) for w, row in points]
        top = max(value for value, _ in values)
        winners = " and ".join(f"{w:g}" for value, w in values if value == top)
        best.setdefault(winners, []).append(
            f"{fid if column == 'fid' else name} ({form.format(abs(top))})"
        )
    seeds, scales = min(len(row["n"]) for _, row in points), ", ".join(f"{w:g}" for w, _ in points)
    parts = [f"scale {winners} is best in {', '.join(what)}" for winners, what in best.items()]
    return f"{model}, of the scales {scales} ({seeds} seed{'s' * (seeds > 1)}): {'; '.join(parts)}."


# ── The report ──


def html_table(rows: list[dict]) -> str:
    lines = [f"<th>{'<th>'.join(map(html.escape, rows[0]))}"]
    lines += [f"<td>{'<td>'.join(map(html.escape, row.values()))}" for row in rows]
    return f"<div><table><tr>{'<tr>'.join(lines)}</table></div>"


def save_report(folder: Path, figures: dict[str, Path], **facts) -> None:
    """report.md, whose pictures are files beside it, and report.html, which holds them itself."""
    template = jinja2.Environment(trim_blocks=True).from_string(TEMPLATE)
    links = {
        name: f"![{name}]({Path(os.path.relpath(path, folder)).as_posix()})"
        for name, path in figures.items()
    }
    markdown = {"h": lambda text, level: f"{'#' * level} {text}", "p": str, "figure": links.get}
    text = template.render(facts, **markdown, table=table)
    common.save_file(folder / "report.md", lambda file: file.write(text.encode()))
    marked = {"h": lambda text, level: f"<h{level}>{html.escape(text)}</h{level}>"}
    data = {name: base64.b64encode(path.read_bytes()).decode() for name, path in figures.items()}
    marked["figure"] = lambda name: f'<img alt="{name}" src="data:image/png;base64,{data[name]}">'
    marked["p"] = lambda text: f"<p>{html.escape(text)}</p>"
    page = template.render(facts, **marked, table=html_table, page=True)
    common.save_file(folder / "report.html", lambda file: file.write(page.encode()))


def main(argv: list[str] | None = None) -> None:
    args = evaluate.parser("compare.py", __doc__).parse_args(argv)
    runs, folder = [load_run(path) for path in evaluate.find_runs(args)], args.out / args.dataset
    measured, here, study = (
        [row for run in runs for row in run["rows"]],
        folder / "compare",
        folder / "cfg_scale",
    )
    for column in ("extractor", "text_encoder", "reference"):
        if len(names := {str(row[column]) for row in measured}) > 1:
            again = f"measure all with one: python evaluate.py --dataset {args.dataset}"
            raise common.UserError(
                f"runs were measured with more than one {column}: {', '.join(names)}; {again}"
            )
    fid, first = f"FID ({measured[0]['extractor']})", {run["script"]: run for run in reversed(runs)}
    alike = {
        (x["script"], x["config"]["seed"]): x for x in reversed(runs) if same(x, first[x["script"]])
    }.values()
    steps = [
        run
        for run in runs
        if run["script"] == "a4_full" and same(run, first["a4_full"], "sample_steps")
    ]
    rows, models = mean_rows(alike), [name for name in MODELS if name in first]
    floors = sorted((row for row in measured if row["scale"] == ""), key=lambda row: row["n"])
    floors = {
        row["model"]: {name: [value] for name, value in row.items()} for row in floors
    }  # of the largest n
    real, curves = floors["real images"], {}
    for key in sorted(rows):
        if not common.meaningless(key[0], "scale") and key[1] == "trained":
            curves.setdefault(key[0], []).append((key[2], rows[key]))
    pictured = {"real images": here / "real.npz"}
    for model in models:
        files = sorted(
            first[model]["folder"].glob("images/samples_w*.npz"),
            key=lambda path: "_w2.0" not in path.name,
        )
        pictured[drawing.with_scale(model, model, float(files[0].stem.split("_w")[1]))] = files[0]
    losses = {model: first[model]["folder"] / "metrics" / "loss.csv" for model in models}
    figures = {
        "grid": save_rows(here / "grid.png", args.classes, pictured),
        "loss": drawing.save_loss_plot(here / "loss.png", losses),
        "speed": save_speed(here / "speed.png", rows, real, fid),
    }
    for model, points in curves.items():
        files = {
            f"scale {w:g}": first[model]["folder"] / "images" / f"samples_w{w}.npz"
            for w, _ in points
        }
        files = {
            caption: path for caption, path in files.items() if path.exists()
        }  # a scale of another seed alone
        figures[model] = save_rows(study / "images" / f"{model}.png", args.classes, files)
    if curves:
        figures["scale"] = save_curves(
            study / "plots" / "scale.png", curves, real, "guidance scale", fid
        )
        forms = {
            "mean": np.mean,
            "std": lambda values: np.std(values, ddof=1) if len(values) > 1 else np.nan,
        }
        common.save_csv(study / "metrics" / "cfg_scale.csv", [
            {"model": m, "scale": w, "n": int(row["n"][0]), "seeds": len(row["n"]), "extractor": row["extractor"][0]}
            | {f"{column}_{name}": f"{form(row[column]):.5g}" for column in METRICS for name, form in forms.items()}
            for m, points in curves.items() for w, row in points
        ])  # fmt: skip
    by_steps = {}
    for run in sorted(steps, key=lambda run: run["config"]["sample_steps"]):
        for (model, phrasings, w), row in mean_rows([run]).items():
            if phrasings == "trained":
                by_steps.setdefault(f"{model}, scale {w:g}", []).append(
                    (run["config"]["sample_steps"], row)
                )
    by_steps = {line: points for line, points in by_steps.items() if len(points) > 1}
    if by_steps:
        figures["steps"] = save_curves(here / "steps.png", by_steps, real, "sampling steps", fid)
    missing = [
        f"{x} (python {x}.py --dataset {args.dataset})"
        for x in MODELS
        if x not in first and not args.models
    ]
    save_report(
        here, figures, dataset=args.dataset, classes=args.classes, missing=missing, fid=fid, guided=[*curves],
        write=write, steps=bool(by_steps), real=real, noise=floors["noise"],
        settings=[{k: str(first[x]["config"].get(k)).replace("None", "–") for k in SETTINGS} for x in models],
        apart=[str(run["folder"]) for run in runs if run not in alike and run not in steps],
        comparison=compared(rows, ("cgan", "a0_uncond", "a1_cond", "a4_full"), fid, floors),
        ablation=compared(rows, MODELS[:5], fid, floors), verdicts=[verdict(m, x, fid) for m, x in curves.items()],
    )  # fmt: skip
    sys.stderr.writelines(f"missing: {text}\n" for text in missing)
    print(here / "report.html")


if __name__ == "__main__":
    common.cli(main)
