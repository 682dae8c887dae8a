"""The jail itself: what a process gives up before it becomes a server, piece by piece.

The order matters: each piece needs what a later one takes away.
"""

import errno
import fcntl
import os
import resource
import stat
from collections.abc import Callable, Sequence

from reconcilers.jail import kernel
from reconcilers.jail.order import Order

_WRITE_FILE, _READ_FILE, _READ_DIR, _EXECUTE, _TRUNCATE, _IOCTL_DEV = 1 << 1, 1 << 2, 1 << 3, 1, 1 << 14, 1 << 15
_FILE_RIGHTS = (0, 13, 14, 15, 15, 16, 16)
"""How many of LANDLOCK_ACCESS_FS_* each version of the interface knows; later ones know as many as the last here."""
_NETWORK_FROM, _SCOPES_FROM = 4, 6
_BIND_AND_CONNECT = 3  # LANDLOCK_ACCESS_NET_*: TCP
_SOCKETS_AND_SIGNALS = 3  # LANDLOCK_SCOPE_*: abstract unix sockets and signals of processes outside


Piece = tuple[str, Callable[[Order], None]]
"""What it is called, and what takes it."""


def enter(order: Order, pieces: Sequence[Piece]) -> list[str]:
    """Go into the jail.

    Args:
        order: How narrow it is.
        pieces: `PIECES`, or `pieces_of_unit`.

    Returns:
        What of it can't be had here, each with the reason; always empty if the order is strict.

    Raises:
        OSError: The order is strict and a piece can't be had.
    """
    lacking = []
    for name, take in pieces:
        try:
            take(order)
        except OSError as error:
            if order.strict:
                raise OSError(error.errno, f"{name}: {error.strerror}") from error
            lacking.append(f"{name}: {error.strerror}")
    return lacking


def _own_users(_: Order) -> None:
    """Every capability from here on is one over our own namespaces, and none over the host.

    All ids stay what they are: FUSE lets nobody at an export whose user is not that of its server, and an image may
    be anyone's. A helper writes the maps, as that takes a process outside (user_namespaces(7)).
    """
    gate, go = os.pipe()
    target = os.getpid()
    helper = os.fork()
    if helper == 0:
        os.close(go)
        os._exit(map_users(target) if os.read(gate, 1) else 0)
    os.close(gate)
    try:
        kernel.unshare(kernel.CLONE_NEWUSER)
        os.write(go, b"!")
    finally:
        os.close(go)
        code = os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1])
    if code:
        raise OSError(code, f"uid_map: {os.strerror(code)}")


def map_users(pid: int) -> int:
    """Give a process in a user namespace of its own all ids that we have. Returns 0, or an errno."""
    try:
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/self/{name}", encoding="ascii") as mine:  # noqa: PTH123 - pathlib loads slowly
                ranges = [line.split() for line in mine]
            text = "\n".join(f"{inside} {inside} {count}" for inside, _, count in ranges)
            with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as its:  # noqa: PTH123
                its.write(text)
    except OSError as error:
        return error.errno or 1
    return 0


def _own_network(_: Order) -> None:
    kernel.unshare(kernel.CLONE_NEWNET)


def _own_rest(_: Order) -> None:
    kernel.unshare(kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS | kernel.CLONE_NEWCGROUP)


