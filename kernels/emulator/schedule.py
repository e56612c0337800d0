"""When each instruction of a trace could run: the critical-path estimate and the timeline.

Every engine runs its instructions in program order; engines run in parallel. An instruction waits
for the data it reads (and for the readers and writers of what it overwrites), seen
`ACCESS_LATENCY_CYCLES` of the producing engine after it is done. A DMA waits for its data only,
then for its fixed latency, then its bytes take the first gap in the core's shared bandwidth that
is long enough (16 engines serve one transfer together). Tensors without an address get memory when
first written and give it back after their last use, in program order, and whoever gets it waits
for its last user. `Costs` says what the pages leave open. Not modelled: semaphores, instruction
fetch, descriptor writing, and conflicts of engines over a memory port.
"""

from bisect import bisect_left
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple

from .cost import ACCESS_LATENCY_CYCLES, DMA_BYTES_PER_NS
from .machine import Access, Core, Instruction


@dataclass(slots=True)
class Span:
    """An instruction on the timeline, in nanoseconds; of a DMA, when its bytes move."""

    engine: str
    op: str
    start: float
    end: float
    line: int


class Costs(NamedTuple):
    """What the published costs leave open: by default, that they hold as they stand.

    Attributes:
        gpsimd: how many times as long GpSimd takes as its formulas say; for elementwise work those
            are VectorE's.
        fixed_ns: nanoseconds that an instruction takes beside its cycles, by engine.
    """

    gpsimd: float = 1.0
    fixed_ns: dict[str, float] | None = None

    def nanoseconds(self, instruction: Instruction, clock: dict[str, float]) -> float:
        """Returns how long an instruction keeps its engine."""
        engine = instruction.engine
        factor = self.gpsimd if engine == "gpsimd" else 1.0
        return factor * instruction.cycles / clock[engine] + (self.fixed_ns or {}).get(engine, 0.0)


PUBLISHED = Costs()


def _physical(access):
    """The memory an access is in, and its box there: hand-placed tensors share theirs, in bytes."""
    block = access.block
    if block.address is None:
        return block.number, access
    (partition, offset), size = block.address, block.itemsize
    return block.space, Access(
        block,
        partition + access.p0,
        partition + access.p1,
        offset + access.lo * size,
        offset + access.hi * size,
    )


class _Regions:
    """Accesses of one memory that later ones may have to wait for."""

    __slots__ = ("reads", "writes")

    def __init__(self):
        self.reads = []  # (access, time at which the data is free to change)
        self.writes = []  # (access, time at which the data is visible)


def _meet(a, b):
    return a.p0 < b.p1 and b.p0 < a.p1 and a.lo < b.hi and b.lo < a.hi


def _covers(a, b):
    return a.p0 <= b.p0 and b.p1 <= a.p1 and a.lo <= b.lo and b.hi <= a.hi


def schedule(core: Core, costs: Costs = PUBLISHED) -> list[Span]:
    """The spans of a core's instructions, in program order."""
    clock = core.target.clock_ghz
    free = dict.fromkeys(clock, 0.0)
    bandwidth = _Bandwidth()
    regions: dict[int | str, _Regions] = {}
    pools = [_Pool(core, "sbuf"), _Pool(core, "psum")]
    visible = [0.0] * len(core.trace)
    spans = []
    for instruction in core.trace:
        ready = max((visible[index] for index in instruction.after), default=0.0)
        reads = [_physical(access) for access in instruction.reads]
        writes = [_physical(access) for access in instruction.writes]
        for memory, access in reads:
            region = regions.setdefault(memory, _Regions())
            for other, time in region.writes:
                if time > ready and _meet(access, other):
                    ready = time
        for memory, access in writes:
            ready = max(ready, *(pool.available(access.block) for pool in pools))
            region = regions.setdefault(memory, _Regions())
            if access.block.space == "hbm":
                continue  # outputs are written once; boxes of strided rows would seem to meet
            for other, time in region.writes + region.reads:
                if time > ready and _meet(access, other):
                    ready = time
        engine = instruction.engine
        if engine == "dma":
            transfer = instruction.bytes / DMA_BYTES_PER_NS
            start = bandwidth.take(ready + instruction.nanoseconds - transfer, transfer)
            end = seen = start + transfer
        else:
            start = max(ready, free[engine])
            end = free[engine] = start + costs.nanoseconds(instruction, clock)
            seen = end + ACCESS_LATENCY_CYCLES / clock[engine]
        visible[instruction.index] = seen
        spans.append(Span(engine, instruction.op, start, end, instruction.line))
        for memory, access in reads:
            regions[memory].reads.append((access, end))
        for memory, access in writes:
            region = regions[memory]
            region.writes = [w for w in region.writes if not _covers(access, w[0])]
            region.reads = [r for r in region.reads if not _covers(access, r[0])]
            region.writes.append((access, seen))
        for pool in pools:
            pool.release(instruction, end)
    return spans


