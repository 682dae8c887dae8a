"""What should become of a disk, by the documents in force."""

from typing import Literal

import pytest

from agent.bus.topics import Scope
from agent.definition import Finding, parse_domain
from agent.desired import Desired, DesiredWorld, Gone, GuestInForce, HandsOff
from agent.document import DesiredDocument
from agent.rejection import Rejection
from reconcilers.reason import Reason
from reconcilers.spec import DiskKey, DiskSpec

HOST, GROUP = Scope("host", "db1"), Scope("group", "web")
GOOD = "<disk type='file'><source file='/images/{0}.img'/><target dev='{0}'/></disk>"
REFUSED = "<disk type='file'><source file='../{0}.img'/><target dev='{0}'/></disk>"


def world(*, partial: bool = True) -> DesiredWorld:
    return DesiredWorld(host="db1", groups=("web",), partial=partial)


def guest(disks: str, *, scope: Scope = HOST, state: Literal["present", "absent"] = "present") -> GuestInForce:
    body = f"<domain><name>vm1</name><devices>{disks}</devices></domain>".encode()
    document = DesiredDocument(scope=scope, guest="vm1", generation=1, state=state, sha256="", body=body)
    return GuestInForce(document=document, definition=parse_domain(body) if state == "present" else None)


def of(what: DesiredWorld, target: str) -> Desired:
    return what.desired(DiskKey("vm1", target))


def reason(wanted: Desired) -> Reason:
    assert isinstance(wanted, HandsOff)
    return wanted.reason


@pytest.mark.parametrize("partial", [True, False])
def test_a_good_definition_wants_its_disks_and_no_other(partial: bool) -> None:
    here = world(partial=partial)
    here.put(guest(GOOD.format("vda") + GOOD.format("vdb")))
    wanted = of(here, "vdb")
    assert isinstance(wanted, DiskSpec)
    assert wanted.source == "/images/vdb.img"
    assert of(here, "vdc") == Gone()


def test_a_refused_disk_keeps_no_other_from_coming_up_and_lets_none_go() -> None:
    here = world()
    here.put(guest(GOOD.format("vda") + REFUSED.format("vdb")))
    assert isinstance(of(here, "vda"), DiskSpec)
    assert reason(of(here, "vdb")) is Reason.INVALID_SOURCE
    gone = of(here, "vdc")
    assert reason(gone) is Reason.INCOMPLETE_DEFINITION
    assert "no longer in the definition, which has errors" in str(gone)


def test_without_partial_a_refused_disk_leaves_all_as_they_are() -> None:
    here = world(partial=False)
    here.put(guest(GOOD.format("vda") + REFUSED.format("vdb")))
    assert {reason(of(here, target)) for target in ("vda", "vdb", "vdc")} == {Reason.INCOMPLETE_DEFINITION}
    assert "policy.partial = false" in str(of(here, "vda"))
    here.put(guest(GOOD.format("vda") + GOOD.format("vdb")))
    assert isinstance(of(here, "vda"), DiskSpec)


def test_two_disks_of_one_target_are_both_refused_with_all_reasons() -> None:
    here = world()
    here.put(guest(GOOD.format("vda") + REFUSED.format("vda")))
    wanted = of(here, "vda")
    assert isinstance(wanted, HandsOff)
    assert "same target" in wanted.message
    assert "not an absolute path" in wanted.message


def test_what_nobody_names_stays() -> None:
    assert reason(of(world(), "vda")) is Reason.UNKNOWN_GUEST


def test_the_hosts_own_document_wins_until_it_is_withdrawn() -> None:
    here = world()
    here.put(guest(GOOD.format("vdg"), scope=GROUP))
    here.put(guest("", state="absent"))
    assert of(here, "vdg") == Gone()
    assert here.withdraw("vm1", HOST)
    assert isinstance(of(here, "vdg"), DiskSpec)
    here.withdraw("vm1", GROUP)
    assert of(here, "vdg") == Gone(), "of two that are withdrawn the host's own counts"


def test_a_document_that_this_version_cannot_read_leaves_all_as_it_is() -> None:
    here, finding = world(), guest(REFUSED.format("vda")).definition
    assert finding
    told = finding.disks[0].refused
    here.put(GuestInForce(document=guest("").document, definition=None, unreadable=told))
    assert reason(of(here, "vda")) is Reason.INVALID_SOURCE


def turned_away(name: str, scope: Scope) -> Rejection:
    return Rejection.of(b"<domain", (Finding(Reason.MALFORMED_XML, "no end", "", 1),), scope=scope, guest=name)


def test_what_stands_in_a_group_that_the_host_has_left_does_not_count() -> None:
    here, left = world(), Scope("group", "left")
    for name, scope in (("vm1", left), ("vm2", left), ("vm3", GROUP)):
        here.reject(turned_away(name, scope))
    here.put(guest(GOOD.format("vda")))
    assert here.rejection("vm1") is None
    assert here.names() == {"vm1", "vm3"}
    assert here.on_record() == {"vm1", "vm2", "vm3"}


def test_what_was_turned_away_where_it_would_have_given_way_does_not_count() -> None:
    here = world()
    here.reject(turned_away("vm1", GROUP))
    assert here.rejection("vm1")
    here.put(guest(GOOD.format("vda"), scope=GROUP))
    here.reject(turned_away("vm1", GROUP))
    assert here.rejection("vm1")
    here.put(guest(GOOD.format("vda")))
    assert here.rejection("vm1") is None
    here.withdraw("vm1", HOST)
    assert here.rejection("vm1")
