"""QuickDraw: the beginnings of Google's files, by Range; what goes wrong; names and words."""

import http.server
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CPU, data_args
from matplotlib.image import imread

import a4_full
import common
import compare
import evaluate
from kit import base, captions, clip, datasets, judge, pictures, quickdraw, samples, tiny_clip
from kit.encoders import load_clip

NAMES = (base.ROOT / "assets" / "quickdraw_categories.txt").read_text().splitlines()
REAL = (
    base.ROOT.parent / "shared" / "data" / "quickdraw"
)  # Google's own bitmaps, where somebody has put them


def npy(images, shape=None, descr="|u1", length=80):
    """A .npy file as Google's are: images (N, 784), a header of 80 bytes, as NumPy wrote then."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape or images.shape}, }}"
    return (
        b"\x93NUMPY\x01\x00"
        + (length - 10).to_bytes(2, "little")
        + text.ljust(length - 11).encode()
        + b"\n"
        + images.tobytes()
    )


class Google(http.server.BaseHTTPRequestHandler):
    """Answers Range as Google's storage does; server.fault is what it does wrong."""

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.send_response(200)
        self.end_headers()

    def do_GET(self):
        server, name = (
            self.server,
            self.path.split("/")[-1].replace("%20", " ").removesuffix(".npy"),
        )
        first, last = map(int, re.match(r"bytes=(\d+)-(\d+)$", self.headers["Range"]).groups())
        server.requests.append((name, first, last))
        server.busy += 1
        server.busiest = max(server.busiest, server.busy)
        time.sleep(server.slow)
        server.busy -= 1  # before the answer: whoever has all of it may ask the next
        data, fault = server.files.get(name), server.fault
        if data is None:
            self.send_error(404)
        elif first >= len(data):
            self.send_error(416)
        else:
            part = data if fault == "ignores Range" else data[first : last + 1]
            self.send_response(200 if fault == "ignores Range" else 206)
            if fault != "ignores Range":
                self.send_header(
                    "Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}"
                )
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(
                part[: len(part) // 2] if fault == "stops" or fault == "stops once" else part
            )
            if fault == "stops once":
                server.fault = None


@pytest.fixture
def google(server, monkeypatch):
    """A host of bitmaps: google.files is name -> content of its file."""
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Google)
    httpd.requests, httpd.files, httpd.fault, httpd.slow, httpd.busy, httpd.busiest = (
        [],
        {},
        None,
        0,
        0,
        0,
    )
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(quickdraw, "HOST", f"http://127.0.0.1:{httpd.server_port}/bitmap/")
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def doodles(name, n=300):
    """n images (n, 784) drawn after their name's letters: bars where their bits are set."""
    rng, bits = (
        np.random.default_rng(len(name)),
        np.unpackbits(np.frombuffer(name.encode()[:3].ljust(3), np.uint8)),
    )
    images = np.zeros((n, 28, 28), np.uint8)
    for i, bit in enumerate(bits):
        images[:, 2 + i, 4:24] = 255 * bit
    images[rng.random(images.shape) < 0.02] = 255
    return images.reshape(n, 784)


def load(root, classes, per_class, split="train"):
    which = {"per_class": per_class, "data_dir": root}
    return common.load_dataset(data_args("quickdraw", classes, **which), split)


def test_only_the_beginning_is_fetched_and_later_more_of_it(google, tmp_path):
    arrays = {name: doodles(name) for name in ("cat", "ice cream")}
    google.files = {name: npy(array) for name, array in arrays.items()}
    pixels, labels, _ = load(tmp_path, ["cat", "ice cream"], 40)
    assert torch.bincount(labels).tolist() == [36, 36]
    assert pixels.shape == (72, 28, 28) and pixels.dtype == torch.uint8
    assert sum(last - first + 1 for _, first, last in google.requests) <= 2 * (128 + 40 * 784)
    unseen, _, _ = load(tmp_path, ["cat", "ice cream"], 40, "test")
    got = torch.cat([pixels[labels == 1], unseen[4:]]).view(40, 784).numpy()
    order = [i for i in range(40) if i % 10 < 9] + [9, 19, 29, 39]
    assert (got == arrays["ice cream"][order]).all()
    assert len(google.requests) == 2, "the second load is from disk"
    assert len(load(tmp_path, ["cat"], 300)[0]) == 270
    assert (
        google.requests[2][1] == 128 + 40 * 784
        and (tmp_path / "quickdraw/cat.npy").read_bytes() == google.files["cat"]
    )


