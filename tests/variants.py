"""Scripts with one thing changed: variants for the study, trials of each family's choices.

A variant is a script's text with replacements, or a patch of it (of cgan_deeper, _style and _text:
at commit 8d4ef16). python tests/study.py ladder_trials gan_trials vae_trials measures them by real
digits that no published number uses, into docs/results/trials.csv.
"""

import re

from conftest import ROOT

EPS = {  # a0 that predicts the noise: Ho et al. 2020 Eq. 14
    "return F.mse_loss(model(x_t, t), v)": "return F.mse_loss(model(x_t, t), eps)",
    "x0_hat = a.sqrt() * x_t - (1 - a).sqrt() * v  # Salimans & Ho Sec. 4":
        "x0_hat = (x_t - (1 - a).sqrt() * v) / a.sqrt().clamp(min=1e-4)",
}  # fmt: skip

GAN, VAE = "cgan", "cvae"


def setting(script: str, **choices) -> dict[str, str]:
    """Other defaults of a script's fields."""
    text = (ROOT / f"{script}.py").read_text(encoding="utf-8")
    fields = {name: re.search(rf"    {name}: \w+ = .*?(?=  #)", text)[0] for name in choices}
    return {x: f"{x.split(' = ')[0]} = {choices[name]}" for name, x in fields.items()}


def gan(train_steps=2700, lr=6e-4, gamma=3.0, **choices) -> dict[str, str]:
    """Half as long as a4 trains: docs/results/performance.csv has the speeds."""
    return setting(GAN, train_steps=train_steps, lr=lr, gamma=gamma, **choices)


def vae(train_steps=1600, z=32, beta=2.0, **choices) -> dict[str, str]:
    """A third of the default training."""
    return setting(VAE, train_steps=train_steps, z=z, beta=beta, **choices)


MUON = {
    "torch.optim.Adam(model.parameters(), **adam)":
        "common.Muon(model.parameters(), config.lr, 0.005)",
    'group["lr"] = config.lr * min(': 'group["lr"] = group.get("peak", config.lr) * min(',
}  # fmt: skip
WARM_UP = {"loss = reconstruction + config.beta * kl":
           "loss = reconstruction + config.beta * min(1, step / 800) * kl"}  # fmt: skip
AVERAGE = {  # images by a moving average of the weights, as cgan.py makes them
    "import math\n": "import copy\nimport math\n",
    "    optimizer = common.Muon": "    ema = copy.deepcopy(model)\n    optimizer = common.Muon",
    "run.steps(model=model,": "run.steps(ema=ema, model=model,",
    "kl.detach()})\n":
        "kl.detach()})\n"
        "        with torch.no_grad():\n"
        "            for mean, weight in zip(ema.parameters(), model.parameters()):\n"
        "                mean.lerp_(weight, 1 - min(0.999, (1 + step) / (10 + step)))\n"
        "    model.load_state_dict(ema.state_dict())\n",
    "run.load(model=model)": "run.load(ema=model)",
}  # fmt: skip

IMPORT = {"import common  # a file of this repository; it needs the folder kit/ beside it":
          "import common\nimport controls"}  # fmt: skip
