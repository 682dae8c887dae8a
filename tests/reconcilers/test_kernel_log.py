"""The kernel's log: which records tell of a failed request."""

import pytest

from reconcilers.kernel_log import failed_node

RECORDS = {
    b"3,14398,16961130104,-;I/O error, dev loop0, sector 128 op 0x0:(READ) flags 0x80700 phys_seg 1\n": "/dev/loop0",
    b"3,1,2,-;critical space allocation error, dev nbd12, sector 0 op 0x1:(WRITE)\n": "/dev/nbd12",
    b"3,1,2,-;blk_update_request: I/O error, dev loop3, sector 0\n": "/dev/loop3",
    b"3,14399,16961131684,-;Buffer I/O error on dev loop0, logical block 0, lost async page write\n": None,
    b"6,14397,16961127950,-;loop0: detected capacity change from 0 to 2048\n": None,
    b"11,5,6,-;I/O error, dev loop0, sector 0 as some program says\n": None,
    b"": None,
}


@pytest.mark.parametrize("record", RECORDS)
def test_a_failed_request_names_its_device(record: bytes) -> None:
    assert failed_node(record) == RECORDS[record]
