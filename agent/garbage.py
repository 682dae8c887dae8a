"""How Python looks for garbage in an agent: seldom, and not in its own code.

A full collection walks over all objects with the event loop standing still: 50 ms for modules and schemas alone, which
never become garbage. Nearly everything else is freed when its last reference goes, so there is little to find.
"""

import gc

YOUNG_MAX = 10_000
"""New objects after which the new ones are looked at; Python's own 700 are less than one document makes."""


def look_seldom() -> None:
    """Leave what there is by now out of every collection, and have one less often. To be called after all imports.

    Where nothing was looked at until then, it is from here on.
    """
    gc.freeze()
    gc.set_threshold(YOUNG_MAX, 10, 10)
    gc.enable()
