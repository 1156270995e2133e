"""Engines and exports: what is served must be what was trained."""

from __future__ import annotations

import json
import shutil
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finished import Home
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from isoflop.corpus import build_corpus, end_token, heldout_tokens, tokenizer
from isoflop.engines import llamacpp, open_engine
from isoflop.engines.reading import continued, log_probabilities
from isoflop.engines.speed import measure
from isoflop.errors import CorruptError, IsoflopError, ProjectError
from isoflop.export import gated, save_pretrained
from isoflop.export.gated import FORMATS, Export, export
from isoflop.export.gguf import TYPES, write_gguf
from isoflop.families import find
from isoflop.gpt import GPT
from isoflop.records import Corpus, CorpusConfig
from isoflop.scoring.documents import by_document
from isoflop.scoring.ensemble import compare
from isoflop.store import Project
from isoflop.using import evaluate_model

pytest.importorskip("gguf", reason="the extra isoflop[gguf] is not installed")
pytest.importorskip("xllamacpp", reason="the extra isoflop[gguf] is not installed")


@pytest.fixture(scope="module")
def exports(home: Home) -> dict[str, Export]:
    return {kind: export(*home, kind=kind) for kind in TYPES}


def opened(home: Home, done: Export) -> Path:
    return home[0].folder / done.path


def test_every_type_passes_the_gate_and_needs_fewer_bytes(exports: dict[str, Export]) -> None:
    sizes = [exports[kind].bytes for kind in TYPES if not kind.endswith("_k")]
    assert sizes == sorted(sizes, reverse=True)
    assert exports["q4_k"].bytes == exports["q5_0"].bytes  # rows of 64 weights are no blocks of 256
    for kind, done in exports.items():
        assert done.parity.lines == 1000
        assert 0 < done.parity.deviation < done.parity.tolerance, kind
        assert done.parity.greedy > 0
    assert exports["f32"].parity.deviation < exports["q8_0"].parity.deviation


def test_rounding_costs_what_its_bits_say(home: Home, exports: dict[str, Export]) -> None:
    whole = evaluate_model(home[2], home[1], eval_tokens=4096).loss
    losses = {k: evaluate_model(opened(home, d), home[1], eval_tokens=4096).loss for k, d in exports.items()}
    assert losses["f32"] == pytest.approx(whole, rel=1e-4)
    assert losses["q8_0"] == pytest.approx(whole, rel=2e-3)
    assert whole < losses["q4_0"] < 1.2 * whole
    assert losses["q5_1"] < losses["q4_0"]


def test_transformers_and_llama_cpp_compute_the_same(home: Home, exports: dict[str, Export]) -> None:
    ids = np.random.default_rng(0).integers(0, home[1].vocab_size, 64).tolist()
    with open_engine(home[2]) as one, open_engine(opened(home, exports["f32"])) as two:
        a, b = one.feed(ids, every=True), two.feed(ids, every=True)
        assert abs(a - b).max() < 0.02 * a.std()
        assert one.weight_bytes == pytest.approx(two.weight_bytes, rel=0.01)
        assert one.encode("def f(x):\n    return 1234") == two.encode("def f(x):\n    return 1234")


def test_transformers_and_llama_cpp_write_the_same(home: Home, exports: dict[str, Export]) -> None:
    prompt = heldout_tokens(home[1])[:16].tolist()
    with open_engine(home[2]) as one, open_engine(opened(home, exports["f32"])) as two:
        ours, theirs = (list(islice(continued(engine, prompt), 24)) for engine in (one, two))
        alike = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), 24)
        if alike < 24:  # only where both tokens were as likely
            found = log_probabilities(one, [*prompt, *ours[:alike]])[-1]
            assert found[ours[alike]] == pytest.approx(found[theirs[alike]], abs=0.02)
    assert alike > 0


