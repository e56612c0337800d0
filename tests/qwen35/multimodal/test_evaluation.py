"""Evaluation of a checkpoint with a vision tower, which texts leave unread."""

import torch

import qwen35
from qwen35.evaluation.agreement import measure
from qwen35.evaluation.reference import TransformersModel


@torch.no_grad()
def test_agreement(oracle):
    tokens = qwen35.Tokenizer.from_pretrained(oracle.directory).encode("The capital of France is")
    wanted = oracle.model(torch.tensor([tokens]), use_cache=False).logits[0]
    reference = TransformersModel(oracle.directory, "float32")
    torch.testing.assert_close(reference.logits(tokens, 3), wanted[-3:], rtol=0, atol=1e-5)
    result = measure(
        oracle.directory, ["The capital", "Hot"], dtypes=["float32"], max_new_tokens=4, device="cpu"
    )
    [one] = result["comparisons"]
    assert one["logit_difference"] < 1e-4 and one["equal_prompts"] == 2 and one["positions"] > 2
