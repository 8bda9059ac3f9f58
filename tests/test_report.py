"""The report of compare.py, made from runs that are written here: its tables, figures, sliders."""

import html
import itertools
import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

import compare
import evaluate
from kit.captions import combinations, words_of
from kit.data import embedded_mnist
from kit.files import UserError, load_arrays, save_arrays, save_table
from kit.words import DIGITS

WORDS = {"ink": {"thin": 0.1, "thick": 0.2}, "slant": {"leaning left": -5, "leaning right": 9}}
PAIRS = [tuple(pair) for pair in WORDS.values()]
N = 40  # images of a group
NUMBER = itertools.count(2)  # all measures differ


def write_run(out, script, seed=0, **choices):
    """Write a run as its script and evaluate.py leave it -> its folder."""
    folder, rng = out / "mnist" / script, np.random.default_rng([seed, len(script)])
    guided, text = script.startswith(("a3", "a4", "a6")), script != "a0_uncond"
    scales = [1.0, 2.0, 3.0] if guided else [1.0]
    kinds = [("trained" if text else "unconditional", scale) for scale in scales]
    kinds += [("held-out", scales[-1])] * text
    config = {"script": script, "family": "diffusion", "seed": seed, "classes": DIGITS,
              "description": f"{script}: <one> idea.", "emnist_split": "letters",
              "per_class": 5000, "train_steps": 100, "batch_size": 64, "sample_steps": 18,
              "data_source": "embedded", "image_count": 5000, "device": "cpu"}  # fmt: skip
    config |= {"scales": scales} if guided else {}
    config |= ({"attributes": WORDS, "text_encoder": "tiny"} if text else {}) | choices
    (folder / "metrics").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_samples(folder, rng, kinds, scales * text)
    write_scores(folder, kinds, scales * text, seed)
    costs = {"device": "cpu", "sample_images_per_second": 10.5 * len(script)}
    costs |= {"parameters": 12345, "train_seconds": 9.5, "sample_steps": config["sample_steps"]}
    save_table(folder / "metrics" / "performance.csv", [{**costs, "scale": x} for x in scales])
    loss = "generator_loss" if script == "cgan" else "loss"
    save_table(folder / "metrics" / "loss.csv", [{"step": i, loss: 1 / i} for i in (20, 50, 100)])
    if guided:
        film = {"frames": rng.integers(0, 256, (2, 4, 2, 3, 28, 28), np.uint8)}
        film |= {"prompts": ["zero", "a <2>"], "scales": [0.0, 1.0, 2.0, 5.0], "moments": [*"abc"]}
        save_arrays(folder / "images" / "film.npz", film)
    if script == "cvae":
        shutil.copy(compare.ROOT / "assets" / "reconstructions.png", folder / "images")
    return folder


def write_samples(folder, rng, kinds, scales):
    """samples.npz of real digits, and judged.npz, in which one image of ten is read wrong."""
    pixels, labels = (array.numpy() for array in embedded_mnist("train"))
    groups = [(kind, scale, (0, 0)) for kind, scale in kinds]
    groups += [("words", scale, asked) for scale in scales for asked in combinations(2)]
    rows = [(i % 10 if scales else -1, *group) for group in groups for i in range(N)]
    table = dict(zip(("labels", "kind", "scale", "asked"), map(np.array, zip(*rows))))
    wanted = np.maximum(table["labels"], 0)
    images = pixels[[rng.choice(np.flatnonzero(labels == label)) for label in wanted]]
    save_arrays(folder / "images" / "samples.npz", table | {"images": images})
    shown = np.flatnonzero(np.isin(table["kind"], ("trained", "unconditional")))
    judged = {"read": np.where(rng.random(len(wanted)) < 0.1, 0, wanted), "nearest_rows": shown}
    save_arrays(folder / "metrics" / "judged.npz", judged | {"nearest": images[shown][:, ::-1]})


