"""The mark in what we make names one disk of one instance, whatever the disk is called."""

from hypothesis import given
from hypothesis import strategies as st

from reconcilers.spec import GUEST_NAME, TARGET_NAME, DiskKey
from reconcilers.tag import LO_NAME_BYTES, Tag, disk_id, instance_id

keys = st.builds(
    DiskKey,
    st.from_regex(GUEST_NAME, fullmatch=True),
    st.from_regex(TARGET_NAME, fullmatch=True),
)


@given(keys)
def test_a_tag_fits_and_is_read_back(key: DiskKey) -> None:
    tag = Tag.of("0123abcd", key)
    assert len(bytes(tag)) <= LO_NAME_BYTES
    assert Tag.parse(bytes(tag).ljust(64, b"\0")) == tag
    assert tag.disk == disk_id(key)


@given(keys, keys)
def test_two_disks_have_two_tags(one: DiskKey, other: DiskKey) -> None:
    assert (Tag.of("0123abcd", one).disk == Tag.of("0123abcd", other).disk) is (one == other)


def test_guest_and_target_do_not_run_together() -> None:
    assert disk_id(DiskKey("ab", "c")) != disk_id(DiskKey("a", "bc"))


@given(st.binary(max_size=64))
def test_foreign_names_are_no_tags(name: bytes) -> None:
    if not name.startswith(b"tapster:"):
        assert Tag.parse(name) is None


def test_half_a_tag_is_none() -> None:
    for name in (b"", b"tapster", b"tapster:", b"tapster:0123abcd", b"tapster:0123abcd:00", b"/images/tapster:a:b:c"):
        assert Tag.parse(name) is None


def test_instances_differ_by_fleet_host_and_folder() -> None:
    ids = {instance_id(*words) for words in (("f", "h", "/r"), ("g", "h", "/r"), ("f", "i", "/r"), ("f", "h", "/s"))}
    assert len(ids) == 4
    assert instance_id("f", "h", "/r") == instance_id("f", "h", "/r")
