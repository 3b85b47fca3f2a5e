"""A layer's build works on the tree at ROOT by this program, which follows no link out of it.

    python -m polydev.image.inside folder ROOT PATH…     make folders; say where they are
    python -m polydev.image.inside fit ROOT FROM TO      move the files FROM to TO as they fit ROOT
    python -m polydev.image.inside remove ROOT PATH…

It runs where the layers below are mounted, which only the build's own namespace sees. Exit
status 1 with one line that begins with REFUSED: the recipe asks for what cannot be.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from polydev.image.guestpath import Clash, on_disk
from polydev.image.overlaying import fit, folder_inside, remove_inside

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
    except (Clash, OSError) as error:
        sys.stderr.write(f"{REFUSED}{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
