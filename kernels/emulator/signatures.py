"""What `nki`, `nki.language` and `nki.isa` offer per version, and the arguments each takes.

Written from the documentation's signature index. Each entry is a parameter list in Python syntax
with the version range that has it; a name or argument outside of it is a SignatureError. Defaults
that are enum members are written by name and resolved through `enums`.
"""

import inspect
import re
from enum import Enum
from typing import NamedTuple

from . import enums
from .errors import SignatureError
from .operators import OPERATORS

FIRST, LAST = (0, 3), (0, 7)
VERSIONS = ((0, 3), (0, 4), (0, 5), (0, 6), (0, 7))


class Entry(NamedTuple):
    signature: inspect.Signature
    defaults: dict  # of every parameter; inspect.Parameter.empty if it has none
    enums: dict  # parameters that take members of an enumeration, and which one
    since: tuple[int, int]
    until: tuple[int, int]


_NAMESPACE = {enum.__name__: enum for enum in enums.ENUMS} | {
    name: OPERATORS[name] for name in ("equal", "maximum")
}


def _parse(parameters: str) -> inspect.Signature:
    scope = dict(_NAMESPACE)
    exec(f"def f({parameters}): pass", scope)
    return inspect.signature(scope["f"])


def _table(text: str) -> dict[str, list[Entry]]:
    """Entries `name(parameters) [since-until]`; a name may have several version ranges."""
    table: dict[str, list[Entry]] = {}
    # An entry goes on over lines that are indented further.
    lines = re.sub(r"\n {8,}", " ", text).splitlines()
    for line in filter(None, (line.strip() for line in lines)):
        head, _, versions = line.rpartition("[") if line.endswith("]") else (line, "", "")
        head = head.strip()
        name, _, rest = head.partition("(")
        since, _, until = versions.rstrip("]").partition("-")
        signature = _parse(rest.rstrip()[:-1])
        defaults = {p.name: p.default for p in signature.parameters.values()}
        table.setdefault(name, []).append(
            Entry(
                signature,
                defaults,
                {key: type(value) for key, value in defaults.items() if isinstance(value, Enum)},
                _version(since) if since else FIRST,
                _version(until) if until else LAST,
            )
        )
    return table


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)


ISA = _table(
    """
    nc_matmul(dst, stationary, moving, is_stationary_onezero=False, is_moving_onezero=False,
        is_transpose=False, accumulate=None, tile_position=(), tile_size=(),
        perf_mode=matmul_perf_mode.none, name=None)
    nc_matmul_mx(dst, stationary, moving, stationary_scale, moving_scale, tile_position=None,
        tile_size=None, accumulate=None, name=None)
    nc_transpose(dst, data, engine=engine.unknown, name=None)
    tensor_copy(dst, src, engine=engine.unknown, name=None)
    tensor_copy_predicated(dst, src, predicate, reverse_pred=False, name=None)
    memset(dst, value, engine=engine.unknown, name=None)
    reciprocal(dst, data, name=None)
    tensor_tensor(dst, data1, data2, op, engine=engine.unknown, name=None)
    tensor_scalar(dst, data, op0, operand0, reverse0=False, op1=None, operand1=None,
        reverse1=False, engine=engine.unknown, name=None)
    scalar_tensor_tensor(dst, data, op0, operand0, op1, operand1, reverse0=False,
        reverse1=False, name=None)
    tensor_reduce(dst, op, data, axis, negate=False, keepdims=False, name=None)
    tensor_partition_reduce(dst, op, data, name=None)
    tensor_scalar_cumulative(dst, src, op0, op1, imm0, imm1=None,
        reduce_cmd=reduce_cmd.reset_reduce, name=None)
    tensor_scalar_reduce(dst, data, op0, operand0, reduce_op, reduce_res=None, reverse0=False,
        reduce_cmd=reduce_cmd.reset_reduce, reduce_init=None, reduce_res_negate=False,
        name=None)
    tensor_tensor_scan(dst, data0, data1, initial, op0, op1, reverse0=False, reverse1=False,
        name=None)
    activation(dst, op, data, bias=None, scale=1.0, reduce_op=None, reduce_res=None,
        reduce_cmd=reduce_cmd.idle, name=None)
    activation_reduce(dst, op, data, reduce_op, reduce_res, bias=None, scale=1.0, name=None)
    activate2(dst, op, data, imm0, imm1, op0, op1, relu_param=0.0, reverse0=False,
        reverse1=False, reduce_op=None, reduce_res=None, reduce_cmd=reduce_cmd.idle,
        name=None)
    exponential(dst, src, max_value=0.0, reduce_res=None, reduce_cmd=reduce_cmd.idle,
        reduce_init=0.0, name=None)
    iota(dst, pattern, offset=0, channel_multiplier=0, name=None)
    affine_select(dst, pattern, channel_multiplier, on_true_tile, on_false_value,
        cmp_op=equal, offset=0, name=None)
    range_select(dst, on_true_tile, comp_op0, comp_op1, bound0, bound1,
        reduce_cmd=reduce_cmd.reset_reduce, reduce_res=None, reduce_op=maximum, range_start=0,
        on_false_value=-3.4028235e38, name=None)
    select_reduce(dst, predicate, on_true, on_false, reduce_res=None,
        reduce_cmd=reduce_cmd.idle, reduce_op=maximum, reverse_pred=False, name=None)
    bn_stats(dst, data, name=None)
    bn_aggr(dst, data, name=None)
    max8(dst, src, name=None)
    nc_find_index8(dst, data, vals, name=None)
    nc_match_replace8(dst, data, vals, imm, dst_idx=None, name=None)
    nc_stream_shuffle(dst, src, shuffle_mask, name=None)
    local_gather(dst, src_buffer, index, num_elem_per_idx=1, num_valid_indices=None, name=None)
    nc_n_gather(dst, data, indices, name=None)
    nonzero_with_count(dst, src, index_offset=0, padding_val=-1, name=None)
    topk(val_dst, idx_dst, src, n, name=None) [0.6-0.7]
    sequence_bounds(dst, segment_ids, name=None)
    dropout(dst, data, prob, name=None)
    rng(dst, engine=engine.unknown, name=None)
    set_rng_seed(src_seeds, name=None)
    rand2(dst, min, max, name=None)
    quantize_mx(dst, src, dst_scale, name=None)
    dma_copy(dst, src, priority=None, oob_mode=oob_mode.error, dge_mode=dge_mode.unknown,
        engine=engine.unknown, name=None)
    dma_transpose(dst, src, axes=None, priority=None, dge_mode=dge_mode.unknown,
        oob_mode=oob_mode.error, name=None)
    dma_compute(dst, srcs, reduce_op, scales=None, unique_indices=True,
        oob_mode=oob_mode.error, name=None)
    sendrecv(src, dst, send_to_rank, recv_from_rank, pipe_id, dma_engine=dma_engine.dma, name=None)
    core_barrier(data, cores, engine=engine.gpsimd, name=None)
    register_alloc(x=None)
    register_move(dst, src)
    register_load(dst, src)
    register_store(dst, src)
    get_nc_version()
    tensor_copy_dynamic_src(dst, src, name=None) [0.3-0.3]
    tensor_copy_dynamic_dst(dst, src, name=None) [0.3-0.3]
    """
)