def write_scores(folder, kinds, scales, seed):
    """The tables of evaluate.py: all measures differ, and of words they are the same."""
    rows = [(folder.name, *group) for group in kinds]
    rows += [(name, "trained", np.nan) for name in ("real images", "noise")]
    table = pd.DataFrame(rows, columns=["model", "kind", "scale"])
    for name in " ".join(evaluate.TABLES.values()).split():
        table[name] = [round(0.1 + next(NUMBER) ** 0.5 % 1, 3) for _ in rows]
    table = table.assign(n=N, seed=seed, extractor="judge", text_encoder="tiny", reference=2500)
    table = table.assign(judge_crc32="00123456", class_mix="null", accuracy=0.9)
    for name, columns in evaluate.TABLES.items():
        save_table(folder / "metrics" / f"{name}.csv", table[f"{evaluate.KEYS} {columns}".split()])
    kinds = ["nothing", *["one word"] * 4, *["said pair"] * 3, "held-out pair"]
    asked = [", ".join(words_of(PAIRS, x)) or "nothing" for x in combinations(2)]
    table = pd.DataFrame(zip(kinds, asked), columns=["kind", "asked"])
    table = pd.DataFrame({"scale": scales}).merge(table, "cross")
    table = table.assign(model=folder.name, seed=seed, n=N, as_asked=0.75, without_asking=0.25)
    table = table.assign(everything=0.5, everything_without_asking=0.125, accuracy=0.9)
    save_table(folder / "metrics" / "attributes.csv", table)


def compared(out, monkeypatch):
    """Compare the runs in out -> the report."""
    monkeypatch.setattr(evaluate, "is_measured", lambda folder, config: True)
    folder = out / "mnist" / "compare"
    save_arrays(folder / "real.npz", {"images": embedded_mnist("test")[0].numpy()[:260]})
    compare.main(["--out", str(out)])
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """Five models; a4_full with two seeds, with other sampling steps, and with other widths."""
    out = tmp_path_factory.mktemp("reported") / "results"
    for script in ("a0_uncond", "a4_full", "a6_mine", "cgan", "cvae"):
        write_run(out, script)
    write_run(out / "seed1", "a4_full", 1)
    write_run(out / "steps50", "a4_full", sample_steps=50)
    write_run(out / "wide", "a4_full", 2, widths=[64, 128])
    with pytest.MonkeyPatch.context() as monkeypatch:
        return out, compared(out, monkeypatch)


def test_csv_files_have_each_seed_and_tables_their_mean_and_other_settings_apart(reported):
    metrics, tables = reported[0] / "mnist" / "compare" / "metrics", []
    rows = compare.read_table(metrics / "rows.csv")
    run = rows[(rows["model"] == "a4_full") & (rows["scale"] == 3)]
    assert {*zip(run["kind"], run["seed"])} == {*itertools.product(("held-out", "trained"), (0, 1))}
    assert sorted(run["sample_images_per_second"].fillna(0)) == [0, 0, 73.5, 73.5]
    assert {*rows.loc[rows["scale"].isna(), "model"]} == {"real images", "noise"}
    assert {*rows["judge_crc32"]} == {"00123456"} and "null" in {*rows["class_mix"]}
    assert len(pd.read_csv(metrics / "asked.csv")) == 9 * (3 * 3 + 2)
    for table in re.findall("<table.*?</table>", html.unescape(reported[1]), re.S):
        head, lines = re.findall("<th>(.*?)</th>", table), table.split("<tr>")[1:]
        tables.append([dict(zip(head, re.findall("<td>(.*?)</td>", x))) for x in lines])
    quality, obedience, words, settings = tables
    models = "a0_uncond – 1|a4_full 1 2|a4_full 2 2|a4_full 3 2|a6_mine 1 1|a6_mine 2 1|a6_mine 3 1"
    models += "|cgan – 1|cvae – 1|real images – –|noise – –"
    assert [f"{x['model']} {x['scale']} {x['seeds']}" for x in quality] == models.split("|")
    seeds = rows.query("model == 'a4_full' and kind == 'trained' and scale == 2")["fid"]
    assert quality[2]["FID (judge) ↓"] == f"{seeds.mean():.3g} ± {seeds.std():.3g}"
    assert obedience[2]["accuracy ↑"] == "90.0% ± 0.0%"
    assert [row["accuracy, held-out phrasings ↑"][:5] for row in obedience[2:4]] == ["–", "90.0%"]
    assert obedience[2]["images/s ↑"] == "73.5 ± 0" and obedience[-1]["images/s ↑"] == "–"
    assert [row["model"] for row in words] == ["a4_full"] * 3 + ["a6_mine"] * 3 + ["cgan", "cvae"]
    assert words[0]["thin"] == words[0]["held-out pair"] == "75.0% ± 0.0% (25%)"
    assert words[3]["held-out pair, and the class"] == "50.0% (12%)"
    assert words[3]["the class"] == "90.0%" and words[-1]["scale"] == "–"
    assert [row["used in"] for row in settings] == ["tables"] * 6 + ["steps", "–"]
    assert settings[-1]["run"] == "wide/mnist/a4_full" and settings[-1]["widths"] == "[64, 128]"


