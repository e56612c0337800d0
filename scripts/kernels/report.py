#!/usr/bin/env python
"""What a DeltaNet kernel costs by the documented model of the machine: engine balance, timeline.

    python scripts/kernels/report.py --kernel fused --tokens 512 --plot out.png

runs the kernel in the emulator on random inputs of the 27B layer's geometry (48 value heads on 16
key heads of 128, split over --tp ranks) and prints instructions and cycles per engine, the
critical-path estimate, DMA bytes and memory peaks. Modelled figures, never measured ones.
"""

import argparse

import numpy as np

from qwen35.kernels import emulator

KERNELS = {
    "step": ("nki_recurrent", "gated_delta_step"),
    "chunk": ("nki_chunk", "gated_delta_chunk"),
    "fused": ("nki_fused", "gated_delta_prefill"),
}
CHUNK = 128
KEY_HEADS, VALUE_HEADS, HEAD_SIZE = 16, 48, 128  # the 27B layer


def inputs(options) -> tuple:
    """query, key, value, log_decay, beta and state as the kernel takes them."""
    rng = np.random.default_rng(0)
    tokens = () if options.kernel == "step" else (options.tokens,)
    key_heads, value_heads = KEY_HEADS // options.tp, VALUE_HEADS // options.tp

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    def unit(array):
        return array / np.linalg.norm(array, axis=-1, keepdims=True)

    rows, size = options.rows, HEAD_SIZE
    query = unit(normal(rows, *tokens, key_heads, size)) * np.float32(size**-0.5)
    key = unit(normal(rows, *tokens, key_heads, size))
    value = normal(rows, *tokens, value_heads, size)
    log_decay = -np.abs(normal(rows, *tokens, value_heads)) * np.float32(0.1)
    beta = rng.uniform(0, 1, (rows, *tokens, value_heads)).astype(np.float32)
    state = normal(rows, value_heads, size, size)
    if options.kernel == "step":
        log_decay = np.exp(log_decay)  # it takes the decay itself
    if options.dtype == "bfloat16":
        query, key, value = (emulator.HostTensor(x, "bfloat16") for x in (query, key, value))
    return query, key, value, log_decay, beta, state


def what_ran(report, options) -> str:
    """Kernel, sizes and static choices of the run, in a line."""
    tokens = "" if options.kernel == "step" else f"{options.tokens} tokens, "
    heads = f"{VALUE_HEADS // options.tp} value and {KEY_HEADS // options.tp} key heads"
    operands = "16-bit products" if options.fast else "exact products"
    return (
        f"{report.kernel}: {tokens}rows {options.rows}, tp {options.tp} ({heads}), "
        f"{options.dtype}, {operands}, lnc {options.lnc}, NKI {options.version}"
    )


def chunk_head_table(report, options) -> str:
    """Cycles of each engine per 128-token chunk and value head of this core."""
    chunks = -(-options.tokens // CHUNK) if options.kernel != "step" else 1
    units = chunks * options.rows * VALUE_HEADS // options.tp / options.lnc
    what = "per head" if options.kernel == "step" else "per chunk-head"
    cells = [f"{engine} {cycles / units:.0f}" for engine, cycles in report.cycles.items()]
    return f"cycles {what}: {', '.join(cells)}"


def plot(report, title: str, path: str):
    """The timeline: one row per engine, one bar per instruction, coloured by operation."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    engines = list(report.instructions)
    operations = sorted({span.op for span in report.timeline})
    colours = pyplot.get_cmap("tab20")
    colour = {op: colours(i % 20) for i, op in enumerate(operations)}
    figure, axes = pyplot.subplots(figsize=(14, 4.5))
    for row, engine in enumerate(engines):
        spans = [span for span in report.timeline if span.engine == engine]
        axes.broken_barh(
            [(span.start / 1000, (span.end - span.start) / 1000) for span in spans],
            (row - 0.4, 0.8),
            facecolors=[colour[span.op] for span in spans],
        )
    axes.set_yticks(range(len(engines)), engines)
    axes.invert_yaxis()
    axes.set_xlabel("µs, by the documented cost model (not measured)")
    axes.set_title(
        f"{title}\n{report.critical_path_ns / 1000:.1f} µs", loc="left", fontsize="medium"
    )
    axes.legend(
        handles=[Patch(color=colour[op], label=op) for op in operations],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.18),
        ncols=6,
        frameon=False,
    )
    figure.savefig(path, dpi=150, bbox_inches="tight")
    pyplot.close(figure)


def arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kernel", choices=KERNELS, default="fused")
    parser.add_argument("--tokens", type=int, default=512, help="per row; not of the step kernel")
    parser.add_argument("--rows", type=int, default=1, help="batch")
    parser.add_argument("--tp", type=int, choices=(1, 2, 4, 8, 16), default=8)
    parser.add_argument("--lnc", type=int, choices=(1, 2), default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--fast", action="store_true", help="16-bit matmul operands")
    parser.add_argument("--version", default="0.5", help="NKI version, 0.3 to 0.7")
    parser.add_argument("--plot", metavar="PNG", help="write the timeline picture")
    return parser.parse_args(argv)


def main(argv=None):
    options = arguments(argv)
    kernel = emulator.load(*KERNELS[options.kernel])
    static = {"exact": not options.fast}
    report = emulator.simulate(
        kernel, *inputs(options), lnc=options.lnc, version=options.version, **static
    ).report
    title = what_ran(report, options)
    print(title)
    print(report.table())
    print(chunk_head_table(report, options))
    if options.plot:
        plot(report, title, options.plot)
        print(f"timeline: {options.plot}")


if __name__ == "__main__":
    main()