def test_a_category_with_fewer_images_gives_all_it_has(google, tmp_path):
    google.files = {"cat": npy(doodles("cat", 50), length=128)}
    assert len(load(tmp_path, ["cat"], 5000)[0]) == 45 and len(google.requests) == 1
    assert len(load(tmp_path, ["cat"], 5000)[0]) == 45 and len(google.requests) == 1


def test_a_file_put_there_by_hand_needs_no_network(offline, tmp_path):
    (tmp_path / "quickdraw").mkdir()
    np.save(tmp_path / "quickdraw" / "cat.npy", doodles("cat", 100))
    assert len(load(tmp_path, ["cat"], 50)[0]) == 45


def test_four_at_a_time(google, tmp_path):
    google.files, google.slow = {name: npy(doodles(name, 30)) for name in NAMES[:12]}, 0.05
    load(tmp_path, NAMES[:12], 30)
    assert google.busiest == 4 and len(google.requests) == 12


def test_a_broken_connection_goes_on_where_it_stopped(google, tmp_path, capfd):
    google.files, google.fault = {"cat": npy(doodles("cat"))}, "stops once"
    assert len(load(tmp_path, ["cat"], 300)[0]) == 270
    assert google.requests[1][1] == (80 + 300 * 784 + 48) // 2 or google.requests[1][1] > 100_000
    google.files["dog"], google.fault = npy(doodles("dog")), "stops"
    with pytest.raises(
        base.UserError, match=r"dog.npy: the connection breaks at byte \d+ of 235280; "
    ):
        load(tmp_path, ["dog"], 300)
    kept, google.fault = (tmp_path / "quickdraw/dog.npy").stat().st_size, None
    assert (
        kept > 200_000
        and len(load(tmp_path, ["dog"], 300)[0]) == 270
        and google.requests[-1][1] == kept
    )


BAD_HOST = {  # fault -> the file served, what the server does wrong, words of the message
    "ignores Range": (npy(doodles("cat")), "ignores Range", "ignores Range"),
    "ends early": (npy(doodles("cat")[:100], shape=(300, 784)), None, "ends early"),
    "ends in its header": (npy(doodles("cat"))[:50], None, "cat.npy"),
    "another shape": (npy(doodles("cat").reshape(-1, 392)), None, "(600, 392), not uint8 (N, 784)"),
    "another type": (npy(doodles("cat"), descr="<f4"), None, "float32"),
    "no .npy": (b"<html>" * 1000, None, "magic string"),
    "unknown to the host": (None, None, "404 Not Found at byte 0"),
}


@pytest.mark.parametrize("fault", BAD_HOST)
def test_a_bad_host_is_one_line_and_nothing_of_it_is_trained_on(google, tmp_path, fault):
    google.files["cat"], google.fault, words = BAD_HOST[fault]
    with pytest.raises(base.UserError) as caught:
        load(tmp_path, ["cat"], 300)
    assert (
        words in str(caught.value)
        and quickdraw.HOST in str(caught.value)
        and "\n" not in str(caught.value)
    )
    google.files["cat"], google.fault = npy(doodles("cat")), None
    assert len(load(tmp_path, ["cat"], 300)[0]) == 270, "once the host is well again, so are we"


def test_a_file_that_changed_at_its_host_is_not_appended_to_the_old_one(google, tmp_path):
    google.files["cat"] = npy(doodles("cat"))
    load(tmp_path, ["cat"], 50)
    before, google.files["cat"] = (
        (tmp_path / "quickdraw/cat.npy").read_bytes(),
        npy(doodles("cat", 200)),
    )
    with pytest.raises(base.UserError, match="another file by now"):
        load(tmp_path, ["cat"], 100)
    assert (tmp_path / "quickdraw/cat.npy").read_bytes() == before and len(
        load(tmp_path, ["cat"], 50)[0]
    ) == 45


