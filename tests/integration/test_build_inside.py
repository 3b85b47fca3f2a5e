"""A recipe changes nothing outside of the image: real layers, on a base full of links.

The base is a busybox tree whose links lead, by their absolute paths, to a folder of the build
machine that every test looks at afterwards. Each way of a recipe to write or remove is tried.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from polydev.errors import BuildError, Error
from polydev.image import file_listing, layer_cache
from polydev.image.apt import Archive, Deb
from polydev.image.layer_cache import META, BuiltLayer, LayerCache
from polydev.image.layer_plans import KERNEL_LAYER, LayerPlan, guest_files
from polydev.image.layer_stack import stack
from polydev.image.recipe import Layer, Recipe
from polydev.image.rootfs import make_rootfs
from polydev.image_layout import TREE
from polydev.processes import run
from tests.diskwork import watched_disk

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts what a build mounts"),
]

BUSYBOX = Path("/bin/busybox")
COMMANDS = ("sh", "touch", "mkdir", "ln", "rm", "cat", "readlink")
# Unusual names, so that a file made outside the image by mistake is found and removed.
STRAY = "polydev-test-stray"
STRAYS = [Path(folder, STRAY) for folder in ("/run", "/run/lock", "/usr/lib", "/dev", "/etc")]
LOCK = '{"name": "app", "lockfileVersion": 3, "requires": true, "packages": {"": {"name": "app"}}}'
# Capabilities that reach through namespaces to the machine itself, from linux/capability.h.
CAPABILITIES = {
    "net_admin": 12,
    "sys_module": 16,
    "sys_rawio": 17,
    "sys_ptrace": 19,
    "sys_admin": 21,
    "sys_boot": 22,
    "sys_time": 25,
    "mknod": 27,
}
EPOCH = 1_793_491_200


class QuietStep:
    def say(self, detail: str, fraction: float | None = None) -> None:
        pass


def recipe(**keys: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "small",
            "suite": "bookworm",
            "source_date_epoch": EPOCH,
            "free_space_mib": 4,
            "network": {"address": "10.0.0.2/30", "gateway": "10.0.0.1", "dns": ["10.0.0.3"]},
            "kernel": {"package": "linux", "modules": [], "initrd_modules": [], "cmdline": []},
            "layers": [{"name": "base", "packages": ["systemd"]}],
            **keys,
        }
    )


@dataclass
class Workshop:
    """A cache with a base layer, and a folder of the build machine, `machine`, beside it."""

    folder: Path
    plans: list[LayerPlan] = field(default_factory=list)

    def __post_init__(self) -> None:
        for path in (self.machine, self.recipe_folder, self.archive.debs):
            path.mkdir(parents=True)
        (self.machine / "canary").write_text("alive")
        self.cache = LayerCache(self.folder / "cache/layers", self.archive, recipe())

    @property
    def machine(self) -> Path:
        return self.folder / "machine"

    @property
    def recipe_folder(self) -> Path:
        return self.folder / "recipe"

    @property
    def archive(self) -> Archive:
        return Archive(self.folder / "apt", "bookworm", "amd64")

    @property
    def in_image(self) -> str:
        """The path inside the image that the links of the base lead to."""
        return str(self.machine).lstrip("/")

    def base(self) -> LayerPlan:
        """A base with the links of a merged /usr, and some to `machine` by its absolute path."""
        plan = LayerPlan("base", "0" * 64, None, (), (), (), ())
        root = self.cache.path(plan) / "tree"
        for name in (
            "usr/bin",
            "usr/lib",
            "usr/sbin",
            "etc",
            "run",
            "tmp",
            "var/lib",
            "proc",
            "dev",
        ):
            (root / name).mkdir(parents=True)
        for name in ("bin", "lib", "sbin"):
            (root / name).symlink_to(f"usr/{name}")
        (root / "usr/bin/busybox").write_bytes(BUSYBOX.read_bytes())
        (root / "usr/bin/busybox").chmod(0o755)
        for name in COMMANDS:
            (root / "usr/bin" / name).symlink_to("busybox")
        inside = root / self.in_image
        inside.mkdir(parents=True)
        (inside / "canary").write_text("the image's own")
        (root / "usr/lib/kept").write_text("kept")
        (root / "etc/plain").write_text("plain")
        links = {
            "var/run": "/run",
            "var/lock": "/run/lock",
            "var/out": str(self.machine),
            "var/up": "../" * 30 + self.in_image,
            "var/twice": "out/../" + self.machine.name,
            "var/canary": f"{self.machine}/canary",
            "var/loop": "loop",
            "var/file": "/etc/plain",
        }
        for name, target in links.items():
            (root / name).symlink_to(target)
        self._finish(plan)
        return plan

    def refresh_base(self) -> None:
        """List the base again, after a change of its tree."""
        self._finish(self.plans.pop())

    def _finish(self, plan: LayerPlan) -> None:
        folder = self.cache.path(plan)
        file_listing.write_listing(file_listing.list_tree(folder / "tree"), folder / TREE)
        (folder / META).write_text('{"packages": []}')
        self.plans.append(plan)

    def deb(self, name: str, files: dict[str, str], links: dict[str, str] | None = None) -> Deb:
        """A real package with these files and links."""
        made = self.folder / "made" / name
        (made / "DEBIAN").mkdir(parents=True)
        (made / "DEBIAN/control").write_text(
            f"Package: {name}\nVersion: 1\nArchitecture: all\n"
            "Maintainer: a <a@b.c>\nDescription: x\n"
        )
        for path, target in (links or {}).items():
            (made / path).parent.mkdir(parents=True, exist_ok=True)
            (made / path).symlink_to(target)
        for path, text in files.items():
            (made / path).parent.mkdir(parents=True, exist_ok=True)
            (made / path).write_text(text)
        deb = Deb(name, "1", f"{name}_1_all.deb", "0" * 64, 1)
        run(["dpkg-deb", "--root-owner-group", "--build", made, self.archive.path(deb)])
        return deb

    def lay(
        self, name: str, *debs: Deb, below: tuple[LayerPlan, ...] = (), **keys: Any
    ) -> BuiltLayer:
        """Make a layer for real, as a build does."""
        layer = Layer.model_validate({"name": name, **keys})
        layer = layer.model_copy(update={"folder": self.recipe_folder})
        files = tuple(guest_files(layer, {"name": "small"}))
        plan = LayerPlan(name, f"{len(self.plans):064x}", layer, (), debs, files, below)
        self.plans.append(plan)
        return self.cache.build(plan, self.folder / "scratch" / name, QuietStep())

    def write(self, path: str, text: str = "new") -> None:
        """Put a file beside the recipe."""
        (self.recipe_folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.recipe_folder / path).write_text(text)

    def machine_files(self) -> dict[str, str]:
        return {
            str(path.relative_to(self.machine)): path.read_text()
            for path in self.machine.rglob("*")
            if path.is_file()
        }


@pytest.fixture
def workshop() -> Iterator[Workshop]:
    # Not below /tmp: what commands leave there is no part of a layer.
    with tempfile.TemporaryDirectory(prefix="polydev-test-", dir="/var/tmp") as folder:
        workshop = Workshop(Path(folder))
        yield workshop
        strays = [path for path in STRAYS if path.exists()]
        for path in strays:
            path.unlink()
        assert strays == []
        assert workshop.machine_files() == {"canary": "alive"}


def write_file(workshop: Workshop, link: str) -> dict[str, Any]:
    workshop.write(f"files/var/{link}/new")
    return {"files": "files"}


def write_template(workshop: Workshop, link: str) -> dict[str, Any]:
    workshop.write(f"files/var/{link}/new.j2", "{{ name }}")
    return {"files": "files"}


def copy_file(workshop: Workshop, link: str) -> dict[str, Any]:
    workshop.write("copied/new")
    return {"copy": [{"source": "copied", "to": f"/var/{link}"}]}


def run_command(workshop: Workshop, link: str) -> dict[str, Any]:
    return {"run": [f"touch /var/{link}/new"]}


WAYS = [write_file, write_template, copy_file, run_command]


@pytest.mark.parametrize("link", ["out", "up", "twice"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_write_through_link_stays_in_image(
    workshop: Workshop, way: Callable[[Workshop, str], dict[str, Any]], link: str
) -> None:
    keys = way(workshop, link)
    made = workshop.lay("more", below=(workshop.base(),), **{"run": ["true"], **keys})
    assert (made.tree / workshop.in_image / "new").is_file()
    assert not os.path.lexists(made.tree / "var" / link)


def test_package_unpacked_through_link_stays_in_image(workshop: Workshop) -> None:
    deb = workshop.deb(
        "reader", {"var/out/new": "n", f"lib/{STRAY}": "n", f"var/lock/{STRAY}": "n"}
    )
    made = workshop.lay("more", deb, below=(workshop.base(),), run=["true"])
    for path in (f"{workshop.in_image}/new", f"usr/lib/{STRAY}", f"run/lock/{STRAY}"):
        assert (made.tree / path).read_text() == "n"
    assert not (made.tree / "lib").exists()


def test_layer_is_synced_before_it_gets_its_name(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(argv: list[str | Path], **words: Any) -> object:
        if argv[0] == "sync":
            made = Path(argv[-1])
            seen.append((made / "tree/new").read_text() + (made / META).read_text()[0])
            assert not workshop.cache.path(workshop.plans[-1]).exists()
        return run(argv, **words)

    monkeypatch.setattr(layer_cache, "run", watched)
    workshop.write("files/new", "whole")
    base = workshop.base()
    with watched_disk(monkeypatch) as work:
        made = workshop.lay("more", below=(base,), files="files")
    assert str(workshop.cache.path(workshop.plans[-1])) not in work.names_pending.values()
    assert seen == ["whole{"]
    assert (made.tree / "new").is_file()


def test_kernel_package_without_kernel_is_named(workshop: Workshop) -> None:
    debs = (workshop.deb("linux-image-none", {}), workshop.deb("tiny-initramfs", {}))
    plan = LayerPlan(KERNEL_LAYER, "1" * 64, None, (), debs, (), ())
    with pytest.raises(BuildError, match="package linux-image-none has no kernel"):
        workshop.cache.build(plan, workshop.folder / "scratch", QuietStep())


def test_npm_install_through_link_stays_in_image(workshop: Workshop) -> None:
    workshop.write("web/package.json", '{"name": "app"}')
    workshop.write("web/package-lock.json", LOCK)
    made = workshop.lay(
        "web", below=(workshop.base(),), npm={"folder": "web", "to": "/var/out/web"}, run=["true"]
    )
    assert (made.tree / workshop.in_image / "web/package.json").is_file()


def test_outdated_npm_lock_is_reported(workshop: Workshop) -> None:
    workshop.write("web/package.json", '{"name": "app", "dependencies": {"left": "1.0.0"}}')
    workshop.write("web/package-lock.json", LOCK)
    words = r"npm could not install .*/web/package-lock.json: code E"
    with pytest.raises(BuildError, match=words) as refused:
        workshop.lay("web", npm={"folder": "web", "to": "/opt/web"})
    assert "npm install --package-lock-only" in str(refused.value.hint)


def test_file_below_link_to_run_is_kept_in_image(workshop: Workshop) -> None:
    workshop.write(f"files/var/run/{STRAY}")
    made = workshop.lay("more", below=(workshop.base(),), files="files", run=["touch /run/moment"])
    assert (made.tree / "run" / STRAY).read_text() == "new"
    assert not (made.tree / "run/moment").exists()


@pytest.mark.parametrize("link", ["out", "up", "twice"])
def test_remove_through_link_removes_file_of_image(workshop: Workshop, link: str) -> None:
    made = workshop.lay("more", below=(workshop.base(),), remove=[f"/var/{link}/canary"])
    shown = file_listing.read_listing(made.folder / TREE)
    assert {"type": "whiteout", "path": f"/{workshop.in_image}/canary"}.items() <= shown[-1].items()


def test_removing_link_keeps_its_target(workshop: Workshop) -> None:
    made = workshop.lay(
        "more", below=(workshop.base(),), remove=["/var/canary", "/var/loop", "/no"]
    )
    gone = [
        e["path"] for e in file_listing.read_listing(made.folder / TREE) if e["type"] == "whiteout"
    ]
    assert gone == ["/var/canary", "/var/loop"]


def test_link_in_package_does_not_lead_next_package_out_of_image(workshop: Workshop) -> None:
    first = workshop.deb("first", {}, {"opt/app": str(workshop.machine)})
    second = workshop.deb("second", {"opt/app/canary": "replaced"})
    made = workshop.lay("more", first, second)
    assert (made.tree / workshop.in_image / "canary").read_text() == "replaced"
    assert (made.tree / "opt/app").is_symlink()


def test_links_in_layer_files_do_not_lead_out_of_image(workshop: Workshop) -> None:
    (workshop.recipe_folder / "files/opt").mkdir(parents=True)
    (workshop.recipe_folder / "files/opt/app").symlink_to(workshop.machine)
    workshop.write("copied/canary", "replaced")
    workshop.write("web/package.json", '{"name": "app"}')
    workshop.write("web/package-lock.json", LOCK)
    made = workshop.lay(
        "more",
        files="files",
        copy=[{"source": "copied", "to": "/opt/app"}],
        npm={"folder": "web", "to": "/opt/app", "omit": ["package-lock.json"]},
    )
    assert (made.tree / workshop.in_image / "canary").read_text() == "replaced"
    assert (made.tree / workshop.in_image / "package.json").exists()
    assert not (made.tree / workshop.in_image / "package-lock.json").exists()


def test_scrubbing_does_not_follow_links(workshop: Workshop) -> None:
    command = f"rm -rf /tmp; ln -s {workshop.machine} /tmp"
    made = workshop.lay("more", below=(workshop.base(),), run=[command])
    assert os.readlink(made.tree / "tmp") == str(workshop.machine)


def test_remove_does_not_follow_link_made_by_command(workshop: Workshop) -> None:
    made = workshop.lay(
        "more",
        below=(workshop.base(),),
        run=[f"ln -s {workshop.machine} /opt"],
        remove=["/opt/canary"],
    )
    assert os.readlink(made.tree / "opt") == str(workshop.machine)


@pytest.mark.parametrize("place", ["/proc/1/root/etc", "/proc/1/cwd", "/dev"])
def test_commands_cannot_write_files_of_build_machine(workshop: Workshop, place: str) -> None:
    command = f"touch {place}/{STRAY} || true"
    made = workshop.lay("more", below=(workshop.base(),), run=[command])
    assert not list(made.tree.rglob(STRAY))


def test_commands_cannot_change_kernel_of_build_machine(workshop: Workshop) -> None:
    base = workshop.base()
    looks = ["readlink /proc/self/ns/uts >/etc/names", "cat /proc/self/status >/etc/status"]
    made = workshop.lay("look", below=(base,), run=looks)
    assert (made.tree / "etc/names").read_text().strip() != os.readlink("/proc/self/ns/uts")
    status = (made.tree / "etc/status").read_text()
    effective = int(re.search(r"CapEff:\s*(\w+)", status)[1], 16)  # type: ignore[index]
    refused = {name: number for name, number in CAPABILITIES.items() if effective >> number & 1}
    assert refused == {}
    with pytest.raises(BuildError, match="Read-only"):
        workshop.lay("write", below=(base,), run=["echo 1 >/proc/sys/vm/compact_memory"])


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("etc/plain/new", "/etc/plain is a folder in the layer, and in the image a file"),
        (
            "var/file/new",
            "/var/file is a folder in the layer, and in the image a link to /etc/plain",
        ),
        ("var/loop/new", "/var/loop is a folder in the layer, and in the image a link to loop"),
        ("lib", "/lib is a file in the layer, and in the image a link to usr/lib"),
        ("usr/lib", "/usr/lib is a file in the layer, and in the image a folder"),
    ],
)
def test_layer_that_changes_file_type_is_refused(workshop: Workshop, path: str, words: str) -> None:
    workshop.write(f"files/{path}")
    with pytest.raises(Error) as caught:
        workshop.lay("more", below=(workshop.base(),), files="files", run=["true"])
    assert "layer more" in caught.value.message
    assert words in caught.value.message


def test_file_replaces_link_to_file(workshop: Workshop) -> None:
    workshop.write("files/var/canary")
    workshop.write("files/var/file")
    made = workshop.lay("more", below=(workshop.base(),), files="files", run=["true"])
    assert not (made.tree / "var/canary").is_symlink()
    assert (made.tree / "var/file").read_text() == "new"
    assert not (made.tree / "etc/plain").exists()


def image_of(workshop: Workshop, *layers: BuiltLayer) -> Callable[[str], str]:
    """Make the root filesystem of stacked layers; return a function for the types of its paths."""
    base = BuiltLayer(workshop.plans[0], workshop.cache.path(workshop.plans[0]), (), None)
    stacked = stack([base, *layers], workshop.folder / "fitted", EPOCH)
    rootfs = workshop.folder / "rootfs.ext4"
    scratch = workshop.folder / "rootfs-scratch"
    make_rootfs(rootfs, stacked.trees, stacked.listing(), 4, EPOCH, scratch)
    listed = {entry["path"]: entry for entry in stacked.listing()}

    def look(path: str) -> str:
        said = run(["debugfs", "-R", f"stat {path}", rootfs]).stdout
        kind = re.search(r"Type: (\w+).*?Mode:\s+(\d+)", said)
        assert (kind is None) == (path not in listed), path
        if kind is None:
            return "nothing"
        assert {"regular": "file", "directory": "dir"}.get(kind[1], kind[1]) == listed[path]["type"]
        assert int(kind[2], 8) == listed[path]["mode"]
        return kind[1]

    return look


MERGED = ("lib", "bin", "sbin", "var/run", "var/lock", "var/out")


@pytest.mark.parametrize(
    ("way", "link"),
    [*((way, link) for way in ("files", "unpack") for link in MERGED), ("npm", "lib")],
)
def test_files_layer_follows_links_of_layers_below(workshop: Workshop, way: str, link: str) -> None:
    base = workshop.base()
    target = os.readlink(workshop.cache.path(base) / "tree" / link).lstrip("/")
    debs = []
    keys: dict[str, Any] = {}
    if way == "files":
        workshop.write(f"files/{link}/package.json")
        keys = {"files": "files"}
    elif way == "unpack":
        debs = [workshop.deb("more", {f"{link}/package.json": "new"})]
    else:
        workshop.write("web/package.json", '{"name": "app"}')
        workshop.write("web/package-lock.json", LOCK)
        keys = {"npm": {"folder": "web", "to": f"/{link}"}}
    more = workshop.lay("more", *debs, **keys)
    assert (more.tree / link).is_dir()  # as it was made, in sight of no link
    look = image_of(workshop, more)
    assert look(f"/{link}") == "symlink"
    assert look(f"/{target}/package.json") == "regular"
    assert look("/usr/lib/kept") == "regular"


def test_files_layer_keeps_modes_of_existing_folders(workshop: Workshop) -> None:
    root = workshop.cache.path(workshop.base()) / "tree"
    (root / "root").mkdir(mode=0o700)
    (root / "tmp").chmod(0o1777)
    workshop.refresh_base()
    for name in ("root/.profile", "tmp/note", "var/lib/new/state"):
        workshop.write(f"files/{name}")
    more = workshop.lay("more", files="files")
    base = BuiltLayer(workshop.plans[0], workshop.cache.path(workshop.plans[0]), (), None)
    listed = {
        entry["path"]: entry["mode"]
        for entry in stack([base, more], workshop.folder / "fitted", EPOCH).listing()
    }
    assert (listed["/root"], listed["/tmp"], listed["/var/lib/new"]) == (0o700, 0o1777, 0o755)


@pytest.mark.parametrize(
    ("brings", "words"),
    [
        ({"lib": "file"}, "/lib is a file in the layer, and in the image a link to usr/lib"),
        (
            {"lib": "/opt"},
            "/lib is a link to /opt in the layer, and in the image a link to usr/lib",
        ),
        ({"usr/lib": "/opt"}, "/usr/lib is a link to /opt in the layer, and in the image a folder"),
        ({"etc": "file"}, "/etc is a file in the layer, and in the image a folder"),
        ({"etc/plain/new": "file"}, "/etc/plain is a folder in the layer, and in the image a file"),
        ({"lib/a": "file", "usr/lib/a": "file"}, "/lib/a and /usr/lib/a of the layer are both"),
    ],
)
def test_files_layer_that_changes_file_type_is_refused(
    workshop: Workshop, brings: dict[str, str], words: str
) -> None:
    workshop.base()
    for path, what in brings.items():
        if what == "file":
            workshop.write(f"files/{path}")
        else:
            (workshop.recipe_folder / "files" / path).parent.mkdir(parents=True, exist_ok=True)
            (workshop.recipe_folder / "files" / path).symlink_to(what)
    more = workshop.lay("more", files="files")
    with pytest.raises(BuildError) as caught:
        image_of(workshop, more)
    assert caught.value.message.startswith("layer more does not fit the image: ")
    assert words in caught.value.message


def test_layer_follows_links_of_layer_it_was_built_without(
    workshop: Workshop,
) -> None:
    base = workshop.base()
    (workshop.recipe_folder / "files/opt").mkdir(parents=True)
    (workshop.recipe_folder / "files/opt/app").symlink_to("/var/lib/app")
    workshop.write("files/var/lib/app/first")
    first = workshop.lay("first", files="files")
    second = workshop.lay("second", below=(base,), run=["mkdir -p /opt/app; touch /opt/app/second"])
    look = image_of(workshop, first, second)
    assert look("/opt/app") == "symlink"
    assert [look(f"/var/lib/app/{name}") for name in ("first", "second")] == ["regular"] * 2


def test_folder_made_by_two_independent_layers_has_files_of_both(workshop: Workshop) -> None:
    base = workshop.base()
    workshop.write("files/opt/app/first")
    first = workshop.lay("first", files="files")
    second = workshop.lay("second", below=(base,), run=["mkdir -p /opt/app; touch /opt/app/second"])
    look = image_of(workshop, first, second)
    assert [look(f"/opt/app/{name}") for name in ("first", "second")] == ["regular"] * 2


def test_command_may_change_file_types_of_layers_below(workshop: Workshop) -> None:
    base = workshop.base()
    commands = ["rm /var/lock; mkdir /var/lock", "rm /etc/plain; ln -s other /etc/plain"]
    second = workshop.lay("second", below=(base,), run=commands)
    look = image_of(workshop, second)
    assert (look("/var/lock"), look("/etc/plain")) == ("directory", "symlink")


def test_layers_without_conflicts_are_stacked_unchanged(workshop: Workshop) -> None:
    base = workshop.base()
    workshop.write("files/etc/plain")
    workshop.write("files/opt/new")
    more = workshop.lay("more", files="files")
    second = workshop.lay("second", below=(base,), run=["rm /usr/lib/kept; touch /etc/second"])
    bottom = BuiltLayer(base, workshop.cache.path(base), (), None)
    layers = [bottom, more, second]
    assert stack(layers, workshop.folder / "fitted", EPOCH).trees == [one.tree for one in layers]


def test_rearranged_layer_is_reproducible(workshop: Workshop) -> None:
    workshop.base()
    workshop.write("files/lib/deep/new")
    workshop.write("files/var/lock/new")
    more = workshop.lay("more", files="files")
    base = BuiltLayer(workshop.plans[0], workshop.cache.path(workshop.plans[0]), (), None)
    before = list(file_listing.list_tree(more.tree))
    first, second = (
        stack([base, more], workshop.folder / name, EPOCH).listing() for name in ("one", "two")
    )
    assert first == second
    assert list(file_listing.list_tree(more.tree)) == before
    assert max(entry["mtime"] for entry in first if "new" in entry["path"]) <= EPOCH
