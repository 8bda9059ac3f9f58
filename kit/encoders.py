"""Which text encoder a run reads its prompts with."""

from os.path import isfile  # Path.is_file() raises for names that are too long

from kit import processes
from kit.base import UserError, expanded, say


def load_clip(name: str, config, device):
    """name: auto, tiny, one of OpenAI's models, or a file. Only auto falls back, to tiny.

    -> kit.clip.Clip: name, dim, encode_text, encode_image. config says what a tiny one must have
    learned. UserError if the CLIP cannot be had.
    """
    with processes.in_turn():
        return find_clip(name, config, device)


def find_clip(name: str, config, device):
    from kit import tiny_clip  # not at the top: a script without text needs no CLIP
    from kit.clip import Clip, fetch_clip, import_clip

    if name == "auto":
        try:
            return find_clip("ViT-B/32", config, device)
        except UserError as error:
            say(f"CLIP: {error}; using tiny CLIP")
            return find_clip("tiny", config, device)
    if name == "tiny":
        return tiny_clip.load_tiny(config, device)
    if name in import_clip().available_models():
        return Clip(name, fetch_clip(name), device)
    path = expanded(name)
    if isfile(path):
        return tiny_clip.check_learned(Clip(str(path.resolve()), path, device), path, config)
    models = ", ".join(import_clip().available_models())
    raise UserError(f"--clip {name}: no such file or model: auto, tiny, {models}")
