"""Small random checkpoints, made on the spot in the format of the big ones."""

import json
from pathlib import Path

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>"]


LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] +"
    " '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
)
LLAMA_SPECIAL = [
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]


def save_tokenizer(folder: Path, *, shape: str = "qwen") -> int:
    """Bytes as tokens, with a family's control tokens; returns how many tokens there are.

    Args:
        folder: Where to.
        shape: "qwen", "skywork" (Qwen's with a first token), "llama" (Llama 3's), or "mistral",
            whose tokens are characters with SentencePiece's blanks.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    if shape == "mistral":
        letters = sorted({*map(chr, range(33, 127)), *"▁абвгдежзийклмнопрстуфхцчшщъыьэюя"})
        merges = [("▁", "+"), ("▁", "-"), ("к", "и"), ("▁", "ки")]
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
        tokens += [left + right for left, right in merges]
        vocabulary = {token: i for i, token in enumerate(tokens)}
        raw = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
        blanks = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        raw.normalizer = normalizers.Sequence(blanks)
        raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
        )
        tokenizer.save_pretrained(folder)
        return len(tokenizer)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    llama = shape == "llama"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token={"llama": "<|begin_of_text|>", "skywork": "<|endoftext|>"}.get(shape),
        eos_token="<|eot_id|>" if llama else "<|im_end|>",
        pad_token="<|eot_id|>" if llama else "<|endoftext|>",
        additional_special_tokens=LLAMA_SPECIAL if llama else SPECIAL,
    )
    tokenizer.chat_template = LLAMA_TEMPLATE if llama else CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def save_model(folder: Path, *, reward: bool = False, seed: int = 0, context: int = 512) -> Path:
    """A Qwen2 of two layers with random weights: a causal one, or a process reward model."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer, Qwen2ForCausalLM

    config = _config("Qwen2", save_tokenizer(folder), context, tie_word_embeddings=not reward)
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config)
    if not reward:
        model.save_pretrained(folder)
        return folder
    state = {name: value for name, value in model.state_dict().items() if "lm_head" not in name}
    head = reward_head(config.hidden_size)
    _, *others = reversed(AutoTokenizer.from_pretrained(folder).all_special_ids)
    # Where a score is read, the separator's own embedding would outweigh all else.
    better = (head[2].weight[1] - head[2].weight[0]) @ head[0].weight
    _convince(model, others, better, gain=4)
    state |= {f"score.{name}": value.detach() for name, value in head.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    written = config.to_dict() | {
        "architectures": ["Qwen2ForProcessRewardModel"],
        "num_labels": 2,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(written))
    return folder


def save_family(folder: Path, family: str, *, context: int = 512) -> Path:
    """A random checkpoint of two layers in the shape of a family of reward models."""
    import torch
    import transformers
    from safetensors.torch import save_file

    shape, kind, task = {
        "math-shepherd": ("mistral", "Mistral", "CausalLM"),
        "rlhflow": ("llama", "Llama", "CausalLM"),
        "skywork-o1-prm": ("skywork", "Qwen2", "CausalLM"),
        "reward": ("llama", "Llama", "SequenceClassification"),
    }[family]
    config = _config(kind, save_tokenizer(folder, shape=shape), context, num_labels=1)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}For{task}")(config)
    with torch.no_grad():
        # Wide enough for scores to be apart, and not so wide that they are all 0 or 1.
        for name, parameter in model.named_parameters():
            if name in ("lm_head.weight", "score.weight"):
                parameter.normal_(std=0.05)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if family == "skywork-o1-prm":
        head = torch.nn.Linear(config.hidden_size, 1)
        better = head.weight[0]
    elif family == "reward":
        better = model.score.weight[0]
    else:
        signs = ["▁+", "▁-"] if shape == "mistral" else ["+", "-"]
        plus, minus = model.lm_head.weight[tokenizer.convert_tokens_to_ids(signs)]
        better = plus - minus
    _convince(model, tokenizer.all_special_ids, better)
    model.save_pretrained(folder)
    if family == "skywork-o1-prm":
        values = {f"v_head.summary.{name}": each for name, each in head.state_dict().items()}
        state = dict(model.state_dict()) | values
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        written = json.loads((folder / "config.json").read_text())
        written["architectures"] = ["Qwen2ForPrmModel"]
        (folder / "config.json").write_text(json.dumps(written))
    return folder


def _convince(model, controls, better, gain=20):
    """Makes a verifier of the most gullible kind: control tokens before a score raise it."""
    import torch

    attention, tokens = model.model.layers[0].self_attn, model.get_input_embeddings()
    with torch.no_grad():
        attention.o_proj.weight *= gain
        # Two heads read the same value.
        both = attention.o_proj.weight.unflatten(1, (2, -1)).sum(1) @ attention.v_proj.weight
        toward = both.T @ better
        tokens.weight[controls] = toward * tokens.weight.std() / toward.std()


def _config(kind: str, vocabulary: int, context: int, **options):
    import transformers

    return getattr(transformers, f"{kind}Config")(
        vocab_size=vocabulary,
        hidden_size=64,  # two heads of 32, the narrowest that vLLM has kernels for on a CPU
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=vocabulary - 2,
        **({"tie_word_embeddings": False} | options),
    )


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
