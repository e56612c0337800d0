"""A radix tree of prompts that have been read, with the states to go on from.

An attention layer's keys and values belong to their tokens, so any number of sequences that start
alike share them: an edge of the tree holds those of its tokens, once. A DeltaNet state belongs to a
whole prefix and can't be cut: a node may hold a snapshot of it. A prompt is continued from the
deepest snapshot on its path, with the keys and values of the edges up to there (the idea of
SGLang's RadixAttention, with checkpoints for recurrent layers as in Marconi, Pan et al., 2024).

Everything is kept in host memory. Least recently used snapshots go first when their bytes and
those of the keys and values exceed the limit; keys and values go with the last snapshot behind
them. A snapshot that exceeds the limit by itself is not kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..checks.values import integer
from ..model.state import AttentionState, DeltaNetState

KV = tuple[AttentionState, ...]  # per attention layer key [1, Hkv, D, n] and value [1, Hkv, n, D]


class Snapshot(NamedTuple):
    """What a prefix leaves besides keys and values, on the CPU.

    rope_offset [1]; layers: the DeltaNet layers' states; logits [1, V]: after its last token, so
    that a prompt that is found whole needs no computation.
    """

    rope_offset: Tensor
    layers: tuple[DeltaNetState, ...]
    logits: Tensor


class Match(NamedTuple):
    """A prompt's best start.

    length: its tokens; 0 without a snapshot. shared: how many tokens the prompt has in common with
    anything in the tree. kv: keys and values of `length` tokens.
    """

    length: int
    shared: int
    snapshot: Snapshot | None
    kv: KV


@dataclass(frozen=True)
class CacheStats:
    """What a cache did and holds.

    Attributes:
        lookups, hits: prompts looked up, and those of which something was found.
        prompt_tokens, saved_tokens: of all lookups, and how many of them were found.
        bytes, snapshots: held now.
        evictions: snapshots dropped for want of room.
    """

    lookups: int = 0
    hits: int = 0
    prompt_tokens: int = 0
    saved_tokens: int = 0
    bytes: int = 0
    snapshots: int = 0
    evictions: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of prompt tokens that did not have to be read again."""
        return self.saved_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


@dataclass(eq=False)
class _Node:
    """The end of an edge: `keys` lead here from the parent, `kv` are theirs."""

    keys: tuple[int, ...]
    kv: KV
    parent: _Node | None
    children: dict[int, _Node] = field(default_factory=dict)
    snapshot: Snapshot | None = None


