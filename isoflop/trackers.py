"""Runs in other tools' terms, where the user asks for it: TensorBoard, Weights & Biases, MLflow, Trackio.

A run that has the machine is written while it trains, by the points of its curve; a ladder's runs when they
end, with all of their curve; what is said of the job (plan, gain, result) as a run "job". Everything happens
in the process that the user started: workers send points through the progress, and finished runs pass through
the ledger. Each tool writes into PROJECT/tracking/TOOL unless its own environment variables name a place.

A tracker that fails is left out from then on, with one line: it never ends the training. Each is an extra,
imported when it is asked for: pip install 'isoflop[tensorboard]', and so on.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from isoflop.errors import TrainError
from isoflop.progress import Live, Progress
from isoflop.records import CurvePoint, Gain, Interval, Plan, Record, Result, Run, RunConfig
from isoflop.store import Project

FOLDER = "tracking"
JOB = "job"  # the name of what is said of the whole job

Values = Mapping[str, float]
Config = Mapping[str, str | int | float | bool]


class Log(Protocol):
    """One run in one tool."""

    def write(self, values: Values, tokens: int) -> None:
        """Numbers by name, after so many training tokens."""

    def close(self) -> None:
        """The run is over, or this process ends."""


class TensorBoard:
    """Event files, a folder a run."""

    def __init__(self, folder: Path, name: str, config: Config) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / name))
        lines = "\n".join(f"| {key} | {value} |" for key, value in config.items())
        self.writer.add_text("config", f"| name | value |\n|---|---|\n{lines}")

    def write(self, values: Values, tokens: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, tokens)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WandB:
    """Offline runs, for `wandb sync`; WANDB_MODE=online sends them at once."""

    def __init__(self, folder: Path, name: str, config: Config) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", folder.parent.parent.absolute().name), name=name, id=name,
            dir=os.environ.get("WANDB_DIR", str(folder)), config=dict(config), mode=mode,
            resume=None if mode == "offline" else "allow", reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip
        self.run.define_metric("*", step_metric="tokens")  # steps of its own would have to rise

    def write(self, values: Values, tokens: int) -> None:
        self.run.log({**values, "tokens": tokens})

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """A local database; MLFLOW_TRACKING_URI names another store."""

    def __init__(self, folder: Path, name: str, config: Config) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        folder.mkdir(parents=True, exist_ok=True)
        place = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{(folder / 'mlflow.db').absolute()}")
        self.client = MlflowClient(tracking_uri=place)
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", folder.parent.parent.absolute().name)
        known = self.client.get_experiment_by_name(title)
        artifacts = (
            None if "MLFLOW_TRACKING_URI" in os.environ else (folder / "artifacts").absolute().as_uri()
        )
        study = known.experiment_id if known else self.client.create_experiment(title, artifacts)
        before = self.client.search_runs([study], f"attributes.run_name = '{name}'", max_results=1)
        self.id = (
            before[0].info.run_id if before else self.client.create_run(study, run_name=name).info.run_id
        )
        if not before:
            self.client.log_batch(self.id, params=[Param(key, str(value)) for key, value in config.items()])

    def write(self, values: Values, tokens: int) -> None:
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        self.client.log_batch(self.id, metrics=[Metric(k, v, now, tokens) for k, v in values.items()])

    def close(self) -> None:
        self.client.set_terminated(self.id)


class Trackio:
    """Trackio's local database; TRACKIO_DIR names another folder."""

    def __init__(self, folder: Path, name: str, config: Config) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TRACKIO_DIR", str(folder.absolute()))  # read when it is imported
        with contextlib.redirect_stdout(sys.stderr):  # ours is for tables and JSON
            import trackio

            self.run = trackio.init(
                project=folder.parent.parent.absolute().name, name=name, config=dict(config), resume="allow",
                embed=False, auto_log_gpu=False, auto_log_cpu=False,
            )  # fmt: skip

    def write(self, values: Values, tokens: int) -> None:
        self.run.log({**values, "tokens": tokens}, step=tokens)

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self.run.finish()


TRACKERS: Mapping[str, Callable[[Path, str, Config], Log]] = {
    "tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow, "trackio": Trackio,
}  # fmt: skip


