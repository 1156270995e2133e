"""Which values the options of a run may have."""

from __future__ import annotations

import math

from isoflop.errors import TrainError
from isoflop.precision import PRECISIONS
from isoflop.recipe import MATRIX_RATES
from isoflop.records import ModelConfig, RunConfig
from isoflop.rounding import check_kind
from isoflop.schedule import COOLDOWNS
from isoflop.teaching.divergences import DIVERGENCES

RANGES = {  # fields of RunConfig: from, and below
    "batch_tokens": (1, math.inf),
    "cooldown": (0, 1),
    "accumulate": (1, math.inf),
    "dropout": (0, 1),
    "lr_matrix": (0, math.inf),
    "lr_embed": (0, math.inf),
    "lr_head": (0, math.inf),
    "lr_vector": (0, math.inf),
    "weight_decay": (0, math.inf),
    "warmup_tokens": (0, math.inf),
    "grad_clip": (0, math.inf),
    "eval_tokens": (1, math.inf),
    "momentum": (0, 1),
    "label_smoothing": (0, 1),
    "patience": (0, math.inf),
    "evaluate_every": (0, math.inf),
    "trunk_context": (0, math.inf),
    "input_noise": (0, 1),
}
NAMED = {  # fields of RunConfig, each the name of one of these
    "precision": PRECISIONS,
    "optimizer": MATRIX_RATES,
    "cooldown_shape": COOLDOWNS,
}


OWN = ModelConfig.model_fields["family"].default
COUNTS = ("n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff", "context")  # fields of ModelConfig


def check_options(config: RunConfig) -> None:
    """Raises TrainError for an option outside its range, or without the one that it serves."""
    check_shape(config.model)
    for name, (low, high) in RANGES.items():
        value, field = getattr(config, name), RunConfig.model_fields[name]
        if not low <= value < high:
            ends = f"at least {low}" + (f" and below {high}" if high < math.inf or value == high else "")
            own = "the recipe's" if field.is_required() else field.default
            raise TrainError(f"{name} is {value}, and must be {ends}", hint=f"leave it at {own}")
    if not all(0 <= beta < 1 for beta in config.betas):
        betas = ",".join(map(str, config.betas))
        raise TrainError(
            f"betas is {betas}, and both must be at least 0 and below 1", hint="leave it at 0.9,0.99"
        )
    check_names(config)
    if config.optimizer == "soap" and config.shard:
        raise TrainError(
            "SOAP needs whole matrices, and this run's are sharded",
            hint="leave out --shard, or name another optimizer",
        )
    if config.batch_tokens < config.model.context:
        raise TrainError(
            f"a batch of {config.batch_tokens} tokens is less than one window of {config.model.context}",
            hint="give a larger batch_tokens, or a shorter model.context",
        )
    if config.teachers:
        _check_teaching(config)
    elif config.tasks or config.input_noise:
        name = "tasks" if config.tasks else "input_noise"
        raise TrainError(f"{name} is for a run with teachers, and this has none", hint="leave it out")
    if config.rounding:
        _check_rounding(config)
    if config.initial and config.dropout:
        raise TrainError(
            f"dropout is {config.dropout}, and a model that goes on from a folder has none",
            hint="leave it at 0",
        )
    if config.shard and config.old:
        raise TrainError(
            "what a run forgets of its old text is measured on whole weights, and this run's are sharded",
            hint="leave out --shard, or the old text",
        )
    if config.trunk_context and config.model.objective != "causal":
        raise TrainError(
            f"trunk_context is {config.trunk_context}, and the objective {config.model.objective} "
            "needs whole windows",
            hint="leave it at 0",
        )
    if config.evaluate_every and not config.patience:
        raise TrainError(
            f"evaluate_every is {config.evaluate_every}, but without patience nothing waits for these scores",
            hint="give a patience as well",
        )


def check_names(config: RunConfig) -> None:
    """Raises TrainError for a name that nothing has."""
    for name, known in NAMED.items():
        if (value := getattr(config, name)) not in known:
            raise TrainError(f"there is no {name} {value!r}", hint=f"name one of {', '.join(known)}")


def _check_teaching(config: RunConfig) -> None:
    """Raises TrainError for what a run with teachers cannot have."""
    if not 0 <= config.teacher_weight <= 1:
        raise TrainError(
            f"teacher_weight is {config.teacher_weight}, a share of the loss from 0 to 1",
            hint="give e.g. --weight 0.9",
        )
    if not 0 < config.temperature < math.inf:
        raise TrainError(
            f"temperature is {config.temperature}, and must be above 0", hint="give e.g. --temperature 2"
        )
    if not 0 <= config.teacher_topk < config.model.vocab_size:
        raise TrainError(
            f"teacher_topk is {config.teacher_topk}, and the vocabulary has {config.model.vocab_size} tokens",
            hint="give e.g. --top-k 32",
        )
    if not 0 <= config.feature_weight < math.inf:
        raise TrainError(
            f"feature_weight is {config.feature_weight}, and must be at least 0",
            hint="give e.g. --features 1",
        )
    if config.feature_weight and (config.teacher_topk or config.compile):
        name = "teacher_topk" if config.teacher_topk else "compile"
        raise TrainError(
            f"{name} does not go with feature_weight, which listens to every layer",
            hint="leave one of them out",
        )
    if config.divergence not in DIVERGENCES:
        raise TrainError(
            f"there is no divergence {config.divergence!r}", hint=f"name one of {', '.join(DIVERGENCES)}"
        )
    if config.model.objective != "causal":
        raise TrainError(
            f"the objective is {config.model.objective}, and distilling is for causal models",
            hint="leave the objective out",
        )
    if config.tasks:
        _check_tasks(config)
    if config.label_smoothing or config.shard:
        name = "label_smoothing" if config.label_smoothing else "shard"
        raise TrainError(f"{name} does not go with teachers", hint="leave it out")


def _check_rounding(config: RunConfig) -> None:
    """Raises TrainError for a run that cannot be trained for rounded weights."""
    check_kind(config.rounding)
    if config.model.family != OWN:
        raise TrainError(
            f"a model of the family {config.model.family} is not written as GGUF, so not trained for it",
            hint="leave the rounding out",
        )
    if config.shard:
        raise TrainError("rounding takes whole weights, and this run's are sharded", hint="leave out --shard")


def _check_tasks(config: RunConfig) -> None:
    """Raises TrainError."""
    shares = [task.share for task in config.tasks]
    if not all(share > 0 for share in shares) or not sum(shares) < 1:
        words = ", ".join(f"{share:g}" for share in shares)
        raise TrainError(
            f"the shares of the further tasks are {words}: each must be above 0, and their sum below 1",
            hint="what is left is the share of the project's own text",
        )
    for name in ("replay_share", "ewc", "feature_weight"):
        if getattr(config, name):
            raise TrainError(f"{name} does not go with several tasks", hint="leave it out")


def check_shape(model: ModelConfig) -> None:
    """Raises TrainError for a shape that no attention has."""
    for name in COUNTS:
        if (value := getattr(model, name)) < 1:
            raise TrainError(
                f"model.{name} is {value}, and must be at least 1", hint="leave it at the family's"
            )
    if model.n_heads % model.n_kv_heads:
        raise TrainError(
            f"{model.n_heads} heads cannot share {model.n_kv_heads} key and value heads evenly",
            hint="give a model.n_kv_heads that divides model.n_heads",
        )
    if model.family == OWN and model.head_dim % 2:
        raise TrainError(
            f"model.head_dim is {model.head_dim}, and positions turn pairs of numbers",
            hint="give an even one",
        )