@pytest.mark.parametrize("kind", ["folder", "q8_0"])
def test_tokens_may_come_in_parts(home: Home, exports: dict[str, Export], kind: str) -> None:
    ids = list(range(1, 33))
    with open_engine(home[2] if kind == "folder" else opened(home, exports[kind])) as engine:
        whole = engine.feed(ids, every=True)
        engine.reset()
        parts = [engine.feed(ids[:20], every=True), *(engine.feed([i], every=False) for i in ids[20:])]
        assert np.concatenate(parts) == pytest.approx(whole, abs=0.02 * float(whole.std()))


def test_a_full_context_is_told(home: Home, exports: dict[str, Export]) -> None:
    with open_engine(opened(home, exports["f32"])) as engine:
        engine.feed([1] * engine.context, every=False)
        with pytest.raises(ProjectError, match=f"{engine.context + 1} tokens do not fit"):
            engine.feed([1], every=False)


def test_questions_are_answered_alike_in_both(home: Home, exports: dict[str, Export]) -> None:
    paths = [home[2], opened(home, exports["f32"])]
    found = []
    for path in paths:
        with open_engine(path) as engine:
            found.append(by_document(engine, home[1], eval_tokens=1500))
    assert [d.hash for d in found[0].scored] == [d.hash for d in found[1].scored]
    assert [d.loss for d in found[0].scored] == pytest.approx([d.loss for d in found[1].scored], rel=1e-3)
    beside = compare(paths, home[1], eval_tokens=1024)
    assert abs(beside.members[0].change - beside.members[1].change) < 1e-3


@pytest.fixture
def fresh(home: Home, tmp_path: Path) -> Home:
    """The same in a project that has no exports yet."""
    (tmp_path / "artifacts").mkdir()
    return Project(tmp_path), *home[1:]


def broken(change: Any) -> Any:
    """GGUF, but written of a model that `change` has spoilt."""

    def write(model: GPT, corpus: Corpus, folder: Path, kind: str, rounding: str, calibrate: int) -> Path:
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        change(model)
        path = gated._write_gguf(model, corpus, folder, kind, rounding, calibrate)
        model.load_state_dict(before)
        return path

    return FORMATS["gguf"]._replace(write=write, reread=lambda model, path: None)


def swap_keys_and_queries(model: GPT) -> None:
    attention: Any = model.model.layers[0].self_attn
    with torch.no_grad():
        attention.k_proj.weight.copy_(attention.k_proj.weight.flip(0))


def test_what_computes_otherwise_leaves_no_file(fresh: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "gguf", broken(swap_keys_and_queries))
    before = sorted((fresh[0].folder / "artifacts").iterdir()), fresh[0].all("export", Export)
    with pytest.raises(CorruptError, match=r"logits of llama\.cpp differ .* at token \d+ of held-out window"):
        export(*fresh, kind="f16")
    assert (sorted((fresh[0].folder / "artifacts").iterdir()), fresh[0].all("export", Export)) == before


def test_a_tensor_that_is_another_in_the_file_is_named(fresh: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt = broken(swap_keys_and_queries)._replace(reread=FORMATS["gguf"].reread)
    monkeypatch.setitem(FORMATS, "gguf", spoilt)
    with pytest.raises(CorruptError, match=r"tensor model\.layers\.0\.self_attn\.k_proj\.weight .* differs"):
        export(*fresh, kind="q4_0")


def test_what_reads_otherwise_is_refused(fresh: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(model: GPT, corpus: Corpus, folder: Path, kind: str, rounding: str, calibrate: int) -> Path:
        own = json.loads(tokenizer(corpus).to_str())
        del own["model"]["merges"][-50:]
        less = Tokenizer.from_str(json.dumps(own))
        write_gguf(model, less, end_token(corpus), folder / "m.gguf", kind=kind)
        return folder / "m.gguf"

    monkeypatch.setitem(FORMATS, "gguf", FORMATS["gguf"]._replace(write=write))
    with pytest.raises(CorruptError, match=r"llama\.cpp reads .* as tokens .* the original as"):
        export(*fresh, kind="f32")


def test_weights_that_are_not_finite_are_named(home: Home, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(home[2], folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CorruptError, match=r"layers\.0\.mlp\.up_proj\.weight .* not finite"):
        export(home[0], home[1], folder)
    with pytest.raises(CorruptError, match=r"layers\.0\.mlp\.up_proj\.weight .* not finite"):
        evaluate_model(folder, home[1], eval_tokens=64)
    with pytest.raises(CorruptError, match=r"losses of .*model are not finite"):
        compare([home[2], folder], home[1], eval_tokens=64)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"to": "mlx"}, "no format 'mlx'"), ({"kind": "q3"}, "gguf has no type 'q3'"),
     ({"to": "hf", "kind": "q8_0"}, "hf has no type 'q8_0'")],
)  # fmt: skip
def test_unknown_formats_are_named(home: Home, options: dict[str, str], words: str) -> None:
    with pytest.raises(ProjectError, match=words):
        export(*home, **options)  # type: ignore[arg-type]


