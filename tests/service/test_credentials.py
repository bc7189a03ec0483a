"""Test which calls the token file authenticates, and what happens when token or certificate files change."""

import ssl
from concurrent import futures
from datetime import UTC, datetime

import grpc
import pytest
import trustme
from gates import Clock
from sketchbatch_service.certificate_expiry import earliest_expiry
from sketchbatch_service.errors import CredentialsUnusable
from sketchbatch_service.transport.file_reloader import FileReloader
from sketchbatch_service.transport.tls import ServerTls, TlsFiles
from sketchbatch_service.transport.tokens import TokenFile

OLD, NEW = "old-token-0123456789", "new-token-0123456789=="
METHOD, OPEN = b"/sketchbatch.v1.ClassifierService/Classify", b"/grpc.health.v1.Health/Check"
NEEDED, WRONG = "a bearer token is needed", "the bearer token is not accepted"


def token_file(path, text: str = f"# two, for a change\n\n{OLD}\n  {NEW}\t\n") -> TokenFile:
    """Write a token file with the given text, then read the file."""
    path.write_text(text)
    return TokenFile(path, frozenset({OPEN}))


def sent(*values: str) -> list[tuple[str, str]]:
    """Return the metadata of a call with the given `authorization` values."""
    return [("user-agent", "test"), *(("authorization", value) for value in values)]


