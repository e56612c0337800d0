"""Loading kernels, the language check's reach, signatures per version, and host arguments."""

import builtins
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from qwen35.kernels import emulator

HEAD = "import nki\nimport nki.isa as nisa\nimport nki.language as nl\n\n"
KERNEL = (
    HEAD
    + """
@nki.jit
def kernel(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out, src=x)
    return out
"""
)


def ones():
    return np.ones((4, 4), np.float32)


def nki_modules():
    return {name: module for name, module in sys.modules.items() if name.split(".")[0] == "nki"}


@pytest.mark.parametrize(
    "broken", ["", "\nraise RuntimeError\n", "\n    1 +\n", "\nimport nki.mx\n"]
)
def test_no_fake_nki_stays_behind(broken):
    before, importer = nki_modules(), builtins.__import__
    try:
        emulator.simulate(emulator.load(KERNEL + broken, "kernel"), ones())
    except (RuntimeError, SyntaxError, emulator.EmulatorError):
        assert broken
    assert nki_modules() == before
    assert builtins.__import__ is importer


def test_loading_in_threads_leaves_imports_alone():
    seen = []

    def load():
        for _ in range(20):
            emulator.load(KERNEL, "kernel")
            seen.append(nki_modules())

    before = nki_modules()
    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(modules == before for modules in seen)


def test_a_path_a_module_name_and_a_source_load(tmp_path):
    path = tmp_path / "some_kernel.py"
    path.write_text(KERNEL)
    for source in (path, str(path), KERNEL):
        outputs, _ = emulator.simulate(emulator.load(source, "kernel"), ones())
        np.testing.assert_array_equal(outputs[0], ones())
    with pytest.raises(FileNotFoundError):
        emulator.load("no_such_module", "kernel")
    with pytest.raises(emulator.EmulatorError, match="defines no other"):
        emulator.load(KERNEL, "other")
    with pytest.raises(emulator.EmulatorError, match="not an @nki"):
        emulator.load(KERNEL, "nl")


def test_siblings_load_relatively_and_are_checked(tmp_path):
    (tmp_path / "parts.py").write_text(
        HEAD
        + textwrap.dedent("""
            SIZE = 4

            def double(tile):
                nisa.tensor_scalar(tile, tile, nl.multiply, 2.0)

            def broken(tile):
                if tile is None:
                    double(tile)
        """)
    )
    text = HEAD + textwrap.dedent("""
        from . import parts
        from .parts import SIZE, double


        @nki.jit
        def kernel(x):
            out = nl.ndarray((SIZE, 4), dtype=x.dtype, buffer=nl.shared_hbm)
            tile = nl.ndarray((SIZE, 4), dtype=x.dtype)
            nisa.dma_copy(dst=tile, src=x)
            double(tile)
            parts.CALLED(tile)
            nisa.dma_copy(dst=out, src=tile)
            return out
    """)
    path = tmp_path / "main.py"
    path.write_text(text.replace("CALLED", "double"))
    outputs, _ = emulator.simulate(emulator.load(path, "kernel"), ones())
    np.testing.assert_array_equal(outputs[0], 4 * ones())
    path.write_text(text.replace("CALLED", "broken"))
    with pytest.raises(emulator.LanguageError, match=r"parts.py:\d+: if tile is None"):
        emulator.simulate(emulator.load(path, "kernel"), ones())


@pytest.mark.parametrize("place", ["sibling", "if", "nowhere"])
def test_the_check_finds_kernels_wherever_they_are_defined(tmp_path, place):
    broken = "def kernel(x):\n    if x is None:\n        pass\n"
    (tmp_path / "parts.py").write_text(broken)
    path = tmp_path / "main.py"
    path.write_text(
        {
            "sibling": "import nki\nfrom .parts import kernel\n\nkernel = nki.jit(kernel)\n",
            "if": f"import nki\n\nif True:\n    {broken.replace(chr(10), chr(10) + '    ')}\n"
            "kernel = nki.jit(kernel)\n",
            "nowhere": f"import nki\n\nexec({broken!r})\nkernel = nki.jit(kernel)\n",
        }[place]
    )
    error = emulator.NotModelledError if place == "nowhere" else emulator.LanguageError
    with pytest.raises(error):
        emulator.simulate(emulator.load(path, "kernel"), ones())


