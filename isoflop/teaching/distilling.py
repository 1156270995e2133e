"""Learning from teachers: the loss of `divergences.Lesson` without ever holding all logits.

Several teachers are averaged in probability.

Shapes: b batch, t time, n positions, d width (each model's own), v vocabulary.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from isoflop import flops
from isoflop.continued import Past
from isoflop.errors import CorruptError, TrainError
from isoflop.export import load_pretrained
from isoflop.gpt import CHUNK_TOKENS, product_dtype
from isoflop.model import LanguageModel
from isoflop.records import ModelConfig, RunConfig
from isoflop.store import HASH_DIGITS, content_hash
from isoflop.teaching.divergences import Lesson
from isoflop.teaching.features import Matching
from isoflop.teaching.topk import Memory, Top

Told = Callable[[slice], Tensor]  # a teacher's logits (rows, v) of some of the positions

CLOSE = 1e-3  # of a head's logits to the model's own, as a share of their spread


class DistilledCrossEntropy(torch.autograd.Function):
    """The mean of a `Lesson`'s loss of the logits x @ weight.T, gradients made in the forward pass.

    As `gpt.LinearCrossEntropy`, chunk by chunk, of the teachers' logits too. Under autocast the products have
    its 16 bits, the rest 32.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x_nd: Tensor, weight_vd: Tensor, y_n: Tensor,
        teachers: Sequence[Told], lesson: Lesson,
    ) -> Tensor:  # fmt: skip
        low = product_dtype(x_nd)
        wide = torch.promote_types(x_nd.dtype, torch.float32)
        low_vd = weight_vd.to(low)
        grad_x, grad_weight = torch.empty_like(x_nd, dtype=low), torch.zeros_like(weight_vd)
        total = x_nd.new_zeros((), dtype=wide)
        for start in range(0, len(x_nd), CHUNK_TOKENS):
            rows = slice(start, start + CHUNK_TOKENS)
            x = x_nd[rows].to(low)
            logp = _mean_log_probs([told(rows).to(wide) for told in teachers], lesson.temperature)
            nats, grad = lesson(torch.mm(x, low_vd.T).to(wide), logp, y_n[rows])
            total += nats
            grad = grad.to(low)
            torch.mm(grad, low_vd, out=grad_x[rows])
            grad_weight += torch.mm(grad.T, x)
        ctx.save_for_backward(grad_x, grad_weight)
        ctx.dtype = x_nd.dtype  # type: ignore[attr-defined]
        return total / len(x_nd)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor
    ) -> tuple[Tensor, Tensor, None, None, None]:
        grad_x, grad_weight = ctx.saved_tensors  # type: ignore[attr-defined]
        share = grad / len(grad_x)  # at the end: 16 bits would lose by it
        return grad_x.to(ctx.dtype) * share, grad_weight * share, None, None, None  # type: ignore[attr-defined]


def told_by(hidden_nd: Tensor, head_vd: Tensor) -> Told:
    """The logits hidden @ head.T, when they are wanted."""
    low = product_dtype(hidden_nd)
    h_nd, w_vd = hidden_nd.to(low), head_vd.to(low)
    return lambda rows: torch.mm(h_nd[rows], w_vd.T)


def _mean_log_probs(logits: Sequence[Tensor], temperature: float) -> Tensor:
    """Of the mean of the teachers' probabilities."""
    logs = [(u if temperature == 1 else u / temperature).log_softmax(1) for u in logits]
    return logs[0] if len(logs) == 1 else torch.stack(logs).logsumexp(0).sub_(math.log(len(logs)))


