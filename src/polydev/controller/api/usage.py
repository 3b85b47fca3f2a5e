"""Usage and quotas: users see their own, operators those of all users."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from polydev.controller.api.documented_errors import error_responses
from polydev.controller.api.session_answers import QuotaAnswer, quota_answer
from polydev.controller.api.url_numbers import WholeNumber
from polydev.controller.api_model import ApiModel
from polydev.controller.app_services import Services
from polydev.controller.auth.authentication import BEARER, Asking, AskingOperator
from polydev.controller.entities import Role, User, now
from polydev.controller.store.usage import Days
from polydev.controller.usage_accounting import USUAL_DAYS, Use, day_of, first_day, total
from polydev.controller.usage_quotas import QuotaState, month_of

MOST_DAYS = 400

DaysBack = Annotated[
    WholeNumber,
    Query(alias="days", ge=1, le=MOST_DAYS, description="How many days, today included"),
]


class UseAnswer(ApiModel):
    """Amounts used.

    vmSeconds   time in which VMs ran; paused time does not count
    receivedBytes, sentBytes    network traffic of the VMs
    sessions    sessions started
    """

    vm_seconds: float
    cpu_seconds: float
    received_bytes: int
    sent_bytes: int
    sessions: int


class DayUse(UseAnswer):
    """Usage of one day of UTC."""

    day: date


class OwnUsage(ApiModel):
    """The caller's usage. `days` has the days with usage, oldest first; `total` is their sum."""

    user_id: str
    since: date
    today: UseAnswer
    month: UseAnswer
    total: UseAnswer
    days: list[DayUse]
    quotas: list[QuotaAnswer]


class UserUsage(ApiModel):
    """Usage of one user since the first day of the report."""

    user_id: str
    name: str | None
    role: Role
    today: UseAnswer
    total: UseAnswer
    quotas: list[QuotaAnswer]


class UsageReport(ApiModel):
    """Usage of all users, most VM time first; `days` has the sums of all users."""

    since: date
    users: list[UserUsage]
    days: list[DayUse]
    total: UseAnswer


def routes(services: Services) -> APIRouter:
    router = APIRouter(tags=["usage"], dependencies=[BEARER])
    _add_own(router, services)
    _add_all(router, services)
    return router


def _add_own(router: APIRouter, services: Services) -> None:
    @router.get(
        "/api/auth/usage",
        summary="The caller's usage and quotas",
        responses=error_responses(422),
    )
    async def get_own_usage(caller: Asking, back: DaysBack = USUAL_DAYS) -> OwnUsage:
        at = now()
        since = first_day(at, back)
        known = await services.usage.days(min(since, month_of(at)), caller.user_id)
        days = known.get(caller.user_id, {})
        asked = _from(days, since)
        quotas = await services.usage.quotas({caller.user_id: caller.role}, at)
        return OwnUsage(
            user_id=caller.user_id,
            since=since,
            today=use_answer(days.get(day_of(at), Use())),
            month=use_answer(total(_from(days, month_of(at)).values())),
            total=use_answer(total(asked.values())),
            days=day_uses(asked),
            quotas=[quota_answer(each) for each in quotas[caller.user_id]],
        )


def _add_all(router: APIRouter, services: Services) -> None:
    @router.get(
        "/api/admin/usage",
        summary="Usage of all users; for operators",
        responses=error_responses(404, 422),
    )
    async def get_usage(
        _operator: AskingOperator,
        back: DaysBack = USUAL_DAYS,
        user: Annotated[UUID | None, Query(description="Only this user")] = None,
    ) -> UsageReport:
        at = now()
        users = [await services.users.get(str(user))] if user else await services.users.list()
        since = first_day(at, back)
        known = await services.usage.days(since, str(user) if user else None)
        quotas = await services.usage.quotas({each.id: each.role for each in users}, at)
        sums = sum_by_day(known.values())
        found = [
            _user_usage(each, known.get(each.id, {}), quotas[each.id], day_of(at)) for each in users
        ]
        return UsageReport(
            since=since,
            users=sorted(found, key=lambda each: -each.total.vm_seconds),
            days=day_uses(sums),
            total=use_answer(total(sums.values())),
        )


def _from(days: Days, since: date) -> Days:
    return {day: use for day, use in days.items() if day >= since}


def _user_usage(user: User, days: Days, quotas: Iterable[QuotaState], today: date) -> UserUsage:
    return UserUsage(
        user_id=user.id,
        name=user.name,
        role=user.role,
        today=use_answer(days.get(today, Use())),
        total=use_answer(total(days.values())),
        quotas=[quota_answer(each) for each in quotas],
    )


def sum_by_day(users: Iterable[Days]) -> Mapping[date, Use]:
    """Return what all of them used together on each day."""
    sums: dict[date, Use] = defaultdict(Use)
    for days in users:
        for day, use in days.items():
            sums[day] += use
    return sums


def day_uses(days: Days) -> list[DayUse]:
    return [DayUse(day=day, **dict(use_answer(days[day]))) for day in sorted(days)]


def use_answer(use: Use) -> UseAnswer:
    return UseAnswer(
        vm_seconds=round(use.vm_seconds, 1),
        cpu_seconds=round(use.cpu_seconds, 1),
        received_bytes=use.received_bytes,
        sent_bytes=use.sent_bytes,
        sessions=use.sessions,
    )
