"""What jit promises of torch.compile's backends alone; test_jit has what is the same for XLA's."""

import dataclasses
from collections import OrderedDict, namedtuple

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils import _pytree

import qwen35
from qwen35.xla import trees
from qwen35.xla.jit import jit
from qwen35.xla.unusable import Donated

Pair = namedtuple("Pair", "first second")


def test_trees_come_back_as_they_are():
    def change(tree, scale):
        ordered, [a, b] = tree
        return OrderedDict(p=Pair(a * scale, "s"), n=None), [ordered["k"].first + b, scale, (b,)]

    fn = jit(change, backend="aot_eager")
    tree = OrderedDict(k=Pair(torch.ones(2), 3)), [torch.ones(2), torch.ones(1)]
    for scale in (2, 2.0, True):
        ordered, [total, same, (b,)] = fn(tree, scale)
        assert type(ordered) is OrderedDict and list(ordered) == ["p", "n"]
        assert type(ordered["p"]) is Pair and ordered["p"].second == "s" and ordered["n"] is None
        assert ordered["p"].first.tolist() == [scale, scale] and total.tolist() == [2, 2]
        assert type(same) is type(scale) and same == scale and b.tolist() == [1]
    assert fn.compile_count == 3


def test_a_graph_for_each_signature_and_no_limit_to_them():
    """More signatures than TorchDynamo compiles of one function, of one code."""
    functions = [jit(lambda x, n, c=c: x * n + c, backend="aot_eager") for c in range(3)]
    counters.clear()
    x, limit = torch.ones(2), torch._dynamo.config.recompile_limit
    for _ in range(2):
        for number in range(limit + 2):
            assert functions[0](x, number).tolist() == [number, number]
        assert [fn(x, 1)[0].item() for fn in functions] == [1, 2, 3]
    assert functions[0].compile_count == limit + 2
    assert counters["stats"]["unique_graphs"] == limit + 4 and not counters["graph_break"]


@dataclasses.dataclass(frozen=True)
class Matrix:
    weight: torch.Tensor


trees.register_frozen(_pytree.register_dataclass(Matrix) or Matrix)


def test_strides_are_part_of_a_signature_in_frozen_trees_alone():
    """Parameters stay as they lie; of other tensors, graphs take and give contiguous ones."""
    fn = jit(lambda w, x: (x @ w.weight, x.T), backend="aot_eager")
    x, weight = torch.arange(6.0).reshape(2, 3), torch.arange(9.0).reshape(3, 3)
    for given in (x, x.T.contiguous().T, torch.cat([x, x], 1)[:, :3]):
        for matrix in (Matrix(weight), Matrix(weight.T.contiguous().T)):
            product, turned = fn(matrix, given)
            assert product.equal(x @ weight) and turned.equal(x.T)
            assert product.is_contiguous() and turned.is_contiguous()
    assert fn.compile_count == 2


