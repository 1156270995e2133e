"""Ray and Ray Serve on this machine, for nobody else: loopback, a token, no dashboard, no proxy."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import psutil

from isoflop import errors
from isoflop.errors import ServeError
from isoflop.progress import Progress
from isoflop.ray_alone import ray_alone
from isoflop.serve.engines.opening import KEY_VARIABLE
from isoflop.serve.opening import Opening
from isoflop.serve.protocol import Engine
from isoflop.serve.replicas.counts import Replicas
from isoflop.serve.settings import LOOPBACK

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

STORE_BYTES = 100 << 20  # of Ray: calls are small, and are not kept
PUSH_SECONDS = 1.0  # between two reports of how many calls wait
HEALTH_SECONDS = 2.0
LOOK_SECONDS = 0.1  # between two looks at what starts
END_SECONDS = 2.0  # that a process of Ray has to end by itself
TEMPORARY = "/tmp" if os.path.isdir("/tmp") else None  # Ray has sockets there, whose paths must be short
NAME = "replica"  # of the deployment in each model's application
QUIET = {"log_level": "ERROR", "enable_access_log": False}


class Fleet:
    """Opens models in replicas (as Opening does in this process), and starts Ray for the first of them.

    At the end of the block nothing of Ray is left. `seconds` are what an answer may take. `made` is called in
    each replica, as Opening's `unstarted`. Raises ServeError where Ray is not installed, does not start, or
    is used by this process already.
    """

    def __init__(
        self, opening: Opening, replicas: Replicas, progress: Progress, *, seconds: float,
        made: Callable[[str, str], Engine] | None = None,
    ) -> None:  # fmt: skip
        self._opening, self._replicas, self._progress, self._seconds = opening, replicas, progress, seconds
        self._made = made or opening.unstarted
        self._ends, self._number, self._starting = ExitStack(), 0, asyncio.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.close()

    async def engine(self, where: str | Path, key_variable: str = KEY_VARIABLE) -> Engine:
        """As Opening's. A server elsewhere is asked by this process."""
        if "://" in str(where):
            return await self._opening.engine(where, key_variable)
        async with self._starting:
            if not self._number:
                self._progress.log("starting Ray on this machine")
                self._start()  # in this thread: Ray's processes die with the one that began them
                await asyncio.to_thread(_begin)
            self._number += 1
            name = f"model-{self._number}"
        made = partial(self._made, str(where), key_variable)
        slots = made().slots
        handle = await asyncio.to_thread(self._deploy, name, made, slots)
        try:
            await _ready(name)
            about = await handle.about.remote()
        except BaseException:
            await asyncio.to_thread(_delete, name, handle)
            raise
        from isoflop.serve.replicas.engine import with_abilities  # only now: it imports Ray

        kind = with_abilities(about.abilities)
        engine = kind(handle, about, slots, partial(_running, name), partial(_delete, name, handle))
        await engine.start()
        return engine

    def _deploy(self, name: str, made: Callable[[], Engine], slots: int) -> DeploymentHandle[Any]:
        """Without waiting for it."""
        from ray import serve

        from isoflop.serve.replicas.replica import Replica

        counts = self._replicas
        deployment: Any = serve.deployment(
            Replica, name=NAME,
            max_ongoing_requests=slots,  # more wait here, and not where they could be lost
            max_queued_requests=-1,  # the gateway has a limit
            ray_actor_options={"num_cpus": 0},  # cores are counted by `threads_of`
            autoscaling_config={
                "min_replicas": counts.fewest, "max_replicas": counts.most,
                "target_ongoing_requests": slots,  # so there are as many as none waits
                "upscale_delay_s": counts.up_seconds, "downscale_delay_s": counts.down_seconds,
                "metrics_interval_s": PUSH_SECONDS,
                "look_back_period_s": max(2 * PUSH_SECONDS, counts.up_seconds),
            },
            health_check_period_s=HEALTH_SECONDS,
            graceful_shutdown_wait_loop_s=0.2, graceful_shutdown_timeout_s=self._seconds,
            max_constructor_retry_count=1,
            logging_config=QUIET,
        )  # fmt: skip
        target = serve.RunTarget(deployment.bind(made), name, route_prefix=None, logging_config=QUIET)
        return serve.run_many([target], wait_for_applications_running=False)[0]

    def _start(self) -> None:
        private = self._ends.enter_context(tempfile.TemporaryDirectory(prefix="isoflop-", dir=TEMPORARY))
        self._ends.enter_context(ray_alone())
        try:
            import ray
            import ray.serve
        except ImportError as error:
            raise ServeError(
                f"{error.name} is not installed", hint="pip install 'isoflop[replicas]'"
            ) from None
        if ray.is_initialized():
            raise ServeError("this process uses Ray already", hint="serve from a process of its own")
        ray._private.worker._worker_logs_enabled = False  # else on stdout
        for logger in ("ray", "ray.serve"):
            logging.getLogger(logger).setLevel(logging.ERROR)
        self._ends.callback(_end, set(psutil.Process().children()))
        try:
            ray.init(
                address="local", num_cpus=0, include_dashboard=False, object_store_memory=STORE_BYTES,
                log_to_driver=False, logging_level=logging.ERROR,
                _temp_dir=f"{private}/ray",  # which it opens to all
            )  # fmt: skip
        except Exception as error:  # a plain Exception, too, where it starts too slowly
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ServeError(
                f"Ray does not start on this machine: {why}",
                hint="try again when it is less busy, or leave out --replicas",
            ) from None
        if ray.util.get_node_ip_address() not in LOOPBACK:  # type: ignore[no-untyped-call]
            raise ServeError(
                "Ray would listen to other machines", hint="install the Ray that constraints.txt names"
            )


