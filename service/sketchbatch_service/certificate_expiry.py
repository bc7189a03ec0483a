"""Read when certificates expire.

The ssl module returns this time only for the certificate of a verified peer, so this module reads it from the DER
encoding (RFC 5280, section 4.1). It checks nothing else: OpenSSL does.
"""

import base64
import re
from datetime import UTC, datetime

_BLOCK = re.compile(
    rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----(.*?)-----END (?:X509 |TRUSTED )?CERTIFICATE-----", re.DOTALL
)
_SEQUENCE, _UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x30, 0x17, 0x18, 0xA0  # tags
_FIELDS_BEFORE_VALIDITY = 3  # serial number, signature algorithm, issuer


def earliest_expiry(pem: bytes) -> float:
    """Return when the first of the certificates expires, in seconds since the epoch.

    Raise ValueError if there is no certificate, or if one of them has no readable time of expiry.
    """
    certificates = [base64.b64decode(block) for block in _BLOCK.findall(pem)]
    if not certificates:
        raise ValueError("no certificate")
    return min(map(_expiry, certificates))


def _expiry(certificate: bytes) -> float:
    content, _ = _element(certificate, _SEQUENCE)
    fields, _ = _element(content, _SEQUENCE)
    if fields[:1] == bytes([_VERSION]):
        _, fields = _element(fields, _VERSION)
    for _ in range(_FIELDS_BEFORE_VALIDITY):
        _, fields = _element(fields)
    validity, _ = _element(fields, _SEQUENCE)
    _, end = _element(validity)
    tag = end[:1]
    text = _element(end)[0].decode("ascii")
    if tag == bytes([_GENERALIZED_TIME]):
        return _seconds(text)
    if tag == bytes([_UTC_TIME]):
        return _seconds(("19" if text[:2] >= "50" else "20") + text)  # RFC 5280, section 4.1.2.5.1
    raise ValueError(f"the time of expiry must be a UTCTime or a GeneralizedTime, got the tag {tag.hex()}")


def _seconds(text: str) -> float:
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _element(der: bytes, tag: int | None = None) -> tuple[bytes, bytes]:
    """Return the content of the first element of `der`, and the bytes behind it."""
    if len(der) < 2 or (tag is not None and der[0] != tag):
        raise ValueError(f"expected an element with the tag {tag}, got {der[:2].hex() or 'nothing'}")
    start, size = 2, der[1]
    if size & 0x80:  # the long form: the lower bits are the number of bytes of the size
        start += size & 0x7F
        size = int.from_bytes(der[2:start], "big")
    if len(der) < start + size:
        raise ValueError(f"expected {start + size} bytes, got {len(der)}")
    return der[start : start + size], der[start + size :]
