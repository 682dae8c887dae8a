"""What neither this host's kernel nor nspawn can show, on a Debian kernel of its own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.emulator import BOOT_SECONDS


@pytest.mark.timeout(2 * BOOT_SECONDS)
def test_on_a_kernel_of_its_own(
    installed_root: Path, base_root: Path, pass_in_an_emulated_machine: Callable[..., None]
) -> None:
    pass_in_an_emulated_machine([installed_root, base_root], "tests/nbd tests/real_kernel")
