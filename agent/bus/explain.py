"""Why there is no connection, in a sentence that says what to do."""

import aiomqtt
from aiomqtt.exceptions import MqttConnectError

from agent.bus.connection import UnansweredError, code, taken_over
from agent.setting_sections import BrokerSettings, TlsSettings

UNSPECIFIED = 0x80
CONNECT_REFUSALS = {
    0x84: "it does not speak MQTT v5; use one that does, for example mosquitto 2",
    0x85: "it does not accept the client id; see the setting `host`",
    0x86: "check broker.username and the file broker.password_file",
    0x87: "check broker.username, the file broker.password_file and the broker's access list",
    0x8A: "the broker has banned this client",
}


def explain(error: BaseException, broker: BrokerSettings, client: str) -> str:
    """Why there is no connection to the broker for that client."""
    place = f"{broker.host}:{broker.port}"
    if taken_over(error):
        return (
            f"another agent is connected to {place} as {client!r} and took over the session; "
            "stop it, or give one of the two another `host` in its settings"
        )
    if isinstance(error, MqttConnectError):
        remedy = CONNECT_REFUSALS.get(code(error), "see the broker's log")
        return f"the broker at {place} refused {client!r}: {error.rc}; {remedy}"
    if isinstance(error, aiomqtt.MqttCodeError):
        reason = "it closed the connection without a reason" if code(error) == UNSPECIFIED else error.rc
        return f"lost the broker at {place}: {reason}"
    if isinstance(error, OSError):
        return f"cannot use the files named under [broker], password_file and tls: {error}"
    if isinstance(error, UnansweredError):
        return f"the broker at {place} closed the connection before it answered; {_why_unanswered(broker.tls)}"
    return f"cannot reach the broker at {place}: {error}"


def _why_unanswered(tls: TlsSettings) -> str:
    if tls.cert_file is not None:
        return (
            "it turns away certificates that have expired, are revoked or another authority's: "
            f"openssl x509 -noout -subject -issuer -enddate -in {tls.cert_file}"
        )
    if tls.enabled:
        return "it may want a certificate: broker.tls.cert_file and key_file"
    return "it may want TLS; see the settings under [broker.tls]"
