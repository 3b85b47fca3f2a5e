"""The links of the pages' navigation."""

from __future__ import annotations

from dataclasses import dataclass

from polydev.controller.entities import Caller


@dataclass(frozen=True)
class NavigationLink:
    """A link of the navigation. `title` is the name of a text."""

    path: str
    title: str


USER_LINKS = (NavigationLink("/", "navigation.start"),)
OPERATOR_LINKS: tuple[NavigationLink, ...] = (
    NavigationLink("/admin", "navigation.dashboard"),
    NavigationLink("/admin/sessions", "machines.navigation"),
    NavigationLink("/admin/users", "users.title"),
    NavigationLink("/admin/images", "images.title"),
    NavigationLink("/admin/deployments", "deployments.title"),
    NavigationLink("/admin/alerts", "alerts.title"),
)


def links_for(caller: Caller | None) -> tuple[NavigationLink, ...]:
    """Return the links for a caller; none for the key of a session's page."""
    if caller is None or caller.session_id is not None:
        return ()
    return USER_LINKS + OPERATOR_LINKS if caller.sees_all else USER_LINKS
