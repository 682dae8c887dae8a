"""How long a typical definition takes, against a bare lxml parse of the same bytes in the same run.

By hand: python -m tests.definition.bench_parse
"""

import sys
import time
from collections.abc import Callable

from lxml import etree

from agent.definition import parse_domain

DISK = """\
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none' io='native' discard='unmap'/>
      <source file='/var/lib/libvirt/images/web-{n}.qcow2' index='1'/>
      <backingStore/>
      <target dev='vd{letter}' bus='virtio'/>
      <iotune><total_iops_sec>1000</total_iops_sec></iotune>
      <serial>web-{n}</serial>
      <boot order='{n}'/>
      <alias name='virtio-disk{n}'/>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x0{n}' function='0x0'/>
    </disk>
"""
INTERFACE = """\
    <interface type='bridge'>
      <mac address='52:54:00:00:00:{n:02x}'/><source bridge='br0'/><model type='virtio'/>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
    </interface>
"""
DOCUMENT = (
    "<domain type='kvm'><name>web</name><uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0</uuid>\n"
    "  <memory unit='KiB'>1048576</memory><vcpu>4</vcpu><os><type arch='x86_64'>hvm</type></os>\n  <devices>\n"
    + "".join(DISK.format(n=n, letter="abcd"[n - 1]) for n in range(1, 5))
    + "".join(INTERFACE.format(n=n) for n in range(10))
    + "  </devices>\n</domain>\n"
).encode()


def milliseconds(work: Callable[[], object], times: int = 1000, rounds: int = 9) -> float:
    """The best round's mean, which is what the machine can do when nothing else runs."""
    results = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(times):
            work()
        results.append((time.perf_counter() - start) / times * 1000)
    return min(results)


def main() -> None:
    """Print one line of figures."""
    bare = milliseconds(lambda: etree.fromstring(DOCUMENT))
    ours = milliseconds(lambda: parse_domain(DOCUMENT, name="web"))
    sys.stdout.write(f"{len(DOCUMENT)} bytes: lxml {bare:.3f} ms, definition {ours:.3f} ms, ratio {ours / bare:.1f}\n")


if __name__ == "__main__":
    main()
