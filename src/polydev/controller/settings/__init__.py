"""The settings of the controller: a YAML file, overridden by the environment and by secrets.

`controller_settings` has the top level, `shared_types` the base of all sections, and the other
modules a section each. `loading` reads the file, the variables and the secrets.
"""

from polydev.controller.settings.alert_thresholds import WARM_PERCENT, AlertSettings
from polydev.controller.settings.controller_settings import ControllerSettings, wrong_case
from polydev.controller.settings.jwt_and_web_pages import JwtSettings, WebSettings
from polydev.controller.settings.limits import ConnectionLimits, Quota, Quotas, RateLimits
from polydev.controller.settings.loading import load_settings
from polydev.controller.settings.sampling import Sampling
from polydev.controller.settings.sessions import WATCHED_SECONDS, LoginSettings, SessionLimits
from polydev.controller.settings.sources import ENVIRONMENT_PREFIX, SECRETS, secret_name
from polydev.controller.settings.vms import BootDeadlines, PoolSettings, VmChecks, VmSettings
from polydev.controller.settings.webhooks import WebhookEndpoint, WebhookSettings

__all__ = [
    "ENVIRONMENT_PREFIX",
    "SECRETS",
    "WARM_PERCENT",
    "WATCHED_SECONDS",
    "AlertSettings",
    "BootDeadlines",
    "ConnectionLimits",
    "ControllerSettings",
    "JwtSettings",
    "LoginSettings",
    "PoolSettings",
    "Quota",
    "Quotas",
    "RateLimits",
    "Sampling",
    "SessionLimits",
    "VmChecks",
    "VmSettings",
    "WebSettings",
    "WebhookEndpoint",
    "WebhookSettings",
    "load_settings",
    "secret_name",
    "wrong_case",
]
