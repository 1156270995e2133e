"""Models in other people's formats: the Hugging Face folder that transformers opens."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path

from safetensors import SafetensorError
from tokenizers import AddedToken, Tokenizer

from isoflop import corpus as texts
from isoflop.errors import CorruptError, ProjectError, TrainError
from isoflop.families import family_of, of_config
from isoflop.model import LanguageModel
from isoflop.objectives import OBJECTIVES
from isoflop.records import Corpus, ModelConfig

END_OF_TEXT = "<|endoftext|>"
MASK = "<|mask|>"


def end_of_text(tokenizer: Tokenizer) -> int:
    """Id of the token between documents."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    assert end is not None  # corpora refuse tokenizers without it
    return int(end)


def tokenizer_of(config: ModelConfig, corpus: Corpus) -> tuple[Tokenizer, dict[str, str]]:
    """The corpus's tokenizer with the tokens that the model needs besides, and their names."""
    tok = texts.tokenizer(corpus)
    names = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    for i in range(OBJECTIVES[config.objective].extra_ids):
        free = (f"{MASK[:-2]}{n or ''}|>" for n in count())
        names |= {"mask_token": next(n for n in free if tok.token_to_id(n) is None), "pad_token": END_OF_TEXT}
        tok.add_special_tokens([AddedToken(names["mask_token"], special=True)])
        if tok.token_to_id(names["mask_token"]) != corpus.vocab_size + i:
            raise TrainError(
                f"the tokenizer of corpus {corpus.id} leaves ids unused, so it cannot get a mask token",
                hint="let a tokenizer be trained, or give one without gaps",
            )
    return tok, names


def save_pretrained(model: LanguageModel, corpus: Corpus, folder: Path) -> None:
    """Write config.json, model.safetensors and the tokenizer into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tok, names = tokenizer_of(model.config, corpus)
    end = end_of_text(tok)
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

    Raises ProjectError when there is no such folder or it is no language model's, CorruptError when its files
    do not agree.
    """
    path = folder / "config.json"
    if not path.exists():
        raise ProjectError(f"{folder} has no config.json", hint="name a model folder (isoflop ls shows them)")
    try:
        raw = json.loads(path.read_text())
        return of_config(raw).load(folder, raw).eval()
    except TrainError as error:
        raise ProjectError(f"{folder} cannot be opened: {error.message}", hint=error.hint) from None
    except (OSError, KeyError, RuntimeError, SafetensorError, json.JSONDecodeError) as error:
        raise CorruptError(
            f"{folder} cannot be read: {str(error).splitlines()[0]}", hint="train it again"
        ) from None
