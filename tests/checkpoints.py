"""Small random checkpoints, made on the spot in the format of the big ones."""

import json
from pathlib import Path

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>"]


def save_tokenizer(folder: Path) -> int:
    """Bytes as tokens, with Qwen's control tokens and chat template; returns how many there are."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def save_model(folder: Path, *, reward: bool = False, seed: int = 0, context: int = 512) -> Path:
    """A Qwen2 of two layers with random weights: a causal one, or a process reward model."""
    import torch
    from safetensors.torch import save_file
    from transformers import Qwen2Config, Qwen2ForCausalLM

    vocabulary = save_tokenizer(folder)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=64,  # two heads of 32, the narrowest that vLLM has kernels for on a CPU
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context,
        tie_word_embeddings=not reward,
        bos_token_id=None,
        eos_token_id=vocabulary - 2,
    )
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config)
    if not reward:
        model.save_pretrained(folder)
        return folder
    state = {name: value for name, value in model.state_dict().items() if "lm_head" not in name}
    head = reward_head(config.hidden_size)
    state |= {f"score.{name}": value.detach() for name, value in head.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    written = config.to_dict() | {
        "architectures": ["Qwen2ForProcessRewardModel"],
        "num_labels": 2,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(written))
    return folder


def reward_head(width: int):
    """The head of Qwen2ForProcessRewardModel, wide enough in its weights to tell steps apart."""
    import torch

    head = torch.nn.Sequential(
        torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, 2)
    )
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return head


def separator_id(folder: Path) -> int:
    """Token id of the step separator."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<extra_0>")
