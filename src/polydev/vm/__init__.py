"""One virtual machine: its configuration, what QEMU is told, its life and its boot stages."""
