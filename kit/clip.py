"""CLIP checkpoints in OpenAI's formats, through OpenAI's own package."""

import re
import sys
import types
import warnings
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F

from kit.base import UserError, check_sums, expanded, load_tensors, not_finite, reading
from kit.downloads import fetch


def import_clip():
    """OpenAI's package, without two things that it imports.

    It wants pkg_resources.packaging, which new setuptools lack, and torchvision's transforms, which
    take longer to import than an image to draw, and which nothing here uses.
    """
    if "clip" not in sys.modules:
        import packaging.version

        names = "Compose", "Resize", "CenterCrop", "ToTensor", "Normalize"
        stand_ins = {"pkg_resources": types.SimpleNamespace(packaging=packaging)}
        if "torchvision" not in sys.modules:
            transforms = types.SimpleNamespace(**{name: later(name) for name in names})
            stand_ins["torchvision.transforms"] = transforms
        before = {name: sys.modules.get(name) for name in stand_ins}
        sys.modules.update(stand_ins)
        try:
            import clip
        except ImportError as error:
            raise UserError(f"{error}: pip install clip-anytorch ftfy regex") from None
        finally:
            for name, module in before.items():
                sys.modules[name] = module
                if module is None:
                    del sys.modules[name]
    import clip

    if not hasattr(clip, "tokenize"):
        raise UserError("this clip is not OpenAI's: pip uninstall clip; pip install clip-anytorch")
    return clip


def later(name: str):
    """torchvision.transforms.<name>, imported when it is called: clip.load() still works."""

    def call(*args, **kwargs):
        from torchvision import transforms

        return getattr(transforms, name)(*args, **kwargs)

    return call


class Clip:
    """A CLIP checkpoint (Radford et al. 2021).

    The rows of both encoders' results are float32 and of length 1.
    """

    def __init__(self, name: str, path: Path, device: torch.device):
        with reading(path, "it is no CLIP checkpoint, or damaged"):
            state = read_state(path)
            self.learned = state.pop("learned", None)  # of ours: the data set and its classes
            bad = not_finite(state)
            if bad:
                raise ValueError(f"{bad} holds numbers that are none")
            self.model = import_clip().model.build_model(state).float().to(device)
            self.crc32 = zlib.crc32(path.read_bytes())  # tells two files of one name apart
        self.name, self.device, self.dim = name, device, self.model.text_projection.shape[1]

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """-> (n, dim). UserError for a text of more than 77 tokens, its two end marks included."""
        # CLIP's tokenizer would read 'seven as 's even.
        texts = [re.sub(r"(?<!\w)['‘’]", " ", text) for text in texts]
        try:
            tokens = import_clip().tokenize(texts)  # (n, 77)
        except RuntimeError:
            longest = max(texts, key=len)[:60]
            raise UserError(f"too long for CLIP, which reads 77 tokens: {longest}...") from None
        parts = [self.model.encode_text(part.to(self.device)) for part in tokens.split(256)]
        return F.normalize(torch.cat(parts), dim=-1)

    @torch.no_grad()
    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """images (n, 1, H, W) in [-1, 1] -> (n, dim)."""
        size, parts = self.model.visual.input_resolution, []
        for part in images.split(256):
            parts.append(self.model.encode_image(clip_pixels(part, size).to(self.device)))
        return F.normalize(torch.cat(parts), dim=-1)


def read_state(path: Path) -> dict:
    """The weights in a TorchScript archive, which is OpenAI's format, or in a state dict."""
    check_sums(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit announces its retirement
        try:
            return dict(torch.jit.load(str(path), map_location="cpu").state_dict())
        except RuntimeError:
            return dict(load_tensors(path))


def clip_pixels(images: torch.Tensor, size: int) -> torch.Tensor:
    """images (n, 1, H, W) in [-1, 1] -> (n, 3, size, size), normalised as CLIP's training was."""
    images = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True).clamp(-1, 1)
    mean = images.new_tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = images.new_tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    return ((images + 1) / 2 - mean) / std


def fetch_clip(name: str) -> Path:
    """One of OpenAI's checkpoints, from their package's cache or their host, SHA-256 checked."""
    url = import_clip().clip._MODELS[name]
    sha256, file = url.split("/")[-2:]
    home = expanded("~")
    if str(home) == "~":
        raise UserError(f"{name}: this account has no home folder to keep it in")
    try:
        return fetch(url, home / ".cache" / "clip" / file, sha256)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
