"""One fleet's certificates and one broker for all tests of the kit."""

from collections.abc import Iterator

import pytest

from tests.broker_kit.kit import Certificates, KitBroker, kit_broker


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def broker(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KitBroker]:
    with kit_broker(tmp_path_factory.mktemp("broker"), certificates) as broker:
        yield broker
