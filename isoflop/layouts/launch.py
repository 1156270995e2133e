"""Files that start a planned run: torchtitan's configuration, and our trainer's command if it can do it."""

from __future__ import annotations

import math
from pathlib import Path

from isoflop.layouts.layouts import Layout
from isoflop.layouts.planning import ClusterPlan
from isoflop.layouts.shapes import Shape
from isoflop.store import disk_errors

TITAN = "torchtitan.toml"
OURS = "isoflop.sh"


def write_launch(plan: ClusterPlan, folder: Path) -> list[Path]:
    """Write the files into `folder`, which is made. Raises ProjectError where the disk refuses."""
    files = {TITAN: torchtitan(plan)}
    if plan.trainer is not None:
        files[OURS] = our_command(plan, plan.trainer.layout)
    with disk_errors(f"the launch files in {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
    return [folder / name for name in files]


def torchtitan(plan: ClusterPlan) -> str:
    """Its TOML, with the field names of its version 0.2; the shape is a flavor that has to be added there."""
    shape, layout = plan.shape, plan.found.best[0].layout
    sharded = layout.zero > 0 or layout.expert > 1
    schedule = "Interleaved1F1B" if layout.interleave > 1 else "1F1B"
    family = "llama3" if not shape.experts else "deepseek_v3"
    return f"""# {plan.cluster.name}: {layout.words}
# Planned: {plan.found.best[0].mfu:.1%} of peak, {plan.days:.1f} days.
# Add the flavor "planned" to torchtitan/models/{family}:
# {shape.words}, vocabulary {shape.vocab:,}.

[model]
name = "{family}"
flavor = "planned"

[training]
seq_len = {shape.context}
local_batch_size = {layout.micro * layout.micro_batches if layout.pipeline > 1 else layout.micro}
global_batch_size = {layout.sequences}
steps = {plan.steps}

[parallelism]
data_parallel_replicate_degree = {1 if sharded else layout.data}
data_parallel_shard_degree = {layout.data if sharded else 1}
fsdp_reshard_after_forward = "{"always" if layout.zero == 3 else "never"}"
tensor_parallel_degree = {layout.tensor}
pipeline_parallel_degree = {layout.pipeline}
pipeline_parallel_schedule = "{schedule}"
pipeline_parallel_microbatch_size = {layout.micro}
context_parallel_degree = {layout.context}
expert_parallel_degree = {layout.expert}

[activation_checkpoint]
mode = "{layout.recompute}"
"""


def our_command(plan: ClusterPlan, layout: Layout) -> str:
    """torchrun with options that `isoflop train` has; the project's corpus brings the vocabulary."""
    each = math.gcd(plan.cluster.devices, plan.cluster.host_devices)
    shard = " --shard" if layout.zero else ""
    checkpointed = layout.recompute == "full"
    changes = {**_changes(plan.shape), "batch_tokens": layout.sequences * plan.shape.context,
               **({"checkpoint_activations": True} if checkpointed else {})}  # fmt: skip
    sets = " ".join(f"--set {name}={value}" for name, value in changes.items())
    return f"""#!/bin/sh
# {plan.cluster.name}: {layout.words}. Run on every node, with HOST the first of them.
torchrun --nnodes {plan.cluster.devices // each} --nproc-per-node {each} \\
  --rdzv-backend c10d --rdzv-endpoint "$HOST:29400" -m isoflop train --project "$PROJECT" \\
  --width {plan.shape.width} --layers {plan.shape.layers} --tokens {round(plan.tokens)} \\
  --precision bf16 --accumulate {layout.micro_batches}{shard} \\
  {sets}
"""


def _changes(shape: Shape) -> dict[str, int]:
    """Of the shape that our recipe would derive from the width."""
    return {"model.n_heads": shape.heads, "model.n_kv_heads": shape.kv_heads, "model.head_dim": shape.dim,
            "model.d_ff": shape.ff, "model.context": shape.context}  # fmt: skip
