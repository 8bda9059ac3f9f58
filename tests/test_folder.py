"""--dataset PATH: a folder of one's own pictures, from its names to a drawn prompt."""

import io
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, data_args
from matplotlib.figure import Figure
from PIL import Image

from kit import folder, judge, tiny_clip
from kit.base import UserError
from kit.datasets import class_words, settle_classes, settle_dataset
from kit.images import load_dataset

QUICKDRAW = ROOT.parent / "shared" / "data" / "quickdraw"
FONTS = "DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono", "STIXGeneral", "cmr10"


def letter(sign, font, weight, size=(60, 40), angle=0.0):
    """A sign in black on white, as a picture of matplotlib's."""
    figure = Figure(figsize=(size[0] / 50, size[1] / 50), dpi=50)
    style = {"family": font, "weight": weight, "size": 24, "rotation": angle}
    figure.text(0.5, 0.5, sign, ha="center", va="center", **style)
    content = io.BytesIO()
    figure.savefig(content, dpi=50)
    return Image.open(content).convert("RGB")


def write_fonts(place, signs=(("big_A", "A"), ("Z", "Z")), n=30):
    rng = np.random.default_rng(0)
    for name, sign in signs:
        (place / name).mkdir(parents=True)
        for i in range(n):
            weight = ("light", "bold")[i % 2]
            picture = letter(sign, FONTS[i % 5], weight, angle=rng.uniform(-25, 25))
            picture.save(place / name / f"{i:03d}.{('png', 'jpg')[i % 2]}")
    return place


@pytest.fixture(scope="module")
def fonts(tmp_path_factory):
    return write_fonts(tmp_path_factory.mktemp("made") / "font letters")


def settled(place, tmp_path):
    config = data_args(str(place), [], data_dir=tmp_path / "data", folder=None, pictures=None)
    settle_dataset(config)
    settle_classes(config)
    return config


# ── What lies there ──


