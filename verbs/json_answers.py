"""The JSON answers of the verbs, as models: docs/verbs.md shows them, and tests check answers.

A docstring says what the answer is, then a line for each field that its name does not explain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter
from pydantic.alias_generators import to_camel


@dataclass(frozen=True)
class ApiAnswer:
    """An answer that the verb passes on from the controller's API; docs/api.md has its `schema`."""

    schema: str
    is_list: bool = False


class Camel(BaseModel):
    model_config = ConfigDict(
        extra="forbid", alias_generator=to_camel, validate_by_name=True, validate_by_alias=True
    )


class Snake(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LayerOfImage(Camel):
    """A layer of an image.

    id       hash of its inputs
    seconds  how long it took, s; null if it came from the cache
    """

    name: str
    id: str
    seconds: float | None


class BuiltImage(Camel):
    """The image that was built, or found unchanged.

    digest        the image's name
    changed       whether this build made it
    seconds       duration, s
    rootfsSha256  checksum of the root filesystem
    rootfsBytes   disk space of the root filesystem, bytes
    layers        lowest first
    """

    digest: str
    changed: bool
    seconds: float
    rootfs_sha256: str
    rootfs_bytes: int
    layers: list[LayerOfImage]


class SpecOutcome(Camel):
    """The result of one spec.

    seconds  duration, s
    message  why it failed or was skipped
    """

    name: str
    outcome: Literal["passed", "failed", "skipped"]
    seconds: float
    message: str


class ImageVerification(Camel):
    """The last verification of an image.

    at                  when it ended
    passed              true in the answer of `golden.verify`, where a failure is an error
    cause               why it failed
    hypervisor          QEMU's version
    stageReached        `none`, `kernel`, `init`, `network`, `services` or `ready`
    bootTimingsSeconds  stage → seconds since QEMU's start
    seconds             the whole verification, s
    """

    at: datetime
    passed: bool
    cause: str | None
    hypervisor: str
    accelerator: Literal["kvm", "tcg"]
    stage_reached: str
    boot_timings_seconds: dict[str, float]
    specs: list[SpecOutcome]
    seconds: float


class VerifiedImage(ImageVerification):
    """The verification of an image. A failure is an error, and is kept in the image's record.

    digest              the image
    at                  when it ended
    passed              always true
    cause               null
    hypervisor          QEMU's version
    stageReached        `ready`
    bootTimingsSeconds  stage → seconds since QEMU's start
    seconds             the whole verification, s
    """

    digest: str


class GoldenImage(Camel):
    """The image that is golden now.

    number   number of the promotion
    digest   the image that is golden now
    was      the image that was golden before
    changed  false if it was golden already
    """

    number: int
    digest: str
    was: str | None
    changed: bool


class ImageInStore(Camel):
    """An image of the store.

    isPrevious            whether a rollback would take it
    inUse                 whether a process holds it now
    createdAt             when it was built first
    recipe                name of its recipe
    kernelVersion         Debian's version of the kernel
    contentBytes          sum of its files' sizes, bytes
    rootfsAllocatedBytes  disk space of the root filesystem, bytes
    cause                 why its verification failed
    """

    digest: str
    state: Literal["built", "failed", "verified", "promoted", "retired"]
    is_previous: bool
    in_use: bool
    created_at: datetime
    recipe: str
    kernel_version: str
    content_bytes: int
    rootfs_allocated_bytes: int
    cause: str | None


class FileOfImage(Camel):
    """A file of an image.

    allocatedBytes  disk space, without holes
    """

    sha256: str
    size_bytes: int
    allocated_bytes: int


class PackageOfImage(Camel):
    """A package in an image."""

    kind: Literal["deb", "npm"]
    name: str
    version: str


class ImageDetails(Camel):
    """The record that lies beside the image.

    createdAt        when it was built first
    sourceDateEpoch  the recipe's, seconds since 1970
    files            file name → file
    contentBytes     sum of the files' sizes, bytes
    builder          program → version
    providers        provider → its declaration; null in records of older versions
    verification     the last one
    """

    digest: str
    recipe: str
    created_at: datetime
    source_date_epoch: int
    kernel_version: str
    files: dict[str, FileOfImage]
    content_bytes: int
    layers: list[LayerOfImage]
    packages: list[PackageOfImage]
    builder: dict[str, str]
    providers: dict[str, Any] | None
    verification: ImageVerification | None


class Change(Camel):
    """A difference; `old` or `new` is null where an image has no such thing."""

    name: str
    old: str | None
    new: str | None


class ChangeOfPackage(Change):
    """A package that differs; `old` or `new` is null where an image does not have it."""

    kind: str


class ChangeOfFile(Camel):
    """A path that both images have.

    fields  what differs, such as `mode` or `sha256`
    """

    path: str
    fields: list[str]


class ChangesOfFiles(Camel):
    """The paths that differ."""

    added: list[str]
    removed: list[str]
    changed: list[ChangeOfFile]


class ImageDifference(Camel):
    """The differences from image `old` to image `new`.

    old, new                     the digests
    contentChangeBytes           bytes, negative where it shrank
    rootfsAllocatedChangeBytes   the same of the disk space
    layersChanged                by the layers' ids
    settingsChanged              recipe, kernel, what built it
    files                        null if an image has no list of its files
    """

    old: str
    new: str
    packages_added: list[ChangeOfPackage]
    packages_removed: list[ChangeOfPackage]
    packages_changed: list[ChangeOfPackage]
    content_change_bytes: int
    rootfs_allocated_change_bytes: int
    layers_changed: list[Change]
    settings_changed: list[Change]
    files: ChangesOfFiles | None


class KeptImage(Camel):
    """An image that stays, and why."""

    digest: str
    reason: Literal["golden", "previous", "in use", "recent"]


class OrphanProcess(Camel):
    """A process that killed work left."""

    pid: int
    argv: list[str]


class PrunedImages(Camel):
    """Things that were removed, or would be with `--dry-run`.

    removed         digests of images
    leftovers       folders that dead builds left
    layers          ids of cached layers that no image needs, in any store that the cache built for
    scratchFolders  folders of VMs whose maker was killed
    orphans         processes that killed work left; they are not ended
    freedBytes      bytes
    dryRun          true: nothing was removed
    """

    removed: list[str]
    kept: list[KeptImage]
    leftovers: list[str]
    layers: list[str]
    scratch_folders: list[str]
    orphans: list[OrphanProcess]
    freed_bytes: int
    dry_run: bool


class ProviderTool(Camel):
    """A provider of a recipe, and its tool.

    olderNames  names that older clients use
    package     of npm; null if another way brings the tool
    version     in the lock file; null if npm does not bring the tool
    """

    name: str
    label: str
    older_names: list[str]
    package: str | None
    version: str | None


class CheckedTool(ProviderTool):
    """A tool that npm brings.

    olderNames  names that older clients use
    package     of npm
    version     in the lock file
    newest      version in npm's registry
    behind      whether the lock file has an older one
    """

    newest: str
    behind: bool


class DeploymentOfLab(Camel):
    """The deployment of the lab."""

    id: str
    host: str
    status: str
    changes: int


class Addresses(Camel):
    """Addresses of the VM on this machine.

    viewer     page that shows the desktop at once
    novnc      the same server without the page's options
    vnc        `host:port` for a VNC program
    agent      the guest's agent: `/health`, and `/metrics` for Prometheus
    serialLog  file with the guest's console
    """

    viewer: str
    novnc: str
    vnc: str
    agent: str
    serial_log: str


class LabAddresses(Camel):
    """Addresses of the lab.

    lab         its name
    controller  URL of its controller
    url         the same
    userId      of a demo user with the role `user`
    token       of that user
    page        link that signs that user in, once, within two minutes
    dashboard   URL of the dashboard
    """

    lab: str | None = None
    controller: str | None = None
    url: str | None = None
    user_id: str | None = None
    token: str | None = None
    page: str | None = None
    dashboard: str | None = None


class UpAnswer(LabAddresses, Addresses):
    """The VM and the lab that run now. The lab's fields are missing with `--no-lab`.

    image       digest
    built       whether this call built it
    promoted    whether this call promoted it
    started     whether this call started the VM
    viewer      page that shows the VM's desktop at once
    novnc       the same server without the page's options
    vnc         `host:port` for a VNC program
    agent       the guest's agent: `/health`, and `/metrics` for Prometheus
    serialLog   file with the guest's console
    lab         the lab's name
    controller  URL of its controller
    url         the same
    userId      of a demo user with the role `user`
    token       of that user
    page        link that signs that user in, once, within two minutes
    dashboard   URL of the dashboard
    """

    image: str
    built: bool
    promoted: bool
    started: bool
    vm_id: str
    deployment: DeploymentOfLab | None = None


class WhereAnswer(LabAddresses):
    """The VM and the lab that run now. Fields of one that does not run are missing.

    running     whether the VM on this machine runs
    image       digest
    viewer      page that shows the VM's desktop at once
    novnc       the same server without the page's options
    vnc         `host:port` for a VNC program
    agent       the guest's agent: `/health`, and `/metrics` for Prometheus
    serialLog   file with the guest's console
    lab         the lab's name
    controller  URL of its controller
    url         the same
    userId      of a demo user with the role `user`
    token       of that user
    page        link that signs that user in, once, within two minutes; missing if the controller
                does not answer
    dashboard   URL of the dashboard
    """

    running: bool
    vm_id: str | None = None
    image: str | None = None
    viewer: str | None = None
    novnc: str | None = None
    vnc: str | None = None
    agent: str | None = None
    serial_log: str | None = None


class DownAnswer(Camel):
    """Whether the VM and the lab were ended."""

    ended: bool
    lab_ended: bool


class DeploymentRecord(Camel):
    """The record of a deployment, rollback or backup, as the host keeps it.

    id          `YYYYMMDD_HHMMSS-COMMIT`, UTC; ends with `-dirty` if the checkout had changes
    number      its place in the order of all that was made on the host; null in older records
    status      `failed`: nothing was changed; `interrupted`: its operator died, and `undone` says
                what a later deployment made of it
    target      `all`, `master-controller` or `vm-agent`
    who         who did it
    commit      from which commit
    finishedAt  null while it runs
    state       id of the deployment whose result the host has after this one
    previous    the same, when this one began; null before the first
    backup      whether a backup was made before anything changed; it has this record's id
    changes     operations that changed something; 1 for a rollback, 0 for an unfinished deployment
    operations  those that were to change something; empty for a rollback
    reason      why it failed
    gate        `ok` and `checks` (`name`, `ok`, `detail`); null if it was not asked
    undone      of an automatic restore: `restored` (what it changed) and `gate`, or `failed`
    """

    model_config = ConfigDict(
        extra="allow", alias_generator=to_camel, validate_by_name=True, validate_by_alias=True
    )

    id: str
    number: int | None
    kind: Literal["deploy", "rollback", "backup"]
    status: Literal[
        "running", "succeeded", "failed", "rolled-back", "rollback-failed", "interrupted"
    ]
    target: str
    host: str
    started_at: datetime
    finished_at: datetime | None
    who: str
    commit: str
    state: str | None
    previous: str | None
    backup: bool
    changes: int
    operations: list[str]
    reason: str | None
    gate: dict[str, Any] | None
    undone: dict[str, Any] | None


class PlannedOperation(Camel):
    """An operation that would change something.

    diff  lines
    """

    name: str
    diff: list[str]


class PlanOfHost(Camel):
    """The changes that a deployment would make; the answer of `drift`, and of `--plan`.

    changes   how many operations would change something
    warnings  such as tokens that would cross the internet in plain text
    """

    changes: int
    operations: list[PlannedOperation]
    warnings: list[str]


class DoctorFinding(Camel):
    """One thing that the doctor examined.

    where  `this machine`, a host's name, or the inventory that has none
    name   what was examined
    found  what was found
    todo   what to do; null only if `state` is `ok`
    """

    where: str
    name: str
    state: Literal["ok", "warning", "problem"]
    found: str
    todo: str | None


class BrokenLock(Camel):
    """The lock that was broken.

    broken   the lock: `id`, `owner`, `purpose`, `since`, `expires`, `pid`, `pidStart`
    wasHeld  whether its holder was alive
    """

    broken: dict[str, Any] | None
    was_held: bool


class JournalLines(Camel):
    """Lines of the host's journal."""

    host: str
    lines: list[str]


class LabInstance(Camel):
    """A lab, and how SSH reaches it.

    suite       its Debian release: `bookworm` or `trixie`
    key         file with the private key
    knownHosts  file with the lab's own key
    """

    name: str
    suite: str
    address: str
    ssh_port: int
    user: str
    key: str
    known_hosts: str


class LabEnded(Camel):
    """Whether there was a lab to end."""

    ended: bool


class HostUser(Camel):
    """A user of a host."""

    id: str
    role: Literal["admin", "operator", "user"]
    name: str | None
    created_at: datetime


class RemovedUser(HostUser):
    """A user who was removed, and how many of their things.

    sessions     how many were ended and removed
    tokens       how many were removed
    credentials  how many were removed
    """

    sessions: int
    tokens: int
    credentials: int


class HostToken(Camel):
    """A token of a user.

    id      the token's name
    userId  the user it stands for
    name    what it is for
    usedAt  the last use, to the minute
    """

    id: str
    user_id: str
    name: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    used_at: datetime | None


class NewToken(HostToken):
    """A new token.

    id      the token's name
    userId  the user it stands for
    name    what it is for
    usedAt  null
    token   the token itself, shown this once
    """

    token: str


class CredentialsKey(Camel):
    """A new key."""

    key: str


class RotatedCredentials(Camel):
    """Counts of credentials.

    sealed      sealed again with the first key
    current     were sealed with it before
    locked      cannot be opened by any key
    recipients  sealed to their owners' recipients
    """

    sealed: int
    current: int
    locked: int
    recipients: int


class AlertTrial(Camel):
    """The result of a test alert.

    target  its place in `alert-urls`
    said    the error; null if it was sent
    """

    target: int
    service: str
    sent: bool
    said: str | None


class OpenedPage(Camel):
    """The page.

    url        the link that signs in once
    page       where it leads
    opened     whether a browser was opened
    """

    url: str
    page: str
    expires_at: datetime
    opened: bool


class OpenPort(Camel):
    """The port, as soon as it is open.

    vnc  `host:port` for a VNC program
    """

    session: str
    vnc: str


class TypedCode(Camel):
    """The session whose tool got the code."""

    session_id: str
    typed: bool


class ConsoleLines(Camel):
    """Lines of the console, without control sequences."""

    vm_id: str
    lines: list[str]


class SavedScreenshot(Camel):
    """The file."""

    vm_id: str
    file: str
    bytes: int


class BuiltTemplate(Camel):
    """`made` says whether this call made it; the other fields are those of the API."""

    model_config = ConfigDict(extra="allow")

    made: bool


class WebhookLog(Camel):
    """The endpoints, and the newest deliveries. The items are those of the API.

    next  `before` of the following page; null on the last
    """

    endpoints: list[dict[str, Any]]
    deliveries: list[dict[str, Any]]
    next: Any


class DatabaseCopy(Camel):
    """The copy.

    database  `sqlite` or `postgresql`
    revision  of its schema
    """

    file: str
    database: str
    revision: str
    bytes: int


class RestoredDatabase(Camel):
    """The contents of the database now.

    database      `sqlite` or `postgresql`
    revision      of its schema
    migratedFrom  the copy's revision, if it was an older one
    rows          table → number of its rows
    """

    file: str
    database: str
    revision: str
    migrated_from: str | None = None
    rows: dict[str, int]


class MovedDatabase(DeploymentRecord):
    """The record of the deployment that moved the database, as of `deploy`, and

    moved  table → number of its rows, each compared
    """

    moved: dict[str, int]


class StartBench(Snake):
    """Durations of starts. `pool`, `clone`, `cold`: how the VM came; `bare`: a bare resume.

    bare_resume_seconds, pool_start_seconds  median, s; likewise the others
    bare_resume_p95_seconds                  95th percentile, s; likewise the others
    bare_first_frame_seconds                 median until the screen has all pixels, s; likewise
    pool_start_to_bare_resume                ratio of medians; null if one was not measured
    missing                                  why a ratio is null
    seconds, all_first_frame_seconds         all measurements of `bare`, `pool`, `clone`, `cold`, s
    """

    bare_resume_seconds: float | None
    pool_start_seconds: float | None
    clone_start_seconds: float | None
    cold_start_seconds: float | None
    bare_resume_p95_seconds: float | None
    pool_start_p95_seconds: float | None
    clone_start_p95_seconds: float | None
    cold_start_p95_seconds: float | None
    bare_first_frame_seconds: float | None
    pool_first_frame_seconds: float | None
    clone_first_frame_seconds: float | None
    cold_first_frame_seconds: float | None
    pool_start_to_bare_resume: float | None
    clone_start_to_bare_resume: float | None
    cold_to_pool_start: float | None
    cold_to_clone_start: float | None
    missing: dict[str, str]
    seconds: dict[str, list[float]]
    all_first_frame_seconds: dict[str, list[float]]


class CloneBench(Snake):
    """The costs of clones: medians of `--count` VMs of each kind, null where there were none.

    Memory is what a VM's process has written, nothing of the template.

    bare_memory_mb, running_memory_mb  of a bare resume and a session's clone, 40 s after start, MB
    running_to_bare_memory             their ratio; limit 1.1
    primed_memory_mb                   of a VM of the pool, MB; limit 80
    primed_cpu_percent                 of a VM of the pool, percent of a core
    viewed_cpu_percent                 of a clone with a viewer of its idle screen; limit 4
    unviewed_cpu_percent               of the same once it is paused without a viewer; limit 0.1
    within_limit                       whether each is within its limit; null if not measured
    all                                all measurements
    """

    bare_memory_mb: float | None
    running_memory_mb: float | None
    running_to_bare_memory: float | None
    primed_memory_mb: float | None
    primed_cpu_percent: float | None
    viewed_cpu_percent: float | None
    unviewed_cpu_percent: float | None
    within_limit: dict[str, bool | None]
    all: dict[str, list[float]]


class LoginBench(Snake):
    """How soon the login URL of a tool is known: medians of `--logins` fresh clones.

    login_seconds   from the request for the login until the agent has the URL, s
    bare_seconds    from the start of the tool without an agent until it prints or opens it, s
    login_to_bare   their ratio
    within_limit    whether the login takes at most 5 s, or 1.2 times as long as the bare tool
    all             all measurements: of `login` and of `bare`, s
    """

    tool: str
    login_seconds: float
    bare_seconds: float
    login_to_bare: float
    within_limit: bool
    all: dict[str, list[float]]


class BurstBench(Snake):
    """The delay of the last of many sessions. With a pool it is compared with one start from the
    pool, else with as many bare resumes one after another.

    size, refused                      sessions started at once, and those of them without a VM
    kinds                              how each VM came: `pool`, `clone` or `cold`
    in_order                           whether they were ready in the order of their starts
    seconds                            when each screen answered, from the first start, s
    last_seconds                       the last of these
    one_seconds, one_start_seconds     single starts from the pool, and their median, s
    bare_seconds, bare_resumes_seconds  bare resumes, and their sum, s
    last_to_one_start                  limit 6
    last_to_bare_resumes               limit 1.5
    within_limit                       whether each is within its limit
    running                            with `--running`: `vms` with a viewer each, how many were
                                       `up` at the end, `memory_mb` and `cpu_percent` of each and
                                       of all
    """

    model_config = ConfigDict(extra="allow")

    size: int
    refused: int
    kinds: list[str]
    in_order: bool
    seconds: list[float]
    last_seconds: float | None
    one_seconds: list[float] | None = None
    one_start_seconds: float | None
    bare_seconds: list[float] | None = None
    bare_resumes_seconds: float | None
    last_to_one_start: float | None
    last_to_bare_resumes: float | None
    within_limit: dict[str, bool | None]
    running: dict[str, Any] | None


ANSWERS: Mapping[str, Any] = {
    "golden.build": BuiltImage,
    "golden.verify": VerifiedImage,
    "golden.promote": GoldenImage,
    "golden.rollback": GoldenImage,
    "golden.list": list[ImageInStore],
    "golden.show": ImageDetails,
    "golden.diff": ImageDifference,
    "golden.prune": PrunedImages,
    "providers.list": list[ProviderTool],
    "providers.check": list[CheckedTool],
    "up": UpAnswer,
    "where": WhereAnswer,
    "down": DownAnswer,
    "deploy": DeploymentRecord | PlanOfHost,
    "backup": DeploymentRecord,
    "rollback": DeploymentRecord,
    "deployments": list[DeploymentRecord] | DeploymentRecord,
    "drift": PlanOfHost,
    "unlock": BrokenLock,
    "doctor": list[DoctorFinding],
    "host.logs": JournalLines,
    "database.backup": DatabaseCopy,
    "database.restore": RestoredDatabase,
    "database.move": MovedDatabase | PlanOfHost,
    "lab.up": LabInstance,
    "lab.list": list[LabInstance],
    "lab.down": LabEnded,
    "sessions": ApiAnswer("SessionAnswer", is_list=True),
    "vms": ApiAnswer("VmAnswer", is_list=True),
    "console": ConsoleLines,
    "screenshot": SavedScreenshot,
    "usage": ApiAnswer("UsageReport"),
    "viewer": OpenPort,
    "session.start": ApiAnswer("SessionAnswer"),
    "session.login": ApiAnswer("LoginAnswer"),
    "session.code": TypedCode,
    "session.end": ApiAnswer("SessionAnswer"),
    "templates": ApiAnswer("TemplatesAnswer"),
    "template.show": ApiAnswer("TemplateAnswer"),
    "template.build": BuiltTemplate,
    "pool": ApiAnswer("PoolAnswer"),
    "bench.start": StartBench,
    "bench.clones": CloneBench,
    "bench.burst": BurstBench,
    "bench.login": list[LoginBench],
    "open": OpenedPage,
    "health": ApiAnswer("OverviewAnswer"),
    "alerts": ApiAnswer("AlertReport", is_list=True),
    "alert.test": list[AlertTrial],
    "webhooks": WebhookLog,
    "webhook.resend": ApiAnswer("DeliveryAnswer"),
    "webhook.try": ApiAnswer("TrialAnswer", is_list=True),
    "user.add": HostUser,
    "user.list": list[HostUser],
    "user.role": HostUser,
    "user.rename": HostUser,
    "user.remove": RemovedUser,
    "token.create": NewToken,
    "token.list": list[HostToken],
    "token.revoke": HostToken,
    "credentials.key": CredentialsKey,
    "credentials.log": ApiAnswer("CredentialEventAnswer", is_list=True),
    "credentials.rotate": RotatedCredentials,
}


def check_answer(verb: str, told: Any) -> None:
    """Raise pydantic's ValidationError where an answer is not what the verb declares."""
    declared = ANSWERS.get(verb)
    if declared is not None and not isinstance(declared, ApiAnswer):
        TypeAdapter(declared).validate_python(told)