def lifetimes(core: Core) -> dict[int, tuple[int, int]]:
    """First and last instruction that touches each on-chip allocation, by block number."""
    spans: dict[int, tuple[int, int]] = {}
    for instruction in core.trace:
        for access in (*instruction.reads, *instruction.writes):
            if access.block.space != "hbm":
                first = spans.get(access.block.number, (instruction.index,))[0]
                spans[access.block.number] = (first, instruction.index)
    return spans


def units(block, target, offset=0) -> int:
    """What `offset` bytes and an allocation occupy: bytes of SBUF, whole banks of PSUM."""
    end = offset + block.bytes_per_partition
    return -(-end // target.psum_bank_bytes) if block.space == "psum" else end


def capacity(target, space) -> int:
    """SBUF bytes per partition, or PSUM banks."""
    return target.sbuf_bytes if space == "sbuf" else target.psum_banks


def placed_end(core: Core, space) -> int:
    """Where the hand-placed tensors end; they keep their memory throughout."""
    ends = [
        units(block, core.target, block.address[1])
        for block in core.blocks
        if block.space == space and block.address is not None
    ]
    return max(ends, default=0)


def live_peaks(core: Core) -> dict[str, tuple[int, int]]:
    """Peak use of SBUF (bytes per partition) and PSUM (banks) with the instruction it is at."""
    changes: dict[str, dict[int, int]] = {"sbuf": {}, "psum": {}}
    by_number = {block.number: block for block in core.blocks}
    for number, (first, last) in lifetimes(core).items():
        block = by_number[number]
        if block.address is not None:
            continue
        size = units(block, core.target)
        moment = changes[block.space]
        moment[first] = moment.get(first, 0) + size
        moment[last + 1] = moment.get(last + 1, 0) - size
    peaks = {}
    for space, moment in changes.items():
        level = placed_end(core, space)
        best = (level, 0)
        for index in sorted(moment):
            level += moment[index]
            if level > best[0]:
                best = (level, index)
        peaks[space] = best
    return peaks


class _Bandwidth:
    """The intervals in which bytes move, in order of time."""

    def __init__(self):
        self.busy: list[tuple[float, float]] = []

    def take(self, earliest: float, length: float) -> float:
        """Occupy the first gap of `length` at or after `earliest`; returns its start."""
        place = bisect_left(self.busy, (earliest, earliest))
        if place and self.busy[place - 1][1] > earliest:
            earliest = self.busy[place - 1][1]
        while place < len(self.busy) and self.busy[place][0] < earliest + length:
            earliest = self.busy[place][1]
            place += 1
        self.busy.insert(place, (earliest, earliest + length))
        return earliest


class _Pool:
    """SBUF bytes or PSUM banks handed out in program order, the longest-free first.

    A tensor without an address waits for the last use of the memory that it gets. Sizes count,
    not places: fragmentation is left to the compiler.
    """

    def __init__(self, core: Core, space: str):
        self.space = space
        self.target = core.target
        self.last = {number: last for number, (_, last) in lifetimes(core).items()}
        self.free = [(0.0, capacity(core.target, space) - placed_end(core, space))]
        self.owned: dict[int, int] = {}
        self.since: dict[int, float] = {}
        self.busy: dict[int, float] = {}

    def available(self, block) -> float:
        """When `block` has its memory; takes it at the first call."""
        if block.space != self.space or block.address is not None:
            return 0.0
        if block.number not in self.since:
            needed = self.owned[block.number] = units(block, self.target)
            moment = 0.0
            while needed > 0:
                moment, amount = heappop(self.free)
                if amount > needed:
                    heappush(self.free, (moment, amount - needed))
                needed -= amount
            self.since[block.number] = moment
        return self.since[block.number]

    def release(self, instruction, end):
        for access in (*instruction.reads, *instruction.writes):
            number = access.block.number
            if number in self.owned:
                self.busy[number] = max(self.busy.get(number, 0.0), end)
                if self.last[number] == instruction.index:
                    heappush(self.free, (self.busy[number], self.owned.pop(number)))
