"""jit as a library function: results against plain Python and eager torch on the CPU."""

import copy
import dataclasses
import functools
import gc
import itertools
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections import OrderedDict, defaultdict, namedtuple
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils import _pytree

from qwen35.xla import devices, trees
from qwen35.xla.devices import device_put
from qwen35.xla.environment import xla
from qwen35.xla.jit import jit

Pair = namedtuple("Pair", "first second")


def on_xla(tree):
    """A copy of `tree` on the XLA device, so that donating it leaves the original alone."""
    return device_put(tree, "xla")


class Backend(NamedTuple):
    """A backend of jit, None for XLA, and the device that it wants tensors on."""

    name: str | None
    device: str

    def jit(self, function, **options):
        return jit(function, backend=self.name, **options)

    def put(self, tree):
        """A copy of `tree` on the device."""
        copies = trees.map_tensors(lambda tensor: tensor.clone(), tree)
        return device_put(copies, self.device)


BACKENDS = {"xla": Backend(None, "xla"), "aot_eager": Backend("aot_eager", "cpu")}


@pytest.fixture(params=BACKENDS)
def on(request):
    """What every backend promises is asked of each."""
    return BACKENDS[request.param]


def assert_same(actual, expected):
    """Equal trees: same structure, tensors of equal dtype and value, equal other leaves."""
    actual = device_put(actual, "cpu")
    a, a_spec = _pytree.tree_flatten(actual)
    e, e_spec = _pytree.tree_flatten(expected)
    assert a_spec == e_spec
    for x, y in zip(a, e, strict=True):
        if isinstance(y, torch.Tensor):
            torch.testing.assert_close(x, y, rtol=0, atol=0)
        else:
            assert type(x) is type(y) and x == y


def pending():
    """How many live XLA tensors are computations that have not run."""
    torch_xla = xla()
    device = str(torch_xla.device())
    return sum(torch_xla._XLAC._check_device_tensor_need_materialization(device))


