"""The mathematics: schedule, loss, sampler, guidance."""

import argparse
import contextlib
import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import a0_uncond
import a1_cond
import a2_clip
import a3_cfg
import a4_full
import cgan
import common
import cvae
from kit import captions, datasets, samples


def random_model(script=a4_full, seed=0):
    """A network none of whose layers is still zero, so that every input can reach the output."""
    torch.manual_seed(seed)
    model = script.UNet(script.Config(), 8)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model.eval()


def unit(n, dim=8, seed=1):
    return torch.nn.functional.normalize(
        torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1
    )


class FakeRun:
    """As much of a Run as a training loop needs: random images of two classes, a fake encoder."""

    def __init__(self, script, steps, batch_size=64):
        self.n, self.losses, self.device = steps, [], torch.device("cpu")
        self.config = script.Config(lr=1e-3, batch_size=batch_size, train_steps=steps)
        self.batch_size, self.scaler = batch_size, torch.amp.GradScaler("cpu", enabled=False)
        self.parallel = lambda model: model
        self.config.classes = datasets.DIGITS
        self.encoder, self.encode = argparse.Namespace(dim=8), lambda texts: unit(len(texts))

    def autocast(self):
        return contextlib.nullcontext()

    def captions(self, labels):
        """Each caption that is said is noted in self.said."""
        states = torch.randint(-1, 2, (len(labels), 2), dtype=torch.int8)
        words = [("thin", "thick"), ("leaning left", "leaning right")]
        self.made, self.said = captions.Captions(self.config, labels, states, words), []
        say = self.made.say

        def noted(i):
            self.said.append(say(i))
            return self.said[-1]

        self.made.say = noted
        return self.made

    def load_data(self):
        return torch.randint(256, (100, 28, 28), dtype=torch.uint8), torch.arange(100) % 2

    def steps(self, **modules):
        self.modules = modules
        yield from range(self.n)


class IdealDenoiser:
    """The exact v for a data set of one image, called like the network."""

    def __init__(self, image):
        self.image = image

    def __call__(self, x_t, t):
        a = common.cosine_alphas_bar()[t].view(-1, 1, 1, 1)
        eps = (x_t - a.sqrt() * self.image) / (1 - a).sqrt()
        return a.sqrt() * eps - (1 - a).sqrt() * self.image


def test_schedule_is_the_product_of_nichol_and_dhariwal():
    f = [math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(1001)]
    expected = [1.0]
    for i in range(1, 1001):
        expected.append(expected[-1] * (1 - min(0.999, 1 - f[i] / f[i - 1])))
    alphas_bar = common.cosine_alphas_bar().numpy()
    assert alphas_bar.shape == (1001,) and alphas_bar[0] == 1
    assert np.abs(alphas_bar / np.array(expected) - 1).max() < 1e-4
    assert (np.diff(alphas_bar) < 0).all() and 0 < alphas_bar[-1] < 1e-5


def test_loss_is_zero_for_the_ideal_denoiser_and_draws_every_t():
    image = torch.rand(1, 1, 28, 28) * 2 - 1
    seen = []

    def model(x_t, t):
        seen.append(t)
        return IdealDenoiser(image)(x_t, t)

    for _ in range(120):
        loss = a4_full.diffusion_loss(model, image.repeat(64, 1, 1, 1), common.cosine_alphas_bar())
        assert loss < 1e-4
    t = torch.cat(seen)
    assert t.min() >= 1 and t.max() <= common.T and len(t.unique()) > 900
    assert 600 < t.median() < 630, "the noisier half of the way has more of them"


@pytest.mark.parametrize(("draw", "expected"), [(0.0, common.T), (1.0, 1)])
def test_t_runs_from_1_to_T(monkeypatch, draw, expected):
    seen = []

    def model(x_t, t):
        seen.append(t.item())
        return x_t

    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.full(size, draw))
    a4_full.diffusion_loss(model, torch.zeros(1, 1, 28, 28), common.cosine_alphas_bar())
    assert seen == [expected]


