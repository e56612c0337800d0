"""What `agreement.measure` found, as a page: tables, worst prompts and plots."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

from ..reports.page import line_width
from ..reports.tables import markdown_table


def render(result: Mapping[str, Any], worst: int = 5) -> str:
    """Writes the result as Markdown: a table of comparisons, then the worst prompts of each."""
    head = ("", "top-1", "top-5", "KL mean", "KL max", "logits ±", "tokens alike", "prompts alike")
    rows = [
        (
            _label(one),
            f"{one['top1']:.2%}",
            f"{one['top5']:.2%}",
            f"{one['kl_mean']:.2e}",
            f"{one['kl_max']:.2e}",
            f"{one['logit_difference']:.2e}",
            f"{one['equal_tokens']:.2%}",
            f"{one['equal_prompts']} of {len(one['prompts'])}",
        )
        for one in result["comparisons"]
    ]
    positions, known = result["comparisons"][0]["positions"], result["reference"]["model"]
    lines = [
        markdown_table(head, rows),
        "",
        f"Each against {known} in float32, on what that writes greedily after each prompt, up to "
        f"{result['max_new_tokens']} tokens; {positions} tokens in all. Teacher-forced, each token "
        "chosen after the reference's own: how often the likeliest token is the reference's "
        "(top-1), how many of its five likeliest are among the five here (top-5), the "
        "Kullback-Leibler divergence from its distribution in nats, the largest difference of a "
        "logit. Free-running, each going on from its own tokens: how many are alike before the "
        "first that differs, and in how many prompts all are.",
    ]
    for one in result["comparisons"]:
        lines += ["", f"Worst prompts of {_label(one)}, by mean KL:", ""]
        lines.append(_worst(one["prompts"], worst))
    return "\n".join(lines)


def _label(one: Mapping[str, Any]) -> str:
    """Names a comparison: "qwen35 float32, weights int8"."""
    made = (f", {name} {one[name]}" for name in ("weights", "head") if one.get(name))
    return f"{one['model']} {one['dtype']}" + "".join(made)


def _worst(prompts: list[dict], count: int) -> str:
    head = ("prompt", "top-1", "KL mean", "KL max", "tokens alike", "first difference")
    rows = []
    for entry in sorted(prompts, key=lambda entry: -entry["kl_mean"])[:count]:
        differs, what = entry["first_difference"], "none"
        if differs is not None:
            what = (
                f"token {differs['position']}: {_quoted(differs['candidate'])} for "
                f"{_quoted(differs['reference'])}, {differs['margin']:.2e} below it there"
            )
        rows.append(
            (
                _quoted(entry["prompt"]),
                f"{entry['top1']:.2%}",
                f"{entry['kl_mean']:.2e}",
                f"{entry['kl_max']:.2e}",
                f"{entry['equal_tokens']:.2%}",
                what,
            )
        )
    return markdown_table(head, rows, left=(0, 5))


def _quoted(text: str, limit: int = 48) -> str:
    """Quotes a text on one line, its middle left out where it is long."""
    if len(text) > limit:
        text = f"{text[: limit // 2]} … {text[-limit // 2 :]}"
    return json.dumps(text, ensure_ascii=False)


def plots(result: Mapping[str, Any]) -> dict[str, Callable[[Any], None]]:
    """Draws divergence and greedy agreement by the position of the token."""
    return {
        "divergence by token": functools.partial(_plot_divergence, result["comparisons"]),
        "prompts alike by token": functools.partial(_plot_alike, result["comparisons"]),
    }


def _plot_divergence(comparisons: list[dict], axes: Any) -> None:
    for index, one in enumerate(comparisons):
        positions = [entry["position"] for entry in one["by_position"]]
        for name, style in (("kl_mean", "-"), ("kl_max", ":")):
            values = [entry[name] for entry in one["by_position"]]
            label = f"{_label(one)}, {name.removeprefix('kl_')}"
            width = line_width(index, len(comparisons))
            axes.plot(positions, values, style, color=f"C{index}", label=label, linewidth=width)
    axes.set(yscale="symlog", xlabel="token", ylabel="KL from the reference, nats")
    axes.set_yscale("symlog", linthresh=1e-12)
    axes.legend(fontsize="small")


def _plot_alike(comparisons: list[dict], axes: Any) -> None:
    for index, one in enumerate(comparisons):
        positions = [entry["position"] for entry in one["by_position"]]
        values = [entry["equal"] for entry in one["by_position"]]
        width = line_width(index, len(comparisons))
        axes.step(positions, values, where="post", label=_label(one), linewidth=width)
    axes.set(xlabel="token", ylabel="share of prompts alike up to it")
    axes.set_ylim(0, 1.05)
    axes.legend(fontsize="small")