def run_python(code, **environment):
    """Run `code` in a fresh interpreter with PJRT_DEVICE unset; return what it prints as JSON."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("PJRT_DEVICE", "XLA_FLAGS")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=inherited | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


# --- signatures -----------------------------------------------------------------------------


def test_compiles_once_per_shape_dtype_and_static_value(on):
    calls = []

    def f(x, scale):
        calls.append(tuple(x.shape))
        return x * scale

    fn = on.jit(f)
    x = torch.arange(6.0).reshape(2, 3)
    for _ in range(3):
        assert_same(fn(on.put(x), 2), x * 2)
        assert_same(fn(on.put(x), 3), x * 3)
        assert_same(fn(on.put(x[:1]), 2), x[:1] * 2)
        assert_same(fn(on.put(x.int()), 2), x.int() * 2)
    if on.name is None:  # torch.compile runs it more than once for each
        assert calls == [(2, 3), (2, 3), (1, 3), (2, 3)]
    assert fn.compile_count == 4
    assert fn.signatures[0].endswith("f(x=float32[2, 3], scale=2)")
    assert "int32[2, 3]" in fn.signatures[3]


def test_positional_keyword_and_default_arguments_share_a_compilation(on):
    fn = on.jit(lambda x, n=3, *, mode="a": (x * n, mode))
    x = on.put(torch.ones(2))
    for result in (fn(x), fn(x, 3), fn(x, n=3), fn(n=3, x=x), fn(x, mode="a")):
        assert_same(result, (torch.full((2,), 3.0), "a"))
    assert fn.compile_count == 1
    assert_same(fn(x, mode="b"), (torch.full((2,), 3.0), "b"))
    assert fn.compile_count == 2


@dataclasses.dataclass(frozen=True)
class Setting:
    value: object


_numbers = st.one_of(
    st.sampled_from([0, 1, True, False, 0.0, -0.0, 1.0, float("nan"), complex(0.0, -0.0), 1 + 0j]),
    st.sampled_from([np.float32(0.0), np.float32(-0.0), np.float64(1.0), np.int64(1), np.bool_(1)]),
    st.sampled_from(
        [np.float16("nan"), Decimal("1.0"), Decimal("1.00"), Decimal("-0"), Fraction(1)]
    ),
    st.floats(width=16),
)
static_values = st.recursive(
    _numbers | st.sampled_from([None, "", "1", "nan", b"1", torch.float32, torch.bool, ...]),
    lambda values: st.one_of(
        st.lists(values, max_size=2),
        st.lists(values, max_size=2).map(tuple),
        st.builds(Pair, values, values),
        st.builds(Setting, values),
        st.builds(lambda key, value: {key: value}, _numbers, values),
    ),
    max_leaves=4,
)


def bits(value):
    """A text that two values share if they are of one type and of equal bits, all through."""
    kind = type(value).__name__
    if isinstance(value, Setting):
        return f"Setting({bits(value.value)})"
    if isinstance(value, dict):
        return f"dict({[(bits(key), bits(entry)) for key, entry in value.items()]})"
    if isinstance(value, list | tuple):
        return f"{kind}({[bits(entry) for entry in value]})"
    return f"{kind}:{value!r}"


@settings(max_examples=200, deadline=None)
@example(values=[Setting(0.0), Setting(-0.0)])
@example(values=[[float("nan")], [float("nan")]])
@given(values=st.lists(static_values, min_size=2, max_size=4))
def test_static_values_are_one_where_type_and_bits_are(values):
    """As leaves, as keys, inside of containers and of constants."""
    keys = []
    for value in values:
        key = []
        trees.flatten(copy.deepcopy(value), [], key, [])  # so that no NaN is the same object
        keys.append(tuple(key))
    for (one, first), (other, second) in itertools.combinations(zip(values, keys, strict=True), 2):
        same = first == second and hash(first) == hash(second)
        assert same == (bits(one) == bits(other)), (one, other)


def test_static_values_of_equal_hash_stay_apart(on):
    fn = on.jit(lambda x, flag: (x, type(flag).__name__, repr(flag)))
    x = on.put(torch.ones(1))
    values = [1, True, 1.0, 0.0, -0.0, None, "1", float("nan"), float("nan"), (1,), [1]]
    if on.name is None:  # TorchDynamo traces no `repr` of these
        values += [np.float32(0.0), np.float32(-0.0), Setting(1), Setting(True), range(0, 3, 2)]
        values += [range(0, 4, 2), complex(0.0, -0.0), complex(0.0, 0.0)]
    for value in values:
        assert_same(fn(x, value), (torch.ones(1), type(value).__name__, repr(value)))
    assert fn.compile_count == len(values) - 1  # the second nan is the first one's again


def test_dict_keys_are_part_of_the_signature(on):
    fn = on.jit(lambda tree: sorted(tree))
    x = on.put(torch.ones(1))
    assert [fn({"a": x}), fn({"b": x}), fn({"a": x})] == [["a"], ["b"], ["a"]]
    assert fn.compile_count == 2


def test_variadic_functions_partials_and_builtins(on):
    x, y = torch.ones(2), torch.full((2,), 2.0)
    assert_same(on.jit(lambda *a, **k: a[0] + k["z"])(on.put(x), z=on.put(y)), x + y)
    partial = functools.partial(lambda a, b: a - b, b=on.put(y))
    assert_same(on.jit(partial)(on.put(x)), x - y)
    assert_same(on.jit(torch.add)(on.put(x), on.put(y)), x + y)


def test_static_context_of_registered_nodes_is_part_of_the_signature(on):
    @dataclasses.dataclass(frozen=True)
    class Node:
        weight: torch.Tensor
        power: int

    _pytree.register_pytree_node(
        Node, lambda n: ([n.weight], n.power), lambda c, power: Node(*c, power)
    )
    fn = on.jit(lambda node: Node(node.weight**node.power, node.power + 1))
    w = torch.tensor([2.0, 3.0])
    for power in (1, 2, 1, 2):
        result = fn(Node(on.put(w), power))
        assert result.power == power + 1
        assert_same(result.weight, w**power)
    assert fn.compile_count == 2


# --- trees ----------------------------------------------------------------------------------

random_trees = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 3),
        st.sampled_from(["a", "b"]),
        st.builds(
            lambda shape, dtype: torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype),
            st.lists(st.integers(0, 3), max_size=3),
            st.sampled_from([torch.float32, torch.int32, torch.bool, torch.bfloat16, torch.int64]),
        ),
    ),
    lambda children: st.one_of(
        st.lists(children, max_size=3),
        st.lists(children, max_size=3).map(tuple),
        st.dictionaries(st.sampled_from("xyz"), children, max_size=3),
        st.builds(Pair, children, children),
        st.builds(lambda c: OrderedDict(k=c), children),
        st.builds(lambda c: defaultdict(int, k=c), children),
    ),
    max_leaves=6,
)


def mapped(tree):
    """A function of every tensor in a tree, with static leaves changed too."""

    def change(leaf):
        if isinstance(leaf, torch.Tensor):
            return ~leaf if leaf.dtype == torch.bool else leaf * 2 + 1
        return leaf * 2 if isinstance(leaf, str | int) else leaf

    return _pytree.tree_map(change, tree)


@settings(max_examples=25, deadline=None)
@given(random_trees)
def test_any_tree_goes_in_and_comes_out(tree):
    fn = jit(lambda tree: (mapped(tree), tree))
    for _ in range(2):
        assert_same(fn(on_xla(tree)), (mapped(tree), tree))
    assert fn.compile_count == 1


@settings(max_examples=50, deadline=None)
@given(random_trees)
def test_flatten_walks_in_the_order_of_torch_pytree(tree):
    leaves, key, frozen = [], [], []
    trees.flatten(tree, leaves, key, frozen)
    expected = [x for x in _pytree.tree_leaves(tree) if isinstance(x, torch.Tensor)]
    assert list(map(id, leaves)) == list(map(id, expected))
    named = [leaf for _, leaf in trees.named_leaves(tree, "t")]
    assert list(map(id, named)) == list(map(id, _pytree.tree_leaves(tree)))
    assert trees.first_tensor(tree) is (expected[0] if expected else None)


@dataclasses.dataclass(frozen=True)
class Scale:
    factor: int


@dataclasses.dataclass(frozen=True)
class Linear:
    scale: Scale
    weight: torch.Tensor
    bias: torch.Tensor | None = None


_pytree.register_constant(Scale)
_pytree.register_dataclass(Linear)


def test_constants_and_absent_parts_of_a_dataclass_are_static(on):
    def apply(layer, x):
        product = x @ layer.weight * layer.scale.factor
        return product if layer.bias is None else product + layer.bias

    fn = on.jit(apply)
    x, weight, bias = torch.ones(1, 2), torch.eye(2), torch.full((2,), 5.0)
    layers = [Linear(Scale(2), weight), Linear(Scale(3), weight), Linear(Scale(3), weight, bias)]
    for layer in layers * 2:
        assert_same(fn(on.put(layer), on.put(x)), apply(layer, x))
    assert fn.compile_count == 3
    assert [("factor=2" in line, "factor=3" in line) for line in fn.signatures] == [
        (True, False),
        (False, True),
        (False, True),
    ]
    named = trees.named_leaves(layers[2], "layer")
    assert [path for path, _ in named] == ["layer.weight", "layer.bias"]


def test_results_without_tensors_and_without_arguments(on):
    assert on.jit(lambda: None)() is None
    assert on.jit(lambda x: {"n": 3})(on.put(torch.ones(1))) == {"n": 3}
    fn = on.jit(lambda: torch.arange(3, device=on.device) * 2)
    assert_same([fn(), fn()], [torch.arange(3) * 2] * 2)


# --- results that are not simply computed ---------------------------------------------------


def test_result_that_is_an_argument_is_its_value_and_survives_donating_the_result(on):
    keep = on.jit(lambda a, b: (a, b + 1, a.detach(), a.view(2, 1)))
    consume = on.jit(lambda a: a * 0, donate=("a",))
    a = on.put(torch.tensor([1.0, 2.0]))
    out = keep(a, a)
    expected = torch.tensor([1.0, 2.0])
    assert_same(out, (expected, expected + 1, expected, expected.view(2, 1)))
    consume(out[0])
    assert_same((a, out[2]), (expected, expected))


@pytest.mark.parametrize("copied", [torch.clone, copy.deepcopy, torch.Tensor.detach])
def test_a_copy_that_shares_donated_memory_is_refused_and_one_by_jit_lives(copied):
    consume = jit(lambda a: a * 0, donate=("a",))
    a = on_xla(torch.tensor([1.0, 2.0]))
    lost, kept = copied(a), jit(lambda tree: tree)({"a": a})
    consume(a)
    assert_same(kept, {"a": torch.tensor([1.0, 2.0])})
    with pytest.raises(RuntimeError, match="shares memory with a tensor that was donated"):
        jit(lambda x: x + 1)(lost)
    double = jit(lambda x: x * 2)
    double(a_new := on_xla(torch.ones(2)))
    with pytest.raises(RuntimeError, match="shares memory with a tensor that was donated"):
        double(lost)  # which compiles nothing
    with pytest.raises(RuntimeError):
        lost.cpu()
    with pytest.raises(RuntimeError):
        (lost + 1).cpu()
    # What has failed stays without a value, and is nobody else's business.
    assert_same(jit(lambda x: x * 3)(a_new), torch.full((2,), 3.0))
    pending = a_new + 1
    consume(on_xla(torch.ones(2)))
    assert_same(pending, torch.full((2,), 2.0))


def test_duplicate_results_are_separate_tensors(on):
    def f(x):
        y = x + 1
        return y, y, y.view(1, 2), y.view(1, 2)[0]

    results = on.jit(f)(on.put(torch.zeros(2)))
    one = torch.ones(2)
    assert_same(results, (one, one, one.view(1, 2), one))
    on.jit(lambda a: a * 2, donate=("a",))(results[0])
    assert_same(results[1:], (one, one.view(1, 2), one))


def test_constants_made_inside_stay_alive(on):
    def f(x):
        table = torch.tensor([1.0, 2.0, 4.0], device=x.device)
        index = torch.arange(3, device=x.device)
        mask = torch.tensor([True, False, True]).to(x.device)
        return torch.where(mask, x[index] * table * 1.5, -1.0), table

    fn = on.jit(f)
    x = torch.tensor([1.0, 2.0, 3.0])
    for scale in (1, 2, 3):
        gc.collect()
        expected = torch.tensor([1.5 * scale, -1.0, 18.0 * scale])
        assert_same(fn(on.put(x * scale)), (expected, torch.tensor([1.0, 2.0, 4.0])))
    assert fn.compile_count == 1


def test_closure_tensors_are_fixed_when_traced():
    captured = on_xla(torch.ones(2))
    fn = jit(lambda x: x + captured)
    x = on_xla(torch.zeros(2))
    assert_same(fn(x), torch.ones(2))
    captured.add_(1)
    xla().sync()  # reuses the memory that `captured` had
    assert_same(fn(x), torch.ones(2))
    assert_same(captured, torch.full((2,), 2.0))


def test_python_numbers_are_constants_of_the_graph():
    fns = [jit(lambda x, c=c: x * c) for c in (2.5, 3.5)]
    x = on_xla(torch.ones(2))
    assert [fn(x)[0].item() for fn in fns * 2] == [2.5, 3.5, 2.5, 3.5]
    assert "constant(2.5)" in fns[0].lower(x)


def test_random_numbers_advance_and_follow_the_seed():
    fn = jit(lambda x: (torch.rand_like(x), torch.rand_like(x)))
    x = on_xla(torch.zeros(64))
    xla().manual_seed(3)
    fn.lower(x)
    first = [device_put(fn(x), "cpu") for _ in range(3)]  # the first of these compiles
    xla().manual_seed(3)
    second = [device_put(fn(x), "cpu") for _ in range(3)]
    assert_same(first, second)
    samples = torch.stack([t for pair in first for t in pair])
    assert len({tuple(row.tolist()) for row in samples}) == 6
    assert 0.3 < samples.mean() < 0.7


def test_argument_passed_twice_is_not_merged_into_one_input(on):
    fn = on.jit(lambda a, b: a - b)
    x, y = on.put(torch.ones(2)), on.put(torch.full((2,), 3.0))
    assert_same(fn(x, x), torch.zeros(2))
    assert_same(fn(x, y), torch.full((2,), -2.0))
    assert_same(fn(x, x.detach()), torch.zeros(2))
    assert fn.compile_count == 1


def test_arguments_may_be_pending_computations():
    fn = jit(lambda x: x + 1)
    for step in range(3):
        x = on_xla(torch.ones(2)) * step  # lazy: not computed yet
        assert_same(fn(x), torch.full((2,), step + 1.0))
    assert fn.compile_count == 1


def test_a_chain_of_calls_matches_a_loop(on):
    def step(state, x):
        h, n = state
        h = torch.tanh(h @ x)
        return (h, n + 1), h.sum()

    fn = on.jit(step, donate=("state",))
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    state = (torch.eye(4, dtype=torch.float64), torch.zeros((), dtype=torch.int32))
    remote, weights = on.put((state, x))
    for _ in range(50):
        state, expected = step(state, x)
        remote, total = fn(remote, weights)
    torch.testing.assert_close(total.cpu(), expected, rtol=1e-12, atol=1e-12)
    assert remote[1].item() == 50 and fn.compile_count == 1


# --- nesting, purity, errors ----------------------------------------------------------------


def test_jit_inside_jit_is_traced_inline(on):
    inner = on.jit(lambda x, n: x * n, donate=("x",))
    outer = on.jit(lambda x: inner(x, 2) + inner(x, 3) + x)
    x = on.put(torch.ones(2))
    assert_same(outer(x), torch.full((2,), 6.0))
    assert_same(x, torch.ones(2))
    assert (inner.compile_count, outer.compile_count) == (0, 1)
    with pytest.raises(RuntimeError, match="lower"):
        on.jit(lambda x: inner.lower(x, 2))(x)


def test_exception_inside_leaves_nothing_behind():
    stored = []

    def f(x, fail):
        y = x * 3
        stored.append(y)
        if fail:
            raise KeyError("inside")
        return y + 1

    fn = jit(f)
    x = on_xla(torch.ones(2))
    other = x + 41  # the caller's own pending computation must survive
    with pytest.raises(KeyError, match="inside"):
        fn(x, True)
    assert fn.compile_count == 0 and pending() == 0
    assert_same(fn(x, False), torch.full((2,), 4.0))
    assert_same(other, torch.full((2,), 42.0))
    for escaped in stored:
        with pytest.raises(RuntimeError, match="escaped"):
            escaped + 1
        with pytest.raises(RuntimeError, match=r"argument x has no value: .*escaped"):
            fn(escaped, False)
    with pytest.raises(RuntimeError, match="escaped"):
        jit(lambda x: x + stored[0])(x)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x * x[0].item(),
        lambda x: x[: int(x[0])],
        lambda x: (x.cpu() + 1).to(x.device),
        lambda x: x[x > 0],
    ],
    ids=["bool", "item", "int", "cpu", "mask"],
)
def test_reading_values_while_tracing_is_refused(on, function, request):
    if on.device == "cpu" and request.node.callspec.id.endswith("-cpu"):
        pytest.skip("there cpu() reads nothing")
    fn = on.jit(function)
    with pytest.raises(RuntimeError, match="reads the value of a tensor"):
        fn(on.put(torch.ones(3)))
    assert fn.compile_count == 0 and (on.device == "cpu" or pending() == 0)


@pytest.mark.parametrize(
    "function",
    [lambda s, x: s["a"].add_(x), lambda s, x: s["a"].copy_(x), lambda s, x: s["a"].zero_()],
    ids=["add_", "copy_", "zero_"],
)
def test_modifying_an_argument_in_place_is_refused(on, function):
    a, x = on.put(torch.ones(2)), on.put(torch.full((2,), 5.0))
    with pytest.raises(ValueError, match=r"modifies its argument s\['a'\] in place"):
        on.jit(function)({"a": a}, x)
    assert_same((a, x), (torch.ones(2), torch.full((2,), 5.0)))


def test_modifying_a_tensor_made_inside_is_fine(on):
    def f(x):
        y = torch.zeros_like(x)
        y[1:] += x[1:]
        return y

    x = torch.arange(3.0)
    assert_same(on.jit(f)(on.put(x)), f(x))


def test_argument_errors(on):
    x = torch.ones(2)
    remote = on.put(x)
    fn = on.jit(lambda tree, y=None: tree)
    with pytest.raises(ValueError, match=r"argument tree\[1\].second is on meta.*device_put"):
        fn([remote, Pair(remote, x.to("meta"))])
    with pytest.raises(ValueError, match=r"argument y\['k'\]: bytearray is neither"):
        fn(remote, {"k": bytearray(b"no")})
    with pytest.raises(ValueError, match=r"argument tree requires gradients"):
        fn(on.put(x).requires_grad_())
    with torch.no_grad():
        assert_same(fn(on.put(x).requires_grad_()).detach(), x)
    with pytest.raises(ValueError, match="argument tree requires gradients"):
        fn(on.put(x).requires_grad_())  # compiled by now
    with pytest.raises(TypeError, match="missing a required argument: 'tree'"):
        fn()
    with pytest.raises(ValueError, match="returns a tensor on meta"):
        on.jit(lambda x: torch.ones(1, device="meta"))(remote)


def test_calls_from_two_threads_while_one_compiles():
    donating = jit(lambda state: state + 1, donate=("state",))
    state = donating(on_xla(torch.zeros(2)))
    stop = threading.Event()

    def slowly(x):
        for _ in range(20):
            x = x * 2
            time.sleep(0.005)  # the other thread would run this graph's beginning meanwhile
        return x

    def spin():
        nonlocal state
        while not stop.is_set():
            state = donating(state)

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        fn = jit(slowly)
        for x in (torch.ones(2), torch.full((2,), 3.0)):
            assert_same(fn(on_xla(x)), x * 2**20)
    finally:
        stop.set()
        thread.join()
    assert state[0] > 1


def test_gradients_inside():
    def f(x):
        y = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad((y**3).sum(), y)
        return grad

    x = torch.tensor([1.0, 2.0])
    for _ in range(2):
        assert_same(jit(f)(on_xla(x)), 3 * x**2)


def held_by_autograd_alone():
    """A result whose graph holds a tensor that Python has let go, and that tensor's address."""
    squared = torch.ones(3, requires_grad=True) * 2
    return (squared * squared).sum(), id(squared)


