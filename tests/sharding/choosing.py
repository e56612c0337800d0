"""Choices from logits that any ranks hold: ties, bans of all that a rank has, all settings."""

import torch

import qwen35
from qwen35 import Sampling, device_put
from qwen35.generation import steps
from qwen35.generation.sampling import Choice, bias_for, controls_for, counts_for
from qwen35.model.vocabulary import gather_vocabulary, scatter_vocabulary
from qwen35.sharding import spmd

ROWS, V = 24, 160
LAST = V // 2 - 1  # of the first of two ranks


def settings() -> dict[str, list[Sampling]]:
    """Settings of all rows, by what they are about; those of a row differ from its neighbours'."""
    rows = range(ROWS)
    return {
        "greedy": [Sampling()] * ROWS,
        "penalties": [
            Sampling(
                repetition_penalty=1 + row / 20, presence_penalty=row % 3, logit_bias={LAST: 2.0}
            )
            for row in rows
        ],
        "banned": [Sampling(banned=range(row * 6)) for row in rows],
        "short": [Sampling(0.9, seed=row, top_k=1 + row, top_p=0.9) for row in rows],
        "short beside greedy": [
            Sampling(1.1, seed=row, top_k=40, min_p=0.02) if row % 2 else Sampling() for row in rows
        ],
        # Hot enough that a rank which kept more than it should would draw that.
        "any": [
            Sampling(
                *(5.0, row),
                top_k=[0, 3, 100][row % 3],
                top_p=[1, 0.3][row % 2],
                min_p=row / 400,
            )
            for row in rows
        ],
        "any beside greedy": [
            Sampling(1.5, seed=row, frequency_penalty=0.4) if row % 2 else Sampling()
            for row in rows
        ],
    }  # fmt: skip


def logits_of(name: str) -> torch.Tensor:
    """Logits [B, V]; every third row's on a grid, so that the largest is often there twice."""
    logits = torch.randn(ROWS, V, generator=torch.Generator().manual_seed(len(name))) * 3
    logits[::3] = logits[::3].round()
    logits[0, [LAST, LAST + 1]] = 50.0  # the last of a rank and the first of the next
    logits[1] = 1.0
    return logits


@torch.no_grad()
def chosen(params: qwen35.Params) -> dict[str, list]:
    """What `steps.choose` chooses on params' ranks, and the counts after it, by the settings."""
    vocabulary, device = params.config.vocab_size, params.device.type
    position = torch.arange(ROWS, dtype=torch.int32)
    last = torch.arange(ROWS) * 5 % V
    counted = torch.arange(ROWS) % 4 > 0
    results = {}
    for name, samplings in settings().items():
        everything = not name.startswith("greedy")
        controls = controls_for(samplings, vocabulary, everything=everything)
        if name in ("penalties", "banned"):
            controls = controls._replace(draw=None, filters=None)
        prompts = [[row, 2 * row, LAST] for row in range(ROWS)]
        shares = bias_for(samplings, vocabulary), counts_for(prompts, vocabulary)
        bias, counts = (scatter_vocabulary(params, share) for share in shares)
        if not everything:
            bias = counts = None
        choice, counts = steps.choose(
            params,
            scatter_position(params, position) if controls.draw is not None else None,
            scatter_vocabulary(params, logits_of(name)),
            device_put(controls, device),
            bias,
            counts,
            *device_put((last, counted), device),
            None if name == "greedy" else 3,
            name.startswith("short"),
        )
        counted_now = None if counts is None else gather_vocabulary(params, counts)
        results[name] = [*device_put(choice, "cpu"), counted_now]
    return results


def scatter_position(params: qwen35.Params, position: torch.Tensor) -> torch.Tensor:
    """A state's positions, of which every rank has its own, on params' device."""
    mesh = params.runtime.mesh
    if params.runtime.rank is None:
        return spmd.stack([position] * mesh.size, mesh)
    return device_put(position, params.device.type)


def check(found: dict[str, list], expected: dict[str, list]) -> None:
    """Tokens are the same, log probabilities to 1e-5."""
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        ours, wanted = Choice(*found[name][:-1]), Choice(*values[:-1])
        assert torch.equal(ours.token, wanted.token), name
        if name == "greedy":
            assert torch.equal(wanted.token, logits_of(name).argmax(-1)), "the first of equal ones"
            assert ours.logprob is None
            continue
        assert found[name][-1] is None or torch.equal(found[name][-1], values[-1]), name
        normal = logits_of(name).double().log_softmax(-1)
        of_chosen = normal.gather(1, ours.token[:, None])[:, 0]
        for theirs, right in (
            (ours.logprob, of_chosen),
            (ours.top_logprobs, normal.topk(3).values),
            (normal.gather(1, ours.top_tokens), normal.topk(3).values),
        ):
            assert (theirs.double() - right).abs().max() < 1e-5, name
