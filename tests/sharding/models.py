"""Small models whose heads fall in every way that the layout knows, and what is done with them."""

import dataclasses

import torch
from torch.utils import _pytree as pytree

import qwen35
from qwen35.model.declarations import declarations, declare
from qwen35.model.yarn import Yarn
from qwen35.prompts.processor import Images, Prompt

_SMALL = {
    "vocab_size": 160,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "head_dim": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "partial_rotary_factor": 0.5,
    "mrope_section": (1, 1, 0),
    "eos_token_id": 3,
}

CONFIGS = {
    # The heads of 27b: at tp 8 each KV head is on two ranks, at 16 on four, with padded queries.
    "heads_of_27b": qwen35.Config(
        **_SMALL,
        num_attention_heads=24,
        num_key_value_heads=4,
        linear_num_key_heads=16,
        linear_num_value_heads=48,
    ),
    # The heads of 0.8b, tied: one head matrix serves the embedding too.
    "heads_of_0.8b_tied": qwen35.Config(
        **_SMALL,
        num_attention_heads=8,
        num_key_value_heads=2,
        linear_num_key_heads=16,
        linear_num_value_heads=16,
        tie_word_embeddings=True,
    ),
    # One layer of each kind, quick to compile.
    "two_layers": qwen35.Config(
        **(_SMALL | {"num_hidden_layers": 2}),
        num_attention_heads=6,
        num_key_value_heads=1,
        linear_num_key_heads=2,
        linear_num_value_heads=6,
        layer_types=("linear_attention", "full_attention"),
    ),
    # Two equal pairs of these.
    "two_blocks": qwen35.Config(
        **_SMALL,
        num_attention_heads=6,
        num_key_value_heads=1,
        linear_num_key_heads=2,
        linear_num_value_heads=6,
        layer_types=("linear_attention", "full_attention") * 2,
    ),
    # Every axis splits 8 ways without copies or padding; YaRN stretches positions.
    "even": qwen35.Config(
        yarn=Yarn(4.0, 8),
        **(_SMALL | {"hidden_size": 40, "linear_key_head_dim": 16}),
        num_attention_heads=16,
        num_key_value_heads=8,
        linear_num_key_heads=8,
        linear_num_value_heads=16,
        layer_types=("full_attention", "linear_attention", "linear_attention", "full_attention"),
    ),
}


def wide_params(config: qwen35.Config, seed: int = 0) -> qwen35.Params:
    """Parameters that all matter: norms, decays and gates vary, activations stay near 1."""
    generator = torch.Generator().manual_seed(seed)
    params = qwen35.init_params(config)
    for parameter, leaf in zip(
        declarations(declare(config)), pytree.tree_leaves(params), strict=True
    ):
        name = parameter.pieces[0].source.name
        if name.endswith("A_log"):
            leaf.uniform_(-3.0, 1.5, generator=generator)
        elif name.endswith("dt_bias"):
            leaf.normal_(-1.0, 1.0, generator=generator)
        elif leaf.dim() == 1:
            leaf.normal_(float(name.endswith("linear_attn.norm.weight")), 0.3, generator=generator)
        elif name.endswith("embed_tokens.weight"):
            leaf.normal_(0.0, 4.0 * config.hidden_size**-0.5, generator=generator)
        else:
            # Layers add less than the embedding brings, or each norm would magnify the rounding
            # of the layer before, and a correct sum in another order would drift.
            scale = 0.4 if name.endswith(("out_proj.weight", "o_proj.weight")) else 1.0
            leaf.normal_(0.0, scale * leaf.shape[0] ** -0.5, generator=generator)
    return params


@dataclasses.dataclass
class Said:
    """What a model said: named logits, the greedy tokens, and the state after them."""

    logits: dict[str, torch.Tensor]
    tokens: torch.Tensor
    state: qwen35.State


PROMPT, LENGTHS, STEPS = 13, (13, 5), 64

# Two prompts of four tokens, and two tokens more for each.
GROWN = [[5, 9, 2, 77, 31, 8], [140, 3, 66, 12, 99, 1]]


@torch.no_grad()
def exercise(
    params: qwen35.Params,
    *,
    prefill=qwen35.prefill,
    decode=qwen35.decode,
    start=qwen35.init_state,
    put=lambda tensor: tensor,
    get=lambda tree: tree,
    rows: slice = slice(None),
    steps: int = STEPS,
) -> Said:
    """Ragged prefill, a split prompt, an idle row and 64 greedy steps, on two rows or some of them.

    The functions in between make it run on other devices: `put` takes a CPU tensor there, `get`
    brings a tree of results back.
    """
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(params.config.vocab_size, (2, PROMPT), generator=generator)[rows]
    lengths = torch.tensor(LENGTHS, dtype=torch.int32)[rows]
    batch, capacity = tokens.shape[0], PROMPT + steps + 1
    said = {}

    whole, state = prefill(params, start(params, batch, capacity), put(tokens), put(lengths))
    said["prefill"] = get(whole)
    split = start(params, batch, capacity)
    for first, last in ((0, 1), (1, 6), (6, PROMPT)):
        part = (lengths - first).clamp(0, last - first).to(torch.int32)
        logits, split = prefill(params, split, put(tokens[:, first:last].contiguous()), put(part))
        said[f"split prefill to {last}"] = get(logits)
    idle = put(torch.tensor([False, True])[rows].contiguous())
    logits, state = decode(params, state, put(tokens[:, 0].contiguous()), idle)
    said["decode with an idle row"] = get(logits)

    token, chosen = said["prefill"].argmax(-1), []
    for step in range(steps):
        logits, state = decode(params, state, put(token), None)
        said[f"decode {step}"] = get(logits)
        token = said[f"decode {step}"].argmax(-1)
        chosen.append(token)
    return Said(said, torch.stack(chosen, 1), get(state))


