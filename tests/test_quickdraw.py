"""QuickDraw: the first rows of Google's files, what goes wrong, names and words."""

import re
import threading
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from conftest import ROOT, contents, data_args

import a4_full
from kit import data, words
from kit.data import load_dataset
from kit.files import UserError

NAMES = words.CATEGORIES.read_text(encoding="utf-8").splitlines()
REAL = ROOT.parent / "shared" / "data" / "quickdraw"  # Google's own, where somebody put them


def npy(images, rows=None):
    """A .npy file as Google's are: images (N, 784), a header of 80 bytes, as NumPy wrote then."""
    shape = rows or len(images), images.shape[1]
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00F\x00" + text.ljust(69).encode() + b"\n" + images.tobytes()


def doodles(name, n=300):
    """n different images (n, 784)."""
    return np.random.default_rng(len(name)).integers(0, 256, (n, 784), np.uint8)


class Google(BaseHTTPRequestHandler):
    """server.files: name -> content; server.sent: bytes that were taken of them."""

    def log_message(self, *_):
        pass

    def do_HEAD(self, size=0):
        found = self.path.replace("%20", " ").split("/")[-1] in self.server.files
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        return found

    def do_GET(self):
        content = self.server.files.get(self.path.replace("%20", " ").split("/")[-1], b"")
        if self.do_HEAD(len(content)):
            for i in range(0, len(content), 65536):
                self.wfile.write(content[i : i + 65536])
                self.server.sent += len(content[i : i + 65536])


class Host(ThreadingHTTPServer):
    def handle_error(self, *_):
        """Whoever asked may hang up."""


@pytest.fixture
def google(offline, monkeypatch):
    httpd = Host(("127.0.0.1", 0), Google)
    httpd.files, httpd.sent = {}, 0
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(data, "QUICKDRAW_URL", f"http://127.0.0.1:{httpd.server_port}/bitmap/")
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def load(root, classes, per_class, split="train"):
    return load_dataset(data_args("quickdraw", classes, per_class=per_class, data_dir=root), split)


def test_the_first_rows_are_fetched_once_and_every_tenth_is_held_out(google, tmp_path):
    arrays = {name: doodles(name) for name in ("cat", "ice cream")}
    google.files = {f"{name}.npy": npy(array) for name, array in arrays.items()}
    pixels, labels, source = load(tmp_path, ["cat", "ice cream"], 40)
    sent = google.sent
    unseen, asked, _ = load(tmp_path, ["cat", "ice cream"], 40, "test")
    assert google.sent == sent > 0, "the second load is from disk"
    assert pixels.shape == (72, 28, 28) and pixels.dtype == torch.uint8
    assert (labels.bincount().tolist(), asked.bincount().tolist()) == ([36, 36], [4, 4])
    for label, array in enumerate(arrays.values()):
        rows = array[:40].reshape(4, 10, 28, 28)
        assert (pixels[labels == label].numpy() == rows[:, :9].reshape(-1, 28, 28)).all()
        assert (unseen[asked == label].numpy() == rows[:, 9]).all()
    assert len(load(tmp_path, ["cat"], 300)[0]) == 270, "more of them are fetched when asked for"
    assert len(load(tmp_path, ["cat"], 5000)[0]) == 270, "all that there are"


def test_no_more_than_the_rows_that_are_needed_is_read(google, tmp_path):
    """Of 63 MB; what was on its way when the connection was closed counts as well."""
    google.files["cat.npy"] = npy(np.tile(doodles("cat", 800), (100, 1)))
    assert len(load(tmp_path, ["cat"], 50)[0]) == 45
    assert google.sent < 0.3 * len(google.files["cat.npy"])
    assert sum(map(len, contents(tmp_path).values())) < 50 * 784 + 1000


def test_a_users_whole_file_needs_no_network(offline, tmp_path):
    (tmp_path / "quickdraw").mkdir()
    np.save(tmp_path / "quickdraw" / "cat.npy", doodles("cat", 100))
    before = contents(tmp_path)
    pixels, *_ = load(tmp_path, ["cat"], 50)
    assert (pixels[:9].view(9, 784).numpy() == doodles("cat", 100)[:9]).all() and len(pixels) == 45
    assert contents(tmp_path) == before


BAD_HOST = {
    "a web page": b"<html>" * 1000,
    "nothing": b"",
    "ends early": npy(doodles("cat", 100), rows=300),
    "ends in its header": npy(doodles("cat"))[:50],
    "another shape": npy(doodles("cat").reshape(-1, 392))[:9000],
    "not there": None,
}


