"""What neither this host's kernel nor nspawn can show, on a Debian kernel of its own."""

from pathlib import Path

import pytest

from tests.system.emulator import BOOT_SECONDS, missing, run

TESTS = "/usr/bin/python3 -m pytest -v --durations=8 --color=no -p no:cacheprovider tests/nbd tests/real_kernel"


@pytest.mark.timeout(2 * BOOT_SECONDS)
def test_on_a_kernel_of_its_own(
    installed_root: Path, base_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if lacking := missing():
        pytest.skip(f"this machine has no {lacking}")
    said: list[str] = []

    def tell(line: str) -> None:
        said.append(line)
        with capsys.disabled():
            print(f"  | {line}", flush=True)  # noqa: T201 - it takes minutes

    with capsys.disabled():
        print()  # noqa: T201
    status = run([installed_root, base_root], tmp_path, TESTS, tell)
    assert status == 0, "\n".join(said)
    assert not [line for line in said if line.startswith("SKIPPED")]
