"""The paths that hypervisors are given: `<runtime>/disks/<guest>/<target>`, symbolic links to device nodes."""

import errno
import os
import threading
from contextlib import suppress
from pathlib import Path

from reconcilers.spec import DiskKey


class StablePaths:
    """All stable paths below one folder. A link appears and changes in one step (rename(2))."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._prefix = str(folder)
        # Disks of one guest come and go at the same time, and the last one takes away the folder that the next needs.
        self._changing = threading.Lock()

    def path(self, key: DiskKey) -> Path:
        """Where a disk's link is or would be."""
        return self._folder / key.guest / key.target

    def name(self, key: DiskKey) -> str:
        """The path as text; it is told of far more often than it is followed."""
        return f"{self._prefix}/{key.guest}/{key.target}"

    def read(self, key: DiskKey) -> str | None:
        """The device that the link names; None where there is no link."""
        try:
            return os.readlink(self.name(key))  # noqa: PTH115 - the text, not a Path
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.EINVAL}:  # nothing is there, or no link
                return None
            raise

    def point(self, key: DiskKey, device_path: str) -> None:
        """Make the link name `device_path`."""
        folder = f"{self._prefix}/{key.guest}"
        with self._changing:
            try:
                os.mkdir(folder)  # noqa: PTH102 - as many bare calls as there are things to do
            except FileExistsError:
                self._replace(key, device_path)
                return
            except FileNotFoundError:  # the first since the host was started
                os.makedirs(folder)  # noqa: PTH103 - see above
            os.symlink(device_path, f"{folder}/{key.target}")  # noqa: PTH211 - see above

    def _replace(self, key: DiskKey, device_path: str) -> None:
        draft = f"{self._prefix}/{key.guest}/.{key.target}.new"  # no target begins with a dot
        with suppress(FileNotFoundError):
            os.unlink(draft)  # noqa: PTH108 - see above
        os.symlink(device_path, draft)  # noqa: PTH211 - see above
        os.rename(draft, self.name(key))  # noqa: PTH104 - see above

    def remove(self, key: DiskKey) -> None:
        """Take the link away, and the guest's folder with the last one. Idempotent."""
        path = self.path(key)
        with self._changing:
            path.unlink(missing_ok=True)
            with suppress(OSError):  # other disks are in it, or it is gone
                path.parent.rmdir()

    def sweep(self) -> None:
        """Clear away what an agent that was killed has left: links not yet in their place, folders without any."""
        for guest in _names(self._folder):
            folder = self._folder / guest
            with suppress(OSError):  # links are in it
                for name in _names(folder):
                    if name[0] == ".":
                        (folder / name).unlink(missing_ok=True)
                folder.rmdir()

    def all(self) -> dict[DiskKey, str]:
        """Every disk that has a link, with the device that it names. Links may come and go meanwhile."""
        keys = (DiskKey(guest, target) for guest in _names(self._folder) for target in _names(self._folder / guest))
        return {key: device for key in keys if key.target[0] != "." and (device := self.read(key))}


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names, not Paths
    except (FileNotFoundError, NotADirectoryError):
        return []
