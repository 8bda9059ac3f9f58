"""CLIP checkpoints in OpenAI's formats, through OpenAI's own package."""

import re
import sys
import types
import warnings
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F

import common
import loading


def import_clip():
    """OpenAI's package wants pkg_resources.packaging, which setuptools dropped: hand it the real packaging."""
    if "clip" not in sys.modules:
        import packaging.version

        before = sys.modules.get("pkg_resources")
        sys.modules["pkg_resources"] = types.SimpleNamespace(packaging=packaging)
        try:
            import clip
        except ImportError as error:
            raise common.UserError(f"{error}: pip install clip-anytorch ftfy regex") from None
        finally:
            sys.modules["pkg_resources"] = before
            if before is None:
                del sys.modules["pkg_resources"]
    import clip

    if not hasattr(clip, "tokenize"):
        raise common.UserError("this clip is not OpenAI's: pip uninstall clip; pip install clip-anytorch")
    return clip


class Clip:
    """A CLIP checkpoint (Radford et al. 2021). Rows of both encoders' results are float32 and of length 1."""

    def __init__(self, name: str, path: Path, device: torch.device):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch.jit announces its retirement
                try:
                    state = torch.jit.load(str(path), map_location="cpu").state_dict()  # OpenAI's format
                except RuntimeError:
                    state = torch.load(path, map_location="cpu", weights_only=True)
            state = dict(state)
            self.learned = state.pop("learned", None)  # of ours: the data set and its classes
            self.model = import_clip().model.build_model(state).float().to(device)
        except common.UNREADABLE as error:
            raise common.UserError(f"{path} is no CLIP checkpoint, or damaged ({common.one_line(error)})") from None
        self.name, self.device, self.dim = name, device, self.model.text_projection.shape[1]
        self.crc32 = zlib.crc32(path.read_bytes())  # tells two files of one name apart

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """-> (n, dim). common.UserError for a text of more than 77 tokens, the marks at its two ends included."""
        texts = [re.sub(r"(?<!\w)['‘’]", " ", text) for text in texts]  # CLIP's tokenizer would read 'seven as 's even
        try:
            tokens = import_clip().tokenize(texts)  # (n, 77)
        except RuntimeError:
            raise common.UserError(f"too long for CLIP, which reads 77 tokens: {max(texts, key=len)[:60]}...") from None
        return F.normalize(torch.cat([self.model.encode_text(t.to(self.device)) for t in tokens.split(256)]), dim=-1)

    @torch.no_grad()
    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """images (n, 1, H, W) in [-1, 1] -> (n, dim)."""
        size = self.model.visual.input_resolution
        parts = [self.model.encode_image(clip_pixels(part, size).to(self.device)) for part in images.split(256)]
        return F.normalize(torch.cat(parts), dim=-1)


def clip_pixels(images: torch.Tensor, size: int) -> torch.Tensor:
    """images (n, 1, H, W) in [-1, 1] -> (n, 3, size, size), normalised by CLIP's own mean and deviation."""
    images = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True).clamp(-1, 1)
    mean = images.new_tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = images.new_tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    return ((images + 1) / 2 - mean) / std


def fetch_clip(name: str) -> Path:
    """One of OpenAI's checkpoints, from their package's cache folder or their host, its SHA-256 checked."""
    url = import_clip().clip._MODELS[name]
    sha256, file = url.split("/")[-2:]
    path = Path.home() / ".cache" / "clip" / file
    try:
        loading.fetch(url, path, sha256)
    except common.UserError as error:
        raise common.UserError(f"{name}: {error}") from None
    return path
