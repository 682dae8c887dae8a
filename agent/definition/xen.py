"""Xen's disks: xl's strings (xl-disk-configuration(5)), those that xm had before it, and xend's devices.

[<key>=<value>|<flag>,]* [<target>[,<format>[,<vdev>[,<access>]]]] [target=<everything after it>]
[<prefix>:]*[<target>],<vdev>[:cdrom|:disk][,<access>[,<backend domain>]]
"""

import re
from collections.abc import Callable, Iterable, Iterator

from agent.definition.classification import Handling
from agent.definition.disk import OWN_DOMAINS, PLAIN_SCRIPTS
from agent.definition.text import Claim, DiskText
from reconcilers.reason import Reason

_LONGEST = 8192
_KEY = re.compile(r"[a-z][a-z0-9_-]*")
_PREFIX = re.compile(r"[a-z][a-z0-9]*:")
_POSITIONS = ("target", "format", "vdev", "access")
_OLD_POSITIONS = ("target", "vdev", "access", "backend")
_READ_ONLY = frozenset({"r", "ro", "r!"})
_WRITABLE = frozenset({"w", "rw", "w!", "!"})
_FLAGS = frozenset({"cdrom", "direct-io-safe", "discard", "no-discard", "colo", "no-colo", "trusted", "untrusted"})


def disk_from(string: str, *, path: str, line: int | None) -> DiskText:
    """Read one Xen disk string. Names in its lists are xl's parameters.

    Args:
        string: One element of a configuration's `disk` list.
        path: Where it stands, e.g. `disk[2]`.
        line: Its line.
    """
    place = Claim(string, path, line)
    if len(string) > _LONGEST:
        text = DiskText(place=place)
        text.refuse(Reason.INVALID_VALUE, None, f"the disk string is longer than {_LONGEST} characters; shorten it")
        return text
    return _disk(place, _named(string), _PARAMETERS)


def disk_from_device(settings: Iterable[tuple[str, str]], *, path: str, line: int | None) -> DiskText:
    """Read the settings of a `vbd`, `tap` or `tap2` device, as xend's S-expressions have them.

    Args:
        settings: Names and values, e.g. `uname` and `phy:/dev/sda8`.
        path: Where the device stands, e.g. `device[2]`.
        line: Its line.
    """
    return _disk(Claim("", path, line), settings, _SETTINGS)


def _disk(place: Claim, settings: Iterable[tuple[str, str]], takers: "_Takers") -> DiskText:
    text = DiskText(place=place, bare_is_device=True)
    given: dict[str, str] = {}
    for name, value in settings:
        take = takers.get(name)
        if take is None:
            text.unknown.append(name)
        elif given.get(name):
            text.refuse(Reason.INVALID_VALUE, None, f"'{name}' is given twice; keep one of them")
        elif value:
            take(text, name, Claim(value, f"{place.path}/{name}", place.line))
        given[name] = value
    return text


def _named(string: str) -> Iterator[tuple[str, str]]:
    """The parameters in order, positional ones under the name of the first position that is still free."""
    positions, free = _POSITIONS, list(_POSITIONS)
    for key, value in _parameters(string):
        if key is not None:
            yield key, value
            if key in free:
                free.remove(key)
            continue
        old_style = (free[:1] == ["target"] and _PREFIX.match(value)) or (free[:1] == ["format"] and ":" in value)
        if old_style and positions is _POSITIONS:
            positions = _OLD_POSITIONS
            free = [name for name in positions if name in free or name == "backend"]
        name = free.pop(0) if free else value
        yield name, value


def _parameters(string: str) -> Iterator[tuple[str | None, str]]:
    """Split at commas into (key or None, value). `target=` takes all that follows, commas included."""
    rest = string
    while rest := rest.lstrip():
        if rest.startswith("target="):
            yield "target", rest.removeprefix("target=")
            return
        piece, _, rest = rest.partition(",")
        key, equals, value = piece.rstrip().partition("=")
        if equals and _KEY.fullmatch(key):
            yield key, value
        elif not equals and key in _FLAGS:
            yield key, key
        else:
            yield None, piece.rstrip()