def found(address):
    return [tensor for tensor in gc.get_objects() if id(tensor) == address]


def leaking(x, leaks):
    """Store a traced tensor, so that jit looks for those that are pending when it has traced."""
    leaks.append(x + 1)
    return x * 2


def test_tensors_that_autograd_frees_while_pending_ones_are_sought(monkeypatch, capfd):
    graph = [held_by_autograd_alone()[0]]
    is_pending = devices._is_pending

    def free_the_graph(tensor):
        graph.clear()
        return is_pending(tensor)

    monkeypatch.setattr(devices, "_is_pending", free_the_graph)
    leaks = []
    fn = jit(lambda x: leaking(x, leaks))
    assert_same(fn(on_xla(torch.ones(2))), torch.full((2,), 2.0))
    assert leaks and not graph
    assert "live PyObject references" not in capfd.readouterr().err


def test_tensors_that_somebody_else_let_autograd_free():
    graph, address = held_by_autograd_alone()
    (dead,) = found(address)
    del graph
    with pytest.raises(RuntimeError, match="device"):
        dead.device  # noqa: B018 (it fails on everything)
    leaks = []
    fn = jit(lambda x: leaking(x, leaks))
    assert_same(fn(on_xla(torch.ones(2))), torch.full((2,), 2.0))
    assert leaks


