"""Properties of MQTT packets (MQTT v5, section 2.2.2)."""

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

_CONSTANT = {name: table for name, table in vars(Properties(PacketTypes.PUBLISH)).items() if name != "packetType"}  # type: ignore[no-untyped-call]


def packet_properties(packet: int, **values: object) -> Properties:
    """Properties of one kind of packet, by their names without blanks; None is left out."""
    properties = Properties(packet)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        if value is not None:
            setattr(properties, name, value)
    return properties


def _with_shared_tables(properties: Properties, packetType: int) -> None:  # noqa: N803 - paho's name
    vars(properties).update(_CONSTANT, packetType=packetType)


# paho makes its tables of all properties anew for each packet that is received, if only to say that it has none. These
# sixty objects are a large part of what an acknowledgement costs, and of what the garbage collector has to look at.
Properties.__init__ = _with_shared_tables  # type: ignore[method-assign]
