"""The mathematics of the ladder's scripts: schedule, loss, samplers, guidance, training."""

import argparse
import contextlib
import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from conftest import data_args

import a0_uncond
import a1_cond
import a2_clip
import a3_cfg
import a4_full
import a5_fast
import cgan
import common
import cvae
from kit import captions, samples

LADDER, GUIDED = [a0_uncond, a1_cond, a2_clip, a3_cfg, a4_full, a5_fast], [a3_cfg, a4_full]
ALPHAS_BAR = common.cosine_alphas_bar()


def text_of(script, n, seed=1):
    """-> vectors of n texts (n, 8); for a4 and a5 those of their words, too."""
    shape = (n, 1 + a4_full.WORDS, 8) if script in (a4_full, a5_fast) else (n, 8)
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=-1)


unit = partial(text_of, None)


def network(script, config=None):
    made = getattr(script, {cgan: "Generator", cvae: "VAE"}.get(script, "UNet"))
    return made(config or script.Config(), *[8][: script is not a0_uncond])


def perturbed(model):
    """None of whose layers is still zero, so that every input can reach the output."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return model.eval()


def start(n, seed=0):
    generators = samples.generators_of(seed, range(n))
    return samples.noise(generators, 1, 28, 28), generators


class FakeRun:
    """As much of a Run as a training loop needs: random images of two classes, a fake encoder."""

    def __init__(self, script, steps, batch_size=8, **choices):
        torch.manual_seed(0)
        choices |= {"lr": 1e-3, "batch_size": batch_size, "train_steps": steps}
        self.config = script.Config(**choices, data_dir=data_args().data_dir)
        self.batch_size, self.n, self.device = batch_size, steps, torch.device("cpu")
        self.losses, self.parallel, self.autocast = [], lambda model: model, contextlib.nullcontext
        self.encoder, self.vectors = argparse.Namespace(dim=8, encode_text=self.encode), {}
        self.cone, self.mentioned = 3 * torch.randn(text_of(script, 1).shape[1:]), []

    def encode(self, texts):
        """Vectors in a narrow cone, the same for the same text."""
        new = [text for text in texts if text not in self.vectors]
        self.vectors |= zip(new, self.cone + 0.1 * torch.randn(len(new), *self.cone.shape))
        return torch.stack([self.vectors[text] for text in texts])

    def captions(self, images, labels):
        self.made = captions.Captions(self.config, images, labels, None)
        mention = self.made.mention
        self.made.mention = lambda i: self.mentioned.append(mention(i)) or self.mentioned[-1]
        return self.made

    def load_data(self):
        pixels = np.random.default_rng(0).integers(0, 256, (100, 28, 28), np.uint8)
        return torch.from_numpy(pixels), torch.arange(100) % 2

    def steps(self, **modules):
        self.modules, self.read = modules, []
        parts = [x for x in modules.values() if isinstance(x, torch.nn.Module)]
        self.readers = [x for part in parts for x in part.modules() if hasattr(x, "text_mean")]
        for reader in self.readers:
            layers = [x for x in reader.modules() if getattr(x, "in_features", 0) == 8]
            layers[0].register_forward_hook(lambda _, inputs, __: self.read.append(inputs[0]))
        yield from range(self.n)


def ideal(image):
    """The exact v for a data set of one image, called like the network."""

    def v(x_t, t):
        a = ALPHAS_BAR[t].view(-1, 1, 1, 1)
        eps = (x_t - a.sqrt() * image) / (1 - a).sqrt()
        return a.sqrt() * eps - (1 - a).sqrt() * image

    return v


def gaussian(x_t, t):
    """The exact v for data of independent pixels, normal with a deviation of 0.4."""
    a = ALPHAS_BAR.double()[t].view(-1, 1, 1, 1)
    x0_hat = 0.4**2 * a.sqrt() / (a * 0.4**2 + 1 - a) * x_t
    return ((a.sqrt() * x_t - x0_hat) / (1 - a).sqrt()).float()


def test_schedule_is_the_product_of_nichol_and_dhariwal():
    f = [math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(1001)]
    betas = [0] + [min(0.999, 1 - f[i] / f[i - 1]) for i in range(1, 1001)]
    assert common.T == 1000 and ALPHAS_BAR.shape == (1001,) and ALPHAS_BAR[0] == 1
    assert np.abs(ALPHAS_BAR.numpy() / np.cumprod(1 - np.array(betas)) - 1).max() < 1e-4
    assert (ALPHAS_BAR.diff() < 0).all() and 0 < ALPHAS_BAR[-1] < 1e-5


@pytest.mark.parametrize("script", LADDER)
def test_x_0_and_eps_are_got_back_from_v_and_the_ideal_loss_is_zero(script, monkeypatch):
    image, seen = torch.rand(1, 1, 28, 28) * 2 - 1, []

    def model(x_t, t):
        a, v = ALPHAS_BAR[t].view(-1, 1, 1, 1), ideal(image)(x_t, t)
        assert (a.sqrt() * x_t - (1 - a).sqrt() * v - image).abs().max() < 1e-3
        eps = (1 - a).sqrt() * x_t + a.sqrt() * v
        assert len(t) == 1 or abs(eps.mean()) < 0.03 and abs(eps.std() - 1) < 0.03
        seen.extend(t.tolist())
        return v

    for _ in range(100):
        assert script.diffusion_loss(model, image.repeat(64, 1, 1, 1), ALPHAS_BAR) < 1e-4
    assert len({*seen}) > 900 and 600 < np.median(seen) < 630, "more of the noisy ones"
    for drawn, t in ((0.0, common.T), (1.0, 1)):
        monkeypatch.setattr(torch, "rand", lambda *size, drawn=drawn, **_: torch.full(size, drawn))
        script.diffusion_loss(model, image, ALPHAS_BAR)
        assert seen[-1] == t, "the first and the last t there are"


@pytest.mark.parametrize("script", LADDER)
def test_every_sampler_returns_the_only_image_there_is(script):
    image = torch.rand(1, 1, 28, 28) * 1.8 - 0.9
    for steps, eta in ((1, 0.0), (1, 1.0), (3, 0.5), (18, 0.0), (18, 1.0)):
        x_T, generators = start(2)
        x = script.sample(ideal(image), x_T, steps, eta, generators)
        assert x.shape == (2, 1, 28, 28) and (x - image).abs().max() < 1e-3


@pytest.mark.parametrize("script", LADDER)
def test_a_step_with_eta_1_is_the_ddpm_posterior(script):
    """The eighth of 50, against mean and variance of q(x_s | x_t, x_0), DDPM Eq. 6-7."""
    image, film, (x_T, generators) = torch.rand(1, 1, 28, 28) * 1.8 - 0.9, [], start(1)
    script.sample(ideal(image), x_T, 50, 1.0, generators, film)
    (t, x_t, _), (s, x_next, _) = film[7:9]
    a, a_next = ALPHAS_BAR.double()[[t, s]]
    beta, alpha = 1 - a / a_next, a / a_next
    mean = (a_next.sqrt() * beta * image + alpha.sqrt() * (1 - a_next) * x_t) / (1 - a)
    variance, generators = (1 - a_next) / (1 - a) * beta, start(1)[1]
    for _ in range(8):  # one z for each step down to s
        z = samples.noise(generators, 1, 28, 28)
    assert (x_next - (mean + variance.sqrt() * z)).abs().max() < 1e-3


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("script", LADDER)
def test_the_share_of_the_variance_that_is_kept(script, eta):
    """Of Gaussian data; DDIM with eta 1 keeps 44 % of it in 6 steps and 68 % in 14."""
    for steps, least, most in ((6, 0.5, 0.7), (18, 0.9, 1.03), (50, 0.95, 1.05)):
        x_T, generators = start(20)
        x = script.sample(gaussian, x_T, steps, eta, generators)
        assert least < x.var() / 0.4**2 < most and abs(x.mean()) < 0.02


@pytest.mark.parametrize("script", LADDER)
def test_no_noise_is_added_in_the_last_step(script):
    film, text = [], {} if script is a0_uncond else {"text": text_of(script, 2)}
    x_T, generators = start(2)
    model = partial(perturbed(network(script)), **text)
    script.sample(model, x_T, 4, 1.0, generators, film)
    (t, x_t, _), (t_last, x_last, _) = film[-2:]
    with torch.no_grad():
        v = model(x_t, torch.full((2,), t))
    x0_hat = ALPHAS_BAR[t].sqrt() * x_t - (1 - ALPHAS_BAR[t]).sqrt() * v
    assert t_last == 0 and (x_last - x0_hat.clamp(-1, 1)).abs().max() < 1e-6


def test_an_image_depends_on_seed_and_number_alone(monkeypatch):
    """Not on the batch it is generated in; no two from the same noise."""
    x = start(6, seed=3)[0]
    flat = torch.cat([x, start(6, seed=4)[0]]).flatten(1)
    assert torch.cdist(flat, flat).fill_diagonal_(9).min() > 5
    assert torch.equal(samples.noise(samples.generators_of(3, [4, 2]), 1, 28, 28), x[[4, 2]])
    run, drawn = argparse.Namespace(config=argparse.Namespace(seed=5), encoder=None), []
    for size in (3, 100):
        monkeypatch.setattr(samples, "BATCH", size)
        draw = lambda prompts, scale, generators: common.noise(generators, 1, 28, 28)  # noqa: E731
        drawn.append(samples.generate(run, draw, [""] * 7, 1.0, "generating")[0])
    assert (drawn[0] == drawn[1]).all() and len({*map(bytes, drawn[0])}) == 7


@pytest.mark.parametrize("script", GUIDED)
def test_scale_1_is_conditional_0_unconditional_and_2_extrapolates(script):
    model, x_t, text = perturbed(network(script)), torch.randn(4, 1, 28, 28), text_of(script, 4)
    t, always = torch.tensor([1, 300, 700, 1000]), (0, common.T)
    with torch.no_grad():
        cond, uncond = model(x_t, t, text), model(x_t, t, model.text_mean.expand_as(text))
        guided = {w: script.guided_v(x_t, t, model, text, w, always) for w in (0.0, 1.0, 2.0)}
        other = script.guided_v(x_t, t, model, text_of(script, 4, 2), 0.0, (300, 700))
    assert (other - uncond).abs().max() < 1e-5, "scale 0 ignores the text"
    assert (cond - uncond).abs().max() > 1e-3
    for scale, expected in ((0.0, uncond), (1.0, cond), (2.0, 2 * cond - uncond)):
        assert (guided[scale] - expected).abs().max() < 1e-5


@pytest.mark.parametrize("script", GUIDED)
def test_guidance_costs_a_second_pass_and_only_where_it_acts(script):
    """Scale 1 never has one; a scale above it only inside the interval; 0, without text, always."""
    calls, text = [], text_of(script, 3)

    class Model:
        text_mean = torch.zeros(8)

        def __call__(self, x_t, t, text):
            calls.append((t[0].item(), len(x_t)))
            return torch.zeros_like(x_t)

    def twice(scale, interval):
        calls.clear()
        v = partial(script.guided_v, model=Model(), text=text, scale=scale, interval=interval)
        script.sample(v, torch.zeros(3, 1, 28, 28), 10, 0.0, start(3)[1])
        assert len(calls) == 10 and {n for _, n in calls} <= {3, 6}
        return [t for t, n in calls if n == 6]

    every = twice(0.0, (300, 700))
    assert every[0] == 1000 and twice(1.0, (300, 700)) == [] and twice(2.0, (0, 1000)) == every
    assert twice(2.0, (300, 700)) == [t for t in every if 300 <= t <= 700] != []


@pytest.mark.parametrize("script", LADDER)
def test_times_fall_from_t_to_zero_and_are_finest_at_both_ends(script):
    for steps in (1, 2, 6, 18, 50, 400):
        film, (x_T, generators) = [], start(1)
        x = script.sample(gaussian, x_T, steps, 1.0, generators, film)
        times = [t for t, _, _ in film]
        assert times == sorted({*times}, reverse=True) and (times[0], times[-1]) == (1000, 0)
        assert x.isfinite().all() and (len(times) == steps + 1 or steps == 400)
        if steps == 18:
            gaps = -np.diff(times)
            assert gaps.argmax() in (10, 11) and max(gaps[0], gaps[-1]) < gaps.max() / 5


@pytest.mark.parametrize("script", GUIDED)
def test_one_in_ten_of_the_texts_that_name_a_class_alone_becomes_the_mean_text(script, monkeypatch):
    """Through the real training loop, looked at where the loss sees the texts."""
    seen, run = [], FakeRun(script, steps=40, batch_size=64)
    model = network(script, run.config)

    def loss(model_of_text, x_0, alphas_bar):
        text = model_of_text.keywords["text"]
        seen.append((text == model.text_mean).flatten(1).all(1))
        return sum(weight.sum() for weight in model.parameters()) + text.sum()

    monkeypatch.setattr(script, "diffusion_loss", loss)
    script.train(run, model)
    dropped, alone = torch.cat(seen), (torch.cat(run.mentioned) == 0).all(1)
    assert len(dropped) == 40 * 64 and 0.1 < alone.float().mean() < 0.5
    assert 0.06 < dropped[alone].float().mean() < 0.14 and not dropped[~alone].any()


@pytest.mark.parametrize("script", LADDER)
def test_the_output_depends_on_t_and_on_the_text(script):
    model, x_t, t = perturbed(network(script)), torch.randn(2, 1, 28, 28), torch.full((2,), 500)
    texts = [[], []] if script is a0_uncond else [[text_of(script, 2, seed)] for seed in (1, 2)]
    with torch.no_grad():
        v, earlier = model(x_t, t, *texts[0]), model(x_t, t - 100, *texts[0])
        assert v.shape == (2, 1, 28, 28) and (v - earlier).abs().max() > 1e-3
        assert (v - model(x_t, t, *texts[1])).abs().max() > 1e-3 or script is a0_uncond


@pytest.mark.parametrize("script", [*LADDER, cgan, cvae])
def test_training_moves_every_weight_and_texts_are_read_centred(script, monkeypatch):
    """Whatever cone the texts lie in: by all that is saved, and by a GAN's discriminator."""
    monkeypatch.setattr(captions, "MOST", 400)
    run = FakeRun(script, steps=4)
    model = network(script, run.config)
    before, means = copy.deepcopy(model.state_dict()), [copy.deepcopy(model)] * (script is cgan)
    script.train(run, model, *means)
    assert {"model", "optimizer"} <= {*run.modules} and len(run.losses) == 4
    assert not any(x.requires_grad for x in run.losses[0].values())
    for name, weight in model.named_parameters():
        assert (weight - before[name]).abs().max() > 0, name
        for mean in (dict(net.named_parameters())[name] for net in means):
            assert (mean - before[name]).abs().max() > 0 and (mean - weight).abs().max() > 0, name
    assert len(run.readers) == {a0_uncond: 0, a5_fast: 2, cgan: 3, cvae: 3}.get(script, 1)
    for reader in run.readers:
        texts = run.encode(run.made.sentences)  # (S, 8), (S, 1 + WORDS, 8)
        read = ((texts - reader.text_mean) / reader.text_std).view(len(texts), -1, 8)[:, 0]
        assert read.mean(0).abs().max() < 0.2 and 0.8 < read.std() < 1.25
        assert {"text_mean", "text_std"} <= {*reader.state_dict()}, "kept in the checkpoint"
    assert bool(run.read) == bool(run.readers) and all(x.abs().max() < 6 for x in run.read)
