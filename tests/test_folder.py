"""--dataset PATH: a folder of one's own pictures, from its names to a generated image."""

import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, data_args, only_error
from PIL import Image

import a1_cond
from kit import attributes, words
from kit.data import load_dataset
from kit.files import UserError
from kit.folder import read_picture

QUICKDRAW = ROOT.parent / "shared" / "data" / "quickdraw"
SMALL = "--train-steps 3 --batch-size 8 --samples 20 --sample-steps 2 --widths 8 16"


def picture(i, size=(40, 40)):
    """A ring and a dot in black on white, other ones for each i."""
    rng, (h, w) = np.random.default_rng(i), size
    y, x = np.mgrid[:h, :w]
    far = np.hypot(y - h / 2, x - w / 2)
    image = np.where(abs(far - rng.uniform(6, 12)) < rng.uniform(1, 3), 0, 255)
    image[np.hypot(y - rng.uniform(5, h - 5), x - rng.uniform(5, w - 5)) < 3] = 0
    return Image.fromarray(image.astype(np.uint8))


def fill(folder, names=("big_A", "Z"), n=20):
    for k, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            picture(1000 * k + i).save(folder / name / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="module")
def rings(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("made") / "rings")


def config_of(folder, **others):
    config = data_args(str(folder), (), **others)
    config.classes = words.class_names(config)
    return config


def load(folder, split="train"):
    return load_dataset(config_of(folder), split)


# ── What becomes of it ──


def test_names_become_words_and_every_tenth_picture_is_held_out(rings, capfd):
    pixels, labels, source = load(rings)
    held_out, asked, _ = load(rings, "test")
    assert config_of(rings).classes == ("big a", "z") and source == "folder"
    assert words.class_words(config_of(rings), ("thick",))[0] == ("thick big a", "a thick big a")
    assert pixels.dtype == torch.uint8 and pixels.shape == (36, 28, 28)
    assert labels.bincount().tolist() == [18, 18] and asked.bincount().tolist() == [2, 2]
    assert not {*map(bytes, pixels.numpy())} & {*map(bytes, held_out.numpy())}
    said = capfd.readouterr().err.splitlines()[0]
    assert "big a (20), z (20), inverted to light on dark" in said and "broken" not in said
    assert pixels[:, 0].max() == 0 and pixels.amax((1, 2)).min() == 255


def test_the_order_of_the_file_system_changes_nothing(rings, tmp_path, monkeypatch):
    before, iterdir, rglob = load(rings), Path.iterdir, Path.rglob
    monkeypatch.setattr(Path, "iterdir", lambda self: reversed([*iterdir(self)]))
    monkeypatch.setattr(Path, "rglob", lambda self, glob: reversed([*rglob(self, glob)]))
    after = load(shutil.copytree(rings, tmp_path / "again"))
    assert all(torch.equal(one, other) for one, other in zip(before[:2], after[:2]))


def test_names_are_equal_however_their_accents_are_written(tmp_path):
    """macOS writes é as e and an accent, others as one character."""
    written = {}
    for form in ("NFC", "NFD"):
        names = [unicodedata.normalize(form, name) for name in ("école", "zèbre")]
        folder = fill(tmp_path / form, names)
        for i, path in enumerate(sorted((folder / names[0]).iterdir())):
            path.rename(path.with_name(unicodedata.normalize(form, f"{'éfz'[i % 3]}{i}.png")))
        written[form] = config_of(folder).classes, load(folder)
    assert written["NFC"][0] == written["NFD"][0] == ("zèbre", "école")
    assert torch.equal(written["NFC"][1][0], written["NFD"][1][0])


def test_folders_of_tools_hold_no_pictures_to_learn_from(tmp_path, capfd):
    folder = fill(tmp_path / "mine", ("cat", "dog", ".thumbs", "@eaDir", "__MACOSX"))
    for name in ("cat/.ipynb_checkpoints/a.png", "dog/@eaDir/b.png", "dog/sub/__MACOSX/._b.png"):
        (folder / name).parent.mkdir(parents=True)
        picture(0).save(folder / name)
    (folder / "dog" / "sub" / "deeper").mkdir()
    picture(7).save(folder / "dog" / "sub" / "deeper" / "C.PNG")
    (folder / "dog" / "notes.txt").write_text("no picture, and none by its name")
    load(folder)
    assert "cat (20), dog (21)" in capfd.readouterr().err


