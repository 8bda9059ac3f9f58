"""CLIP (Radford et al. 2021), through the model and the tokenizer of OpenAI's package."""

import functools
import importlib.util
import json
import re
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from kit import files
from kit.files import UserError, progress, reading, say
from kit.words import readable

VIT = "https://openaipublic.azureedge.net/clip/models/"
VIT += "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt"
TINY = files.ROOT / "assets" / "tiny_clip.pt"  # for MNIST; missing in a notebook
LENGTH, START, END = 77, 49406, 49407  # number of tokens of a text; ids of the first and the last
MANY = 500  # only more texts than this are cached on disk


@functools.cache
def clip_module(name: str):
    """clip.<name>, without clip/__init__.py, which imports torchvision and pkg_resources."""
    try:
        (folder,) = importlib.util.find_spec("clip").submodule_search_locations
        spec = importlib.util.spec_from_file_location(f"clip.{name}", Path(folder, f"{name}.py"))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except (ImportError, AttributeError, OSError) as error:
        raise UserError(f"OpenAI's clip: {error}; pip install clip-anytorch ftfy regex") from None


@functools.cache
def tokenizer():
    return clip_module("simple_tokenizer").SimpleTokenizer()


def tokenize(texts: list[str]) -> torch.Tensor:
    """-> token ids (n, 77), padded with 0. UserError for a text that is too long."""
    rows = torch.zeros(len(texts), LENGTH, dtype=torch.long)
    for row, text in zip(rows, texts):
        text = re.sub(r"(?<!\w)['‘’]", " ", text)  # else 'seven is read as 's and even
        tokens = torch.tensor([START, *tokenizer().encode(text), END])
        if len(tokens) > LENGTH:
            raise UserError(f"too long for CLIP, which reads {LENGTH} tokens: {text[:60]}...")
        row[: len(tokens)] = tokens
    return rows


class Clip:
    """A CLIP with name, crc32 (of its file) and dim. Encoders return float32 rows of length 1."""

    def __init__(self, name: str, path: Path, device, data_dir: Path, words: int = 0):
        remedy = "it is damaged or not a CLIP checkpoint; choose another with --clip"
        with reading(path, remedy), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated
            files.check_sums(path)
            try:  # OpenAI's format is a TorchScript archive, tiny CLIP's a state dict
                state = dict(torch.jit.load(str(path), map_location="cpu").state_dict())
            except RuntimeError:
                state = dict(files.load_tensors(path))
            self.learned = state.pop("learned", None)  # of tiny CLIP: the data set and its classes
            self.model = clip_module("model").build_model(state).float().to(device)
            self.crc32 = zlib.crc32(path.read_bytes())
        self.name, self.device, self.dim = name, device, self.model.text_projection.shape[1]
        self.memory, self.known, self.words = files.memory(data_dir), {}, words

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """-> (n, dim), see read_texts(). UserError for more than 77 tokens."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        read = self.memory.cache(read_texts, ignore=["clip"]) if len(new) > MANY else read_texts
        self.known |= zip(new, torch.from_numpy(read(self, self.crc32, new, self.words)))
        return torch.stack([self.known[text] for text in texts]).to(self.device)

    @torch.no_grad()
    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """images (n, 1, H, W) in [-1, 1] -> (n, dim)."""
        size, parts = self.model.visual.input_resolution, images.split(256)
        parts = [self.model.encode_image(clip_pixels(x, size).to(self.device)) for x in parts]
        return F.normalize(torch.cat(parts), dim=-1)


@torch.no_grad()
def read_texts(clip: Clip, crc32: int, texts: list[str], words: int) -> np.ndarray:
    """-> (n, dim); with words (n, 1 + words, dim): and the last layer's tokens. crc32: a key."""
    vectors, seen = torch.zeros(len(texts), 1 + words, clip.dim), []
    hook = clip.model.ln_final.register_forward_hook(lambda *args: seen.append(args[-1]))
    bar = progress(texts, "encoding texts", unit="text", leave=False)
    for vector, text in zip(vectors, bar):  # one by one: no vector depends on other texts
        tokens = tokenize([readable(text)]).to(clip.device)
        vector[0] = F.normalize(clip.model.encode_text(tokens), dim=-1)[0]
        for word, state in zip(vector[1 : 1 + int(tokens.argmax())], seen.pop()[0, 1:]):  # to END
            word[: len(state)] = state[: len(word)]
    hook.remove()
    return (vectors if words else vectors[:, 0]).numpy()


def clip_pixels(images: torch.Tensor, size: int) -> torch.Tensor:
    """images (n, 1, H, W) in [-1, 1] -> (n, 3, size, size), normalised as for CLIP's training."""
    images = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True).clamp(-1, 1)
    mean = images.new_tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = images.new_tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    return ((images + 1) / 2 - mean) / std


def tiny_path(config) -> Path:
    """The file of the tiny CLIP for these classes, whether it exists or not."""
    if config.name == "mnist" and TINY.exists():
        return TINY
    key = zlib.crc32(json.dumps(config.classes).encode())
    return config.data_dir / "tiny_clip" / f"{config.name}_{key:08x}.pt"


def load_clip(config, device: torch.device, words: int = 0) -> Clip:
    """The CLIP that --clip names; auto: ViT-B/32, or tiny if that is unavailable."""
    name, path = config.clip, Path(config.clip)
    if name in ("auto", "ViT-B/32"):
        try:
            path = Path.home() / ".cache" / "clip" / "ViT-B-32.pt"  # as OpenAI's package does
            path = files.download(VIT, path, VIT.split("/")[-2])
            return Clip("ViT-B/32", path, device, config.data_dir, words)
        except (UserError, RuntimeError) as error:  # this account may have no home folder
            if name == "ViT-B/32":
                raise
            say(f"CLIP: {getattr(error, 'text', error)}; using tiny CLIP")
            name = "tiny"
    path = tiny_path(config) if name == "tiny" else path
    if not path.is_file():
        first = f"first: python -m kit.tiny_clip --dataset {config.dataset} (and its --classes)"
        raise UserError(f"--clip: {path} is missing{f'; {first}' if name == 'tiny' else ''}")
    clip = Clip(name, path, device, config.data_dir, words)
    if clip.learned and [*clip.learned[1]] != [*config.classes]:
        raise UserError(f"{path} was trained for other classes: {', '.join(clip.learned[1][:5])}")
    return clip
