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
from kit.captions import HELD_OUT, combinations, words_of
from kit.data import embedded_mnist
from kit.files import UserError, load_arrays, save_arrays, save_table
from kit.words import DIGITS

WORDS = {
    "thickness": {"thin": 2.0, "thick": 3.0},
    "slant": {"leaning left": -5, "leaning right": 9},
}
PAIRS = [tuple(pair) for pair in WORDS.values()]
FAMILIES = {"cgan": "GAN", "cvae": "VAE"}
KEYS = "model kind scale n seed extractor text_encoder"
TABLES = {
    "fid_scores": "fid kid kid_se density coverage reference samples_crc32 judge_crc32",
    "mse_diversity": "mse_diversity of_real least_of_real least_class train_on_samples copied",
    "clip_sim_scores": "clip_similarity with_wrong_prompts accuracy accuracy_low accuracy_high",
}
N = 40  # images of a group
FID = itertools.count(1)  # each run has another one


def write_run(out, script, seed=0, classes=DIGITS, dataset="mnist", **choices):
    """Write a run as its script and evaluate.py leave it -> its folder."""
    folder, rng = out / dataset / script, np.random.default_rng([seed, len(script)])
    guided, text = script.startswith(("a3", "a4", "a5")), script != "a0_uncond"
    scales = [1.0, 2.0, 3.0] if guided else [1.0]
    config = {"script": script, "family": FAMILIES.get(script, "diffusion"), "seed": seed,
              "classes": classes, "description": f"{script}: <one> idea.", "data_crc32": 1,
              "emnist_split": "letters", "per_class": 5000, "train_steps": 100, "batch_size": 64,
              "sample_steps": 18, "data_source": "embedded", "image_count": 5000,
              "parameters": 12345, "device": "cpu", "git_revision": None}  # fmt: skip
    config |= {"scales": scales} if guided else {}
    config |= {"attributes": WORDS, "text_encoder": "tiny"} if text else {}
    (folder / "metrics").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config | choices))
    write_samples(folder, rng, scales, text, len(classes))
    write_metrics(folder, seed, scales, text, classes, choices.get("sample_steps", 18))
    losses = ["generator_loss", "discriminator_loss"] if script == "cgan" else ["loss"]
    logged = [{"step": i, **dict.fromkeys(losses, 1 / i)} for i in range(20, 101, 20)]
    save_table(folder / "metrics" / "loss.csv", logged)
    if guided:
        film = {"prompts": ["zero", "a <thin> one"], "scales": [0.0, 1.0, 2.0, 5.0]}
        film |= {"moments": ["t = 1000", "t = 500", "t = 0"]}
        film |= {"frames": rng.integers(0, 256, (2, 4, 3, 28, 28), np.uint8)}
        save_arrays(folder / "images" / "film.npz", film)
    if script == "cvae":
        shutil.copy(compare.ROOT / "assets" / "reconstructions.png", folder / "images")
    return folder


def write_samples(folder, rng, scales, text, classes):
    """samples.npz of real digits, and judged.npz, in which one image of ten is read wrong."""
    pixels, labels = (array.numpy() for array in embedded_mnist("train"))
    kinds, rows = [("trained" if text else "unconditional", x, (0, 0)) for x in scales], []
    kinds += [("held-out", scales[-1], (0, 0))] * text
    kinds += [("words", x, asked) for x in scales for asked in combinations(2)] * text
    for kind, scale, asked in kinds:
        rows += [(i % classes if text else -1, kind, scale, asked) for i in range(N)]
    table = dict(zip(("labels", "kind", "scale", "asked"), map(np.array, zip(*rows))))
    wanted = np.maximum(table["labels"], 0)
    chosen = [rng.choice(np.flatnonzero(labels == label % 10)) for label in wanted]
    save_arrays(folder / "images" / "samples.npz", table | {"images": pixels[chosen]})
    read = np.where(rng.random(len(wanted)) < 0.1, 0, wanted)
    shown = np.concatenate([np.arange(i * N, i * N + 26) for i in range(len(scales))])
    distances = rng.uniform(0.1, 0.3, (2, len(wanted), 2))
    judged = {"read": read, "distances": distances[0], "real_distances": distances[1]}
    judged |= {"nearest": pixels[chosen][shown][::-1], "nearest_rows": shown}
    save_arrays(folder / "metrics" / "judged.npz", judged)


