"""The client authenticates with TLS and tokens to real servers that require them."""

import os
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import HealthServicer
from sketchbatch.v1 import classifier_pb2_grpc
from sketchbatch_client import AsyncClient, Client, Tls, Unauthenticated, Unavailable
from sketchbatch_client.rpc.retries.retry_policy import RetryPolicy

FEW_RETRIES = {"retry": RetryPolicy(max_attempts=2, first_backoff_s=0.01)}


class TokenInterceptor(grpc.ServerInterceptor):
    """Rejects calls without `token`, including the health watch of gRPC if `guards_health`."""

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
    """Start a server on a free port, with TLS if credentials are given; return the address."""
    started: list[grpc.Server] = []

    def start(credentials: grpc.ServerCredentials | None = None) -> str:
        server = grpc.server(futures.ThreadPoolExecutor(8), interceptors=[interceptor])
        classifier_pb2_grpc.add_ClassifierServiceServicer_to_server(servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(), server)
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
    """Create the authority that signs the certificates."""
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
    """All requests use TLS, also for models and health; the authority is given as bytes or as a file."""
    address = start(credentials(authority, "127.0.0.1"))
    (tmp_path / "ca.pem").write_bytes(ca)
    for given in (ca, tmp_path / "ca.pem"):
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
    """A server with a certificate of another authority or name gets no request, and the error has the reason."""
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
    ):  # no public authority signed the certificate
        client.classify(drawing(1))
    assert not servicer.requests


def test_server_name_replaces_the_host_of_the_target(start, authority, ca, drawing):
    """The certificate may have another name than the address of the server."""
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
    """Every call sends the token, also for models and health; a wrong token raises Unauthenticated."""
    interceptor.token = "open-sesame"
    address = start(credentials(authority, "127.0.0.1") if is_encrypted else None)
    tls = Tls(ca=ca) if is_encrypted else False
    with Client(address, tls=tls, token="open-sesame\n") as client:
        assert len(client.classify(drawing(1))) == 1
        assert (client.model().name, client.health()) == ("m", "SERVING")
    assert interceptor.seen >= {"Classify", "GetModel", "Check"}
    interceptor.guards_health = False  # otherwise gRPC would find no healthy server over TLS
    with Client(address, tls=tls, token="please") as client, pytest.raises(Unauthenticated, match="unknown token"):
        client.classify(drawing(1))


def test_a_token_in_a_file_is_read_again_when_it_changes(start, drawing, interceptor, tmp_path):
    """The client reads a replaced token file again, and keeps the last token if the file is missing."""
    link = tmp_path / "token"
    for number in (1, 2):
        (tmp_path / str(number)).write_text(f"token-{number}\n")
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
    """A token goes to another machine only with TLS or with `insecure_token`."""
    with pytest.raises(ValueError, match=r"the token would be sent unencrypted to .*: use TLS"):
        Client(target, token="secret")
    Client(target, token="secret", tls=True).close()
    Client(target, token="secret", insecure_token=True).close()


@pytest.mark.parametrize("target", ["localhost:1", "127.0.0.1:1", "[::1]:1", "unix:/s", "dns:///localhost:1"])
def test_a_token_for_this_machine_needs_no_encryption(target):
    """A token goes unencrypted to loopback addresses and Unix sockets, because they do not leave the machine."""
    Client(target, token="secret").close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token": " \n"}, "token must be visible ASCII without spaces, and not empty"),
        ({"token": "two words"}, "token must be visible ASCII"),
        ({"token": "a", "token_file": Path("b")}, "give token or token_file, not both"),
    ],
)
def test_invalid_tokens_are_refused(options, message):
    """The constructor raises a ValueError for an invalid token."""
    with pytest.raises(ValueError, match=message):
        Client("localhost:1", **options)


def test_a_certificate_without_its_key_is_refused():
    """A client certificate without its key, or a key without its certificate, is refused."""
    with pytest.raises(ValueError, match="cert and key must be given together, got only cert"):
        Tls(cert=b"")
    with pytest.raises(ValueError, match="got only key"):
        Tls(key=b"")


@pytest.mark.timeout(60)  # starts four commands
def test_the_command_line_takes_certificates_and_tokens(start, authority, ca, interceptor, tmp_path, run_command):
    """The token comes from a file or SKETCHBATCH_TOKEN; rejected and contradictory credentials are errors."""
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
    assert (refused.returncode, refused.stderr) == (1, "sketchbatch: unknown token\n")
    contradiction = run_command("sketchbatch", "model", "--server", "example.com:1", env=environment)
    assert contradiction.returncode == 2
    assert "unencrypted" in contradiction.stderr
