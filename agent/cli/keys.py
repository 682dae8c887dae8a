"""`tapster keys`: pairs of keys, the folder of trusted ones, and the statements by which keys hand over."""

import asyncio
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from agent.bus.operator import BusError, operator
from agent.cli.sign import read_envelope_file, refuse, write
from agent.cli.tables import console
from agent.definition import DocumentRejected, Finding
from agent.fleet.order import RefusedError
from agent.fleet.words import printable
from agent.settings import Settings
from agent.trust.dsse import Envelope
from agent.trust.keys import KeyFileError, PublicKey, trusted_keys
from agent.trust.policy import Trust, short
from agent.trust.private_key import PrivateKey
from agent.trust.seal import GENERATION_PLAUSIBLE, signed
from agent.trust.statement import TrustStatement, encode_chain, extended, read_chain, read_statement, utc
from reconcilers.reason import Reason


def new(name: str, folder: Path, passphrase_file: Path | None) -> int:
    """Make a pair of keys; returns the exit code."""
    key, private, public = PrivateKey.new(), folder / f"{name}.key", folder / f"{name}.pub"
    try:
        if public.exists():
            return refuse(f"{public}: is there already, and no key is ever overwritten; choose another name")
        passphrase = passphrase_file.read_bytes().rstrip(b"\r\n") if passphrase_file else None
        if passphrase == b"":
            return refuse(f"{passphrase_file}: it is empty; write a passphrase into it, or leave the option out")
        key.save(private, passphrase)
        public.write_text(key.public.pem, encoding="ascii")
    except (KeyFileError, OSError) as error:
        return refuse(str(error))
    kept = "encrypted" if passphrase else "not encrypted"
    sys.stdout.write(f"{private}: {kept}; keep it to yourself\n{public}: put it into trust.keys on each host\n")
    sys.stdout.write(f"key id {key.public.id}\n")
    return 0


def show(settings: Settings, *, bus: bool, output: str) -> int:
    """Print the keys that are trusted here and, if wished, what the statements on the bus say."""
    try:
        folder = trusted_keys(settings.trust.keys)
        chain = asyncio.run(_chain(settings)) if bus else []
        statements = [read_statement(link) for link in chain]
    except (KeyFileError, BusError, DocumentRejected) as error:
        return refuse(str(error))
    found: dict[str, Any] = {
        "folder": str(settings.trust.keys),
        "threshold": settings.trust.threshold,
        "required": settings.trust.required,
        "keys": [{"file": name, "keyid": key.id} for name, key in folder.items()],
    }
    if bus:
        found["statements"] = [
            {
                "version": one.version,
                "threshold": one.threshold,
                "keys": sorted(key.id for key in one.public_keys),
                "expires": one.expires.isoformat(),
            }
            for one in statements
        ]
    if output == "json":
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        _print(found)
    return 0


def rotate(
    trust: Sequence[Path],
    threshold: int | None,
    days: float,
    signers: Sequence[PrivateKey],
    *,
    version: int | None,
    out: Path | None,
    settings: Settings,
) -> int:
    """Make the next statement, signed; publish it, or write it for others to sign. Returns the exit code.

    What it says comes from this machine alone: a broker that made statements up must not get its own keys signed.

    Args:
        trust: Public keys in force from now on; none: those of the folder here.
        threshold: How many of them must sign; None: as many as the settings here say.
        days: For how long hosts shall not miss a newer one.
        signers: Keys of now.
        version: Its own; None counts on from what is on the bus.
        out: Where to write it instead of publishing it.
        settings: Say which broker and which fleet, and where the keys are from which it all began.
    """
    try:
        chain = asyncio.run(_chain(settings))
        now = _followed(chain, settings)
        if not trust and now.keyring.keys != now.root.keys:
            return refuse(
                f"the statements on the bus lead to other keys than those in {settings.trust.keys}; say which shall be "
                "in force with --trust, or bring the folder up to date"
            )
        keys = [PublicKey.from_pem(file.read_bytes()) for file in trust] or sorted(
            now.root.keys, key=lambda key: key.id
        )
        statement = TrustStatement(
            fleet=settings.fleet,
            version=_newest(chain) + 1 if version is None else version,
            threshold=settings.trust.threshold if threshold is None else threshold,
            keys=tuple(key.pem for key in keys),
            expires=datetime.now(UTC).replace(microsecond=0) + timedelta(days=days),
        )
        link = signed(statement.envelope(), signers)
        return _publish(link, chain, now, settings) if out is None else write(link.encode(), out)
    except (KeyFileError, BusError, DocumentRejected, OSError) as error:
        return refuse(str(error))
    except ValidationError as error:
        return refuse(f"such a statement can't be made: {error.errors(include_url=False)[0]['msg']}")
    except ValueError as error:
        return refuse(f"one of {', '.join(map(str, trust))}: {error}")


