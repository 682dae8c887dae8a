"""Access control lists of files (acl(5)), for what the service may not do: to give a file another group."""

import os
import struct
from pathlib import Path

_VERSION = 2  # POSIX_ACL_XATTR_VERSION; the layout is that of linux/posix_acl_xattr.h
_OWNER, _OWNING_GROUP, _GROUP, _MASK, _OTHERS = 0x01, 0x04, 0x08, 0x10, 0x20
_NOBODY_IN_PARTICULAR = 0xFFFFFFFF
_READ_AND_WRITE = 6


def admit(path: Path, group: int) -> None:
    """Let the file's owner and one group read and write it, and nobody else but root.

    Raises:
        OSError: ENOTSUP from a file system without them.
    """
    entries = (
        (_OWNER, _READ_AND_WRITE, _NOBODY_IN_PARTICULAR),
        (_OWNING_GROUP, 0, _NOBODY_IN_PARTICULAR),
        (_GROUP, _READ_AND_WRITE, group),
        (_MASK, _READ_AND_WRITE, _NOBODY_IN_PARTICULAR),
        (_OTHERS, 0, _NOBODY_IN_PARTICULAR),
    )
    packed = struct.pack("<I", _VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(path, "system.posix_acl_access", packed)
