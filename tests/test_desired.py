"""What should become of a disk, by the documents in force."""

from typing import Literal

import pytest

from agent.bus.topics import Scope
from agent.definition import parse_domain
from agent.desired import Desired, DesiredWorld, Gone, GuestInForce, HandsOff
from agent.document import DesiredDocument
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
