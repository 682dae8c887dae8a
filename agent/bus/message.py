"""A message as the bus hands it on, free of the MQTT library's types."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from paho.mqtt.client import MQTTMessage


@dataclass(frozen=True, slots=True)
class Message:
    """One received PUBLISH (MQTT v5, section 3.3).

    Attributes:
        topic: Its full topic.
        payload: Its bytes; none at all clear what was retained on the topic.
        retain: It was retained, and so perhaps published long ago.
        properties: User properties; of a name given twice, the last.
        response_topic: Where the sender waits for a reply.
        correlation: What the reply has to carry so that the sender knows it.
    """

    topic: str
    payload: bytes
    retain: bool = False
    properties: Mapping[str, str] = field(default_factory=dict)
    response_topic: str | None = None
    correlation: bytes | None = None

    @classmethod
    def received(cls, raw: MQTTMessage) -> Self:
        """Take over what the library received."""
        return cls(
            topic=raw.topic,
            payload=bytes(raw.payload),
            retain=raw.retain,
            properties=dict(getattr(raw.properties, "UserProperty", ())),
            response_topic=getattr(raw.properties, "ResponseTopic", None),
            correlation=getattr(raw.properties, "CorrelationData", None),
        )
