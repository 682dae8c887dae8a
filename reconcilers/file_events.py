"""What happens to the files that disks depend on: images that come, go and grow, and devices that are let go.

Built on inotify(7). Everything here only saves time; what it misses, the slow resync finds.
"""

import asyncio
import os
import select
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog
from asyncinotify import Event, Inotify, Mask, Watch

from reconcilers.actual import Attached
from reconcilers.errors import DiskError
from reconcilers.host_tree import mount_table
from reconcilers.mounts import Mount, mounts, mounts_on
from reconcilers.pools import Pools, opened_below
from reconcilers.spec import Backend, DiskKey, Format
from reconcilers.trigger import Trigger

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# A folder tells of names: an image that is made, put in place, taken away, or complete at last.
_FOLDER = Mask.CREATE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.DELETE | Mask.CLOSE_WRITE | Mask.ONLYDIR
_OTHER_FILE = Mask.CREATE | Mask.MOVED_TO | Mask.DELETE | Mask.MOVED_FROM
# A plain image's own length is the disk's. The loop driver's writes raise no event, truncate(2) does.
_IMAGE = Mask.MODIFY
# A server's writes raise one each, so a tap's image is looked at when somebody closes it who could write to it.
_RELEASE = Mask.CLOSE | Mask.ONESHOT

UNMOUNT_SECONDS = 0.25
"""A mount leaves the table first and lets its device go afterwards, of which nothing tells: so long after, as a rule.

Who looks only at once may come too early (fs/namespace.c, `cleanup_mnt` after `umount_tree`).
"""


class Writer(StrEnum):
    """Who writes to an image whose length is its disk's."""

    KERNEL = "kernel"
    SERVER = "server"

    @classmethod
    def of(cls, attached: Attached | None) -> "Writer | None":
        """That of what is there; None if its size is another thing than the file's length."""
        if attached is None or attached.format not in {Format.RAW, Format.AIO}:
            return None
        return cls.KERNEL if attached.backend is Backend.LOOP else cls.SERVER