def _own_files(order: Order) -> None:
    """A read-only tree of what the order names, its own open files, and an empty file to mount over."""
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    closed = kernel.MOUNT_ATTR_RDONLY | kernel.MOUNT_ATTR_NOSUID
    mounts = [(f"/proc/{os.getpid()}/fd", "/proc/self/fd"), *((path, path) for path in order.files)]
    placed = []
    for path, seen_at in mounts:
        mode = os.stat(path).st_mode  # noqa: PTH116 - pathlib loads slowly
        fd = kernel.clone_mount(path)
        is_device = stat.S_ISCHR(mode)
        kernel.restrict_mount(fd, closed if is_device else closed | kernel.MOUNT_ATTR_NODEV)
        placed.append((fd, seen_at, stat.S_ISDIR(mode)))
    # Over /proc, because it is everywhere and nothing of it is needed any more.
    kernel.mount("tapster", "/proc", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755,size=1m,nr_inodes=1k")
    try:
        os.chdir("/proc")
        for fd, seen_at, is_folder in placed:
            _make(f".{seen_at}", is_folder=is_folder)
            kernel.place_mount(fd, f".{seen_at}")
            os.close(fd)
        if order.mount_point:
            _make(f".{order.mount_point}", is_folder=False)
        root = os.open(".", os.O_PATH | os.O_CLOEXEC)
        kernel.restrict_mount(root, closed | kernel.MOUNT_ATTR_NODEV)
        os.close(root)
        kernel.pivot_root()
    except OSError:
        os.chdir("/")
        kernel.unmount("/proc")
        raise


def _make(path: str, *, is_folder: bool) -> None:
    parent = path if is_folder else path.rpartition("/")[0]
    os.makedirs(parent, exist_ok=True)  # noqa: PTH103
    if not is_folder:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _limit(order: Order) -> None:
    for which, limit in order.limits:
        try:
            resource.setrlimit(which, (limit, limit))
        except ValueError as error:  # Python's word for EPERM here
            raise PermissionError(errno.EPERM, f"{error}") from error


def _change_user(order: Order) -> None:
    kernel.become(order.user)


def _drop_capabilities(order: Order) -> None:
    kernel.keep_capabilities(order.capabilities)


def _no_new_privileges(_: Order) -> None:
    kernel.no_new_privileges()


def _landlock(order: Order) -> None:
    """No rules on files where mounts are allowed; those on network and signals are then a second lock."""
    try:
        version = kernel.landlock_version()
    except OSError:
        if order.landlocked:
            raise
        return
    network = _BIND_AND_CONNECT if version >= _NETWORK_FROM else 0
    scopes = _SOCKETS_AND_SIGNALS if version >= _SCOPES_FROM else 0
    files = (1 << _FILE_RIGHTS[min(version, len(_FILE_RIGHTS) - 1)]) - 1 if order.landlocked else 0
    if not files | network | scopes:
        return
    ruleset = kernel.landlock_ruleset(files, network, scopes)
    if files:
        for path in order.files:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rights = _READ_FILE | _EXECUTE | (_READ_DIR if stat.S_ISDIR(os.fstat(fd).st_mode) else 0)
            kernel.landlock_allow(ruleset, fd, rights)
            os.close(fd)
        for number in sorted(int(name) for name in os.listdir("/proc/self/fd")):  # noqa: PTH208
            _allow_own(ruleset, number, files)
    kernel.landlock_restrict(ruleset)
    os.close(ruleset)


def _allow_own(ruleset: int, number: int, files: int) -> None:
    """An image that was inherited may be opened once more, by way of /proc/self/fd, for no more than it is open for.

    By itself the kernel would not hold it to that: the new open goes by the file's own mode and mount (proc(5)).
    """
    try:
        mode = os.fstat(number).st_mode
    except OSError:  # that of the listing itself
        return
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        only_read = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        writing = 0 if only_read else _WRITE_FILE | _TRUNCATE
        kernel.landlock_allow(ruleset, number, (_READ_FILE | writing | _IOCTL_DEV) & files)


def _filter(order: Order) -> None:
    if not order.system_calls:
        raise OSError(0, "libseccomp is not installed; `apt-get install libseccomp2`")
    kernel.filter_system_calls(order.system_calls)


_USERS = "user namespace"
_LIMITS = "limits"
_CAPABILITIES = "capabilities"
_NO_NEW_PRIVILEGES = "no new privileges"

PIECES: tuple[Piece, ...] = (
    (_USERS, _own_users),
    ("network namespace", _own_network),
    ("other namespaces", _own_rest),
    ("file tree", _own_files),
    (_LIMITS, _limit),
    ("user", _change_user),
    (_CAPABILITIES, _drop_capabilities),
    (_NO_NEW_PRIVILEGES, _no_new_privileges),
    ("landlock", _landlock),
    ("seccomp", _filter),
)


def pieces_of_daemon(pieces: Sequence[Piece]) -> list[Piece]:
    """What is left of them for a server that opens and makes files by name, and sets limits of its own.

    It may have no more memory locked than it may when it comes here, so the limits stand first: later nobody may raise
    them.
    """
    takes = dict(pieces)
    return [(name, takes[name]) for name in (_LIMITS, _USERS, _CAPABILITIES, _NO_NEW_PRIVILEGES)]


def pieces_of_unit(ask: Callable[[], int]) -> list[Piece]:
    """For a process that systemd has started without capabilities, with a network, IPC and host name of its own.

    Args:
        ask: Has somebody who may do so call `map_users` for us, and returns what that did.
    """

    def own_users(_: Order) -> None:
        kernel.unshare(kernel.CLONE_NEWUSER)
        if code := ask():
            raise OSError(code, f"uid_map: {os.strerror(code)}")

    given = {_own_network, _own_rest}
    return [(_USERS, own_users), *(piece for piece in PIECES[1:] if piece[1] not in given)]
