"""The image's locks against the real kernel and QEMU: who may have it together, and how long a lock lives."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reconcilers.image_lock import lock_image, sole_opener, used_by_another
from reconcilers.spec import Format
from tests.images.makers import create


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)


PLAIN, READER, SHARER, SHARING_READER = (False, False), (True, False), (False, True), (True, True)


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        (PLAIN, PLAIN, False),
        (PLAIN, READER, False),
        (READER, PLAIN, False),
        (READER, READER, True),
        (SHARER, SHARER, True),
        (SHARER, PLAIN, False),
        (PLAIN, SHARER, False),
        (READER, SHARER, False),
        (SHARER, READER, False),
        (SHARING_READER, PLAIN, False),
        (PLAIN, SHARING_READER, False),
        (SHARING_READER, SHARER, True),
        (SHARER, SHARING_READER, True),
        (SHARING_READER, READER, True),
        (READER, SHARING_READER, True),
        (SHARING_READER, SHARING_READER, True),
    ],
)
def test_who_may_have_it_together(
    image: Path, first: tuple[bool, bool], second: tuple[bool, bool], together: bool
) -> None:
    with opened(image) as one, opened(image) as other:
        assert lock_image(one, read_only=first[0], shareable=first[1])
        assert used_by_another(other, read_only=second[0], shareable=second[1]) is not together
        assert lock_image(other, read_only=second[0], shareable=second[1]) is together


def test_a_lock_ends_with_its_open_file_and_not_before(image: Path) -> None:
    with opened(image) as one:
        assert lock_image(one, read_only=False, shareable=False)
        heir = os.dup(one)
    with opened(image) as other:
        assert not lock_image(other, read_only=False, shareable=False)
    os.close(heir)
    with opened(image) as other:
        assert lock_image(other, read_only=False, shareable=False)


def test_who_did_not_get_an_image_keeps_it_from_nobody(image: Path) -> None:
    with opened(image) as one, opened(image) as other:
        with opened(image) as third:
            assert lock_image(third, read_only=False, shareable=False)
            assert not lock_image(other, read_only=False, shareable=False)
        assert lock_image(one, read_only=False, shareable=False)


def test_locking_twice_is_fine(image: Path) -> None:
    with opened(image) as one:
        assert all(lock_image(one, read_only=False, shareable=False) for _ in range(2))


def test_a_lock_of_the_whole_file_counts_as_use(image: Path) -> None:
    with opened(image) as one, opened(image) as other:
        fcntl.lockf(one, fcntl.LOCK_EX)
        assert not lock_image(other, read_only=True, shareable=False)


def test_a_lock_that_means_something_else_is_no_use(image: Path) -> None:
    write_unchanged = 102  # QEMU's BLK_PERM_WRITE_UNCHANGED, which a copy job has and which we don't deny
    with opened(image) as one, opened(image) as other:
        fcntl.lockf(one, fcntl.LOCK_SH, 1, write_unchanged)
        assert lock_image(other, read_only=False, shareable=False)


@pytest.mark.parametrize(("command", "may"), [("write 0 512", False), ("read 0 512", True)])
def test_qemu_understands_a_readers_lock(host_parts: None, image: Path, command: str, may: bool) -> None:
    with opened(image) as one:
        assert lock_image(one, read_only=True, shareable=False)
        words = ["qemu-io", "-f", "raw", *([] if "write" in command else ["-r"]), "-c", command, str(image)]
        said = subprocess.run(words, check=False, capture_output=True, text=True)
        assert ("lock" not in said.stdout + said.stderr) is may


@contextmanager
def opened_by_qemu(image: Path, *options: str) -> Iterator[None]:
    with subprocess.Popen(["qemu-io", *options, image], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.read(8) == b"qemu-io>"
        yield
        process.stdin.close()


@pytest.mark.parametrize(
    ("options", "on", "who_may"),
    [
        ("-f qcow2", "top", []),
        ("-f qcow2", "base", [READER, SHARING_READER]),
        ("-f qcow2 -r", "top", [READER, SHARING_READER]),
        ("-f qcow2 -r -U", "top", [PLAIN, READER, SHARER, SHARING_READER]),
        ("-f raw -r", "top", [PLAIN, READER, SHARER, SHARING_READER]),
        ("-f raw", "top", [SHARER, SHARING_READER]),
    ],
)
def test_who_may_have_it_beside_qemu(
    host_parts: None, tmp_path: Path, options: str, on: str, who_may: list[tuple[bool, bool]]
) -> None:
    base, top = create(tmp_path / "base", Format.QCOW2), tmp_path / "top"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top], check=True)
    with opened_by_qemu(top, *options.split()):
        for who in (PLAIN, READER, SHARER, SHARING_READER):
            with opened(tmp_path / on) as one:
                assert lock_image(one, read_only=who[0], shareable=who[1]) is (who in who_may), who


def test_sole_opener(image: Path) -> None:
    with opened(image) as one:
        assert sole_opener(one)
        with opened(image):
            assert not sole_opener(one)
        assert sole_opener(one)
    reader = os.open(image, os.O_RDONLY)
    writer = subprocess.Popen(["sleep", "60"], stdout=image.open("ab"))
    try:
        assert not sole_opener(reader)
    finally:
        writer.kill()
        writer.wait()
        os.close(reader)


def test_whoever_opens_the_image_meanwhile_does_not_end_who_asks(image: Path) -> None:
    """An open breaks the lease that is taken to find out, and of that the kernel sends a signal."""
    asking = "for _ in range(20_000): sole_opener(fd)"
    opens = f"import os; from reconcilers.image_lock import sole_opener; fd = os.open({str(image)!r}, os.O_RDWR)"
    asker = subprocess.Popen([sys.executable, "-c", f"{opens}\n{asking}"])
    while asker.poll() is None:
        with opened(image):
            pass
    assert asker.returncode == 0


def test_asking_leaves_nothing_with_the_open_file(image: Path) -> None:
    """Whoever it is handed to has neither a lease nor us as who is sent signals."""
    with opened(image) as one:
        assert sole_opener(one)
        left = [fcntl.fcntl(one, what) for what in (fcntl.F_GETLEASE, fcntl.F_GETSIG, fcntl.F_GETOWN)]
        assert left == [fcntl.F_UNLCK, 0, 0]
