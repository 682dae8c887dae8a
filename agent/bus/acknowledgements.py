"""What the broker says to messages of ours: nearly always that one has arrived, so that is known without decoding it.

paho makes three objects of each answer. That was a twelfth of the agent's time for a disk, which has five answers.
"""

from typing import Literal

from paho.mqtt.client import MQTT_ERR_SUCCESS, Client
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from agent.bus.properties import packet_properties

NUMBER_BYTES = 2
NO_SUBSCRIBERS = 0x10

_TAKEN = ReasonCode(PacketTypes.PUBACK)
_TAKEN_FOR_NOBODY = ReasonCode(PacketTypes.PUBACK, identifier=NO_SUBSCRIBERS)
_EVERYDAY = {
    b"": _TAKEN,
    bytes([NO_SUBSCRIBERS]): _TAKEN_FOR_NOBODY,
    bytes([NO_SUBSCRIBERS, 0]): _TAKEN_FOR_NOBODY,
}
"""By what stands behind the message's number: the reason, and the length of the properties (MQTT v5, section 3.4.2)."""
_NO_PROPERTIES = packet_properties(PacketTypes.PUBACK)


def recognise_everyday(client: Client) -> None:
    """Have a client pass on an everyday answer as it is; all others it decodes, and judges, as ever."""
    decode = client._handle_pubackcomp  # noqa: SLF001 - paho has no hook for it

    def handle(kind: Literal["PUBACK", "PUBCOMP"]) -> MQTTErrorCode:
        packet = client._in_packet["packet"]  # noqa: SLF001
        reason = _EVERYDAY.get(bytes(packet[NUMBER_BYTES:]))
        if kind != "PUBACK" or reason is None or len(packet) < NUMBER_BYTES:
            return decode(kind)
        number = int.from_bytes(packet[:NUMBER_BYTES], "big")
        with client._out_message_mutex:  # noqa: SLF001
            if number in client._out_messages:  # noqa: SLF001
                return client._do_on_publish(number, reason, _NO_PROPERTIES)  # noqa: SLF001
        return MQTT_ERR_SUCCESS

    client._handle_pubackcomp = handle  # type: ignore[assignment, method-assign]  # noqa: SLF001