def _take_target(text: DiskText, name: str, claim: Claim) -> None:
    text.source = claim
    text.names[Handling.HONOURED].append(name)


def _take_vdev(text: DiskText, name: str, claim: Claim) -> None:
    text.target = claim
    text.names[Handling.HONOURED].append(name)


def _take_format(text: DiskText, name: str, claim: Claim) -> None:
    text.names[Handling.HONOURED].append(name)
    if claim.text != "empty":
        text.drivers.append((claim, Reason.UNKNOWN_FORMAT))


def _take_backend_type(text: DiskText, name: str, claim: Claim) -> None:
    text.names[Handling.HONOURED].append(name)
    text.drivers.append((claim, Reason.UNKNOWN_DRIVER))


def _take_access(text: DiskText, name: str, claim: Claim) -> None:
    if claim.text not in _READ_ONLY | _WRITABLE:
        text.refuse(Reason.INVALID_VALUE, claim, f"access {claim.text[:40]!r} is not known; use ro or rw")
        return
    text.names[Handling.HONOURED].append(name)
    text.read_only = claim.text in _READ_ONLY
    text.shareable = claim if claim.text.endswith("!") else None


def _take_device(text: DiskText, name: str, claim: Claim) -> None:
    text.device = claim
    text.names[Handling.HONOURED].append(name)


def _take_domain(text: DiskText, name: str, claim: Claim) -> None:
    if claim.text in OWN_DOMAINS:
        text.names[Handling.PASSED].append(name)
        return
    message = f"domain {claim.text[:40]!r} has the disk, and only this one's are served; remove '{name}'"
    text.refuse(Reason.UNSUPPORTED_FEATURE, claim, message)


def _take_script(text: DiskText, name: str, claim: Claim) -> None:
    if claim.text.rpartition("/")[2] in PLAIN_SCRIPTS:
        text.names[Handling.PASSED].append(name)
    else:
        _take_unsafe(text, name, claim)


def _take_discard(text: DiskText, name: str, claim: Claim) -> None:
    text.discard = claim._replace(text="unmap" if name == "discard" else "ignore")
    text.names[Handling.HONOURED].append(name)


def _take_unsafe(text: DiskText, name: str, claim: Claim) -> None:
    message = f"'{name}' is not served, and to ignore it would be unsafe; remove it, or leave this disk to Xen"
    text.refuse(Reason.UNSUPPORTED_FEATURE, claim, message)


def _note_passed(text: DiskText, name: str, _claim: Claim) -> None:
    text.names[Handling.PASSED].append(name)


def _note_unhonoured(text: DiskText, name: str, _claim: Claim) -> None:
    text.names[Handling.UNHONOURED].append(name)


_Takers = dict[str, Callable[[DiskText, str, Claim], None]]

_PARAMETERS: _Takers = {
    "target": _take_target,
    "format": _take_format,
    "vdev": _take_vdev,
    "access": _take_access,
    "devtype": _take_device,
    "cdrom": _take_device,
    "backendtype": _take_backend_type,
    "backend": _take_domain,
    "script": _take_script,
    "colo": _take_unsafe,
    "colo-host": _take_unsafe,
    "colo-port": _take_unsafe,
    "colo-export": _take_unsafe,
    "active-disk": _take_unsafe,
    "hidden-disk": _take_unsafe,
    "direct-io-safe": _note_unhonoured,
    "discard": _take_discard,
    "no-discard": _take_discard,
    "no-colo": _note_passed,
    "trusted": _note_passed,
    "untrusted": _note_passed,
    "specification": _note_passed,
    "grant_usage": _note_passed,
}
"""xl's parameters."""

_SETTINGS: _Takers = {
    "uname": _take_target,
    "dev": _take_vdev,
    "mode": _take_access,
    "backend": _take_domain,
    "script": _take_script,
    "bootable": _note_passed,
    "driver": _note_passed,
    "protocol": _note_passed,
    "uuid": _note_passed,
    "VDI": _note_passed,
}
"""What xend knew of a disk. `driver` is the guest's (paravirtualised or ioemu), not the host's."""
