"""Models in other people's formats: the Hugging Face folder that transformers opens."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from isoflop.errors import CorruptError, ProjectError
from isoflop.gpt import EPS, GPT
from isoflop.records import Corpus, ModelConfig

END_OF_TEXT = "<|endoftext|>"


def qwen3_config(config: ModelConfig, end_of_text: int) -> dict[str, object]:
    """`config.json` of transformers' `Qwen3ForCausalLM` for this shape."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.context,
        "rms_norm_eps": EPS,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "tie_word_embeddings": config.tied,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": "float32",
    }


def end_of_text(tokenizer: Tokenizer) -> int:
    """Id of the token between documents."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    assert end is not None  # corpora refuse tokenizers without it
    return int(end)


def save_pretrained(model: GPT, corpus: Corpus, folder: Path) -> None:
    """Write config.json, model.safetensors and the tokenizer into `folder`."""
    from isoflop.corpus import tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    tok = tokenizer(corpus)
    end = end_of_text(tok)
    weights = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    if model.config.tied:
        del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    documents = {
        "config.json": qwen3_config(model.config, end),
        "generation_config.json": {"bos_token_id": end, "eos_token_id": end, "do_sample": True},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "model_max_length": model.config.context,
            "clean_up_tokenization_spaces": False,
        },
    }
    for name, content in documents.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    tok.save(str(folder / "tokenizer.json"))


def load_pretrained(folder: Path) -> GPT:
    """A model from a Hugging Face folder of the Qwen3 architecture.

    Raises ProjectError when there is no such folder, CorruptError when its files do not agree.
    """
    path = folder / "config.json"
    if not path.exists():
        raise ProjectError(f"{folder} has no config.json", hint="name a model folder (isoflop ls shows them)")
    try:
        raw = json.loads(path.read_text())
        if raw.get("model_type") != "qwen3":
            raise ProjectError(
                f"{folder} holds a {raw.get('model_type')} model", hint="isoflop opens the qwen3 architecture"
            )
        rope = raw.get("rope_parameters") or {}
        config = ModelConfig(
            vocab_size=raw["vocab_size"],
            d_model=raw["hidden_size"],
            n_layers=raw["num_hidden_layers"],
            n_heads=raw["num_attention_heads"],
            n_kv_heads=raw["num_key_value_heads"],
            head_dim=raw["head_dim"],
            d_ff=raw["intermediate_size"],
            context=raw["max_position_embeddings"],
            rope_theta=rope.get("rope_theta", raw.get("rope_theta", 10_000.0)),
            tied=raw["tie_word_embeddings"],
        )
        weights = load_file(folder / "model.safetensors")
        model = GPT(config)
        if config.tied:
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        model.load_state_dict(weights)
    except (OSError, KeyError, RuntimeError, SafetensorError, json.JSONDecodeError) as error:
        raise CorruptError(
            f"{folder} cannot be read: {str(error).splitlines()[0]}", hint="train it again"
        ) from None
    return model.eval()


@torch.no_grad()
def generate(
    model: GPT, ids: list[int], *, tokens: int, temperature: float, top_k: int, seed: int, stop: int | None
) -> list[int]:
    """Continue `ids` by sampling; `temperature` 0 takes the likeliest token. Returns the new ids."""
    generator = torch.Generator().manual_seed(seed)
    out = list(ids)
    for _ in range(tokens):
        window = torch.tensor([out[-model.config.context :]])
        logits = model.lm_head(model.model(window)[:, -1])[0]
        if temperature == 0:
            choice = int(logits.argmax())
        else:
            best, index = torch.topk(logits / temperature, min(top_k, logits.numel()))
            choice = int(index[torch.multinomial(best.softmax(0), 1, generator=generator)])
        if choice == stop:
            break
        out.append(choice)
    return out[len(ids) :]