def test_works_in_inference_mode(on):
    fn = on.jit(lambda state, x: (state + x, state.sum()), donate=("state",))
    with torch.inference_mode():
        state = on.put(torch.zeros(2))
        for _ in range(3):
            state, total = fn(state, on.put(torch.ones(2)))
    assert_same((state, total), (torch.full((2,), 3.0), torch.tensor(4.0)))


# --- donation -------------------------------------------------------------------------------


def test_donated_tensors_are_consumed_and_say_so(on):
    fn = on.jit(lambda state, x, scale=1.0: ([s * scale + x for s in state], x), donate=("state",))
    x = on.put(torch.ones(2))
    for call in (lambda s: fn(s, x), lambda s: fn(x=x, state=s)):
        state = on.put([torch.zeros(2), torch.ones(2)])
        new, same = call(state)
        assert_same((new, same), ([torch.ones(2), torch.full((2,), 2.0)], torch.ones(2)))
        for use in (
            lambda s: s[0] + 1,
            lambda s: torch.stack(s),
            lambda s: s[1].cpu(),
            lambda s: s[1].shape,
            lambda s: device_put(s, "cpu"),
            lambda s: fn(s, x),
            lambda s: on.jit(lambda a: a)(s),
            lambda s: fn.lower(s, x),
        ):
            with pytest.raises(RuntimeError, match="donated"):
                use(state)
        assert repr(state[0]) == "<donated tensor>"
    with pytest.raises(RuntimeError, match=r"argument state\[1\] .*donated"):
        fn([x, state[1]], x)