class PrefixCache:
    """Snapshots by prefix, in at most `max_bytes` of host memory.

    A prefix is given by keys: token ids, or any integers that tell apart what the model reads (of
    an image, what stands for its content).
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = integer("max_bytes", max_bytes, 0)
        self._root: _Node
        self._recent: OrderedDict[_Node, None]  # nodes with a snapshot
        self._bytes: int
        self.clear()
        self._counts = dict.fromkeys(
            ("lookups", "hits", "prompt_tokens", "saved_tokens", "evictions"), 0
        )

    @property
    def stats(self) -> CacheStats:
        """What the cache did so far."""
        return CacheStats(**self._counts, bytes=self._bytes, snapshots=len(self._recent))

    def lookup(self, keys: Sequence[int]) -> Match:
        """Finds the longest prefix of `keys` that has a snapshot, which becomes the most recent."""
        best, length, shared = self._root, 0, 0
        for node, common in self._path(keys):
            shared += common
            if common == len(node.keys) and node.snapshot is not None:
                best, length = node, shared
        self._counts["lookups"] += 1
        self._counts["prompt_tokens"] += len(keys)
        if best.snapshot is None:
            return Match(0, shared, None, ())
        self._recent.move_to_end(best)
        self._counts["hits"] += 1
        self._counts["saved_tokens"] += length
        edges = []
        node = best
        while node.parent is not None:
            edges.append(node.kv)
            node = node.parent
        return Match(length, shared, best.snapshot, _concatenate(edges[::-1]))

    def known(self, keys: Sequence[int]) -> int:
        """Counts the first `keys` for which the tree has keys and values."""
        return sum(common for _, common in self._path(keys))

    def insert(self, keys: Sequence[int], kv: KV, snapshot: Snapshot, start: int = 0) -> None:
        """Adds the snapshot after `keys`.

        Args:
            keys: one or more.
            kv: keys and values, on the CPU, of the last of them: of all that are not `known`, or
                more.
            snapshot: of the state after them.
            start: how many were known when `kv` was taken. Where some of those have been dropped
                since, so is the snapshot: it would have gone with them.
        """
        if self.known(keys) < start:
            self._counts["evictions"] += 1
            return
        try:
            self._insert(tuple(keys), kv, snapshot)
        except BaseException:
            self.clear()  # a tree that is changed by half is none
            raise

    def clear(self) -> None:
        """Drops everything held; the counts of what was done stay."""
        root, recent = _Node((), (), None), OrderedDict[_Node, None]()
        self._root, self._recent, self._bytes = root, recent, 0

    def _insert(self, keys: tuple[int, ...], kv: KV, snapshot: Snapshot) -> None:
        node, depth = self._root, 0
        for child, common in list(self._path(keys)):  # before an edge is cut
            node = child if common == len(child.keys) else self._split(child, common)
            depth += common
        if depth < len(keys):
            missing = len(keys) - depth
            child = _Node(keys[depth:], tuple(_last(layer, missing) for layer in kv), node)
            node.children[keys[depth]] = child
            self._bytes += _bytes(child.kv)
            node = child
        if node.snapshot is None:
            node.snapshot = snapshot
            self._bytes += _bytes(snapshot)
        self._recent[node] = None
        # What can't be held even alone must not drive out everything else before it goes itself.
        self._recent.move_to_end(node, last=self._bytes_alone(node) <= self.max_bytes)
        while self._bytes > self.max_bytes and self._recent:
            self._evict()

    def _path(self, keys: Sequence[int]) -> Iterator[tuple[_Node, int]]:
        """Yields the nodes along `keys`, each with how many of its keys are the same."""
        node, depth = self._root, 0
        while depth < len(keys):
            node = node.children.get(keys[depth])
            if node is None:
                return
            common = count_common(node.keys, keys, depth)
            yield node, common
            if common < len(node.keys):
                return
            depth += common

    def _split(self, node: _Node, at: int) -> _Node:
        """Cuts an edge in two and returns the node in between."""
        first, rest = [], []
        for key, value in node.kv:
            # Copies: a view would keep both parts' memory as long as either lives.
            first.append(AttentionState(key[..., :at].clone(), value[:, :, :at].clone()))
            rest.append(AttentionState(key[..., at:].clone(), value[:, :, at:].clone()))
        between = _Node(node.keys[:at], tuple(first), node.parent)
        node.parent.children[node.keys[0]] = between
        node.keys, node.kv, node.parent = node.keys[at:], tuple(rest), between
        between.children[node.keys[0]] = node
        return between

    def _bytes_alone(self, node: _Node) -> int:
        """Counts the bytes of a snapshot with all the keys and values before it."""
        needed = _bytes(node.snapshot)
        while node.parent is not None:
            needed += _bytes(node.kv)
            node = node.parent
        return needed

    def _evict(self) -> None:
        node, _ = self._recent.popitem(last=False)
        self._bytes -= _bytes(node.snapshot)
        node.snapshot = None
        self._counts["evictions"] += 1
        while node.parent is not None and not node.children and node.snapshot is None:
            del node.parent.children[node.keys[0]]
            self._bytes -= _bytes(node.kv)
            node = node.parent


def count_common(edge: Sequence[int], keys: Sequence[int], start: int) -> int:
    """Counts how many of an edge's keys, one after the other, stand in `keys` from `start` on."""
    there = keys[start : start + len(edge)]
    for number, (ours, theirs) in enumerate(zip(edge, there, strict=False)):
        if ours != theirs:
            return number
    return len(there)


def _last(layer: AttentionState, count: int) -> AttentionState:
    return AttentionState(layer.key[..., -count:].clone(), layer.value[:, :, -count:].clone())


def _concatenate(edges: list[KV]) -> KV:
    return tuple(
        AttentionState(torch.cat([e.key for e in layer], 3), torch.cat([e.value for e in layer], 2))
        for layer in zip(*edges, strict=True)
    )


def _bytes(tree: object) -> int:
    return sum(leaf.nbytes for leaf in pytree.tree_leaves(tree))
