"""Definitions that the tests write themselves."""

from agent.definition import DiskDefinition, Limits, parse_domain, parse_file


def domain(*disks: str, name: str = "web") -> bytes:
    """A domain with one disk element a line, the first on line 2."""
    lines = [f"<domain type='kvm'><name>{name}</name><devices>", *disks, "</devices></domain>"]
    return "\n".join(lines).encode()


def disk(xml: str, limits: Limits = Limits()) -> DiskDefinition:  # noqa: B008 - frozen
    """The only disk of a domain that holds just this element."""
    (only,) = parse_domain(domain(xml), limits=limits).disks
    return only


def xen(string: str) -> DiskDefinition:
    """The only disk of a guest configuration file that holds just this string."""
    (only,) = parse_file(f"name = 'web'\ndisk = [ {string!r} ]\n".encode())[0].disks
    return only


def reasons(definition: DiskDefinition) -> list[str]:
    """The words for what is refused, in order."""
    return [finding.reason.value for finding in definition.refused]
