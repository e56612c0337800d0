"""Rules that a graph has to keep to compile and to run well on Neuron, each a function.

A rule takes a `Case` and returns a list of findings, empty when the graph keeps it. Reasons and
sources: neuronx-cc refuses dynamic shapes (NCC_EMOD025), sort (NCC_EVRF029), triangular solve
(NCC_EVRF001) and float64; decode is bound by reading the weights, so they are read once, as they
are stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from ..model.config import Config, VisionConfig
from ..sharding.mesh import Mesh
from .design import GROUPED, KERNEL, QUANTISED, Design, model_design
from .hlo import COLLECTIVES, Instruction, Module

CONSTANT_LIMIT = 2**20
# A tensor derived from weights that is this large is a copy of them, not a gate or a norm.
WEIGHT_SIZED = 2**20
NKI = "AwsNeuronCustomNativeKernel"  # what AWS documents that an NKI kernel is in a graph

_FORBIDDEN = {
    "sort": "sort",
    "triangular-solve": "triangular solve",
    "cholesky": "cholesky",
    "fft": "fft",
}
_HOST = frozenset(
    ("infeed", "outfeed", "send", "send-done", "recv", "recv-done", "copy-start", "copy-done")
)
_INTEGER_ARITHMETIC = frozenset(
    (
        "add",
        "subtract",
        "multiply",
        "divide",
        "remainder",
        "power",
        "negate",
        "abs",
        "dot",
        "reduce",
    )
)
_INDEXED = frozenset(("gather", "scatter", "dynamic-slice", "dynamic-update-slice"))


@dataclass(frozen=True)
class Case:
    """A graph and what it should be.

    Attributes:
        module: the graph.
        arguments: per argument of the graph the path of its tensor: "params...", "state...".
        paths: of all tensors that the step was given, whether or not the graph takes them.
        donated: (argument, output) pairs.
        config, mesh: of the model, or of its vision tower alone.
        design: None is that of a step of the model (see `model_design`).
        kernels: those of DeltaNet layers, "portable" or "nki".
    """

    module: Module
    arguments: tuple[str, ...]
    paths: tuple[str, ...]
    donated: tuple[tuple[int, int], ...]
    config: Config | VisionConfig
    mesh: Mesh
    design: Design | None = None
    kernels: str = "portable"

    @property
    def designed(self) -> Design:
        """What the graph should be made of."""
        if self.design is not None:
            return self.design
        tokens = [parameter.arrays[0].shape for _, parameter in self.argument("tokens")]
        one_token = any(len(shape) == 1 for shape in tokens)
        positions = bool(self.argument("positions"))
        return model_design(self.config, one_token=one_token, positions=positions)

    def argument(self, prefix: str) -> list[tuple[str, Instruction]]:
        """Returns (path, instruction) of the arguments under a prefix."""
        pairs = zip(self.arguments, self.module.parameters, strict=True)
        return [(path, parameter) for path, parameter in pairs if path.startswith(prefix)]


def lint(case: Case) -> list[str]:
    """Returns what is wrong with a graph by any rule, each finding with the rule's name."""
    return [f"{rule.__name__}: {finding}" for rule in RULES for finding in rule(case)]


def static_shapes(case: Case) -> list[str]:
    """Checks that no dimension is bounded or unknown."""
    return [
        f"{i.name} ({i.opcode}) has a dynamic dimension"
        for i in case.module.instructions
        if any(array.dynamic for array in i.arrays)
    ]


def supported_operations(case: Case) -> list[str]:
    """Checks that there is nothing that the compiler refuses."""
    return [
        f"{i.name} is a {_FORBIDDEN[i.opcode]}"
        for i in case.module.instructions
        if i.opcode in _FORBIDDEN
    ]


def no_float64(case: Case) -> list[str]:
    """Checks that there is no value of a 64-bit floating or complex type."""
    wide = ("f64", "c64", "c128")
    return [
        f"{i.name} ({i.opcode}) is {array.dtype}"
        for i in case.module.instructions
        for array in i.arrays
        if array.dtype in wide
    ]


def integers_64_only_index(case: Case) -> list[str]:
    """Checks that 64-bit integers are computed with only for an index or to count a loop."""
    return [
        f"{i.name} ({i.opcode}) computes in {i.arrays[0].dtype} what is not only an index"
        for i in case.module.instructions
        if i.opcode in _INTEGER_ARITHMETIC
        and any(array.dtype in ("s64", "u64") for array in i.arrays)
        and not _only_indexes(case.module, i, set())
    ]


