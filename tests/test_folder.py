"""--dataset PATH: a folder of one's own pictures, from its names to a generated image."""

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import data_args, only_error
from PIL import Image

import a1_cond
from kit import words
from kit.data import embedded_mnist, load_dataset
from kit.files import UserError, load_arrays
from kit.folder import read_picture

SMALL = "--train-steps 3 --batch-size 8 --samples 20 --sample-steps 2 --widths 8 16"


def picture(i):
    """A ring and a dot in black on white, other ones for each i."""
    rng, (y, x) = np.random.default_rng(i), np.mgrid[:40, :40]
    ring = abs(np.hypot(y - 20, x - 20) - rng.uniform(6, 12)) < rng.uniform(1, 3)
    dot = np.hypot(y - rng.uniform(5, 35), x - rng.uniform(5, 35)) < 3
    return Image.fromarray(np.where(ring | dot, 0, 255).astype(np.uint8))


def fill(folder, names=("big_A", "Z")):
    for k, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(20):
            picture(100 * k + i).save(folder / name / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="module")
def rings(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("made") / "rings")


def config_of(folder):
    config = data_args(str(folder), ())
    config.classes = words.class_names(config)
    return config


def load(folder, split="train"):
    return load_dataset(config_of(folder), split)


def test_names_become_words_and_every_tenth_picture_is_held_out(rings, capfd):
    pixels, labels, _ = load(rings)
    held_out, asked, _ = load(rings, "test")
    assert config_of(rings).classes == ("big a", "z")
    assert words.class_words(config_of(rings), ("thick",))[0] == ("thick big a", "a thick big a")
    assert pixels.dtype == torch.uint8 and pixels.shape == (36, 28, 28)
    assert labels.bincount().tolist() == [18, 18] and asked.bincount().tolist() == [2, 2]
    assert not {*map(bytes, pixels.numpy())} & {*map(bytes, held_out.numpy())}
    said = capfd.readouterr().err.splitlines()[0]
    assert said.count("20") >= 2 and "inverted to light on dark" in said and "left out" not in said
    assert pixels[:, 0].max() == 0 and pixels.amax((1, 2)).min() == 255


def test_neither_order_nor_accents_of_the_file_system_count(tmp_path, monkeypatch):
    """macOS writes é as e and an accent, others as one character."""
    found, iterdir, rglob = [], Path.iterdir, Path.rglob
    for form in ("NFC", "NFD"):
        names = [unicodedata.normalize(form, name) for name in ("école", "zèbre")]
        folder = fill(tmp_path / form, names)
        for i in range(20):
            name = unicodedata.normalize(form, f"{'éfz'[i % 3]}{i}.png")
            (folder / names[0] / f"{i:03d}.png").rename(folder / names[0] / name)
        found.append((config_of(folder).classes, load(folder)[0].tolist()))
        monkeypatch.setattr(Path, "iterdir", lambda self: reversed([*iterdir(self)]))
        monkeypatch.setattr(Path, "rglob", lambda self, glob: reversed([*rglob(self, glob)]))
    assert found[0] == found[1] and found[0][0] == ("zèbre", "école")


def test_proportions_are_kept_and_any_mode_is_read(tmp_path):
    wide = np.full((50, 200), 255, np.uint8)
    wide[20:30, 20:180] = 0
    plain, clear = Image.fromarray(wide), np.dstack([np.zeros_like(wide), 255 - wide])
    pictures = {f"{mode}.png": plain.convert(mode) for mode in ("L", "1", "P", "RGB", "RGBA", "LA")}
    pictures["CMYK.jpg"] = plain.convert("CMYK")
    pictures["F.tif"] = Image.fromarray(wide / np.float32(255))
    pictures["12 of 16 bits.png"] = Image.fromarray(wide.astype(np.uint16) * 16)
    pictures["black on nothing.png"] = Image.fromarray(clear, "LA")
    for name, image in pictures.items():
        image.save(tmp_path / name)
        found = read_picture(tmp_path / name)
        assert found.shape == (28, 28) and found.dtype == np.uint8, name
        rows, columns = (np.flatnonzero((found < 128).any(axis)) for axis in (1, 0))
        assert len(rows) <= 2 and 21 <= len(columns) <= 23, name  # 10 x 160 of 50 x 200
        assert found[0].min() == 255 and found.min() == 0, name
    star = np.zeros((28, 28, 2), np.uint8)
    star[10:18, 10:18] = 255
    Image.fromarray(star, "LA").save(tmp_path / "star.png")
    assert np.array_equal(read_picture(tmp_path / "star.png"), star[..., 0]), "white stays white"
    image, exif = Image.fromarray(np.tile(np.arange(60, dtype=np.uint8) * 4, (30, 1))), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, as the camera was held
    image.save(tmp_path / "turned.jpg", exif=exif)
    found = read_picture(tmp_path / "turned.jpg")
    assert found[2:26, 14].std() > 50 and found[14, 9:19].std() < 10