@pytest.mark.parametrize("value", [f"Bearer {OLD}", f"bearer {OLD}", f"Bearer  {NEW}"])
def test_each_token_of_the_file_is_accepted(tmp_path, value):
    """Each token of a token file is accepted.

    While the file contains an old and a new token, clients can change from the old token to the new one.
    """
    assert token_file(tmp_path / "tokens").rejection_reason(METHOD, sent(value)) is None


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    """Editors on Windows write a byte order mark and CRLF; token files and certificates may have them."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    files = write_pair(tmp_path, ca.issue_cert("localhost"))
    (tmp_path / "tokens").write_bytes(f"\n{OLD}\n".encode())
    for path in (tmp_path / "tokens", files.cert, files.key, files.client_ca):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    tokens = TokenFile(tmp_path / "tokens", frozenset())
    assert tokens.rejection_reason(METHOD, sent(f"Bearer {OLD}")) is None
    server = grpc.server(futures.ThreadPoolExecutor(1))
    assert server.add_secure_port("127.0.0.1:0", ServerTls(files).credentials)
    server.stop(None)


def test_a_file_in_utf_16_is_refused_by_its_encoding(tmp_path):
    """PowerShell writes UTF-16."""
    (tmp_path / "tokens").write_text(OLD, "utf-16")
    with pytest.raises(CredentialsUnusable, match=r"tokens: must be ASCII or UTF-8, got UTF-16"):
        TokenFile(tmp_path / "tokens", frozenset())


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([], NEEDED),
        (["Basic b2xkOm5ldw=="], NEEDED),
        ([OLD], NEEDED),
        (["Bearer"], WRONG),
        (["Bearer # two, for a change"], WRONG),
        ([f"Bearer {OLD[:-1]}"], WRONG),
        ([f"Bearer {OLD}x"], WRONG),
        ([f"Bearer {OLD.upper()}"], WRONG),
        ([f"Bearer {OLD} {NEW}"], WRONG),
        (["Bearer größe-0123456789"], WRONG),
        ([f"Bearer {OLD}", f"Bearer {NEW}"], NEEDED),
    ],
)
def test_other_calls_are_rejected_except_those_of_open_methods(tmp_path, values, reason):
    """A call without a valid token is rejected, unless its method is open, which means that it needs no token.

    The reason of the rejection contains no token.
    """
    tokens = token_file(tmp_path / "tokens")
    rejection = tokens.rejection_reason(METHOD, sent(*values))
    assert reason in rejection
    assert OLD not in rejection
    assert tokens.rejection_reason(OPEN, sent(*values)) is None


def test_a_token_that_is_removed_from_the_file_is_rejected_a_second_later(tmp_path):
    """One second after the token file changed, a removed token is rejected and an added token is accepted.

    The token file may be a symbolic link whose target changes, as in Kubernetes.
    """
    (tmp_path / "1").write_text(OLD)
    (tmp_path / "2").write_text(NEW)
    link = tmp_path / "tokens"
    link.symlink_to("1")
    clock = Clock()
    tokens = TokenFile(link, frozenset(), clock=clock)
    assert tokens.rejection_reason(METHOD, sent(f"Bearer {OLD}")) is None
    (tmp_path / "next").symlink_to("2")
    (tmp_path / "next").replace(link)
    clock.advance(0.9)
    assert tokens.rejection_reason(METHOD, sent(f"Bearer {OLD}")) is None
    clock.advance(0.1)
    assert WRONG in tokens.rejection_reason(METHOD, sent(f"Bearer {OLD}"))
    assert tokens.rejection_reason(METHOD, sent(f"Bearer {NEW}")) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected one token per line, got none"),
        ("# nothing\n", "expected one token per line, got none"),
        (f"{OLD}\nshort-012345678", r"tokens:2: a token must be 16 or more of .* got 15 characters"),
        ("two words of a token", "tokens:1: a token must be 16 or more of .* got 5 words"),
        (f"\n{OLD} # comment", "tokens:2: a token must be 16 or more of .* got 3 words"),
        ("größe-0123456789-0123456789", "tokens:1: a token must be 16 or more of"),
    ],
)
def test_a_file_of_bad_tokens_is_refused_without_revealing_them(tmp_path, text, reason):
    """A file with an invalid token is refused, and the error reveals no token; short tokens are easy to guess."""
    with pytest.raises(CredentialsUnusable, match=reason) as caught:
        token_file(tmp_path / "tokens", text)
    assert not any(word in str(caught.value) for word in ("0123", "two words"))


def test_an_unusable_file_is_logged_once_and_the_previous_content_stays(tmp_path, capsys):
    """While a file is unusable, its previous content stays in use, and the log has one event about the file.

    When the file is usable again, its new content replaces the previous content.
    """
    path = tmp_path / "file"
    path.write_text("one")

    def read() -> str:
        if not path.exists() or (text := path.read_text()) == "broken":
            raise CredentialsUnusable("broken")
        return text

    reloader = FileReloader([path], read)
    assert (reloader.reload_if_changed(), reloader.content) == (None, "one")
    for make_unusable in (lambda: path.write_text("broken"), path.unlink):
        make_unusable()
        assert [reloader.reload_if_changed() for _ in range(3)] == [None] * 3
        assert capsys.readouterr().out.count("not reloaded, what was read before stays") == 1
        assert reloader.content == "one"
    path.write_text("two")
    assert (reloader.reload_if_changed(), reloader.reload_if_changed(), reloader.content) == ("two", None, "two")
    assert reloader.failures == 2
    assert capsys.readouterr().out.count("reloaded") == 1


def write_pair(folder, issued) -> TlsFiles:
    """Write a certificate and its key as files."""
    issued.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    return TlsFiles(cert=folder / "cert.pem", key=folder / "key.pem", client_ca=folder / "ca.pem")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("cert.pem", None, r"cert\.pem: cannot be read: No such file"),
        ("key.pem", None, r"key\.pem: cannot be read: No such file"),
        ("ca.pem", None, r"ca\.pem: cannot be read: No such file"),
        ("cert.pem", b"<html>", "must be a PEM certificate chain and its key"),
        (
            "key.pem",
            "another",
            "must be a PEM certificate chain and its key, without a passphrase: .*KEY_VALUES_MISMATCH",
        ),
        ("key.pem", "encrypted", "must be a PEM certificate chain and its key, without a passphrase"),
        ("ca.pem", b"", r"ca\.pem must hold PEM certificates of authorities"),
        ("ca.pem", b"nothing", r"ca\.pem must hold PEM certificates of authorities"),
    ],
)
def test_unusable_certificates_are_refused_by_name(tmp_path, name, content, reason):
    """Unusable certificate files are refused when they are loaded, with an error that names the file.

    An encrypted key is refused as well, and the service does not prompt for its passphrase.
    """
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = ca.issue_cert("localhost")
    files = write_pair(tmp_path, issued)
    assert ServerTls(files)
    if content is None:
        (tmp_path / name).unlink()
    else:
        replacement = {"another": ca.issue_cert("localhost").private_key_pem.bytes(), "encrypted": encrypted(issued)}
        (tmp_path / name).write_bytes(replacement.get(content, content))
    with pytest.raises(CredentialsUnusable, match=reason):
        ServerTls(files)


@pytest.mark.parametrize("year", [1999, 2049, 2050, 9999])
def test_the_expiry_of_a_certificate_is_read_in_both_forms(year):
    """A certificate has a UTCTime with two digits of the year until 2049, and a GeneralizedTime from 2050."""
    end = datetime(year, 12, 31, 23, 59, 58, tzinfo=UTC)
    issued = trustme.CA().issue_cert("localhost", not_before=datetime(1990, 1, 1, tzinfo=UTC), not_after=end)
    pem = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    assert earliest_expiry(b"a comment\n" + pem) == end.timestamp()


def test_the_expiry_of_a_file_is_the_earliest_one():
    """The first certificate of a chain or a bundle that expires makes connections fail."""
    ca, ends = trustme.CA(), [datetime(year, 1, 1, tzinfo=UTC) for year in (2034, 2031, 2033)]
    pems = [ca.issue_cert("localhost", not_after=end).cert_chain_pems[0].bytes() for end in ends]
    assert earliest_expiry(b"".join(pems)) == ends[1].timestamp()


def test_a_certificate_without_a_readable_expiry_is_an_error():
    """The reader of DER raises ValueError for every truncated certificate, and for a file without a certificate."""
    issued = trustme.CA().issue_cert("localhost", not_after=datetime(2038, 1, 1, tzinfo=UTC))
    der = ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())
    for size in range(0, 4 + der.index(b"380101000000Z"), 3):
        with pytest.raises(ValueError, match=r"expected|no certificate"):
            earliest_expiry(ssl.DER_cert_to_PEM_cert(der[:size]).encode())
    other_tag = der.replace(b"\x17\r380101000000Z", b"\x16\r380101000000Z")
    with pytest.raises(ValueError, match="must be a UTCTime or a GeneralizedTime, got the tag 16"):
        earliest_expiry(ssl.DER_cert_to_PEM_cert(other_tag).encode())
    with pytest.raises(ValueError, match="no certificate"):
        earliest_expiry(b"")


def encrypted(issued) -> bytes:
    """Return the private key of a certificate, encrypted with a passphrase."""
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"secret")
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