def test_donate_names_are_checked(on):
    with pytest.raises(ValueError, match=r"'cache'.* are params, state"):
        on.jit(lambda params, state: state, donate=("state", "cache"))

    def f(params, state):
        return state

    with pytest.raises(ValueError, match="'cache'"):
        on.jit(f, donate="cache")


def test_donating_reuses_memory_and_marks_nothing_else():
    core = xla()._XLAC

    def f(state, x):
        a, b, _unused, shrunk = state
        return (a + x, b, shrunk.sum(0)), x.sum()

    fn = jit(f, donate=("state",))
    state = on_xla([torch.ones(64, 64), torch.ones(3), torch.ones(5), torch.ones(7, 9)])
    x = on_xla(torch.ones(64, 64))
    before = [core._unsafe_buffer_pointer(t) for t in state]
    for tensor in state:
        assert not core._get_buffer_donation(tensor)
    new, total = fn(state, x)
    assert_same(
        (new, total),
        ((torch.full((64, 64), 2.0), torch.ones(3), torch.full((9,), 7.0)), torch.tensor(4096.0)),
    )
    assert core._unsafe_buffer_pointer(new[0]) == before[0]
    assert core._unsafe_buffer_pointer(new[1]) == before[1]
    assert not any(core._get_buffer_donation(t) for t in (*new, total, x))
    for old in state:
        with pytest.raises(RuntimeError, match="donated"):
            old + 1


