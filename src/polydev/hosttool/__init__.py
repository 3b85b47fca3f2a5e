"""The host tool: what must happen on a deployed host itself, also when the operator is gone.

It is packed as one file (`zipapp`) and runs there as root, by the system's Python and nothing
else; so it imports the standard library only. Each verb prints one JSON document. The flow:

    cli -> *_verbs, records, images, releases
        -> backup  : backup_scope -> file_entries, sqlite_database -> backup_manifest
        -> restore : backup_manifest -> restore_files, restore_controller, restore_units -> handover

Every change is made in full beside its place and then put there by one rename, and what a
killed verb left undone is done when it is run again. The order of steps in `restore` follows
from that.
"""
