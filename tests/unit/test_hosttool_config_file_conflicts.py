"""Lines of other files that would undo ours at the next boot, and how they are disabled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polydev.host_setup.accounts import host_json
from polydev.host_setup.inventory_values import HostData
from polydev.hosttool.config_file_conflicts import OUT, differences, find, mend
from polydev.hosttool.errors import HostError

DECLARED = json.loads(host_json(HostData(slots=2), []))
NETWORK = "etc/systemd/network"
JOURNAL = "etc/systemd/journald.conf.d"
# As systemd brings it.
ALL_LINKS = (
    "[Match]\nOriginalName=*\n\n[Link]\nNamePolicy=keep kernel\nMACAddressPolicy=persistent\n"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A deployed host with files that do not conflict."""
    for path, text in DECLARED["settings"].items():
        put(tmp_path, path.lstrip("/"), text)
    put(tmp_path, "usr/lib/sysctl.d/50-default.conf", "net.ipv4.ip_forward = 0\n-kernel.x = 1\n")
    put(tmp_path, "etc/sysctl.d/99-mine.conf", "# net.ipv4.ip_forward=0\nvm.swappiness=1\n")
    put(tmp_path, "usr/lib/tmpfiles.d/var.conf", "d /var/lib 0755 - - -\nq /var/tmp 1777 - - 30d\n")
    put(tmp_path, "usr/lib/tmpfiles.d/x.conf", "\n# z /etc/polydev\nZ /run/log 2755 'a b\n")
    put(tmp_path, f"{NETWORK}/10-eth0.network", "[Match]\nName=eth0 en*\n[Network]\nDHCP=yes\n")
    put(tmp_path, f"{NETWORK}/20-mac.network", "[Match]\nMACAddress=02:00:00:00:00:01\n")
    put(tmp_path, "usr/lib/systemd/network/80-all.network", "[Match]\nName=*\n")
    put(tmp_path, "usr/lib/systemd/network/73-usb.link", "[Match]\nPath=*-usb-*\n[Link]\nName=u\n")
    put(tmp_path, "run/systemd/network/10-netplan-eth0.link", "[Match]\nOriginalName=eth0\n")
    put(tmp_path, f"{NETWORK}/20-mac.link", "[Match]\nMACAddress=02::1\n[Link]\nMTUBytes=9000\n")
    put(tmp_path, f"{NETWORK}/30-type.link", "[Match]\nType=wlan\n[Link]\nName=w\n")
    put(tmp_path, f"{NETWORK}/40-not.link", "[Match]\nOriginalName=!br-vm vm-*\n[Link]\nName=x\n")
    put(tmp_path, "usr/lib/systemd/network/99-default.link", ALL_LINKS)
    put(tmp_path, f"{NETWORK}/99-later.link", "[Match]\nOriginalName=*\n[Link]\nMTUBytes=9000\n")
    put(tmp_path, f"{JOURNAL}/90-mine.conf", "[Journal]\nMaxLevelStore=info\nStorage=persistent\n")
    return tmp_path


def put(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_files_without_conflicts_stay(root: Path) -> None:
    assert differences(DECLARED, root) == []
    assert mend(DECLARED, root) == {"mended": []}


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("etc/sysctl.d/99-mine.conf", "net.ipv4.ip_forward=0"),
        ("etc/sysctl.d/99-mine.conf", " net/ipv4/ip_forward = 0"),
        ("run/sysctl.d/99-other.conf", "-net.ipv4.ip_forward=0"),
        ("etc/sysctl.d/61-a.conf", "net.ipv4.conf.all.forwarding=0"),
        ("usr/local/lib/sysctl.d/99-other.conf", "net.core.somaxconn=128"),
        (f"{JOURNAL}/99-mine.conf", "Storage=volatile"),
        ("run/systemd/journald.conf.d/60-x.conf", "SystemMaxUse="),
        ("etc/tmpfiles.d/a.conf", "d /etc/polydev 0777 root root -"),
        ("etc/tmpfiles.d/z.conf", 'z "/etc/polydev" 0777'),
        ("etc/tmpfiles.d/z.conf", "Z /opt 0777"),
        ("etc/tmpfiles.d/z.conf", "z /var/lib/* 0777"),
        ("etc/tmpfiles.d/z.conf", "R /var/lib/microvm/2/*"),
        ("etc/tmpfiles.d/z.conf", "d /opt 0755 root root 10d"),
        ("run/tmpfiles.d/a.conf", "r! /opt/polydev-ai/backups/x"),
    ],
)
def test_conflicting_line_is_commented_out(root: Path, name: str, line: str) -> None:
    put(root, name, f"# mine\n{line}\nother = 1\n")
    (root / name).chmod(0o644)
    assert differences(DECLARED, root) == [f"- /{name}: {line.strip()}"]
    assert mend(DECLARED, root) == {"mended": [f"/{name}"]}
    assert (root / name).read_text() == f"# mine\n{OUT}{line}\nother = 1\n"
    assert differences(DECLARED, root) == []