def test_a_damaged_file_is_refused(home: Home, exports: dict[str, Export], tmp_path: Path) -> None:
    part = tmp_path / "part.gguf"
    part.write_bytes(opened(home, exports["f32"]).read_bytes()[:5000])
    with pytest.raises(CorruptError, match=r"cannot open .*part\.gguf"):
        evaluate_model(part, home[1], eval_tokens=1024)
    with pytest.raises(ProjectError, match=r"neither a model folder nor a \.gguf"):
        evaluate_model(tmp_path / "none.gguf", home[1], eval_tokens=1024)


@pytest.mark.parametrize(
    ("family", "words"),
    [("bert", "has learned the objective 'masked'"), ("mamba2", "keeps no keys and values")],
)
def test_a_model_that_does_not_write_by_tokens_is_told(
    home: Home, tmp_path: Path, family: str, words: str
) -> None:
    kind = find(family, None)
    shape = kind.shape(next(kind.widths()), home[1].vocab_size, context=64)
    save_pretrained(kind.build(shape, 0), home[1], tmp_path)
    with pytest.raises(ProjectError, match=words):
        measure(tmp_path)
    with pytest.raises(ProjectError, match="only our decoder can be exported"):
        export(home[0], home[1], tmp_path)


def test_another_corpus_is_refused(home: Home, exports: dict[str, Export], tmp_path: Path) -> None:
    other = build_corpus(
        CorpusConfig(vocab_size=400, heldout_share=0.1, sources=(str(Path(json.__file__).parent),)), tmp_path
    )
    with pytest.raises(CorruptError, match="is not the tokenizer of corpus"):
        evaluate_model(opened(home, exports["f32"]), other, eval_tokens=1024)


def test_without_llama_cpp_the_extra_is_named(
    home: Home, exports: dict[str, Export], monkeypatch: pytest.MonkeyPatch
) -> None:
    llamacpp._library.cache_clear()
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with (
        pytest.raises(IsoflopError, match=r"llama\.cpp is not installed") as caught,
        open_engine(opened(home, exports["f32"])),
    ):
        pass
    assert "isoflop[gguf]" in caught.value.hint


def test_speed_is_measured_in_a_process_of_its_own(home: Home, exports: dict[str, Export]) -> None:
    found = measure(opened(home, exports["q8_0"]))
    assert found.engine == "llama.cpp"
    assert found.prefill.low <= found.prefill.median <= found.prefill.high
    assert 0 < found.decode.low <= found.decode.high
    assert found.disk_bytes == exports["q8_0"].bytes
    assert found.weight_bytes < found.disk_bytes
    assert found.bandwidth_share == pytest.approx(found.decode.median * found.weight_bytes / found.bandwidth)
    assert found.memory_bytes > 0
    assert found.generate is None
    own = measure(home[2]).generate  # transformers' own loop
    assert own is not None
    assert 0 < own.low <= own.median <= own.high
