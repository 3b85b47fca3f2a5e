"""Verbs about the host's store of images."""

from __future__ import annotations

from polydev.hosttool import images
from polydev.hosttool.busy import alone
from polydev.hosttool.verbs import Call, Verb, required

DIGEST = required("--digest", help="digest of an image")


def image_list(call: Call) -> object:
    return images.listing(call.paths.images)


def image_add(call: Call) -> object:
    digest = call.arguments.digest
    with alone(call.paths, f"image add {digest[:12]}"):
        return images.add(digest, call.paths.images)


def image_golden(call: Call) -> object:
    digest = call.arguments.digest
    with alone(call.paths, f"image golden {digest[:12]}"):
        return images.make_golden(digest, call.paths.images)


def image_prune(call: Call) -> object:
    with alone(call.paths, "image prune"):
        return images.prune(call.paths, call.paths.images)


VERBS = (
    Verb("image list", "Whole images, and the golden one", image_list),
    Verb("image add", "Take an image that arrived into the store", image_add, (DIGEST,)),
    Verb("image golden", "Make an image golden", image_golden, (DIGEST,)),
    Verb("image prune", "Remove images that nothing needs", image_prune),
)
