"""TLS and tokens, against real servers that insist on them."""

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

SOON = {"retry": RetryPolicy(max_attempts=2, first_backoff_s=0.01)}


class Doorman(grpc.ServerInterceptor):
    """Turns away calls, those of gRPC's own health watch too, unless they bear the token of the day."""

    def __init__(self) -> None:
        self.token = ""
        self.guards_health = True
        self.seen: set[str] = set()

    def intercept_service(self, go_on, call):
        self.seen.add(call.method.rpartition("/")[2])
        bearer = dict(call.invocation_metadata).get("authorization")
        is_free = not self.token or ("grpc.health" in call.method and not self.guards_health)
        if is_free or bearer == f"Bearer {self.token}":
            return go_on(call)

        def refuse(request, context) -> None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")

        if call.method.endswith("/Watch"):
            return grpc.unary_stream_rpc_method_handler(refuse)
        return grpc.unary_unary_rpc_method_handler(refuse)


@pytest.fixture
def doorman() -> Doorman:
    return Doorman()


@pytest.fixture
def start(watched, doorman) -> Iterator[Callable[..., str]]:
    """Serves on a free port of this machine, over TLS if given credentials; returns the address."""
    started: list[grpc.Server] = []

    def start(credentials: grpc.ServerCredentials | None = None) -> str:
        server = grpc.server(futures.ThreadPoolExecutor(8), interceptors=[doorman])
        classifier_pb2_grpc.add_ClassifierServiceServicer_to_server(watched, server)
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
    """Who signs everyone's certificate."""
    return trustme.CA()


@pytest.fixture
def ca(authority) -> bytes:
    return authority.cert_pem.bytes()


def credentials(authority: trustme.CA, *names: str, wants_ours: bool = False) -> grpc.ServerCredentials:
    own = authority.issue_cert(*names)
    pair = (own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes())
    trusted = authority.cert_pem.bytes() if wants_ours else None
    return grpc.ssl_server_credentials([pair], trusted, wants_ours)


def test_a_server_is_asked_over_tls(start, authority, ca, drawing, tmp_path):
    """Trusted by an authority given as bytes or as a file; health and models come the same way."""
    address = start(credentials(authority, "127.0.0.1"))
    (tmp_path / "ca.pem").write_bytes(ca)
    for given in (ca, tmp_path / "ca.pem"):
        with Client(address, tls=Tls(ca=given)) as client:
            assert len(client.classify(drawing(1))) == 1
            assert (client.model().name, client.health()) == ("m", "SERVING")


async def test_tasks_ask_over_tls_too(start, authority, ca, drawing, doorman):
    """With the token."""
    doorman.token = "open-sesame"
    async with AsyncClient(start(credentials(authority, "127.0.0.1")), tls=Tls(ca=ca), token=doorman.token) as client:
        assert len(await client.classify(drawing(1))) == 1
        assert await client.health() == "SERVING"


def test_a_server_that_nobody_trusted_vouches_for_is_not_asked(start, authority, watched, drawing):
    """Nor one of another name; the reason is told."""
    address = start(credentials(authority, "127.0.0.1"))
    elsewhere = start(credentials(authority, "sketchbatch.example"))
    for where, trusted in ((address, trustme.CA()), (elsewhere, authority)):
        with (
            Client(where, tls=Tls(ca=trusted.cert_pem.bytes()), **SOON) as client,
            pytest.raises(Unavailable, match=r"(?i)certificate|hostname"),
        ):
            client.classify(drawing(1))
    with Client(address, tls=True, **SOON) as client, pytest.raises(Unavailable):  # not signed by a public authority
        client.classify(drawing(1))
    assert not watched.requests


def test_the_name_in_the_certificate_can_be_told(start, authority, ca, drawing):
    """For servers reached by an address that it does not bear."""
    address = start(credentials(authority, "sketchbatch.example"))
    with Client(address, tls=Tls(ca=ca, server_name="sketchbatch.example")) as client:
        assert len(client.classify(drawing(1))) == 1


def test_a_server_may_want_our_certificate(start, authority, ca, drawing):
    """With it we are answered, without it not."""
    address = start(credentials(authority, "127.0.0.1", wants_ours=True))
    ours = authority.issue_cert("client.example")
    tls = Tls(ca=ca, cert=ours.cert_chain_pems[0].bytes(), key=ours.private_key_pem.bytes())
    with Client(address, tls=tls) as client:
        assert len(client.classify(drawing(1))) == 1
    with Client(address, tls=Tls(ca=ca), **SOON) as client, pytest.raises(Unavailable):
        client.classify(drawing(1))


