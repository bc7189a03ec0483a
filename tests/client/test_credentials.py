"""The client uses TLS and tokens in its calls to real servers that require TLS or tokens."""

import os
import re
from collections.abc import Callable, Iterator
from concurrent import futures
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
import trustme
from blocking_health import BlockingHealthServicer
from grpc_health.v1 import health_pb2_grpc
from sketchbatch.v1 import classifier_pb2_grpc
from sketchbatch_client import AsyncClient, Client, Tls, Unauthenticated, Unavailable
from sketchbatch_client.rpc.retries.retry_policy import RetryPolicy

FEW_RETRIES = {"retry": RetryPolicy(max_attempts=2, first_backoff_s=0.01)}


class TokenInterceptor(grpc.ServerInterceptor):
    """Reject calls that do not send `token`; an empty `token` means that all calls are accepted.

    If `guards_health` is true, health checks need the token as well, even the health watch that gRPC itself starts.
    """

    def __init__(self) -> None:
        self.token = ""
        self.guards_health = True
        self.seen: set[str] = set()

    def intercept_service(self, continuation, call):
        self.seen.add(call.method.rpartition("/")[2])
        bearer = dict(call.invocation_metadata).get("authorization")
        is_free = not self.token or ("grpc.health" in call.method and not self.guards_health)
        if is_free or bearer == f"Bearer {self.token}":
            return continuation(call)

        def refuse(request, context) -> None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "unknown token")

        if call.method.endswith("/Watch"):
            return grpc.unary_stream_rpc_method_handler(refuse)
        return grpc.unary_unary_rpc_method_handler(refuse)


@pytest.fixture
def interceptor() -> TokenInterceptor:
    return TokenInterceptor()


