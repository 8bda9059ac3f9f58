"""The report: its order, its captions, its numbers, and the sliders in a browser."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from conftest import TINY, rows, run_folder
from test_evaluate import Page, no_figures  # noqa: F401

import compare
from kit import base, samples

MEASURE = "compare.py --clip tiny --extractor judge"


@pytest.fixture(scope="module")
def reported(finished, typed_here, tmp_path_factory):
    """Reports of a4_full, of the same as a rung of one's own, and of an autoencoder.

    -> the folder the commands were typed in
    """
    folder = tmp_path_factory.mktemp("reported") / "copy"
    shutil.copytree(finished, folder)
    mine = shutil.copytree(run_folder(folder), run_folder(folder, "a5_mine"))
    config = (mine / "config.json").read_text().replace('"a4_full"', '"a5_mine"')
    (mine / "config.json").write_text(config)
    film = samples.load_film(mine / "images" / "film.npz")
    base.save_arrays(mine / "images" / "film.npz", film | {"frames": 255 - film["frames"]})
    small = "--train-steps 3 --batch-size 4 --samples 20 --clip tiny"
    typed_here(f"cvae.py {small}", folder)
    typed_here(MEASURE, folder)
    return folder


@pytest.fixture
def again(reported, tmp_path):
    return shutil.copytree(reported, tmp_path / "again")


def report(folder, kind):
    path = folder / "results" / "mnist" / "compare" / f"report.{kind}"
    return path.read_text(encoding="utf-8")


def test_a_film_is_one_noise_by_prompt_scale_and_moment(finished):
    film = samples.load_film(run_folder(finished) / "images" / "film.npz")
    frames, scales = film["frames"].astype(int), film["scales"].tolist()
    assert frames.shape == (6, 7, 4, 28, 28) and scales == [0, 1, 1.5, 2, 3, 5, 8]
    assert len({*film["prompts"]}) == 6
    assert film["moments"].tolist()[::3] == ["0 of 3, t = 1000", "3 of 3, t = 0"]
    assert (frames[:, :, 0] == frames[0, 0, 0]).all(), "the noise"
    images = frames[:, :, -1]
    assert abs(images[:, 0] - images[0, 0]).max() <= 1, "scale 0 ignores the text"
    for prompt in range(1, 6):
        assert (images[prompt, 1] != images[0, 1]).any(), "scale 1 does not"
    assert all((images[0, i] != images[0, i + 1]).any() for i in range(6))


def test_pictures_and_tables_come_first_and_how_to_read_them_last(reported):
    wanted = "grid|FID|images/s|From noise to image|does it obey|asked_a4_full|What the guidance"
    wanted += "|nearest|reconstructions_cvae|loss|How to read|What words ask for|Who judges"
    wanted += "|What was compared"
    for kind in ("md", "html"):
        text = report(reported, kind).split("</style>")[-1]
        places = []
        for words in wanted.split("|"):
            head = rf"^#.*{words}|!\[{words}\]|\| {words}|<h2[^>]*>[^<]*{words}|alt=\"{words}\""
            places.append(re.search(rf"{head}|<th>{words}", text, re.M).start())
        assert places == sorted(places), kind
    assert "diffusion" in report(reported, "md") and "VAE's two losses" in report(reported, "md")
    assert "GAN's" not in report(reported, "md")


def test_every_figure_has_a_caption_of_one_sentence(reported):
    page = report(reported, "html")
    figures = re.findall(r"<figure.*?</figure>", page, re.S)
    shown = [len(re.findall("<(?:img|table|canvas)", figure)) for figure in figures]
    assert min(shown) == 1 and sum(shown) == len(re.findall("<(?:img|table|canvas)", page)) > 12
    for figure in figures:
        (caption,) = re.findall("<figcaption>(.*?)</figcaption>", figure, re.S)
        text = html.unescape(caption)
        assert re.fullmatch(r"[^.]{20,}\.", text) and text == " ".join(text.split()), text
        assert text in report(reported, "md") or 'class="film"' in figure


def test_the_page_needs_nothing_from_elsewhere(reported):
    page = report(reported, "html")
    for link in Page(page).links:
        inside = link[0] == "#" and f'id="{link[1:]}"' in page
        assert inside or link.startswith("data:"), link[:80]
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp|https?://", page)
    script = (base.ROOT / "kit" / "report.js").read_text(encoding="utf-8")
    assert len(script.splitlines()) <= 150 and script.strip() in page and "</" not in script
    assert "<script" not in report(reported, "md") and "report.html" in report(reported, "md")


def test_all_that_was_asked_for_is_in_a_table_that_gives_the_reports_own_again(reported):
    table = reported / "results" / "mnist" / "compare" / "metrics" / "asked.csv"
    assert {row["model"] for row in rows(table)} == {"a4_full", "a5_mine", "cvae"}
    assert {row["seed"] for row in rows(table)} == {"0"}
    cells = compare.obeyed(base.read_table(table, compare.ASKED, ""))
    assert cells.to_markdown(index=False, disable_numparse=True) in report(reported, "md")


@pytest.mark.usefixtures("no_figures")
def test_without_a_film_there_is_no_interactive_part(again, here):
    for path in again.rglob("film.npz"):
        path.unlink()
    here(MEASURE, again)
    for text in (report(again, "html"), report(again, "md")):
        assert "From noise to image" not in text and "<script" not in text


SPOILT = {  # what is done to one array of a film
    "frames": lambda x: x[:, :, :2],
    "frames of other numbers": lambda x: x.astype(float),
    "prompts": lambda x: np.arange(6),
    "scales": lambda x: x[:0],
    "moments": lambda x: x.astype("S"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_spoilt_film_is_noticed(finished, tmp_path, what):
    film, name = samples.load_film(run_folder(finished) / "images" / "film.npz"), what.split()[0]
    path = tmp_path / "film.npz"
    np.savez(path, **film | {name: SPOILT[what](film[name])})
    with pytest.raises(base.UserError, match=f"film.npz.*{name} are .*script's command again"):
        samples.load_film(path)


@pytest.mark.usefixtures("no_figures")
def test_a_damaged_film_is_one_clear_line_and_drawn_anew_by_the_remedy(again, here):
    path = run_folder(again) / "images" / "film.npz"
    whole, before = path.read_bytes(), report(again, "html")
    path.write_bytes(whole[: len(whole) // 2])
    done = here(MEASURE, again, check=2)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    assert "film.npz" in lines[0] and "give its script's command again" in lines[0]
    assert report(again, "html") == before
    path.unlink()
    assert "is complete" not in here(TINY, again).stderr
    assert path.read_bytes() == whole and "is complete" in here(TINY, again).stderr


# Types into a copy of the page as a reader would, and writes down what the screens show.
HAND = """<script>
onload = () => {
  const film = document.querySelector(".film");
  const controls = [film.querySelector("select"), ...film.querySelectorAll("input")];
  const seen = [];
  const copy = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const look = () => {
    const place = controls.map((x) => (x.selectedIndex === undefined ? +x.value : x.selectedIndex));
    const said = [...film.querySelectorAll("output")].map((x) => x.value);
    for (const screen of film.querySelectorAll("canvas")) {
      copy.drawImage(screen, 0, 0);
      const { data } = copy.getImageData(0, 0, 28, 28);
      const pixels = [...data].filter((_, i) => i % 4 === 0);
      seen.push({ model: screen.dataset.model, label: screen.ariaLabel, place, said, pixels });
    }
  };
  const set = (control, value) => {
    if (control.selectedIndex === undefined) control.value = value;
    else control.selectedIndex = value;
    control.dispatchEvent(new Event("input", { bubbles: true }));
    look();
  };
  look();
  set(controls[1], 6);
  set(controls[2], 1);
  set(controls[0], 4);
  set(controls[1], 0);
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
    page.write_text(report(reported, "html") + HAND, encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    flags += "--disable-background-networking --disable-component-update --enable-logging=stderr "
    flags += f"--user-data-dir={tmp_path}/profile --virtual-time-budget=5000 --dump-dom"
    line = [chromium, *flags.split(), page.as_uri()]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    seen = json.loads(html.unescape(re.search('<pre id="seen">(.*?)</pre>', done.stdout)[1]))
    places = [look["place"] for look in seen if look["model"] == "a4_full"]
    assert places == [[0, 3, 3], [0, 6, 3], [0, 6, 1], [4, 6, 1], [4, 0, 1]]
    for model in ("a4_full", "a5_mine"):
        film = samples.load_film(run_folder(reported, model) / "images" / "film.npz")
        looks = [look for look in seen if look["model"] == model]
        for look in looks:
            prompt, scale, moment = look["place"]
            frame = film["frames"][prompt, scale, moment]
            assert look["pixels"] == frame.flatten().tolist(), "exactly that frame"
            said = [f"{film['scales'][scale]:g}", film["moments"][moment]]
            assert look["said"] == said and film["prompts"][prompt] in look["label"]
        assert all(a["pixels"] != b["pixels"] for a, b in zip(looks, looks[1:])), "each one moves"