class FileEvents:
    """Tells which disks to look at again. Use it as a context manager in a running event loop.

    `follow` may be called from any thread, since adding a watch can block on hung storage.
    """

    def __init__(self, on_event: Callable[[DiskKey, Trigger], None], pools: Pools) -> None:
        self._on_event = on_event
        self._pools = pools
        self._inotify = Inotify()
        self._guard = threading.Lock()
        # By their paths as text, since looks are many and a Path takes time.
        self._folders: dict[str, Watch] = {}
        self._images: dict[str, Watch] = {}
        self._disks: dict[str, set[DiskKey]] = {}
        self._in_folder = Counter[str]()
        self._sources: dict[DiskKey, str] = {}
        self._refused: set[DiskKey] = set()
        self._written_by_servers: set[DiskKey] = set()
        self._releases: dict[DiskKey, Watch] = {}
        self._mounted: dict[DiskKey, frozenset[Mount]] = {}

    def __enter__(self) -> Self:
        self._reading = asyncio.create_task(self._read(), name="file events")
        # mountinfo raises POLLERR | POLLPRI at each change of mounts (proc(5)); a mount holds a device without a file.
        # It is readable all the time, which is what asyncio would wait for, so an epoll of its own waits for those two.
        self._mounts = os.open(mount_table(), os.O_RDONLY | os.O_CLOEXEC)
        self._mount_changes = select.epoll()
        self._mount_changes.register(self._mounts, select.EPOLLPRI)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._mount_changes.fileno(), self._mounts_changed)
        self._second_look = loop.call_later(0, self._look_at, [])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reading.cancel()
        self._second_look.cancel()
        asyncio.get_running_loop().remove_reader(self._mount_changes.fileno())
        self._mount_changes.close()
        os.close(self._mounts)
        self._inotify.close()

    def follow(self, key: DiskKey, path: str | None, *, writer: Writer | None) -> None:
        """Tell when something happens to a disk's source from now on, instead of what was followed for it before.

        What is in no pool is not followed: whoever wrote the definition shall not have us look into other folders.

        Args:
            key: The disk.
            path: Its source as the definition names it; None follows nothing any more.
            writer: Who writes to it, if the file's length is the disk's.
        """
        with self._guard:
            before = self._sources.get(key)
            source = before if before == path else str(Path(path)) if path else None
            if before is not None and before != source:
                self._leave(key, before)
            self._refused.discard(key)
            self._written_by_servers.discard(key)
            if writer is Writer.SERVER:
                self._written_by_servers.add(key)
            if source is None:
                return
            if before != source:
                self._sources[key] = source
                self._disks.setdefault(source, set()).add(key)
                self._in_folder[_folder(source)] += 1
        folder = _folder(source)
        if folder not in self._folders:
            with _or_late(folder), opened_below(self._pools, folder, folder=True) as fd:
                self._watch(self._folders, folder, _FOLDER, fd)

    def follow_length(self, key: DiskKey, image: int | None) -> bool:
        """Tell when the length of a disk's source changes from now on; returns whether that is new.

        Args:
            key: The disk, whose source is followed.
            image: A descriptor of that source. None where it can't be used as it is: it is looked for by its name, as
                another length may mend it.
        """
        source = self._sources.get(key)
        if source is None:
            return False
        before = self._images.get(source)
        with _or_late(source), ExitStack() as stack:
            fd = stack.enter_context(opened_below(self._pools, source)) if image is None else image
            self._watch(self._images, source, _IMAGE, fd)
        return self._images.get(source) is not before

    def tell_of_release(self, key: DiskKey, device_path: str) -> None:
        """Tell once when somebody closes or unmounts the device. To be armed after our own last look at it."""
        with suppress(OSError):
            self._releases[key] = self._inotify.add_watch(Path(device_path), _RELEASE)
            self._mounted[key] = mounts_on(device_path)

    def tell_of_writer(self, key: DiskKey) -> None:
        """Tell when somebody who wrote the disk's source is done with it: it was refused for what is in it."""
        with self._guard:
            self._refused.add(key)

    def forget_release(self, key: DiskKey) -> None:
        """Don't tell any more: we are about to open and close the device ourselves."""
        self._mounted.pop(key, None)
        watch = self._releases.pop(key, None)
        if watch is not None:
            with suppress(OSError, ValueError, KeyError):  # it was told of, or the device is gone
                self._inotify.rm_watch(watch)

    def _leave(self, key: DiskKey, source: str) -> None:
        disks = self._disks.get(source, set())
        disks.discard(key)
        del self._sources[key]
        if not disks:
            self._disks.pop(source, None)
            self._drop(self._images, source)
        folder = _folder(source)
        self._in_folder[folder] -= 1
        if not self._in_folder[folder]:
            del self._in_folder[folder]
            self._drop(self._folders, folder)

    def _watch(self, watches: dict[str, Watch], path: str, mask: Mask, fd: int) -> None:
        """Watch this very file, in place of any that had the name before; inotify(7) knows the one that it has."""
        watch = self._inotify.add_watch(f"/proc/self/fd/{fd}", mask)
        if watch is watches.get(path):
            return
        self._drop(watches, path)
        watch.path = Path(path)  # the name under which its events are told; the descriptor's is closed by now
        watches[path] = watch

    def _drop(self, watches: dict[str, Watch], path: str) -> None:
        watch = watches.pop(path, None)
        if watch is not None:
            with suppress(OSError, ValueError, KeyError):
                self._inotify.rm_watch(watch)

    async def _read(self) -> None:
        async for event in self._inotify:
            self._handle(event)

    def _handle(self, event: Event) -> None:
        watch = event.watch
        if watch is None or event.path is None:
            return
        path = str(event.path)
        for key in [key for key, armed in list(self._releases.items()) if armed is watch]:
            self._releases.pop(key, None)
            self._mounted.pop(key, None)
            self._on_event(key, Trigger.KERNEL)
        with self._guard:
            if event.mask & Mask.IGNORED:  # the watched file itself is gone
                for watches in (self._folders, self._images):
                    if watches.get(str(watch.path)) is watch:
                        del watches[str(watch.path)]
            elif event.mask & _OTHER_FILE:
                self._drop(self._images, path)  # it is on the former file of that name
            keys = set(self._disks.get(path, ()))
            if event.mask & Mask.CLOSE_WRITE:  # our own attaching closes the image too
                keys &= self._refused | self._written_by_servers
        for key in keys:
            self._on_event(key, Trigger.IMAGE)

    def _mounts_changed(self) -> None:
        self._mount_changes.poll(0)
        there = mounts() if any(self._mounted.values()) else frozenset()
        freed = [key for key, before in list(self._mounted.items()) if before - there]
        self._look_at(freed)
        if freed:
            self._second_look.cancel()
            self._second_look = asyncio.get_running_loop().call_later(UNMOUNT_SECONDS, self._look_at, freed)

    def _look_at(self, keys: list[DiskKey]) -> None:
        for key in keys:
            self.forget_release(key)
            self._on_event(key, Trigger.KERNEL)


@contextmanager
def _or_late(path: str) -> Iterator[None]:
    """Go without a watch that can't be had: then the slow resync notices. Without the guard, as storage may hang."""
    try:
        yield
    except (DiskError, FileNotFoundError):
        return
    except OSError as error:  # ENOSPC: fs.inotify.max_user_watches is used up
        log.warning("changes of a file will be noticed late", path=path, why=error.strerror)


def _folder(path: str) -> str:
    return path.rpartition("/")[0] or "/"
