"""The rules that the emulator enforces: what, where it is documented, and what is checked.

One table for everything. A check somewhere in the emulator calls `fail` with a key of `RULES`
(or raises `UninitializedError` / `LanguageError` with one), and tests/kernels/emulator has, for
every key, a kernel that is accepted and one that is rejected by exactly that rule.

Sources are pages of the AWS Neuron documentation (SDK 2.32, NKI 0.6, older where it says so):
"isa" and "language" are the API stubs nki/api/nki/{isa,language}, "arch" the architecture guides
nki/guides/architecture, "aps" nki/deep-dives/nki-aps, "migration" nki/migration/index,
"guide" nki/get-started/nki-language-guide, "notes" release-notes/components/nki.
"""

from typing import NamedTuple, NoReturn

from .errors import RuleError


class Rule(NamedTuple):
    text: str
    source: str
    check: str


RULES: dict[str, Rule] = {}


def add_rule(key: str, text: str, source: str, check: str) -> None:
    """Add a rule to the table."""
    RULES[key] = Rule(text, source, check)


def fail(rule: str, message: str) -> NoReturn:
    """Raise the RuleError of `rule`."""
    assert rule in RULES, rule
    raise RuleError(rule, message)


# Memories.
add_rule(
    "partition-limit",
    "Dimension 0 of an SBUF or PSUM tensor is the partition dimension, at most 128.",
    "arch: trainium2_arch; language: tile_size.pmax",
    "allocation",
)
add_rule(
    "start-partition",
    "More than 64 partitions start at 0, 33 to 64 at 0 or 64, up to 32 at 0, 32, 64 or 96.",
    "arch: trainium_inferentia2_arch; isa: nc_stream_shuffle",
    "every operand of a compute engine",
)
add_rule(
    "partition-stride",
    "An access pattern is the same in every partition and partitions are contiguous.",
    "arch: trainium_inferentia2_arch; aps: Restriction on SBUF/PSUM Tensors",
    "slices and .ap of on-chip tensors",
)
add_rule(
    "sbuf-capacity",
    "SBUF of trn2 holds 224 KiB per partition.",
    "arch: trainium2_arch",
    "live bytes in program order, hand-placed addresses",
)
add_rule(
    "psum-capacity",
    "PSUM holds 8 banks of 2 KiB per partition.",
    "arch: trainium2_arch",
    "live banks in program order, hand-placed addresses",
)
add_rule(
    "psum-bank-start",
    "PSUM tensors start at a bank boundary.",
    "arch: trainium2_arch; language: ndarray(address=)",
    "hand-placed PSUM tensors",
)
add_rule(
    "uninitialized",
    "Storage that nothing has written has no value.",
    "nki_simulator: uninitialised memory; isa: nc_matmul accumulate",
    "every read, per element",
)
add_rule(
    "bounds",
    "An access stays inside its tensor.",
    "language: NkiTensor; aps",
    "slices, .ap, view methods",
)
add_rule(
    "free-dimensions",
    "An access pattern has at most 4 free dimensions.",
    "aps: Hardware Capability",
    "on-chip operands, after merging dimensions",
)
add_rule(
    "ap-on-allocation",
    ".ap is called on an allocated tensor, not on a slice or view of one.",
    "aps: Restriction on Nested Indexing",
    ".ap",
)
add_rule(
    "nested-index",
    "Before 0.5 a slice cannot be sliced again.",
    "migration: beta 1 to 0.1/0.2; 0.4 to 0.5 (view methods)",
    "indexing of an indexed tensor",
)
add_rule(
    "view-copy",
    "A view only re-reads its storage: a reshape that no strides express is an error.",
    "guide: Tensor Values (reshape)",
    "reshape, reshape_dim, flatten_dims, rearrange",
)
add_rule(
    "access-pattern",
    "An access has at most 64 K elements per partition in SBUF and 4 K in PSUM, counts below "
    "2^16 and strides below 2^15.",
    "aps: Hardware Capability; arch: trainium_inferentia2_arch",
    "operands of compute engines",
)
add_rule(
    "destination-broadcast",
    "An instruction writes each element once: no stride-0 destination.",
    "language: NkiTensor.broadcast is a read view",
    "destinations",
)
add_rule(
    "overlapping-operands",
    "Source and destination are the same access or disjoint.",
    "isa: in-place use is described for identical tiles only",
    "every source against every destination",
)
# Operands.
add_rule(
    "operand-space",
    "Each operand is in a memory that the instruction and its engine can reach: TensorE reads "
    "SBUF and writes PSUM, GpSimd and DMA do not touch PSUM, engines do not touch HBM.",
    "arch: trainium2_arch; isa, per instruction; migration 0.2 to 0.3 (dma_copy)",
    "every operand",
)
add_rule(
    "operand-shape",
    "Operands have the same number of partitions and of elements per partition; nothing "
    "broadcasts by itself.",
    "isa, per instruction",
    "every operand",
)
add_rule(
    "vector-operand",
    "Per-partition operands (operand0, bias, scale, initial, reduce_res) are [P, 1].",
    "isa: tensor_scalar, activation, tensor_tensor_scan, select_reduce",
    "per-partition operands",
)
add_rule(
    "operand-dtype",
    "Operand dtypes are those the instruction lists.",
    "isa, per instruction",
    "every operand",
)
add_rule(
    "two-psum-sources",
    "Two tensor inputs of a VectorE instruction are not both in PSUM.",
    "isa: tensor_tensor, scalar_tensor_tensor, tensor_tensor_scan, tensor_copy_predicated",
    "those instructions",
)
add_rule(
    "engine",
    "engine= names an engine that can run this instruction with these operators.",
    "isa, per instruction",
    "engine arguments",
)
add_rule(
    "operator",
    "The operator is one that the instruction and engine support; bit and arithmetic operators "
    "do not mix.",
    "nki.api.shared: ALU operators; isa, per instruction",
    "op arguments",
)
add_rule(
    "activation-range",
    "Outside of its documented input range an activation function's result is invalid.",
    "nki.api.shared: activation functions",
    "activation",
)
# Tensor engine.
add_rule(
    "matmul-size",
    "Contraction at most 128, stationary free size at most 128, moving free size at most 512; "
    "the contraction dimensions agree and dst is [stationary free, moving free].",
    "isa: nc_matmul",
    "nc_matmul",
)
add_rule(
    "matmul-bank",
    "On trn2 a matmul's output lies in one PSUM bank.",
    "arch: trainium2_arch",
    "nc_matmul, nc_transpose",
)
add_rule(
    "matmul-accumulate",
    "Only a location that a matmul wrote last may be accumulated on.",
    "isa: nc_matmul accumulate",
    "nc_matmul, per element",
)
add_rule(
    "matmul-tile",
    "tile_size and tile_position come together: rows 32, 64 or 128, starting at a multiple, "
    "columns 128 from 0.",
    "isa: nc_matmul tile_position",
    "nc_matmul",
)
add_rule(
    "onezero",
    "is_stationary_onezero and is_moving_onezero promise that the tile holds 0 and 1 only.",
    "isa: nc_matmul",
    "nc_matmul, values",
)
add_rule(
    "scalar-registers",
    "ScalarE's reduce registers are undefined until reset.",
    "isa: activation",
    "activation",
)
add_rule(
    "vector-registers",
    "VectorE's accumulator registers are undefined until an instruction resets or loads them.",
    "isa: select_reduce, range_select, tensor_scalar_reduce, tensor_scalar_cumulative",
    "those instructions",
)
add_rule(
    "statistics-size",
    "bn_stats takes 2 to 512 elements per partition, bn_aggr triples.",
    "isa: bn_stats, bn_aggr",
    "bn_stats, bn_aggr",
)
add_rule(
    "transpose-size",
    "A transpose is at most 128 x 128 on TensorE and 32 x 32 on VectorE.",
    "isa: nc_transpose",
    "nc_transpose",
)
# Others.
add_rule(
    "reduce-axis",
    "tensor_reduce reduces the last free dimensions, never the partition dimension.",
    "isa: tensor_reduce",
    "tensor_reduce",
)
add_rule(
    "affine-pattern",
    "The pattern's sizes multiply to the elements per partition and it has at most 4 pairs.",
    "isa: iota, affine_select",
    "iota, affine_select",
)
add_rule(
    "shuffle-mask",
    "The shuffle mask has 32 entries, each 0 to 31 or 255.",
    "isa: nc_stream_shuffle",
    "nc_stream_shuffle",
)
add_rule(
    "memset-type",
    "memset is strictly typed: an integer tensor takes an integer that fits its dtype.",
    "migration 0.2 to 0.3",
    "memset",
)
add_rule(
    "dma-elements",
    "Source and destination of a DMA have the same number of elements.",
    "isa: dma_copy",
    "dma_copy",
)
add_rule(
    "dma-hwdge",
    "Hardware descriptor generation does not convert dtypes; its engine is sync or scalar.",
    "migration 0.2 to 0.3; isa: dma_copy",
    "dma_copy, dma_transpose",
)
add_rule(
    "dma-transpose",
    "dma_transpose permutes (1,0), (2,1,0) or (3,1,2,0) into SBUF without a change of dtype; "
    "from 0.4 the ranks of source and destination agree.",
    "isa: dma_transpose; migration 0.3 to 0.4",
    "dma_transpose",
)
# The kernel as a whole.
add_rule(
    "output-space",
    "Every returned tensor is a whole tensor allocated in nl.shared_hbm.",
    "migration 0.2 to 0.3",
    "return value",
)
add_rule(
    "input-write",
    "Kernels are pure: inputs are not written.",
    "notes: kernels must be pure",
    "destinations",
)
add_rule(
    "kernel-call",
    "A kernel calls plain functions, not other nki.jit kernels.",
    "migration: beta 1 to 0.1/0.2",
    "call of a kernel while one runs",
)
add_rule(
    "lnc-control-flow",
    "With LNC 2 both cores run the same sequence of instructions.",
    "notes: known issues of 0.3 to 0.6",
    "after the run",
)
add_rule(
    "lnc-race",
    "Without a barrier a core neither reads nor overwrites what the other core wrote.",
    "isa: core_barrier",
    "shared HBM, per element",
)
# The language (checked on the source by `frontend`, before the run).
add_rule(
    "identity",
    "NKI 0.3 to 0.6 has no 'is' and 'is not'.",
    "migration 0.2 to 0.3: Replace is / is not",
    "language check",
)
add_rule(
    "keyword-only",
    "NKI 0.3 to 0.6 has no '*' separator in signatures.",
    "migration 0.2 to 0.3: Remove keyword-only argument separator",
    "language check",
)
add_rule(
    "list-argument",
    "Kernel arguments and their defaults are not lists; use tuples.",
    "migration 0.2 to 0.3: Replace list kernel arguments with tuples",
    "language check, simulate",
)
add_rule(
    "comprehension",
    "NKI before 0.7 has no comprehensions and no generators; use a loop.",
    "users' reports of the 0.3 to 0.6 parser; migration 0.6 to 0.7 (generators become legal)",
    "language check",
)
add_rule(
    "raise",
    "NKI before 0.7 has no raise.",
    "users' reports of the 0.3 to 0.6 parser; guide (its examples use assert)",
    "language check",
)
add_rule(
    "dict-key",
    "Keys of dictionaries are strings.",
    "guide: NKI Values; migration: beta 1 to 0.1/0.2",
    "language check",
)
add_rule(
    "closure",
    "Functions of a kernel are module-level; 0.6 adds nested ones as bodies of device loops.",
    "guide: Composable Kernels; migration 0.5 to 0.6 (fori_loop bodies)",
    "language check",
)
add_rule(
    "class-base",
    "Classes of a kernel inherit from NKIObject and nothing else, or are enumerations.",
    "guide: Class Support, Enumerations",
    "language check",
)
add_rule(
    "value-type",
    "Values are None, bool, 32-bit integers, float32, strings and tensors.",
    "guide: NKI Values",
    "language check",
)
add_rule(
    "host-python",
    "A kernel uses nki, its own functions, built-ins and math: no other library, no reflection.",
    "guide: not all Python constructs and libraries are supported; nki-library (uses math)",
    "language check",
)
add_rule(
    "construct",
    "The language is the documented subset of Python.",
    "guide: Control Flow, NKI Values; migration 0.1 to 0.2",
    "language check",
)
add_rule(
    "namespace",
    "neuronxcc.nki is an error inside of kernels from 0.4 on, and not emulated for 0.3.",
    "migration 0.3 to 0.4",
    "loading",
)
add_rule(
    "tensor-arithmetic",
    "Tensors hold no values when a kernel is specialised: no Python operators, truth or loops.",
    "guide: Tensor Values",
    "operators of tensors",
)


def table() -> str:
    """The rules as text, for reading."""
    return "\n".join(
        f"{key}\n    {rule.text}\n    source: {rule.source}\n    checked: {rule.check}"
        for key, rule in RULES.items()
    )