@pytest.fixture
def start(servicer, interceptor) -> Iterator[Callable[..., str]]:
    """Return a function that starts a server on a free port, with TLS if credentials are given.

    The function returns the address of the server.
    """
    started: list[grpc.Server] = []

    def start(credentials: grpc.ServerCredentials | None = None) -> str:
        server = grpc.server(futures.ThreadPoolExecutor(8), interceptors=[interceptor])
        classifier_pb2_grpc.add_ClassifierServiceServicer_to_server(servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(BlockingHealthServicer(), server)
        address = "127.0.0.1:0"
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        server.start()
        started.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in started:
        server.stop(None).wait()


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """Return the certificate authority that signs the certificates of servers and clients."""
    return trustme.CA()


@pytest.fixture
def ca(authority) -> bytes:
    return authority.cert_pem.bytes()


def credentials(authority: trustme.CA, *names: str, requires_client: bool = False) -> grpc.ServerCredentials:
    own = authority.issue_cert(*names)
    pair = (own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes())
    trusted = authority.cert_pem.bytes() if requires_client else None
    return grpc.ssl_server_credentials([pair], trusted, requires_client)


def test_requests_use_tls(start, authority, ca, drawing, tmp_path):
    """Calls for scores, models and health all use TLS.

    The option `ca` is the certificate of the authority, given as bytes or as the path of a file. A byte order mark, as
    editors on Windows add it, is no part of the certificate.
    """
    address = start(credentials(authority, "127.0.0.1"))
    (tmp_path / "ca.pem").write_bytes(ca)
    (tmp_path / "bom.pem").write_bytes(b"\xef\xbb\xbf" + ca)
    for given in (ca, tmp_path / "ca.pem", str(tmp_path / "bom.pem")):
        with Client(address, tls=Tls(ca=given)) as client:
            assert len(client.classify(drawing(1))) == 1
            assert (client.model().name, client.health()) == ("m", "SERVING")


async def test_requests_of_tasks_use_tls(start, authority, ca, drawing, interceptor):
    """The asyncio client uses TLS and sends the token with each request."""
    interceptor.token = "open-sesame"
    async with AsyncClient(
        start(credentials(authority, "127.0.0.1")), tls=Tls(ca=ca), token=interceptor.token
    ) as client:
        assert len(await client.classify(drawing(1))) == 1
        assert await client.health() == "SERVING"


def test_an_untrusted_server_gets_no_request(start, authority, servicer, drawing):
    """The client sends no request to a server whose certificate has an untrusted authority or a wrong name.

    The error of the client contains the reason.
    """
    address = start(credentials(authority, "127.0.0.1"))
    elsewhere = start(credentials(authority, "sketchbatch.example"))
    for where, trusted in ((address, trustme.CA()), (elsewhere, authority)):
        with (
            Client(where, tls=Tls(ca=trusted.cert_pem.bytes()), **FEW_RETRIES) as client,
            pytest.raises(Unavailable, match=r"(?i)certificate|hostname"),
        ):
            client.classify(drawing(1))
    with (
        Client(address, tls=True, **FEW_RETRIES) as client,
        pytest.raises(Unavailable),
    ):  # by default, the client trusts public authorities only, and none of them signed the certificate
        client.classify(drawing(1))
    assert not servicer.requests


def test_a_server_without_tls_is_named_as_such(start, drawing):
    """OpenSSL's WRONG_VERSION_NUMBER alone tells few users that the option must be left out."""
    message = r"the server probably has no TLS: connect without it"
    with Client(start(), tls=True, **FEW_RETRIES) as client, pytest.raises(Unavailable, match=message):
        client.classify(drawing(1))


def test_server_name_replaces_the_host_of_the_target(start, authority, ca, drawing):
    """With the option `server_name`, the client accepts a certificate for this name instead of the server's address."""
    address = start(credentials(authority, "sketchbatch.example"))
    with Client(address, tls=Tls(ca=ca, server_name="sketchbatch.example")) as client:
        assert len(client.classify(drawing(1))) == 1


def test_a_server_may_require_a_client_certificate(start, authority, ca, drawing):
    """A client without a certificate gets no response."""
    address = start(credentials(authority, "127.0.0.1", requires_client=True))
    ours = authority.issue_cert("client.example")
    tls = Tls(ca=ca, cert=ours.cert_chain_pems[0].bytes(), key=ours.private_key_pem.bytes())
    with Client(address, tls=tls) as client:
        assert len(client.classify(drawing(1))) == 1
    with Client(address, tls=Tls(ca=ca), **FEW_RETRIES) as client, pytest.raises(Unavailable):
        client.classify(drawing(1))


@pytest.mark.parametrize("is_encrypted", [True, False])
def test_every_call_has_the_token(start, authority, ca, drawing, interceptor, is_encrypted):
    """Calls for scores, models and health all send the token; a call with a wrong token raises Unauthenticated."""
    interceptor.token = "open-sesame"
    address = start(credentials(authority, "127.0.0.1") if is_encrypted else None)
    tls = Tls(ca=ca) if is_encrypted else False
    with Client(address, tls=tls, token="open-sesame\n") as client:
        assert len(client.classify(drawing(1))) == 1
        assert (client.model().name, client.health()) == ("m", "SERVING")
    assert interceptor.seen >= {"Classify", "GetModel", "Check"}
    interceptor.guards_health = False  # over TLS, gRPC would otherwise consider the server unhealthy and not call it
    with Client(address, tls=tls, token="please") as client, pytest.raises(Unauthenticated, match="unknown token"):
        client.classify(drawing(1))


def test_a_token_in_a_file_is_read_again_when_it_changes(start, drawing, interceptor, tmp_path):
    """If the token file is replaced, the client reads the new token; if the file is missing, the last token stays."""
    link = tmp_path / "token"
    for number, encoding in ((1, "utf-8-sig"), (2, "utf-8")):
        (tmp_path / str(number)).write_text(f"token-{number}\r\n", encoding)
    link.symlink_to(tmp_path / "1")
    interceptor.token = "token-1"
    with Client(start(), token_file=link) as client:
        client.classify(drawing(1))
        link.unlink()
        client.classify(drawing(1))
        interceptor.token = "token-2"
        (tmp_path / "next").symlink_to(tmp_path / "2")
        (tmp_path / "next").replace(link)
        client.classify(drawing(1))


@pytest.mark.parametrize(
    "target",
    [
        "example.com:1",
        "127.example.com:1",
        "localhost.example.com:1",
        "ipv4:127.0.0.1:1,10.0.0.1:1",
        "dns:///example.com:1",
        "localhost:1,10.0.0.1:1",
    ],
)
def test_a_token_is_not_sent_unencrypted_to_another_machine(target):
    """The client refuses to send a token to another machine, unless it uses TLS or the option `insecure_token`."""
    with pytest.raises(ValueError, match=r"the token would be sent unencrypted to .*: use TLS"):
        Client(target, token="secret")
    Client(target, token="secret", tls=True).close()
    Client(target, token="secret", insecure_token=True).close()


@pytest.mark.parametrize("target", ["localhost:1", "127.0.0.1:1", "[::1]:1", "unix:/s", "dns:///localhost:1"])
def test_a_token_for_this_machine_needs_no_encryption(target):
    """The client may send a token without TLS to loopback addresses and Unix sockets.

    A token for such a target does not leave the machine.
    """
    Client(target, token="secret").close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token": " \n"}, "token must be visible ASCII without spaces, and not empty, got none"),
        ({"token": "two words"}, "token must be visible ASCII without spaces, got 2 words"),
        ({"token": "größe"}, "token must be visible ASCII .*, got other characters"),
        ({"token": "a", "token_file": Path("b")}, "give token or token_file, not both"),
    ],
)
def test_invalid_tokens_are_refused(options, message):
    """The constructor raises a ValueError for an invalid token."""
    with pytest.raises(ValueError, match=message):
        Client("localhost:1", **options)