ROOM = 64  # tokens of a conversation, at most


@torch.no_grad()
def read(params: qwen35.Params, state, tokens: list[int], one_by_one: bool):
    """Logits after the tokens of one row, and the state."""
    pieces = torch.tensor([tokens]).split(1 if one_by_one else len(tokens), 1)
    for piece in pieces:
        step = (qwen35.decode, piece[:, 0]) if one_by_one else (qwen35.prefill, piece)
        logits, state = step[0](params, state, step[1])
    return logits, state


@torch.no_grad()
def follow(params: qwen35.Params, state, logits: torch.Tensor) -> list[int]:
    """The likeliest tokens that come next."""
    said = []
    for _ in range(5):
        said.append(int(logits.argmax(-1)))
        logits, state = qwen35.decode(params, state, torch.tensor(said[-1:]))
    return said


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a share of the largest expected value (of 1 if all are 0)."""
    actual, expected = actual.double(), expected.double()
    return ((actual - expected).abs().max() / (expected.abs().max() or 1)).item()


def gradients(params: qwen35.Params, mesh) -> tuple[float, list[torch.Tensor]]:
    """The next-token loss of a prompt and its gradient by every parameter, in tree order."""
    index, params = params.tp_index, dataclasses.replace(params, tp_index=None)
    leaves, spec = pytree.tree_flatten(params)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    params = dataclasses.replace(pytree.tree_unflatten(leaves, spec), tp_index=index)
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(params.config.vocab_size, (2, 9), generator=generator)
    hidden, _ = qwen35.forward(params, qwen35.init_state(params, 2, 9), tokens)
    logits = qwen35.logits(params, hidden)[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    return loss.item(), list(torch.autograd.grad(loss / mesh.tp, leaves))


@torch.no_grad()
def look(
    params: qwen35.Params,
    *,
    prefill=qwen35.prefill,
    decode=qwen35.decode,
    put=lambda tensor: tensor,
    get=lambda tree: tree,
) -> list[torch.Tensor]:
    """Logits of two ragged prompts with an image each, read in pieces that cut both, and after.

    Whatever is not to be looked at is NaN or absurd.
    """
    image, video = 5, 6
    config = dataclasses.replace(params.config, image_token_id=image, video_token_id=video)
    params = dataclasses.replace(params, config=config)
    generator = torch.Generator().manual_seed(9)
    length, lengths = 16, torch.tensor([16, 11])
    tokens = torch.randint(10, config.vocab_size, (2, length), generator=generator)
    tokens[0, 3:12], tokens[1, 1:9] = image, video
    tokens[1, 11:] = 2**31 - 1
    embeds = torch.randn(2, length, config.hidden_size, generator=generator)
    embeds[(tokens != image) & (tokens != video)] = float("nan")
    positions = torch.randint(40, (3, 2, length), generator=generator)
    said, state = [], qwen35.init_state(params, 2, length + 4)
    for first, last in ((0, 4), (4, 8), (8, 12), (12, 16)):
        part = (lengths - first).clamp(0, last - first)
        pieces = (tokens[:, first:last], part, embeds[:, first:last], positions[..., first:last])
        logits, state = prefill(params, state, *(put(piece.contiguous()) for piece in pieces))
        said.append(get(logits))
    for token in ([11, 12], [13, 14]):
        logits, state = decode(params, state, put(torch.tensor(token)), None)
        said.append(get(logits))
    return said


GRID = [(1, 4, 6), (3, 2, 2), (1, 2, 10)]  # two pictures and a video; no frame fills its padding


@torch.no_grad()
def picture_vectors(params: qwen35.Params) -> torch.Tensor:
    """What the vision tower makes of random patches."""
    count = sum(frames * height * width for frames, height, width in GRID)
    generator = torch.Generator().manual_seed(4)
    patches = torch.randn(count, params.config.vision.patch_dim, generator=generator)
    return qwen35.encode_images(params.vision, patches, GRID)


def picture_prompt(config: qwen35.Config, words: list[int], seed: int) -> Prompt:
    """Words, a picture of random patches of 4 x 6, and words again."""
    before, after, places, side = words[:2], words[2:], 2 * 3, len(words[:2])
    patches = torch.randn(4 * 6, config.vision.patch_dim, generator=torch.manual_seed(seed))
    tokens = torch.tensor([[*before, *[config.image_token_id] * places, *after]])
    rows = torch.stack([torch.zeros(6), torch.arange(6) // 3, torch.arange(6) % 3]) + side
    text = torch.arange(side), torch.arange(len(after)) + side + 3
    positions = torch.cat([text[0].expand(3, -1), rows.long(), text[1].expand(3, -1)], 1)
    images = Images(patches, ((1, 4, 6),), torch.arange(side, side + places))
    return Prompt("", tokens, positions[:, None], images)


class Letters:
    """A tokenizer of code points."""

    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, tokens, skip_special_tokens=False):
        return "".join(chr(0x4E00 + token) for token in tokens)


def generated(params: qwen35.Params) -> list[tuple[int, ...]]:
    """What `generate` says: prompts of several lengths, each row with settings of its own."""
    prompts = [[1, 2, 3], [4] * 20, [7, 8], [9, 1]]
    sampling = [
        qwen35.Sampling(),
        qwen35.Sampling(1.0, seed=3, top_k=9),
        qwen35.Sampling(0.8, seed=4, repetition_penalty=1.3),
        qwen35.Sampling(banned=[4]),
    ]
    said = qwen35.generate(params, Letters(), prompts, max_new_tokens=10, sampling=sampling)
    return [row.tokens for row in said]