def test_imports_relative_to_a_package_load(tmp_path):
    (tmp_path / "utils").mkdir()
    (tmp_path / "core").mkdir()
    (tmp_path / "utils" / "sizes.py").write_text("from .more import TWO\n\nSIZE = 2 * TWO\n")
    (tmp_path / "utils" / "more.py").write_text("TWO = 2\n")
    path = tmp_path / "core" / "main.py"
    path.write_text("from ..utils.sizes import SIZE\n" + KERNEL.replace("x.shape", "(SIZE, 4)"))
    outputs, _ = emulator.simulate(emulator.load(path, "kernel"), ones())
    np.testing.assert_array_equal(outputs[0], ones())
    path.write_text("from ..utils.absent import SIZE\n" + KERNEL)
    with pytest.raises(emulator.EmulatorError, match="there is no"):
        emulator.load(path, "kernel")


def test_a_mutated_text_takes_the_place_of_a_file(tmp_path):
    (tmp_path / "parts.py").write_text("FACTOR = 2.0\n")
    path = tmp_path / "main.py"
    path.write_text(
        HEAD
        + textwrap.dedent("""
            from .parts import FACTOR


            @nki.jit
            def kernel(x):
                out = nl.ndarray((4, 4), dtype=x.dtype, buffer=nl.shared_hbm)
                tile = nl.ndarray((4, 4), dtype=x.dtype)
                nisa.dma_copy(dst=tile, src=x)
                nisa.tensor_scalar(tile, tile, nl.multiply, FACTOR)
                nisa.dma_copy(dst=out, src=tile)
                return out
        """)
    )
    for texts, factor in (({}, 2), ({"parts": "FACTOR = 3.0"}, 3)):
        kernel = emulator.load(path, "kernel", texts)
        np.testing.assert_array_equal(emulator.simulate(kernel, ones()).outputs[0], factor * ones())
    mutant = path.read_text().replace("nl.multiply", "nl.add")
    kernel = emulator.load(path, "kernel", {"main": mutant})
    np.testing.assert_array_equal(emulator.simulate(kernel, ones()).outputs[0], 3 * ones())