FOREIGN = {
    "a web page": b"<html>" * 1000,
    "empty": b"",
    "a header that stops half-way": npy(doodles("cat"))[:40],
    "another shape": npy(np.zeros((9, 100), np.uint8)),
    "a pickle": b"\x80\x04\x95",
    "no drawings": npy(np.zeros((0, 784), np.uint8)),
    "less than none": npy(np.zeros((9, 784), np.uint8), shape="(-5, 784)"),
    "a header without an end": npy(np.zeros((9, 784), np.uint8), shape="(9, 784"),
}


@pytest.mark.parametrize("fault", FOREIGN)
def test_what_holds_no_bitmaps_stays_and_they_are_fetched_beside_it(google, tmp_path, capfd, fault):
    google.files["cat"] = npy(doodles("cat"))
    mine = tmp_path / "quickdraw" / "cat.npy"
    mine.parent.mkdir()
    mine.write_bytes(FOREIGN[fault])
    for _ in range(2):
        assert len(load(tmp_path, ["cat"], 300)[0]) == 270
    assert mine.read_bytes() == FOREIGN[fault] and len(google.requests) == 1
    assert capfd.readouterr().err.count("cat.npy holds no bitmaps") == 1
    assert (mine.parent / "cat-fetched.npy").exists()


def test_a_gap_of_zeros_is_no_drawing(google, tmp_path):
    path = tmp_path / "quickdraw" / "cat.npy"
    path.parent.mkdir()
    content = bytearray(npy(doodles("cat")))
    content[80_000:90_000] = bytes(10_000)
    path.write_bytes(content)
    with pytest.raises(base.UserError, match="cat.npy cannot be read .zeros instead of drawings"):
        load(tmp_path, ["cat"], 300)
    path.rename(tmp_path / "moved away")  # the remedy
    google.files["cat"] = npy(doodles("cat"))
    assert len(load(tmp_path, ["cat"], 300)[0]) == 270


def test_two_at_once_fetch_a_category_once(google, tmp_path):
    google.files, google.slow = {name: npy(doodles(name)) for name in NAMES[:6]}, 0.1
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(load, tmp_path, NAMES[:6], 300) for _ in range(2)]
        loaded = [job.result() for job in jobs]
    assert torch.equal(loaded[0][0], loaded[1][0])


def test_no_network_names_the_file_and_its_place(offline, tmp_path):
    with pytest.raises(
        base.UserError,
        match="ice%20cream.npy and put it at .*quickdraw/ice cream.npy, and so on for 1",
    ):
        load(tmp_path, ["ice cream", "cat"], 300)


BAD_FLAGS = {
    "--dataset quickdraw --classes cat,trian": "no 'trian'; did you mean train",
    "--dataset quickdraw --classes xyzzy,cat": "no 'xyzzy' (",
    "--dataset quickdraw --classes cat,cat": "at least two",
    "--dataset quickdraw --per-class 3": "from 20 to",
    "--dataset quickdraw --emnist-split letters": "--emnist-split goes with --dataset emnist",
    "--dataset emnist --emnist-split bymerge": "choose from",
    "--dataset emnist --classes cat,train": "--classes goes with --dataset quickdraw",
    "--per-class 500": "--per-class goes with --dataset quickdraw, not mnist",
}


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_bad_flags_are_one_line(here, tmp_path, flags):
    err = here(f"a4_full.py {flags}", tmp_path, check=2).stderr
    assert len(err.splitlines()) == 1 and BAD_FLAGS[flags] in err and not [*tmp_path.iterdir()]


def test_no_network_and_nothing_kept_is_one_line_in_a_terminal_too(cli, tmp_path):
    done = cli("a1_cond.py --dataset quickdraw", tmp_path, check=2)
    assert len(done.stderr.splitlines()) == 1 and "data/quickdraw/apple.npy" in done.stderr


