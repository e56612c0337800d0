"""What the measurements of the engine and of memory come to: tables and plots."""

from __future__ import annotations

from typing import Any

from ..reports.page import Plots, line_width
from ..reports.tables import gigabytes, markdown_table, milliseconds, percent, times
from .host import HostWork
from .records import medians, to_plain
from .serving import Arrivals, SlotRates
from .statistics import median, spread
from .text import DecodeMemory, TextRun


def throughput(slots: list[SlotRates], arrivals: list[Arrivals]) -> dict[str, Any]:
    """Returns rows: `slots`, one for each number of them; `arrivals`, one for each load; and
    `ideal`, what the saturated engine is compared with.

    Args:
        slots, arrivals: the records of all rounds.
    """
    rows = []
    for rounds in zip(*(run.engines for run in slots), strict=True):
        rates = [one.tokens_per_second for one in rounds]
        rows.append(to_plain(medians(rounds)) | {"spread": spread(rates)})
    loads = [
        to_plain(medians(rounds)) for rounds in zip(*(run.loads for run in arrivals), strict=True)
    ]
    ideal = to_plain(medians(arrivals))
    del ideal["loads"]
    return {"slots": rows, "arrivals": loads, "ideal": ideal}


def host(rounds: dict[int, list[HostWork]]) -> list[dict[str, Any]]:
    """Returns a row for each number of ranks, one device's first; `over_one` is the host's work
    over one device's, of rounds that followed each other.

    Args:
        rounds: the records of all rounds, by ranks.
    """
    rows = []
    for ranks, records in rounds.items():
        pairs = zip(records, rounds[1], strict=True)
        over_one = median(record.work / one.work for record, one in pairs)
        works = [record.work for record in records]
        row = {"tp": ranks, "spread": spread(works), "over_one": over_one}
        rows.append(to_plain(medians(records)) | row)
    return rows


def memory(ours: DecodeMemory, theirs: list[TextRun]) -> dict[str, Any]:
    """Returns bytes: what our process has before and at most, and what it needs; transformers'
    process."""
    return to_plain(ours) | {
        "over_needed": (ours.decode - ours.start) / ours.weights_and_state,
        "reference": theirs[0].memory if theirs else None,
    }


def render_throughput(part: dict[str, Any]) -> str:
    """Renders a Markdown section."""
    slots = [
        (
            f"{row['slots']}",
            f"{row['tokens_per_second']:.1f}",
            percent(row["spread"]),
            times(row["speedup"]),
        )
        for row in part["slots"]
    ]
    arrivals = [
        (
            row["load"],
            f"{row['requests_per_second']:.2f}",
            f"{row['tokens_per_second']:.1f}",
            *(
                f"{milliseconds(row[f'{name}_p50'])} / {milliseconds(row[f'{name}_p95'])}"
                for name in ("ttft", "tpot")
            ),
        )
        for row in part["arrivals"]
    ]
    ideal = part["ideal"]
    head = ("load", "requests/s", "tokens/s", "TTFT P50 / P95", "TPOT P50 / P95")
    return "\n".join(
        [
            "## Engine",
            "",
            "All slots busy:",
            "",
            markdown_table(("slots", "tokens/s", "spread", "speed-up"), slots),
            "",
            "Requests that arrive at random (Poisson), at shares of the rate that the engine "
            "reaches when all of them wait from the beginning:",
            "",
            markdown_table(head, arrivals),
            "",
            f"Saturated, the engine reaches {ideal['share_of_ideal']:.2f} of the ideal: as if all "
            f"prompts were read at {ideal['prefill_rate']:.0f} tokens/s, the best prefill step's "
            f"rate, and all later tokens decoded at {ideal['decode_rate']:.1f} tokens/s, the rate "
            "with all slots busy.",
        ]
    )


def render_prefix(part: dict[str, float], prefix: int, suffix: int) -> str:
    """Renders a Markdown section."""
    rows = [
        ("cache off", milliseconds(part["ttft_off"]), ""),
        ("cache on, empty", milliseconds(part["ttft_cold"]), ""),
        ("same prefix", milliseconds(part["ttft_warm"]), times(part["speedup_warm"])),
        ("same prompt", milliseconds(part["ttft_same"]), times(part["speedup_same"])),
    ]
    title = f"TTFT, {prefix:,} + {suffix:,} tokens"
    return "\n".join(["## Prefix cache", "", markdown_table((title, "time", "speed-up"), rows)])


def render_host(part: list[dict[str, Any]]) -> str:
    """Renders a Markdown section."""
    rows = [
        (
            f"{row['tp']}",
            milliseconds(row["work"]),
            percent(row["spread"]),
            times(row["over_one"]),
            milliseconds(row["seconds"]),
            times(row["ahead"]),
        )
        for row in part
    ]
    head = ("tp", "host's work", "spread", "over tp 1", "step", "read first")
    return "\n".join(
        [
            "## The host's part of an engine's step",
            "",
            markdown_table(head, rows),
            "",
            "The host's work is processor time of the thread that steps the engine. The last "
            "column is how many times as long a step takes that reads its tokens before it decodes "
            "them; engines start to decode first.",
        ]
    )


def render_memory(part: dict[str, Any]) -> str:
    """Renders a Markdown section."""
    own = part["decode"] - part["start"]
    rows = [
        ("the process", gigabytes(part["decode"]), gigabytes(part["reference"])),
        ("since loading began", gigabytes(own), "-"),
        ("weights and state", gigabytes(part["weights_and_state"]), "-"),
    ]
    return "\n".join(
        [
            "## Memory at decode",
            "",
            markdown_table(("anonymous memory", "qwen35", "transformers"), rows),
            "",
            f"What loading and running add is {part['over_needed']:.2f} times weights and state.",
        ]
    )


def plots(parts: dict[str, Any]) -> Plots:
    """Returns plots of what was measured at more than one point."""
    part = parts.get("throughput")
    if not part:
        return {}
    drawn: dict[str, Any] = {}
    if len(part["slots"]) > 1:
        drawn["tokens per second by slots"] = lambda axes: _slots(axes, part["slots"])
    if len(part["arrivals"]) > 1:
        drawn["first token under load"] = lambda axes: _load(axes, part["arrivals"])
    return drawn


def _slots(axes: Any, rows: list[dict]) -> None:
    at = [row["slots"] for row in rows]
    axes.plot(at, [row["tokens_per_second"] for row in rows], "o-", label="engine")
    first = rows[0]["tokens_per_second"] / at[0]
    axes.plot(at, [first * n for n in at], ":", color="grey", label="in proportion")
    axes.set(xlabel="slots", ylabel="tokens per second")
    axes.set_ylim(bottom=0)
    axes.legend()


def _load(axes: Any, rows: list[dict]) -> None:
    names = [row["load"] for row in rows]
    for number, share in enumerate((50, 95)):
        values = [row[f"ttft_p{share}"] for row in rows]
        axes.plot(names, values, "o-", label=f"P{share}", linewidth=line_width(number, 2))
    axes.set(xlabel="load", ylabel="s to the first token")
    axes.set_ylim(bottom=0)
    axes.legend()
