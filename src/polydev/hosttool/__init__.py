"""The host tool: work that a deployed host does itself, also when the operator's side is gone.

It is packed as one file (`zipapp`) and runs on the host as root, by the system's Python; so it
imports the standard library only. Each verb prints one JSON document. The flow:

    cli -> *_verbs, deployment_records, images, releases
        -> backup  : backup_scope -> file_metadata, sqlite_database -> backup_manifest
        -> restore : backup_manifest -> restore_files, restore_controller, restore_units -> handover

Every change is written in full beside its place and moved there by one rename. A verb that was
killed can be run again and does the rest; the order of the steps in `restore` follows from that.
"""