def _begin() -> None:
    from ray import serve

    serve.start(proxy_location="Disabled", logging_config=QUIET)


def _end(before: set[psutil.Process]) -> None:
    """End Ray, and each process that it started: some would stay for a while, or for ever."""
    import ray

    begun = [child for child in psutil.Process().children() if child not in before]
    started = [*begun, *(each for child in begun for each in child.children(recursive=True))]
    ray.shutdown()
    _, left = psutil.wait_procs(started, timeout=END_SECONDS)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=END_SECONDS)


async def _ready(name: str) -> None:
    """Until an application's first replicas have started. Raises what an engine raised as it did."""
    from ray import serve

    while True:
        found = (await asyncio.to_thread(serve.status)).applications.get(name)
        if found is not None and found.status == "RUNNING":
            return
        if found is not None and found.status == "DEPLOY_FAILED":
            raise _why("\n".join([found.message, *(each.message for each in found.deployments.values())]))
        await asyncio.sleep(LOOK_SECONDS)


def _running(name: str) -> int:
    """Replicas of an application that answer."""
    from ray import serve

    application = serve.status().applications.get(name)
    if application is None:
        return 0
    return sum(
        count for each in application.deployments.values()
        for state, count in each.replica_states.items() if state == "RUNNING"
    )  # fmt: skip


def _delete(name: str, handle: DeploymentHandle[Any]) -> None:
    from ray import serve

    handle.shutdown()  # type: ignore[no-untyped-call]  # else it reports to Ray Serve for ever
    serve.delete(name)


def _why(told: str) -> Exception:
    """The engine's own error, of what Ray Serve tells of it."""
    from isoflop.serve.replicas.replica import CANNOT_OPEN

    found = re.search(re.escape(CANNOT_OPEN) + r"(\[.*\])", told)
    if found is None:
        lines = [line for line in told.strip().splitlines() if line.strip()]
        return ServeError(f"a replica does not start: {lines[-1]}", hint="try it without --replicas")
    kind, message, hint = json.loads(found[1])
    error: Exception = getattr(errors, kind)(message, hint=hint)
    return error