def test_light_on_dark_pictures_of_28_x_28_are_taken_as_they_are(tmp_path):
    for k, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        for i in range(20):
            pixels = np.zeros((28, 28), np.uint8)
            pixels[10:18, 8:20] = np.random.default_rng(20 * k + i).integers(0, 256, (8, 12))
            pixels[12, 12] = 255
            Image.fromarray(pixels).save(tmp_path / name / f"{i:02d}.png")
    images, *_ = load(tmp_path)
    first = np.asarray(Image.open(tmp_path / "one" / "00.png"))
    assert np.array_equal(images[0].numpy(), first) and len(images) == 36


@pytest.mark.skipif(not QUICKDRAW.exists(), reason="the genuine bitmaps are not here")
def test_quickdraws_bitmaps_as_png_are_the_bitmaps(tmp_path):
    bitmaps = [np.load(QUICKDRAW / f"{x}.npy")[:40].reshape(-1, 28, 28) for x in ("cat", "train")]
    for name, images in zip(("cat", "train"), bitmaps):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{i:03d}.png")
    expected = np.concatenate([np.delete(images, np.s_[9::10], 0) for images in bitmaps])
    apart = np.abs(load(tmp_path)[0].numpy().astype(int) - expected).max((1, 2))
    assert (apart <= 2).mean() > 0.95


