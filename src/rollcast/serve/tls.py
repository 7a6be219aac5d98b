"""TLS: the server's certificate, tested before a client connects, and the authorities that a client trusts."""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path

from rollcast.errors import InputError

__all__ = ["client_context", "server_context"]

_FLIGHTS = 5  # round trips, more than any handshake takes
_EXPIRED, _NOT_YET_VALID = 10, 9  # X509_V_ERR_CERT_HAS_EXPIRED, X509_V_ERR_CERT_NOT_YET_VALID


def server_context(cert: str, key: str | None) -> ssl.SSLContext:
    """The TLS context of a server.

    Args:
        cert: a PEM file: the certificate, then those that lead to its authority.
        key: a PEM file with the private key; None: it is in `cert`.

    Raises:
        InputError: a file cannot be read or is not PEM, the key is encrypted or belongs to another certificate, or the
            certificate is not valid today.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION

    def ask() -> str:
        raise InputError(
            f"the TLS key {key or cert} is encrypted; expected one without a passphrase, such as "
            f"`openssl pkey -in {key or cert} -out FILE` writes"
        )

    try:
        context.load_cert_chain(cert, key, password=ask)
    except ssl.SSLError as error:
        raise InputError(_why_not_loaded(cert, key, error)) from None
    except (OSError, ValueError) as error:  # ValueError: a null character in a name
        raise InputError(_why_not_read(cert, key, error)) from None
    _prove(context, cert)
    return context


def client_context(ca: str | None) -> ssl.SSLContext:
    """The TLS context of a client, which trusts only the authorities in the PEM file `ca`; None: those of the system.

    Raises:
        InputError: the file cannot be read, or has no certificate.
    """
    if ca is None:
        context = ssl.create_default_context()
        # SSL_CERT_FILE may name a private authority, and since Python 3.13 many would be refused, as below.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return context
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # it verifies the certificate and the name in it
    # This also allows a self-signed certificate and a server's own one; since Python 3.13 the default would refuse many.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cafile=ca)
    except ssl.SSLError:
        raise InputError(f"the TLS authority {ca} has no certificate; expected a PEM file") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        why = getattr(error, "strerror", None) or error
        raise InputError(f"the TLS authority {ca!r} cannot be read: {why}; expected a PEM file") from None
    return context


def _why_not_loaded(cert: str, key: str | None, error: ssl.SSLError) -> str:
    if "MISMATCH" in (error.reason or ""):
        return f"the TLS key {key or cert} belongs to another certificate than {cert}; expected the key that was made with it"
    if key is None:
        return (
            f"{cert} does not have both a certificate and its private key as PEM; name the key with --tls-key"
            " (tls_key=…)"
        )
    if _has(cert, b"CERTIFICATE-----") and _has(key, b"PRIVATE KEY-----"):
        return (
            f"the TLS certificate {cert} and its key {key} cannot be used: {error.reason or error}; expected a certificate "
            "that today's clients accept"
        )
    blame, what = (cert, "certificate") if not _has(cert, b"CERTIFICATE-----") else (key, "private key")
    return f"{blame} has no {what} that can be read; expected a PEM file that begins with -----BEGIN"


def _has(path: str, mark: bytes) -> bool:
    try:
        return mark in Path(path).read_bytes()
    except OSError:
        return False


def _why_not_read(cert: str, key: str | None, error: Exception) -> str:
    for path, what in ((cert, "certificate"), (key, "key")):
        if path is None:
            continue
        try:
            Path(path).read_bytes()
        except (OSError, ValueError) as reason:
            why = getattr(reason, "strerror", None) or reason
            return f"the TLS {what} {path!r} cannot be read: {why}; expected a PEM file"
    return f"the TLS certificate {cert!r} cannot be read: {error}; expected a PEM file"


def _prove(context: ssl.SSLContext, cert: str) -> None:
    """Do a handshake with a client that trusts this certificate; a failure here would happen for every client."""
    trusting = client_context(cert)
    trusting.check_hostname = False
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server, server_hostname=None)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    try:
        for _ in range(_FLIGHTS):
            for end in (client, server):
                with suppress(ssl.SSLWantReadError):
                    end.do_handshake()
    except ssl.SSLCertVerificationError as error:
        reasons = {_EXPIRED: "has expired", _NOT_YET_VALID: "is not valid yet"}
        reason = reasons.get(error.verify_code, f"cannot be a server's: {error.verify_message}")
        raise InputError(f"the TLS certificate {cert} {reason}; expected one that is valid today") from None
    except ssl.SSLError as error:
        raise InputError(
            f"no client could connect with the TLS certificate {cert}: {error.reason or error}; "
            "expected a certificate of a server and its key"
        ) from None