def test_failing_to_compile_leaves_a_donated_argument_alone():
    def f(state):
        call = xla()._XLAC._xla_custom_call  # of a kernel that the CPU does not have
        return call([state], "missing", [[2]], [torch.float32], False, "", 1, {})[0]

    fn = jit(f, donate=("state",))
    state = on_xla(torch.ones(2))
    with pytest.raises(ValueError, match="missing"):
        fn(state)
    assert fn.compile_count == 0 and pending() == 0
    later = state + 1
    xla().sync()  # would consume what is still marked
    assert_same((state, later), (torch.ones(2), torch.full((2,), 2.0)))


def test_what_hangs_on_a_donated_tensor_is_computed_first():
    fn = jit(lambda s: s * 0, donate=("s",))
    for _ in range(2):
        s = on_xla(torch.full((3,), 2.0))
        lazily = s.sum() * 10
        fn(s)
        assert lazily.item() == 60


def test_what_became_pending_in_place_is_computed_before_donating():
    """Some operations of torch-xla make a computation of a tensor that held data.

    No new tensor shows it, so whoever looks for pending work has to look at all tensors.
    """
    fn = jit(lambda s: s * 2, donate=("s",))
    for _ in range(2):
        s, other = on_xla((torch.full((3,), 2.0), torch.full((3,), 5.0)))
        assert pending() == 0
        xla()._XLAC._xla_optimization_barrier_([other, s])
        assert pending() == 2
        assert_same((fn(s), other), (torch.full((3,), 4.0), torch.full((3,), 5.0)))


def test_aliases_of_a_donated_tensor_are_refused():
    fn = jit(lambda s: s * 2, donate=("s",))
    s = on_xla(torch.ones(3))
    alias = s.detach()
    for _ in range(2):
        assert_same(fn(on_xla(torch.ones(3))), torch.full((3,), 2.0))
    fn(s)
    for other in (fn, jit(lambda x: x + 1)):
        with pytest.raises(RuntimeError, match="donated"):
            other(alias)
    assert_same(fn(on_xla(torch.ones(3))), torch.full((3,), 2.0))


def test_donating_a_tensor_twice_is_refused(on):
    fn = on.jit(lambda state, x: ([t + x for t in state], x), donate=("state",))
    a, b, x = on.put([torch.ones(2), torch.ones(2), torch.ones(2)])
    fn([on.put(torch.ones(2)), on.put(torch.ones(2))], x)
    for state, other in (([a, a], x), ([a, x], x), ([a, b], a), ([a, a.detach()], x)):
        with pytest.raises(ValueError, match="donated tensor appears twice"):
            fn(state, other)
    assert_same((a, b, x), (torch.ones(2),) * 3)


def test_lower_gives_hlo_and_consumes_nothing():
    fn = jit(lambda state, x: state @ x, donate=("state",))
    s, x = on_xla((torch.ones(2, 3), torch.ones(3, 4)))
    text = fn.lower(s, x=x)
    assert text.startswith("HloModule") and "f32[2,4]" in text and "dot(" in text
    assert fn.compile_count == 0 and pending() == 0
    assert not xla()._XLAC._get_buffer_donation(s)
    assert_same(s, torch.ones(2, 3))
    fn(s, x)


# --- frozen trees ---------------------------------------------------------------------------


class Weights:
    visits = 0

    def __init__(self, layers, config):
        self.layers, self.config = layers, config


def flatten_weights(weights):
    Weights.visits += 1
    return [weights.layers], weights.config


_pytree.register_pytree_node(Weights, flatten_weights, lambda c, config: Weights(*c, config))
trees.register_frozen(Weights)


def test_frozen_trees_are_flattened_once(on):
    fn = on.jit(lambda w, x: x @ w.layers[0] + w.layers[1]["b"] * w.config)
    tensors = [torch.eye(2), {"b": torch.ones(2)}]
    weights = [
        Weights(on.put(tensors), 2),
        Weights(on.put(tensors), 2),
        Weights(on.put(tensors), 3),
    ]
    x = on.put(torch.zeros(1, 2))
    for w in weights:
        assert_same(fn(w, x), torch.full((1, 2), float(w.config)))
    visits = Weights.visits
    assert trees.first_tensor(((1, weights[2]), x)) is weights[2].layers[0]
    for w in weights * 3:
        assert_same(fn(w, x), torch.full((1, 2), float(w.config)))
    assert Weights.visits == visits
    assert fn.compile_count == 2
    assert "Weights(2 tensors, 24 B #" in fn.signatures[0]
    assert fn.signatures[0] != fn.signatures[1]