def publish(file: Path, settings: Settings) -> int:
    """Publish a statement that others have signed; returns the exit code."""
    try:
        chain = asyncio.run(_chain(settings))
        return _publish(read_envelope_file(file, settings), chain, _followed(chain, settings), settings)
    except RefusedError as error:
        return refuse(str(error))
    except (KeyFileError, BusError, DocumentRejected, OSError) as error:
        return refuse(f"{file}: {error}")


def _publish(link: Envelope, chain: list[Envelope], now: Trust, settings: Settings) -> int:
    statement, newest = read_statement(link), _newest(chain)
    if statement.fleet != settings.fleet or statement.version <= newest:
        return refuse(
            f"it is version {statement.version} for fleet {statement.fleet!r}, and fleet {settings.fleet!r} is at "
            f"version {newest} already; nothing was published; make a new one"
        )
    try:
        now.signers(link)
    except DocumentRejected as error:
        return refuse(f"hosts would not follow it: {error}; nothing was published; with --out others can sign it, too")
    asyncio.run(_send(encode_chain(extended(chain, link)), settings))
    ids = ", ".join(sorted(short(key.id) for key in statement.public_keys))
    sys.stdout.write(
        f"trust statement {statement.version}: {statement.threshold} of {len(statement.keys)} keys must sign ({ids}), "
        f"good until {utc(statement.expires)}\n"
    )
    return 0


def _newest(chain: Sequence[Envelope]) -> int:
    """The highest version on the bus.

    Raises:
        DocumentRejected: It is so high that the one after it might be the last.
    """
    newest = max((read_statement(link).version for link in chain), default=0)
    if newest > GENERATION_PLAUSIBLE:
        why = (
            f"the bus has trust statement {newest}, and nobody counts that far; find out who wrote it, empty the "
            "topic, and say the right --version"
        )
        raise DocumentRejected(Finding(Reason.INVALID_DOCUMENT, why, "/version", None))
    return newest


def _followed(chain: Sequence[Envelope], settings: Settings) -> Trust:
    """What a host with this machine's folder would obey.

    Raises:
        KeyFileError: There are no keys here from which to begin.
    """
    trust = Trust.begin(settings.trust, settings.fleet, None)
    if trust.unusable is not None or not trust.root.keys:
        none = f"{settings.trust.keys}: there are no keys; put those of the hosts' folders there, too (trust.keys)"
        raise KeyFileError(trust.unusable or none)
    limit = settings.limits.document_bytes
    return trust.followed(encode_chain(chain), max_bytes=limit) if chain else trust


async def _chain(settings: Settings) -> list[Envelope]:
    async with operator(settings) as op:
        found = await op.retained(op.topics.trust)
    return read_chain(found[0].payload, max_bytes=settings.limits.document_bytes) if found else []


async def _send(payload: bytes, settings: Settings) -> None:
    async with operator(settings) as op:
        await op.publish(op.topics.trust, payload)


def _print(found: dict[str, Any]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("KEY ID", "TRUSTED BY"):
        table.add_column(heading, no_wrap=True)
    for key in found["keys"]:
        table.add_row(short(key["keyid"]), Text(printable(f"{found['folder']}/{key['file']}")))
    for one in found.get("statements", ()):
        expires = utc(datetime.fromisoformat(one["expires"]))
        for keyid in one["keys"]:
            words = f"statement {one['version']}: {one['threshold']} of {len(one['keys'])}, good until {expires}"
            table.add_row(short(keyid), words)
    console().print(table)
    must = "must be signed" if found["required"] else "need not be signed (trust.required)"
    until = " until a statement says otherwise" if not found.get("statements") else ""
    sys.stdout.write(f"documents {must}; {found['threshold']} of the folder's keys must sign{until}\n")
