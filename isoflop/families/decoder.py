"""Our own decoder: built by `gpt`, started by `initial`, saved as transformers' Qwen3."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from isoflop import flops, recipe
from isoflop.families.sparse import WEIGHTS, read_weights
from isoflop.gpt import EPS, GPT
from isoflop.initial import initialise
from isoflop.objectives import OBJECTIVES
from isoflop.records import ModelConfig

MODEL_TYPE = "qwen3"


@dataclass(frozen=True)
class Decoder:
    """The default family."""

    objective: str = "causal"
    name: str = "isoflop"
    template: str = ""

    def widths(self) -> Iterator[int]:
        return recipe.widths()

    def shape(
        self, d_model: int, vocab_size: int, *, n_layers: int | None = None, context: int = recipe.CONTEXT
    ) -> ModelConfig:
        shape = recipe.shape(d_model, vocab_size, n_layers=n_layers, context=context)
        return shape.model_copy(update={"objective": self.objective})

    def build(self, model: ModelConfig, seed: int, *, dropout: float = 0.0) -> GPT:
        made = GPT(model, dropout)
        initialise(made, seed)
        return made

    def counts(self, model: ModelConfig) -> flops.Counts:
        return flops.decoder_counts(model, OBJECTIVES[model.objective].predicted(model.context))

    def save(self, model: GPT, folder: Path, end_of_text: int) -> None:
        weights = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
        if model.config.tied:
            del weights["lm_head.weight"]
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
        text = json.dumps(qwen3_config(model.config, end_of_text), indent=2) + "\n"
        (folder / "config.json").write_text(text)

    def load(self, folder: Path, raw: Mapping[str, Any]) -> GPT:
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
            objective=raw.get("isoflop_objective", "causal"),
        )
        model = GPT(config)
        wanted = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
        weights = read_weights(folder, wanted)
        if config.tied:
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        _check_tensors(weights, wanted)
        model.load_state_dict(weights)
        return model


def _check_tensors(weights: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raises RuntimeError that names the first tensor which a model of this shape lacks, or has not."""
    for name, shape in wanted.items():
        if name not in weights:
            raise RuntimeError(f"its weights lack {name}")
        if tuple(weights[name].shape) != shape:
            raise RuntimeError(f"{name} has the shape {tuple(weights[name].shape)}, its config says {shape}")
    for name in weights:
        if name not in wanted:
            raise RuntimeError(f"it has weights {name}, which a model of its config has not")


def qwen3_config(config: ModelConfig, end_of_text: int) -> dict[str, object]:
    """`config.json` of transformers' `Qwen3ForCausalLM` for this shape."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": MODEL_TYPE,
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
        **({} if config.objective == "causal" else {"isoflop_objective": config.objective}),
    }