def test_folders_of_tools_hold_no_pictures_to_learn_from(tmp_path):
    names = "cat/a.png", "cat/.ipynb_checkpoints/a.png", "dog/b.png", "dog/@eaDir/b.png"
    for name in (*names, "dog/sub/__MACOSX/._b.png", "dog/sub/c.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = folder.listing(tmp_path).items()
    found = {name: [path.name for path in paths] for name, paths in found}
    assert found == {"cat": ["a.png"], "dog": ["b.png", "c.png"]}


def test_what_a_run_writes_does_not_lie_among_its_pictures(here, tmp_path):
    (tmp_path / "cat").mkdir()
    for flags in ("--dataset .", f"--dataset {tmp_path} --out {tmp_path.parent}/x"):
        done = here(f"a4_full.py {flags}", tmp_path, check=2)
        assert "lies in the folder of the pictures" in done.stderr


def test_names_become_words_and_every_tenth_picture_is_held_out(fonts, tmp_path, capfd):
    config = settled(fonts, tmp_path)
    assert (config.dataset, config.classes) == ("font letters", ["z", "big a"])
    assert class_words(config, ("thick",))[1] == ("thick big a", "a thick big a")
    pixels, labels, source = load_dataset(config)
    held_out, asked, _ = load_dataset(config, "test")
    assert pixels.dtype == torch.uint8 and pixels.shape == (54, 28, 28)
    assert labels.bincount().tolist() == [27, 27] and asked.bincount().tolist() == [3, 3]
    said = capfd.readouterr().err
    assert "60 pictures of 2 classes, dark on light, so turned to light on dark" in said
    assert pixels.float().mean() < 90 and held_out.max() == 255
    assert source.startswith("folder (CRC-32 ")
    assert torch.equal(load_dataset(config)[0], pixels)
    assert "pictures of" not in capfd.readouterr().err  # the second time they are kept


def test_28x28_pictures_light_on_dark_are_taken_as_they_are(tmp_path):
    rng, place = np.random.default_rng(0), tmp_path / "dots"
    for name in ("one dot", "two dots"):
        (place / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.zeros((28, 28), np.uint8)
            pixels[10:18, 8:20] = rng.integers(0, 256, (8, 12))
            pixels[12, 12] = 255
            Image.fromarray(pixels).save(place / name / f"{i:02d}.png")
    images, labels, _ = load_dataset(settled(place, tmp_path))
    first = np.asarray(Image.open(place / "one dot" / "00.png"))
    assert np.array_equal(images[0].numpy(), first) and labels.tolist() == [0] * 18 + [1] * 18


@pytest.mark.skipif(not QUICKDRAW.exists(), reason="the genuine bitmaps are not here")
def test_quickdraws_bitmaps_as_png_are_the_bitmaps(tmp_path):
    place = tmp_path / "drawn"
    bitmaps = {}
    for name in ("cat", "train"):
        bitmaps[name] = np.load(QUICKDRAW / f"{name}.npy")[:40].reshape(-1, 28, 28)
        (place / name).mkdir(parents=True)
        for i, image in enumerate(bitmaps[name]):
            Image.fromarray(image).save(place / name / f"{i:03d}.png")
    images = load_dataset(settled(place, tmp_path))[0].numpy()
    expected = np.concatenate([np.delete(images, np.s_[9::10], 0) for images in bitmaps.values()])
    assert (np.abs(images.astype(int) - expected).max((1, 2)) <= 2).mean() > 0.95


def test_proportions_are_kept_and_any_mode_is_read(tmp_path):
    wide = np.full((50, 200), 255, np.uint8)
    wide[20:30, 20:180] = 0
    pixels = {}
    for mode in ("L", "1", "P", "RGB", "RGBA", "LA", "CMYK"):
        path = tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}"
        Image.fromarray(wide).convert(mode).save(path)
        pixels[mode] = folder.read_picture(path)
    Image.fromarray(wide.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    pixels["I;16"] = folder.read_picture(tmp_path / "deep.png")
    clear = np.dstack([np.zeros_like(wide), 255 - wide])  # black on nothing
    Image.fromarray(clear, "LA").save(tmp_path / "clear.png")
    pixels["transparent"] = folder.read_picture(tmp_path / "clear.png")
    for mode, found in pixels.items():
        assert found.shape == (28, 28) and found.dtype == np.uint8, mode
        rows = np.flatnonzero((found < 128).any(1))
        columns = np.flatnonzero((found < 128).any(0))
        assert len(rows) <= 2 and 21 <= len(columns) <= 23, mode  # 10 x 160 of 50 x 200
        assert found[0].min() == 255, mode  # what is left free has the colour of the frame


def test_white_on_nothing_stays_white(tmp_path):
    star = np.zeros((28, 28, 2), np.uint8)
    star[10:18, 10:18] = 255
    Image.fromarray(star, "LA").save(tmp_path / "star.png")
    assert np.array_equal(folder.read_picture(tmp_path / "star.png"), star[..., 0])


def test_a_photograph_is_turned_as_its_camera_was_held(tmp_path):
    image = Image.fromarray(np.tile(np.linspace(0, 255, 60).astype(np.uint8), (30, 1)))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    found = folder.read_picture(tmp_path / "turned.jpg")
    assert found[2:26, 14].std() > 50 and found[14, 9:19].std() < 10


# ── What is wrong with it ──


def broken(place, tmp_path):
    with pytest.raises(UserError) as wrong:
        config = settled(place, tmp_path)
        load_dataset(config)
    assert "\n" not in str(wrong.value)
    return str(wrong.value)


def test_what_is_no_data_set_says_what_would_be_one(tmp_path):
    assert "choose mnist, emnist, quickdraw, or a folder" in broken("minst", tmp_path)
    (tmp_path / "mnist").mkdir()
    assert "'mnist' is taken" in broken(tmp_path / "mnist", tmp_path)


def test_an_empty_a_flat_and_a_lonely_folder(tmp_path, fonts):
    (tmp_path / "empty").mkdir()
    assert "one subfolder of pictures for each class" in broken(tmp_path / "empty", tmp_path)
    shutil.copytree(fonts / "Z", tmp_path / "flat")
    assert "its pictures lie in it directly" in broken(tmp_path / "flat", tmp_path)
    shutil.copytree(fonts / "Z", tmp_path / "lonely" / "Z")
    assert "at least two; there is only 'z'" in broken(tmp_path / "lonely", tmp_path)


def test_a_class_of_few_pictures(tmp_path, fonts):
    shutil.copytree(fonts, tmp_path / "few")
    for path in sorted((tmp_path / "few" / "Z").iterdir())[:11]:
        path.unlink()
    assert "'z' has 19 pictures; a class needs 20" in broken(tmp_path / "few", tmp_path)


@pytest.mark.parametrize("name", [b"\xff\xfe\xfa", b"!!!", b"x" * 80, b"_ -"])
def test_a_folder_name_that_is_no_text(tmp_path, fonts, name):
    shutil.copytree(fonts, tmp_path / "odd")
    try:
        os.rename(os.fsencode(tmp_path / "odd" / "Z"), os.fsencode(tmp_path / "odd") + b"/" + name)
    except OSError:
        pytest.skip("this disk takes no such name")
    text = broken(tmp_path / "odd", tmp_path)
    assert "is no text that a prompt can say" in text or "at least two" in text
    text.encode()


def test_what_is_no_picture_is_named_and_left_out(tmp_path, fonts, capfd):
    shutil.copytree(fonts, tmp_path / "mixed")
    (tmp_path / "mixed" / "Z" / "notes.png").write_text("no picture")
    whole = (tmp_path / "mixed" / "Z" / "000.png").read_bytes()
    (tmp_path / "mixed" / "Z" / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "mixed" / "Z" / "readme.txt").write_text("no picture either")
    (tmp_path / "mixed" / ".thumbs").mkdir()
    config = settled(tmp_path / "mixed", tmp_path)
    assert len(load_dataset(config)[0]) == 54
    said = capfd.readouterr().err
    assert "2 left out, which are no pictures or broken: Z/half.png" in said
    assert "Z/notes.png" in said and config.classes == ["z", "big a"]


def test_pictures_that_have_changed_are_not_mixed_with_a_run_of_before(tmp_path, fonts):
    shutil.copytree(fonts, tmp_path / "grows")
    config = settled(tmp_path / "grows", tmp_path)
    load_dataset(config)
    shutil.copy(tmp_path / "grows" / "Z" / "000.png", tmp_path / "grows" / "Z" / "new.png")
    with pytest.raises(UserError, match="holds other pictures than the run learned from"):
        load_dataset(config)


# ── All that can be done with it ──


@pytest.mark.usefixtures("coarse_figures")
def test_a_folder_trains_draws_and_is_measured(here, fonts, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_clip, "STEPS", 3)
    monkeypatch.setattr(judge, "STEPS", 3)
    pictures, flags = tmp_path / "my letters", ["--dataset", "my letters"]
    shutil.copytree(fonts, pictures)
    small = "--clip tiny --train-steps 3 --batch-size 8 --samples 20 --scales 1,2 --widths 8,16"
    here(["a4_full.py", *flags, *small.split()], tmp_path)
    results = tmp_path / "results" / "my letters"
    assert (results / "a4_full" / "images" / "samples_attributes_w2.0.npz").exists()
    assert "is complete" in here(["a4_full.py", *flags, *small.split()], tmp_path).stderr
    done = here(["compare.py", *flags, "--extractor", "judge", "--clip", "tiny"], tmp_path)
    assert "judge: " in done.stderr and "a1_cond (python a1_cond.py --dataset my" in done.stderr
    report = (results / "compare" / "report.md").read_text(encoding="utf-8")
    assert "big a" in report and "held-out pair" in report

    drawn = here(["a4_full.py", *flags, "--prompt", "a thick Z"], tmp_path)
    assert (tmp_path / drawn.stdout.strip()).exists() and "note: the prompt" not in drawn.stderr
    pictures.rename(tmp_path / "elsewhere")  # drawing takes no pictures
    drawn = here(["a4_full.py", *flags, "--prompt", "a big A"], tmp_path)
    assert (tmp_path / drawn.stdout.strip()).exists()
    done = here(["a4_full.py", *flags, *small.split(), "--fresh"], tmp_path, check=2)
    assert "no such folder" in done.stderr
