#!/usr/bin/env python
"""Break the NKI kernels in every small way, one at a time, and see whether the tests notice.

    python scripts/kernels/mutate.py            # every mutant, about five minutes on one core
    python scripts/kernels/mutate.py --list     # only name them

Mutants: an instruction or a stage deleted (memsets, masks and copies among them), the operands of
a matmul exchanged, an arithmetic operator, comparison or activation function replaced, accumulation
turned round, a scale or a mask constant changed, a pattern's offset dropped; a tile taken for its
sibling, float32 storage narrowed to bfloat16, a whole number raised by one. A mutant is caught if
tests/kernels/checks.py fails on it, by a wrong result or by a rule of the emulator.
kernels/README.md explains the survivors.
"""

import argparse
import ast
import copy
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "kernels"))
import checks
import harness

from qwen35.kernels import emulator

ROOT = Path(__file__).resolve().parents[2]
FILES = (
    "nki_tiles",
    "nki_recurrent",
    "nki_inverse",
    "nki_delta",
    "nki_state",
    "nki_fused",
    "nki_chunk",
)
KERNELS = (
    ("nki_recurrent", "gated_delta_step"),
    ("nki_chunk", "gated_delta_chunk"),
    ("nki_fused", "gated_delta_prefill"),
)
# Calls that are statements of their own and do something on the machine.
STAGES = {
    "select",
    "transpose",
    "find_factor",
    "apply_factor",
    "carry",
    "store",
    "store_state",
    "weigh",
    "step",
}
OPERATORS = {
    "multiply": "add",
    "add": "subtract",
    "exp": "copy",
    "copy": "exp",
    "equal": "not_equal",
    "not_equal": "equal",
    "greater": "greater_equal",
    "greater_equal": "greater",
    "float32": "bfloat16",
}
# Entries of dictionaries that have the same shape.
SIBLINGS = {
    "until": "after",
    "after": "until",
    "key": "query",
    "query": "key",
    "log_decay": "beta",
    "beta": "log_decay",
    "reader": "writer",
    "writer": "reader",
    "bounded": "unbounded",
    "unbounded": "bounded",
}
# Kinds of mutants that nearly all must be caught; the others include many that change nothing, such
# as a tile wider than needed, another order of independent work, or 0 and 1 in fewer bits.
REQUIRED = ("deletion", "operand", "operator", "mask")
# Keywords whose operands are exchanged; a product's order of factors does not matter elsewhere.
EXCHANGED = {"nc_matmul": ("stationary", "moving")}


def function_name(call):
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def is_instruction(node):
    """A statement that issues an instruction or a stage."""
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Call):
        return False
    function = node.value.func
    if isinstance(function, ast.Attribute):
        return getattr(function.value, "id", "") == "nisa"
    return getattr(function, "id", "") in STAGES


def mutations(tree):
    """(kind, description, number, change): `change` mutates the node of that number in a copy.

    Numbers count the nodes of `ast.walk`.
    """
    for number, node in enumerate(ast.walk(tree)):
        line = getattr(node, "lineno", 0)
        if is_instruction(node):
            name = function_name(node.value)
            yield "deletion", f"{line}: delete {name}", number, _delete
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "nl":
            if node.attr in OPERATORS:
                kind = "narrowed dtype" if node.attr == "float32" else "operator"
                other = OPERATORS[node.attr]
                yield kind, f"{line}: {node.attr} -> {other}", number, _replace_operator
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            if node.slice.value in SIBLINGS:
                other = SIBLINGS[node.slice.value]
                yield "sibling", f"{line}: {node.slice.value} -> {other}", number, _take_sibling
        if isinstance(node, ast.Constant) and type(node.value) is int:
            yield "number", f"{line}: {node.value} -> {node.value + 1}", number, _raise_number
        if not isinstance(node, ast.Call):
            continue
        name = function_name(node)
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if name in EXCHANGED:
            what = f"{line}: exchange {' and '.join(EXCHANGED[name])}"
            yield "operand", what, number, _exchange
        if "accumulate" in keywords:
            yield "operator", f"{line}: accumulate turned round", number, _turn_accumulate
        for keyword in ("scale", "operand1"):
            if isinstance(keywords.get(keyword), ast.UnaryOp):
                yield (
                    "operator",
                    f"{line}: {keyword} without its minus",
                    number,
                    _drop_minus(keyword),
                )
        if name == "ap" and "offset" in keywords:
            yield "operand", f"{line}: pattern offset dropped", number, _drop_offset
        if name == "select" and isinstance(node.args[-1], ast.Constant | ast.Name):
            yield "mask", f"{line}: other mask value", number, _change_mask