class Teaching:
    """The teachers of a run, as `RunConfig.teachers` names them, and those of its tasks, one each.

    Each text of a mixture is taught by its own: the run's corpus by `RunConfig.teachers`, a task by its
    teacher alone.

    With `RunConfig.teacher_topk` only so many of their likeliest tokens count, which `Past.answers` keeps.
    With `RunConfig.feature_weight` their hidden states count too.
    """

    def __init__(
        self, config: RunConfig, past: Past | None, device: torch.device, student: LanguageModel
    ) -> None:
        folders, names = () if past is None else past.teachers, named(config)
        if len(folders) != len(names):
            raise TrainError(
                f"this run learns from {len(names)} teachers, and {len(folders)} are given",
                hint="train it with: isoflop distill TEACHER...",
            )
        self.lesson = Lesson(config.teacher_weight, config.temperature, config.divergence)
        self.config = config
        self.teachers = [
            _teacher(wanted, folder, config.model).to(device)
            for wanted, folder in zip(names, folders, strict=True)
        ]
        self.matching: Matching | None = None
        if config.feature_weight:
            self.matching = Matching(student, self.teachers, config.seed)
        self.past = past
        self.memories: dict[tuple[int, int], Memory] = {}  # by teacher and context
        self.flops = 0.0  # that the teachers have computed here

    @property
    def shapes(self) -> tuple[ModelConfig, ...]:
        """Of the teachers as far as they are used, as `named` names them."""
        return tuple(teacher.config for teacher in self.teachers)

    def loss(self, student: LanguageModel, ids_bt: Tensor, targets_bt: Tensor, sources_b: Tensor) -> Tensor:
        """In nats a token; its gradients are the student's alone. `sources` says of which text a row is."""
        if self.matching is None:
            return self._loss(student, ids_bt, targets_bt, sources_b)
        with self.matching.listening():
            told = self._loss(student, ids_bt, targets_bt, sources_b)
            return told + self.config.feature_weight * self.matching.loss()

    def _loss(self, student: LanguageModel, ids_bt: Tensor, targets_bt: Tensor, sources_b: Tensor) -> Tensor:
        x_nd, y_n = student.features(ids_bt, targets_bt)
        x_btd, y_bt = x_nd.view(*ids_bt.shape, -1), y_n.view(ids_bt.shape)
        total = x_nd.new_zeros((), dtype=torch.promote_types(x_nd.dtype, torch.float32))
        for source in sorted(set(sources_b.tolist())):
            rows = (sources_b == source).nonzero()[:, 0].to(ids_bt.device)
            with torch.no_grad():
                told = [self._told(i, ids_bt[rows]) for i in self._teachers_of(source)]
            x, y = x_btd[rows].flatten(0, 1), y_bt[rows].flatten()
            nats = DistilledCrossEntropy.apply(x, student.head, y, told, self.lesson)  # type: ignore[no-untyped-call]
            total = total + nats * (len(rows) / len(ids_bt))
        return total

    def _teachers_of(self, source: int) -> list[int]:
        """Numbers of the teachers of a text of the mixture."""
        own = len(self.config.teachers)
        return [own + source - 1] if source else list(range(own))

    def _told(self, number: int, ids_bt: Tensor) -> Told:
        if not self.config.teacher_topk:
            return self._asked(number, ids_bt)
        memory = self._memory(number, ids_bt.shape[1])
        ask = partial(self._top, number)
        tokens, logp = ask(ids_bt) if memory is None else memory.recall(ids_bt, ask)
        top = Top(tokens.flatten(0, 1), logp.flatten(0, 1))
        size = self.config.model.vocab_size
        return lambda rows: Top(top.tokens[rows], top.logp[rows]).logits(size, torch.float32)

    def _asked(self, number: int, ids_bt: Tensor) -> Told:
        teacher = self.teachers[number]
        read = teacher.config.model_copy(update={"context": ids_bt.shape[1]})
        self.flops += ids_bt.numel() * flops.forward_flops_per_token(read)
        hidden_nd, _ = teacher.features(ids_bt, ids_bt)
        return told_by(hidden_nd, teacher.head[: self.config.model.vocab_size])

    def _top(self, number: int, ids_bt: Tensor) -> Top:
        """(b, t, ...), chunk by chunk."""
        told = self._asked(number, ids_bt)
        chunks = [
            Top.of(told(slice(start, start + CHUNK_TOKENS)).float(), self.config.teacher_topk)
            for start in range(0, ids_bt.numel(), CHUNK_TOKENS)
        ]
        with torch.autocast(ids_bt.device.type, enabled=False):  # on a CPU it joins no float16
            tokens, logp = (torch.cat(parts).view(*ids_bt.shape, -1) for parts in zip(*chunks, strict=True))
        return Top(tokens, logp)

    def _memory(self, number: int, context: int) -> Memory | None:
        """Of a teacher's windows of that length."""
        past, config = self.past, self.config
        if past is None or past.answers is None:
            return None
        if (number, context) not in self.memories:
            folder = past.answers / f"{named(config)[number]}-{context}-{socket.gethostname()}"
            self.memories[number, context] = Memory(
                folder, max_bytes=past.answers_bytes, context=context, k=config.teacher_topk,
                vocabulary=config.model.vocab_size,
            )  # fmt: skip
        return self.memories[number, context]


def named(config: RunConfig) -> tuple[str, ...]:
    """Hashes of all teachers of a run: those of its corpus, then those of its tasks."""
    return (*config.teachers, *(task.teacher for task in config.tasks))


def _teacher(wanted: str, folder: Path, student: ModelConfig) -> LanguageModel:
    """The model in a folder with that hash, which is not trained; of its head, what the student knows."""
    found = content_hash(folder)[:HASH_DIGITS] if folder.is_dir() else "missing"
    if found != wanted:
        raise CorruptError(
            f"the content of the teacher {folder} has the hash {found}, and the run began with {wanted}",
            hint="restore the folder, or distil from it anew",
        )
    model = load_pretrained(folder).requires_grad_(False)
    model.config = as_asked(model.config, student)
    return model


def as_asked(teacher: ModelConfig, student: ModelConfig) -> ModelConfig:
    """A teacher's shape as far as it is used: windows and tokens are the student's."""
    return teacher.model_copy(update={"context": student.context, "vocab_size": student.vocab_size})


@torch.no_grad()
def check_head(model: LanguageModel, name: object) -> None:
    """Raises TrainError unless a model's logits are its last hidden states times its head.

    Some architectures cap or scale them, or add a bias.
    """
    ids = torch.arange(min(8, model.config.context))[None] % model.config.vocab_size
    features, _ = model.features(ids, ids)
    ours, own = features @ model.head.T, model(ids).flatten(0, 1)
    if not bool((ours - own).std() <= CLOSE * own.std()):
        raise TrainError(
            f"the logits of {name} are not simply its hidden states times its head, which distilling needs",
            hint="use an architecture without capped or scaled logits, such as llama, qwen3 or gpt2",
        )
