"""What differs between data sets: classes, the words for them, and the phrasings of prompts."""

import difflib
import json
import re
import zlib
from string import ascii_lowercase, ascii_uppercase, digits

from kit.base import ROOT, UserError

DATASETS = "mnist", "emnist", "quickdraw"
OWNERS = {"emnist_split": "emnist", "classes": "quickdraw", "per_class": "quickdraw"}  # of a flag
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
        "a simple drawing of {}|{}: a doodle|draw me {}"
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


def class_words(dataset: str, classes: list[str]) -> list[tuple[str, str]]:
    """The two ways in which a prompt may name each class."""
    if dataset == "mnist":
        return [(name, str(digit)) for digit, name in enumerate(classes)]
    if dataset == "quickdraw":
        return [(name, article(name) + name) for name in classes]
    return [letter_words(name, classes) for name in classes]


def article(name: str) -> str:
    if re.fullmatch(
        r".*(?<![uso])s|The .*", name
    ):  # a plural; octopus, hourglass, rhinoceros are not
        return ""
    return "an " if re.match("[aeiou]|hour", name) else "a "


def letter_words(name: str, classes: list[str]) -> tuple[str, str]:
    """CLIP reads no capitals: where both cases of a letter are classes, they need words."""
    if name in digits:
        return name, DIGITS[int(name)]
    if name.swapcase() not in classes:
        return name, f"letter {name}"
    if name.isupper():
        return f"capital {name}", f"uppercase {name}"
    return f"small {name}", f"lowercase {name}"


def phrasings(config, templates: dict[str, list[str]]) -> list[list[str]]:
    """Every template of config.dataset with both words of each of config.classes.

    -> a list for each class, all of one length.
    """
    chosen = templates[config.dataset]
    words = class_words(config.dataset, config.classes)
    return [[template.format(word) for template in chosen for word in pair] for pair in words]


# ── Which images ──


def which(config) -> dict:
    """The choices of images within a data set, as config.json keeps them."""
    return {name: getattr(config, name) for name in OWNERS}


def file_name(config) -> str:
    """Of what is trained once for just these images: another one for other classes."""
    name = json.dumps([config.dataset, which(config)])
    return f"{config.dataset}_{zlib.crc32(name.encode()):08x}.pt"


def settle_classes(config) -> None:
    """Fill in what --emnist-split, --classes, --per-class leave open. UserError for bad names."""
    if config.dataset == "mnist":
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
