"""The model, and the two ways it is trained: the base on a mixture, an expert on its task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from characters import END, PAD, TOKEN_IDS, encode
from sampling import Mixture, Problem
from transformers import LlamaConfig, LlamaForCausalLM

IGNORED = -100


def make_model(seed: int) -> LlamaForCausalLM:
    """A freshly drawn Llama of about one million parameters: 6 blocks of width 128, tied embeddings."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(TOKEN_IDS),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=TOKEN_IDS[END],
        pad_token_id=TOKEN_IDS[PAD],
    )
    return LlamaForCausalLM(config)


@dataclass(frozen=True)
class Batch:
    """Questions with their answers, padded on the right: ids and targets, both [rows, width]."""

    ids: torch.Tensor
    targets: torch.Tensor

    @classmethod
    def of(cls, problems: list[Problem]) -> Batch:
        """Encode the problems; only answers and their end tokens are targets."""
        encoded = [encode(problem) for problem in problems]
        shape = len(encoded), max(len(ids) for ids, _ in encoded)
        ids, targets = torch.full(shape, TOKEN_IDS[PAD]), torch.full(shape, IGNORED)
        for row, (tokens, start) in enumerate(encoded):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            targets[row, start - 1 : len(tokens) - 1] = torch.tensor(tokens[start:])
        return cls(ids, targets)

    def logits(self, model: LlamaForCausalLM) -> torch.Tensor:
        """The model's logits where an answer's token is to be predicted, [answer tokens, vocabulary]."""
        hidden = model.model(input_ids=self.ids, use_cache=False).last_hidden_state
        return model.lm_head(hidden[self.targets != IGNORED])

    def answers(self) -> torch.Tensor:
        """The tokens to be predicted, [answer tokens]."""
        return self.targets[self.targets != IGNORED]


def batches(mixture: Mixture, rows: int, seed: int) -> Iterator[list[Batch]]:
    """Training batches without end, each in two halves of similar length to save padding."""
    stream = mixture.stream(seed)
    while True:
        problems = sorted(islice(stream, rows), key=lambda problem: len(problem[0]) + len(problem[1]))
        yield [Batch.of(problems[: rows // 2]), Batch.of(problems[rows // 2 :])]


@dataclass(frozen=True)
class Schedule:
    """Steps, rows per step and peak learning rate: a short warm-up, then flat, then straight down."""

    steps: int
    rows: int
    learning_rate: float
    warmup: int = 30
    decay: float = 0.5

    def factor(self, step: int) -> float:
        """The share of the peak learning rate at a step, counted from 0."""
        left = (self.steps - step) / (self.decay * self.steps)
        return min(1.0, (step + 1) / self.warmup, left)


@dataclass(frozen=True)
class Keeping:
    """What an expert must not change: this model's replies to this mixture, with this weight."""

    model: LlamaForCausalLM
    mixture: Mixture
    weight: float
    rows: int


def train(
    model: LlamaForCausalLM, mixture: Mixture, schedule: Schedule, seed: int, keeping: Keeping | None = None
) -> Iterator[float]:
    """Train `model` in place on the mixture's answers; yields the loss of every step.

    With `keeping`, the divergence from the kept model's replies to its mixture is added to the loss.
    """
    kept = batches(keeping.mixture, keeping.rows, seed + 1) if keeping else None
    optimizer = Optimizer(model, schedule)
    model.train()
    for batch in islice(batches(mixture, schedule.rows, seed), schedule.steps):
        loss = 0.0
        for part in batch:
            loss += _backward(F.cross_entropy(part.logits(model), part.answers()) / len(batch))
        for part in next(kept) if kept and keeping else ():
            loss += _backward(keeping.weight * _divergence(model, keeping.model, part) / len(batch))
        optimizer.step()
        yield loss
    model.eval()


def _divergence(model: LlamaForCausalLM, kept: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """KL divergence of the model's replies from the kept model's, mean over answer tokens."""
    with torch.no_grad():
        before = F.log_softmax(batch.logits(kept), dim=-1)
    after = F.log_softmax(batch.logits(model), dim=-1)
    return F.kl_div(after, before, log_target=True, reduction="batchmean")


def _backward(loss: torch.Tensor) -> float:
    """Add the loss's gradients to the parameters'; returns its value."""
    loss.backward()
    return loss.item()


class Optimizer:
    """Muon for the matrices of the blocks, AdamW for embeddings and norms."""

    def __init__(self, model: LlamaForCausalLM, schedule: Schedule):
        matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
        rest = [p for name, p in model.named_parameters() if p.ndim != 2 or ".layers." not in name]
        self._parameters = [*matrices, *rest]
        self._optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                matrices, schedule.learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(rest, schedule.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
        ]
        self._schedulers = [
            torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor) for optimizer in self._optimizers
        ]

    def step(self) -> None:
        """One update from the gradients there are, which are then forgotten."""
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer, scheduler in zip(self._optimizers, self._schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
