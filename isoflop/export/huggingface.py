"""The Hugging Face folder that transformers opens, also of our own models' weights."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from tokenizers import AddedToken, Tokenizer

from isoflop import corpus as texts
from isoflop.engines import packed_by
from isoflop.errors import CorruptError, ProjectError, TrainError
from isoflop.families import family_of, of_config
from isoflop.families.foreign import read_config
from isoflop.model import LanguageModel
from isoflop.objectives import OBJECTIVES
from isoflop.objectives.special import CLS, MASK, SEP, own_names
from isoflop.records import Corpus, ModelConfig

ROLES = {MASK: "mask_token", CLS: "cls_token", SEP: "sep_token"}


def tokenizer_of(config: ModelConfig, corpus: Corpus) -> tuple[Tokenizer, dict[str, Any]]:
    """The corpus's tokenizer with the tokens that the model needs besides, and their names."""
    tok = texts.tokenizer(corpus)
    end = tok.id_to_token(texts.end_token(corpus))
    names: dict[str, Any] = {"bos_token": end, "eos_token": end}
    special = OBJECTIVES[config.objective].special
    own = own_names(special, corpus) or [_add(name, tok, corpus) for name in special]
    for name, there in zip(special, own, strict=True):
        names["pad_token"] = end
        if name in ROLES:
            names[ROLES[name]] = there
        else:
            names.setdefault("additional_special_tokens", []).append(there)
    return tok, names


def _add(name: str, tok: Tokenizer, corpus: Corpus) -> str:
    """Give a tokenizer one more special token, of the next id; returns what it is called there."""
    size = tok.get_vocab_size(with_added_tokens=True)
    there = next(
        n for n in (f"{name[:-2]}{i or ''}{name[-2:]}" for i in count()) if tok.token_to_id(n) is None
    )
    tok.add_special_tokens([AddedToken(there, special=True)])
    if tok.token_to_id(there) != size or size < corpus.vocab_size:
        raise TrainError(
            f"the tokenizer of corpus {corpus.id} leaves ids unused, so it cannot get a token {name}",
            hint="let a tokenizer be trained, or give one without gaps",
        )
    return there


def save_pretrained(model: LanguageModel, corpus: Corpus, folder: Path) -> None:
    """Write config.json, model.safetensors and the tokenizer into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tok, names = tokenizer_of(model.config, corpus)
    end = texts.end_token(corpus)
    family_of(model.config).save(model, folder, end)
    documents: dict[str, dict[str, object]] = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **names,
            "model_max_length": model.config.context,
            "clean_up_tokenization_spaces": False,
        },
    }
    if OBJECTIVES[model.config.objective].compresses:
        documents["generation_config.json"] = {"bos_token_id": end, "eos_token_id": end, "do_sample": True}
    for name, content in documents.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    tok.save(str(folder / "tokenizer.json"))


def load_pretrained(folder: Path) -> LanguageModel:
    """A model from a Hugging Face folder.

    Raises ProjectError when there is no such folder, it is no language model's, or its weights are packed;
    CorruptError when its files do not agree.
    """
    path = folder / "config.json"
    if not path.exists():
        raise ProjectError(
            f"{folder} has no config.json",
            hint="name a model folder, as in PROJECT/artifacts",
        )
    if (method := packed_by(folder)) is not None:
        raise ProjectError(
            f"the weights of {folder} are packed by {method}, and only an engine opens them",
            hint="name the model folder that it was exported from",
        )
    try:
        raw = read_config(path)
        return of_config(raw).load(folder, raw).eval()
    except TrainError as error:
        raise ProjectError(f"{folder} cannot be opened: {error.message}", hint=error.hint) from None
    except (OSError, KeyError, RuntimeError, SafetensorError, json.JSONDecodeError) as error:
        raise CorruptError(
            f"{folder} cannot be read: {str(error).splitlines()[0]}", hint="train it again"
        ) from None
