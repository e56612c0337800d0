"""Which part of each tensor a rank holds: one table from logical axes to rules.

A parameter or state tensor names the logical axis of each of its dimensions; nothing here knows
a tensor. A new parameter needs no code here, a new kind of axis one line in `RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .mesh import Mesh

Sizes = Mapping[str, int]
Held = tuple[int | None, ...]


def local_units(axis: str | None, sizes: Sizes, mesh: Mesh | None, rank: int) -> Held:
    """Lists the units (heads, columns, rows) of a logical axis that a rank holds, in order.

    Args:
        axis: logical axis, a key of `RULES`.
        sizes: the number of units of every logical axis of the model.
        mesh: the mesh; None is a single device.
        rank: the rank within the mesh.

    Returns:
        Indices into the axis. None stands for a padded unit, whose values are zero.

    Raises:
        ValueError: the axis is unknown or can't be split, or the rank is outside the mesh.
    """
    if axis not in RULES:
        raise ValueError(f"no sharding rule for axis {axis!r}; known are {', '.join(RULES)}")
    mesh = mesh or Mesh()
    _, index = mesh.coordinates(rank)
    fault, units = RULES[axis]
    problem = fault(axis, sizes, mesh.tp)
    if problem:
        raise ValueError(_refusal(sizes, mesh.tp, [problem]))
    return units(axis, sizes, mesh.tp, index)


def check_split(sizes: Sizes, mesh: Mesh | None) -> None:
    """Raises a ValueError, with the numbers and the tp that would work, unless all axes split."""
    if mesh is None:
        return
    problems = _problems(sizes, mesh.tp)
    if problems:
        raise ValueError(_refusal(sizes, mesh.tp, problems))


def possible_tp(sizes: Sizes) -> list[int]:
    """Lists every tp that splits the model; each divides all the axes that only split evenly."""
    limit = min(size for axis, size in sizes.items() if RULES[axis][1] is _evenly)
    return [tp for tp in range(1, limit + 1) if not _problems(sizes, tp)]


def _problems(sizes: Sizes, tp: int) -> list[str]:
    found = (RULES[axis][0](axis, sizes, tp) for axis in sizes)
    return [problem for problem in found if problem]


def _refusal(sizes: Sizes, tp: int, problems: list[str]) -> str:
    possible = ", ".join(map(str, possible_tp(sizes)))
    return f"tp = {tp} can't split this model: {'; '.join(problems)}. Possible: tp = {possible}"


# A rule is a pair. The first function says why an axis can't be split tp ways, or "". The second
# gives the units of the rank with tp index `index`.


def _evenly_fault(axis: str, sizes: Sizes, tp: int) -> str:
    return f"{axis} {sizes[axis]} is not a multiple of {tp}" if sizes[axis] % tp else ""


def _evenly(axis: str, sizes: Sizes, tp: int, index: int) -> Held:
    """Cuts consecutive blocks of equal size."""
    share = sizes[axis] // tp
    return tuple(range(index * share, (index + 1) * share))


def _with_keys_fault(axis: str, sizes: Sizes, tp: int) -> str:
    return ""  # the key heads' rule says it for both


def _with_keys(axis: str, sizes: Sizes, tp: int, index: int) -> Held:
    """Finds the value heads that read the rank's key heads: value head h reads h // group."""
    group = sizes[axis] // sizes["key_heads"]
    return tuple(
        head * group + member
        for head in _evenly("key_heads", sizes, tp, index)
        for member in range(group)
    )


def _replicated_kv_fault(axis: str, sizes: Sizes, tp: int) -> str:
    heads = sizes["kv_heads"]
    if heads % tp and tp % heads:
        return f"kv_heads {heads} is neither a multiple nor a divisor of {tp}"
    return ""


def _replicated_kv(axis: str, sizes: Sizes, tp: int, index: int) -> Held:
    """Blocks of equal size; with more ranks than heads, one head on each of tp / heads ranks."""
    heads = sizes["kv_heads"]
    return _evenly(axis, sizes, tp, index) if tp <= heads else (index * heads // tp,)


def _with_kv_fault(axis: str, sizes: Sizes, tp: int) -> str:
    return ""  # the KV heads' rule says it for both


def _with_kv(axis: str, sizes: Sizes, tp: int, index: int) -> Held:
    """Finds the query heads that read the rank's KV heads.

    Where several ranks hold one KV head, they share its queries in equal numbers of slots;
    slots beyond the last query are padding.
    """
    group = sizes[axis] // sizes["kv_heads"]
    sharing = max(1, tp // sizes["kv_heads"])
    slots = -(-group // sharing)
    first = index % sharing * slots
    return tuple(
        head * group + slot if slot < group else None
        for head in _replicated_kv("kv_heads", sizes, tp, index)
        for slot in range(first, first + slots)
    )


def _padded_fault(axis: str, sizes: Sizes, tp: int) -> str:
    return ""  # any number of ranks


def _padded(axis: str, sizes: Sizes, tp: int, index: int) -> Held:
    """Cuts consecutive blocks of equal size, the last ones filled up with padding."""
    share = -(-sizes[axis] // tp)
    units = range(index * share, (index + 1) * share)
    return tuple(unit if unit < sizes[axis] else None for unit in units)


RULES: dict[str, tuple[Callable[..., str], Callable[..., Held]]] = {
    "vocab": (_evenly_fault, _evenly),
    "mlp": (_evenly_fault, _evenly),
    "key_heads": (_evenly_fault, _evenly),
    "value_heads": (_with_keys_fault, _with_keys),
    "kv_heads": (_replicated_kv_fault, _replicated_kv),
    "query_heads": (_with_kv_fault, _with_kv),
    "vision_heads": (_padded_fault, _padded),
    "vision_mlp": (_padded_fault, _padded),
    "vision_merger": (_padded_fault, _padded),
}
