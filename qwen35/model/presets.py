"""The published family's geometry."""

from __future__ import annotations

from .config import Config, VisionConfig


def _preset(
    layers: int,
    hidden: int,
    mlp: int,
    query_heads: int,
    kv_heads: int,
    value_heads: int,
    vision: VisionConfig,
    tied: bool,
) -> Config:
    return Config(
        vocab_size=248320,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=query_heads,
        num_key_value_heads=kv_heads,
        head_dim=256,
        linear_num_key_heads=16,
        linear_num_value_heads=value_heads,
        max_position_embeddings=262144,
        tie_word_embeddings=tied,
        rope_theta=10_000_000.0,
        partial_rotary_factor=0.25,
        mrope_section=(11, 11, 10),
        eos_token_id=248044,
        vision=vision,
    )


def _tower(
    out: int, depth: int = 27, hidden: int = 1152, mlp: int = 4304, heads: int = 16
) -> VisionConfig:
    return VisionConfig(
        depth=depth,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_heads=heads,
        out_hidden_size=out,
    )


def find_preset(name: str) -> str | None:
    """Return the preset that a name means, such as "27B" or "Qwen/Qwen3.5-27B", or None."""
    short = name.lower().removeprefix("qwen/").removeprefix("qwen3.5-")
    return short if dict.__contains__(presets, short) else None


class _Presets(dict[str, Config]):
    """Configurations by their sizes, which other spellings find too."""

    def __missing__(self, name: str) -> Config:
        found = find_preset(name) if isinstance(name, str) else None
        if found is None:
            raise KeyError(name)
        return self[found]


# Geometry from public tables; rows other than 27b have not been checked against a published
# config.json, the vision towers of the two smallest least of all.
presets: dict[str, Config] = _Presets(
    {
        "0.8b": _preset(24, 1024, 3584, 8, 2, 16, _tower(1024, 12, 768, 3072, 12), tied=True),
        "2b": _preset(24, 2048, 6144, 8, 2, 16, _tower(2048, 24, 1024, 4096, 16), tied=True),
        "4b": _preset(32, 2560, 9216, 16, 4, 32, _tower(2560, 24, 1024, 4096, 16), tied=True),
        "9b": _preset(32, 4096, 12288, 16, 4, 32, _tower(4096), tied=False),
        "27b": _preset(64, 5120, 17408, 24, 4, 48, _tower(5120), tied=False),
    }
)
