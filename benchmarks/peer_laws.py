"""simple-scaling-laws, run by an interpreter that has it (Python 3.12 or later), for the law benchmarks."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import numpy as np

CODE = """
import json, sys, time
import polars as pl, simple_scaling_laws as peer
asked = json.load(sys.stdin)
def frame(columns):
    table = pl.DataFrame(columns)
    return table.with_columns(pl.Series("training_run_id", [str(i) for i in range(len(table))]))
start = time.process_time()
model = peer.fit(frame(asked["table"]), n_draws=asked["draws"], seed=0)
seconds = time.process_time() - start
out = {"seconds": seconds, "params": model.params("test_loss__l")}
if asked["points"]:
    found = model.predict(frame(asked["points"]), kind="new-run", quantiles=(0.05, 0.5, 0.95), seed=0)
    out["names"] = found.columns
    out["rows"] = [[float(v) if isinstance(v, (int, float)) else None for v in row] for row in found.rows()]
print(json.dumps(out))
"""


def ask(
    python: str, table: dict[str, np.ndarray], points: dict[str, np.ndarray] | None = None, draws: int = 1000
) -> dict[str, Any]:
    """Fit `table` (params, tokens, loss); with `points` (params, tokens) predict new runs there.

    Returns `seconds` of CPU for the fit, `params`, and (3, points) `quantiles`: 0.05, 0.5, 0.95.
    """
    names = {"params": "model_size__n", "tokens": "dataset_size__d", "loss": "test_loss__l"}

    def renamed(columns: dict[str, np.ndarray] | None) -> dict[str, list[float]]:
        return {names[k]: v.tolist() for k, v in (columns or {}).items() if k in names}

    asked = {"table": renamed(table), "points": renamed(points), "draws": draws}
    done = subprocess.run(
        [python, "-c", CODE], input=json.dumps(asked), capture_output=True, text=True, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    if points is not None:
        at = [i for i, name in enumerate(answer["names"]) if name.startswith("test_loss__l__")]
        answer["quantiles"] = np.array([[row[i] for i in at] for row in answer["rows"]], dtype=np.float64).T
    return answer