def write_metrics(folder, seed, scales, text, classes, steps):
    """The tables of evaluate.py, and performance.csv."""
    groups = [(folder.name, "trained" if text else "unconditional", scale) for scale in scales]
    groups += [(folder.name, "held-out", scales[-1])] * text
    groups += [("real images", "trained", None), ("noise", "trained", None)]
    rows, asked = [], []
    for i, (model, kind, scale) in enumerate(groups):
        number = 0.1 + 0.01 * i + 0.002 * len(folder.parents[1].name)
        values = dict.fromkeys(" ".join(TABLES.values()).split(), number)
        values |= {"model": model, "kind": kind, "scale": scale, "n": N, "seed": seed}
        values |= {"extractor": "judge", "text_encoder": "tiny", "judge_crc32": "00123456"}
        values |= {"least_class": classes[-1], "reference": 2500, "samples_crc32": 4294967295}
        values |= {"fid": next(FID), "accuracy": 0.9 if text else None}
        rows.append(values | {"accuracy": 0.8} if kind == "held-out" else values)
    for name, columns in TABLES.items():
        table = pd.DataFrame(rows)[f"{KEYS} {columns}".split()]
        save_table(folder / "metrics" / f"{name}.csv", table)
    costs = {"parameters": 12345, "train_seconds": 9.5, "train_images_per_second": 900.0}
    costs |= {"sample_images_per_second": 80.5, "sample_steps": steps, "device": "cpu"}
    save_table(folder / "metrics" / "performance.csv", [{**costs, "scale": x} for x in scales])
    for scale, combination in itertools.product(scales * text, combinations(2)):
        words = ", ".join(words_of(PAIRS, combination)) or "nothing"
        kind = ["nothing", "one word", "said pair"][sum(map(abs, combination))]
        kind = "held-out pair" if combination == HELD_OUT else kind
        row = {"model": folder.name, "scale": scale, "seed": seed, "asked": words, "kind": kind}
        row |= {"n": N, "as_asked": 0.75, "accuracy": 0.9, "everything": 0.5}
        asked.append(row | {"without_asking": 0.25, "everything_without_asking": 0.125})
    if text:
        save_table(folder / "metrics" / "attributes.csv", asked)


def compared(out, monkeypatch, dataset="mnist"):
    """Compare the runs in out -> the report."""
    monkeypatch.setattr(evaluate, "is_measured", lambda folder, config: True)
    pixels, labels = (array.numpy() for array in embedded_mnist("test"))
    order = np.argsort(labels, kind="stable").reshape(10, -1).T.flatten()
    folder = out / dataset.split("/")[-1] / "compare"
    save_arrays(folder / "real.npz", {"images": pixels[order[:260]]})
    compare.main(["--dataset", dataset, "--out", str(out)])
    return (folder / "report.html").read_text(encoding="utf-8")


def tables_of(page):
    """-> each table as a list of rows, which are dicts."""
    found = []
    for table in re.findall("<table.*?</table>", page, re.S):
        head = re.findall("<th>(.*?)</th>", table)
        cells = [re.findall("<td>(.*?)</td>", row) for row in table.split("<tr>")[1:]]
        found.append([dict(zip(head, map(html.unescape, row))) for row in cells])
    return found


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """Seven runs of five models: two with guidance, one of them with two seeds and other steps."""
    out = tmp_path_factory.mktemp("reported") / "results"
    for script in ("a0_uncond", "a4_full", "a5_mine", "cgan", "cvae"):
        write_run(out, script)
    write_run(out / "seed1", "a4_full", 1)
    write_run(out / "steps50", "a4_full", sample_steps=50)
    write_run(out / "wide", "a4_full", 2, widths=[64, 128])
    with pytest.MonkeyPatch.context() as monkeypatch:
        return out, compared(out, monkeypatch)


