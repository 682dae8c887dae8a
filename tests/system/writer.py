"""A checksummed writer that works on a machine's disk as a guest does, in a unit of its own."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.fire.blocks import acknowledged, blocks_of, compare
from tests.system.machine import CHECKOUT_INSIDE, Machine

STATE = "/root/writers"


@contextmanager
def writing(machine: Machine, guest: str, *targets: str) -> Iterator[None]:
    """Write to disks for the length of the block; then every block must be what was acknowledged last."""
    machine.shell(f"mkdir -p {STATE}")
    for stream, target in enumerate(targets):
        machine.run(
            "systemd-run", f"--unit=writer-{target}", "--quiet", "--property=Type=exec",
            f"--working-directory={CHECKOUT_INSIDE}", "--setenv=PYTHONDONTWRITEBYTECODE=1",
            "/usr/bin/python3", "-m", "tests.fire.writer",
            f"/run/tapster/disks/{guest}/{target}", f"{STATE}/{target}", str(stream),
        )  # fmt: skip
    for target in targets:
        _goes_on(machine, target)
    yield
    for target in targets:
        _goes_on(machine, target)
    for stream, target in enumerate(targets):
        machine.run("systemctl", "kill", "--signal=TERM", f"writer-{target}")
        unit = f"writer-{target}.service"
        machine.until(lambda unit=unit: machine.show(unit, "ActiveState")["ActiveState"] != "active", f"{unit} ends")  # type: ignore[misc]
        failed = machine.show(unit, "ActiveState")["ActiveState"] == "failed"
        assert not failed, machine.run("journalctl", "--unit", unit, "--no-pager").stdout
        machine.shell(
            f"dd if=/run/tapster/disks/{guest}/{target} of={STATE}/{target}.raw bs=1M iflag=direct status=none"
        )
        state = machine.root / STATE.lstrip("/")
        compare(blocks_of(state / f"{target}.raw"), stream, acknowledged(state / target))


def _goes_on(machine: Machine, target: str) -> None:
    """Wait until the writer has had more writes acknowledged than now."""

    def lines() -> int:
        return int(machine.shell(f"cat {STATE}/{target} 2>/dev/null | wc -l"))

    before = lines()
    machine.until(lambda: lines() > before + 3, f"the writer on {target} goes on")
