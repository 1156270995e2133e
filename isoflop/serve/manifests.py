"""Files by which Kubernetes runs `isoflop serve`, with KEDA adding replicas as requests queue up."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import jinja2

from isoflop.errors import ServeError
from isoflop.records import Record
from isoflop.store import atomic_write, disk_errors

TEMPLATES = Path(__file__).parent / "templates" / "kubernetes"
PORT = 8000
NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,51}[a-z0-9])?")  # of an object, with room for what is put behind it
WORD = re.compile(r"\S+")
HOST = re.compile(r"[A-Za-z0-9.-]+:\d+")
REPLICAS = re.compile(r"(\d+):(\d+)")
CPU, MEMORY = re.compile(r"\d+(\.\d+)?|\d+m"), re.compile(r"\d+(Mi|Gi|M|G)")
STOP_SECONDS = 5  # in which the cluster stops sending a replica that ends requests
SPARE_SECONDS = 10  # beyond the drain, before it is killed


class Deployed(Record):
    """What the files say."""

    image: str
    model: str  # as it is named within the image
    project: str = "/project"  # folder within the image, whose ledger is in PostgreSQL
    name: str = "isoflop"  # of the objects
    namespace: str = "isoflop"
    least: int = 1  # replicas
    most: int = 4
    redis: str = ""  # HOST:PORT where the replicas count keys' rates together; "": each counts alone
    postgres_port: int = 5432  # of the ledger
    slots: int = 8  # requests that a replica computes at the same time
    drain: float = 30.0  # seconds that answers have to end
    cpu: str = "2"
    memory: str = "2Gi"
    prometheus: str = "http://prometheus-operated.monitoring.svc:9090"
    monitoring: str = "monitoring"  # namespace of Prometheus
    clients: tuple[str, ...] = ()  # namespaces beside its own whose pods may ask it

    def check(self) -> None:
        """Raises ServeError for what Kubernetes would refuse, and for no or fewer than no replicas."""
        for option, text, form, example in (
            ("--name", self.name, NAME, "isoflop"),
            ("--namespace", self.namespace, NAME, "isoflop"),
            ("--monitoring", self.monitoring, NAME, "monitoring"),
            *(("--client", each, NAME, "ingress-nginx") for each in self.clients),
            ("--image", self.image, WORD, "registry.example.org/isoflop:1"),
            ("--model", self.model, WORD, "/project/artifacts/gguf-..."),
            ("--project", self.project, WORD, "/project"),
            ("--redis", self.redis or "a:1", HOST, "redis.isoflop.svc:6379"),
            ("--cpu", self.cpu, CPU, "2, 0.5 or 500m"),
            ("--memory", self.memory, MEMORY, "2Gi or 800Mi"),
            ("--prometheus", self.prometheus, re.compile(r"https?://\S+"), "http://prometheus:9090"),
        ):
            if form.fullmatch(text) is None:
                raise ServeError(f"{option} is {text!r}, which cannot be", hint=f"write e.g. {example}")
        if not 1 <= self.least <= self.most:
            raise ServeError(
                f"--replicas is {self.least}:{self.most}: at least one, and not fewer at most than at least",
                hint="write e.g. 1:4",
            )


def replicas(text: str) -> tuple[int, int]:
    """The least and most. Raises ServeError."""
    found = REPLICAS.fullmatch(text)
    if found is None:
        raise ServeError(f"--replicas is {text!r}, not LEAST:MOST", hint="write e.g. 1:4")
    return int(found[1]), int(found[2])


def write(folder: Path, asked: Deployed) -> list[Path]:
    """Writes the files into a folder, which is made. Raises ServeError, ProjectError where it cannot be."""
    asked.check()
    with disk_errors(f"the folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, autoescape=False,
        keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    names = sorted(made.list_templates())
    for name in names:
        atomic_write(folder / name, made.get_template(name).render(_values(asked)))
    return [folder / name for name in names]


def _values(asked: Deployed) -> dict[str, Any]:
    drain = math.ceil(asked.drain)
    return asked.model_dump() | {
        "port": PORT, "drain": drain, "stop": STOP_SECONDS, "grace": STOP_SECONDS + drain + SPARE_SECONDS,
        "redis_port": int(asked.redis.rpartition(":")[2]) if asked.redis else None,
    }  # fmt: skip
