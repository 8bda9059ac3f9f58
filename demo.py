"""A page to play with: sentences in, images out, step by step, from any trained run.

Commands  pip install gradio
          python demo.py
Shows     x_t and x0_hat of two sentences, from the same noise; below each image what the judge
          reads and what formulas measure. python a4_full.py --prompt ... draws the same images.
"""

import html
import importlib.util
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import tyro

import common
from kit import attributes, figures, judge
from kit.captions import words_of
from kit.data import to_pixels
from kit.files import UserError
from kit.run import read_config
from kit.samples import generators_of

TEXTS = {  # in English and Chinese, as the browser asks for
    "run": "模型", "a sentence": "一句话（英文）", "another one, same noise": "另一句话，噪声相同",
    "guidance scale (0: no text)": "引导强度（0：忽略文本）", "seed": "随机种子", "images": "张数",
    "steps (0: as usual)": "采样步数（0：默认值）", "draw": "生成",
}  # fmt: skip


def load(folder: Path, prompt: str, **flags):
    """-> a run and its draw(), made by its script's main(), as --prompt does."""
    known = (folder / "config.json").exists()
    saved = read_config(folder) if known else {"script": "a4_full", "dataset": "mnist"}
    script = importlib.import_module(saved["script"])
    flags |= {"out": folder.parents[1], "dataset": saved["dataset"], "prompt": prompt}
    fields, found = {*script.Config.__dataclass_fields__, "prompt"} & flags.keys(), []
    common.save_outputs = lambda run, draw, *_: found.append((run, draw))
    script.main([f"--{x.replace('_', '-')}={flags[x]}" for x in fields if flags[x] is not None])
    return found[0]


def told(run, pixels: np.ndarray) -> list[str]:
    """For each image what the judge reads, if there is one, and what formulas measure."""
    config, chosen, read = run.config, run.saved.get("attributes", {}), [""] * len(pixels)
    values = attributes.measure_all(pixels, names := attributes.measures_of(config))
    if judge.judge_path(config).exists():
        network = judge.load_judge(config, "cpu")
        read = [f"{config.classes[i]}, " for i in network.see(pixels)[1]]
    for i, state in enumerate(attributes.states(config, values, chosen).tolist()):
        read[i] += ", ".join(words_of([*map(tuple, chosen.values())], state))
        read[i] += f" ({', '.join(f'{x} {value:.1f}' for x, value in zip(names, values[i]))})"
    return read


def table(cells: list, titles: list[str], width: int) -> str:
    """HTML: cells (HTML, or images (n, 28, 28)) with titles below; width: pixels, at least."""
    style = f"display: grid; grid-template-columns: repeat(auto-fit, minmax({width}px, 1fr))"
    result = f'<div style="{style}; gap: 6px">'
    for cell, title in zip(cells, titles):
        if isinstance(cell, np.ndarray):
            side = int(np.ceil(len(cell) ** 0.5))
            cell = np.pad(cell, ((0, -len(cell) % side), (1, 1), (1, 1))).reshape(-1, side, 30, 30)
            source = figures.inline(cell.swapaxes(1, 2).reshape(-1, 30 * side))
            cell = f'<img src="{source}" style="width: 100%; image-rendering: pixelated">'
        result += f'<figure style="margin: 0">{cell}{html.escape(title)}</figure>'
    return f"{result}</div>"


def play(folder: str, one: str, other: str, scale, seed, n, steps):
    """Yield the HTML of both sentences' images, again and again."""
    shown, flags = {}, {"scale": scale, "seed": seed, "n": n, "sample_steps": steps or None}
    for prompt in [x for x in (one, other) if x.strip()] or [one]:
        try:
            run, draw = load(Path(folder), prompt, **flags)
            film, dice, busy = [], generators_of(seed, range(n)), True
            with ThreadPoolExecutor(1) as pool:
                future = pool.submit(draw, [run.config.prompt] * n, run.config.scale, dice, film)
                while busy:
                    busy = wait([future], 0.04).not_done
                    for title, *views in film[-1:]:
                        titles = [f"x_t, {title}", "x0_hat"] if views[1:] else [f"walk: {title}"]
                        shown[prompt] = table([*map(to_pixels, views)], titles, 140)
                        yield table([*shown.values()], [*shown], 220)
            pixels = to_pixels(future.result())
            shown[prompt] = shown.get(prompt, "") + table([*pixels[:, None]], told(run, pixels), 80)
        except UserError as error:
            shown[prompt] = html.escape(error.text)
        yield table([*shown.values()], [*shown], 220)


def main(out: Path = Path("results"), host: str = "127.0.0.1") -> None:
    """out: the folder of all runs. host: 0.0.0.0 lets others on the network in."""
    if not importlib.util.find_spec("gradio"):
        raise UserError("the page needs gradio: pip install gradio")
    import gradio as gr

    def runs() -> list[str]:
        found = sorted(path.parents[1] for path in out.rglob("checkpoints/last.pt"))
        return [*dict.fromkeys(map(str, [out / "mnist" / "a4_full", *found]))]

    text = gr.I18n(**{"en": dict(zip(TEXTS, TEXTS)), "zh-CN": TEXTS})
    labels = [text(name) for name in TEXTS]
    inputs = [gr.Dropdown(runs(), value=runs()[0], label=labels[0])]
    for label, word in zip(labels[1:], ("thick", "thin")):
        inputs.append(gr.Textbox(f"a {word} seven leaning left", label=label))
    limits = (0, 8, 2, 0.25), (0, 9999, 0, 1), (1, 64, 16, 1), (0, 100, 0, 1)
    inputs += [gr.Slider(*x[:3], step=x[3], label=y) for x, y in zip(limits, labels[3:])]
    draw = gr.Button(labels[-1], variant="primary", render=False)
    page = gr.Interface(play, inputs, gr.HTML(), submit_btn=draw, clear_btn=None,
                        flagging_mode="never", analytics_enabled=False)  # fmt: skip
    with page:
        page.load(lambda: gr.update(choices=runs()), outputs=inputs[0])  # one may be new
    next(play(runs()[0], "7", "", 2, 0, 1, 0))  # what takes long the first time
    page.launch(server_name=host, i18n=text)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
