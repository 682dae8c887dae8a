"""Guests of Xen on disks that the installed package has brought up: an emulated host under Xen, and xl on it.

It fetches Xen and takes minutes, so it is run by hand: `deploy/test --xen`.
"""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.emulator import BOOT_SECONDS, DOM0, laid_over

ADD_XEN = """\
export DEBIAN_FRONTEND=noninteractive
printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d
printf 'ata_piix\\nsd_mod\\n' >>/etc/initramfs-tools/modules
apt-get -q update
apt-get -q -y --no-install-recommends install linux-image-amd64 xen-system-amd64 busybox-static cpio
rm /usr/sbin/policy-rc.d
sed -i s,^/dev/vda,/dev/sda, /etc/fstab
echo 'XENCONSOLED_ARGS="--log=guest"' >>/etc/default/xen
mkdir -p /var/log/xen/console
"""


@pytest.fixture
def dom0_layer(installed_root: Path, base_root: Path, tmp_path: Path) -> Path:
    """What Xen adds to a host with tapster's package."""
    work = tmp_path / "dom0"
    work.mkdir()
    with laid_over([installed_root, base_root], work) as root:
        inside = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--resolv-conf=copy-host", "--pipe"]
        subprocess.run([*inside, f"--directory={root}", "sh", "-euc", ADD_XEN], stdin=subprocess.DEVNULL, check=True)
    return work / "upper"


@pytest.mark.by_hand
@pytest.mark.timeout(2 * BOOT_SECONDS)
def test_under_xen(
    dom0_layer: Path, installed_root: Path, base_root: Path, pass_in_an_emulated_machine: Callable[..., None]
) -> None:
    pass_in_an_emulated_machine([dom0_layer, installed_root, base_root], "tests/xen", DOM0)
