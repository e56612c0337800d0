"""Writers of the published forms of a quantised weight, each written out from its definition.

Every writer takes a weight [out, in] and returns the tensors that stand for `X.weight` in a file,
by their names after "X.", and the values that they stand for, in float64.
"""

import math

import torch


def fp8_blocks(weight, *, block=128, scale_dtype=torch.bfloat16, scale="weight_scale_inv"):
    """Tiles of `block` x `block`, the last ones smaller, with a scale each."""
    outputs, inputs = weight.shape
    scales = torch.empty(math.ceil(outputs / block), math.ceil(inputs / block), dtype=scale_dtype)
    codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    values = torch.empty(weight.shape, dtype=torch.float64)
    for r, row in enumerate(range(0, outputs, block)):
        for c, column in enumerate(range(0, inputs, block)):
            tile = slice(row, row + block), slice(column, column + block)
            scales[r, c] = weight[tile].abs().max() / 448
            codes[tile] = (weight[tile] / scales[r, c].float()).to(codes.dtype)
            values[tile] = codes[tile].double() * scales[r, c].double()
    return {"weight": codes, scale: scales}, values


def fp8_channels(weight, *, scale_dtype=torch.bfloat16, flat=False):
    """A scale for each output."""
    scales = (weight.abs().amax(1, keepdim=True) / 448).to(scale_dtype)
    codes = (weight / scales.float()).to(torch.float8_e4m3fn)
    parts = {"weight": codes, "weight_scale": scales.flatten() if flat else scales}
    return parts, codes.double() * scales.double()


def fp8_tensor(weight):
    """One scale for all of it."""
    scale = weight.abs().max() / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scale.view(1)}, codes.double() * scale.double()


def int8_channels(weight, *, scale_dtype=torch.bfloat16, symmetric=True):
    """compressed-tensors' int-quantized: signed bytes, a scale for each output."""
    codes, scales, zeros = _integers(weight, 8, weight.shape[1], symmetric, scale_dtype)
    codes, zeros = codes - 128, zeros - 128
    parts = {"weight": codes.to(torch.int8), "weight_scale": scales}
    if not symmetric:
        parts["weight_zero_point"] = zeros.to(torch.int8)
    return parts, (codes - zeros).double() * scales.double()


def packed(weight, *, bits=4, group=128, symmetric=True, scale_dtype=torch.bfloat16):
    """compressed-tensors' pack-quantized: 32 / bits consecutive inputs in an int32, the first in
    the lowest bits; zeros likewise, consecutive outputs. A group of None is all inputs."""
    codes, scales, zeros = _integers(weight, bits, group or weight.shape[1], symmetric, scale_dtype)
    parts = {
        "weight_packed": _words(codes, bits, range(32 // bits)),
        "weight_scale": scales,
        "weight_shape": torch.tensor(weight.shape),
    }
    if not symmetric:
        parts["weight_zero_point"] = _words(zeros.T, bits, range(32 // bits)).T.contiguous()
    return parts, _values(codes, scales, zeros, group or weight.shape[1])


def gptq(weight, *, bits=4, group=128, symmetric=True, form="gptq", order=True):
    """GPTQ: 32 / bits consecutive inputs in an int32 [in, out], the first in the lowest bits; zeros
    less one in its first form, consecutive outputs."""
    codes, scales, zeros = _integers(weight, bits, group, symmetric, torch.float16)
    stored = zeros - 1 if form == "gptq" else zeros
    parts = {
        "qweight": _words(codes, bits, range(32 // bits)).T.contiguous(),
        "qzeros": _words(stored.T % 2**bits, bits, range(32 // bits)),
        "scales": scales.T.contiguous(),
    }
    if order:
        parts["g_idx"] = torch.arange(weight.shape[1], dtype=torch.int32) // group
    return parts, _values(codes, scales, zeros, group)


def awq(weight, *, group=128):
    """AWQ: eight outputs in an int32, from the lowest bits up the 1st, 3rd, 5th, 7th, 2nd, …"""
    codes, scales, zeros = _integers(weight, 4, group, False, torch.float16)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    parts = {
        "qweight": _words(codes.T, 4, order),
        "qzeros": _words(zeros.T, 4, order),
        "scales": scales.T.contiguous(),
    }
    return parts, _values(codes, scales, zeros, group)


def _integers(weight, bits, group, symmetric, scale_dtype):
    """Codes [out, in] from 0 to 2**bits - 1, scales and zeros [out, groups]."""
    outputs, inputs = weight.shape
    count, top = math.ceil(inputs / group), 2**bits - 1
    codes = torch.empty(weight.shape, dtype=torch.int64)
    scales = torch.empty(outputs, count, dtype=scale_dtype)
    zeros = torch.full((outputs, count), 2 ** (bits - 1))
    for g in range(count):
        part = weight[:, g * group : (g + 1) * group].double()
        if symmetric:
            scales[:, g] = part.abs().amax(1) / (2 ** (bits - 1) - 1)
        else:
            low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
            scales[:, g] = (high - low) / top
            zeros[:, g] = (-low / scales[:, g].double()).round().clamp(0, top)
        found = (part / scales[:, g, None].double()).round() + zeros[:, g, None]
        codes[:, g * group : (g + 1) * group] = found.clamp(0, top)
    return codes, scales, zeros


def _values(codes, scales, zeros, group):
    values = torch.empty(codes.shape, dtype=torch.float64)
    for column in range(codes.shape[1]):
        g = column // group
        values[:, column] = (codes[:, column] - zeros[:, g]).double() * scales[:, g].double()
    return values


def _words(codes, bits, order):
    """int32 [rows, ceil(columns / n)]: word c of a row holds n = 32 / bits columns, and bits
    i * bits and up of it the column n * c + order[i]; 0 where there is none."""
    count, (rows, columns) = 32 // bits, codes.shape
    words = torch.zeros(rows, math.ceil(columns / count), dtype=torch.int64)
    for word in range(words.shape[1]):
        for place, offset in enumerate(order):
            column = word * count + offset
            if column < columns:
                words[:, word] |= codes[:, column] << (bits * place)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
