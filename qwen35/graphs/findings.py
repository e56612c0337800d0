"""What is known of an exported graph, as lines for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .roofline import collective_bytes
from .summary import short_bytes


def render(costs: Mapping[str, Any], findings: Sequence[str], file: str) -> str:
    """Renders what a graph holds and costs, and what is to be done with it next.

    Args:
        costs: of `count_costs`.
        findings: of `Graph.lint`.
        file: where the graph's HLO module is.
    """
    ranks = costs["mesh"]["dp"] * costs["mesh"]["tp"]
    arguments = ", ".join(
        f"{name} {short_bytes(entry['bytes_read'])}"
        for name, entry in costs["arguments"].items()
        if entry["bytes_read"]
    )
    kinds = Counter(entry["op"] for entry in costs["collectives"])
    exchanged = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    broken = f"{len(findings)} findings, on standard error" if findings else "no rule is broken"
    sent = f" that send {short_bytes(collective_bytes(dict(costs)))}" if kinds else ""
    return "\n".join(
        [
            f"{costs['phase']}, rank {costs['rank']} of {ranks}, {costs['dtype']}, batch "
            f"{costs['batch']}, tokens {costs['tokens']:,}, capacity {costs['capacity']:,}",
            f"  instructions  {sum(costs['histogram'].values()):,}",
            f"  work          {costs['flops'] / 1e9:,.2f} GFLOP",
            f"  read          {short_bytes(costs['bytes_read'])}: {arguments}",
            f"  written       {short_bytes(costs['bytes_written'])}",
            f"  at most held  {short_bytes(costs['peak_bytes'])}, if nothing is fused",
            f"  collectives   {exchanged or 'none'}{sent}",
            f"  lint          {broken}",
            f"  next          neuronx-cc compile --framework XLA --target trn2 {file} "
            "(from AWS's documentation; never run by this project)",
        ]
    )
