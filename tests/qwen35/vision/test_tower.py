"""The vision tower, held to transformers' in float32."""

import dataclasses
import functools
import math
import shutil
from collections import Counter

import pytest
import torch
from torch.utils import _pytree as pytree
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5VisionModel

import qwen35
from qwen35.forms.xla_cpu import attention
from qwen35.model.config import VisionConfig
from qwen35.model.params import VisionParams
from qwen35.vision import frames
from qwen35.vision import tower as vision
from qwen35.xla import compiled as compiled_functions
from qwen35.xla.observers import on_compile

# Activations are near 1 (10 at most): room for sums in another order, and nothing else.
assert_close = functools.partial(torch.testing.assert_close, rtol=0, atol=2e-5)

_BASE = {
    "depth": 3,
    "hidden_size": 48,
    "num_heads": 4,
    "intermediate_size": 80,
    "patch_size": 4,
    "out_hidden_size": 64,
    "num_position_embeddings": 25,
}
TOWERS: dict[str, dict] = {
    "base": {},
    "odd_widths_many_heads": {
        "hidden_size": 56,
        "num_heads": 14,
        "intermediate_size": 33,
        "out_hidden_size": 51,
        "num_position_embeddings": 9,
    },
    "published_head_one_channel": {
        "depth": 2,
        "hidden_size": 144,
        "num_heads": 2,
        "in_channels": 1,
        "num_position_embeddings": 2304,
    },
    "merge_3_one_frame_patches": {
        "spatial_merge_size": 3,
        "temporal_patch_size": 1,
        "patch_size": 2,
        "num_heads": 3,
        "num_position_embeddings": 1,
    },
}

# (frames, height, width) in tokens, so that they suit any merge size.
GRIDS: dict[str, list[tuple[int, int, int]]] = {
    "one_token": [(1, 1, 1)],
    "square": [(1, 4, 4)],
    "wide": [(1, 1, 11)],
    "tall": [(1, 9, 2)],
    "odd": [(1, 3, 5)],
    "several_images": [(1, 3, 5), (1, 3, 5), (1, 2, 7), (1, 1, 1)],
    "video": [(5, 2, 3)],
    "mixed": [(1, 5, 3), (3, 3, 5), (1, 5, 3), (2, 1, 4)],
    "more_frames_than_a_group": [(70, 2, 2)],
}


@dataclasses.dataclass(frozen=True, eq=False)
class Tower:
    """A transformers tower and ours with the same weights."""

    model: Qwen3_5VisionModel
    params: VisionParams

    @property
    def config(self) -> VisionConfig:
        return self.params.config

    def grid(self, name: str) -> list[tuple[int, int, int]]:
        """A grid of `GRIDS` in patches."""
        merge = self.config.spatial_merge_size
        return [(count, merge * height, merge * width) for count, height, width in GRIDS[name]]

    def patches(self, grid) -> torch.Tensor:
        """Random patches with what real ones have: neighbours that are alike, and a mean."""
        generator = torch.Generator().manual_seed(len(grid))
        count = sum(math.prod(size) for size in grid)
        drift = torch.randn(count, 1, generator=generator).cumsum(0) * 0.1
        return 0.5 + drift + 0.5 * torch.randn(count, self.config.patch_dim, generator=generator)

    @torch.no_grad()
    def expected(self, patches, grid) -> tuple[torch.Tensor, torch.Tensor]:
        """transformers' hidden states before the merger, and its merged ones."""
        result = self.model(patches, torch.tensor(grid))
        return result.last_hidden_state, result.pooler_output


@pytest.fixture(scope="module")
def tower(build_tower):
    """tower(name): a tower of `TOWERS`, built once."""
    return functools.cache(lambda name="base": Tower(*build_tower(_BASE | TOWERS[name])))


@pytest.fixture(scope="module")
def compiled(tower):
    """The base tower's parameters on the XLA device."""
    return qwen35.device_put(tower().params, "xla")


@pytest.mark.parametrize("grid", list(GRIDS))
@pytest.mark.parametrize("name", list(TOWERS))
def test_hidden_and_merged_are_those_of_transformers(tower, name, grid):
    case = tower(name)
    grid = case.grid(grid)
    patches = case.patches(grid)
    hidden, merged = case.expected(patches, grid)
    assert_close(vision.image_hidden_states(case.params, patches, grid), hidden)
    assert_close(qwen35.encode_images(case.params, patches, grid), merged)


