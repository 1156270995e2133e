"""What watches a server from inside: metrics, feedback, alerts, as observers of its calls and as routes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fastapi import APIRouter

from isoflop.serve.alerts import Alerts
from isoflop.serve.audit import Audit
from isoflop.serve.by_role import ByRole
from isoflop.serve.calls import Observer
from isoflop.serve.feedback import Feedbacks
from isoflop.serve.gateway import Gateway
from isoflop.serve.meters import Meters, metrics_router
from isoflop.serve.objectives import Objectives
from isoflop.serve.pages import page_router
from isoflop.serve.rating import feedback_router
from isoflop.serve.webhook import Webhook
from isoflop.store import Project


class Watched(NamedTuple):
    """What a server has beside its models' routes."""

    observers: Sequence[Observer]
    routers: Sequence[APIRouter]
    alerts: Alerts | None


def watched(
    gateway: Gateway, project: Project | None, audit: Audit | None, promised: Objectives, webhook: str | None
) -> Watched:
    """Without a project there is no feedback, without a webhook there are no alerts.

    Raises IsoflopError for a webhook that is no URL.
    """
    settings = gateway.settings
    meters = Meters(
        lambda: (model for _, model in gateway.loaded()), vllm_names=settings.vllm_names,
        audit_writable=None if audit is None else lambda: not audit.failing,
    )  # fmt: skip
    server = f"{settings.host}:{settings.port}"
    alerts = None if webhook is None else Alerts(Webhook(webhook), promised, server=server)
    by_role = ByRole(gateway, meters)
    observers: list[Observer] = [each for each in (audit, meters, by_role, alerts) if each is not None]
    gateway.shadowing.observers = [each for each in (audit, by_role) if each is not None]
    gateway.shadowing.listeners = [by_role.copied]
    routers = [metrics_router(meters), page_router()]
    if project is not None:
        masker = gateway.masking(())
        feedbacks = Feedbacks(
            project, mask=None if masker is None else lambda text: masker.mask(text).text,
            listeners=[meters.rated, *([] if alerts is None else [alerts.rated])],
        )  # fmt: skip
        observers.append(feedbacks)
        routers.append(feedback_router(feedbacks))
    return Watched(observers, routers, alerts)