@pytest.mark.parametrize("fault", BAD_HOST)
def test_a_bad_host_is_one_line_and_nothing_of_it_is_kept(google, tmp_path, fault):
    if BAD_HOST[fault] is not None:
        google.files["cat.npy"] = BAD_HOST[fault]
    with pytest.raises(UserError) as caught:
        load(tmp_path, ["cat"], 300)
    assert "127.0.0.1" in caught.value.text and "\n" not in caught.value.text
    google.files["cat.npy"] = npy(doodles("cat"))
    assert len(load(tmp_path, ["cat"], 300)[0]) == 270, "once the host is well again, so are we"


@pytest.mark.parametrize("fault", ["a web page", "floats", "another size", "a pickle"])
def test_a_users_file_without_bitmaps_is_one_line_and_stays(google, tmp_path, fault):
    google.files["cat.npy"], path = npy(doodles("cat")), tmp_path / "quickdraw" / "cat.npy"
    path.parent.mkdir()
    if fault == "a web page":
        path.write_bytes(b"<html>" * 1000)
    elif fault == "a pickle":
        np.save(path, np.array([{}]), allow_pickle=True)
    else:
        np.save(path, np.zeros((90, 784)) if fault == "floats" else np.zeros((90, 100), np.uint8))
    before = contents(tmp_path)
    with pytest.raises(UserError, match="cat.npy cannot be read .*; move it away") as caught:
        load(tmp_path, ["cat"], 50)
    assert "\n" not in caught.value.text and contents(tmp_path) == before


def test_no_network_names_the_host(offline, tmp_path):
    with pytest.raises(UserError, match="storage.googleapis.com"):
        load(tmp_path, ["ice cream", "cat"], 300)


def test_many_classes_cost_little_more_than_their_pixels(offline, tmp_path):
    """345 of them with 5,000 images each: 1.4 GB, not 2.8 or 5."""
    (tmp_path / "quickdraw").mkdir()
    for name in NAMES[:30]:
        np.save(tmp_path / "quickdraw" / f"{name}.npy", doodles(name, 1000))
    tracemalloc.start()
    pixels, *_ = load(tmp_path, NAMES[:30], 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pixels.numel() == 27_000 * 784 <= peak < 1.2 * pixels.numel()


# ── Names ──

BAD_CLASSES = {
    ("cat", "trian"): "no 'trian'; did you mean train",
    ("xyzzy", "cat"): "no 'xyzzy'",
    ("cat", "cat"): "at least two different ones",
    ("cat",): "at least two different ones",
    ("cat,train",): "no 'cat,train'",
}


@pytest.mark.parametrize("classes", BAD_CLASSES)
def test_classes_that_are_none_are_one_line(classes):
    with pytest.raises(UserError) as caught:
        a4_full.Config.parse(["--dataset", "quickdraw", "--classes", *classes])
    assert BAD_CLASSES[classes] in caught.value.text and "\n" not in caught.value.text


def test_any_of_the_345_by_name_or_ten_by_default():
    config = a4_full.Config.parse(
        ["--dataset", "quickdraw", "--classes", "ice cream", "The Mona Lisa"]
    )
    assert config.classes == ("ice cream", "The Mona Lisa") and config.per_class == 5000
    config = a4_full.Config.parse(["--dataset", "quickdraw"])
    assert config.classes == words.DRAWINGS and {*config.classes} < {*NAMES}
    assert len(config.classes) == 10 and len({*NAMES}) == 345
    with pytest.raises(UserError, match="the classes of mnist are zero, one"):
        a4_full.Config.parse(["--classes", "cat", "train"])


def test_their_words_have_articles_and_no_template_names_a_category():
    spoken = dict(zip(NAMES, words.class_words(data_args("quickdraw", NAMES))))
    articles = dict.fromkeys(("cat", "bus"), "a ") | dict.fromkeys(("owl", "hourglass"), "an ")
    articles |= dict.fromkeys(("pants", "eyeglasses", "The Mona Lisa"), "") | {"octopus": "an "}
    for name, article in articles.items():
        assert spoken[name] == (name, article + name)
    for templates in (words.TRAIN_TEMPLATES, words.HELDOUT_TEMPLATES):
        for template in templates["quickdraw"]:
            assert not {*re.findall(r"[\w-]+", template.lower())} & {*NAMES}


@pytest.mark.skipif(not REAL.exists(), reason="no real bitmaps here")
def test_real_bitmaps_are_upright_white_on_black(google, tmp_path):
    names = "cat", "rainbow", "train"
    google.files = {f"{name}.npy": (REAL / f"{name}.npy").read_bytes() for name in names}
    pixels, labels, _ = load(tmp_path, names, 1000)
    assert labels.bincount().tolist() == [900] * 3 and pixels.median() == 0
    rainbow = pixels[labels == 1].float().mean(0)
    assert rainbow[4:12, 10:18].mean() > rainbow[18:26, 10:18].mean() + 13, "the arch is at the top"
