"""The words of prompts: the classes of each data set, names for them, sentence templates."""

import os
import re
import unicodedata
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase, digits

from kit.files import UserError

DATASETS = "mnist", "emnist", "quickdraw"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
EMNIST_SPLITS = {  # Cohen et al. 2017
    "letters": ascii_uppercase,
    "balanced": digits + ascii_uppercase + "abdefghnqrt",
    "byclass": digits + ascii_uppercase + ascii_lowercase,
    "digits": digits,
}
DRAWINGS = tuple("apple bicycle cat eyeglasses fish house rainbow star train tree".split())
HIDDEN = r"(.*/)?([.@]|__MACOSX|Thumbs\.db|desktop\.ini)"  # made by systems and tools

CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # Chinese, Japanese, Korean

# Templates of prompts; {} stands for a name of a class.
TRAIN_TEMPLATES = {
    "mnist": "{}|a {}|the {}|the number {}|the digit {}|number {}|a handwritten {}|"
    "handwritten digit {}|a photo of the number {}|a drawing of a {}|an image of the digit {}|"
    "a white {} on black|please draw a {}|write the number {}|the numeral {} in handwriting|"
    "{}, handwritten",
    "emnist": "{}|a {}|the {}|a handwritten {}|handwritten {}|a photo of the {}|a drawing of a {}|"
    "an image of the {}|a white {} on black|please draw a {}|write the {}|"
    "the {} in handwriting|{}, handwritten|{} in white ink",
    "quickdraw": "{}|a drawing of {}|a doodle of {}|a sketch of {}|a quick sketch of {}|"
    "an image of {}|the outline of {}|please draw {}|{}, drawn in seconds|{} in white on black|"
    "a plain drawing of {}|{}: a doodle|draw me {}",
}
HELDOUT_TEMPLATES = {  # neither the models nor tiny CLIP are trained on these
    "mnist": "show me the figure {}|{} written with a pen|I would like a {} please|"
    "someone scribbled {} on paper|what does {} look like?|a scan of an old letter with {} in it|"
    "my favourite is {}|give me {}!|a child's attempt at writing {}|just {} and nothing else|"
    "chalk on a blackboard: {}|could you sketch {} for me",
    "quickdraw": "show me {}|can you scribble {} for me?|I would like {} please|"
    "{} scribbled on a napkin|my favourite is {}|what does {} look like?|"
    "chalk on a blackboard: {}|give me {}!|just {} and nothing else|guess what this is: {}|"
    "a child's attempt at {}|somebody drew {} with a pen",
}
letters = HELDOUT_TEMPLATES["mnist"].replace("the figure", "the character")
HELDOUT_TEMPLATES["emnist"] = letters.replace("an old letter", "an old page")
for templates in (TRAIN_TEMPLATES, HELDOUT_TEMPLATES):
    templates["folder"] = templates["quickdraw"]
    templates |= {dataset: text.split("|") for dataset, text in templates.items()}


def data_kind(config) -> str:
    return config.dataset if config.dataset in DATASETS else "folder"


def class_names(config) -> tuple[str, ...]:
    """The classes of config.dataset, in the order of their labels. UserError for bad names."""
    kind, names = data_kind(config), tuple(config.classes or DRAWINGS)
    if kind == "folder":
        gone = getattr(config, "prompt", None) and not os.path.isdir(config.dataset)
        return config.classes if gone else tuple(class_folders(Path(config.dataset)))
    if kind != "quickdraw":
        return DIGITS if kind == "mnist" else tuple(EMNIST_SPLITS[config.emnist_split])
    if len({*names}) < max(2, len(names)):
        raise UserError("--classes: give at least two different ones, separated by spaces")
    return names


def visible(folder: Path) -> list[Path]:
    """What is in folder, without the files and folders of systems and tools."""
    return [path for path in sorted(folder.iterdir()) if not re.match(HIDDEN, path.name)]


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """Class -> the subfolders of its pictures. UserError if there are fewer than two classes."""
    if not os.path.isdir(folder):  # False, too, for a name that is too long
        raise UserError(f"--dataset {folder}: neither a folder nor one of {', '.join(DATASETS)}")
    found, paths = {}, [path for path in visible(folder) if path.is_dir()]
    inner = [{x.name for x in visible(path) if x.is_dir()} for path in paths]
    if len(inner) > 1 and inner[0] and all(names == inner[0] for names in inner):
        one = max(paths, key=lambda path: "train" in path.name.lower())
        text = f"each subfolder of {folder} contains {', '.join(sorted(inner[0]))[:80]}"
        raise UserError(f"{text}; choose one of them, such as --dataset {one}")
    for path in paths:
        name = unicodedata.normalize("NFKC", path.name.lower())
        name = re.sub(r"[_\-\s]+", " ", name).strip()
        if not name.isprintable() or not any(map(str.isalnum, name)):
            raise UserError(f"rename the folder {ascii(str(path))}: it needs letters or digits")
        found.setdefault(name, []).append(path)
    if len(found) < 2:
        raise UserError(f"{folder} needs a subfolder for each class, two or more, not {[*found]}")
    return dict(sorted(found.items()))


def class_words(config, said: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """The two names of each class in prompts, with the attribute words said."""
    kind, names = data_kind(config), config.classes
    if kind in ("quickdraw", "folder"):
        phrases = [with_words(name, said) for name in names]
        return [(x, article(name, x) + x) for name, x in zip(names, phrases)]
    pairs = zip(names, digits) if kind == "mnist" else [letter_words(x, names) for x in names]
    return [tuple(with_words(word, said) for word in pair) for pair in pairs]


def with_words(noun: str, said: tuple[str, ...]) -> str:
    """noun with attribute words: seven -> thick seven leaning left."""
    before = [word for word in said if " " not in word]
    return " ".join([*before, noun, *(word for word in said if " " in word)])


def article(name: str, phrase: str) -> str:
    """The article for phrase, which begins with the name of a class or with an attribute word."""
    if re.fullmatch(r".*(?<![uso])s|The .*", name):  # a plural, unlike octopus or hourglass
        return ""
    return "an " if re.match("[aeiou]|hour", phrase) else "a "


def letter_words(name: str, classes: tuple[str, ...]) -> tuple[str, str]:
    """The two names of a digit or letter. CLIP ignores case; the names distinguish it if needed."""
    if name in digits:
        return name, DIGITS[int(name)]
    if name.swapcase() not in classes:
        return name, f"letter {name}"
    one, other = ("capital", "uppercase") if name.isupper() else ("small", "lowercase")
    return f"{one} {name}", f"{other} {name}"


def phrasings(config, templates: dict, said: tuple[str, ...] = ()) -> list[list[str]]:
    """-> for each class its prompts: every template with both names, and attribute words."""
    chosen, words = templates[data_kind(config)], class_words(config, said)
    return [[template.format(word) for template in chosen for word in pair] for pair in words]


def readable(text: str) -> str:
    """text without full-width characters, and with spaces between Latin and Chinese ones."""
    text = unicodedata.normalize("NFKC", text)
    return re.sub(rf"(?<=[{CJK}])(?=[a-zA-Z0-9])|(?<=[a-zA-Z0-9])(?=[{CJK}])", " ", text)


def names_a_class(config, text: str) -> bool:
    words = [re.escape(readable(word)) for pair in class_words(config) for word in pair]
    return bool(re.search(rf"(?<!\w)({'|'.join(words)})(?!\w)", readable(text), re.I))