def test_the_345_names_their_words_and_templates():
    assert (
        len(set(NAMES)) == 345 and {*datasets.DRAWINGS} < {*NAMES} and len(datasets.DRAWINGS) == 10
    )
    words = dict(zip(NAMES, datasets.class_words(data_args("quickdraw", NAMES))))
    assert (
        words["cat"] == ("cat", "a cat")
        and words["owl"] == ("owl", "an owl")
        and words["bus"] == ("bus", "a bus")
    )
    assert words["pants"] == ("pants", "pants") and words["The Mona Lisa"] == ("The Mona Lisa",) * 2
    for template in datasets.TRAIN_TEMPLATES["quickdraw"] + datasets.HELDOUT_TEMPLATES["quickdraw"]:
        assert not {*re.findall(r"[\w-]+", template.lower())} & {*NAMES}, (
            "a template must name no category"
        )


def test_a_grid_shows_26_columns_at_most_and_says_which(tmp_path):
    shown = pictures.shown_classes(345, 2000)
    assert (
        len(set(shown)) == 26 and shown[0] == 0 and shown[-1] == 344 and (np.diff(shown) > 0).all()
    )
    assert pictures.shown_classes(10, 2000).tolist() == [*range(10)] and pictures.shown_classes(
        345, 5
    ).tolist() == [*range(5)]
    pixels, sizes = np.zeros((52, 28, 28), np.uint8), []
    for titles in (["seven"] * 26, ["The Great Wall of China"] * 26):
        pictures.save_grid(tmp_path / "grid.png", pixels, 26, "a title", titles)
        sizes.append(imread(tmp_path / "grid.png").shape)
    assert sizes[1][0] > sizes[0][0] + 150, "long names stand upright"


def test_a_tiny_clip_is_trained_once_for_each_data_set_and_never_taken_for_another(
    google, tmp_path, monkeypatch, capfd
):
    google.files = {name: npy(doodles(name, 40)) for name in ("cat", "dog", "owl")}
    monkeypatch.setattr(tiny_clip, "STEPS", 2)
    pets = data_args("quickdraw", ["cat", "dog"], per_class=40, data_dir=tmp_path)
    birds = data_args("quickdraw", ["cat", "owl"], per_class=40, data_dir=tmp_path)
    one = load_clip("tiny", pets, CPU)
    assert "once" in capfd.readouterr().err and one.learned == ["quickdraw", ["cat", "dog"]]
    again, other = load_clip("tiny", pets, CPU), load_clip("tiny", birds, CPU)
    assert capfd.readouterr().err.count("once") == 1 and again.crc32 == one.crc32 != other.crc32
    path = tiny_clip.tiny_path(pets)
    assert path.is_relative_to(tmp_path) and path != tiny_clip.tiny_path(birds)
    tiny_clip.tiny_path(birds).write_bytes(
        path.read_bytes()
    )  # a file copied to a name that is not its own
    for name, args in {
        "tiny": birds,
        str(path): data_args(),
        str(tiny_clip.EMBEDDED): pets,
    }.items():
        with pytest.raises(base.UserError, match="learned to read"):
            load_clip(name, args, CPU)
    assert load_clip(str(path), pets, CPU).dim == 64


