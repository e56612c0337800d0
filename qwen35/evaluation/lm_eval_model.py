"""Qwen3.5 as a model of lm-eval, under the name "qwen35"; `harness` is how to reach it."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import lm_eval.models  # noqa: F401 - a registry that is not empty does not fill itself later
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from ..checks.values import integer
from ..files.checkpoint import load
from ..files.likeness import check_same_checkpoint
from ..generation.buckets import doubling
from ..generation.generate import end_tokens, stream
from ..generation.sampling_settings import Sampling
from ..model.params import Params, Runtime
from ..prompts.tokenizer import Tokenizer
from ..sharding import process
from ..sharding.launch import join_ranks
from ..sharding.torchrun import launched
from ..xla.progress import progress_bar
from .scoring import score_continuations

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

NAME = "qwen35"
NEW_TOKENS = 256
_LM_EVAL_DEVICE = "cuda:0"  # what lm-eval's command line passes on if nothing is said
_SAMPLING = (
    *("top_k", "top_p", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
_log = logging.getLogger(__name__)


class _Wanted(NamedTuple):
    """What a task asks of a generation; `stops` are texts, `sampling.stop` special tokens."""

    sampling: Sampling
    stops: list[str]
    new_tokens: int


@register_model(NAME)
class Qwen35LM(TemplateLM):
    """Scores and generates for lm-eval's tasks, as its own transformers backend does.

    Requests of the same context read it once (see `score_continuations`). A context that is too
    long loses its beginning, with a warning. Generation takes a task's `generation_kwargs`:
    `until`, `max_gen_toks` and its synonyms, `do_sample`, `temperature`, `top_k`, `top_p`,
    `min_p`, the penalties and `seed`; what a task doesn't set is off, whatever the checkpoint's
    generation_config.json recommends, and what is not known is refused. A sample depends on the
    seed and on which request it is, not on the batch.

    Args:
        pretrained: checkpoint directory, or parameters on the device to run on.
        tokenizer: the checkpoint's, with parameters; None reads the directory's.
        device: "xla" or "cpu", where a directory is loaded to; None is "xla", under torchrun "cpu".
        tp: ranks that a directory's model is split over: virtual devices, or processes of torchrun,
            of which there may be several times as many: replicas that share the requests out.
        dtype: "float32", "bfloat16", or "auto" for the checkpoint's own, the same.
        batch_size: requests that go together.
        max_length: tokens that the model sees at a time; None is its max_position_embeddings.
        enable_thinking: handed to the chat template; None leaves the template's own default.
        chat_template_args: further variables of the chat template, such as
            {"reasoning_effort": "low"}.
        think_end_token: where it is in a generated text, the answer is what comes after the last
            one, and stops count from there on. For example "</think>".
        seed: of sampling, where a task has none of its own.
        check_finite, progress: see `load`; progress of scoring and generation too.

    Raises:
        ValueError: settings out of range; the checkpoint's problems as `load` has them.
    """

    def __init__(
        self,
        pretrained: str | Path | Params,
        tokenizer: Tokenizer | None = None,
        *,
        device: str | None = None,
        tp: int | str = 1,
        dtype: str = "auto",
        batch_size: int | str = 1,
        max_length: int | None = None,
        enable_thinking: bool | None = None,
        chat_template_args: Mapping[str, Any] | None = None,
        think_end_token: str | None = None,
        seed: int = 0,
        check_finite: bool = True,
        progress: bool = True,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size must be a positive integer, not {batch_size!r}")
        if isinstance(pretrained, Params):
            if tokenizer is None:
                raise ValueError("parameters come with a tokenizer: give both, or a directory")
            self.params = pretrained
        else:
            tokenizer = tokenizer or Tokenizer.from_pretrained(pretrained)
            tp = integer("tp", int(tp))
            processes = int(os.environ["WORLD_SIZE"]) if launched() else tp
            device = None if device == _LM_EVAL_DEVICE else device
            ranks = join_ranks(tp, device, dp=max(1, processes // tp))
            progress = progress and ranks.first
            if ranks.processes > 1:
                check_same_checkpoint(pretrained)
            self.params = load(
                pretrained,
                device=ranks.device,
                runtime=Runtime(mesh=ranks.mesh, rank=ranks.rank),
                dtype=dtype,
                check_finite=check_finite,
                vision=False,
                progress=progress,
            )
        limit = self.params.config.max_context
        self.max_length = limit if max_length is None else max_length
        if not 2 <= self.max_length <= limit:
            raise ValueError(
                f"max_length is {self.max_length}: it must be from 2 to the model's "
                f"max_position_embeddings, {limit}"
            )
        self.tokenizer = tokenizer.hf
        self.batch_size = int(batch_size)
        self.enable_thinking = enable_thinking
        thinking = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        self.chat_template_args = {**(chat_template_args or {}), **thinking}
        self.think_end_token = think_end_token
        self.seed = seed
        self.progress = progress
        self._device = self.params.device
        mesh, rank = self.params.runtime.mesh, self.params.runtime.rank
        if mesh is not None and rank is not None:  # lm-eval shares requests out over replicas
            self._rank, self._world_size = mesh.coordinates(rank)[0], mesh.dp
        self._tokenizer = tokenizer
        self._ends = end_tokens(self.params, tokenizer)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Joins the replicas' tensors, of one shape, along dimension 0; lm-eval asks for it."""
        return torch.cat([part.reshape(-1) for part in self.gather_object(tensor, None)])

    def gather_object(self, obj: Any, dst: int | None = 0) -> list[Any] | None:
        """Returns the replicas' objects, in their order, on replica `dst`; None is on all."""
        mesh = self.params.runtime.mesh
        everyone = [obj] if self.world_size == 1 else process.gather_objects(obj, mesh)
        return everyone if dst in (None, self.rank) else None

    def barrier(self) -> None:
        """Waits for the other replicas."""
        self.gather_object(None)

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """Stands before a text that nothing precedes."""
        first = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if first is None else first

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval files cached requests under."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        # Not verbose: a text longer than the model's context is nothing to warn of here.
        return self.tokenizer.encode(string, verbose=False, **special)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Renders a conversation up to where the model's answer, or the rest of it, begins."""
        try:
            return self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                **self.chat_template_args,
            )
        except (jinja2.TemplateError, ValueError) as error:
            raise ValueError(f"the checkpoint's chat template can't be applied: {error}") from None

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Gives for each request, of a context and a continuation, its log probability, and whether
        greedy decoding would have written it."""
        if self.enable_thinking:
            tasks = sorted({str(request.task_name) for request in requests})
            raise ValueError(
                f"{', '.join(tasks)}: log probabilities of an answer are those of an answer "
                "without a thought before it; turn thinking off (enable_thinking=False)"
            )
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        limit, cut, pairs = self.max_length, 0, []
        for _, context, continuation in requests:
            if len(continuation) > limit:
                raise ValueError(
                    f"a continuation has {len(continuation)} tokens, over max_length, {limit}"
                )
            room = limit + 1 - len(continuation)  # the last token is scored, not seen
            cut += len(context) > room
            pairs.append((context[-room:], continuation))
        self._warn_of_cut(cut, len(requests))
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        scored = score_continuations(
            self.params, pairs, batch=self.batch_size, progress=self.progress
        )
        for index, (logprobs, greedy) in scored:
            results[index] = (float(logprobs.double().sum()), bool(greedy.all()))
            self.cache_hook.add_partial("loglikelihood", requests[index][0], results[index])
        return results

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Gives for each request, of one text, the log probability of all tokens after the prefix
        token; where it is longer than `max_length`, of windows that do not overlap."""
        owners, pairs = [], []
        for number, request in enumerate(requests):
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                owners.append(number)
                pairs.append(make_disjoint_window(window))
        sums: list[list[float]] = [[] for _ in requests]
        scored = score_continuations(
            self.params, pairs, batch=self.batch_size, progress=self.progress
        )
        for index, (logprobs, _) in scored:
            sums[owners[index]].append(float(logprobs.double().sum()))
        results = list(map(math.fsum, sums))
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, result)
        return results

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Gives for each request, of a context and `generation_kwargs`, what the model writes, up
        to the first of the texts at which to stop."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        results = [""] * len(requests)
        with progress_bar("generate", len(requests), "request", self.progress) as bar:
            for indices in groups.values():
                wanted = self._wanted(requests[indices[0]].args[1])
                rows = self._prompts([requests[index].args[0] for index in indices], wanted)
                capacity = doubling(max(map(len, rows)) + wanted.new_tokens)
                capacity = min(capacity, self.params.config.max_context)
                size = min(self.batch_size, len(rows))
                order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
                for start in range(0, len(order), size):
                    chosen = order[start : start + size]
                    samplings = [wanted.sampling.for_row(indices[row]) for row in chosen]
                    own = [rows[row] for row in chosen]
                    texts = self._write(own, samplings, wanted, capacity, size)
                    for row, text in zip(chosen, texts, strict=True):
                        results[indices[row]] = text
                        request = requests[indices[row]]
                        self.cache_hook.add_partial("generate_until", request.args, text)
                    bar.update(len(chosen))
        return results

    def _wanted(self, options: dict[str, Any]) -> _Wanted:
        """Reads a task's `generation_kwargs`."""
        known = dict(normalize_gen_kwargs(options, NEW_TOKENS))
        end = self.tokenizer.decode(self.eot_token_id)
        stops = handle_stop_sequences(known.pop("until"), eos=end)
        if not all(isinstance(stop, str) for stop in stops):
            raise ValueError(f"generation_kwargs has an until of {stops[:-1]}: texts are wanted")
        new_tokens, samples = known.pop("max_gen_toks"), known.pop("do_sample")
        temperature = float(known.pop("temperature", 0.0))
        if samples and not temperature > 0:
            raise ValueError(
                f"generation_kwargs samples, which needs a temperature above 0, not {temperature}"
            )
        if known.pop("num_beams", 1) != 1:
            raise ValueError(
                "generation_kwargs asks for beam search (num_beams), which is not there"
            )
        seed = known.pop("seed", self.seed)
        settings = {name: known.pop(name) for name in _SAMPLING if name in known}
        if known:
            names = ", ".join(sorted(known))
            raise ValueError(
                f"generation_kwargs has {names}; known besides until, max_gen_toks, do_sample, "
                f"temperature and seed are {', '.join(_SAMPLING)}"
            )
        # The text leaves special tokens out, so that these can't be found there.
        ids = {self.tokenizer.convert_tokens_to_ids(stop) for stop in stops}
        special = tuple(ids.intersection(self.tokenizer.all_special_ids))
        sampling = Sampling(temperature=temperature, seed=seed, stop=special, **settings)
        return _Wanted(sampling, stops, new_tokens)

    def _prompts(self, contexts: list[str], wanted: _Wanted) -> list[list[int]]:
        room = self.max_length - wanted.new_tokens
        if room < 1:
            raise ValueError(
                f"max_gen_toks is {wanted.new_tokens}, which leaves no room for a prompt: "
                f"max_length is {self.max_length}"
            )
        rows = [self.tok_encode(context) or [self.prefix_token_id] for context in contexts]
        self._warn_of_cut(sum(len(row) > room for row in rows), len(rows))
        return [row[-room:] for row in rows]

    def _write(
        self,
        rows: list[list[int]],
        samplings: list[Sampling],
        wanted: _Wanted,
        capacity: int,
        size: int,
    ) -> list[str]:
        """Generates the rows' continuations until each of them has come to a stop.

        Args:
            size: of a batch, of which these rows may be fewer.
        """
        tokens: list[list[int]] = [[] for _ in rows]
        texts, going = [""] * len(rows), set(range(len(rows)))
        ends = self._ends.union(wanted.sampling.stop)
        pieces = stream(
            self.params,
            self._tokenizer,
            rows,
            max_new_tokens=wanted.new_tokens,
            sampling=samplings,
            capacity=capacity,
            batch=size,
            progress=self.progress,
        )
        for row, text, token in pieces:
            if row not in going:
                continue
            tokens[row].append(token)
            texts[row] += text
            if token in ends or any(stop in self._answer(texts[row]) for stop in wanted.stops):
                going.remove(row)
            if not going:
                break
        pieces.close()
        # Decoded once more, as a whole: the stream holds back what may be half a character.
        whole = [self._tokenizer.decode(row, skip_special_tokens=True) for row in tokens]
        return [
            postprocess_generated_text(text, wanted.stops, self.think_end_token) for text in whole
        ]

    def _answer(self, text: str) -> str:
        """Returns what of an unfinished text may have a stop: nothing while the thought goes on."""
        if self.think_end_token is None:
            return text
        _, end, answer = text.rpartition(self.think_end_token)
        return answer if end else ""

    def _warn_of_cut(self, cut: int, of: int) -> None:
        if cut:
            _log.warning(
                "%d of %d contexts are too long and lose their beginning (max_length is %d)",
                cut,
                of,
                self.max_length,
            )
