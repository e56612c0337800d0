"""What a run cost by the documented model, with an engine-balance table and a timeline."""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

from .cost import DMA_BYTES_PER_NS
from .machine import Core
from .rules import fail
from .schedule import Costs, Span, capacity, live_peaks, schedule

ENGINES = ("tensor", "vector", "scalar", "gpsimd", "dma")


@dataclass
class Report:
    """Counts of one core's run (with LNC 2 both cores run the same instructions).

    Cycles are of each engine's own clock, summed over its instructions; `sbuf_peak` is bytes per
    partition and `psum_peak` banks, both of the tensors alive at once in program order.
    """

    kernel: str
    instructions: dict[str, int]
    cycles: dict[str, float]
    operations: dict[str, int]  # per "engine.op"
    dma_bytes: int
    dma_runs: int  # contiguous pieces of HBM that the DMAs consist of; short ones are slow
    sbuf_peak: int
    psum_peak: int
    core: Core = field(repr=False)

    @cached_property
    def timeline(self) -> list[Span]:
        """When each instruction runs in the dependency-aware schedule, in nanoseconds."""
        return schedule(self.core)

    @property
    def critical_path_ns(self) -> float:
        """Length of that schedule: the estimated time of the kernel."""
        return max((span.end for span in self.timeline), default=0.0)

    def estimate_ns(self, costs: Costs) -> float:
        """Returns the estimated time under other costs than the published ones."""
        return max((span.end for span in schedule(self.core, costs)), default=0.0)

    def busy_ns(self, engine: str) -> float:
        """Time the engine works; for DMA its bytes at the achievable bandwidth."""
        if engine == "dma":
            return sum(i.bytes for i in self.core.trace if i.engine == "dma") / DMA_BYTES_PER_NS
        return self.cycles[engine] / self.core.target.clock_ghz[engine]

    def table(self) -> str:
        """The balance over the engines, as text."""
        total = self.critical_path_ns
        lines = [f"{'engine':8} {'instructions':>12} {'cycles':>12} {'busy µs':>9} {'busy %':>7}"]
        for engine in ENGINES:
            busy = self.busy_ns(engine)
            cycles = f"{self.cycles[engine]:.0f}" if engine in self.cycles else "-"
            share = 100 * busy / total if total else 0.0
            lines.append(
                f"{engine:8} {self.instructions[engine]:12} {cycles:>12} {busy / 1000:9.2f} "
                f"{share:7.1f}"
            )
        lines.append(
            f"critical path {total / 1000:.2f} µs, {sum(self.instructions.values())} instructions "
            f"(modelled, not measured)\n"
            f"DMA {self.dma_bytes} bytes in {self.dma_runs} contiguous runs\n"
            f"peak SBUF {self.sbuf_peak} bytes per partition, PSUM {self.psum_peak} banks"
        )
        return "\n".join(lines)


def check_capacity(core: Core):
    """Refuse a run whose tensors that live at once, in program order, exceed a memory."""
    peaks = live_peaks(core)
    for space, unit in (("sbuf", "bytes per partition"), ("psum", "banks")):
        level, index = peaks[space]
        limit = capacity(core.target, space)
        if level > limit:
            fail(
                f"{space}-capacity",
                f"{level} {unit} of {space} are alive at instruction {index} (line "
                f"{core.trace[index].line}), the machine has {limit}",
            )


def build_report(kernel: str, core: Core) -> Report:
    """Count a finished run."""
    instructions = dict.fromkeys(ENGINES, 0)
    cycles = dict.fromkeys(ENGINES[:-1], 0.0)
    operations = Counter()
    moved = runs = 0
    for instruction in core.trace:
        instructions[instruction.engine] += 1
        operations[f"{instruction.engine}.{instruction.op}"] += 1
        if instruction.engine == "dma":
            moved += instruction.bytes
            runs += instruction.runs
        else:
            cycles[instruction.engine] += instruction.cycles
    peaks = live_peaks(core)
    return Report(
        kernel,
        instructions,
        cycles,
        dict(operations),
        moved,
        runs,
        peaks["sbuf"][0],
        peaks["psum"][0],
        core,
    )
