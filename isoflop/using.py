"""What a finished model folder is asked for: its held-out score, and text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from isoflop.corpus import end_token, tokenizer
from isoflop.engines import Engine, is_export, open_engine
from isoflop.errors import CorruptError, ProjectError
from isoflop.evaluate import HeldOut, heldout, heldout_of
from isoflop.export import load_pretrained, tokenizer_of
from isoflop.gpt import GPT
from isoflop.model import LanguageModel
from isoflop.objectives import OBJECTIVES
from isoflop.records import Corpus, Sample

SAMPLE_TOKENS = 96


def evaluate_model(path: Path, corpus: Corpus, *, eval_tokens: int, threads: int = 1) -> HeldOut:
    """Held-out scores of a model folder, or of an export of one in its engine.

    Raises CorruptError when its tokenizer is another one, or its weights are not finite.
    """
    if is_export(path):
        with reading(path, corpus, threads=threads) as engine:
            return heldout_of(engine, corpus, eval_tokens=eval_tokens)
    model = load_pretrained(path)
    check_vocabulary(model, path, corpus)
    check_finite(model, path)
    return heldout(model, corpus, eval_tokens=eval_tokens)


def sample(
    model_folder: Path, corpus: Corpus, prompts: Sequence[str], *, tokens: int = SAMPLE_TOKENS,
    temperature: float = 0.8, top_k: int = 50, seed: int = 0,
) -> list[Sample]:  # fmt: skip
    """Continue each prompt; an empty prompt starts a new document.

    Raises ProjectError for a model that is not causal, CorruptError when its vocabulary is not the corpus's.
    """
    model, tok = load_pretrained(model_folder), tokenizer(corpus)
    if not OBJECTIVES[model.config.objective].compresses:
        raise ProjectError(
            f"{model_folder} has learned the objective {model.config.objective!r}: it fills gaps, or the "
            "second half of a window, and cannot continue text",
            hint="sample a causal one, such as gpt2 or llama",
        )
    check_vocabulary(model, model_folder, corpus)
    end = end_token(corpus)
    out = []
    for i, prompt in enumerate(prompts):
        ids = [end, *tok.encode(prompt).ids]
        new = generate(
            model, ids, tokens=tokens, temperature=temperature, top_k=top_k, seed=seed + i, stop=end
        )
        out.append(Sample(prompt=prompt, text=tok.decode(new)))
    return out


@torch.no_grad()
def generate(
    model: LanguageModel, ids: list[int], *, tokens: int, temperature: float, top_k: int, seed: int,
    stop: int | None,
) -> list[int]:  # fmt: skip
    """Continue `ids` by sampling; `temperature` 0 takes the likeliest token. Returns the new ids."""
    generator = torch.Generator().manual_seed(seed)
    out = list(ids)
    for _ in range(tokens):
        logits = model.last_logits(torch.tensor([out[-model.config.context :]]))[0]
        if temperature == 0:
            choice = int(logits.argmax())
        else:
            best, index = torch.topk(logits / temperature, min(top_k, logits.numel()))
            choice = int(index[torch.multinomial(best.softmax(0), 1, generator=generator)])
        if choice == stop:
            break
        out.append(choice)
    return out[len(ids) :]


def check_vocabulary(model: LanguageModel, folder: Path, corpus: Corpus) -> None:
    """Raises CorruptError unless the model's tokenizer is the corpus's own."""
    if not same_tokenizer(model, folder, corpus):
        raise CorruptError(
            f"the tokenizer of {folder} is not the tokenizer of corpus {corpus.id}",
            hint="evaluate it in the project that it was trained in, or rebuild the corpus with --tokenizer "
            f"{folder / 'tokenizer.json'}",
        )


def same_tokenizer(model: LanguageModel, folder: Path, corpus: Corpus) -> bool:
    """Whether a model folder's tokenizer is the corpus's, and the model knows all of its tokens."""
    theirs, ours = folder / "tokenizer.json", tokenizer_of(model.config, corpus)[0]
    size = max(corpus.vocab_size, ours.get_vocab_size(with_added_tokens=True))
    return model.config.vocab_size >= size and theirs.exists() and _text(theirs) == ours.to_str()


def check_finite(model: LanguageModel, folder: Path) -> None:
    """Raises CorruptError naming the first weights that are not finite."""
    for name, weight in model.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise CorruptError(f"{name} of {folder} has weights that are not finite", hint="train it again")


def decoder_of(folder: Path, corpus: Corpus, done: str) -> GPT:
    """Our decoder in a model folder, with finite weights, of the corpus's tokenizer.

    `done` says what is to be done with it: "exported". Raises ProjectError for another architecture,
    CorruptError for what is damaged or has another tokenizer.
    """
    model = load_pretrained(folder)
    if not isinstance(model, GPT):
        raise ProjectError(
            f"{folder} is a model of the family {model.config.family}, and only our decoder can be {done}",
            hint="name a folder of Qwen3's architecture, such as isoflop trains when no --family is given",
        )
    check_vocabulary(model, folder, corpus)
    check_finite(model, folder)
    return model


@contextmanager
def reading(path: Path, corpus: Corpus, *, threads: int = 1) -> Iterator[Engine]:
    """The engine of an artifact that reads as the corpus's tokenizer does. Raises as `open_engine` does, and
    CorruptError for another tokenizer.
    """
    with open_engine(path, threads=threads) as engine:
        check_reading(engine, path, corpus)
        yield engine


def check_reading(engine: Engine, path: Path, corpus: Corpus) -> None:
    """Raises CorruptError unless the engine reads as the corpus's tokenizer does."""
    ours = tokenizer(corpus)
    text = "".join(ours.decode([i]) for i in range(ours.get_vocab_size()) if i != end_token(corpus))
    if engine.vocab_size < corpus.vocab_size or engine.encode(text) != ours.encode(text).ids:
        raise CorruptError(
            f"the tokenizer of {path} is not the tokenizer of corpus {corpus.id}",
            hint="evaluate it in the project that it was exported in",
        )


def _text(path: Path) -> str:
    """A tokenizer file in its canonical form."""
    from tokenizers import Tokenizer

    return str(Tokenizer.from_file(str(path)).to_str())
