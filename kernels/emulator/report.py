"""What a run cost by the documented model."""

from collections import Counter
from dataclasses import dataclass

ENGINES = ("tensor", "vector", "scalar", "gpsimd", "dma")


@dataclass
class Report:
    """Counts of one run: the sum over cores of instructions, the maximum of cycles."""

    kernel: str
    instructions: dict[str, int]  # per engine
    cycles: dict[str, float]  # per engine, in that engine's clock
    operations: dict[str, int]  # per "engine.op"
    dma_bytes: int


def build_report(kernel, target, cores) -> Report:
    instructions = dict.fromkeys(ENGINES, 0)
    cycles = dict.fromkeys(ENGINES[:-1], 0.0)
    operations = Counter()
    moved = 0
    for instruction in cores[0].trace:
        instructions[instruction.engine] += 1
        operations[f"{instruction.engine}.{instruction.op}"] += 1
        if instruction.engine == "dma":
            moved += instruction.bytes
        else:
            cycles[instruction.engine] += instruction.cycles
    return Report(kernel, instructions, cycles, dict(operations), moved)
