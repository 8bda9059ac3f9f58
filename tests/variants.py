"""Scripts with one thing changed, for the study: replacements in a script's text, or a patch of it.

Others of docs/results/trials.csv are in this file at commits 3e804d7 and 8d4ef16.
"""

EPS = {  # a0 that predicts the noise: Ho et al. 2020 Eq. 14
    "return F.mse_loss(model(x_t, t), v)": "return F.mse_loss(model(x_t, t), eps)",
    "x0_hat = a.sqrt() * x_t - (1 - a).sqrt() * v  # Salimans & Ho Sec. 4":
        "x0_hat = (x_t - (1 - a).sqrt() * v) / a.sqrt().clamp(min=1e-4)",
}  # fmt: skip
X_0 = dict(zip(EPS, ("return F.mse_loss(model(x_t, t), x_0)", "x0_hat = v")))

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
# name -> the script, and what is replaced in its text
VARIANTS = {
    "a0_eps": ("a0_uncond", EPS), "a0_x0": ("a0_uncond", X_0),
    "a1_noisy": ("a1_cond", NOISY), "a2_noisy": ("a2_clip", NOISY),
    "a2_static": ("a2_clip", STATIC), "a2_static_noisy": ("a2_clip", STATIC | NOISY),
    "a4_image": ("a4_full", "a4_image.patch"),
    "a4_no_pair": ("a4_full", NO_PAIR), "a4_null": ("a4_full", NULL),
}  # fmt: skip