@pytest.mark.parametrize("steps", [1, 3, 20])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_every_sampler_returns_the_only_image_there_is(steps, eta):
    image = torch.rand(1, 1, 28, 28) * 1.8 - 0.9
    x = a4_full.sample(
        IdealDenoiser(image),
        torch.randn(2, 1, 28, 28),
        steps,
        eta,
        samples.generators_of(0, range(2)),
    )
    assert x.shape == (2, 1, 28, 28)
    assert (x - image).abs().max() < 1e-3


def test_eta_1_over_all_steps_is_the_ddpm_posterior(monkeypatch):
    """One step at t, against mean and variance of q(x_{t-1} | x_t, x_0), DDPM Eq. 6-7."""
    alphas_bar = common.cosine_alphas_bar().double()
    image, t = torch.rand(1, 1, 28, 28) * 1.8 - 0.9, 700
    film = []
    generators = samples.generators_of(0, range(1))
    x_T = samples.noise(generators, 1, 28, 28)
    a4_full.sample(IdealDenoiser(image), x_T, common.T, 1.0, generators, film)
    assert [step for step, _ in film] == list(range(common.T, -1, -1))
    x_t, x_next = dict(film)[t].double(), dict(film)[t - 1].double()
    a, a_next = alphas_bar[t], alphas_bar[t - 1]
    beta, alpha = 1 - a / a_next, a / a_next
    mean = (a_next.sqrt() * beta * image + alpha.sqrt() * (1 - a_next) * x_t) / (1 - a)
    variance = (1 - a_next) / (1 - a) * beta
    generators = samples.generators_of(0, range(1))
    for _ in range(common.T - t + 2):  # x_T, then one z for each step down to t - 1
        z = samples.noise(generators, 1, 28, 28)
    assert (x_next - (mean + variance.sqrt() * z)).abs().max() < 1e-3


def gaussian_v(deviation):
    """The exact v for data of independent pixels, normal with this deviation."""
    alphas_bar = common.cosine_alphas_bar().double()

    def v(x_t, t):
        a = alphas_bar[t].view(-1, 1, 1, 1)
        x0_hat = deviation**2 * a.sqrt() / (a * deviation**2 + 1 - a) * x_t
        return ((a.sqrt() * x_t - x0_hat) / (1 - a).sqrt()).float()

    return v


@pytest.mark.parametrize(
    ("steps", "least", "most"), [(6, 0.5, 0.7), (14, 0.9, 1.02), (50, 0.95, 1.05)]
)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_share_of_the_variance_that_is_kept(eta, steps, least, most):
    """Of Gaussian data; DDIM with eta 1 keeps 44, 65 and 84 % of it, in 6, 14 and 50 steps."""
    generators = samples.generators_of(0, range(100))
    x_T = samples.noise(generators, 1, 28, 28)
    x = a4_full.sample(gaussian_v(0.4), x_T, steps, eta, generators)
    assert least < x.var() / 0.4**2 < most and abs(x.mean()) < 0.01


def test_without_noise_the_error_falls_with_the_square_of_the_step():
    """Against the exact solution of the ODE, which scales x as its deviation shrinks."""
    errors, alphas_bar, generators = (
        [],
        common.cosine_alphas_bar(),
        samples.generators_of(0, range(4)),
    )
    x_T = samples.noise(generators, 1, 28, 28)
    for steps in (10, 20, 40):
        film = []
        a4_full.sample(gaussian_v(0.15), x_T, steps, 0.0, generators, film)
        x = dict(film)[300]
        deviation = [(alphas_bar[t] * 0.15**2 + 1 - alphas_bar[t]).sqrt() for t in (common.T, 300)]
        errors.append((x - deviation[1] / deviation[0] * x_T).abs().max().item())
    assert 3 < errors[0] / errors[1] < 6 and 3 < errors[1] / errors[2] < 6, errors