def test_proportions_are_kept_and_any_mode_is_read(tmp_path):
    wide = np.full((50, 200), 255, np.uint8)
    wide[20:30, 20:180] = 0
    pixels = {}
    for mode in ("L", "1", "P", "RGB", "RGBA", "LA", "CMYK", "F"):
        path = tmp_path / f"{mode}.{ {'CMYK': 'jpg', 'F': 'tif'}.get(mode, 'png') }"
        Image.fromarray(wide).convert(mode).save(path)
        pixels[mode] = read_picture(path)
    Image.fromarray(wide.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    pixels["16 bits"] = read_picture(tmp_path / "deep.png")
    clear = np.dstack([np.zeros_like(wide), 255 - wide])  # black on nothing
    Image.fromarray(clear, "LA").save(tmp_path / "clear.png")
    pixels["transparent"] = read_picture(tmp_path / "clear.png")
    for mode, found in pixels.items():
        assert found.shape == (28, 28) and found.dtype == np.uint8, mode
        rows, columns = (np.flatnonzero((found < 128).any(axis)) for axis in (1, 0))
        assert len(rows) <= 2 and 21 <= len(columns) <= 23, mode  # 10 x 160 of 50 x 200
        assert found[0].min() == 255 and found.min() == 0, mode


def test_white_on_nothing_stays_white(tmp_path):
    star = np.zeros((28, 28, 2), np.uint8)
    star[10:18, 10:18] = 255
    Image.fromarray(star, "LA").save(tmp_path / "star.png")
    assert np.array_equal(read_picture(tmp_path / "star.png"), star[..., 0])


def test_a_photograph_is_turned_as_its_camera_was_held(tmp_path):
    image = Image.fromarray(np.tile(np.linspace(0, 255, 60).astype(np.uint8), (30, 1)))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    found = read_picture(tmp_path / "turned.jpg")
    assert found[2:26, 14].std() > 50 and found[14, 9:19].std() < 10


# ── What is wrong with it ──


def wrong(folder, *said):
    with pytest.raises(UserError) as caught:
        load(folder)
    assert "\n" not in caught.value.text and all(x in caught.value.text for x in said), caught.value
    caught.value.text.encode()


def test_what_is_no_data_set_is_one_line(rings, tmp_path):
    wrong("minst", "minst", "mnist, emnist, quickdraw")
    (tmp_path / "empty").mkdir()
    wrong(tmp_path / "empty", "a subfolder of pictures for each class", "none")
    wrong(shutil.copytree(rings / "Z", tmp_path / "flat"), "a subfolder of pictures", "none")
    shutil.copytree(rings / "Z", tmp_path / "lonely" / "Z")
    wrong(tmp_path / "lonely", "a subfolder of pictures for each class", "only 'z'")
    (tmp_path / "mnist").mkdir()
    with pytest.raises(UserError, match="mnist is taken"):
        a1_cond.Config(dataset=str(tmp_path / "mnist"))


def test_fewer_than_20_pictures_of_a_class_are_one_line(rings, tmp_path):
    folder = shutil.copytree(rings, tmp_path / "few")
    (folder / "Z" / "000.png").unlink()
    wrong(folder, "'z' has 19 pictures")


@pytest.mark.parametrize("name", [b"\xff\xfe\xfa", b"!!!", b"x" * 80, b"_ -"])
def test_a_folder_name_that_is_no_text_is_one_line(rings, tmp_path, name):
    folder = shutil.copytree(rings, tmp_path / "odd")
    try:
        os.rename(os.fsencode(folder / "Z"), os.fsencode(folder) + b"/" + name)
    except OSError:
        pytest.skip("this disk takes no such name")
    wrong(folder, "rename the folder")


def test_broken_pictures_are_counted_and_named_in_one_line(rings, tmp_path, capfd):
    folder = shutil.copytree(rings, tmp_path / "mixed")
    (folder / "Z" / "notes.png").write_text("no picture")
    whole = (rings / "Z" / "000.png").read_bytes()
    (folder / "Z" / "half.png").write_bytes(whole[: len(whole) // 2])
    (folder / "Z" / "empty.jpg").touch()
    for _ in range(2):  # the second time from the cache
        assert torch.equal(load(folder)[0], load(rings)[0])
        (said,) = [x for x in capfd.readouterr().err.splitlines() if str(folder) in x]
        assert "3 broken" in said and "z (20)" in said
        assert any(name in said for name in ("notes.png", "half.png", "empty.jpg"))


@pytest.mark.parametrize("flags", ["--dataset .", "--dataset {0} --out {0}/x", "--dataset {0}/.."])
def test_what_a_run_writes_does_not_lie_among_the_pictures(rings, tmp_path, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(UserError, match="inside the folder of pictures"):
        a1_cond.Config.parse(flags.format(tmp_path).split())


def test_words_that_name_a_class_are_said_of_none(tmp_path, capfd):
    folder = fill(tmp_path / "mine", ("thick lines", "Z"))
    values = np.random.default_rng(0).normal(size=(100, 2))
    assert [*attributes.thresholds(config_of(folder), values)] == ["slant"]
    (said,) = [line for line in capfd.readouterr().err.splitlines() if "thick" in line]
    assert "class" in said


# ── All that can be done with it ──


@pytest.mark.usefixtures("coarse_figures")
def test_odd_names_from_the_folder_to_a_prompt(here, tmp_path):
    """Dollar signs are formulas to matplotlib, plus signs operators to a regular expression."""
    folder = fill(tmp_path / "my own", ("007", "$5 or $x$", "c++"))
    command = ["a1_cond.py", "--dataset", "my own", *SMALL.split()]
    here(command, tmp_path)
    assert "complete" in here(command, tmp_path).stderr
    run = tmp_path / "results" / "my own" / "a1_cond"
    assert {"samples.png", "prompts.png"} <= {x.name for x in (run / "images").iterdir()}
    with np.load(run / "images" / "samples.npz") as table:
        for label, name in enumerate(config_of(folder).classes):
            assert all(name in prompt for prompt in table["prompts"][table["labels"] == label])
    for prompt in ("a c++", "$5 or $x$, drawn in seconds"):
        done = here(["a1_cond.py", "--dataset", "my own", "--prompt", prompt, "--n", "1"], tmp_path)
        assert (tmp_path / done.stdout.strip()).exists()
    shutil.move(folder, tmp_path / "elsewhere")
    only_error(here([*command, "--fresh"], tmp_path, check=1), "my own")
    assert (run / "images" / "samples.npz").exists(), "the earlier run is where it was"
    done = here(["a1_cond.py", "--dataset", "my own", "--prompt", "007", "--n", "1"], tmp_path)
    assert (tmp_path / done.stdout.strip()).exists(), "a prompt takes no pictures"


def test_a_run_is_known_by_its_pixels(here, rings, tmp_path):
    """Not by names, sizes or times of files."""
    folder, command = (
        shutil.copytree(rings, tmp_path / "grows"),
        f"a0_uncond.py --dataset grows {SMALL}",
    )
    here(command, tmp_path)
    last = tmp_path / "results" / "grows" / "a0_uncond" / "checkpoints" / "last.pt"
    state = torch.load(last, weights_only=True) | {"step": 2}  # as if it had been interrupted
    for path in sorted(folder.rglob("*.png")):
        Image.open(path).save(path.with_name(f"n{path.stem}.bmp"))
        path.unlink()
    torch.save(state, last)
    assert "resuming from step 2" in here(command, tmp_path).stderr
    torch.save(state, last)
    picture(5000).save(folder / "Z" / "n003.bmp")
    only_error(here(command, tmp_path, check=1), "grows", "was trained with data_crc32")
