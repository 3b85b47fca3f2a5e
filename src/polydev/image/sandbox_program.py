"""The program by which a layer's build changes the tree at ROOT, following no link out of it.

    python -m polydev.image.sandbox_program folder ROOT PATH…    make folders, print their places
    python -m polydev.image.sandbox_program fit ROOT FROM TO     move files, as they fit the tree
    python -m polydev.image.sandbox_program remove ROOT PATH…

It runs inside the sandbox, where the layers below are mounted: only the namespace of the build
sees them. It exits with status 1 and one line that begins with REFUSED if the recipe asks for
something impossible.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from polydev.image.guest_paths import LayerConflict, on_disk
from polydev.image.tree_merge import fit, folder_inside, remove_inside

REFUSED = "refused: "


def main(words: list[str]) -> int:
    verb, root, *rest = words
    try:
        if verb == "folder":
            for path in rest:
                sys.stdout.write(f"{folder_inside(Path(root), path)}\n")
        elif verb == "fit":
            fit(Path(rest[0]), on_disk(Path(root)), Path(rest[1]))
        elif verb == "remove":
            # Commands of the recipe may still run and change links: here the kernel resolves.
            os.chroot(root)
            os.chdir("/")
            for path in rest:
                remove_inside(Path("/"), path)
        else:
            raise ValueError(verb)
    except (LayerConflict, OSError) as error:
        sys.stderr.write(f"{REFUSED}{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
