"""QuickDraw: the first rows of Google's files, what goes wrong, names and words."""

import io
import tracemalloc
import urllib.parse

import numpy as np
import pytest
import torch
from conftest import ROOT, Handler, contents, data_args

import a4_full
from kit import data, words
from kit.data import load_dataset
from kit.files import UserError

NAMES = (ROOT / "assets/quickdraw_categories.txt").read_text(encoding="utf-8").splitlines()


def npy(images, rows=None, kind="|u1"):
    """A .npy file as Google's are: images (N, 784), a header of 80 bytes, as NumPy wrote then."""
    shape = rows or len(images), images.shape[1]
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00F\x00" + text.ljust(69).encode() + b"\n" + images.tobytes()


def doodles(n=300, seed=0):
    """n different images (n, 784)."""
    return np.random.default_rng(seed).integers(0, 256, (n, 784), np.uint8)


@pytest.fixture
def google(server, monkeypatch):
    """.files: name -> content of what is served; .sent: how many bytes of it were taken."""
    server.files, server.sent, send_head = {}, 0, Handler.send_head
    server.handle_error = lambda *_: None  # who asked may hang up

    def answer(self):
        content = server.files.get(urllib.parse.unquote(self.path)[1:])
        if content is None:
            return send_head(self)
        self.send_response(200)
        self.end_headers()
        return io.BytesIO(content)

    def copyfile(self, source, outputfile):
        while part := source.read(65536):
            outputfile.write(part)
            server.sent += len(part)

    monkeypatch.setattr(Handler, "send_head", answer)
    monkeypatch.setattr(Handler, "copyfile", copyfile)
    monkeypatch.setattr(data, "QUICKDRAW_URL", server.url)
    return server


def load(root, classes, per_class, split="train"):
    return load_dataset(data_args("quickdraw", classes, per_class=per_class, data_dir=root), split)


def test_the_first_rows_are_fetched_once_and_every_tenth_is_held_out(google, tmp_path):
    names, arrays = ["cat", "ice cream"], [doodles(seed=seed) for seed in (1, 2)]
    google.files = {f"{name}.npy": npy(array) for name, array in zip(names, arrays)}
    pixels, labels, source = load(tmp_path, names, 40)
    sent = google.sent
    unseen, asked, _ = load(tmp_path, names, 40, "test")
    assert google.sent == sent > 0, "the second load is from disk"
    assert pixels.shape == (72, 28, 28) and pixels.dtype == torch.uint8
    assert (labels.bincount().tolist(), asked.bincount().tolist()) == ([36, 36], [4, 4])
    for label, array in enumerate(arrays):
        rows = array[:40].reshape(4, 10, 28, 28)
        assert (pixels[labels == label].numpy() == rows[:, :9].reshape(-1, 28, 28)).all()
        assert (unseen[asked == label].numpy() == rows[:, 9]).all()
    assert len(load(tmp_path, ["cat"], 300)[0]) == 270, "more of them are fetched when asked for"
    assert len(load(tmp_path, ["cat"], 5000)[0]) == 270, "all that there are"


def test_no_more_than_the_rows_that_are_needed_is_read(google, tmp_path):
    """Of 63 MB; what was on its way when the connection was closed counts as well."""
    google.files = {"cat.npy": npy(np.tile(doodles(800), (100, 1)))}
    assert len(load(tmp_path, ["cat"], 50)[0]) == 45
    assert google.sent < 0.3 * len(google.files["cat.npy"])


BAD_HOST = {"a web page": b"<html>" * 1000, "ends early": npy(doodles(100), rows=300)}
BAD_HOST["another shape"] = npy(doodles().reshape(-1, 392))[:9000]
BAD_HOST["not there"] = None


@pytest.mark.parametrize("fault", BAD_HOST)
def test_a_bad_host_is_one_line_and_nothing_of_it_is_kept(google, tmp_path, fault):
    google.files["cat.npy"] = BAD_HOST[fault]
    with pytest.raises(UserError, match="127.0.0.1"):
        load(tmp_path, ["cat"], 300)
    google.files["cat.npy"] = npy(doodles())
    assert len(load(tmp_path, ["cat"], 300)[0]) == 270, "once the host is well again, so are we"


@pytest.mark.parametrize("wrong", [None, npy(doodles(8), 1, "<f8"), npy(doodles(9)[:, :100])])
def test_a_users_own_file_is_used_or_one_line_and_stays(offline, tmp_path, wrong):
    path = tmp_path / "quickdraw" / "cat.npy"
    path.parent.mkdir()
    path.write_bytes(wrong or npy(doodles(100)))
    before = contents(tmp_path)
    if wrong:
        with pytest.raises(UserError, match="cat.npy cannot be read .*; move it away"):
            load(tmp_path, ["cat"], 50)
    else:
        pixels, *_ = load(tmp_path, ["cat"], 50)
        assert (pixels[:9].view(9, 784).numpy() == doodles(100)[:9]).all() and len(pixels) == 45
    assert contents(tmp_path) == before


def test_many_classes_cost_little_more_than_their_pixels(offline, tmp_path):
    """345 of them with 5,000 images each: 1.4 GB, not 2.8 or 5."""
    (tmp_path / "quickdraw").mkdir()
    for name in NAMES[:30]:
        (tmp_path / "quickdraw" / f"{name}.npy").write_bytes(npy(doodles(1000)))
    tracemalloc.start()
    pixels, *_ = load(tmp_path, NAMES[:30], 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pixels.numel() == 27_000 * 784 <= peak < 1.2 * pixels.numel()


def test_ten_of_the_345_categories_by_default_and_their_articles():
    config = a4_full.Config.parse(["--dataset", "quickdraw"])
    assert len(config.classes) == 10 and {*config.classes} < {*NAMES} and len({*NAMES}) == 345
    spoken = dict(zip(NAMES, words.class_words(data_args("quickdraw", NAMES))))
    articles = {"cat": "a ", "bus": "a ", "owl": "an ", "hourglass": "an "}
    for name, article in (articles | {"pants": "", "The Mona Lisa": ""}).items():
        assert spoken[name] == (name, article + name)
