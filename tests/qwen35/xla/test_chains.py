"""`chain` under jit: the same values as its loop, a graph for each run that is another."""

import time
import weakref

import pytest
import torch
from torch.utils import _pytree as pytree

from qwen35.xla import private
from qwen35.xla.chains import cannot_cut, chain
from qwen35.xla.devices import device_put
from qwen35.xla.environment import xla
from qwen35.xla.jit import jit
from qwen35.xla.observers import on_compile

RUNS = 4


def mix(carry, around, kept, state):
    """A step whose result shows every operand, and in which order the runs came."""
    new = {"sum": state["sum"] + carry.sum(), "last": carry * 1}
    return torch.tanh(carry @ kept) + around, new


def made(seed=0, sizes=(3,) * RUNS):
    draw = torch.Generator().manual_seed(seed)
    kept = [torch.randn(3, 3, generator=draw) for _ in sizes]
    states = [{"sum": torch.randn(n, generator=draw), "last": torch.zeros(2, 3)} for n in sizes]
    x, bias = torch.randn(2, 3, generator=draw), torch.randn(3, generator=draw)
    return kept, states, x, bias


def layers(kept, states, x, bias):
    y, new = chain(mix, x * 2, bias + 1, list(zip(kept, states, strict=True)))
    return y.sum(1), new, bias


def assert_close(actual, expected):
    ours, theirs = pytree.tree_leaves(device_put(actual, "cpu")), pytree.tree_leaves(expected)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def usable(tree):
    """Which of the tensors can still be read."""
    found = []
    for leaf in pytree.tree_leaves(tree):
        try:
            leaf.cpu()
        except RuntimeError as error:
            assert "donated" in str(error)
            found.append(False)
        else:
            found.append(True)
    return found


@pytest.mark.parametrize("donate", [(), ("states",), ("states", "x")])
def test_one_graph_serves_all_runs(donate):
    arguments = made()
    expected = layers(*arguments)
    again = layers(arguments[0], expected[1], *arguments[2:])
    fn = jit(layers, donate=donate)
    names = []
    with on_compile(lambda event: event.phase == "done" and names.append(event.name)):
        there = device_put(arguments, "xla")
        result = fn(*there)
        assert_close(result, expected)
        assert usable(there[1]) == [not donate] * 2 * RUNS
        assert usable(there[2]) == ["x" not in donate]
        kept, _, x, bias = device_put(arguments, "xla")
        assert_close(fn(kept, result[1], x, bias), again)
    assert names in (["mix", "layers"], ["layers"])  # another test may have had the body compiled
    assert fn.compile_count == 1 and "one graph" not in fn.signatures[0]
    assert fn.lower(*device_put(arguments, "xla")).count(" dot(") == RUNS


def narrow(carry, around, kept, state):
    return (carry * around)[: kept[1]], state + kept[0]


def test_runs_of_other_signatures_have_graphs_of_their_own():
    """The last has another static value and gives a smaller carry."""

    def f(weights, states, x):
        pairs = [
            ((w, 2 if w is weights[-1] else 4), s) for w, s in zip(weights, states, strict=True)
        ]
        return chain(narrow, x, x.sum(), pairs)

    arguments = list(torch.randn(3, 1)), list(torch.randn(3, 1)), torch.randn(4, 2)
    names = []
    with on_compile(lambda event: event.phase == "done" and names.append(event.name)):
        result = jit(f, donate="states")(*device_put(arguments, "xla"))
    assert_close(result, f(*arguments))
    assert [name.split(".")[-1] for name in names] == ["narrow", "narrow", "f"]


def drawing(carry, around, kept, state):
    return carry + 1, torch.rand(4, device=carry.device)


def test_seconds_of_runs_are_counted_once():
    sizes = (5, 6, 7, 8)  # which no other test's graphs have
    values = device_put(made(sizes=sizes), "xla")
    start = time.perf_counter()
    with on_compile() as seen:
        jit(layers).compile(*values)
    assert seen.count == 1 + len(sizes) and 0 < seen.seconds <= time.perf_counter() - start


def test_runs_that_draw_draw_different_numbers():
    def f(x, states):
        return chain(drawing, x, None, [(None, state) for state in states])

    x, states = device_put((torch.zeros(2), [torch.zeros(4)] * 3), "xla")
    y, drawn = device_put(jit(f)(x, states), "cpu")
    assert y.tolist() == [3, 3] and len(torch.stack(drawn).unique()) == 12


@pytest.mark.parametrize("donate", [(), ("states",)])
def test_states_made_inside(donate):
    """They are nobody's: what follows returns them, or computes with what it was given besides."""

    def f(kept, states, x, bias):
        fresh = [{"sum": s["sum"] * 0 + 5, "last": s["last"]} for s in states]
        y, new = chain(mix, x, bias, list(zip(kept, fresh, strict=True)))
        return y, new, x + 1

    arguments = made()
    there = device_put(arguments, "xla")
    assert_close(jit(f, donate=donate)(*there), f(*arguments))
    assert usable(there[0]) == [True] * RUNS


def old_state_too(kept, states, x, bias):
    y, new = chain(mix, x, bias, list(zip(kept, states, strict=True)))
    return y, new, states[0]["sum"] * 2


def new_state_read(kept, states, x, bias):
    y, new = chain(mix, x, bias, list(zip(kept, states, strict=True)))
    return y + new[0]["sum"].sum(), new


