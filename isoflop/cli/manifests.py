"""Files by which a cluster runs a server: `manifests`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isoflop.cli.options import JsonOption
from isoflop.terminal import Terminal, out

app = typer.Typer()


@app.command()
def manifests(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Where the files go; is made.")],
    image: Annotated[str, typer.Option(help="That has isoflop and the project; OUT/Dockerfile makes one.")],
    model: Annotated[str, typer.Option(help="As `serve` is told it, within the image.")],
    project: Annotated[
        str, typer.Option(help="Folder within the image; its ledger is in PostgreSQL.")
    ] = "/project",
    name: Annotated[str, typer.Option(help="Of all objects.")] = "isoflop",
    namespace: Annotated[str, typer.Option(help="That they are in.")] = "isoflop",
    replicas: Annotated[str, typer.Option(metavar="LEAST:MOST", help="How many KEDA keeps.")] = "1:4",
    redis: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where replicas count keys' rates together.")
    ] = "",
    postgres_port: Annotated[int, typer.Option(min=1, max=65535, help="Of the ledger's server.")] = 5432,
    slots: Annotated[int, typer.Option(min=1, help="Requests that a replica computes at once.")] = 8,
    drain: Annotated[float, typer.Option(min=1, help="Seconds that answers have to end.")] = 30.0,
    cpu: Annotated[str, typer.Option(help="Of a replica.")] = "2",
    memory: Annotated[str, typer.Option(help="Of a replica, and no more.")] = "2Gi",
    prometheus: Annotated[
        str, typer.Option(metavar="URL", help="Where KEDA asks how many requests there are.")
    ] = "http://prometheus-operated.monitoring.svc:9090",
    monitoring: Annotated[str, typer.Option(help="Namespace of Prometheus.")] = "monitoring",
    client: Annotated[
        list[str] | None,
        typer.Option(metavar="NAMESPACE", help="Whose pods may ask it, beside its own; may be repeated."),
    ] = None,
    json: JsonOption = False,
) -> None:  # fmt: skip
    """Write what Kubernetes runs a server by: replicas that KEDA adds as requests wait.

    Deployment, Service, NetworkPolicy, PodDisruptionBudget, ServiceMonitor, ScaledObject and a
    kustomization.yaml, which says how its Secrets are made; and a Dockerfile.

    Example: [bold]isoflop manifests k8s --image registry.example.org/isoflop:1
    --model /project/artifacts/gguf-... --redis redis.isoflop.svc:6379[/bold]
    """
    from isoflop.serve.manifests import Deployed, write
    from isoflop.serve.manifests import replicas as numbers

    least, most = numbers(replicas)
    asked = Deployed(
        image=image, model=model, project=project, name=name, namespace=namespace, least=least, most=most,
        redis=redis, postgres_port=postgres_port, slots=slots, drain=drain, cpu=cpu, memory=memory,
        prometheus=prometheus, monitoring=monitoring, clients=tuple(client or ()),
    )  # fmt: skip
    files = write(folder, asked)
    if most > 1 and not redis:
        Terminal().log(
            "without --redis each replica counts the rates of keys alone: together they let more in"
        )
    if json:
        out({"files": [str(file) for file in files], "deployed": asked.model_dump(mode="json")})
        return
    for file in files:
        typer.echo(file)
