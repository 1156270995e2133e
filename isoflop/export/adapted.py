"""An adapted text model as an ONNX graph, in floats or 8 bits, kept if it says what the original says.

Eight bits are ONNX Runtime's own dynamic quantization: weights, the table of embeddings among them, are
rounded once, and what a layer is fed as it comes.

Shapes: b examples of a batch, t tokens, C labels, n targets of all examples.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isoflop.adapting.batches import CUT, Rows
from isoflop.adapting.inputs import TEST, TRAIN, Sources, some
from isoflop.adapting.joined import FOLDER as PEER
from isoflop.adapting.rates import weight_bytes
from isoflop.adapting.saved import ADAPTED, TASK, load_adapted
from isoflop.engines import ONNX
from isoflop.engines.adapted import Served
from isoflop.errors import AdaptError, CorruptError
from isoflop.examples import read_examples, with_roles
from isoflop.export.onnx import OPSET, package
from isoflop.progress import Progress, Silent
from isoflop.records import Record, digest
from isoflop.store import HASH_DIGITS, Project, content_hash
from isoflop.tasks.protocol import Base, Spec, Task
from isoflop.tasks.text import NAMES

if TYPE_CHECKING:
    from datasets import Dataset

TASKS = ("classification", "multi-label", "regression", "tagging")  # whose logits are (b, C) or (b, t, C)
# Root mean square difference of logits that is allowed, as a share of their spread.
TOLERANCES = {"f32": 0.001, "int8": 0.2}
CHECKED = 1000  # examples at most
BATCH = 32
STAGE = "export"
KIND = "adapted-export"


class AdaptedExport(Record):
    """An adapted model in another format, and how it was checked."""

    id: str
    source: str  # hash of the adapted model's folder
    format: str
    kind: str  # of the weights, one of TOLERANCES
    path: str  # relative to the project
    bytes: int  # of the graph with its weights
    source_bytes: int  # of the original's weights
    examples: int  # that were compared
    deviation: float  # root mean square difference of their logits, as a share of their spread
    tolerance: float  # for it
    alike: float | None  # share of labels that are the same; None: there are none


class Original(NamedTuple):
    """What is exported."""

    task: Task
    base: Base
    spec: Spec
    model: nn.Module


def export_adapted(
    project: Project, folder: Path, data: Sequence[Path], *, to: str = "onnx", kind: str = "f32",
    columns: Mapping[str, str] | None = None, progress: Progress | None = None,
) -> AdaptedExport:  # fmt: skip
    """Write an adapted model in another format, compare its logits on up to 1,000 examples, and keep it.

    What has passed on the same examples before and is still there is not written again.

    Raises AdaptError for a model or a format that cannot be, ProjectError without the packages, CorruptError
    where the gate is not passed; nothing is kept then.
    """
    progress = progress or Silent()
    if to != "onnx" or kind not in TOLERANCES:
        raise AdaptError(
            f"an adapted model cannot be written as {to} of the type {kind}",
            hint=f"--to onnx --type {' or '.join(TOLERANCES)}",
        )
    if not data:
        raise AdaptError("there are no examples to check the export on", hint="name a file: --data FILE")
    source = content_hash(folder)[:HASH_DIGITS]
    id = digest([source, to, kind, Sources(data).digests(), dict(columns or {})])
    known = project.get(KIND, id, AdaptedExport)
    if known is not None and (project.folder / known.path).exists():
        return known
    original = Original(*load_adapted(folder))
    _check(original, folder)
    found = read_examples(data, progress=progress)
    rows, _ = with_roles(found.get(TEST, found[TRAIN]), original.task.roles, columns or {})
    rows = some(rows, CHECKED, 0)
    made: list[tuple[int, float, float | None]] = []

    def write(target: Path) -> None:
        progress.start(STAGE, 2, "steps")
        original.base.processor.save_pretrained(target)
        original.base.config.save_pretrained(target)
        (target / TASK).write_bytes((folder / TASK).read_bytes())
        if (folder / PEER).is_dir():
            shutil.copytree(folder / PEER, target / PEER)
        write_graph(original.model, _example(original, rows), target / ONNX, kind=kind)
        progress.update(STAGE, 1, "written; its logits are compared")
        made.append((weight_bytes(target), *compare(original, Served(target), rows, kind)))
        progress.finish(STAGE, "it passed the gate")

    artifact = project.add_artifact(f"{to}-{kind}", write)
    size, deviation, alike = made[0]
    done = AdaptedExport(
        id=id, source=source, format=to, kind=kind, path=artifact, bytes=size,
        source_bytes=weight_bytes(folder), examples=len(rows), deviation=deviation,
        tolerance=TOLERANCES[kind], alike=alike,
    )  # fmt: skip
    project.put(KIND, done)
    return done


def write_graph(model: nn.Module, example: Mapping[str, Tensor], path: Path, *, kind: str) -> None:
    """Write a model's graph with its weights as `kind`; batch and tokens may then have any number.

    `example` has inputs (b, t) by name. Raises ProjectError without the packages, AdaptError where torch
    cannot follow the model.
    """
    onnx = package()
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    any_number = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    try:
        with warnings.catch_warnings(), _plain_attention(model):
            warnings.simplefilter("ignore")
            made: Any = torch.onnx.export(
                _Logits(model).eval(), kwargs={"inputs": dict(example)}, dynamo=True, opset_version=OPSET,
                verbose=False, input_names=list(example), output_names=["logits"],
                dynamic_shapes={"inputs": dict.fromkeys(example, any_number)},
            )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        raise AdaptError(
            f"torch cannot write {type(model).__name__} as a graph: {str(error).splitlines()[0]}",
            hint="serve the adapted folder with transformers",
        ) from None
    onnx.save(made.model_proto, str(path))
    if kind == "int8":
        _round(path)


class _Logits(nn.Module):
    """A model of transformers that gives its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        found: Tensor = self.model(**inputs).logits
        return found