NOISY = IMPORT | {
    "encode_text(captions.sentences)": "encode_text(controls.noisy(captions.sentences))",
    "        text = texts[captions.find(i, mentioned)]":
        "        shift = controls.shift(len(i), len(captions.sentences))\n"
        "        text = texts[captions.find(i, mentioned) + shift]",
}  # fmt: skip
STATIC = IMPORT | {"common.load_clip(config, run.device)": "controls.Static()"}
NO_PAIR = {  # the images of the held-out pair are not trained on at all
    "    captions = run.captions(images, labels)":
        "    import kit.captions\n    kit.captions.HELD_OUT_TURNS = 0\n"
        "    captions = run.captions(images, labels)",
}  # fmt: skip
NULL = {  # every tenth caption is dropped, of each image equally often: no bias towards words
    "drop = (torch.rand(len(i), device=run.device) < config.p_uncond) & (mentioned == 0).all(1)":
        "turns = 3 ** (captions.states[i] != 0).sum(1)\n"
        "        turns[captions.held_out[i]] = 5\n"
        "        drop = torch.rand(len(i), device=run.device) < 0.36 / turns",
}  # fmt: skip
WORSE = {  # with --guide worse, from a copy after an eighth of the training: Karras et al. 2024
    "import math\n": "import copy\nimport math\n",
    "    p_uncond: float =":
        '    guide: str = "null"\n    SAMPLING = common.Config.SAMPLING | {"guide"}\n'
        "    p_uncond: float =",
    "    model = UNet(config, run.encoder.dim).to(run.device)\n":
        "    model = UNet(config, run.encoder.dim).to(run.device)\n"
        "    model.worse, model.guide = copy.deepcopy(model).requires_grad_(False), config.guide\n",
    "        optimizer.step()\n":
        "        optimizer.step()\n        if step + 1 == config.train_steps // 8:\n"
        "            best = model.state_dict().items()\n"
        '            best = {k: x for k, x in best if not k.startswith("worse")}\n'
        "            model.worse.load_state_dict(best)\n",
    "    texts = torch.cat([model.text_mean.expand_as(text), text])":
        '    if model.guide == "worse":\n'
        "        v_worse, v_cond = model.worse(x_t, t, text), model(x_t, t, text)\n"
        "        return v_worse + scale * (v_cond - v_worse)\n"
        "    texts = torch.cat([model.text_mean.expand_as(text), text])",
}  # fmt: skip

# name -> the script, and what is replaced in its text
VARIANTS = {
    "a0_eps": ("a0_uncond", EPS),
    "a1_noisy": ("a1_cond", NOISY), "a2_noisy": ("a2_clip", NOISY),
    "a2_static": ("a2_clip", STATIC), "a2_static_noisy": ("a2_clip", STATIC | NOISY),
    "a4_image": ("a4_full", "a4_image.patch"),
    "a4_no_pair": ("a4_full", NO_PAIR), "a4_null": ("a4_full", NULL),
    "a4_worse": ("a4_full", WORSE),
    "cgan_published": (GAN, gan(4000, 3e-4)), "cgan_long": (GAN, gan(5400, 3e-4)),
    "cgan_lr6": (GAN, gan(5400)), "cgan_long_gamma10": (GAN, gan(5400, gamma=10.0)),
    "cgan_half": (GAN, gan()), "cgan_lr10": (GAN, gan(lr=1e-3)),
    "cgan_gamma1": (GAN, gan(gamma=1.0)), "cgan_gamma10": (GAN, gan(gamma=10.0)),
    "cgan_last": (GAN, gan(ema_decay=0.0)), "cgan_batch64": (GAN, gan(1350, batch_size=64)),
    "cgan_muon": (GAN, gan() | MUON),
    "cvae_half": (VAE, vae()), "cvae_beta05": (VAE, vae(beta=0.5)),
    "cvae_beta1": (VAE, vae(beta=1.0)), "cvae_beta4": (VAE, vae(beta=4.0)),
    "cvae_z16": (VAE, vae(z=16)), "cvae_z64": (VAE, vae(z=64)),
    "cvae_z64_beta1": (VAE, vae(z=64, beta=1.0)), "cvae_long": (VAE, vae(4600)),
    "cvae_long_z16": (VAE, vae(4600, z=16)),
    "cvae_long_z64_beta1": (VAE, vae(4600, z=64, beta=1.0)),
    "cvae_slower": (VAE, vae(lr=2.5e-3, muon_lr=0.01)), "cvae_warm_up": (VAE, vae() | WARM_UP),
    "average": (VAE, AVERAGE),
    "cvae_batch32": (VAE, vae(3200, batch_size=32)),
}  # fmt: skip
TRIALS = {family: tuple(x for x in VARIANTS if x.startswith(family)) for family in (GAN, VAE)}
