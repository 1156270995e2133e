"""Export behind the gate: what does not read, compute and write as the original leaves no file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from isoflop import corpus as texts
from isoflop.engines import COMPRESSED, GGUF, ONNX, OPENVINO, TORCH, open_engine
from isoflop.errors import ProjectError
from isoflop.export import compressed, gptq, onnx, openvino, torch_int8
from isoflop.export.calibrate import CALIBRATION_TOKENS, second_moments
from isoflop.export.gguf import FLOATS, TYPES, read_weights, write_gguf
from isoflop.export.huggingface import save_pretrained, tokenizer_of
from isoflop.export.parity import Parity, check, check_weights
from isoflop.export.rounders import CALIBRATED, GPTQ, NEAREST, ROUNDINGS, rounder_of
from isoflop.gpt import GPT
from isoflop.progress import Progress, Silent
from isoflop.records import Corpus, Record, digest
from isoflop.store import HASH_DIGITS, Project, content_hash
from isoflop.using import decoder_of

# Root mean square difference of logits that is allowed, as a share of their spread. llama.cpp keeps keys and
# values in 16 bits, and multiplies rounded weights with activations that it rounds to 8 bits.
FLOAT_TOLERANCE, ROUNDED_TOLERANCE = 0.002, 0.03
# The same of each tensor: 16 bits round by 0.03%, 4 bits by some 10%; another tensor differs by 140%.
FLOAT_WEIGHTS, ROUNDED_WEIGHTS = 0.001, 0.5
STAGE = "export"


class Export(Record):
    """A model in another format, and how it was checked."""

    id: str
    source: str  # hash of the model folder
    format: str  # one of FORMATS
    kind: str  # of the weights
    calibrated: int  # tokens of training text by which weights were rounded; 0: each to its nearest
    rounding: str = ""  # of `rounders.ROUNDINGS`; "" where none was rounded, and in records of before
    path: str  # relative to the project
    bytes: int
    params_total: int
    parity: Parity

    @property
    def bits_per_weight(self) -> float:
        """Of the whole file, tokenizer included."""
        return 8 * self.bytes / self.params_total


class Format(NamedTuple):
    """What a format is called, of which types its weights may be, and how it is written."""

    kinds: tuple[str, ...]
    roundings: Mapping[
        str, tuple[str, ...]
    ]  # of a kind that is rounded in more ways than one; first the usual
    write: Callable[[GPT, Corpus, Path, str, str, int], Path]  # into a folder; returns what an engine opens
    reread: Callable[[GPT, Path], None]  # load the weights as they were rounded
    tolerance: float = ROUNDED_TOLERANCE  # where they were
    for_gpus: bool = False  # it is opened here, but gains nothing on a CPU


def _write_gguf(model: GPT, corpus: Corpus, folder: Path, kind: str, rounding: str, calibrate: int) -> Path:
    path = folder / f"model-{kind}{GGUF}"
    write_gguf(
        model, tokenizer_of(model.config, corpus)[0], texts.end_token(corpus), path, kind=kind,
        rounder=rounder_of(model, corpus, rounding, calibrate),
    )  # fmt: skip
    return path


def _write_folder(model: GPT, corpus: Corpus, folder: Path, kind: str, rounding: str, calibrate: int) -> Path:
    save_pretrained(model, corpus, folder)
    return folder


def _write_compressed(
    model: GPT, corpus: Corpus, folder: Path, kind: str, rounding: str, calibrate: int
) -> Path:
    moments = second_moments(model, corpus, calibrate) if rounding == GPTQ else None
    save_pretrained(model, corpus, folder)
    compressed.write_compressed(model, folder, kind=kind, moments=moments)
    return folder


def _write_graph(
    write: Callable[..., None], name: str, model: GPT, corpus: Corpus, folder: Path, kind: str, rounding: str,
    calibrate: int,
) -> Path:  # fmt: skip
    """A folder with a graph in the place of the weights; config and tokenizer are as in a model folder."""
    save_pretrained(model, corpus, folder)
    (folder / "model.safetensors").unlink()
    write(model, folder / name, kind=kind)
    return folder


FORMATS = {
    COMPRESSED: Format(
        tuple(compressed.KINDS), dict.fromkeys(compressed.KINDS, (GPTQ, NEAREST)), _write_compressed,
        compressed.read_compressed, for_gpus=True,
    ),
    "gguf": Format(
        tuple(TYPES),
        {
            kind: (CALIBRATED, NEAREST, GPTQ) if kind in gptq.KINDS else (CALIBRATED, NEAREST)
            for kind in TYPES if kind not in FLOATS
        },
        _write_gguf, read_weights,
    ),
    "hf": Format(("f32",), {}, _write_folder, lambda model, path: None),
    "onnx": Format(
        tuple(onnx.TYPES), {}, partial(_write_graph, onnx.write_onnx, ONNX),
        lambda model, path: onnx.read_onnx(model, path / ONNX),
    ),
    "openvino": Format(
        tuple(openvino.TYPES), {}, partial(_write_graph, openvino.write_openvino, OPENVINO),
        lambda model, path: openvino.read_openvino(model, path / OPENVINO),
    ),
    "torch": Format(
        torch_int8.KINDS, {}, partial(_write_graph, torch_int8.write_torch, TORCH),
        lambda model, path: torch_int8.read_torch(model, path / TORCH), torch_int8.TOLERANCE,
    ),
}  # fmt: skip


def export(
    project: Project, corpus: Corpus, folder: Path, *, to: str = "gguf", kind: str | None = None,
    rounding: str | None = None, calibrate: int | None = None, progress: Progress | None = None,
) -> Export:  # fmt: skip
    """Write a model folder of our decoder in another format, check it in its engine, and keep it.

    Without a `kind` its weights have the first of the format's types. Those that are rounded are so to their
    nearest, by what `calibrate` tokens of training text feed them (None: 65,536), or by GPTQ on as many, as
    `rounding` says (None: the first of the format's; with 0 tokens nearest).

    Raises ProjectError for a format, a type or an architecture that cannot be, for tokens to calibrate what
    is not rounded, or an engine that is not installed; CorruptError when the folder is damaged or the export
    does not pass the gate.
    """
    known = FORMATS.get(to)
    if known is None:
        raise ProjectError(f"there is no format {to!r}", hint=f"name one of {', '.join(FORMATS)}")
    kind = known.kinds[0] if kind is None else kind
    if kind not in known.kinds:
        raise ProjectError(f"{to} has no type {kind!r}", hint=f"name one of {', '.join(known.kinds)}")
    ways = known.roundings.get(kind, ())
    if ways:
        rounding, calibrate = chosen_rounding(rounding, calibrate, ways[0])
    elif rounding or calibrate:
        what = f"--rounding {rounding}" if rounding else f"{calibrate} calibration tokens"
        raise ProjectError(
            f"{to}'s {kind} rounds no weights by text: {what} would change nothing",
            hint="leave it out, or give --to gguf and a type of 8 bits or fewer, e.g. --type q8_0",
        )
    if rounding and rounding not in ways:
        raise ProjectError(
            f"{to}'s {kind} knows no rounding {rounding}", hint=f"name one of {', '.join(ways)}"
        )
    return kept(
        project, corpus, folder, known, to=to, kind=kind, calibrate=calibrate or 0, rounding=rounding or "",
        progress=progress,
    )  # fmt: skip


def chosen_rounding(rounding: str | None, calibrate: int | None, usual: str = CALIBRATED) -> tuple[str, int]:
    """How weights are rounded, and by how many tokens of text. Raises ProjectError for what cannot be."""
    if rounding is None:
        rounding = NEAREST if calibrate == 0 else usual
    if rounding not in ROUNDINGS:
        raise ProjectError(f"there is no rounding {rounding!r}", hint=f"name one of {', '.join(ROUNDINGS)}")
    if calibrate is None:
        calibrate = 0 if rounding == NEAREST else CALIBRATION_TOKENS
    if calibrate < 0:
        raise ProjectError(f"{calibrate} calibration tokens are too few", hint="give 0 for none")
    if (rounding == NEAREST) != (calibrate == 0):
        raise ProjectError(
            f"rounding {rounding} does not go with {calibrate} calibration tokens",
            hint=f"leave one of them out; {NEAREST} looks at no text",
        )
    return rounding, calibrate


def kept(
    project: Project, corpus: Corpus, folder: Path, known: Format, *, to: str, kind: str, calibrate: int,
    rounding: str = "", options: object = None, progress: Progress | None = None,
) -> Export:  # fmt: skip
    """What `known` writes of a model folder, if it passes the gate; `options` are what else it depends on.

    What has passed before and is still there is not written again. Raises ProjectError or CorruptError as
    `export` does.
    """
    model, source = exportable(folder, corpus), content_hash(folder)[:HASH_DIGITS]
    named = [source, to, kind, calibrate, *([] if options is None else [options])]
    named += [rounding] if rounding == GPTQ else []  # the others are told by `calibrate`
    done = project.get("export", digest(named), Export)
    if done is not None and (project.folder / done.path).exists():
        return done
    found: list[tuple[Path, Parity]] = []
    progress = progress or Silent()

    def write(target: Path) -> None:
        progress.start(STAGE, 2, "steps")
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        path = known.write(model, corpus, target, kind, rounding, calibrate)
        known.reread(model, path)
        progress.update(STAGE, 1, "written; it is checked in its engine")
        check_weights(before, model.state_dict(), FLOAT_WEIGHTS if kind in FLOATS else ROUNDED_WEIGHTS)
        tolerance = FLOAT_TOLERANCE if kind in FLOATS else known.tolerance
        with open_engine(path) as engine:
            tokenizer = tokenizer_of(model.config, corpus)[0]
            found.append((path.relative_to(target), check(engine, model, tokenizer, corpus, tolerance)))
        progress.finish(STAGE, "it passed the gate")

    artifact = project.add_artifact(f"{to}-{kind}", write)
    (name, parity), home = found[0], project.folder / artifact
    done = Export(
        id=digest(named), source=source, format=to, kind=kind,
        calibrated=calibrate, rounding=rounding, path=str(Path(artifact) / name),
        bytes=sum(f.stat().st_size for f in home.rglob("*") if f.is_file()),
        params_total=sum(p.numel() for p in model.parameters()), parity=parity,
    )  # fmt: skip
    project.put("export", done)
    return done


def exportable(folder: Path, corpus: Corpus) -> GPT:
    """Our decoder, causal. Raises ProjectError or CorruptError."""
    model = decoder_of(folder, corpus, "exported")
    if model.config.objective != "causal":
        raise ProjectError(
            f"{folder} has learned the objective {model.config.objective!r}, which no other format knows",
            hint="export a causal model",
        )
    return model
