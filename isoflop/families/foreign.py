"""Architectures of transformers: built from a config, scaled by one rule, trained as our own decoder is.

A family is transformers' default config of an architecture, or the config.json of a folder. Both keep
d_ff / d_model (rounded to 32), key/value heads / heads, and heads * head size / d_model. A folder's also
keeps its head size and its layers / d_model; the default configs take those of our decoder (`recipe.shape`),
so that families compare at like shapes. Lists named after layers, with an entry for each, are cut or
repeated. Every dropout of a config is the run's, 0 as a rule, since text is seen a few times at most; whole
layers are never dropped. Positions that are learned reach as far as the context. Encoder and decoder of one
model have each as many layers as a decoder of that width, or those of the folder's in its own ratio: twice
the weights for about the same compute, since a token meets one of them (Raffel et al., arXiv 1910.10683,
section 3.2.2).

Special tokens of an objective, such as the mask, have ids above the corpus's vocabulary; there is no padding
token, whose embedding would not learn. Experts, and layers that share weights, are refused.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from isoflop import flops, recipe
from isoflop.errors import TrainError
from isoflop.families.encoder_decoder import KINDS, START, EncoderDecoder, mixing_flops
from isoflop.families.wrapped import Wrapped, library
from isoflop.objectives import OBJECTIVES
from isoflop.records import ModelConfig

HEADS = ("num_attention_heads", "num_heads")  # names that configs have for one thing
FEED_FORWARD = ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim", "ffn_hidden_size", "d_ff")
OTHER_WIDTHS = ("word_embed_proj_dim", "embedding_size")
FEED_FORWARD_RATIO = 4  # where a config does not say it (GPT-2's n_inner)
OBJECTIVE_KEY = "isoflop_objective"  # in config.json, where it is not what the architecture says
NOT_SHAPE = (
    "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "id2label",
    "label2id", "model_type", OBJECTIVE_KEY,
)  # fmt: skip
AUTO_CLASSES = {
    "masked": "AutoModelForMaskedLM", "masked-words": "AutoModelForMaskedLM",
    "masked-next": "AutoModelForPreTraining",
}  # fmt: skip

Net = Wrapped | EncoderDecoder


@dataclass(frozen=True)
class Architecture:
    """What the registry knows of a model type."""

    objective: str = "causal"
    settings: Mapping[str, Any] = field(default_factory=dict)  # over transformers' defaults
    mixing: Callable[[ModelConfig, Any], int] = flops.attention_flops  # of what goes between tokens


T5_BASE = {
    "feed_forward_proj": "gated-gelu", "d_model": 768, "d_kv": 64, "num_heads": 12, "d_ff": 2048,
    "num_layers": 12,
}  # fmt: skip

ARCHITECTURES: Mapping[str, Architecture] = {
    "gpt2": Architecture(),  # Radford et al., 2019
    "llama": Architecture(),  # Touvron et al., arXiv 2302.13971
    "bert": Architecture("masked"),  # Devlin et al., arXiv 1810.04805
    "modernbert": Architecture("masked"),  # Warner et al., arXiv 2412.13663
    # Dao and Gu, arXiv 2405.21060. Transformers' defaults are those of a 7B model. It is several times
    # slower than attention without the CUDA kernels.
    "mamba2": Architecture(
        settings={"n_groups": 1, "state_size": 64, "chunk_size": 64}, mixing=flops.scan_flops
    ),
    # Raffel et al., arXiv 1910.10683, with the gated feed-forward and the ratios of T5 v1.1 (base); its head
    # is the input table, as in T5 itself: transformers ties them.
    "t5": Architecture("spans", T5_BASE, mixing_flops),
}


@dataclass(frozen=True)
class Foreign:
    """A family of transformers; `name` is its model type."""

    name: str
    objective: str
    template: str = ""  # of a folder: its config.json, without what is no shape

    @classmethod
    def of_folder(cls, folder: Path) -> Foreign:
        """The family of a folder's config.json. Raises TrainError when there is none of a language model."""
        path = folder / "config.json"
        if not path.exists():
            raise TrainError(f"{folder} has no config.json", hint="name a folder of a model of transformers")
        raw = read_config(path)
        try:
            return cls.of_config(raw)
        except TrainError as error:
            raise TrainError(f"{path} cannot be scaled: {error.message}", hint=error.hint) from None

    @classmethod
    def of_config(cls, raw: Mapping[str, Any]) -> Foreign:
        """The family of a config.json. Raises TrainError when it is no language model's."""
        name = raw["model_type"]
        template = json.dumps({k: v for k, v in raw.items() if k not in NOT_SHAPE}, sort_keys=True)
        return cls(name, _objective_of(name, raw), template)

    def widths(self) -> Iterator[int]:
        return recipe.widths(self._head_width() if self.template else recipe.WIDTH_STEP)

    def shape(
        self, d_model: int, vocab_size: int, *, n_layers: int | None = None, context: int = recipe.CONTEXT
    ) -> ModelConfig:
        base, like = self._base(), recipe.shape(d_model, vocab_size, n_layers=n_layers, context=context)
        if self.template:
            layers = n_layers or max(2, round(d_model * base.n_layers / base.d_model))
            head_dim, one_head = base.head_dim, self._head_width()
        else:
            layers, head_dim = like.n_layers, like.head_dim
            one_head = max(1, head_dim * base.d_model // (base.n_heads * base.head_dim))
        if d_model % one_head:
            raise TrainError(
                f"a width of {d_model} is no multiple of {one_head}, which one head of {self.name} takes",
                hint=f"give a multiple of {one_head}",
            )
        heads = d_model // one_head
        kv_heads = max(1, round(heads * base.n_kv_heads / base.n_heads))
        while heads % kv_heads:
            kv_heads -= 1
        step = recipe.WIDTH_STEP
        return base.model_copy(update={
            "vocab_size": vocab_size + len(OBJECTIVES[self.objective].special),
            "d_model": d_model, "n_layers": layers, "n_heads": heads, "n_kv_heads": kv_heads,
            "head_dim": head_dim, "context": context,
            "d_ff": step * max(1, round(d_model * base.d_ff / base.d_model / step)),
        })  # fmt: skip

    def build(self, model: ModelConfig, seed: int, *, dropout: float = 0.0) -> Net:
        """Transformers' own initial weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._wrap(model, self.auto_class().from_config(self.config(model, dropout)))

    def auto_class(self) -> Any:
        """Transformers' class that builds and opens models of this family and objective."""
        if self.name in KINDS:
            return library().AutoModelForSeq2SeqLM
        return getattr(library(), AUTO_CLASSES.get(self.objective, "AutoModelForCausalLM"))

    def _wrap(self, model: ModelConfig, net: Any) -> Net:
        return EncoderDecoder(model, net) if self.name in KINDS else Wrapped(model, net)

    def counts(self, model: ModelConfig) -> flops.Counts:
        """Counted on the modules, built without memory. Saved floats are those of attention as plain matmuls.

        What comes after the body meets only the positions that are predicted.
        """
        with torch.device("meta"):
            wrapped = self.build(model, 0)
        net, head = wrapped.net, wrapped.net.get_output_embeddings()
        weights = flops.weights_that_multiply(net)
        window = sum(n * wrapped.positions(name) for name, n in weights.items())
        aside = {id(p) for p in head.parameters()}
        aside |= {id(m.weight) for m in net.modules() if isinstance(m, nn.Embedding)}
        mixing = _architecture(self.name).mixing(model, net.config)
        return flops.Counts(
            total=sum(p.numel() for p in net.parameters()),
            nonembedding=sum(p.numel() for p in net.parameters() if id(p) not in aside),
            matmul=sum(weights.values()),
            per_token=round(6 * window / model.context) + mixing,
            saved=_saved_floats(wrapped),
        )

    def save(self, model: Net, folder: Path, end_of_text: int) -> None:
        model.net.save_pretrained(folder)
        config = copy.deepcopy(model.net.config)
        pair = ("cls_token_id", "sep_token_id") if self.objective != "masked-next" else ()
        for name in ("bos_token_id", "eos_token_id", *pair):
            if hasattr(config, name):
                setattr(config, name, end_of_text)
        if self.name in KINDS:
            config.pad_token_id = config.decoder_start_token_id = START
        if _objective_of(self.name, {"architectures": [type(model.net).__name__]}) != self.objective:
            setattr(config, OBJECTIVE_KEY, self.objective)
        config.use_cache = True
        config.max_position_embeddings = model.config.context  # also of those without a table of positions
        config.architectures = [type(model.net).__name__]
        config.save_pretrained(folder)
        if self.name in KINDS:
            library().GenerationConfig.from_model_config(config).save_pretrained(folder)

    def load(self, folder: Path, raw: Mapping[str, Any]) -> Net:
        net, found = self.auto_class().from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, local_files_only=True,
            ignore_mismatched_sizes=True,  # it would not name them
        )  # fmt: skip
        for name in sorted(found["missing_keys"]):
            raise RuntimeError(f"its weights lack {name}")
        for name, theirs, ours in sorted(found["mismatched_keys"]):
            raise RuntimeError(f"{name} has the shape {tuple(theirs)}, its config says {tuple(ours)}")
        for name in sorted(found["unexpected_keys"]) if self.objective == "causal" else ():
            # Encoders are kept with the heads of all that they once learned.
            raise RuntimeError(f"it has weights {name}, which a model of its config has not")
        return self._wrap(self._base(), net)

    def config(self, model: ModelConfig, dropout: float = 0.0) -> Any:
        """Transformers' config of a shape. Raises TrainError when the class refuses it, or has no dropout."""
        base = _config(self.name, self.template)
        kind = type(base)
        raw = _settings(self.name, self.template)
        layers = base.num_hidden_layers
        for name, value in list(raw.items()):
            if "layer" in name and isinstance(value, list) and len(value) == layers:
                raw[name] = [value[i % layers] for i in range(model.n_layers)]
        raw |= _without_tokens(base.to_dict()) | _dropped(self.name, base.to_dict(), dropout)
        if self.name in KINDS:
            raw["num_decoder_layers"] = max(1, round(model.n_layers * base.num_decoder_layers / layers))
        for name, value in _shape_settings(base, model).items():
            raw[kind.attribute_map.get(name, name)] = value
        try:
            return kind(**raw)
        except Exception as error:  # classes validate in many ways
            raise cannot(self.name, error) from None

    def _base(self) -> ModelConfig:
        """The shape of the config that is scaled."""
        return _base(self.name, self.objective, self.template)

    def _head_width(self) -> int:
        """Width that goes with one head."""
        base = self._base()
        return max(1, base.d_model // base.n_heads)


def _without_tokens(kept: Mapping[str, Any]) -> dict[str, None]:
    """A config's ids of special tokens, which are those of another tokenizer."""
    return {name: None for name in kept if name.endswith("_token_id")}


def _dropped(family: str, kept: Mapping[str, Any], dropout: float) -> dict[str, float]:
    """A config's dropouts with the run's value. Raises TrainError when it has none and some is wanted."""
    drops = {
        name for name, value in kept.items()
        if "drop" in name and isinstance(value, float | int) and not isinstance(value, bool)
    }  # fmt: skip
    of_layers = {name for name in drops if "layer" in name}
    if dropout and drops <= of_layers:
        raise TrainError(f"a {family} model has no dropout", hint="leave dropout at 0")
    return {name: 0.0 if name in of_layers else dropout for name in drops}


def _architecture(name: str) -> Architecture:
    untried = Architecture("spans", mixing=mixing_flops) if name in KINDS else Architecture()
    return ARCHITECTURES.get(name, untried)


def _settings(name: str, template: str) -> dict[str, Any]:
    """What is said of the config before it is scaled: by a folder, or else by the registry."""
    if not template:
        return dict(_architecture(name).settings)
    settings: dict[str, Any] = json.loads(template, object_hook=_special_float)
    return settings


def _special_float(value: dict[str, Any]) -> Any:
    """Transformers writes infinity as {"__float__": "Infinity"}."""
    return float(value["__float__"]) if value.keys() == {"__float__"} else value


def _first(config: Any, names: tuple[str, ...]) -> str | None:
    """The name that this config uses."""
    return next((n for n in names if hasattr(config, n)), None)


@lru_cache
def _config(name: str, template: str) -> Any:
    """Transformers' config before it is scaled."""
    try:
        return library().AutoConfig.for_model(name, **_settings(name, template))
    except Exception as error:
        raise cannot(name, error) from None


@lru_cache
def _base(name: str, objective: str, template: str) -> ModelConfig:
    config = _config(name, template)
    heads, wide = _first(config, HEADS), _first(config, FEED_FORWARD)
    if heads is None or not hasattr(config, "hidden_size"):
        raise TrainError(f"a {name} config has no width and heads to scale", hint="use another architecture")
    d_model, n_heads = config.hidden_size, getattr(config, heads)
    return ModelConfig(
        family=name, objective=objective, template=template,
        vocab_size=config.vocab_size, d_model=d_model, n_layers=config.num_hidden_layers, n_heads=n_heads,
        n_kv_heads=getattr(config, "num_key_value_heads", None) or n_heads,
        head_dim=getattr(config, "head_dim", None) or d_model // n_heads,
        d_ff=(wide and getattr(config, wide)) or FEED_FORWARD_RATIO * d_model,
        context=getattr(config, "max_position_embeddings", None) or recipe.CONTEXT,
        tied=bool(config.tie_word_embeddings),
    )  # fmt: skip


def _shape_settings(base: Any, model: ModelConfig) -> dict[str, Any]:
    """What a shape says, in the words of this config; names that it does not have are left out."""
    settings: dict[str, Any] = {
        "vocab_size": model.vocab_size, "hidden_size": model.d_model, "num_hidden_layers": model.n_layers,
        "num_key_value_heads": model.n_kv_heads, "head_dim": model.head_dim,
        "max_position_embeddings": model.context, "tie_word_embeddings": model.tied,
        "use_cache": False, "dtype": "float32", _first(base, FEED_FORWARD) or "": model.d_ff,
    }  # fmt: skip
    settings |= dict.fromkeys(HEADS, model.n_heads)
    for name in OTHER_WIDTHS:
        settings[name] = round(getattr(base, name, 0) * model.d_model / base.hidden_size)
    kept = base.to_dict()
    return {name: value for name, value in settings.items() if base.attribute_map.get(name, name) in kept}


def read_config(path: Path) -> dict[str, Any]:
    """The content of a config.json. Raises TrainError when it is none of transformers."""
    hint = "give a config.json of transformers"
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TrainError(f"{path} is not a config: {error}", hint=hint) from None
    if not isinstance(raw, dict) or not isinstance(raw.get("model_type"), str):
        raise TrainError(f"{path} is not a config: it names no model_type", hint=hint)
    return raw


def _objective_of(name: str, raw: Mapping[str, Any]) -> str:
    """What a config's model learns: as its architecture says, or else as the model type is mostly used."""
    from transformers.models.auto import modeling_auto as auto

    causal, masked = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    whole = (raw.get("architectures") or [""])[0]
    if raw.get(OBJECTIVE_KEY) in OBJECTIVES:
        return str(raw[OBJECTIVE_KEY])
    if name in KINDS:
        return "spans"
    if not raw.get("is_encoder_decoder"):
        if pairs(name) and whole == auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES.get(name):
            return "masked-next"
        if whole == causal.get(name) or (name in causal and name not in masked):
            return "causal"
        if name in masked:
            return "masked"
    raise TrainError(
        f"{name!r} is neither a causal nor a masked language model of transformers, nor T5's kin",
        hint="use a model type such as gpt2, llama, bert, modernbert or t5",
    )


def pairs(name: str) -> bool:
    """Whether a model type has the head that tells whether one stretch of text follows another."""
    from transformers.models.auto import modeling_auto as auto

    return name in auto.MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES


def _saved_floats(model: Net) -> int:
    """Floats that one window's forward pass keeps for the backward pass, a token."""
    t = model.config.context
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage()._cdata not in weights:
            kept[x.untyped_storage()._cdata] = x
        return x

    model.net.config.use_cache = True  # without a cache, masks are made from values, which meta has not
    widths = OBJECTIVES[model.config.objective].lengths(t)
    ids, targets = (torch.zeros(1, width, dtype=torch.long, device="meta") for width in widths)
    with saved_tensors_hooks(keep, lambda x: x):
        model.loss(ids, targets)
    return sum(x.untyped_storage().nbytes() for x in kept.values()) // flops.BYTES_FLOAT32 // t


def cannot(name: str, error: Exception) -> TrainError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return TrainError(
        f"a model of type {name} cannot be built from this config: {lines[-1].strip()}",
        hint="use another architecture, or mend its config.json",
    )