def test_the_noise_of_an_image_depends_on_seed_and_number_alone():
    """Not on the batch it is drawn in: the first image of 16 is that of 1."""
    model = partial(random_model(), text=unit(1).expand(6, -1))
    all_six = samples.generators_of(3, range(6))
    x = samples.noise(all_six, 1, 28, 28)
    images = a4_full.sample(model, x, 5, 1.0, all_six)
    for part in (range(0, 1), range(2, 5)):
        some = samples.generators_of(3, part)
        model = partial(random_model(), text=unit(1).expand(len(part), -1))
        again = a4_full.sample(model, samples.noise(some, 1, 28, 28), 5, 1.0, some)
        assert (again - images[list(part)]).abs().max() < 1e-4
    other = samples.noise(samples.generators_of(4, range(6)), 1, 28, 28)
    flat = torch.cat([x, other]).flatten(1)
    assert torch.cdist(flat, flat).fill_diagonal_(9).min() > 5, "no noise comes twice"


def test_images_of_a_file_are_numbered_through_all_its_batches(monkeypatch):
    """Whatever the size of a batch, the same images; no two batches from the same noise."""
    run = argparse.Namespace(config=argparse.Namespace(seed=5), encoder=None)

    def draw(prompts, scale, generators):
        return samples.noise(generators, 1, 28, 28).clamp(-1, 1)

    drawn = {}
    for size in (3, 100):
        monkeypatch.setattr(samples, "BATCH", size)
        drawn[size], _ = samples.draw_all(run, draw, [""] * 8, 1.0, "drawing")
    assert (drawn[3] == drawn[100]).all() and len({*map(bytes, drawn[3])}) == 8


def test_no_noise_is_added_in_the_last_step():
    model, film = partial(random_model(), text=unit(2)), []
    generators = samples.generators_of(0, range(2))
    a4_full.sample(model, torch.randn(2, 1, 28, 28), 4, 1.0, generators, film)
    t, x_t = film[-2]
    a = common.cosine_alphas_bar()[t]
    with torch.no_grad():
        v = model(x_t, torch.full((2,), t))
    x0_hat = (a.sqrt() * x_t - (1 - a).sqrt() * v).clamp(-1, 1)
    assert film[-1][0] == 0 and (film[-1][1] - x0_hat).abs().max() < 1e-6


@pytest.mark.parametrize("script", [a3_cfg, a4_full])
def test_scale_1_is_conditional_0_unconditional_and_2_extrapolates(script):
    model, text, x_t, t = (
        random_model(script),
        unit(4),
        torch.randn(4, 1, 28, 28),
        torch.tensor([1, 300, 700, 1000]),
    )
    with torch.no_grad():
        cond, uncond = model(x_t, t, text), model(x_t, t, model.text_mean.repeat(4, 1))
        always = 0, common.T
        guided = {w: script.guided_v(x_t, t, model, text, w, always) for w in (0.0, 1.0, 2.0)}
        other = script.guided_v(x_t, t, model, unit(4, seed=2), 0.0, (300, 700))
    assert (other - uncond).abs().max() < 1e-5, "scale 0 ignores the text"
    assert (cond - uncond).abs().max() > 1e-3
    for scale, expected in ((0.0, uncond), (1.0, cond), (2.0, 2 * cond - uncond)):
        assert (guided[scale] - expected).abs().max() < 1e-5


def test_guiding_v_is_guiding_eps():
    """The rule of DESIGN and papers is in eps; ours is in v. At one x_t they are the same."""
    a = common.cosine_alphas_bar()[400]
    x_t, v_uncond, v_cond, w = torch.randn(5), torch.randn(5), torch.randn(5), 3.0
    eps_uncond, eps_cond = (a.sqrt() * v + (1 - a).sqrt() * x_t for v in (v_uncond, v_cond))
    guided = a.sqrt() * (v_uncond + w * (v_cond - v_uncond)) + (1 - a).sqrt() * x_t
    assert (guided - (eps_uncond + w * (eps_cond - eps_uncond))).abs().max() < 1e-6


