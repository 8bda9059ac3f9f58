"""What differs between data sets: classes, the words for them, and the phrasings of prompts."""

import difflib
import json
import re
import unicodedata
import zlib
from os.path import isdir  # Path.is_dir() raises for names that are too long
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase, digits

from kit.base import ROOT, UserError, expanded

DATASETS = "mnist", "emnist", "quickdraw"
OWNERS = {"emnist_split": "emnist", "classes": "quickdraw", "per_class": "quickdraw"}  # of a flag
OWNERS["pictures"] = "folder"  # no flag: see kit.folder.fingerprint()
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
EMNIST_SPLITS = {  # Cohen et al. 2017
    "letters": ascii_uppercase,
    "balanced": digits + ascii_uppercase + "abdefghnqrt",
    "byclass": digits + ascii_uppercase + ascii_lowercase,
    "digits": digits,
}
DRAWINGS = "apple bicycle cat eyeglasses fish house rainbow star train tree".split()
CATEGORIES = ROOT / "assets" / "quickdraw_categories.txt"  # not there in a notebook

# ── Phrasings: {} is one of a class's words ──

TRAIN_TEMPLATES = {
    "mnist": (
        "{}|a {}|the {}|the number {}|the digit {}|number {}|a handwritten {}|handwritten digit {}|"
        "a photo of the number {}|a drawing of a {}|an image of the digit {}|a white {} on black|"
        "please draw a {}|write the number {}|the numeral {} in handwriting|{}, handwritten"
    ).split("|"),
    "emnist": (
        "{}|a {}|the {}|a handwritten {}|handwritten {}|a photo of the {}|a drawing of a {}|"
        "an image of the {}|a white {} on black|please draw a {}|write the {}|"
        "the {} in handwriting|{}, handwritten|{} in white ink"
    ).split("|"),
    "quickdraw": (
        "{}|a drawing of {}|a doodle of {}|a sketch of {}|a quick sketch of {}|an image of {}|"
        "the outline of {}|please draw {}|{}, drawn in seconds|{} in white on black|"
        "a plain drawing of {}|{}: a doodle|draw me {}"
    ).split("|"),
}
HELDOUT_TEMPLATES = {  # never trained on by any model, tiny CLIP included
    "mnist": (
        "show me the figure {}|{} written with a pen|I would like a {} please|"
        "someone scribbled {} on paper|what does {} look like?|"
        "a scan of an old letter with {} in it|my favourite is {}|give me {}!|"
        "a child's attempt at writing {}|just {} and nothing else|"
        "chalk on a blackboard: {}|could you sketch {} for me"
    ).split("|"),
    "emnist": (
        "show me the character {}|{} written with a pen|I would like a {} please|"
        "someone scribbled {} on paper|what does {} look like?|a scan of an old page with {} in it|"
        "my favourite is {}|give me {}!|a child's attempt at writing {}|just {} and nothing else|"
        "chalk on a blackboard: {}|could you sketch {} for me"
    ).split("|"),
    "quickdraw": (
        "show me {}|can you scribble {} for me?|I would like {} please|{} scribbled on a napkin|"
        "my favourite is {}|what does {} look like?|chalk on a blackboard: {}|give me {}!|"
        "just {} and nothing else|guess what this is: {}|a child's attempt at {}|"
        "somebody drew {} with a pen"
    ).split("|"),
}

TRAIN_TEMPLATES["folder"] = TRAIN_TEMPLATES["quickdraw"]
HELDOUT_TEMPLATES["folder"] = HELDOUT_TEMPLATES["quickdraw"]


def data_kind(config) -> str:
    """mnist, emnist, quickdraw, or folder: of one's own pictures."""
    return "folder" if getattr(config, "folder", None) else config.dataset