def test_threads_run_kernels_apart():
    kernel, results = emulator.load(KERNEL, "kernel"), []

    def work(value):
        for _ in range(10):
            results.append((value, emulator.simulate(kernel, value * ones()).outputs[0]))

    threads = [threading.Thread(target=work, args=(value,)) for value in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 30
    assert all((output == value).all() for value, output in results)


def test_host_code_that_the_kernel_does_not_reach_is_free(run):
    source = KERNEL + textwrap.dedent("""
        import math


        def host(values, *, scale=1):
            if values is None:
                raise ValueError
            return [math.sqrt(v) * scale for v in values]
    """)
    emulator.simulate(emulator.load(source, "kernel"), ones())


LANGUAGE = {
    "identity": "if x is None:\n        pass",
    "comprehension": "n = [i for i in range(2)]",
    "raise": "if x.shape[0] == 0:\n        raise ValueError",
    "dict-key": "n = {(0, 1): 2}",
    "closure": "n = lambda i: i",
    "value-type": "n = 2**40 + 9999999999",
    "host-python": "n = globals()",
    "construct": "with open('f'):\n        pass",
}


@pytest.mark.parametrize("version", ["0.3", "0.4", "0.5", "0.6"])
@pytest.mark.parametrize("rule", LANGUAGE)
def test_language_per_version(rule, version):
    source = KERNEL.replace("    return out", f"    {LANGUAGE[rule]}\n    return out")
    kernel = emulator.load(source, "kernel")
    with pytest.raises(emulator.LanguageError) as caught:
        emulator.simulate(kernel, ones(), version=version)
    assert caught.value.rule == rule


CALLS = [
    ("nisa.tensor_tensor(t, t, t)", "missing a required argument: 'op'", ()),
    ("nisa.tensor_tensor(t, t, t, nl.add, mask=None)", "mask", ()),
    ("nisa.tensor_copy(t, dst=t, src=t)", "multiple values", ()),
    ("nisa.memset(t, 0.0, nisa.engine.vector, None, 1)", "too many positional", ()),
    ("nisa.arange(4)", "nki.isa has no arange", ()),
    ("nl.mgrid[0:4]", "nki.language has no mgrid", ()),
    ("nl.par_dim(t)", "nki.language has no par_dim", ()),
    ("nl.ndarray((4, 4), dtype=nl.float32, buffer='sbuf')", "buffer must be", ()),
    ("nl.ndarray(4, dtype=nl.float32)", "must be a tuple", ()),
    ("nisa.tensor_copy(t, t, engine=5)", "must be an nisa.engine", ()),
    ("nisa.tensor_copy(1.0, t)", "dst must be a tensor", ()),
    ("nl.program_id(axis=1)", "one axis", ()),
    ("nisa.topk(t, t, t, 2)", "exists in NKI 0.6 to 0.7, not in", ("0.6", "0.7")),
    ("nl.fori_loop(0, 2, t)", "exists in NKI 0.6 to 0.7, not in", ("0.6", "0.7")),
    ("nl.dynamic_range(2)", "exists in NKI 0.3 to 0.6, not in 0.7", ("0.3", "0.4", "0.5", "0.6")),
    ("nisa.tensor_copy_dynamic_src(t, t)", "exists in NKI 0.3 to 0.3, not in", ("0.3",)),
    ("t.slice(1, 0, 2)", "exists in NKI 0.5 to 0.7, not in", ("0.5", "0.6", "0.7")),
]


@pytest.mark.parametrize("version", ["0.3", "0.4", "0.5", "0.6", "0.7"])
@pytest.mark.parametrize(("call", "message", "exists"), CALLS)
def test_signatures_per_version(run, call, message, exists, version):
    body = f"t = load(x)\n{call}\nreturn output(t)"
    if version not in exists:
        with pytest.raises(emulator.SignatureError, match=message):
            run(body, x=ones(), version=version)
    else:
        try:
            run(body, x=ones(), version=version)
        except emulator.NotModelledError:
            pass  # documented for this version, and refused for what it is


def test_bfloat16_crosses_the_border_both_ways(run):
    x = np.array([[1.0, 1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, -0.0, np.inf, np.nan]], np.float32)
    host = emulator.HostTensor(x, "bfloat16")
    got = run("return output(load(x))", x=host).outputs[0]
    np.testing.assert_array_equal(got, [[1, 1, 1 + 2 * 2**-7, np.inf, 0, np.inf, np.nan]])
    assert np.signbit(got[0, 4])
    again = run("return output(load(x))", x=emulator.HostTensor.from_bits(host.cells, "bfloat16"))
    np.testing.assert_array_equal(again.outputs[0], got)


def test_integers_round_half_to_even_and_saturate(run):
    x = np.array([[0.5, 1.5, -0.5, -1.5, 2.4999, 300.0, -300.0, np.inf]], np.float32)
    body = """
        tile = load(x)
        signed = sbuf(x.shape, nl.int8)
        nisa.tensor_copy(signed, tile)
        unsigned = sbuf(x.shape, nl.uint8)
        nisa.dma_copy(dst=unsigned, src=tile)
        return output(signed), output(unsigned)
    """
    signed, unsigned = run(body, x=x).outputs
    np.testing.assert_array_equal(signed, [[0, 2, 0, -2, 2, 127, -128, 127]])
    np.testing.assert_array_equal(unsigned, [[0, 2, 0, 0, 2, 255, 0, 255]])
    with pytest.raises(emulator.NotModelledError, match="NaN"):
        run(body, x=np.full((1, 8), np.nan, np.float32))


def test_arguments_that_nki_does_not_have(run):
    with pytest.raises(emulator.NotModelledError, match="float64"):
        run("return output(load(x))", x=np.ones((4, 4)))
    kernel = emulator.load(KERNEL, "kernel")
    for options in ({"target": "trn1"}, {"version": "0.8"}, {"version": "0.2"}):
        with pytest.raises(emulator.NotModelledError):
            emulator.simulate(kernel, ones(), **options)
    with pytest.raises(emulator.EmulatorError, match="lnc must be"):
        emulator.simulate(kernel, ones(), lnc=3)
    with pytest.raises(emulator.EmulatorError, match="takes a kernel"):
        emulator.simulate(lambda x: x, ones())
    with pytest.raises(emulator.EmulatorError, match="run kernel with"):
        kernel(ones())


def test_inputs_are_not_changed_and_outputs_are_copies(run):
    x = ones()
    body = "t = load(x)\nnisa.memset(t, 2.0)\nreturn output(t)"
    outputs, _ = run(body, x=x)
    np.testing.assert_array_equal(x, ones())
    np.testing.assert_array_equal(outputs[0], 2 * ones())


def test_two_cores_share_the_outputs():
    source = KERNEL.replace(
        "nisa.dma_copy(dst=out, src=x)",
        "half = 2 * nl.program_id()\n"
        "    assert nl.num_programs() == 2\n"
        "    nisa.dma_copy(dst=out[half : half + 2, :], src=x[half : half + 2, :])",
    )
    x = np.arange(16, dtype=np.float32).reshape(4, 4)
    kernel = emulator.load(source, "kernel")
    for chosen in (emulator.simulate(kernel, x, lnc=2), emulator.simulate(kernel[2], x)):
        np.testing.assert_array_equal(chosen.outputs[0], x)


def test_the_emulator_imports_neither_torch_nor_nki():
    """Its files, taken out of the package (whose __init__ needs torch), import NumPy alone."""
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import emulator
assert not {"torch", "nki", "ml_dtypes"} & set(sys.modules), sorted(sys.modules)
"""
    kernels = emulator.__path__[0].rsplit("/", 1)[0]
    subprocess.run([sys.executable, "-c", code, kernels], check=True)


CLASS = """
class Sizes(nl.NKIObject):
    rows: int
    columns: int = 4
    scale = 2.0

    def __post_init__(self):
        self.shape = (self.rows, self.columns)


@dataclass
class Place(nl.NKIObject):
    first: int
    last: int = 4


@nki.jit
def kernel(x):
    sizes = Sizes(4, scale=3.0)
    place = Place(0)
    assert Sizes(4).scale == 2.0
    assert Sizes().rows == None
    out = nl.ndarray(sizes.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    tile = nl.ndarray(sizes.shape, dtype=x.dtype)
    nisa.dma_copy(dst=tile, src=x[place.first : place.last, :])
    nisa.tensor_scalar(tile, tile, nl.multiply, sizes.scale)
    nisa.dma_copy(dst=out, src=tile)
    return out
"""


def test_classes_get_the_documented_initializer():
    source = "from dataclasses import dataclass\n\n" + HEAD + CLASS
    outputs, _ = emulator.simulate(emulator.load(source, "kernel"), ones())
    np.testing.assert_array_equal(outputs[0], 3 * ones())
    for broken in ("Sizes(4, 4, 2.0, 1)", "Sizes(4, rows=4)", "Sizes(depth=4)"):
        kernel = emulator.load(source.replace("Sizes(4, scale=3.0)", broken), "kernel")
        with pytest.raises(emulator.SignatureError, match="Sizes"):
            emulator.simulate(kernel, ones())
