"""Joins ranks' shares back together, written apart from the code that slices them."""

import torch

from qwen35.model.declarations import Units, axis_sizes, held_units


def join_dim(shares: list[torch.Tensor], dim: int, units: Units, sizes, mesh) -> torch.Tensor:
    """The whole of one dimension from the tp ranks' shares; copies must agree, padding be zero."""
    if units.axis is None:
        assert all(torch.equal(share, shares[0]) for share in shares)
        return shares[0]
    whole: list[torch.Tensor | None] = [None] * units.count
    for rank, share in enumerate(shares):
        held = held_units(units, sizes, mesh, rank)
        assert share.shape[dim] == len(held) * units.size
        for unit, block in zip(held, share.split(units.size, dim), strict=True):
            if unit is None:
                assert not block.any(), f"rank {rank}'s padding is not zero"
            elif whole[unit] is None:
                whole[unit] = block
            else:
                assert torch.equal(whole[unit], block), f"copies of unit {unit} differ"
    missing = [unit for unit, block in enumerate(whole) if block is None]
    assert not missing, f"no rank holds units {missing} of {units.axis}"
    return torch.cat(whole, dim)


def join_parameter(parameter, shares: list[torch.Tensor], sizes, mesh) -> torch.Tensor:
    """A declared tensor from the tp ranks' shares of it."""
    split = [
        share.split(parameter.local_widths(sizes, mesh, rank), -1)
        for rank, share in enumerate(shares)
    ]
    joined = []
    for pieces, piece in zip(zip(*split, strict=True), parameter.pieces, strict=True):
        dims = [dim for dim, units in enumerate(piece.dims) if units.axis is not None]
        assert len(dims) <= 1, "one split dimension a tensor"
        dim = dims[0] if dims else 0
        joined.append(join_dim(list(pieces), dim, piece.dims[dim], sizes, mesh))
    return torch.cat(joined, -1)


def join_state(config, states: list, mesh) -> list[torch.Tensor]:
    """The unsplit state's tensors, in tree order, from the tp ranks' states."""
    sizes = axis_sizes(config)
    keys = Units("key_heads", config.linear_num_key_heads, config.linear_key_head_dim)
    values = Units("value_heads", config.linear_num_value_heads, config.linear_value_head_dim)
    value_heads = Units("value_heads", config.linear_num_value_heads)
    kv_heads = Units("kv_heads", config.num_key_value_heads)
    whole = []
    for name in ("position", "rope_offset"):
        copies = [getattr(state, name) for state in states]
        assert all(torch.equal(copy, copies[0]) for copy in copies)
        whole.append(copies[0])
    for layers in zip(*(state.layers for state in states), strict=True):
        if hasattr(layers[0], "conv"):
            key_width = len(held_units(keys, sizes, mesh, 0)) * keys.size
            value_width = len(held_units(values, sizes, mesh, 0)) * values.size
            parts = [layer.conv.split([key_width, key_width, value_width], -1) for layer in layers]
            conv = [
                join_dim([part[place] for part in parts], -1, units, sizes, mesh)
                for place, units in enumerate((keys, keys, values))
            ]
            whole.append(torch.cat(conv, -1))
            recurrent = [layer.recurrent for layer in layers]
            whole.append(join_dim(recurrent, 1, value_heads, sizes, mesh))
        else:
            for name in ("key", "value"):
                shares = [getattr(layer, name) for layer in layers]
                whole.append(join_dim(shares, 1, kv_heads, sizes, mesh))
    return whole


def join_gradient(parameter, shares: list[torch.Tensor], sizes, mesh) -> torch.Tensor:
    """The whole gradient: contributions to one value add up, those to padding are left out."""
    whole = torch.zeros(parameter.shape)
    widths = [piece.dims[-1].count * piece.dims[-1].size for piece in parameter.pieces]
    targets = whole.split(widths, -1)  # views
    for rank, share in enumerate(shares):
        parts = share.split(parameter.local_widths(sizes, mesh, rank), -1)
        for part, piece, target in zip(parts, parameter.pieces, targets, strict=True):
            index = []
            for units in piece.dims:
                held = held_units(units, sizes, mesh, rank)
                places = [
                    -1 if unit is None else unit * units.size + offset
                    for unit in held
                    for offset in range(units.size)
                ]
                index.append(torch.tensor(places))
            for dim, places in enumerate(index):
                part = part.index_select(dim, (places >= 0).nonzero().flatten())
                index[dim] = places[places >= 0]
            target.index_put_(torch.meshgrid(*index, indexing="ij"), part, accumulate=True)
    return whole
