"""One virtual machine: its configuration, its QEMU, its boot stages, its templates."""