@pytest.mark.parametrize("script", [a3_cfg, a4_full])
def test_guidance_costs_a_second_pass_and_only_where_it_acts(script):
    """Scale 1 never has one; a scale above it only inside the interval; 0, without text, always."""
    calls = []

    class Model:
        text_mean = torch.zeros(8)

        def __call__(self, x_t, t, text):
            calls.append((t[0].item(), len(x_t)))
            return torch.zeros_like(x_t)

    def twice(scale, interval):
        calls.clear()
        v = partial(script.guided_v, model=Model(), text=unit(3), scale=scale, interval=interval)
        script.sample(v, torch.zeros(3, 1, 28, 28), 10, 0.0, samples.generators_of(0, range(3)))
        assert [t for t, _ in calls] == [*range(1000, 0, -100)]
        assert {n for _, n in calls} <= {3, 6}
        return [t for t, n in calls if n == 6]

    every = [*range(1000, 0, -100)]
    assert twice(1.0, (300, 700)) == [] and twice(0.0, (300, 700)) == every
    assert twice(2.0, (300, 700)) == [700, 600, 500, 400, 300]
    assert twice(2.0, (0, math.inf)) == every


@pytest.mark.parametrize("script", [a1_cond, a2_clip, a3_cfg, a4_full])
def test_the_output_depends_on_t_and_on_the_text(script):
    model, x_t, t = random_model(script), torch.randn(2, 1, 28, 28), torch.tensor([500, 500])
    with torch.no_grad():
        one, other = unit(2, seed=1), unit(2, seed=2)
        assert (model(x_t, t, one) - model(x_t, t, other)).abs().max() > 1e-3
        assert (model(x_t, t, one) - model(x_t, t - 100, one)).abs().max() > 1e-3


def test_the_unconditional_network_depends_on_t():
    torch.manual_seed(0)
    model = a0_uncond.UNet(a0_uncond.Config())
    x_t, t = torch.randn(2, 1, 28, 28), torch.tensor([500, 500])
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
        assert (model(x_t, t) - model(x_t, t - 100)).abs().max() > 1e-3


@pytest.mark.parametrize("script", [a3_cfg, a4_full])
def test_one_in_ten_of_the_texts_that_name_a_class_alone_becomes_the_mean_text(script, monkeypatch):
    """Through the real training loop, looked at where the loss sees the texts."""
    seen, run = [], FakeRun(script, steps=40)
    model = script.UNet(script.Config(), 8)

    def loss(model_of_text, x_0, alphas_bar):
        text = model_of_text.keywords["text"]
        seen.append((text == model.text_mean).all(1))
        return sum(p.sum() for p in model.parameters()) + text.sum()

    monkeypatch.setattr(script, "diffusion_loss", loss)
    torch.manual_seed(0)
    script.train(run, model, script.UNet(script.Config(), 8))
    dropped = torch.cat(seen)
    alone = (torch.cat(run.said) == 0).all(1)
    assert len(dropped) == 40 * 64 and 0.1 < alone.float().mean() < 0.3
    assert 0.06 < dropped[alone].float().mean() < 0.14 and not dropped[~alone].any()


@pytest.mark.parametrize("script", [a0_uncond, a1_cond, a2_clip, a3_cfg, a4_full])
def test_training_moves_every_weight_and_the_mean_follows_but_lags(script):
    torch.manual_seed(0)
    run = FakeRun(script, steps=6, batch_size=8)
    model = script.UNet(run.config, *[8][: script is not a0_uncond])
    ema, start = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    script.train(run, model, ema)
    assert set(run.modules) == {"model", "ema", "optimizer"} and len(run.losses) == 6
    means = dict(ema.named_parameters())
    for name, weight in model.named_parameters():
        mean = means[name]
        assert (weight - start[name]).abs().max() > 0, name
        assert (mean - start[name]).abs().max() > 0 and (mean - weight).abs().max() > 0, name