def test_link_in_the_folder_is_followed(root: Path) -> None:
    """Debian links /etc/sysctl.conf like this."""
    put(root, "etc/sysctl.conf", "net.ipv4.ip_forward=0\n")
    (root / "etc/sysctl.d/99-sysctl.conf").symlink_to("../sysctl.conf")
    assert differences(DECLARED, root) == ["- /etc/sysctl.d/99-sysctl.conf: net.ipv4.ip_forward=0"]
    mend(DECLARED, root)
    assert (root / "etc/sysctl.conf").read_text() == f"{OUT}net.ipv4.ip_forward=0\n"
    assert (root / "etc/sysctl.d/99-sysctl.conf").is_symlink()


def test_package_file_is_overridden_by_a_changed_copy(root: Path) -> None:
    text = "net.ipv4.ip_forward=0\nkernel.x=1\n"
    put(root, "usr/lib/sysctl.d/99-package.conf", text)
    mend(DECLARED, root)
    assert differences(DECLARED, root) == []
    assert (root / "usr/lib/sysctl.d/99-package.conf").read_text() == text
    assert (root / "etc/sysctl.d/99-package.conf").read_text() == f"{OUT}{text}"


def test_masked_file_is_ignored(root: Path) -> None:
    put(root, "usr/lib/sysctl.d/99-package.conf", "net.ipv4.ip_forward=0\n")
    (root / "etc/sysctl.d/99-package.conf").symlink_to("/dev/null")
    assert find(DECLARED, root) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (f"{NETWORK}/30-br-vm.network.d/x.conf", "[Network]\nAddress=10.9.9.9/8\n"),
        ("run/systemd/network/30-br-vm.netdev.d/x.conf", "[Bridge]\nSTP=yes\n"),
        (f"{NETWORK}/05-x.netdev", "[NetDev]\nName=br-vm\nKind=dummy\n"),
        (f"{NETWORK}/05-x.network", "[Match]\nName=br-vm\n[Network]\nDHCP=yes\n"),
        (f"{NETWORK}/05-x.link", "[Match]\nOriginalName=br-vm\n[Link]\nMTUBytes=9000\n"),
        ("run/systemd/network/05-x.link", "[Match]\nOriginalName=vm-3\n[Link]\nName=eth7\n"),
        (f"{NETWORK}/05-x.link", "[Match]\nOriginalName=vm-* br-vm\n"),
        (f"{NETWORK}/05-x.link", "[Match]\nOriginalName=vm-2\nType=ether\nDriver=veth\n"),
    ],
)
def test_file_about_our_links_only_is_removed(root: Path, name: str, text: str) -> None:
    put(root, name, text)
    assert differences(DECLARED, root) == [f"- /{name}"]
    mend(DECLARED, root)
    assert not (root / name).exists()
    assert differences(DECLARED, root) == []


@pytest.mark.parametrize(
    ("name", "text", "link"),
    [
        *(
            ("05-all.network", f"[Match]\n{match}\n[Network]\nDHCP=yes\n", "br-vm")
            for match in ("Name=*", "Name=br-* eth0", "Name=!eth0", "Type=bridge", "")
        ),
        ("05-all.link", "[Link]\nMTUBytes=9000\n", "br-vm"),
        ("05-all.link", "[Match]\nOriginalName=*\n[Link]\nMACAddress=02::1\n", "br-vm"),
        ("05-all.link", "[Match]\nOriginalName=v* eth0\n[Link]\nName=x\n", "vm-2"),
        ("05-all.link", "[Match]\nKind=bridge\n[Link]\nName=x\n", "br-vm"),
        ("05-all.link", "[Match]\nDriver=veth\n[Link]\nName=x\n", "vm-2"),
        ("05-all.link", "[Match]\nType=ether\n[Link]\nName=x\n", "vm-2"),
        ("99-default.link.d/x.conf", "[Link]\nMTUBytes=9000\n", "br-vm"),
    ],
)
def test_file_about_other_links_too_is_refused(root: Path, name: str, text: str, link: str) -> None:
    put(root, f"{NETWORK}/{name}", text)
    assert differences(DECLARED, root) == [f"- /{NETWORK}/{name}"]
    with pytest.raises(HostError, match=f"{name} also matches {link}") as refused:
        mend(DECLARED, root)
    assert refused.value.code == "settings-undone"
    assert (root / NETWORK / name).exists()
