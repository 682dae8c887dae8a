"""What the settings about certificates mean for OpenSSL."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from agent.setting_sections import TlsSettings


def tls_context(settings: TlsSettings) -> ssl.SSLContext | None:
    """What the settings mean for OpenSSL; None without TLS.

    Raises:
        OSError: A file can't be read, or is not what it should be.
    """
    if not settings.enabled:
        return None
    with _naming(f"ca_file {settings.ca_file}"):
        context = ssl.create_default_context(cafile=settings.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.cert_file is not None:
        with _naming(f"cert_file {settings.cert_file} with key_file {settings.key_file}"):
            context.load_cert_chain(settings.cert_file, settings.key_file)
    return context


@contextmanager
def _naming(files: str) -> Iterator[None]:
    """Name the files that can't be used, which the ssl module does not."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{files}: {error.strerror or error}") from error
