"""One NeuronCore at work: its allocations, engine registers and the trace of instructions."""

from dataclasses import dataclass, field

import numpy as np

from . import isa_limits
from .dtypes import DType
from .rules import fail
from .storage import Block, Storage
from .tensor import Tensor


@dataclass(frozen=True)
class Target:
    """Sizes and clocks of a NeuronCore (arch: trainium2_arch)."""

    name: str
    partitions: int = 128
    sbuf_bytes: int = 224 * 1024
    psum_banks: int = 8
    psum_bank_bytes: int = 2048
    clock_ghz: dict = field(
        default_factory=lambda: {"tensor": 2.4, "vector": 0.96, "scalar": 1.2, "gpsimd": 1.2}
    )


TARGETS = {"trn2": Target("trn2")}


@dataclass(slots=True)
class Access:
    """Where an instruction reads or writes: a box, [p0, p1) x [lo, hi) elements."""

    block: Block
    p0: int
    p1: int
    lo: int
    hi: int


@dataclass(slots=True, eq=False)
class Instruction:
    """One instruction of the trace. `cycles` are of the engine's clock; `nanoseconds` of DMA."""

    index: int
    op: str
    engine: str
    cycles: float
    nanoseconds: float
    bytes: int
    runs: int  # contiguous pieces that a DMA moves
    line: int
    reads: list
    writes: list
    after: list = field(default_factory=list)

    def depends_on(self, *producers):
        """Scheduling hint: run after `producers` (instructions)."""
        self.after.extend(producer.index for producer in producers)
        return self


class Registers:
    """An engine's accumulators, one per lane, i.e. per partition that an instruction reads."""

    def __init__(self, lanes: int):
        self.values = np.zeros(lanes, np.float32)
        self.defined = np.zeros(lanes, np.bool_)

    def get(self, tensor: Tensor, rule: str, what: str) -> np.ndarray:
        """The registers of `tensor`'s partitions; `rule` fails if one is undefined."""
        lanes = self._lanes(tensor)
        if not self.defined[lanes].all():
            fail(rule, f"{what} with {tensor!r} uses registers that nothing has set")
        return self.values[lanes]

    def set(self, tensor: Tensor, values):
        lanes = self._lanes(tensor)
        self.values[lanes] = values
        self.defined[lanes] = True

    def forget(self):
        self.defined[:] = False

    def _lanes(self, tensor):
        return slice(tensor.partition, tensor.partition + tensor.shape[0])


