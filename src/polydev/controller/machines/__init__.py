"""VMs: the one hypervisor interface, and the driver that makes them what the database says."""
