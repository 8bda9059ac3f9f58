"""Scripts with one thing changed: variants for the study, trials of each family's choices.

A variant is a script's text with replacements, or a patch of it. What is tried stands here, what it
gave in docs/results/trials.csv: python tests/study.py ladder_trials gan_trials vae_trials measures
against real digits that no published number uses.
"""

EPS = {  # a0 that predicts the noise: Ho et al. 2020 Eq. 14
    "return F.mse_loss(model(x_t, t), v)": "return F.mse_loss(model(x_t, t), eps)",
    "x0_hat = a.sqrt() * x_t - (1 - a).sqrt() * v  # Salimans & Ho Sec. 4":
        "x0_hat = (x_t - (1 - a).sqrt() * v) / a.sqrt().clamp(min=1e-4)",
}  # fmt: skip


GAN, VAE = "cgan", "cvae"


def flag(name: str, old: str, new: str) -> dict[str, str]:
    """Another default of a field, such as lr: float = 3e-4."""
    return {f"    {name} = {old}  #": f"    {name} = {new}  #"}


# As long as a4 trains (images per second of each script stand in docs/results/performance.csv), and
# half as long, to try more.
LONG, HALF = flag("train_steps: int", "4000", "5400"), flag("train_steps: int", "4000", "2700")
LR6, LR10 = flag("lr: float", "3e-4", "6e-4"), flag("lr: float", "3e-4", "1e-3")
GAMMA10 = flag("gamma: float", "3.0", "10.0")
SHORT = flag("train_steps: int", "4600", "1600")
Z16 = flag("z: int", "32", "16")
WIDE = flag("z: int", "32", "64") | flag("beta: float", "2.0", "1.0")
MUON = {
    "torch.optim.Adam(model.parameters(), **adam)":
        "common.Muon(model.parameters(), config.lr, 0.005)",
    'group["lr"] = config.lr * min(': 'group["lr"] = group.get("peak", config.lr) * min(',
}  # fmt: skip
STYLE = {  # z modulates every block, as the text does
    "        self.finer = nn.Conv2d(c2, c1, 1)\n        self.up1 = ResBlock(c1, c1, width)":
        "        self.style = nn.Linear(config.z, width)\n"
        "        self.finer = nn.Conv2d(c2, c1, 1)\n        self.up1 = ResBlock(c1, c1, width)",
    "condition = F.silu(self.text(text))": "condition = F.silu(self.text(text) + self.style(z))",
}  # fmt: skip
DEEPER = {  # one more convolution in the discriminator, at 14 x 14
    "            nn.Conv2d(c1, c2, 3, stride=2, padding=1), nn.LeakyReLU(0.2),  # (B, c2, 7, 7)":
        "            nn.Conv2d(c1, c1, 3, padding=1), nn.LeakyReLU(0.2),\n"
        "            nn.Conv2d(c1, c2, 3, stride=2, padding=1), nn.LeakyReLU(0.2),",
}  # fmt: skip
TEXT = {  # the discriminator's convolutions see the text as well
    "            nn.Conv2d(config.patch**2, c1, 3,":
        "            nn.Conv2d(config.patch**2 + 16, c1, 3,",
    "            nn.PixelUnshuffle(config.patch),\n": "",
    "        self.score = TextProjection(text_dim, 2 * c2)\n":
        "        self.score = TextProjection(text_dim, 2 * c2)\n"
        "        self.read = nn.Linear(text_dim, 16)\n",
    "        return self.score(self.features(x), text)":
        "        said = self.read((text - self.score.text_mean) / self.score.text_std)\n"
        "        said = said[:, :, None, None].expand(-1, -1, 14, 14)\n"
        "        x = torch.cat([F.pixel_unshuffle(x, 2), said], 1)\n"
        "        return self.score(self.features(x), text)",
}  # fmt: skip
WARM_UP = {"loss = reconstruction + config.beta * kl":
           "loss = reconstruction + config.beta * min(1, step / 800) * kl"}  # fmt: skip
SLOWER = flag("lr: float", "5e-3", "2.5e-3") | flag("muon_lr: float", "0.02", "0.01")

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
    "cgan_long": (GAN, LONG), "cgan_lr6": (GAN, LONG | LR6),
    "cgan_half": (GAN, HALF | LR6), "cgan_lr10": (GAN, HALF | LR10),
    "cgan_gamma1": (GAN, HALF | LR6 | flag("gamma: float", "3.0", "1.0")),
    "cgan_gamma10": (GAN, HALF | LR6 | GAMMA10),
    "cgan_last": (GAN, HALF | LR6 | flag("ema_decay: float", "0.999", "0.0")),
    "cgan_batch64": (GAN, flag("train_steps: int", "4000", "1350") | LR6
                     | flag("batch_size: int", "32", "64")),
    "cgan_muon": (GAN, HALF | LR6 | MUON), "cgan_style": (GAN, HALF | LR6 | STYLE),
    "cgan_deeper": (GAN, HALF | LR6 | DEEPER), "cgan_text": (GAN, HALF | LR6 | TEXT),
    "cgan_long_gamma10": (GAN, LONG | LR6 | GAMMA10),
    "cgan_long_both": (GAN, LONG | LR10 | GAMMA10),
    "cvae_half": (VAE, SHORT), "cvae_beta05": (VAE, SHORT | flag("beta: float", "2.0", "0.5")),
    "cvae_beta1": (VAE, SHORT | flag("beta: float", "2.0", "1.0")),
    "cvae_beta4": (VAE, SHORT | flag("beta: float", "2.0", "4.0")),
    "cvae_z16": (VAE, SHORT | Z16), "cvae_z64": (VAE, SHORT | flag("z: int", "32", "64")),
    "cvae_z64_beta1": (VAE, SHORT | WIDE),
    "cvae_long_z16": (VAE, Z16), "cvae_long_z64_beta1": (VAE, WIDE), "cvae_long": (VAE, {}),
    "cvae_slower": (VAE, SHORT | SLOWER), "cvae_warm_up": (VAE, SHORT | WARM_UP),
    "cvae_batch32": (VAE, flag("train_steps: int", "4600", "3200")
                     | flag("batch_size: int", "64", "32")),
}  # fmt: skip
TRIALS = {family: tuple(x for x in VARIANTS if x.startswith(family)) for family in (GAN, VAE)}