def test_the_range_of_values_does_not_count(tmp_path):
    """Of numbers of any type and sign the lowest becomes black and the highest white."""
    for digit in embedded_mnist("train")[0][::1000].numpy():
        values = digit.astype(np.float32) / 255
        for name, array in {"int16": (2000 * values - 1000).astype(np.int16).view(np.uint16),
                            "z-scored": (values - values.mean()) / values.std(),
                            "uint16": (100 + 900 * values).astype(np.uint16),
                            "int32": (-5 * values * 10**6).astype(np.int32)}.items():  # fmt: skip
            path, signed = tmp_path / f"{name}.tif", {339: 2} if name == "int16" else {}
            Image.fromarray(array).save(path, tiffinfo=signed)
            alike = np.corrcoef(read_picture(path).flat, digit.flat)[0, 1]
            assert (-alike if name == "int32" else alike) > 0.999, name


def test_the_first_page_that_is_not_blank_is_read_and_a_blank_picture_left_out(rings, tmp_path):
    blank, expected = Image.new("L", (40, 40), 255), read_picture(rings / "Z" / "000.png")
    ring = Image.open(rings / "Z" / "000.png")
    for name in ("a.gif", "a.tif", "a.webp", "a.png"):
        pages = {"append_images": [ring, blank], "save_all": True, "lossless": True}
        blank.save(tmp_path / name, **pages)
        assert np.abs(read_picture(tmp_path / name).astype(int) - expected).max() <= 8, name
        blank.save(tmp_path / name)
        with pytest.raises(ValueError, match="blank"):
            read_picture(tmp_path / name)


def test_what_is_broken_left_out_or_merged_is_counted_in_one_line(rings, tmp_path, capfd):
    """And folders of tools hold no pictures to learn from."""
    folder, expected = shutil.copytree(rings, tmp_path / "phone"), load(rings)[0]
    for name in ".thumbs @eaDir __MACOSX Z/.ipynb_checkpoints Z/@eaDir z/x/__MACOSX".split():
        shutil.copytree(rings / "Z", folder / name)
    picture(7).save(folder / "z" / "x" / "C.PNG")
    Image.open(rings / "Z" / "000.png").convert("L").save(folder / "z" / "photo.JFIF", "jpeg")
    Image.new("L", (9, 9), 7).save(folder / "z" / "grey.png")
    (folder / "Z" / "half.png").write_bytes((rings / "Z" / "000.png").read_bytes()[:90])
    (folder / "Z" / "empty.jpg").touch()
    for name in "labels.csv z/clip.heic Z/notes.txt Z/notes.png Z/Thumbs.db Z/.DS_Store".split():
        (folder / name).write_text("no picture")
    for n, first in ((7, "labels.csv (in no class)"), (6, "empty.jpg (cannot identify image)")):
        assert torch.equal(load(folder)[0][:-2], expected)
        (said,) = [x for x in capfd.readouterr().err.splitlines() if str(folder) in x]
        assert "20 of big a, 22 of z (in 2 folders)" in said
        assert f"left out: {n} files, such as {folder}" in said and first in said
        (folder / "labels.csv").unlink(missing_ok=True)  # the second time from the cache