def test_the_page_shows_all_figures_and_needs_nothing_from_elsewhere(reported):
    page = reported[1]
    names = "grid asked_a4_full asked_cgan scale obedience confusion nearest"
    names += " reconstructions_cvae loss speed steps"
    shown = re.findall(r'<img alt="(.*?)" src="data:image/png;base64,.{99}', page)
    assert [name for name in shown if name in names.split()] == names.split()
    assert not re.search(r"url\(|@import|fetch\(|https?://|(src|href|sprite)=.(?!data:)", page)
    assert "a4_full: &lt;one&gt; idea." in page and "python a1_cond.py --dataset mnist" in page


def test_runs_measured_by_two_judges_are_one_clear_line(tmp_path, monkeypatch):
    write_run(tmp_path, "a1_cond")
    path = write_run(tmp_path, "a2_clip") / "metrics" / "fid_scores.csv"
    path.write_text(path.read_text().replace("00123456", "00654321"))
    with pytest.raises(UserError, match="more than one judge_crc32: 00123456, 00654321; first"):
        compared(tmp_path, monkeypatch)


# Moves the controls of a copy of the page as a reader would, and writes down what is shown.
HAND = """<script>
onload = () => {
  const film = document.querySelector(".film"), seen = [];
  const controls = [film.querySelector("select"), ...film.querySelectorAll("input")];
  const copy = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const places = [[0, 2, 0], [0, 3, 0], [0, 3, 1], [1, 3, 1], [1, 0, 2]];
  places.forEach((place, turn) => {
    if (turn) controls.forEach((control, i) => {
      control[i ? "value" : "selectedIndex"] = place[i];
      control.dispatchEvent(new Event("input", { bubbles: true }));
    });
    const said = [...film.querySelectorAll("output")].map((x) => x.value);
    for (const screen of film.querySelectorAll("canvas")) {
      copy.drawImage(screen, 0, 0);
      const grey = (x) => [...copy.getImageData(x, 0, 28, 28).data].filter((_, i) => i % 4 === 0);
      const bold = [...document.querySelectorAll("td.best")].map((x) => x.textContent);
      const [label, pixels] = [screen.ariaLabel, [...grey(0), ...grey(29)]];
      seen.push({ model: screen.dataset.model, label, place, said, bold, pixels });
    }
  });
  document.body.textContent = JSON.stringify(seen);
};
</script>"""


def test_the_sliders_and_the_menu_show_other_pixels(reported, tmp_path):
    page, chromium = tmp_path / "report.html", shutil.which("chromium")
    if not chromium:
        pytest.skip("no Chromium here: apt-get install chromium")
    page.write_text(reported[1] + HAND, encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    flags += f"--enable-logging=stderr --virtual-time-budget=5000 --user-data-dir={tmp_path}/own"
    line = [chromium, *flags.split(), "--dump-dom", page.as_uri()]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    seen = json.loads(html.unescape(re.search("<body>(.*?)</body>", done.stdout, re.S)[1]))
    assert [look["model"] for look in seen] == ["a4_full", "a6_mine"] * 5
    assert {"94.5", "0.225", "0.129"} < {*seen[0]["bold"]}, "the fastest; the lowest distances"
    for look in seen:  # the first ones before anything was moved: scale 2, pure noise
        film = load_arrays(reported[0] / "mnist" / look["model"] / "images" / "film.npz")
        prompt, scale, moment = look["place"]
        assert look["pixels"] == film["frames"][prompt, scale, :, moment].flatten().tolist()
        assert look["said"] == [f"{film['scales'][scale]:g}", film["moments"][moment]]
        assert film["prompts"][prompt] in look["label"]