@pytest.mark.parametrize(
    ("backend", "tolerance"),
    [
        ("aot_eager", 0),
        pytest.param("inductor", 2e-5, marks=pytest.mark.slow),
        pytest.param("openxla", 2e-5, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("nothing_compiled")
def test_a_backend_of_torch_compile_computes_the_same(tower, backend, tolerance):
    """One graph for each size of frames. By aot_eager its operations run one by one, so that bits
    are equal."""
    if backend == "inductor" and not any(map(shutil.which, ("g++", "clang++"))):
        pytest.skip("inductor needs a C++ compiler")
    case = tower()
    grid = case.grid("mixed")
    patches = case.patches(grid)
    device = "xla" if backend == "openxla" else "cpu"
    captured = qwen35.device_put(case.params.with_runtime(backend=backend), device)
    with on_compile() as seen:
        merged = qwen35.encode_images(captured, patches, grid).cpu()
    assert seen.count == len({height * width for _, height, width in grid})
    eager = qwen35.encode_images(case.params, patches, grid)
    torch.testing.assert_close(merged, eager, rtol=0, atol=tolerance)
    assert_close(merged, case.expected(patches, grid)[1])


def test_one_layer_of_the_27b_tower(build_tower):
    content = {"depth": 1, "out_hidden_size": 5120}
    case = Tower(*build_tower(content))
    assert case.config == dataclasses.replace(qwen35.presets["27b"].vision, depth=1)
    grid = [(1, 6, 10), (2, 4, 2)]
    patches = case.patches(grid)
    hidden, merged = case.expected(patches, grid)
    assert_close(vision.image_hidden_states(case.params, patches, grid), hidden)
    assert_close(qwen35.encode_images(case.params, patches, grid), merged)


def test_every_tensor_matters(tower):
    """Each, set to zero, moves the result by far more than the tolerance."""
    case = tower()
    grid = case.grid("mixed")
    patches = case.patches(grid)
    right = qwen35.encode_images(case.params, patches, grid)
    leaves, spec = pytree.tree_flatten(case.params)
    for place, leaf in enumerate(leaves):
        changed = [*leaves[:place], torch.zeros_like(leaf), *leaves[place + 1 :]]
        wrong = qwen35.encode_images(pytree.tree_unflatten(changed, spec), patches, grid)
        assert (wrong - right).abs().max() > 1e-2, place


@pytest.mark.usefixtures("nothing_compiled")
def test_compiled_is_transformers_too(tower, compiled):
    """One graph per padded size and kind of group, whatever the order and number of images."""
    case = tower()
    step = compiled_functions.compiled(vision.tower)
    before = step.compile_count
    for name in ("mixed", "odd", "several_images", "more_frames_than_a_group"):
        grid = case.grid(name)
        patches = case.patches(grid)
        hidden, merged = case.expected(patches, grid)
        result = qwen35.encode_images(compiled, patches, grid)
        assert result.device.type == "cpu"
        assert_close(result, merged)
        if name == "mixed":
            assert_close(vision.image_hidden_states(compiled, patches, grid), hidden)
    # 15 tokens pad to 16; 4, 14 and 1 stay; 4 as a group of 64 too.
    assert step.compile_count - before == 5


@pytest.mark.usefixtures("nothing_compiled")
def test_blocks_that_are_alike_share_a_graph(tower, compiled):
    """For each size of frames one for all three blocks, and one for what follows them; or one
    graph, where blocks can't be cut so."""
    case = tower()
    grid = case.grid("mixed")
    patches = case.patches(grid)
    hidden, merged = case.expected(patches, grid)
    step = compiled_functions.compiled(vision.tower)
    for segments, names in (("auto", ["_through_blocks", "tower"]), (2, ["tower"])):
        cut, made = compiled.with_runtime(segments=segments), []
        known = Counter(step.signatures)  # of all backends, one after the other
        with on_compile(lambda event, m=made: event.phase == "done" and m.append(event.name)):
            assert_close(qwen35.encode_images(cut, patches, grid), merged)
        assert made == names * len({height * width for _, height, width in grid})
        assert_close(vision.image_hidden_states(cut, patches, grid), hidden)
        reasons = [line.partition("one graph: ")[2] for line in Counter(step.signatures) - known]
        why = "" if segments == "auto" else "its 3 layers make no 2 equal segments; 3 would do)"
        assert set(reasons) == {why}


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 3e38, -1e30])
def test_padding_changes_nothing(tower, compiled, poison):
    case = tower()
    grid = [(3, 6, 6)]  # 9 tokens, padded to 10
    patches = case.patches(grid)
    [*_, group] = frames.groups(case.config, patches, grid)
    assert group.patches.shape == (1, 40, case.config.patch_dim) and group.count.item() == 36
    poisoned = group.patches.clone()
    poisoned[:, 36:] = poison
    poisoned = group._replace(patches=poisoned)
    _, merged = case.expected(patches, grid)
    right = vision.tower(case.params, group)
    assert torch.equal(vision.tower(case.params, poisoned)[:, :9], right[:, :9])
    assert_close(right[0, :9], merged[18:])
    step = compiled_functions.compiled(vision.tower)
    out = step(compiled, qwen35.device_put(poisoned, "xla")).cpu()
    assert torch.equal(out[:, :9], step(compiled, qwen35.device_put(group, "xla")).cpu()[:, :9])
    assert_close(out[0, :9], merged[18:])


def test_scores_of_padding_do_not_drown_the_others(build_tower):
    """Patches that are nearly alike, queries that are opposite to keys: scores far below 0.

    Padding, which would score 0, leaves nothing of the others in a softmax that subtracts the
    greatest score of all. Scores of hundreds are exact to 1e-4 or so in float32.
    """

    def oppose(model):
        weight, bias = (getattr(model.blocks[0].attn.qkv, name).data for name in ("weight", "bias"))
        model.pos_embed.weight.data.zero_()
        width = model.config.hidden_size
        weight[:width] = -64 * weight[width : 2 * width]
        bias[: 2 * width] = 0

    case = Tower(*build_tower(_BASE | {"depth": 1}, prepare=oppose))
    grid = [(1, 6, 6)]  # 36 patches, padded to 40
    patches = 0.1 * case.patches(grid)
    _, merged = case.expected(patches, grid)
    for params in (case.params, qwen35.device_put(case.params, "xla")):
        torch.testing.assert_close(
            qwen35.encode_images(params, patches, grid), merged, rtol=0, atol=5e-4
        )


@pytest.mark.parametrize(
    ("queries", "scores", "block"),
    [
        (1, 1, (1, 5)),
        (10, 400, (1, 10)),
        (10, 3 * 400, (2, 10)),
        (40, 40**2, (1, 40)),
        (128, 4 * 40**2, (4, 40)),
    ],
)
def test_blocks_of_scores_are_exact(tower, compiled, monkeypatch, queries, scores, block):
    """Of the 4 heads' 40 queries: 5, 10, 10 of two heads, a head's and all at a time."""
    case = tower()
    grid = [(1, 6, 6)]
    patches = case.patches(grid)
    monkeypatch.setattr(attention, "_FRAME_QUERIES", queries)
    monkeypatch.setattr(attention, "_FRAME_SCORES", scores)
    assert attention.score_block(4, 40) == block
    [group] = frames.groups(case.config, patches, grid)
    _, merged = case.expected(patches, grid)
    in_blocks = case.params.with_runtime(forms="xla_cpu")
    for params in (case.params, in_blocks):
        assert_close(vision.tower(params, group)[0, :9], merged)
    group = qwen35.device_put(group, "xla")
    step = qwen35.jit(lambda params, group: vision.tower(params, group))
    assert_close(step(compiled, group)[0, :9].cpu(), merged)


def test_compiled_gradients_are_those_of_transformers(tower, compiled):
    """Differentiated inside the compiled function, where the loops are unrolled."""
    case = tower()
    grid = [(1, 6, 6)]
    patches = case.patches(grid)
    leaf = case.patches(grid).requires_grad_()
    [theirs] = torch.autograd.grad(
        case.model(leaf, torch.tensor(grid)).pooler_output.square().sum(), leaf
    )

    @qwen35.jit
    def gradient(params, group):
        patches = group.patches.clone().requires_grad_()
        out = vision.tower(params, group._replace(patches=patches))[:, :9]
        return torch.autograd.grad(out.square().sum(), patches)[0]

    [group] = frames.groups(case.config, patches, grid)
    mine = gradient(compiled, qwen35.device_put(group, "xla")).cpu()
    assert not mine[:, 36:].any()
    assert (mine[0, :36] - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_padded_sizes():
    """Never a quarter more than needed, and as many sizes and graphs as documented."""
    config = qwen35.presets["27b"].vision
    padded = [frames.padded_patches(config, 4 * tokens) for tokens in range(1, 16385)]
    for tokens, size in enumerate(padded, 1):
        assert size % 4 == 0 and 4 * tokens <= size < 1.25 * 4 * tokens
    assert padded == sorted(padded)
    assert frames.padded_sizes(config, 65536) == sorted(set(padded))
    assert [size // 4 for size in sorted(set(padded))[:13]] == [*range(1, 9), 10, 12, 14, 16, 20]
    for patches, sizes, graphs in ((4096, 36, 60), (16384, 44, 68), (65536, 52, 76)):
        assert len(frames.padded_sizes(config, patches)) == sizes
        assert frames.graph_count(config, patches) == graphs


def test_bfloat16_is_as_close_as_transformers(tower):
    case = tower("published_head_one_channel")
    grid = case.grid("mixed")
    patches = case.patches(grid)
    _, exact = case.expected(patches, grid)
    low = pytree.tree_map(lambda leaf: leaf.bfloat16(), case.params)
    result = qwen35.encode_images(low, patches, grid)
    assert result.dtype == torch.bfloat16
    model = Qwen3_5VisionModel(case.model.config).eval()
    model.load_state_dict(case.model.state_dict())
    with torch.no_grad():
        theirs = model.bfloat16()(patches, torch.tensor(grid)).pooler_output
    assert (result - exact).norm() < 1.2 * (theirs - exact).norm() < 0.05 * exact.norm()


def test_gradients_are_those_of_transformers(tower):
    case = tower()
    grid = case.grid("mixed")
    patches = case.patches(grid).requires_grad_()
    projection = torch.linspace(-1, 1, case.config.out_hidden_size)
    expected = case.model(patches, torch.tensor(grid)).pooler_output @ projection
    [theirs] = torch.autograd.grad(expected.square().sum(), patches)
    leaf = case.params.positions.clone().requires_grad_()
    params = dataclasses.replace(case.params, positions=leaf)
    result = (qwen35.encode_images(params, patches, grid) @ projection).square().sum()
    mine, positions = torch.autograd.grad(result, [patches, leaf])
    scale = theirs.abs().max()
    assert (mine - theirs).abs().max() < 1e-4 * scale
    loss = (case.model(patches, torch.tensor(grid)).pooler_output @ projection).square().sum()
    [table] = torch.autograd.grad(loss, case.model.pos_embed.weight)
    assert (positions - table).abs().max() < 1e-4 * table.abs().max()


BAD = {
    "width": (torch.zeros(16, 95), [(1, 4, 4)], "96", "95"),
    "no_rows_and_columns": (torch.zeros(16 * 96), [(1, 4, 4)], "1536"),
    "integers": (torch.zeros(16, 96, dtype=torch.uint8), [(1, 4, 4)], "uint8"),
    "too_few": (torch.zeros(15, 96), [(1, 4, 4)], "16", "15"),
    "too_many": (torch.zeros(20, 96), [(1, 4, 4)], "16", "20"),
    "odd_height": (torch.zeros(12, 96), [(1, 2, 2), (1, 3, 4)], "grid[1]", "3 x 4", "2"),
    "odd_width": (torch.zeros(12, 96), [(1, 4, 3)], "4 x 3"),
    "zero": (torch.zeros(0, 96), [(1, 0, 4)], "grid[0]", "(1, 0, 4)"),
    "no_frames": (torch.zeros(0, 96), [(0, 4, 4)], "(0, 4, 4)"),
    "negative": (torch.zeros(16, 96), [(1, -4, -4)], "-4"),
    "fraction": (torch.zeros(16, 96), [(1, 4, 4.5)], "4.5"),
    "two_numbers": (torch.zeros(16, 96), [(4, 4)], "(4, 4)"),
    "empty": (torch.zeros(0, 96), [], "empty"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_refused_with_numbers(tower, name):
    patches, grid, *words = BAD[name]
    with pytest.raises(ValueError) as error:
        qwen35.encode_images(tower().params, patches, grid)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("device", ["cpu", "xla"])
def test_patches_that_are_not_finite_are_named(tower, compiled, device, value):
    case = tower()
    patches = case.patches([(1, 4, 4)])
    patches[7, 3] = patches[9, 0] = value
    params = case.params if device == "cpu" else compiled
    with pytest.raises(ValueError, match=r"patch 7 of 16 .*\(2 do\)"):
        qwen35.encode_images(params, patches, [(1, 4, 4)])


def test_a_grid_may_be_a_tensor_and_patches_may_be_on_the_device(tower, compiled):
    case = tower()
    patches = case.patches([(1, 4, 4)])
    right = qwen35.encode_images(compiled, patches, [(1, 4, 4)])
    uploaded = qwen35.device_put(patches, "xla")
    assert torch.equal(qwen35.encode_images(compiled, uploaded, torch.tensor([[1, 4, 4]])), right)
