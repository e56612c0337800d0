"""`nki.language`: allocation, loops, program ids. Operators and dtypes are in their own modules."""

import numpy as np

from . import isa_dma
from .access import operand, store_cells
from .dtypes import encode, resolve
from .enums import dge_mode, engine, oob_mode
from .errors import NotModelledError, SignatureError
from .isa_vector import number
from .machine import Core


class Buffer:
    """A memory space: `nl.sbuf`, `nl.psum`, `nl.private_hbm`, `nl.shared_hbm`."""

    def __init__(self, name, space):
        self.name = name
        self.space = space

    def __repr__(self):
        return f"nl.{self.name}"


BUFFERS = {
    "sbuf": Buffer("sbuf", "sbuf"),
    "psum": Buffer("psum", "psum"),
    "private_hbm": Buffer("private_hbm", "hbm"),
    "shared_hbm": Buffer("shared_hbm", "hbm"),
}
BUFFERS["hbm"] = BUFFERS["private_hbm"]


class NKIObject:
    """Base of a kernel's classes: without an `__init__`, fields are its parameters, in order.

    As the guide's "Class Support" has it: a field without a default is None, and `__post_init__`
    runs at the end.
    """

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if "__init__" not in vars(cls):
            cls.__init__ = _initializer(cls)


def _initializer(cls):
    annotated = vars(cls).get("__annotations__", {})
    plain = [
        name
        for name, value in vars(cls).items()
        if not (name.startswith("__") or callable(value) or isinstance(value, staticmethod))
    ]
    fields = list(dict.fromkeys([*annotated, *plain]))
    defaults = {name: vars(cls).get(name) for name in fields}

    def __init__(self, *args, **kwargs):
        given = dict(zip(fields, args, strict=False))
        if len(args) > len(fields) or set(kwargs) - set(fields) or set(kwargs) & set(given):
            raise SignatureError(
                f"{cls.__name__}({', '.join(fields)}) called with {len(args)} positional and "
                f"the keyword arguments {sorted(kwargs)}"
            )
        for name, value in {**defaults, **given, **kwargs}.items():
            setattr(self, name, value)
        if hasattr(self, "__post_init__"):
            self.__post_init__()

    return __init__


class TileSize:
    """`nl.tile_size` of trn2."""

    pmax = 128
    psum_fmax = 512
    psum_bank_fmax = 512
    psum_bank_fmax_bytes = 2048
    psum_num_banks = 8
    gemm_stationary_fmax = 128
    gemm_moving_fmax = 512
    bn_stats_fmax = 512
    sbuf_size_bytes = 128 * 224 * 1024  # "across all partitions" (migration 0.3 to 0.4)
    sbuf_fmax_bytes = 224 * 1024
    # Per partition. The device's is smaller by what the compiler reserves, which no page states.
    total_available_sbuf_size = 224 * 1024

    def __getattr__(self, name):
        raise NotModelledError(f"nl.tile_size.{name} is not modelled")


FUNCTIONS = {}


def _function(function):
    FUNCTIONS[function.__name__] = function
    return function


def _shape(shape):
    if isinstance(shape, int):
        raise SignatureError(f"shape must be a tuple, got the int {shape}")
    sizes = tuple(shape)
    if not all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in sizes):
        raise SignatureError(f"shape {sizes!r} must hold ints")
    return sizes


def _buffer(buffer):
    if buffer is None:
        return BUFFERS["sbuf"]
    if not isinstance(buffer, Buffer):
        raise SignatureError(f"buffer must be nl.sbuf, nl.psum or an HBM kind, got {buffer!r}")
    return buffer


@_function
def ndarray(core: Core, shape, dtype, buffer, name, address):
    """A new tensor without values."""
    buffer = _buffer(buffer)
    if buffer is BUFFERS["shared_hbm"]:
        tensor = core.allocate_shared(_shape(shape), resolve(dtype), name)
    else:
        tensor = core.allocate(_shape(shape), resolve(dtype), buffer.space, name, address)
    tensor.storage.buffer = buffer
    return tensor


