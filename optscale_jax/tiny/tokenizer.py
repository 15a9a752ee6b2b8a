"""The small models' tokenizer: a token for each byte, and one for each of a few fixed phrases.

Byte-level BPE as Qwen's is, but without merges. The phrases are what every prompt repeats; as
single tokens they keep sequences, and with them all computation, short.
"""

from typing import TYPE_CHECKING

from optscale_jax.tiny.arithmetic import MODULUS, SYSTEM_PROMPT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["CHAT_TEMPLATE", "END", "STEP", "build_tokenizer"]

END = "<|im_end|>"
PAD = "<|endoftext|>"
STEP = "<extra_0>"
"""Ends a step in what the verifier reads, as for Qwen2.5-Math-PRM."""

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""ChatML, as Qwen's, without a system message of its own."""

_SPECIAL = (PAD, "<|im_start|>", END, STEP)
_PHRASES = (
    "system\n",
    "user\n",
    "assistant\n",
    SYSTEM_PROMPT,
    "Compute ",
    f" from left to right, modulo {MODULUS}.",
)


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """Makes the tokenizer.

    Returns:
        A transformers tokenizer with the chat template, ready to be saved beside a model.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*_SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in _SPECIAL])
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in _PHRASES])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=["<|im_start|>", STEP],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
