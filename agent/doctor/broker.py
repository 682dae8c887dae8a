"""The way to the broker: name, port, certificates, and what the access list allows."""

import asyncio
import secrets
import socket
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiomqtt
from cryptography import x509
from cryptography.x509.oid import NameOID

from agent.bus.connection import Connection, DeniedError
from agent.bus.explain import explain
from agent.bus.tls import tls_context
from agent.bus.topics import FleetTopics
from agent.doctor.finding import GUIDES, Finding, Findings, ok, problem, warning
from agent.setting_sections import BrokerSettings
from agent.settings import Settings

ACCESS_LIST = f"see the message; an access list that works is broker/hosts.acl, {GUIDES}"

SOON = timedelta(days=30)
"""A certificate that ends within this time is told of."""


async def broker(settings: Settings, agent_pid: int | None) -> list[Finding]:
    """Look at the way to the broker, up to a session of its own where that disturbs no agent's."""
    findings = [*_certificates(settings), *_password(settings.broker)]
    reached = await asyncio.to_thread(_reach, settings.broker)
    findings += reached
    if any(finding.mend for finding in reached):
        return findings
    if agent_pid and settings.broker.tls.cert_file:
        # A broker that takes client ids from certificates would end the agent's session for ours.
        message = "not tried, since a session by this host's certificate could end the agent's"
        return [*findings, ok("access", f"{message}; the agent's own words: systemctl status tapster")]
    return [*findings, *await _access(settings)]


def _certificates(settings: Settings) -> Findings:
    tls = settings.broker.tls
    if not tls.enabled:
        if settings.broker.host not in {"127.0.0.1", "::1", "localhost"}:
            message = f"{settings.broker.host} is spoken to without TLS: whoever is on the way can push definitions"
            yield warning("tls", message, "set ca_file, cert_file and key_file under [broker.tls]")
        return
    for file in filter(None, (tls.ca_file, tls.cert_file)):
        yield from _certificate(file, settings.host if file == tls.cert_file else None)
    if tls.key_file:
        yield from _key(tls.key_file)


def _certificate(file: Path, host: str | None) -> Findings:
    try:
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
    except OSError as error:
        yield problem("certificate", f"{file}: {error.strerror}", f"ls -l {file}")
        return
    except ValueError as error:
        yield problem("certificate", f"{file} is no certificate in PEM: {error}", f"openssl x509 -in {file} -noout")
        return
    left = certificate.not_valid_after_utc - datetime.now(UTC)
    ends = f"{file} ends on {certificate.not_valid_after_utc:%Y-%m-%d}"
    renew = f"have it renewed, then: systemctl reload tapster; see: openssl x509 -in {file} -noout -text"
    if left < timedelta():
        yield problem("certificate", f"{ends}, {(-left).days} days ago", renew)
    elif left < SOON:
        yield warning("certificate", f"{ends}, in {left.days} days", renew)
    else:
        yield ok("certificate", f"{ends}, in {left.days} days")
    names = [str(one.value) for one in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if host and names != [host]:
        message = f"{file} is for {', '.join(names) or 'nobody'}, and this host is called {host}"
        yield problem("certificate", message, "set `host` to the certificate's CN, or have one made for this host")


def _key(file: Path) -> Findings:
    try:
        mode = file.stat().st_mode
    except OSError as error:
        yield problem("key", f"{file}: {error.strerror}", f"ls -l {file}")
        return
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield problem(
            "key", f"{file} can be read by others than root (mode {stat.S_IMODE(mode):o})", f"chmod 600 {file}"
        )
    else:
        yield ok("key", f"{file}, mode {stat.S_IMODE(mode):o}")


def _password(broker: BrokerSettings) -> Findings:
    file = broker.password_file
    if file is None:
        return
    try:
        mode = file.stat().st_mode
    except OSError as error:
        yield problem("password", f"{file}: {error.strerror}", f"ls -l {file}")
        return
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield problem("password", f"{file} can be read by others than root", f"chmod 600 {file}")
    else:
        yield ok("password", f"{file}, mode {stat.S_IMODE(mode):o}")


def _reach(broker: BrokerSettings) -> list[Finding]:
    try:
        context = tls_context(broker.tls)
    except OSError as error:
        return [problem("tls", str(error), "mend the files, or what [broker.tls] says of them")]
    return _connect(broker, context)


def _connect(broker: BrokerSettings, context: ssl.SSLContext | None) -> list[Finding]:
    where = f"{broker.host}:{broker.port}"
    try:
        with socket.create_connection((broker.host, broker.port), timeout=broker.connect_timeout) as plain:
            if context is None:
                return [ok("broker", f"{where} answers")]
            with context.wrap_socket(plain, server_hostname=broker.host) as wrapped:
                return [ok("broker", f"{where} answers by {wrapped.version()}, and its certificate is good")]
    except ssl.SSLCertVerificationError as error:
        mend = f"openssl s_client -connect {where} -CAfile {broker.tls.ca_file} </dev/null"
        return [problem("broker", f"{where}: the broker's certificate is refused: {error.verify_message}", mend)]
    except ssl.SSLError as error:
        return [
            problem("broker", f"{where}: TLS fails: {error.reason}", "is that the port for TLS, and these the files?")
        ]
    except socket.gaierror as error:
        return [problem("broker", f"{broker.host} can't be resolved: {error.strerror}", f"getent hosts {broker.host}")]
    except OSError as error:
        mend = "start the broker, open the firewall, or set broker.host and broker.port"
        return [problem("broker", f"{where} can't be reached: {error.strerror or error}", mend)]


async def _access(settings: Settings) -> list[Finding]:
    """Have a session as the agent would, and wait for what it sends itself to come back."""
    topics = FleetTopics(settings.fleet).of(settings.host)
    nonce = secrets.token_hex(8).encode()
    heard = 0
    client = _client(settings)
    try:
        async with client as connection, asyncio.timeout(settings.broker.connect_timeout):
            await connection.follow([topics.desired_filter, topics.sync])
            await connection.deliver(topics.sync, nonce)
            while True:
                for message in await connection.batch():
                    if bytes(message.payload) == nonce:
                        return [ok("access", f"a session works; {heard} definitions for this host are on the bus")]
                    heard += 1
    except DeniedError as error:
        return [problem("access", str(error), ACCESS_LIST)]
    except (aiomqtt.MqttError, OSError) as error:
        if isinstance(error, TimeoutError):
            why = "what this host sends itself does not come back: the broker's access list keeps something from it"
            return [problem("access", why, ACCESS_LIST)]
        return [problem("access", explain(error, settings.broker, settings.host), ACCESS_LIST)]


def _client(settings: Settings) -> Connection:
    """With a certificate the broker may take the client id from it, so the agent's session is resumed and kept."""
    if settings.broker.tls.cert_file:
        kept = settings.broker.session_expiry
        return Connection(settings.broker, client=settings.host, user=settings.host, resume=True, expiry=kept)
    return Connection(settings.broker, client=f"doctor-{secrets.token_hex(6)}", user=settings.host)