def _filled(core, shape, dtype, buffer, name, value):
    tensor = ndarray(core, shape, dtype, buffer, name, None)
    if tensor.on_chip:
        from .isa_vector import engines, memset

        memset(core, tensor, value, engines.unknown, None)
        return tensor
    raise NotModelledError(f"nl.zeros/ones/full in {buffer!r}: fill an SBUF tile and copy it")


@_function
def zeros(core, shape, dtype, buffer, name):
    """A new tensor of zeros (an on-chip memset)."""
    return _filled(core, shape, dtype, buffer, name, 0)


@_function
def ones(core, shape, dtype, buffer, name):
    return _filled(core, shape, dtype, buffer, name, 1)


@_function
def full(core, shape, fill_value, dtype, buffer, name):
    if not number(fill_value):
        raise SignatureError(f"fill_value must be a number, got {fill_value!r}")
    return _filled(core, shape, dtype, buffer, name, fill_value)


@_function
def empty_like(core, x, dtype, buffer, name):
    spaces = {"sbuf": "sbuf", "psum": "psum", "hbm": "private_hbm"}
    buffer = buffer or BUFFERS[spaces[x.space]]
    return ndarray(core, x.shape, dtype or x.dtype, buffer, name, None)


@_function
def zeros_like(core, x, dtype, buffer, name):
    spaces = {"sbuf": "sbuf", "psum": "psum", "hbm": "private_hbm"}
    buffer = buffer or BUFFERS[spaces[x.space]]
    return _filled(core, x.shape, dtype or x.dtype, buffer, name, 0)


@_function
def load(core, src, dtype):
    """A new SBUF tile with what a tensor in HBM holds, by a DMA."""
    src = operand(src, "src", ("hbm",))
    if src.ndim < 2:
        raise NotModelledError(f"nl.load of {src!r}, of one dimension: reshape it to [P, N] first")
    tile = core.allocate(src.shape, resolve(dtype or src.dtype), "sbuf")
    tile.storage.buffer = BUFFERS["sbuf"]
    _copy(core, tile, src)
    return tile


@_function
def store(core, dst, value):
    """An SBUF tile to a tensor in HBM, by a DMA."""
    _copy(core, operand(dst, "dst", ("hbm",)), operand(value, "value", ("sbuf",)))


def _copy(core, dst, src):
    isa_dma.dma_copy(core, dst, src, None, oob_mode.error, dge_mode.unknown, engine.unknown, None)


def _constant(core, key, array, dtype, space):
    """A constant that is in the program: written before the kernel starts, read-only."""
    if key not in core.constants:
        tensor = core.allocate(array.shape, dtype, space, name=f"constant_{len(core.constants)}")
        store_cells(tensor, encode(np.ascontiguousarray(array, np.float32), dtype))
        tensor.storage.readonly = True
        core.constants[key] = tensor
    return core.constants[key]


@_function
def shared_identity_matrix(core, n, dtype):
    """The n x n identity in SBUF, one per dtype and size."""
    dtype = resolve(dtype)
    return _constant(core, ("identity", n, dtype), np.eye(n, dtype=np.float32), dtype, "sbuf")


@_function
def shared_constant(core, constant, dtype):
    """A NumPy array as a constant in HBM."""
    if not isinstance(constant, np.ndarray):
        raise NotModelledError(f"shared_constant takes a NumPy array, got {type(constant)}")
    dtype = resolve(dtype or str(constant.dtype))
    return _constant(core, id(constant), constant, dtype, "hbm")


@_function
def program_id(core, axis):
    if axis != 0:
        raise SignatureError(f"program_id(axis={axis}): the grid has one axis, 0")
    return core.rank


@_function
def num_programs(core, axes):
    if axes not in (0, (0,)):
        raise SignatureError(f"num_programs(axes={axes}): the grid has one axis, 0")
    return core.cores


@_function
def program_ndim(core):
    return 1


@_function
def ds(core, start, size):
    """The slice start : start + size."""
    return slice(start, start + size)


def _range(core, start, stop, step):
    return range(start) if stop is None else range(start, stop, step)


for _name in ("affine_range", "sequential_range", "static_range"):
    FUNCTIONS[_name] = _range