def test_seeds_become_mean_and_deviation_and_other_settings_stand_apart(reported):
    quality, obedience, _, settings = tables_of(reported[1])
    models = [(row["model"], row["scale"], row["seeds"]) for row in quality]
    guided = [(name, x, n) for name, n in (("a4_full", "2"), ("a5_mine", "1")) for x in "123"]
    floors = [("real images", "–", "–"), ("noise", "–", "–")]
    others = [(name, "–", "1") for name in ("a0_uncond", "cgan", "cvae")]
    assert models == [others[0], *guided, *others[1:], *floors]
    rows = pd.read_csv(reported[0] / "mnist" / "compare" / "metrics" / "rows.csv")
    seeds = rows.query("model == 'a4_full' and kind == 'trained' and scale == 2")["fid"]
    assert len(seeds) == 2
    assert quality[2]["FID (judge)"] == f"{seeds.mean():.3g} ± {seeds.std():.3g}"
    assert obedience[2]["accuracy (95 %)"] == "90.0% ± 0.0% (81.5–94.8)"
    assert [row["held-out phrasings (95 %)"][:5] for row in obedience[:4]] == [
        "–",
        "–",
        "–",
        "80.0%",
    ]
    assert obedience[2]["images/s"] == "80.5 ± 0" and obedience[-1]["images/s"] == "–"
    uses = {row["run"]: row["in"] for row in settings}
    assert uses["mnist/a4_full"] == uses["seed1/mnist/a4_full"] == "tables"
    assert uses["steps50/mnist/a4_full"] == "steps" and uses["wide/mnist/a4_full"] == "–"
    assert {row["widths"] for row in settings} == {"–", "[64, 128]"}


def test_rows_csv_has_all_numbers_of_each_seed(reported):
    out = reported[0] / "mnist"
    rows = pd.read_csv(out / "compare" / "metrics" / "rows.csv", dtype={"judge_crc32": str})
    run = rows[(rows["model"] == "a4_full") & (rows["scale"] == 3)]
    assert sorted(zip(run["kind"], run["seed"])) == [
        ("held-out", 0), ("held-out", 1), ("trained", 0), ("trained", 1)]  # fmt: skip
    costs = run.set_index("kind")["sample_images_per_second"]
    assert (costs["trained"] == 80.5).all() and costs["held-out"].isna().all()
    assert (run["kid_x1000"] > 100).all() and (run["train_steps"] == 100).all()
    floors = rows[rows["scale"].isna()]
    assert {*floors["model"]} == {"real images", "noise"} and floors["train_steps"].isna().all()
    assert {*rows["judge_crc32"]} == {"00123456"}
    asked = pd.read_csv(out / "compare" / "metrics" / "asked.csv")
    assert len(asked) == 9 * (3 * 3 + 2) and "demand" not in asked
    means = pd.read_csv(out / "cfg_scale" / "metrics" / "cfg_scale.csv")
    assert len(means) == 6 and {*means["seeds"]} == {1, 2}


def test_words_stand_beside_the_share_without_asking(reported):
    obeyed = tables_of(reported[1])[2]
    assert [row["model"] for row in obeyed] == ["a4_full"] * 3 + ["a5_mine"] * 3 + ["cgan", "cvae"]
    assert obeyed[0]["thin"] == obeyed[0]["held-out pair"] == "75.0% ± 0.0% (25%)"
    assert obeyed[3]["held-out pair, and the class"] == "50.0% (12%)"
    assert obeyed[3]["the class"] == "90.0%" and obeyed[-1]["scale"] == "–"


def test_the_page_shows_all_figures_and_needs_nothing_from_elsewhere(reported):
    out, page = reported
    names = "grid asked_a4_full asked_cgan scale obedience guidance_a4_full guidance_a5_mine"
    names += " confusion nearest distances reconstructions_cvae loss speed steps"
    shown = re.findall(r'<img alt="(.*?)" src="data:image/png;base64,.{99}', page)
    assert [name for name in shown if name in names.split()] == names.split()
    files = {path.stem for path in (out / "mnist" / "compare").glob("*.png")}
    assert {*"grid confusion nearest distances loss speed steps asked_a5_mine".split()} <= files
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp|https?://", page)
    links = re.findall(r'(?:src|href|data-sprite)="(.{5})', page)
    assert links and {*links} == {"data:"}
    assert "a4_full: &lt;one&gt; idea." in page
    assert "python a1_cond.py --dataset mnist" in page and "python a4_full.py" not in page
    for caption in re.findall("<figcaption>(.*?)</figcaption>", page, re.S):
        assert 20 < len(caption) < 250 and caption.endswith("."), caption