def test_results_are_values_that_share_no_memory():
    """With arguments, with closures, or with one another; so that none can change another."""
    constant = torch.ones(2)

    def f(a, b):
        c = a + b
        return a, a.view(2, 1), b[:1], constant, constant.view(1, 2), c, c.view(2, 1), c[:1]

    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    results = jit(f, donate=("b",), backend="aot_eager")(a, b)
    expected = f(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    for number, result in enumerate(results):
        assert all(x.equal(y) for x, y in zip(results[number:], expected[number:], strict=True))
        result.fill_(-1)
    assert a.tolist() == [1, 2] and constant.tolist() == [1, 1]


def test_a_donated_tensor_gives_up_its_memory():
    fn = jit(lambda state, x: (state["a"] + x, state["b"]), donate=("state",), backend="aot_eager")
    a, b = torch.zeros(4), torch.full((4,), 2.0)
    alias, memory = a.view(2, 2), b.untyped_storage().data_ptr()
    added, same = fn({"a": a, "b": b}, torch.ones(4))
    with torch._C.DisableTorchFunctionSubclass():
        assert a.untyped_storage().nbytes() == b.untyped_storage().nbytes() == 0
    assert type(a) is type(b) is Donated
    assert alias.tolist() == [[0, 0], [0, 0]], "the caller's own view keeps what it was"
    assert added.tolist() == [1] * 4 and same.tolist() == [2] * 4
    assert same.untyped_storage().data_ptr() == memory, "what is only passed on is not copied"


def test_random_numbers_advance_and_follow_the_seed():
    fn = jit(lambda x: (torch.rand_like(x), torch.rand_like(x)), backend="aot_eager")
    x = torch.zeros(64)
    torch.manual_seed(3)
    first = torch.stack([sample for _ in range(3) for sample in fn(x)])  # the first compiles
    torch.manual_seed(3)
    assert first.equal(torch.stack([sample for _ in range(3) for sample in fn(x)]))
    assert len(set(map(tuple, first.tolist()))) == 6 and 0.3 < first.mean() < 0.7


def test_closure_tensors_are_fixed_when_traced():
    captured = torch.ones(2)
    fn = jit(lambda x: x + captured, backend="aot_eager")
    for _ in range(2):
        assert fn(torch.zeros(2)).tolist() == [1, 1]
        captured.add_(1)


def test_lower_gives_the_graph_as_code_and_consumes_nothing():
    fn = jit(lambda state, x: state @ x, donate=("state",), backend="aot_eager")
    state, x = torch.ones(2, 3), torch.ones(3, 4)
    text = fn.lower(state, x=x)
    assert 'f32[2, 3]"' in text and "def forward(self" in text and "@" in text
    assert fn.compile_count == 0 and state.sum() == 6


def test_a_call_inside_somebody_elses_torch_compile_is_part_of_that():
    fn = jit(lambda x: x * 3, backend="aot_eager")
    whole = torch.compile(lambda x: fn(x) + 1, backend="eager", fullgraph=True)
    assert whole(torch.ones(2)).tolist() == [4, 4] and fn.compile_count == 0


def test_a_backend_that_is_not_there():
    with pytest.raises(ValueError, match=r"no backend 'indctor': .*aot_eager.*inductor"):
        jit(lambda x: x, backend="indctor")
    with pytest.raises(ValueError, match="cache_dir is XLA's"):
        jit(lambda x: x, backend="aot_eager", cache_dir="cache")


def test_what_cannot_be_one_graph_says_why():
    def prints(x):
        print("here")
        return x

    with pytest.raises(RuntimeError, match=r"prints: torch.compile can't take it as one graph: \w"):
        jit(prints, backend="aot_eager")(torch.ones(1))


def test_a_backend_that_fails_is_named():
    def broken(graph, inputs):
        raise OSError("no compiler here\nlong story")

    torch._dynamo.register_backend(broken, name="broken_here")
    fn = jit(lambda x: x + 1, donate=("x",), backend="broken_here")
    x = torch.ones(1)
    with pytest.raises(RuntimeError, match="'broken_here' can't compile it: OSError: no compiler"):
        fn(x)
    assert fn.compile_count == 0 and x.item() == 1, "nothing was consumed"


def test_a_torch_compile_that_is_switched_off_is_no_silent_constant():
    with torch.compiler.set_stance("force_eager"):
        with pytest.raises(RuntimeError, match=r"torch.compile is off"):
            jit(lambda x: x + 1, backend="aot_eager")(torch.ones(1))


def test_tensors_of_another_device_are_refused_by_the_backends_name():
    for backend, device in (("aot_eager", "xla"), ("openxla", "cpu")):
        tensor = qwen35.device_put(torch.ones(1), device)
        with pytest.raises(ValueError, match=rf"argument x is on {device}.*{backend!r} runs on"):
            jit(lambda x: x, backend=backend)(tensor)


def test_openxla_tells_arguments_apart_that_shared_data_in_the_first_call():
    """As results may that are passed on: whatever the first call is given, the graph has both."""
    first, second = qwen35.device_put((torch.tensor([1.0]), torch.tensor([2.0])), "xla")
    subtract = jit(lambda a, b: a - b, backend="openxla")
    calls = (((first, first.detach()), 0.0), ((second, first), 1.0), ((first, second), -1.0))
    for operands, difference in calls:
        assert subtract(*operands).cpu().tolist() == [difference]
    assert subtract.compile_count == 1
