"""What should be: the documents in force, and from them each disk's desired state.

A guest may have a document for this host and others for its groups; the host's own wins, then the groups in the
order of the settings, then `all`. Nothing here is deleted by silence: a disk is `Gone` only if a document says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from agent.bus.topics import EVERY_HOST, Scope
from agent.definition import DiskDefinition, Finding, GuestDefinition
from agent.document import DesiredDocument
from agent.rejection import Rejection
from reconcilers.reason import Reason
from reconcilers.spec import DiskKey, DiskSpec


@dataclass(frozen=True, slots=True)
class Gone:
    """The disk shall not be there."""


@dataclass(frozen=True, slots=True)
class HandsOff:
    """The disk stays as it is, and this is why."""

    reason: Reason
    message: str


Desired = DiskSpec | Gone | HandsOff


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestInForce:
    """The document that counts for a guest in one scope.

    Attributes:
        document: As accepted.
        definition: What it says; None for absent, and where `unreadable` says why.
        unreadable: What this version finds wrong with a document that an earlier one accepted.
        withdrawn: Its topic was emptied since.
    """

    document: DesiredDocument
    definition: GuestDefinition | None
    unreadable: tuple[Finding, ...] = ()
    withdrawn: bool = False


class _Ruling(NamedTuple):
    """The document that counts for a guest, and what becomes of each disk that it names, as far as that is clear."""

    guest: GuestInForce | None
    disks: Mapping[str, Desired]


class DesiredWorld:
    """All documents in force, by scope and guest."""

    def __init__(self, *, host: str, groups: Sequence[str], partial: bool) -> None:
        """Nothing is known yet.

        Args:
            host: This host's name.
            groups: The host's groups, the most important first.
            partial: Bring up a guest's good disks when others are refused.
        """
        self._scopes = [Scope("host", host), *(Scope("group", group) for group in (*groups, EVERY_HOST))]
        self._partial = partial
        self._guests: dict[str, dict[Scope, GuestInForce]] = {}
        self._rulings: dict[str, _Ruling] = {}
        self._rejections: dict[str, dict[Scope, Rejection]] = {}

    def put(self, guest: GuestInForce) -> bool:
        """A document was accepted, which is news; an earlier rejection in its scope is settled by it."""
        document = guest.document
        self._guests.setdefault(document.guest, {})[document.scope] = guest
        self._rulings.pop(document.guest, None)
        self._rejections.get(document.guest, {}).pop(document.scope, None)
        return True

    def reject(self, rejection: Rejection) -> bool:
        """An attempt was turned away. Returns whether that is news."""
        known = self._rejections.setdefault(rejection.guest, {})
        news = not rejection.repeats(known.get(rejection.scope))
        known[rejection.scope] = rejection
        return news

    def settle(self, guest: str, scope: Scope) -> bool:
        """What is on record came again, so nothing that was turned away is on the bus. Returns whether that is news."""
        return self._rejections.get(guest, {}).pop(scope, None) is not None

    def withdraw(self, guest: str, scope: Scope) -> bool:
        """A topic was emptied; what it said stays in force. Returns whether that is news."""
        news = self.settle(guest, scope)
        known = self._guests.get(guest, {}).get(scope)
        if known is None or known.withdrawn:
            return news
        self._guests[guest][scope] = replace(known, withdrawn=True)
        self._rulings.pop(guest, None)
        return True

    def names(self) -> set[str]:
        """Every guest that a document or a rejection is about."""
        return {name for name in self.on_record() if self.guest(name) or self.rejection(name)}

    def on_record(self) -> set[str]:
        """As `names`, with those that only groups that the host has left know of: of them nothing counts any more."""
        return self._guests.keys() | self._rejections.keys()

    def guest(self, name: str) -> GuestInForce | None:
        """The document that counts for a guest; a withdrawn one only if there is no other.

        What was signed gives way only to what is signed: neither to an unsigned document nor to an emptied topic.
        """
        return self._ruling(name).guest

    def _ruling(self, name: str) -> _Ruling:
        if name not in self._guests:
            return _Ruling(None, {})
        if name not in self._rulings:
            guest, disks = self._chosen(name), dict[str, Desired]()
            definition = guest.definition if guest else None
            if definition and (self._partial or definition.complete):
                disks = _named(definition)
            self._rulings[name] = _Ruling(guest, disks)
        return self._rulings[name]

    def _chosen(self, name: str) -> GuestInForce | None:
        known = self._guests.get(name, {})
        ranked = [known[scope] for scope in self._scopes if scope in known]
        ranked = [guest for guest in ranked if guest.document.signers] or ranked
        standing = (guest for guest in ranked if guest.document.signers or not guest.withdrawn)
        return next(standing, ranked[0] if ranked else None)

    def rejection(self, name: str) -> Rejection | None:
        """The latest attempt that was turned away, of those that could have counted."""
        known = self._rejections.get(name, {})
        counting = (known[scope] for scope in self._open_to(name) if scope in known)
        return max(counting, key=lambda one: one.at, default=None)

    def _open_to(self, name: str) -> Sequence[Scope]:
        """Where a document could come to count for a guest.

        Neither in a group that the host has left, nor in a scope that gives way to the one whose document counts.
        """
        guest = self.guest(name)
        if guest is None or guest.withdrawn:
            return self._scopes
        return self._scopes[: self._scopes.index(guest.document.scope) + 1]

    def disks(self, name: str) -> tuple[DiskDefinition, ...]:
        """The disks of the guest's definition, in document order; none for an absent guest."""
        guest = self.guest(name)
        return guest.definition.disks if guest and guest.definition else ()

    def keys(self, name: str) -> set[DiskKey]:
        """The disks that the guest's definition names."""
        return {DiskKey(name, disk.target) for disk in self.disks(name) if disk.target}

    def all_keys(self) -> set[DiskKey]:
        """The disks that any guest's definition names."""
        return {key for name in self._guests for key in self.keys(name)}

    def desired(self, key: DiskKey) -> Desired:
        """What should become of one disk."""
        guest, disks = self._ruling(key.guest)
        return disks.get(key.target) or self._of_others(key, guest)

    def _of_others(self, key: DiskKey, guest: GuestInForce | None) -> Desired:
        """What should become of a disk that no definition names, or none whose disks can be judged one by one."""
        if guest is None:
            return HandsOff(Reason.UNKNOWN_GUEST, f"{key} is here, and no document names guest {key.guest}")
        if guest.document.state == "absent":
            return Gone()
        if guest.definition is None:
            return HandsOff(guest.unreadable[0].reason, guest.unreadable[0].message)
        if guest.definition.complete:
            return Gone()
        message = f"a disk of {key.guest} is refused, and policy.partial = false brings up all or none"
        if self._partial:
            message = (
                f"{key} is here and no longer in the definition, which has errors, so it can't be told whether the "
                "disk was removed on purpose; mend the definition"
            )
        return HandsOff(Reason.INCOMPLETE_DEFINITION, message)


def _named(definition: GuestDefinition) -> dict[str, Desired]:
    """What should become of the disks that a definition names."""
    refused: dict[str, list[Finding]] = {}
    for disk in definition.disks:
        if disk.target and not disk.spec:
            refused.setdefault(disk.target, []).extend(disk.refused)
    hands_off = {
        target: HandsOff(findings[0].reason, "; ".join(_sentence(finding) for finding in findings))
        for target, findings in refused.items()
    }
    return {**hands_off, **{disk.spec.key.target: disk.spec for disk in definition.disks if disk.spec}}


def _sentence(finding: Finding) -> str:
    return f"line {finding.line}: {finding.message}" if finding.line else finding.message