@pytest.mark.parametrize("is_encrypted", [True, False])
def test_every_call_bears_the_token(start, authority, ca, drawing, doorman, is_encrypted):
    """Those that ask for models and health too; who has none, or another, is told so."""
    doorman.token = "open-sesame"
    address = start(credentials(authority, "127.0.0.1") if is_encrypted else None)
    tls = Tls(ca=ca) if is_encrypted else False
    with Client(address, tls=tls, token="open-sesame\n") as client:
        assert len(client.classify(drawing(1))) == 1
        assert (client.model().name, client.health()) == ("m", "SERVING")
    assert doorman.seen >= {"Classify", "GetModel", "Check"}
    doorman.guards_health = False  # or gRPC, over TLS, would find no healthy server
    with Client(address, tls=tls, token="please") as client, pytest.raises(Unauthenticated, match="who are you"):
        client.classify(drawing(1))


def test_a_token_in_a_file_is_read_again_when_it_changes(start, drawing, doorman, tmp_path):
    """As Kubernetes swaps a projected token: another file behind the link; while there is none, the last one serves."""
    link = tmp_path / "token"
    for number in (1, 2):
        (tmp_path / str(number)).write_text(f"token-{number}\n")
    link.symlink_to(tmp_path / "1")
    doorman.token = "token-1"
    with Client(start(), token_file=link) as client:
        client.classify(drawing(1))
        link.unlink()
        client.classify(drawing(1))
        doorman.token = "token-2"
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
def test_a_token_does_not_leave_this_machine_in_the_clear(target):
    """Unless it is encrypted, or that is said to be fine."""
    with pytest.raises(ValueError, match=r"the token would go to .* unencrypted: use TLS"):
        Client(target, token="secret")
    Client(target, token="secret", tls=True).close()
    Client(target, token="secret", insecure_token=True).close()


@pytest.mark.parametrize("target", ["localhost:1", "127.0.0.1:1", "[::1]:1", "unix:/s", "dns:///localhost:1"])
def test_on_this_machine_a_token_needs_no_encryption(target):
    """Nobody listens in between."""
    Client(target, token="secret").close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token": " \n"}, "token must be visible ASCII, without spaces, and not empty"),
        ({"token": "two words"}, "token must be visible ASCII"),
        ({"token": "a", "token_file": Path("b")}, "give token or token_file, not both"),
    ],
)
def test_credentials_that_make_no_sense_are_refused(options, message):
    """Before anything is sent."""
    with pytest.raises(ValueError, match=message):
        Client("localhost:1", **options)


def test_a_certificate_without_its_key_is_refused():
    """And the other way round."""
    with pytest.raises(ValueError, match="cert and key go together, got cert alone"):
        Tls(cert=b"")
    with pytest.raises(ValueError, match="got key alone"):
        Tls(key=b"")


def test_the_command_line_takes_certificates_and_tokens(start, authority, ca, doorman, tmp_path, run_command):
    """By flags or, the token, by SKETCHBATCH_TOKEN; who is refused is told so, and what contradicts itself."""
    doorman.token = "open-sesame"
    address = start(credentials(authority, "127.0.0.1"))
    (tmp_path / "ca.pem").write_bytes(ca)
    (tmp_path / "token").write_text("open-sesame")
    known = ["--server", address, "--ca", tmp_path / "ca.pem"]
    asked = run_command("sketchbatch", "model", *known, "--token-file", tmp_path / "token", "--json")
    assert (asked.returncode, asked.stderr) == (0, "")
    told = os.environ | {"SKETCHBATCH_TOKEN": "open-sesame"}
    assert run_command("sketchbatch", "health", *known, env=told).stdout == "SERVING\n"
    refused = run_command("sketchbatch", "health", *known)
    assert (refused.returncode, refused.stderr) == (1, "sketchbatch: who are you?\n")
    contradiction = run_command("sketchbatch", "model", "--server", "example.com:1", env=told)
    assert contradiction.returncode == 2
    assert "unencrypted" in contradiction.stderr