def test_names_of_classes_come_out_as_they_are(tmp_path, monkeypatch):
    classes = sorted(["$x$", "007", "none", "null"])
    for name in classes:
        (tmp_path / "own" / name).mkdir(parents=True)
    write_run(tmp_path / "results", "a3_cfg", classes=classes, dataset="own")
    compared(tmp_path / "results", monkeypatch, str(tmp_path / "own"))
    rows = compare.read_table(tmp_path / "results" / "own" / "compare" / "metrics" / "rows.csv")
    assert {*rows["least_class"]} == {"null"}


def test_runs_measured_by_two_judges_are_one_clear_line(tmp_path, monkeypatch):
    write_run(tmp_path, "a1_cond")
    path = write_run(tmp_path, "a2_clip") / "metrics" / "fid_scores.csv"
    path.write_text(path.read_text().replace("00123456", "00654321"))
    with pytest.raises(UserError, match="more than one judge_crc32: 00123456, 00654321; first"):
        compared(tmp_path, monkeypatch)
    path.write_text("")
    with pytest.raises(UserError, match="metrics cannot be read .*; give the command of a2_clip"):
        compared(tmp_path, monkeypatch)


# Moves the controls of a copy of the page as a reader would, and writes down what is shown.
HAND = """<script>
onload = () => {
  const film = document.querySelector(".film"), seen = [];
  const controls = [film.querySelector("select"), ...film.querySelectorAll("input")];
  const places = [[0, 2, 2], [0, 3, 2], [0, 3, 1], [1, 3, 1], [1, 0, 1]];
  places.forEach((place, turn) => {
    if (turn) controls.forEach((control, i) => {
      control[i ? "value" : "selectedIndex"] = place[i];
      control.dispatchEvent(new Event("input", { bubbles: true }));
    });
    const said = [...film.querySelectorAll("output")].map((x) => x.value);
    for (const screen of film.querySelectorAll("canvas")) {
      const { data } = screen.getContext("2d").getImageData(0, 0, 28, 28);
      const pixels = [...data].filter((_, i) => i % 4 === 0);
      seen.push({ model: screen.dataset.model, label: screen.ariaLabel, place, said, pixels });
    }
  });
  const written = document.createElement("pre");
  written.id = "seen";
  written.textContent = JSON.stringify(seen);
  document.body.append(written);
};
</script>"""


def test_the_sliders_and_the_menu_show_other_pixels(reported, tmp_path):
    names = "chromium", "chromium-browser", "google-chrome"
    chromium = next(filter(None, map(shutil.which, names)), None)
    if not chromium:
        pytest.skip("no Chromium here: apt-get install chromium")
    page = tmp_path / "report.html"
    page.write_text(reported[1] + HAND, encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    flags += "--disable-background-networking --disable-component-update --enable-logging=stderr "
    flags += f"--user-data-dir={tmp_path}/profile --virtual-time-budget=5000 --dump-dom"
    line = [chromium, *flags.split(), page.as_uri()]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    seen = json.loads(html.unescape(re.search('<pre id="seen">(.*?)</pre>', done.stdout)[1]))
    assert [look["model"] for look in seen] == ["a4_full", "a5_mine"] * 5
    for look in seen:  # the first ones before anything was moved: scale 2, the last moment
        film = load_arrays(reported[0] / "mnist" / look["model"] / "images" / "film.npz")
        prompt, scale, moment = look["place"]
        frame = film["frames"][prompt, scale, moment]
        assert look["pixels"] == frame.flatten().tolist(), "exactly that frame"
        assert look["said"] == [f"{film['scales'][scale]:g}", film["moments"][moment]]
        assert film["prompts"][prompt] in look["label"]