def test_frozen_trees_are_forgotten_and_never_donated(on):
    weights = Weights([on.put(torch.ones(2))], 1)
    with pytest.raises(ValueError, match="frozen"):
        on.jit(lambda w: w.layers[0] + 1, donate=("w",))(weights)
    consume = on.jit(lambda a, w=None: a * 2, donate=("a",))
    with pytest.raises(ValueError, match="donated tensor appears twice"):
        consume(weights.layers[0], weights)
    consume(weights.layers[0])
    with pytest.raises(RuntimeError, match="donated"):
        on.jit(lambda w: w.layers[0])(weights)
    gone = weakref.ref(weights)
    del weights
    gc.collect()
    assert gone() is None
    assert not any(flat.reference() is None for flat in trees._flat_trees.values())


def test_frozen_results_are_shared_not_copied(on):
    weights = Weights([on.put(torch.ones(2))], 1)
    fn = on.jit(lambda w, x: (w, x))
    result, _ = fn(weights, on.put(torch.ones(1)))
    assert result.layers[0] is weights.layers[0]


def test_a_tensor_in_a_frozen_tree_and_beside_it(on):
    fn = on.jit(lambda w, x: w.layers[0] + x)
    weights = Weights([on.put(torch.ones(2))], 1)
    assert_same(fn(weights, weights.layers[0]), torch.full((2,), 2.0))
    assert_same(fn(weights, weights.layers[0] * 3), torch.full((2,), 4.0))
    assert fn.compile_count == 1


def test_register_frozen_wants_a_node():
    with pytest.raises(ValueError, match="not a pytree node"):
        trees.register_frozen(int)


# --- progress, devices ----------------------------------------------------------------------