def class_words(config, said: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """The two ways in which a prompt may name each class, with the words of attributes."""
    pairs, drawn = [], data_kind(config) in ("quickdraw", "folder")
    for label, name in enumerate(config.classes):
        if drawn:
            phrase = with_words(name, said)
            pairs.append((phrase, article(name, phrase) + phrase))
            continue
        letters = data_kind(config) == "emnist"
        pair = letter_words(name, config.classes) if letters else (name, str(label))
        pairs.append(tuple(with_words(word, said) for word in pair))
    return pairs


def with_words(noun: str, said: tuple[str, ...]) -> str:
    """seven; thick, leaning left -> thick seven leaning left: only a single word goes before."""
    before = [word for word in said if " " not in word]
    return " ".join([*before, noun, *(word for word in said if " " in word)])


def article(name: str, phrase: str) -> str:
    """Of a class's name, before the phrase that begins with it or with an adjective."""
    if re.fullmatch(
        r".*(?<![uso])s|The .*", name
    ):  # a plural; octopus, hourglass, rhinoceros are not
        return ""
    return "an " if re.match("[aeiou]|hour", phrase) else "a "


def letter_words(name: str, classes: list[str]) -> tuple[str, str]:
    """CLIP reads no capitals: where both cases of a letter are classes, they need words."""
    if name in digits:
        return name, DIGITS[int(name)]
    if name.swapcase() not in classes:
        return name, f"letter {name}"
    if name.isupper():
        return f"capital {name}", f"uppercase {name}"
    return f"small {name}", f"lowercase {name}"


def phrasings(
    config, templates: dict[str, list[str]], said: tuple[str, ...] = ()
) -> list[list[str]]:
    """Every template of config.dataset with both words of each of config.classes.

    said: words of attributes that each of them says too. -> a list for each class, all of one
    length.
    """
    chosen, words = templates[data_kind(config)], class_words(config, said)
    return [[template.format(word) for template in chosen for word in pair] for pair in words]


CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # Chinese, Japanese, Korean: no blank about words


def readable(text: str) -> str:
    """text with full-width signs made plain, and English words set off from Chinese ones."""
    text = unicodedata.normalize("NFKC", text)
    return re.sub(rf"(?<=[{CJK}])(?=[a-zA-Z0-9])|(?<=[a-zA-Z0-9])(?=[{CJK}])", " ", text)


def names_a_class(config, text: str) -> bool:
    words = [re.escape(readable(word)) for pair in class_words(config) for word in pair]
    return bool(re.search(rf"\b({'|'.join(words)})\b", readable(text), re.IGNORECASE))


# ── Which images ──


def settle_dataset(config, runs: Path | None = None) -> None:
    """Of a folder make config.folder, and config.dataset its name. UserError for no data set.

    runs: where runs are kept; a folder that is gone is no error where it has some.
    """
    typed = config.dataset
    if typed in DATASETS:
        return
    folder = expanded(typed)
    name = folder.name if folder.name.strip(".") else folder.resolve().name
    if not isdir(folder) and not (runs and name and isdir(runs / name)):
        known = ", ".join(DATASETS)
        raise UserError(f"--dataset {typed}: choose {known}, or a folder with one of pictures "
                        "for each class")  # fmt: skip
    if name in DATASETS or not name:
        raise UserError(f"--dataset {typed}: give the folder another name; {name!r} is taken")
    for flag in ("out", "data_dir"):  # what is written there would be pictures to learn from
        path = getattr(config, flag, None)
        if path is not None and folder.resolve() in (path.resolve(), *path.resolve().parents):
            typed = f"--{flag.replace('_', '-')} {path}"
            raise UserError(f"{typed} lies in the folder of the pictures, {folder}; give another")
    config.dataset, config.folder = name, folder


def typed_dataset(config) -> str:
    """What stands behind --dataset."""
    return str(config.folder or config.dataset)


def which(config) -> dict:
    """The choices of images within a data set, as config.json keeps them."""
    chosen = {name: getattr(config, name, None) for name in OWNERS}
    if data_kind(config) != "folder":  # so that what was made before there were folders is found
        del chosen["pictures"]
    return chosen


def file_name(config) -> str:
    """Of what is trained once for just these images: another one for other classes."""
    name = json.dumps([config.dataset, which(config)])
    return f"{config.dataset}_{zlib.crc32(name.encode()):08x}.pt"


def settle_classes(config) -> None:
    """Fill in what the flags leave open: which classes, which images. UserError for bad names."""
    if data_kind(config) == "folder":
        if config.pictures is None:  # else a run on disk has told
            from kit.folder import fingerprint, listing  # not at the top: others need no pictures

            config.classes = list(listing(config.folder))
            config.pictures = fingerprint(config.folder)
    elif config.dataset == "mnist":
        config.classes = list(DIGITS)
    elif config.dataset == "emnist":
        config.emnist_split = config.emnist_split or "letters"
        config.classes = list(EMNIST_SPLITS[config.emnist_split])
    else:
        config.classes = list(config.classes or DRAWINGS)
        config.per_class = config.per_class or 5000
        check_categories(config.classes)


def check_categories(names: list[str]) -> None:
    """UserError for a name that QuickDraw does not have, or for fewer than two."""
    known = CATEGORIES.read_text(encoding="utf-8").splitlines() if CATEGORIES.exists() else names
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3, 0.5)
            meant = f"; did you mean {' or '.join(near)}?" if near else ""
            where = "assets/quickdraw_categories.txt has all"
            raise UserError(f"--classes: QuickDraw has no {name!r}{meant} ({where})")
    if len(names) < 2:
        raise UserError(
            "--classes: at least two, with commas between, for example cat,rainbow,train"
        )
