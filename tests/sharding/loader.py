"""Loads a checkpoint in a process that its parent watches: python loader.py PATH TP RANK.

Says "ready" when all is imported, waits for a line, loads, says how large the tensors are, waits.
"""

import sys

import torch

import qwen35
from qwen35.sharding.mesh import Mesh

path, tp, rank = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
runtime = qwen35.Runtime(mesh=Mesh(tp=tp), rank=rank)
qwen35.init_state(qwen35.init_params(qwen35.Config.from_dict({**{
    "vocab_size": 16, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 8, "num_key_value_heads": 8}})), 1, 1)  # fmt: skip
print("ready", flush=True)
sys.stdin.readline()
params = qwen35.load(path, dtype="bfloat16", runtime=runtime)
sizes = [tensor.nbytes for tensor in torch.utils._pytree.tree_leaves(params)]
print(sum(sizes), max(sizes), flush=True)
sys.stdin.readline()
