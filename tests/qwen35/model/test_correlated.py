"""Vision embeddings with a strong common mean through the whole model, against an fp64 loop.

Tokens of one picture are alike, so their keys are nearly parallel; with beta near 1 and weak
decay the system that a DeltaNet chunk solves is then ill-conditioned for methods that form
powers of it (kernels of other ports lose all digits here). The reference goes token by token in
fp64 from the checkpoint's tensors, without anything of ours or of transformers.
"""

import copy

import pytest
import torch
from torch.nn import functional as F

import qwen35

ROWS, COLUMNS = 14, 20
BEFORE, AFTER = 7, 9
LENGTH = BEFORE + ROWS * COLUMNS + AFTER
# Of logits whose standard deviation is about 0.5; fp32 rounding alone is a tenth of it.
TOLERANCE = 1e-4


class Loop:
    """The text decoder, one token at a time, in fp64."""

    def __init__(self, model):
        self.config = model.config.get_text_config()
        self.weights = {k: v.detach().double() for k, v in model.state_dict().items()}
        self.caches = [{} for _ in range(self.config.num_hidden_layers)]
        self.keys, self.betas, self.decays = [], [], []  # of the first layer, to look at

    def __call__(self, embeds, positions):
        """Logits [T, V] of embeddings [T, H] at positions [3, T]."""
        return torch.stack([self.token(x, p) for x, p in zip(embeds, positions.T, strict=True)])

    def token(self, x, position):
        for number, kind in enumerate(self.config.layer_types):
            self.number, name = number, f"model.language_model.layers.{number}."
            w = {k[len(name) :]: v for k, v in self.weights.items() if k.startswith(name)}
            mixer = self.deltanet if kind == "linear_attention" else self.attention
            normed = self.norm(x, w["input_layernorm.weight"])
            x = x + mixer(w, normed, self.caches[number], position)
            y = self.norm(x, w["post_attention_layernorm.weight"])
            gate = F.silu(w["mlp.gate_proj.weight"] @ y)
            x = x + w["mlp.down_proj.weight"] @ (gate * (w["mlp.up_proj.weight"] @ y))
        x = self.norm(x, self.weights["model.language_model.norm.weight"])
        return self.weights["lm_head.weight"] @ x

    def norm(self, x, weight):
        scale = (x.square().mean(-1, keepdim=True) + self.config.rms_norm_eps).rsqrt()
        return x * scale * (1 + weight)

    def deltanet(self, w, x, cache, position):
        config = self.config
        heads, groups = config.linear_num_value_heads, config.linear_num_key_heads
        size, width = config.linear_key_head_dim, config.linear_value_head_dim
        w = {k.removeprefix("linear_attn."): v for k, v in w.items()}
        taps = config.linear_conv_kernel_dim
        window = cache.setdefault(
            "window", [torch.zeros_like(w["in_proj_qkv.weight"][:, 0])] * taps
        )
        window[:] = [*window[1:], w["in_proj_qkv.weight"] @ x]
        mixed = F.silu((torch.stack(window, 1) * w["conv1d.weight"][:, 0]).sum(1))
        query, key, value = mixed.split([groups * size, groups * size, heads * width])
        query, key = (t.view(groups, size) for t in (query, key))
        query, key = (t * (t.square().sum(-1, True) + 1e-6).rsqrt() for t in (query, key))
        query, key = (t.repeat_interleave(heads // groups, 0) for t in (query * size**-0.5, key))
        beta = (w["in_proj_b.weight"] @ x).sigmoid()
        log_decay = -w["A_log"].exp() * F.softplus(w["in_proj_a.weight"] @ x + w["dt_bias"])
        if self.number == 0:
            self.keys.append(key), self.betas.append(beta), self.decays.append(log_decay.exp())
        state = cache.get("state", torch.zeros(heads, size, width).double())
        state = state * log_decay.exp()[:, None, None]
        read = torch.einsum("hk,hkv->hv", key, state)
        write = beta[:, None] * (value.view(heads, width) - read)
        cache["state"] = state = state + torch.einsum("hk,hv->hkv", key, write)
        out = torch.einsum("hk,hkv->hv", query, state)
        scale = (out.square().mean(-1, True) + config.rms_norm_eps).rsqrt()
        gate = F.silu((w["in_proj_z.weight"] @ x).view(heads, width))
        return w["out_proj.weight"] @ (out * scale * w["norm.weight"] * gate).flatten()

    def attention(self, w, x, cache, position):
        config = self.config
        heads, groups, size = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        w = {k.removeprefix("self_attn."): v for k, v in w.items()}
        query, gate = (w["q_proj.weight"] @ x).view(heads, 2, size).unbind(1)
        key = (w["k_proj.weight"] @ x).view(groups, size)
        query = self.rotate(self.norm(query, w["q_norm.weight"]), position)
        key = self.rotate(self.norm(key, w["k_norm.weight"]), position)
        cache.setdefault("key", []).append(key.repeat_interleave(heads // groups, 0))
        value = (w["v_proj.weight"] @ x).view(groups, size).repeat_interleave(heads // groups, 0)
        cache.setdefault("value", []).append(value)
        scores = torch.einsum("hd,thd->ht", query, torch.stack(cache["key"])) * size**-0.5
        out = torch.einsum("ht,thd->hd", scores.softmax(-1), torch.stack(cache["value"]))
        return w["o_proj.weight"] @ (out * gate.sigmoid()).flatten()

    def rotate(self, x, position):
        rope = self.config.rope_parameters
        dim = int(self.config.head_dim * rope["partial_rotary_factor"])
        angles = torch.zeros(dim // 2).double()
        for j in range(dim // 2):
            row = j % 3 if j < 3 * rope["mrope_section"][j % 3] else 0
            angles[j] = position[row] * rope["rope_theta"] ** (-2 * j / dim)
        first, second, rest = x.split([dim // 2, dim // 2, x.shape[-1] - dim], -1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)


@pytest.fixture(scope="module")
def hard(multimodal, tmp_path_factory):
    """The checkpoint with weak decay, and beta near 1 on what the embeddings have in common."""
    model = copy.deepcopy(multimodal.model)
    generator = torch.Generator().manual_seed(1)
    hidden = model.config.text_config.hidden_size
    common = torch.randn(hidden, generator=generator)
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            if hasattr(layer, "linear_attn"):
                layer.linear_attn.dt_bias.fill_(-6.0)
                layer.linear_attn.in_proj_b.weight.add_(0.6 * common / common.norm())
    directory = tmp_path_factory.mktemp("hard")
    model.save_pretrained(directory)
    noise = torch.randn(ROWS * COLUMNS, hidden, generator=generator)
    return model, directory, 0.6 * (common + 0.15 * noise)


@pytest.fixture(scope="module")
def prompt(hard):
    """tokens [1, T], embeds [1, T, H], positions [3, 1, T], and the loop after reading them."""
    model, _, vectors = hard
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(900, (1, LENGTH), generator=generator)
    tokens[:, BEFORE:-AFTER] = model.config.image_token_id
    embeds = torch.zeros(1, LENGTH, vectors.shape[1])
    embeds[0, BEFORE:-AFTER] = vectors
    positions = torch.arange(LENGTH).repeat(3, 1)
    row, column = torch.arange(ROWS * COLUMNS) // COLUMNS, torch.arange(ROWS * COLUMNS) % COLUMNS
    positions[:, BEFORE:-AFTER] = BEFORE + torch.stack([torch.zeros_like(row), row, column])
    positions[:, -AFTER:] = BEFORE + COLUMNS + torch.arange(AFTER)
    loop = Loop(model)
    words = loop.weights["model.language_model.embed_tokens.weight"][tokens[0]]
    x = torch.where((tokens[0] == model.config.image_token_id)[:, None], embeds[0].double(), words)
    return tokens, embeds, positions[:, None], loop(x, positions), loop


def test_the_loop_is_right(multimodal):
    """On random words it says what transformers says."""
    tokens = torch.randint(900, (1, 40), generator=torch.Generator().manual_seed(0))
    loop = Loop(multimodal.model)
    words = loop.weights["model.language_model.embed_tokens.weight"][tokens[0]]
    with torch.no_grad():
        expected = multimodal.model(tokens, use_cache=False).logits[0]
    actual = loop(words, torch.arange(40).repeat(3, 1))
    torch.testing.assert_close(actual.float(), expected, rtol=0, atol=2e-5)


def test_the_prompt_is_hard(prompt):
    """Keys of the picture are nearly parallel, decay is weak and beta near 1; and the product of
    powers in fp32, (I - A)(I + A^2)(I + A^4)..., has lost everything on them."""
    loop = prompt[-1]
    inside = slice(BEFORE + 4, BEFORE + 4 + 128)
    key, beta, decay = (torch.stack(x)[inside] for x in (loop.keys, loop.betas, loop.decays))
    cosines = torch.einsum("ihd,jhd->hij", key, key)
    assert cosines.mean() > 0.8
    assert beta.mean() > 0.9 and decay.mean() > 0.97
    log = decay.log().cumsum(0).T
    between = (log[:, :, None] - log[:, None]).exp()
    strict = torch.ones(128, 128).double().tril(-1)
    system = (beta.T[:, :, None] * cosines * between * strict).float()
    one = torch.eye(128)
    product, power = one - system, system
    for _ in range(6):
        power = power @ power
        product = product @ (one + power)
    exact = torch.linalg.inv(one.double() + system.double())
    assert not (product - exact).abs().max() < 1e3 * exact.abs().max()


@pytest.mark.parametrize("chunk", [64, 128, 37])
def test_whole_prefill(hard, prompt, chunk):
    """At every position, then in pieces, and four words decoded after."""
    _, directory, _ = hard
    tokens, embeds, positions, expected, loop = prompt
    loop = copy.deepcopy(loop)
    params = qwen35.load(directory, runtime=qwen35.Runtime(chunk=chunk))
    state = qwen35.init_state(params, batch=1, capacity=LENGTH + 4)
    hidden, _ = qwen35.forward(params, state, tokens, None, embeds, positions)
    actual = qwen35.logits(params, hidden)[0].double()
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)
    for start in range(0, LENGTH, 100):
        piece = slice(start, start + 100)
        logits, state = qwen35.prefill(
            params, state, tokens[:, piece], None, embeds[:, piece], positions[..., piece]
        )
        torch.testing.assert_close(
            logits[0].double(), expected[min(start + 100, LENGTH) - 1], rtol=0, atol=TOLERANCE
        )
    words = loop.weights["model.language_model.embed_tokens.weight"]
    for step in range(4):
        position = int(positions.max()) + 1 + step
        logits, state = qwen35.decode(params, state, torch.tensor([step]))
        after = loop(words[step][None], torch.full((3, 1), position))
        torch.testing.assert_close(logits.double(), after, rtol=0, atol=TOLERANCE)