def _only_indexes(module: Module, instruction: Instruction, seen: set[int]) -> bool:
    """Whether every use of a 64-bit integer ends as an index, in a comparison or in 32 bits."""
    if id(instruction) in seen:  # a loop's counter comes back to where it was counted
        return True
    seen.add(id(instruction))
    for user in instruction.users:
        if user.opcode in _INDEXED:
            first_index = 2 if user.opcode == "dynamic-update-slice" else 1
            if instruction.name not in user.operands[first_index:]:
                return False
        elif user.opcode == "compare":
            continue
        elif user.opcode == "tuple" and user.root:
            index = user.operands.index(instruction.name)
            next_round = module.next_round(user, index)
            if next_round is None or not all(_only_indexes(module, i, seen) for i in next_round):
                return False
        elif user.arrays and user.arrays[0].dtype in ("s64", "u64"):
            if user.root or not _only_indexes(module, user, seen):
                return False
        elif user.opcode != "convert" or user.arrays[0].dtype not in ("s32", "u32"):
            return False
    return not instruction.root


def no_host_transfers(case: Case) -> list[str]:
    """Checks that the graph runs from start to end on the device."""
    found = [f"{i.name} is {i.opcode}" for i in case.module.instructions if i.opcode in _HOST]
    return found + [
        f"custom call of {target}"
        for target in case.module.custom_calls()
        if "callback" in target.lower() or "host" in target.lower()
    ]


def loops_have_constant_bounds(case: Case) -> list[str]:
    """Checks that a `while` compares its counter with a constant."""
    found = []
    for i in case.module.instructions:
        if i.opcode != "while":
            continue
        name = i.attributes.partition("condition=%")[2].split(",")[0].split(" ")[0]
        condition = case.module.computations[name]
        root = next(value for value in condition.values() if value.root)
        operands = [condition[operand] for operand in root.operands]
        if root.opcode != "compare" or not any(o.opcode == "constant" for o in operands):
            found.append(f"{i.name} runs while {root.opcode} of values known only at run time")
    return found


def weights_are_arguments_read_once(case: Case) -> list[str]:
    """Checks that each weight is an argument with one reader, lookups of single rows aside."""
    counts = Counter(path for path in case.arguments if path.startswith("params"))
    found = [
        f"{path} is not an argument of the graph"
        for path in case.paths
        if path.startswith("params") and not counts[path] and case.designed.weights
    ]
    for path, parameter in case.argument("params"):
        if len(parameter.arrays[0].shape) < 2 or parameter.bytes < WEIGHT_SIZED:
            continue
        readers = [r for r in case.module.readers(parameter) if r.opcode != "gather"]
        if len(readers) > 1:
            found.append(f"{path} is read by {', '.join(r.name for r in readers)}")
    return found


def state_is_donated(case: Case) -> list[str]:
    """Checks that every tensor of the state, or of what else is replaced, is an argument whose
    memory an output of its type takes."""
    pairs = dict(case.donated)
    given = {path: number for number, path in enumerate(case.arguments)}
    outputs = [case.module.entry[name] for name in case.module.root.operands]
    found = []
    for path in case.paths:
        if not path.startswith(case.designed.donates):
            continue
        number = given.get(path)
        if number is None:
            found.append(f"{path} is not an argument of the graph")
        elif number not in pairs:
            found.append(f"{path} is not donated")
        elif case.module.parameters[number].arrays != outputs[pairs[number]].arrays:
            found.append(f"{path} is donated to an output of another type")
    return found


def collectives_as_designed(case: Case) -> list[str]:
    """Counts collectives: those of the design, alone none."""
    designed = case.designed.collectives if case.mesh.tp > 1 else {}
    counts = Counter(i.opcode for i in case.module.instructions if i.opcode in COLLECTIVES)
    return [
        f"{counts[op]} {op}, designed are {designed.get(op, 0)}"
        for op in sorted(COLLECTIVES)
        if counts[op] != designed.get(op, 0)
    ]


def custom_calls_as_designed(case: Case) -> list[str]:
    """Counts custom calls: NKI kernels in DeltaNet layers where these are wanted, and no others."""
    counts = Counter(case.module.custom_calls())
    kernels = counts.pop(NKI, 0)
    found = [f"{count} custom calls of {target}" for target, count in sorted(counts.items())]
    if case.kernels != "nki" and kernels:
        found.append(f"{kernels} NKI kernels, where kernels are portable")
    elif case.kernels == "nki" and kernels < case.designed.kernels:
        found.append(f"{kernels} NKI kernels, designed are {case.designed.kernels}")
    return found