@contextmanager
def _plain_attention(model: Any) -> Iterator[None]:
    """In this block attention is written out: torch's own, as a graph, also looks for rows without a key."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _round(path: Path) -> None:
    """Matrices and tables of a graph in 8 bits, in its place."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = path.with_suffix(".f32.onnx")
    path.rename(whole)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it recommends, on the root, what the graph has had
    try:
        quantize_dynamic(whole, path, weight_type=QuantType.QInt8)
    finally:
        root.setLevel(level)
        whole.unlink()


def compare(original: Original, served: nn.Module, rows: Dataset, kind: str) -> tuple[float, float | None]:
    """How far the logits of the served model are from the original's, and the share of labels alike.

    Raises CorruptError where they are further than `TOLERANCES` allows.
    """
    task, base, spec, model = original
    with tempfile.TemporaryDirectory() as folder:
        encoded = Rows(task, base, spec, rows, Path(folder), "the comparison")
        ours, theirs = [], []
        for _, batch in encoded.in_order(BATCH):
            ours.append(_targets(task, model, batch))
            theirs.append(_targets(task, served, batch))
    ours_nc, theirs_nc = np.concatenate(ours), np.concatenate(theirs)
    deviation = float(np.sqrt(((ours_nc - theirs_nc) ** 2).mean()) / max(1e-12, float(ours_nc.std())))
    if not deviation <= TOLERANCES[kind]:  # also when it is not a number
        raise CorruptError(
            f"the logits of the {kind} graph differ from the original's by {deviation:.2%} of their spread, "
            f"{TOLERANCES[kind]:.2%} are allowed",
            hint="nothing was kept; export as f32, or report it with the adapted folder",
        )
    return deviation, _alike(task, ours_nc, theirs_nc)


@torch.no_grad()
def _targets(task: Task, model: nn.Module, batch: Mapping[str, Tensor]) -> NDArray[np.float64]:
    """(n, C) logits, without those of padding."""
    logits = task.logits(model, batch).double()
    found = logits[batch["attention_mask"].bool()] if logits.dim() == 3 else logits
    return np.asarray(found.numpy())


def _alike(task: Task, ours_nc: NDArray[np.float64], theirs_nc: NDArray[np.float64]) -> float | None:
    if task.name == "regression":
        return None
    if task.name == "multi-label":
        return float(((ours_nc > 0) == (theirs_nc > 0)).mean())
    return float((ours_nc.argmax(1) == theirs_nc.argmax(1)).mean())


def _example(original: Original, rows: Dataset) -> dict[str, Tensor]:
    """Inputs of two examples, as the model reads them."""
    task, base, spec, _ = original
    columns = task.encode(base, spec, rows.select([0, min(1, len(rows) - 1)])[:])
    features = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    batch = task.collate(base, spec, [{k: v for k, v in f.items() if k != CUT} for f in features])
    return {name: batch[name][:2] for name in NAMES if name in batch}


def _check(original: Original, folder: Path) -> None:
    """Raises AdaptError for a model that is not exported."""
    if original.task.name not in TASKS:
        raise AdaptError(
            f"{folder} is adapted to {original.task.name}, and exported are {', '.join(TASKS)}",
            hint="serve the adapted folder with transformers",
        )
    if (folder / ONNX).is_file():
        raise AdaptError(f"{folder} is an export", hint="name the adapted model that it was made of")
    if (folder / ADAPTED).is_file():
        raise AdaptError(
            f"{folder} has parts beside its base, which no graph was tried with",
            hint="adapt with a method that is merged: full, lora, last-layers or probe",
        )