@pytest.mark.parametrize("script", [a1_cond, a2_clip, a3_cfg, a4_full, cgan])
def test_texts_are_read_centred_and_scaled_by_the_training_phrasings(script, monkeypatch):
    """Whatever cone they lie in: both networks that are saved, and a GAN's discriminator, know."""
    monkeypatch.setattr(captions, "MOST", 400)
    run = FakeRun(script, steps=1, batch_size=8)
    cone, known = 3 * torch.randn(8), {}
    run.encode = lambda texts: torch.stack(
        [known.setdefault(text, cone + 0.1 * torch.randn(8)) for text in texts]
    )
    network = script.Generator if script is cgan else script.UNet
    model, ema = (network(run.config, 8) for _ in range(2))
    script.train(run, model, ema)
    texts = run.encode(run.made.sentences)  # (S, 8)
    networks = [model, ema]
    networks += [run.modules["discriminator"].score] if script is cgan else []
    for net in networks:
        seen = []
        first = net.text if isinstance(net.text, torch.nn.Linear) else net.text[0]
        first.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
        text, B = texts, len(texts)
        if script is cgan and net in (model, ema):
            net(torch.zeros(B, run.config.z), text)
        elif script is cgan:
            net(torch.zeros(B, 2 * run.config.widths[1]), text)
        else:
            net(torch.zeros(B, 1, 28, 28), torch.full((B,), 500), text)
        assert seen[0].mean(0).abs().max() < 0.2 and 0.8 < seen[0].std() < 1.25
        assert {"text_mean", "text_std"} <= set(net.state_dict()), "kept in the checkpoint"


def test_the_bag_of_words():
    encoder = a1_cond.BagOfWords()
    seven, same, many, unknown, other, none = encoder.encode_text(
        [
            "the number seven",
            "Seven, the NUMBER!",
            "the the the",
            "the number seven zzyzx qux",
            "the number two",
            "?!",
        ]
    )
    assert encoder.encode_text(["a", "b"]).shape == (2, encoder.dim)
    assert (seven - same).abs().max() < 1e-6, "neither order nor case nor punctuation counts"
    assert all(abs(v.norm() - 1) < 1e-5 for v in (seven, many, unknown, other)) and none.norm() == 0
    assert seven @ unknown > 0.7, "unknown words turn the vector only a little"
    assert seven @ unknown > seven @ other > many @ seven > 0.4
    assert (seven - a1_cond.BagOfWords().encode_text(["the number seven"])[0]).abs().max() == 0


def test_attention_reaches_every_position():
    attention = a4_full.Attention(96)
    torch.nn.init.normal_(attention.out.weight)
    x = torch.randn(1, 96, 7, 7, requires_grad=True)
    attention(x)[0, :, 0, 0].sum().backward()
    assert (x.grad.abs().sum(1) > 0).all()


class Waits(TorchDispatchMode):
    """Counts what makes a program wait for its GPU: numbers and shapes that depend on data."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in WAITING:
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


aten = torch.ops.aten
WAITING = aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten._unique2


@pytest.mark.parametrize("scaled", [False, True], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("script", [a0_uncond, a1_cond, a2_clip, a3_cfg, a4_full, cgan, cvae])
def test_a_training_step_never_waits_for_the_device(script, scaled):
    run, unconditional = FakeRun(script, steps=3, batch_size=8), script is a0_uncond
    run.scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    network = {cgan: "Generator", cvae: "VAE"}.get(script, "UNet")
    model = getattr(script, network)(run.config, *[8][: not unconditional])
    with Waits() as waits:
        script.train(run, model, copy.deepcopy(model))
    assert len(run.losses) == 3 and waits.found == []
    with waits:
        float(run.losses[0][[*run.losses[0]][0]])
    assert waits.found == ["aten._local_scalar_dense.default"]


def test_attention_is_the_softmax_of_scaled_products_with_several_heads():
    torch.manual_seed(0)
    layer, x = a4_full.Attention(16), torch.randn(3, 16, 5, 7)
    torch.nn.init.normal_(layer.out.weight)
    qkv = layer.qkv(layer.norm(x)).view(3, 3, 4, 4, 35).transpose(-1, -2)
    h = torch.nn.functional.scaled_dot_product_attention(*qkv.unbind(1))
    wanted = x + layer.out(h.transpose(-1, -2).reshape(3, 16, 5, 7))
    assert (layer(x) - wanted).abs().max() < 1e-5
