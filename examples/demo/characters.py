"""The demo family's tokenizer: one token per printable ASCII character and four special ones."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, END, USER, ASSISTANT, UNKNOWN = "<pad>", "<end>", "<user>", "<assistant>", "<unknown>"
SPECIAL = [PAD, END, USER, ASSISTANT, UNKNOWN]
CHARACTERS = [chr(code) for code in range(32, 127)]
TOKEN_IDS = {token: number for number, token in enumerate(SPECIAL + CHARACTERS)}

# Only the last question is shown: the models are trained on single questions and remember nothing.
CHAT_TEMPLATE = (
    "{% set start = namespace(index=0) %}"
    "{% for message in messages %}"
    "{% if message.role == 'user' %}{% set start.index = loop.index0 %}{% endif %}"
    "{% endfor %}"
    "{% for message in messages[start.index:] %}"
    "{% if message.role == 'user' %}<user>{{ message.content }}"
    "{% elif message.role == 'assistant' %}<assistant>{{ message.content }}<end>"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A fast tokenizer with the family's vocabulary and chat template."""
    tokenizer = Tokenizer(models.WordLevel(TOKEN_IDS, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=256,
    )


def encode(problem: tuple[str, str]) -> tuple[list[int], int]:
    """Token ids of a question and its answer as the chat template writes them, and where the answer starts."""
    prompt, answer = problem
    question = [TOKEN_IDS[USER], *(TOKEN_IDS[c] for c in prompt), TOKEN_IDS[ASSISTANT]]
    return [*question, *(TOKEN_IDS[c] for c in answer), TOKEN_IDS[END]], len(question)