class Core:
    """A physical core during one run of a kernel."""

    def __init__(
        self,
        target: Target,
        version: tuple[int, int],
        rank: int,
        cores: int,
        shared,
        strict: bool = False,
        exp_error: float = 0.0,
    ):
        self.target = target
        self.strict = strict  # the limits of `isa_limits` hold, too
        self.exp_error = exp_error  # of ScalarE's exp, relative
        self.version = version
        self.rank = rank
        self.cores = cores
        self.shared = shared  # shared-HBM storages in order of allocation, common to all cores
        self.shared_count = 0
        self.blocks: list[Block] = []
        self.trace: list[Instruction] = []
        self.line = 0
        self.scalar_registers = Registers(target.partitions)
        self.vector_registers = Registers(target.partitions)
        self.constants = {}
        self._placed: list[Storage] = []

    def allocate(self, shape, dtype: DType, space: str, name="", address=None) -> Tensor:
        """A new tensor without values. `address` is (partition, byte offset), on chip only."""
        shape = tuple(int(size) for size in shape)
        if not shape or any(size < 1 for size in shape):
            fail("bounds", f"a tensor's sizes are at least 1, got {list(shape)}")
        if space == "hbm":
            partitions, per_partition = 1, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        else:
            partitions = shape[0]
            per_partition = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
            self._check_size(shape, space, per_partition)
        block = Block(
            number=len(self.blocks),
            name=name or f"{space}_{len(self.blocks)}",
            space=space,
            partitions=partitions,
            bytes_per_partition=per_partition,
            itemsize=dtype.itemsize,
            line=self.line,
            address=address,
        )
        self.blocks.append(block)
        storage = Storage(block, shape, dtype)
        if address is not None:
            self._place(storage)
        return Tensor.whole(storage)

    def allocate_shared(self, shape, dtype: DType, name="") -> Tensor:
        """A tensor in shared HBM: the cores' n-th allocations are one tensor."""
        count, self.shared_count = self.shared_count, self.shared_count + 1
        if count < len(self.shared):
            storage = self.shared[count]
            if storage.shape != tuple(shape) or storage.dtype != dtype:
                fail(
                    "lnc-control-flow",
                    f"core {self.rank} allocates shared HBM {list(shape)} {dtype} where core 0 "
                    f"allocated {list(storage.shape)} {storage.dtype}",
                )
            self.blocks.append(storage.block)
            return Tensor.whole(storage)
        tensor = self.allocate(shape, dtype, "hbm", name)
        tensor.storage.shared = True
        if self.cores > 1:
            tensor.storage.owner = np.full(tensor.storage.size, -1, np.int8)
        self.shared.append(tensor.storage)
        return tensor

    def _check_size(self, shape, space, per_partition):
        if shape[0] > self.target.partitions:
            fail(
                "partition-limit",
                f"shape {list(shape)} in {space} has {shape[0]} partitions, at most 128",
            )
        limit = self.target.sbuf_bytes
        if space == "psum":
            limit = self.target.psum_banks * self.target.psum_bank_bytes
        if per_partition > limit:
            fail(
                f"{space}-capacity",
                f"shape {list(shape)} takes {per_partition} bytes per partition of {space}'s "
                f"{limit}",
            )

    def _place(self, storage):
        """Check a hand-placed tensor's address and note whom it shares bytes with."""
        block = storage.block
        partition, offset = block.address
        limit = self.target.sbuf_bytes
        if block.space == "psum":
            limit = self.target.psum_banks * self.target.psum_bank_bytes
            if offset % self.target.psum_bank_bytes:
                fail(
                    "psum-bank-start",
                    f"{block.name} is placed at byte {offset} of PSUM; banks start at multiples "
                    f"of {self.target.psum_bank_bytes}",
                )
        if offset + block.bytes_per_partition > limit or offset < 0:
            fail(
                f"{block.space}-capacity",
                f"{block.name} is placed at bytes {offset} to "
                f"{offset + block.bytes_per_partition} of {block.space}'s {limit}",
            )
        if partition < 0 or partition + block.partitions > self.target.partitions:
            fail(
                "partition-limit",
                f"{block.name} is placed at partitions {partition} to "
                f"{partition + block.partitions} of {self.target.partitions}",
            )
        for other in self._placed:
            if other.block.space == block.space and _overlap(block, other.block):
                storage.rivals.append((other, _shared_box(other, block)))
                other.rivals.append((storage, _shared_box(storage, other.block)))
        self._placed.append(storage)

    def issue(self, op, engine, cycles=0.0, nanoseconds=0.0, moved=0, runs=0, reads=(), writes=()):
        """Append an instruction to the trace; returns its handle."""
        if self.strict:
            isa_limits.check_operands(op, engine, (*reads, *writes))
            isa_limits.note_reads(reads)
        instruction = Instruction(
            len(self.trace),
            op,
            engine,
            cycles,
            nanoseconds,
            moved,
            runs,
            self.line,
            [_access(tensor) for tensor in reads],
            [_access(tensor) for tensor in writes],
        )
        self.trace.append(instruction)
        return instruction


def _overlap(a: Block, b: Block):
    (pa, oa), (pb, ob) = a.address, b.address
    return (
        pa < pb + b.partitions
        and pb < pa + a.partitions
        and oa < ob + b.bytes_per_partition
        and ob < oa + a.bytes_per_partition
    )


def _shared_box(storage: Storage, other: Block):
    """The box of `storage`'s elements whose bytes `other` shares."""
    block, size = storage.block, storage.dtype.itemsize
    (pa, oa), (pb, ob) = block.address, other.address
    p0, p1 = max(pb - pa, 0), min(pb + other.partitions - pa, block.partitions)
    lo = max(ob - oa, 0)
    hi = min(ob + other.bytes_per_partition - oa, block.bytes_per_partition)
    return p0, p1, lo // size, -(-hi // size)


def _access(tensor: Tensor) -> Access:
    lo, hi = tensor.extent()
    if tensor.on_chip:
        return Access(
            tensor.storage.block, tensor.partition, tensor.partition + tensor.shape[0], lo, hi
        )
    return Access(tensor.storage.block, 0, 1, lo, hi)