def test_progress_reports_each_compilation(on):
    events = []
    fn = on.jit(lambda x, n: x / n, progress=events.append)
    x = on.put(torch.ones(2))
    fn(x, 2)
    fn(x, 2)
    assert [event.phase for event in events] == ["trace", "compile", "done"]
    assert events[-1].signature == fn.signatures[0] and events[-1].seconds > 0
    with pytest.raises(ZeroDivisionError):
        on.jit(lambda x: 1 // 0, progress=events.append)(x)
    assert [event.phase for event in events[3:]] == ["trace", "failed"]


def test_device_put():
    tree = {"a": torch.arange(3), "b": [torch.ones(2, dtype=torch.bfloat16), None, 1.5]}
    remote = device_put(tree, "xla")
    assert remote["a"].device.type == "xla" and remote["b"][1:] == [None, 1.5]
    assert device_put(remote, "xla") is remote and device_put(tree, "cpu") is tree
    mixed = device_put([remote["a"], tree["a"]], "xla")
    assert mixed[0] is remote["a"]
    tree["a"].zero_()
    assert_same(remote["a"], torch.arange(3))  # a copy, which the source no longer reaches
    assert_same(device_put(remote["a"] + 1, "cpu"), torch.arange(3) + 1)
    with pytest.raises(ValueError, match="got 'cuda'"):
        device_put(tree, "cuda")


# --- in a process of their own --------------------------------------------------------------


@pytest.fixture(scope="module")
def fresh_process(tmp_path_factory):
    """What a new interpreter sees, with no environment variable set but a dump of the HLO.

    One process for several tests: importing torch-xla takes seconds.
    """
    directory = tmp_path_factory.mktemp("fresh")
    values, stderr = run_python(
        f"""
        import json, os, resource, torch
        from qwen35.xla.devices import device_put
        from qwen35.xla.jit import jit

        def memory():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * resource.getpagesize() / 1e6

        def step(state, x):
            return [s + x for s in state]

        kept = jit(step, cache_dir={str(directory / "cache")!r})
        x = device_put(torch.ones(()), "xla")
        kept(device_put([torch.ones(16), torch.ones(16)], "xla"), x)
        size = 16_000_000  # 64 MB each
        state = device_put([torch.zeros(size), torch.zeros(size)], "xla")
        donating = jit(step, donate=("state",))
        state = donating(state, x)
        state[0][:1].cpu()
        sizes = [memory()]
        for _ in range(20):
            state = donating(state, x)
            sizes.append(memory())
        value = state[1][:1].item()
        print(json.dumps([os.environ["PJRT_DEVICE"], value, *sizes, memory()]))
        """,
        XLA_FLAGS=f"--xla_dump_to={directory / 'hlo'} --xla_dump_hlo_as_text",
    )
    return directory, values, stderr


def test_nothing_set_means_the_cpu_without_a_warning(fresh_process):
    _, (device, *_), stderr = fresh_process
    assert device == "CPU"
    assert "PJRT_DEVICE" not in stderr


def test_hlo_aliases_donated_inputs_only(fresh_process):
    directory, _, _ = fresh_process
    texts = [path.read_text() for path in directory.glob("hlo/*after_optimizations.txt")]
    headers = [text.splitlines()[0] for text in texts]
    counts = {
        shape: [h.count("may-alias") for h in headers if f"->({shape}" in h]
        for shape in ("f32[16]{0}, ", "f32[16000000]{0}, ")
    }
    assert list(counts.values()) == [[0], [2]]


def test_memory_stays_flat(fresh_process):
    _, (_, value, start, *sizes), _ = fresh_process
    assert value == 21
    # Without donation a step would hold another 128 MB while it runs.
    assert max(sizes) - start < 32


def test_cache_dir_has_no_effect_on_the_cpu(fresh_process):
    directory, _, _ = fresh_process
    assert not (directory / "cache").exists()


@pytest.mark.slow
def test_torch_xla_cannot_read_its_cache_back_on_the_cpu(tmp_path):
    """Why cache_dir is off there. When this fails, it can be switched on."""
    code = f"""
        import json, torch, torch_xla
        torch_xla.runtime.initialize_cache({str(tmp_path)!r})
        print(json.dumps((torch.ones(2, device="xla") * 3).sum().item()))
        counter = torch_xla._XLAC._xla_counter_value
        print(json.dumps(counter("PersistentCacheHit") or 0))
        """
    run_python(code, PJRT_DEVICE="CPU")
    assert list(tmp_path.iterdir())
    hits, stderr = run_python(code, PJRT_DEVICE="CPU")
    assert hits == 0
    assert "Deserializing serialized executable not supported" in stderr


def test_manual_sharding_inside_jit():
    result, _ = run_python(
        """
        import json, numpy, torch
        from qwen35.xla.devices import device_put
        from qwen35.xla.environment import xla
        from qwen35.xla.jit import jit
        core = xla()._XLAC
        xla().runtime.use_spmd()
        import torch_xla.distributed.spmd as spmd
        mesh = spmd.Mesh(numpy.arange(4), (4,), ("tp",))

        def shard(tensor, *axes):
            tensor = device_put(tensor, "xla")
            spmd.mark_sharding(tensor, mesh, axes)
            return tensor

        def local(tensor):
            return core._spmd_full_to_shard_shape(tensor)

        def whole(tensor, shape, *axes):
            core._mark_manual_sharding(tensor, core.OpSharding([], [], [], 4))
            sharding = mesh.get_op_sharding(axes)
            return core._spmd_shard_to_full_shape(tensor, sharding, shape, tensor.dtype)

        shapes = []

        def step(weights, state, x):
            up, down, h = local(weights[0]), local(weights[1]), local(state)
            shapes.append([list(up.shape), list(down.shape), list(h.shape)])
            h = h + local(x) @ up
            y = core._xla_spmd_all_reduce("sum", torch.tanh(h) @ down, 1.0, [[0, 1, 2, 3]])
            return whole(h, (2, 16), None, "tp"), whole(y, (2, 8), None, None)

        generator = torch.Generator().manual_seed(0)
        up, down = (torch.randn(s, generator=generator) for s in ((8, 16), (16, 8)))
        x = torch.randn(2, 8, generator=generator)
        weights = [shard(up, None, "tp"), shard(down, "tp", None)]
        state, remote = shard(torch.zeros(2, 16), None, "tp"), shard(x, None, None)
        fn = jit(step, donate=("state",))
        expected, error = torch.zeros(2, 16), 0.0
        for _ in range(5):
            old = state
            state, y = fn(weights, state, remote)
            expected = expected + x @ up
            error = max(error, (y.cpu() - torch.tanh(expected) @ down).abs().max().item())
            try:
                old + 1
            except RuntimeError as e:
                assert "donated" in str(e)
        split = core._get_xla_sharding_spec(state)
        total = jit(lambda w: w.sum(0))
        sums = [total(shard(up, *axes)).cpu() for axes in ((None, "tp"), ("tp", None))]
        error = max(error, *((s - up.sum(0)).abs().max().item() for s in sums))
        print(json.dumps([error, fn.compile_count, total.compile_count, shapes, split]))
        """,
        CPU_NUM_DEVICES="4",
    )
    error, compilations, split_compilations, shapes, split = result
    assert error < 1e-5
    assert compilations == 1
    assert split_compilations == 2  # how a tensor is split is part of the signature
    assert shapes == [[[8, 4], [4, 8], [2, 4]]]
    assert split == "{devices=[1,4]0,1,2,3}"


def test_custom_calls_that_differ_only_in_their_configuration_do_not_collide():
    core = xla()._XLAC
    x = on_xla(torch.arange(4.0).reshape(2, 2))

    def compiled(config, attributes):
        """How many graphs XLA compiles for this kernel ("Sharding": the CPU runs it, as x)."""

        def kernel(x):
            shape, dtype = [[2, 2]], [torch.float32]
            call = core._xla_custom_call
            return call([x], "Sharding", shape, dtype, False, config, 1, attributes)[0]

        before = core._xla_counter_value("UncachedCompile") or 0  # None until there is one
        fn = jit(kernel)
        for _ in range(2):
            assert_same(fn(x), torch.arange(4.0).reshape(2, 2))
        return core._xla_counter_value("UncachedCompile") - before

    assert [compiled(*kernel) for kernel in (("a", {}), ("b", {}), ("a", {"k": "1"}))] == [1, 1, 1]
    assert [compiled(*kernel) for kernel in (("a", {}), ("b", {}), ("a", {"k": "1"}))] == [0, 0, 0]


def test_an_error_of_the_function_keeps_what_it_came_of():
    def fails(x):
        try:
            return {}["missing"]
        except KeyError:
            raise RuntimeError("not this one")  # noqa: B904 - its context is what is looked at

    with pytest.raises(RuntimeError, match="not this one") as caught:
        jit(fails)(on_xla(torch.ones(2)))
    assert isinstance(caught.value.__context__, KeyError)
    assert not caught.value.__suppress_context__
