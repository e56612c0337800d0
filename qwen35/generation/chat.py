"""A conversation over the engine: messages in, answers out, nothing read twice.

Every turn renders the whole conversation with the checkpoint's chat template, and the engine's
prefix cache finds how much of it has been read: all, where the template only adds; up to the last
message before a change, where it rewrites history, as by leaving out earlier thoughts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checks import hub
from ..checks.errors import CheckpointError
from ..checks.json_file import parse_object, read_object
from ..checks.values import check_text, integer, shown
from ..files.saved_state import read_state, write_state
from ..prompts.messages import for_template
from ..prompts.processor import Processor, Prompt
from ..prompts.tokenizer import Tokenizer
from .answers import AnswerReader, is_whole, message_of, read_answer, thinking_budget
from .engine import Engine
from .request import Request, cache_keys
from .sampling_settings import Sampling, check_sampling
from .thinking import ThinkingBudget

_FORMAT = "qwen35 chat 1"


class ConversationFull(ValueError):
    """A conversation has no room left for an answer."""


class Chat:
    """One conversation. It keeps its pictures as they were read, some 24 KiB for each token.

    Args:
        engine: where it runs; others may run there too. Without a prefix cache every turn is read
            from the start.
        tokenizer: the checkpoint's, with its chat template; a `Processor` to show images.
        system: the system prompt.
        thinking: what the template's `enable_thinking` gets.
        thinking_tokens: the most tokens of a thought, which is then closed; None leaves it be.
        template: further variables of the chat template, such as `{"reasoning_effort": "low"}`;
            with `tools`, as OpenAI's API has them, answers may call them.
        sampling: how answers are sampled.
        max_new_tokens: the most tokens of an answer, thought included; fewer where the engine's
            capacity ends.

    Attributes:
        messages: the conversation, as the template takes it.

    Raises:
        ValueError: a thinking budget for a tokenizer that has no single token "</think>"; a system
            prompt that is no text; a variable of the template that is an argument here; settings
            of another kind than these.
        CheckpointError: the tokenizer has no chat template.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer | Processor,
        *,
        system: str | None = None,
        thinking: bool = True,
        thinking_tokens: int | None = None,
        template: Mapping[str, Any] | None = None,
        sampling: Sampling = Sampling(),
        max_new_tokens: int = 1024,
    ) -> None:
        self.engine = engine
        self.thinking = thinking
        check_sampling(sampling)
        self.sampling = sampling
        self.max_new_tokens = integer("max_new_tokens", max_new_tokens)
        self._processor = tokenizer if isinstance(tokenizer, Processor) else None
        self._tokenizer = tokenizer.tokenizer if isinstance(tokenizer, Processor) else tokenizer
        if template is not None and not isinstance(template, Mapping):
            raise ValueError(f"template must be variables by name, not {shown(template)}")
        self._template = dict(template or {})
        own = {"add_generation_prompt", "enable_thinking"} & self._template.keys()
        if own:
            raise ValueError(f"{', '.join(sorted(own))}: a chat sets this itself (`thinking`)")
        if system:
            _check(system)
        self._system = system
        self._budget: ThinkingBudget | None = None
        if thinking and thinking_tokens is not None:
            self._budget = thinking_budget(self._tokenizer, thinking_tokens)
        self._keys: tuple[int, ...] = ()  # of all that has been read
        # Of the messages' parts that have one, by the part's id: kept with the part, so that no
        # other gets that id.
        self._pictures: dict[int, tuple[Mapping[str, Any], Any]] = {}
        if not self._tokenizer.hf.chat_template:
            raise CheckpointError("the checkpoint's tokenizer has no chat template")
        self.reset()

    def reset(self) -> None:
        """Starts anew, with the system prompt."""
        self.messages: list[dict[str, Any]] = []
        self._keys = ()
        if self._system:
            self.messages.append({"role": "system", "content": self._system})

    def ask(self, text: str, images: Sequence[Any] = ()) -> Request:
        """Adds a message of the user and queues the answer; `finish` takes that into the history.

        Args:
            text: the message.
            images: paths, whatever else a `Processor` takes, or what `read_image` returned.

        Raises:
            ConversationFull: it does not fit.
            ValueError: images without a processor.
        """
        read = [part for part, _ in self._pictures.values()]
        parts = [
            image if any(image is part for part in read) else {"type": "image", "image": image}
            for image in images
        ]
        return self._ask(text, parts)

    def _ask(self, text: str, pictures: list[Mapping[str, Any]]) -> Request:
        _check(text)
        if pictures:
            self._check_vision()
        content = [*pictures, {"type": "text", "text": text}] if pictures else text
        self.messages.append({"role": "user", "content": content})
        try:
            return self._submit()
        except BaseException:
            self.messages.pop()
            raise

    def read_image(self, image: Any) -> Mapping[str, Any]:
        """Reads an image for the next `ask`, which does not read it again.

        Raises:
            ValueError: it can't be read, or the checkpoint has no vision.
        """
        part = {"type": "image", "image": image}
        self._pictures[id(part)] = (part, self._check_vision().read(part))
        return part

    def retry(self) -> Request:
        """Queues another answer to the last message of the user, whose answer is dropped.

        Raises:
            ValueError: there is none.
        """
        if not any(message["role"] == "user" for message in self.messages):
            raise ValueError("nothing has been asked yet")
        while self.messages[-1]["role"] != "user":
            self.messages.pop()
        return self._submit()

    def edit(self, text: str) -> Request:
        """Queues an answer to another text in place of that of the user's last message.

        Its images stay. A text that is refused leaves the conversation as it was.

        Raises:
            ValueError: there is no such message, or the conversation does not fit.
        """
        places = [n for n, message in enumerate(self.messages) if message["role"] == "user"]
        if not places:
            raise ValueError("nothing has been asked yet")
        before, content = self.messages, self.messages[places[-1]]["content"]
        parts = [] if isinstance(content, str) else content
        self.messages = before[: places[-1]]
        try:
            return self._ask(text, [part for part in parts if part["type"] == "image"])
        except BaseException:
            self.messages = before
            raise

    def reader(self, request: Request) -> AnswerReader:
        """Makes a reader for the pieces of an answer: it tells thought, answer and calls apart."""
        tools = self._template.get("tools", ())
        name = f"{len(self.messages)} {request.id}"
        how = {"thinking": self.thinking, "tools": tools, "name": name}
        return AnswerReader(self._tokenizer, request.tokens, **how)

    def finish(self, request: Request) -> str:
        """Takes an answer, also one that was cut short, into the history, and returns it.

        Tools that it calls stand in the message; a call that was cut short is left out.

        Raises the exception that ended it, if one did; the history then ends with the question.
        """
        if request.error is not None:
            raise request.error
        self._keys = (*request.keys, *request.new_tokens)
        message = message_of(read_answer(self.reader(request), request))
        # A text, even if it is empty: without one, templates look for "</think>" in the answer.
        message.setdefault("reasoning_content", "")
        if "tool_calls" in message:
            message["tool_calls"] = [call for call in message["tool_calls"] if is_whole(call)]
        self.messages.append(message)
        return message["content"] or ""

    def respond(self, results: Sequence[str]) -> Request:
        """Queues the answer to what the tools returned that the last answer called.

        Args:
            results: a text for each call, in their order.

        Raises:
            ValueError: there were other calls than that, or the conversation does not fit.
        """
        calls = self.messages[-1].get("tool_calls", []) if self.messages else []
        if not calls or len(calls) != len(results):
            raise ValueError(f"{len(results)} results for {len(calls)} tools that were called")
        before = self.messages
        self.messages = [
            *before,
            *(
                {"role": "tool", "tool_call_id": call["id"], "content": result}
                for call, result in zip(calls, results, strict=True)
            ),
        ]
        try:
            return self._submit()
        except BaseException:
            self.messages = before
            raise

    def save(self, path: str | Path) -> None:
        """Writes the conversation to a file, with the state that the next question goes on from:
        the one after the answer, or, where the template will show that otherwise, as without its
        thought, the last one before."""
        keys = self._keys[: _shared(self._keys, self._next_keys())]
        length, state, logits = self.engine.gather(keys)
        content = {"messages": self.messages, "keys": keys[:length]}
        try:
            text = json.dumps({"format": _FORMAT, **content})
        except TypeError:
            raise ValueError("only images given as paths or URLs can be saved") from None
        params = self.engine.batch.params
        write_state(path, params, state, logits=logits, metadata={"chat": text})

    def load(self, path: str | Path) -> None:
        """Goes on with a conversation that `save` wrote; the present one is dropped.

        Raises:
            CheckpointError: it is damaged, no conversation, or another model's.
            ValueError: it is too long for the engine.
        """
        saved = read_state(path, self.engine.batch.params)
        content = parse_object(saved.metadata.get("chat", "{}"), str(path), "a conversation")
        if content.get("format") != _FORMAT:
            raise CheckpointError(f"{path}: a saved state, but not of a conversation")
        keys, messages = content.get("keys"), content.get("messages")
        damaged = CheckpointError(f"{path}: damaged: not the messages and keys of a conversation")
        if not isinstance(keys, list) or not isinstance(messages, list):
            raise damaged
        read = [len(keys)] if keys else saved.state.position.tolist()
        if saved.state.position.tolist() != read or not all(type(key) is int for key in keys):
            raise damaged
        try:
            for_template(messages)
        except ValueError:
            raise damaged from None
        if keys:
            if saved.logits is None:
                raise CheckpointError(f"{path}: a conversation without the logits after it")
            self.engine.adopt(tuple(keys), saved.state, saved.logits)
        self.messages, self._keys = messages, tuple(keys)

    def _next_keys(self) -> tuple[int, ...]:
        """Returns the cache keys of the next question's prompt, but for its text."""
        asked = list(self.messages)
        while asked and asked[-1]["role"] == "user":  # its answer failed
            asked.pop()
        asked.append({"role": "user", "content": ""})
        prompt, tokens = self._render(self._with_pictures(asked), add_generation_prompt=False)
        return cache_keys(tokens, prompt if isinstance(prompt, Prompt) else None)

    def _check_vision(self) -> Processor:
        if self._processor is None:
            raise ValueError("this checkpoint has no vision: it can't be shown an image")
        return self._processor

    def _submit(self) -> Request:
        messages = self._with_pictures(self.messages)
        prompt, tokens = self._render(messages, add_generation_prompt=True)
        # The next turn leaves this prompt where the answer starts, or before, if the template
        # starts an answer otherwise than it shows it later; an edit leaves it where the question
        # starts. Templates decide where that is, so it is found by rendering both.
        other = "b" if str(self.messages[-1]["content"]).lstrip().startswith("a") else "a"
        edited = [*messages[:-1], {"role": "user", "content": other}]
        boundaries = tuple(
            _shared(tokens, self._render(shown, add_generation_prompt=False)[1])
            for shown in (edited, messages)
        )
        room = self.engine.max_capacity - len(tokens)
        if room < 1:
            raise ConversationFull(
                f"the conversation has {len(tokens)} tokens, and the engine holds "
                f"{self.engine.max_capacity}, an answer included"
            )
        return self.engine.submit(
            prompt,
            max_new_tokens=min(self.max_new_tokens, room),
            sampling=self.sampling,
            thinking=self._budget,
            boundaries=boundaries,
        )

    def _with_pictures(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns the messages with their pictures read: each once, when it is first shown."""
        processor = self._processor
        if processor is None:
            return messages
        pictures: dict[int, tuple[Mapping[str, Any], Any]] = {}

        def read(part: Any) -> Any:
            if not isinstance(part, Mapping) or part.get("type") != "image":
                return part
            known = self._pictures.get(id(part)) or (part, processor.read(part))
            pictures[id(part)] = known
            return {"type": "image", "image": known[1]}

        shown = [
            {**message, "content": list(map(read, message["content"]))}
            if isinstance(message.get("content"), list)
            else message
            for message in messages
        ]
        self._pictures = pictures
        return shown

    def _render(
        self, messages: list[dict[str, Any]], add_generation_prompt: bool
    ) -> tuple[Prompt | list[int], list[int]]:
        """Messages as a prompt, and its token ids."""
        options = {
            "add_generation_prompt": add_generation_prompt,
            "enable_thinking": self.thinking,
            **self._template,
        }
        if self._processor is not None:
            prompt = self._processor(messages, **options)
            return prompt, prompt.tokens[0].tolist()
        tokens = self._tokenizer.encode(self._tokenizer.render(messages, **options))
        return tokens, tokens


def _check(text: Any) -> None:
    """Checks what somebody says."""
    if not isinstance(text, str):
        raise ValueError(f"a message is a text, not of type {type(text).__name__}")
    check_text("the message", text)


def _shared(tokens: Sequence[int], others: Sequence[int]) -> int:
    """Counts the tokens that two sequences start with in common."""
    same = [ours == theirs for ours, theirs in zip(tokens, others, strict=False)]
    return same.index(False) if False in same else len(same)


def sampling_defaults(directory: str | Path) -> Sampling:
    """Reads what a checkpoint's generation_config.json recommends; without it, greedy decoding.

    Raises:
        CheckpointError: the file is damaged, or a value is out of range.
    """
    file = hub.directory_of(directory, hub.TOKENIZER) / "generation_config.json"
    if not file.is_file():
        return Sampling()
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    content = read_object(file, "settings of generation")
    try:
        values = {name: content[name] for name in names if content.get(name) is not None}
        if content.get("do_sample"):
            return Sampling(**{"temperature": 1.0, **values})
        penalty = values.get("repetition_penalty", 1.0)
        return Sampling(repetition_penalty=penalty)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{file}: {error}") from None