def test_thirty_categories_from_the_host_to_the_report(google, tmp_path, monkeypatch, capfd):
    """Every step at tiny size: train, draw, prompt, evaluate, compare."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(captions, "MOST", 400)
    monkeypatch.setattr(tiny_clip, "STEPS", 2)

    def no_clip(name):
        raise base.UserError("no CLIP here")

    monkeypatch.setattr(clip, "fetch_clip", no_clip)
    names = NAMES[:60:2]
    google.files = {name: npy(doodles(name, 40)) for name in names}
    flags = (
        "--dataset quickdraw --train-steps 4 --batch-size 8 --samples 70 --sample-steps 1".split()
    )
    which = ["--classes", ",".join(names), "--per-class", "40"]
    a4_full.main([*flags, *which])
    assert "CLIP: training a tiny one for quickdraw, once" in capfd.readouterr().err
    run = tmp_path / "results" / "quickdraw" / "a4_full"
    config = json.loads((run / "config.json").read_text())
    assert config["classes"] == names and (config["per_class"], config["image_count"]) == (
        40,
        30 * 36,
    )
    assert config["text_encoder"] == "tiny" and config["data_source"] == "QuickDraw"
    _, labels, prompts = samples.load_samples(run / "images" / "samples_w2.0.npz")
    assert np.bincount(labels).tolist() == [3] * 10 + [2] * 20
    words = datasets.class_words(data_args("quickdraw", names))
    assert all(words[y][0] in prompt for y, prompt in zip(labels, prompts))
    grid = imread(run / "images" / "samples.png")
    assert abs(grid.shape[1] / 60 - 26) < 2, "26 columns of 0.3 inches at 200 dots"

    prompt = ["--prompt", f"a doodle of {names[3]}"]
    a4_full.main([*"--dataset quickdraw --n 2 --sample-steps 1".split(), *prompt])
    done = capfd.readouterr()
    assert (tmp_path / done.out.strip()).exists() and "note" not in done.err
    a4_full.main([*flags, *which])
    assert "complete" in capfd.readouterr().err
    with pytest.raises(base.UserError, match="has classes"):
        a4_full.main(flags)

    monkeypatch.setattr(judge, "STEPS", 20)
    evaluate.main(["--dataset", "quickdraw", "--extractor", "judge"])
    said = capfd.readouterr().err
    assert "judge: training one for quickdraw, once" in said and "of 120 held-out ones" in said
    assert "only 60 held-out images are the reference: FID, KID, density and coverage" in said
    rows = pd.read_csv(run / "metrics" / "clip_sim_scores.csv")
    assert [*rows["n"]] == [70] * 6 + [60] * 2 and {*rows["text_encoder"]} == {"tiny"}
    assert pd.read_csv(run / "metrics" / "fid_scores.csv")["fid_judge"].isna().all()
    compare.main(["--dataset", "quickdraw"])
    page = (tmp_path / capfd.readouterr().out.strip().splitlines()[-1]).read_text()
    assert f"Classes (30): {', '.join(names[:26])} and 4 more." in page
    text = (run.parent / "compare" / "report.md").read_text()
    assert "too few for FID" in text and "Speed against" not in text and "nan" not in text

    other = tmp_path / "results" / "pair" / "quickdraw" / "a4_full"
    other.mkdir(parents=True)
    (other / "images").symlink_to(run / "images")
    (other / "config.json").write_text(json.dumps(config | {"classes": names[:2]}))
    evaluate.main(["--dataset", "quickdraw", "--extractor", "judge"])
    assert f"left out: {other.relative_to(tmp_path)}" in capfd.readouterr().err
    assert not (other / "metrics").exists()


@pytest.mark.skipif(not REAL.exists(), reason="no real bitmaps here")
def test_real_bitmaps_are_upright_white_on_black(google, tmp_path):
    google.files = {
        name: (REAL / f"{name}.npy").read_bytes() for name in ("cat", "rainbow", "train")
    }
    pixels, labels, _ = load(tmp_path, ["cat", "rainbow", "train"], 5000)
    assert torch.bincount(labels).tolist() == [900] * 3 and pixels.median() == 0
    rainbow = pixels[labels == 1].float().mean(0)
    top, bottom = rainbow[4:12, 10:18].mean(), rainbow[18:26, 10:18].mean()
    assert top > bottom + 13, "the arch is at the top"
    assert set(google.requests) == {(name, 0, 127 + 784 * 5000) for name in google.files}


def test_each_process_keeps_its_share_of_every_class(tmp_path):
    folder = tmp_path / "quickdraw"
    folder.mkdir()
    for name, n in (("cat", 40), ("train", 31)):
        (folder / f"{name}.npy").write_bytes(npy(doodles(name, n)))
    whole = quickdraw.quickdraw(tmp_path, "train", ["cat", "train"], 100)
    parts = [
        quickdraw.quickdraw(tmp_path, "train", ["cat", "train"], 100, slice(rank, None, 3))
        for rank in range(3)
    ]
    assert sum(len(pixels) for pixels, _ in parts) == len(whole[0]) == 36 + 28
    for label in (0, 1):
        of_class = whole[0][whole[1] == label]
        for rank, (pixels, labels) in enumerate(parts):
            assert torch.equal(pixels[labels == label], of_class[rank::3])
