"""Coverage-guided fuzzing of everything that reads a definition; CI gives it a few seconds.

By hand, for an hour: python -m tests.definition.fuzz_atheris -max_total_time=3600 FOLDER
FOLDER keeps what was found interesting for the next time. What it finds becomes a test in test_hostile.py.
"""

import sys

import atheris

with atheris.instrument_imports(include=["agent.definition"]):
    from agent.definition import DocumentRejected, Limits, parse_domain, parse_each
    from agent.definition.canonical import canonical

LIMITS = Limits(max_bytes=4096)


def check(data: bytes) -> None:
    """Any bytes are read or rejected, and what is read survives being written down."""
    for guest in parse_each(data, limits=LIMITS):
        if isinstance(guest, DocumentRejected):
            assert guest.findings
            continue
        specs = [disk.spec for disk in guest.disks if disk.spec]
        again = parse_domain(canonical(guest), limits=Limits(max_bytes=1 << 20))
        assert [disk.spec for disk in again.disks] == specs


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