LANGUAGE = _table(
    """
    ndarray(shape, dtype, buffer=None, name='', address=None)
    zeros(shape, dtype, buffer=None, name='')
    ones(shape, dtype, buffer=None, name='')
    full(shape, fill_value, dtype, buffer=None, name='')
    zeros_like(x, dtype=None, buffer=None, name='')
    empty_like(x, dtype=None, buffer=None, name='')
    shared_constant(constant, dtype=None)
    shared_identity_matrix(n, dtype='uint8')
    program_id(axis=0)
    num_programs(axes=0)
    program_ndim()
    ds(start, size)
    affine_range(start, stop=None, step=1)
    sequential_range(start, stop=None, step=1)
    static_range(start, stop=None, step=1)
    dynamic_range(start, stop=None, step=1) [0.3-0.6]
    fori_loop(lower, upper, body_fun, step=1) [0.6-0.7]
    while_loop(init_reg, body_fun) [0.6-0.7]
    no_reorder()
    device_print(prefix, tensor)
    load(src, dtype=None)
    store(dst, value)
    """
)

# Compute functions of `nki.language`, experimental in every version: they exist, and have no model
# here. Those that are operators as well are `operators.OPERATORS`.
EXPERIMENTAL = (
    "all broadcast_to ceil copy divide expand_dims floor fmod load_transpose2d matmul max mean min "
    "mod negative prod rms_norm softmax sum transpose trunc var where"
).split()

TENSOR = _table(
    """
    ap(pattern, offset=None, scalar_offset=None, vector_offset=None, indirect_dim=0, dtype=None)
    reshape(shape)
    view(dtype)
    slice(dim, start, end, step=1) [0.5-0.7]
    select(dim, index) [0.5-0.7]
    permute(dims) [0.5-0.7]
    broadcast(dim, size) [0.5-0.7]
    expand_dim(dim) [0.5-0.7]
    squeeze_dim(dim) [0.5-0.7]
    reshape_dim(dim, shape) [0.5-0.7]
    flatten_dims(start_dim, end_dim) [0.5-0.7]
    rearrange(src, dst, sizes=None) [0.5-0.7]
    vector_select(dim, offsets) [0.5-0.7]
    is_contiguous() [0.5-0.7]
    get_pattern() [0.5-0.7]
    """
)


def bind(table, module: str, name: str, version, args, kwargs) -> dict:
    """Arguments by name, defaults filled in, or a SignatureError."""
    entries = table.get(name)
    if entries is None:
        raise SignatureError(f"{module} has no function {name} in any known version")
    for entry in entries:
        if entry.since <= version <= entry.until:
            break
    else:
        ranges = ", ".join(f"{_show(e.since)} to {_show(e.until)}" for e in entries)
        raise SignatureError(f"{module}.{name} exists in NKI {ranges}, not in {_show(version)}")
    # inspect.Signature.bind says what is wrong, but takes as long as the instruction itself.
    arguments = dict(entry.defaults)
    positional = tuple(zip(arguments, args, strict=False))
    arguments.update(positional)
    arguments.update(kwargs)
    if (
        len(positional) < len(args)
        or len(arguments) > len(entry.defaults)
        or any(name in kwargs for name, _ in positional)
        or any(value is inspect.Parameter.empty for value in arguments.values())
    ):
        try:
            entry.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise SignatureError(
                f"{module}.{name}{entry.signature} of NKI {_show(version)}: {error}"
            ) from None
    # "Integer enum constants no longer supported" (migration 0.2 to 0.3).
    for parameter, kind in entry.enums.items():
        if not isinstance(arguments[parameter], kind):
            raise SignatureError(
                f"{module}.{name}: {parameter} must be an nisa.{kind.__name__}, got "
                f"{arguments[parameter]!r}"
            )
    return arguments


def _show(version):
    return ".".join(map(str, version))