@pytest.mark.parametrize("option", ["token_file", "ca"])
def test_a_file_in_utf_16_is_refused_by_its_encoding(tmp_path, option):
    """PowerShell writes UTF-16; the error has the name of the file and the encoding, and no part of a token."""
    (tmp_path / "file").write_text("open-sesame", "utf-16")
    options = {"token_file": tmp_path / "file"} if option == "token_file" else {"tls": Tls(ca=tmp_path / "file")}
    with pytest.raises(ValueError, match=r"file: must be ASCII or UTF-8, got UTF-16; write it again as UTF-8$"):
        Client("localhost:1", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ca": b"-----BEGIN PRIVATE KEY-----"}, "^ca must be PEM, got no line -----BEGIN CERTIFICATE-----$"),
        ({"cert": b"", "key": b""}, "^cert must be PEM"),
        ({"cert": b"-----BEGIN CERTIFICATE-----", "key": b"0"}, "^key must be PEM, got no line -----BEGIN PRIVATE KEY"),
    ],
)
def test_certificates_that_are_none_are_refused(options, message):
    """Otherwise gRPC would report an unreachable server."""
    with pytest.raises(ValueError, match=message):
        Client("localhost:1", tls=Tls(**options))


@pytest.mark.timeout(60)  # starts a command
def test_an_expired_certificate_is_reported_in_one_line(start, authority, ca, tmp_path, run_command):
    """The command writes the reason to stderr, in one line, without the lines that gRPC logs by default."""
    own = authority.issue_cert("localhost", not_after=datetime(2021, 1, 1, tzinfo=UTC))
    address = start(grpc.ssl_server_credentials([(own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes())]))
    (tmp_path / "ca.pem").write_bytes(ca)
    server = f"localhost:{address.rpartition(':')[2]}"
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    words = ("model", "--server", server, "--ca", tmp_path / "ca.pem")
    finished = run_command("sketchbatch", *words, env=environment)
    assert finished.returncode == 1
    assert re.fullmatch(r"sketchbatch: no response .*certificate has expired.*\n", finished.stderr)


def test_a_certificate_without_its_key_is_refused():
    """A client certificate without its key, or a key without its certificate, is refused."""
    with pytest.raises(ValueError, match="cert and key must be given together, got only cert"):
        Tls(cert=b"")
    with pytest.raises(ValueError, match="got only key"):
        Tls(key=b"")


@pytest.mark.timeout(60)  # starts four commands
def test_the_command_line_takes_certificates_and_tokens(start, authority, ca, interceptor, tmp_path, run_command):
    """The commands read the token from --token-file or from the variable SKETCHBATCH_TOKEN.

    A command without the token ends with exit code 4, because a retry cannot succeed. A command that would send the
    token unencrypted to another machine ends with exit code 2.
    """
    interceptor.token = "open-sesame"
    address = start(credentials(authority, "127.0.0.1"))
    (tmp_path / "ca.pem").write_bytes(ca)
    (tmp_path / "token").write_text("open-sesame")
    connection = ["--server", address, "--ca", tmp_path / "ca.pem"]
    described = run_command("sketchbatch", "model", *connection, "--token-file", tmp_path / "token", "--json")
    assert (described.returncode, described.stderr) == (0, "")
    environment = os.environ | {"SKETCHBATCH_TOKEN": "open-sesame"}
    assert run_command("sketchbatch", "health", *connection, env=environment).stdout == "SERVING\n"
    refused = run_command("sketchbatch", "health", *connection)
    assert (refused.returncode, refused.stderr) == (4, "sketchbatch: unknown token\n")
    contradiction = run_command("sketchbatch", "model", "--server", "example.com:1", env=environment)
    assert contradiction.returncode == 2
    assert "unencrypted" in contradiction.stderr
