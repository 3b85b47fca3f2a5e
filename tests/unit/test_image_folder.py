"""The VM configuration that an image's folder gives."""

from __future__ import annotations

from pathlib import Path

from polydev.image.image_folder import vm_config
from polydev.image.store import ImageStore
from tests.images import add_image, contents


def test_vm_config_uses_the_files_of_the_image(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "store")
    image = store.path(add_image(store, "a").digest)
    config = vm_config(image, "vm-a", tmp_path, "tcg")
    files = (config.kernel, config.initrd, config.rootfs)
    assert [path.parent for path in files] == [image] * 3
    assert [path.name for path in files] == ["vmlinux", "initrd.img", "rootfs.ext4"]
    assert config.cmdline.encode() == contents("a")["cmdline"]
    assert (config.vm_id, config.image_digest, config.folder) == ("vm-a", image.name, tmp_path)