def check(names: Sequence[str]) -> None:
    """Raises TrainError for a name that is not known, or whose extra is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise TrainError(f"there is no tracker {name!r}", hint=f"name any of {', '.join(TRACKERS)}")
        if find_spec(name) is None:
            raise TrainError(
                f"the tracker {name} is not installed",
                hint=f"install the extra: pip install 'isoflop[{name}]'",
            )


@contextmanager
def tracked(names: Sequence[str], project: Project, progress: Progress) -> Iterator[Progress]:
    """In this block what is trained and put into the project's ledger goes to these trackers as well.

    Yields the progress to give to the work. Without names nothing is done, and nothing imported. Raises
    TrainError as `check`.
    """
    if not names:
        yield progress
        return
    check(names)
    recorder = Recorder(sorted(set(names)), project.folder, progress)
    project.listeners.append(recorder.put)
    try:
        yield recorder
    finally:
        project.listeners.remove(recorder.put)
        recorder.close()


class Recorder:
    """A progress that also writes what it is told to trackers, and hears what the ledger gets."""

    def __init__(self, names: Sequence[str], folder: Path, progress: Progress) -> None:
        self.folder, self.progress = folder / FOLDER, progress
        self.names = list(names)  # those that still work
        self.logs: dict[str, dict[str, Log]] = {}  # open, by run and tracker
        self.last: dict[str, CurvePoint] = {}  # of each live run
        self.start, self.update = progress.start, progress.update
        self.finish, self.log = progress.finish, progress.log

    def live(self, point: Live) -> None:
        """A run that has the machine is shown while it trains; a ladder's runs are, when they end."""
        if point.role in ("final", "train"):
            name = f"{point.role}-{point.id}"
            before = self.last.get(name)
            self.last[name] = point.point
            self._write(
                name, point.config, curve_values(point.config, point.point, before), point.point.tokens
            )

    def put(self, kind: str, id: str, record: Record) -> None:
        """A record was put into the ledger."""
        if isinstance(record, Run):
            self._run(record)
        elif isinstance(record, Plan):
            self._write(JOB, record.config, plan_values(record), 0)
        elif isinstance(record, Gain):
            part = id.rpartition("-")[2]  # own, or total: with the ladder's cost
            self._write(JOB, None, interval_values(f"gain/doublings_{part}", record.doublings), 0)
        elif isinstance(record, Result):
            self._write(JOB, None, result_values(record), 0)

    def _run(self, run: Run) -> None:
        name = f"{run.role}-{run.id}"
        before = None
        for point in run.curve if name not in self.last else ():
            self._write(name, run.config, curve_values(run.config, point, before), point.tokens)
            before = point
        self._write(name, run.config, run_values(run), run.tokens)
        self._close(name)

    def _write(self, name: str, config: RunConfig | None, values: Values, tokens: int) -> None:
        logs = self.logs.setdefault(name, {})
        for tracker in list(self.names):
            with self._surviving(tracker):
                if tracker not in logs:
                    logs[tracker] = TRACKERS[tracker](self.folder / tracker, name, flat(config))
                logs[tracker].write(values, tokens)

    def _close(self, name: str) -> None:
        for tracker, log in self.logs.pop(name, {}).items():
            if tracker in self.names:
                with self._surviving(tracker):
                    log.close()

    def close(self) -> None:
        """End what is open."""
        for name in list(self.logs):
            self._close(name)

    @contextmanager
    def _surviving(self, tracker: str) -> Iterator[None]:
        """Whatever goes wrong in a tracker, the training goes on without it."""
        try:
            yield
        except Exception as error:
            self.names.remove(tracker)
            self.progress.log(
                f"tracking by {tracker} ends here, the run goes on: {type(error).__name__}: {error}"
            )


# -- what is written ------------------------------------------------------------------------------------


def flat(config: RunConfig | None) -> dict[str, str | int | float | bool]:
    """A configuration as names and plain values, `model.d_model` and the like."""
    if config is None:
        return {}
    document = config.model_dump(mode="json")
    model = {f"model.{key}": value for key, value in document.pop("model").items()}
    found = document | model
    return {k: v if isinstance(v, str | int | float | bool) else str(v) for k, v in found.items()}


def curve_values(config: RunConfig, point: CurvePoint, before: CurvePoint | None) -> dict[str, float]:
    """A point of a curve; the speed is that since the point before."""
    from isoflop.flops import flops_per_token
    from isoflop.schedule import rate

    tokens, seconds = (point.tokens, point.seconds) if before is None else (
        point.tokens - before.tokens, point.seconds - before.seconds
    )  # fmt: skip
    values = {
        "train/loss": point.loss,
        "train/lr_matrix": config.lr_matrix * rate(point.tokens, config),
        "train/flops": float(flops_per_token(config.model) * point.tokens),
        "train/seconds": point.seconds,
    }
    return values | ({"train/tokens_per_second": tokens / seconds} if seconds > 0 else {})


def run_values(run: Run) -> dict[str, float]:
    """The scores of a finished run, and what it took."""
    values = {
        "heldout/loss": run.loss, "heldout/loss_se": run.loss_se, "run/params": run.params_matmul,
        "run/flops": run.flops, "run/seconds_train": run.seconds_train, "run/seconds_eval": run.seconds_eval,
        "run/tokens_per_second": run.tokens_per_second, "run/peak_share": run.peak_share,
        "run/peak_memory_bytes": run.peak_memory_bytes,
    }  # fmt: skip
    some = {"bpb": run.bpb, "bpb_se": run.bpb_se, "next_accuracy": run.next_accuracy}
    return values | {f"heldout/{name}": value for name, value in some.items() if value is not None}


def interval_values(name: str, found: Interval) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def plan_values(plan: Plan) -> dict[str, float]:
    """What is foretold of the final run."""
    return {
        "plan/params": plan.params, "plan/tokens": plan.tokens, "plan/flops": plan.flops,
        "plan/seconds": plan.seconds, **interval_values("plan/loss", plan.loss),
    }  # fmt: skip


def result_values(result: Result) -> dict[str, float]:
    """What the budget bought."""
    values = {
        "result/loss": result.loss, "result/flops": result.flops, "result/flops_total": result.flops_total,
        "result/within_interval": float(result.within_interval), "result/seconds": result.seconds["total"],
    }  # fmt: skip
    return values if result.bpb is None else values | {"result/bpb": result.bpb}