def twice(kept, states, x, bias):
    for _ in range(2):
        x, states = chain(mix, x, bias, list(zip(kept, states, strict=True)))
    return x, states


def nested(carry, around, kept, state):
    carry, new = chain(mix, carry, around, [(kept, state)])
    return carry, new[0]


def runs_of_runs(kept, states, x, bias):
    return chain(nested, x, bias, list(zip(kept, states, strict=True)))


def counting(carry, around, kept, state):
    return (carry[0] @ kept, carry[1] + 1), state["sum"] + around.sum()


def a_number_in_the_carry(kept, states, x, bias):
    return chain(counting, (x, 0), bias, list(zip(kept, states, strict=True)))


def custom(carry, around, kept, state):
    """A run with a custom call, whose graph has an output more: its salt."""
    y = carry * kept
    if y.device.type == "xla":  # "Sharding": the CPU runs it, as y
        call = xla()._XLAC._xla_custom_call
        y = call([y], "Sharding", [list(y.shape)], [torch.float32], False, "", 1, {})[0]
    return y + state, state * y + around


def custom_runs(kept, states, x):
    return chain(custom, x, x * 0, list(zip(kept, states, strict=True)))


def test_runs_may_have_custom_calls():
    x = torch.tensor([1.0, 2, 3])
    kept, states = ([torch.full((3,), n / 3) for n in (k, k + 1, k + 2)] for k in (2, 5))
    fn = jit(custom_runs)
    assert_close(fn(*device_put((kept, states, x), "xla")), custom_runs(kept, states, x))
    assert "one graph" not in fn.signatures[0]


def no_chain(kept, states, x, bias):
    cannot_cut("it is odd")
    return [mix(x, bias, *run) for run in zip(kept, states, strict=True)]


@pytest.mark.parametrize(
    ("function", "donate", "reason"),
    [
        (no_chain, (), "it is odd"),
        (a_number_in_the_carry, ("states",), "more than tensors"),
        (runs_of_runs, ("states",), "runs of its own"),
        (old_state_too, (), None),
        (old_state_too, ("states",), "old state"),
        (new_state_read, ("states",), "new state"),
        (twice, ("states",), "more than once"),
    ],
)
def test_what_can_not_be_cut_is_one_graph_that_says_why(function, donate, reason):
    arguments = made()
    fn, phases = jit(function, donate=donate), []
    with on_compile(lambda event: event.name == function.__name__ and phases.append(event.phase)):
        assert_close(fn(*device_put(arguments, "xla")), function(*arguments))
    assert phases == ["trace", "compile", "done"]
    (signature,) = fn.signatures
    assert ("one graph" in signature) == (reason is not None)
    assert reason is None or reason in signature


@pytest.mark.parametrize("failing", range(RUNS + 2))
def test_what_fails_midway_consumes_what_has_run_and_no_more(failing, monkeypatch):
    fn = jit(layers, donate=("states",))
    arguments = made()
    fn.compile(*device_put(arguments, "xla"))
    there = device_put(arguments, "xla")
    run, calls = private._run_cached_graph, []

    def failing_run(*args):
        calls.append(args)
        if len(calls) == failing + 1:
            raise RuntimeError("the device is lost")
        return run(*args)

    monkeypatch.setattr(private, "_run_cached_graph", failing_run)
    with pytest.raises(RuntimeError, match="lost"):
        fn(*there)
    consumed = 2 * max(0, min(failing - 1, RUNS))  # the first graph comes before all runs
    assert usable(there[1]) == [False] * consumed + [True] * (2 * RUNS - consumed)
    assert usable((there[0], there[2:])) == [True] * (RUNS + 2)
    monkeypatch.undo()
    assert_close(fn(*device_put(arguments, "xla")), layers(*arguments))


def test_what_runs_hand_on_is_let_go(monkeypatch):
    """Of the carries only the last one, and the one before it, are kept at a time."""
    fn = jit(layers)
    arguments = device_put(made(), "xla")
    fn.compile(*arguments)
    run, carries, alive = private._run_cached_graph, [], []

    def watched(*args):
        alive.append(sum(carry() is not None for carry in carries))
        outputs = run(*args)
        carries.extend(weakref.ref(out) for out in outputs if out.shape == (2, 3))
        return outputs

    monkeypatch.setattr(private, "_run_cached_graph", watched)
    expected = layers(*made())
    assert_close(fn(*arguments), expected)
    # Of each run the state's `last`, which is a result, and its carry; before them x * 2.
    assert alive == [0, 1, *(1 + number for number in range(1, RUNS)), RUNS + 1]


def unknown_kernel(carry, around, kept, state):
    from qwen35.xla.environment import xla

    call = xla()._XLAC._xla_custom_call  # of a kernel that the CPU does not have
    return call([carry], "missing", [[2]], [torch.float32], False, "", 1, {})[0], state + 1


def test_a_body_that_does_not_compile_consumes_nothing():
    fn = jit(lambda x, state: chain(unknown_kernel, x, None, [(None, state)] * 1), donate="state")
    x, state = device_put((torch.zeros(2), torch.ones(3)), "xla")
    with pytest.raises(ValueError, match="missing"):
        fn(x, state)
    assert state.tolist() == [1, 1, 1] and fn.compile_count == 0
