"""VMs: the hypervisor interface, and the driver that makes VMs match the database."""
