"""What a model would have said at every place of a given reply: one forward pass over prompt and reply."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from merging.errors import MergingError
from merging.inference import LoadedModel


@torch.inference_mode()
def reply_logits(
    model: LoadedModel, prompt: Sequence[int], reply: Sequence[int], module: Any = None
) -> torch.Tensor:
    """Logits [reply, vocabulary] in the model's own type; row i awaits token i of the reply.

    Args:
        module: what runs in place of `model.model`.

    Raises:
        MergingError: prompt or reply is empty, both exceed the context, a token has no embedding, or a logit is NaN.
    """
    module = model.model if module is None else module
    _check(model, prompt, reply)
    if model.reads_apart:
        inputs = {
            "input_ids": [*prompt],
            "decoder_input_ids": [model.model.config.decoder_start_token_id, *reply[:-1]],
        }
    else:
        inputs = {"input_ids": [*prompt, *reply[:-1]]}
    ids = {name: torch.tensor([one], device=model.device) for name, one in inputs.items()}
    # most models can leave out the head where nobody looks
    few = {"logits_to_keep": len(reply)} if "logits_to_keep" in _arguments(module) else {}
    mask = torch.ones_like(ids["input_ids"])
    output = module(**ids, attention_mask=mask, use_cache=False, **few)
    logits: torch.Tensor = output.logits[0, -len(reply) :]
    if bool(logits.isnan().any()):
        raise MergingError("This model predicts NaN (not a number) for this reply. Use an intact model.")
    return logits


def _check(model: LoadedModel, prompt: Sequence[int], reply: Sequence[int]) -> None:
    if not prompt or not reply:
        raise MergingError(f"The {'prompt' if not prompt else 'answer'} has no tokens. Write something.")
    total = len(prompt) + len(reply)
    if model.context is not None and total > model.context:
        raise MergingError(
            f"Prompt and answer have {total:,} tokens, and a model here reads at most {model.context:,}. Shorten them."
        )
    rows = model.model.get_input_embeddings().weight.shape[0]
    if max(*prompt, *reply) >= rows:
        raise MergingError(
            f"Token {max(*prompt, *reply)} of prompt and answer is beyond the {rows:,} that a model here knows. Choose "
            "models with one tokenizer."
        )


def _arguments(module: Any) -> Any:
    return inspect.signature(module.forward).parameters