def test_what_is_no_data_set_is_one_line(rings, tmp_path):
    def wrong(folder, *said):
        with pytest.raises(UserError) as caught:
            load(folder)
        assert all(x in caught.value.text.encode().decode() for x in said), caught.value

    wrong("minst", "minst", "mnist, emnist, quickdraw")
    wrong("x" * 300, "neither a folder nor one of")
    (tmp_path / "mnist").mkdir()
    wrong(tmp_path / "mnist", "a subfolder for each class", "[]")
    wrong(rings / "Z", "a subfolder for each class", "[]")
    shutil.copytree(rings / "Z", tmp_path / "lonely" / "Z")
    wrong(tmp_path / "lonely", "a subfolder for each class", "['z']")
    few = shutil.copytree(rings, tmp_path / "few")
    (few / "Z" / "000.png").unlink()
    wrong(few, "'z' has 19 pictures")
    shutil.copytree(rings, tmp_path / "odd")
    (tmp_path / "odd" / "Z").rename(tmp_path / "odd" / "!!!")
    wrong(tmp_path / "odd", "rename the folder")
    for part in ("test", "train", "__MACOSX"):
        shutil.copytree(rings, tmp_path / "pets" / part)
        (tmp_path / "pets" / part / ".cache").mkdir()
    remedy = f"choose one of them, such as --dataset {tmp_path}/pets/train"
    wrong(tmp_path / "pets", "contains Z, big_A; ", remedy)
    assert config_of(tmp_path / "pets" / "train").classes == ("big a", "z")
    with pytest.raises(UserError, match="mnist is taken"):
        a1_cond.Config(dataset=str(tmp_path / "mnist"))


@pytest.mark.parametrize("flags", ["--dataset .", "--dataset {0} --out {0}/x", "--dataset {0}/.."])
def test_what_a_run_writes_does_not_lie_among_the_pictures(tmp_path, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="inside the folder of pictures"):
        a1_cond.Config.parse(flags.format(tmp_path).split())


@pytest.mark.usefixtures("coarse_figures")
def test_odd_names_from_the_folder_to_a_prompt(here, tmp_path):
    """Dollar signs are formulas to matplotlib, plus signs operators to a regular expression."""
    folder = fill(tmp_path / "my own", ("007", "$5 or $x$", "c++", "None"))
    script = ["a1_cond.py", "--dataset", "my own"]
    here([*script, *SMALL.split()], tmp_path)
    assert "complete" in here([*script, *SMALL.split()], tmp_path).stderr
    samples = tmp_path / "results" / "my own" / "a1_cond" / "images" / "samples.npz"
    table, classes = load_arrays(samples), config_of(folder).classes
    for label, prompt in zip(table["labels"], table["prompts"]):
        assert classes[label] in prompt
    for prompt in ("a c++", "$5 or $x$, drawn in seconds", "007", "none"):
        done = here([*script, "--n", "1", "--prompt", prompt], tmp_path)
        assert (tmp_path / done.stdout.strip()).exists()
        if prompt == "$5 or $x$, drawn in seconds":
            shutil.move(folder, tmp_path / "elsewhere")  # a prompt takes no pictures
    only_error(here([*script, *SMALL.split(), "--fresh"], tmp_path, check=1), "my own")
    assert samples.exists(), "the earlier run is where it was"


def test_a_run_is_known_by_its_pixels(here, rings, tmp_path):
    """Not by names, sizes or times of files."""
    folder = shutil.copytree(rings, tmp_path / "own")
    here(command := f"a0_uncond.py --dataset own {SMALL}", tmp_path)
    last = tmp_path / "results" / "own" / "a0_uncond" / "checkpoints" / "last.pt"
    state = torch.load(last, weights_only=True) | {"step": 2}  # as if it had been interrupted
    for path in sorted(folder.rglob("*.png")):
        Image.open(path).save(path.with_name(f"n{path.stem}.bmp"))
        path.unlink()
    torch.save(state, last)
    assert "resuming from step 2" in here(command, tmp_path).stderr
    assert "complete" in here(command, tmp_path).stderr
    for one, other in (("Z", "a"), ("big_A", "Z"), ("a", "big_A")):  # the classes trade names
        (folder / one).rename(folder / other)
    only_error(here(command, tmp_path, check=1), "own", "was trained with data_crc32")
    shutil.rmtree(folder)
    shutil.copytree(rings, folder)
    assert "complete" in here(command, tmp_path).stderr
    torch.save(state, last)
    picture(5000).save(folder / "Z" / "003.png")
    only_error(here(command, tmp_path, check=1), "own", "was trained with data_crc32")