def logits_stay_split(case: Case) -> list[str]:
    """Checks that where logits are split over the ranks, no collective takes a row of a rank's
    share: what they exchange is a few values a row."""
    if (
        case.mesh.tp == 1
        or not case.designed.splits_logits
        or isinstance(case.config, VisionConfig)
    ):
        return []
    share = case.config.vocab_size // case.mesh.tp
    found = []
    for computation in case.module.computations.values():
        for i in computation.values():
            if i.opcode not in COLLECTIVES:
                continue
            for array in (array for name in i.operands for array in computation[name].arrays):
                if any(size >= share for size in array.shape):
                    shape = list(array.shape)
                    found.append(f"{i.name} is an {i.opcode} of {shape}; a rank has {share} logits")
    return found


def weights_are_used_as_stored(case: Case) -> list[str]:
    """Checks that no weight-sized tensor is transposed, converted or copied; of quantised weights
    see `quantised_weights_are_widened_in_products`."""
    found = []
    for path, parameter in case.argument("params"):
        if parameter.bytes < WEIGHT_SIZED or _is_quantised(parameter):
            continue
        for reader in case.module.readers(parameter):
            if reader.opcode in ("transpose", "convert", "copy"):
                found.append(f"{path} goes through a {reader.opcode} ({reader.name})")
    return found


def quantised_weights_are_widened_in_products(case: Case) -> list[str]:
    """Checks that a quantised weight is converted for a product and for nothing else.

    A scale that multiplied it there, or another reader of what was converted, would leave a dense
    copy of the weight in memory.
    """
    found = []
    for path, parameter in case.argument("params"):
        if not _is_quantised(parameter) or parameter.arrays[0].size < WEIGHT_SIZED:
            continue
        for reader in case.module.readers(parameter):
            if reader.opcode in ("gather", "dot"):  # rows of an embedding; a product of integers
                continue
            users = case.module.readers(reader) if _widens(case.module, reader) else [reader]
            found += [
                f"{path} is widened for a {user.opcode} ({user.name})"
                for user in users
                if user.opcode != "dot"
            ]
    return found


def _widens(module: Module, reader: Instruction) -> bool:
    """Whether an instruction converts, or calls what does so to bits."""
    called = module.called(reader) if reader.opcode == "call" else [reader]
    steps = {i.opcode for i in called} - {"parameter", "bitcast-convert"}
    return steps == {"convert"}


def _is_quantised(parameter: Instruction) -> bool:
    dtype = parameter.arrays[0].dtype
    return dtype in ("s8", "u8") or dtype.startswith("f8")


def _grouped(case: Case) -> int:
    """Counts the weights of which groups of inputs have scales of their own."""
    scales = (found for path, found in case.argument("params") if path.endswith(".scales"))
    return sum(found.arrays[0].shape[0] > 1 for found in scales)


def small_constants(case: Case) -> list[str]:
    """Checks that less than 1 MiB of data is embedded in the graph."""
    total = case.module.constant_bytes()
    if total < CONSTANT_LIMIT:
        return []
    return [f"constants of {total} bytes, the limit is {CONSTANT_LIMIT}"]


def reductions_as_designed(case: Case) -> list[str]:
    """Counts reductions: none is split for another machine. Products of groups are added up."""
    designed = case.designed.reductions + _grouped(case)
    count = sum(i.opcode == "reduce" for i in case.module.instructions)
    return [f"{count} reduce, designed are {designed}"] if count > designed else []


def instructions_as_designed(case: Case) -> list[str]:
    """Counts instructions: no more than the plain form has."""
    quantised = sum(_is_quantised(parameter) for _, parameter in case.argument("params"))
    designed = case.designed.instructions + QUANTISED * quantised + GROUPED * _grouped(case)
    designed += KERNEL * case.designed.kernels if case.kernels == "nki" else 0
    count = len(case.module.instructions)
    return [f"{count} instructions, designed are {designed}"] if count > designed else []


RULES: tuple[Callable[[Case], list[str]], ...] = (
    static_shapes,
    supported_operations,
    no_float64,
    integers_64_only_index,
    no_host_transfers,
    loops_have_constant_bounds,
    weights_are_arguments_read_once,
    state_is_donated,
    collectives_as_designed,
    custom_calls_as_designed,
    logits_stay_split,
    weights_are_used_as_stored,
    quantised_weights_are_widened_in_products,
    small_constants,
    reductions_as_designed,
    instructions_as_designed,
)