def _delete(node):
    node.value = ast.Constant(None)


def _replace_operator(node):
    node.attr = OPERATORS[node.attr]


def _take_sibling(node):
    node.slice.value = SIBLINGS[node.slice.value]


def _raise_number(node):
    node.value += 1


def _exchange(node):
    first, second = EXCHANGED[function_name(node)]
    for keyword in node.keywords:
        keyword.arg = {first: second, second: first}.get(keyword.arg, keyword.arg)


def _turn_accumulate(node):
    for keyword in node.keywords:
        if keyword.arg == "accumulate":
            keyword.value = ast.UnaryOp(ast.Not(), keyword.value)


def _drop_minus(name):
    def change(node):
        for keyword in node.keywords:
            if keyword.arg == name:
                keyword.value = keyword.value.operand

    return change


def _drop_offset(node):
    for keyword in node.keywords:
        if keyword.arg == "offset":
            keyword.value = ast.Constant(0)


def _change_mask(node):
    value = node.args[-1]
    zero = isinstance(value, ast.Constant) and value.value == 0.0
    node.args[-1] = ast.Constant(1.0 if zero else 0.0)


def mutants():
    """(kind, file, description, source) of every mutant."""
    for name in FILES:
        tree = ast.parse((ROOT / "kernels" / f"{name}.py").read_text())
        for kind, description, number, change in mutations(tree):
            mutated = copy.deepcopy(tree)
            change(next(n for i, n in enumerate(ast.walk(mutated)) if i == number))
            yield kind, name, description, ast.unparse(ast.fix_missing_locations(mutated))


def caught(directory, name):
    """What noticed the mutant in `directory`, or None."""
    try:
        step, chunk, prefill = (
            emulator.load(directory / f"{module}.py", kernel) for module, kernel in KERNELS
        )
        harness.STEP = step  # the harness feeds the step kernel without a token axis
        if name in ("nki_recurrent", "nki_state", "nki_tiles"):
            checks.check_step(step)
        if name != "nki_recurrent":
            checks.check_chunk(chunk)
            checks.check_prefill(prefill)
            checks.check_cost(chunk, prefill)
    except Exception as error:  # whatever a mutant dies of, it was noticed
        return type(error).__name__
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="name the mutants and stop")
    parser.add_argument("--only", default="", help="only mutants whose name contains this")
    options = parser.parse_args()
    chosen = [m for m in mutants() if options.only in f"{m[0]}: {m[1]}.py:{m[2]}"]
    if options.list:
        for kind, name, description, _ in chosen:
            print(f"{kind}: {name}.py:{description}")
        return
    survivors, reasons, start = [], Counter(), time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        directory = Path(directory)
        originals = {name: (ROOT / "kernels" / f"{name}.py").read_text() for name in FILES}
        for name, text in originals.items():
            (directory / f"{name}.py").write_text(text)
        assert caught(directory, "nki_tiles") is None, "the true kernels must pass"
        for kind, name, description, text in chosen:
            (directory / f"{name}.py").write_text(text)
            reason = caught(directory, name)
            (directory / f"{name}.py").write_text(originals[name])
            if reason is None:
                survivors.append(kind)
                print(f"survives: {name}.py:{description}", flush=True)
            else:
                reasons[reason] += 1
    lost, totals = Counter(survivors), Counter(m[0] for m in chosen)
    for kind, total in totals.items():
        print(f"{kind}: {total - lost[kind]} of {total} caught")
    required = sum(totals[kind] for kind in REQUIRED)
    missed = sum(lost[kind] for kind in REQUIRED)
    share = 100 * (required - missed) / max(required, 1)
    print(f"{', '.join(REQUIRED)}: {required - missed} of {required} caught ({share:.1f} %)")
    print("caught by: " + ", ".join(f"{n} {what}" for what, n in sorted(reasons.items())))
    print(f"{time.monotonic() - start:.0f} s")
    sys.exit(share < 95)


if __name__ == "__main__":
    main()
