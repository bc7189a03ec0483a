"""The service as a process behind TLS, client certificates and tokens: what answers whom, and what is too much."""

import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from sketchbatch.openinference.v2 import open_inference_pb2
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc

OLD, NEW = "old-token-0123456789", "new-token-0123456789"
SERVING = health_pb2.HealthCheckResponse.SERVING
METHODS = [
    f"/{service}/{method.name}"
    for service, descriptor in [
        ("sketchbatch.v1.ClassifierService", pb.DESCRIPTOR),
        ("inference.GRPCInferenceService", open_inference_pb2.DESCRIPTOR),
        ("grpc.reflection.v1alpha.ServerReflection", reflection_pb2.DESCRIPTOR),
    ]
    for method in descriptor.services_by_name[service.rpartition(".")[2]].methods
]


class Keys:
    """A folder with an authority, what it signed, and a token file; `flags` start a service on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca, self.other_ca = trustme.CA(), trustme.CA()
        self.ca.cert_pem.write_to_path(folder / "ca.pem")
        self.ca.cert_pem.write_to_path(folder / "clients.pem")
        self.write("server", self.ca.issue_cert("localhost", "127.0.0.1"))
        self.write("client", self.ca.issue_cert("client@example.org"))
        self.write("stranger", self.other_ca.issue_cert("client@example.org"))
        (folder / "tokens").write_text(f"# two, for a change\n{OLD}\n{NEW}\n")
        self.flags = [
            *(f"--tls-cert={folder}/server.pem", f"--tls-key={folder}/server.key"),
            *(f"--tls-client-ca={folder}/clients.pem", f"--token-file={folder}/tokens"),
            "--probe-address=127.0.0.1:0",
        ]

    def write(self, name: str, issued: trustme.LeafCert) -> None:
        """NAME.pem and NAME.key, each whole or not at all."""
        parts = {
            "pem": b"".join(blob.bytes() for blob in issued.cert_chain_pems),
            "key": issued.private_key_pem.bytes(),
        }
        for ending, content in parts.items():
            (self.folder / "partial").write_bytes(content)
            (self.folder / "partial").replace(self.folder / f"{name}.{ending}")

    def channel(self, address: str, name: str = "client") -> grpc.Channel:
        """A connection of its own, with the certificate of that name, or none."""
        own = [(self.folder / f"{name}.{ending}").read_bytes() for ending in ("key", "pem")] if name else []
        credentials = grpc.ssl_channel_credentials((self.folder / "ca.pem").read_bytes(), *own)
        return grpc.secure_channel(address, credentials, [("grpc.use_local_subchannel_pool", 1)])

    def served_certificate(self, address: str) -> bytes:
        """What a new connection is shown, in DER."""
        context = ssl.create_default_context(cafile=self.folder / "ca.pem")
        context.set_alpn_protocols(["h2"])
        host, port = address.split(":")
        with (
            socket.create_connection((host, int(port)), 5) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            return secure.getpeercert(binary_form=True)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Made once: keys take a while to find."""
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def guarded(start_service, tiny_model, keys):
    """A service behind all of it."""
    return start_service(tiny_model, *keys.flags)


def bearer(token: str) -> tuple[tuple[str, str]]:
    """The metadata that brings a token."""
    return (("authorization", f"Bearer {token}"),)


def refusal(channel: grpc.Channel, method: str, metadata=()) -> grpc.RpcError:
    """The error that a call ends with which sends nothing, and waits."""
    more = threading.Event()
    try:
        with pytest.raises(grpc.RpcError) as caught:
            list(channel.stream_stream(method)(iter(more.wait, True), metadata=metadata, timeout=10))
    finally:
        more.set()
    return caught.value


def test_without_a_token_nothing_but_health_answers(guarded, keys):
    """Every method of every service, reflection and those that are none; not one waits for its request."""
    assert len(METHODS) > 10
    with keys.channel(guarded.address) as channel:
        for method in [*METHODS, "/no.such.Service/Method", "/grpc.health.v1.Health/Checks"]:
            for metadata in ((), bearer("wrong-token-0123456789")):
                error = refusal(channel, method, metadata)
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED, method
        assert "a bearer token is needed" in refusal(channel, METHODS[0]).details()
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest()).status == SERVING
        assert next(health.Watch(health_pb2.HealthCheckRequest(), timeout=10)).status == SERVING
        assert len(health.List(health_pb2.HealthListRequest()).statuses) == 3


def test_with_a_token_it_is_the_service_it_is_without(guarded, keys):
    """Either token of the file, on either kind of call; reflection, too."""
    with keys.channel(guarded.address) as channel:
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        for token in (OLD, NEW):
            assert stub.Classify(pb.ClassifyRequest(bitmaps=bytes(7840)), metadata=bearer(token)).rows == 10
            assert len(stub.ListModels(pb.ListModelsRequest(), metadata=bearer(token)).models) == 1
        reflect = channel.stream_stream(
            METHODS[-1],
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        assert next(reflect(asked, metadata=bearer(NEW))).list_services_response.service
        assert refusal(channel, "/no.such.Service/Method", bearer(NEW)).code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("name", ["", "stranger"])
def test_without_a_certificate_of_the_authority_nobody_gets_in(guarded, keys, name):
    """Not even to health; nor do tokens help, nor plain text."""
    with keys.channel(guarded.address, name) as channel:
        assert refusal(channel, METHODS[0], bearer(NEW)).code() is grpc.StatusCode.UNAVAILABLE
        assert refusal(channel, "/grpc.health.v1.Health/Check").code() is grpc.StatusCode.UNAVAILABLE
    with grpc.insecure_channel(guarded.address) as channel:
        assert refusal(channel, METHODS[0], bearer(NEW)).code() is grpc.StatusCode.UNAVAILABLE


def test_the_port_for_probes_answers_health_in_plain_text_and_nothing_else(guarded):
    """A kubelet has neither certificate nor token."""
    with grpc.insecure_channel(guarded.probe_address) as channel:
        assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status == SERVING
        for method in METHODS:
            assert refusal(channel, method, bearer(NEW)).code() is grpc.StatusCode.UNIMPLEMENTED


def test_certificates_and_tokens_are_replaced_without_a_restart(start_service, tiny_model, tmp_path):
    """The service goes on with the last good ones while the new ones are broken; connections that are open stay."""
    keys = Keys(tmp_path)
    service = start_service(tiny_model, *keys.flags)
    first = keys.served_certificate(service.address)
    with keys.channel(service.address) as channel:
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        stub.ListModels(pb.ListModelsRequest(), metadata=bearer(OLD))

        (tmp_path / "server.pem").write_text("half a certif")
        assert keys.served_certificate(service.address) == first
        keys.write("server", keys.ca.issue_cert("localhost", "127.0.0.1"))
        assert keys.served_certificate(service.address) != first

        keys.other_ca.cert_pem.write_to_path(tmp_path / "clients.pem")
        with keys.channel(service.address, "stranger") as stranger, keys.channel(service.address) as late:
            assert refusal(stranger, METHODS[0]).code() is grpc.StatusCode.UNAUTHENTICATED  # it has got so far
            assert refusal(late, METHODS[0], bearer(OLD)).code() is grpc.StatusCode.UNAVAILABLE

        (tmp_path / "tokens").write_text(NEW)
        time.sleep(1.05)
        assert refusal(channel, METHODS[0], bearer(OLD)).code() is grpc.StatusCode.UNAUTHENTICATED
        stub.ListModels(pb.ListModelsRequest(), metadata=bearer(NEW))
    code, log = service.stop()
    assert code == 0
    told = [event["message"] for event in log]
    assert told.count("not reloaded, what was read before stays") == 1
    assert told.count("reloaded") == 3
    assert not any(token in str(log) for token in (OLD, NEW))


@pytest.mark.timeout(60)
def test_every_worker_asks_for_the_same(start_service, tiny_model, keys):
    """Also the port for probes is one, whichever worker answers."""
    service = start_service(tiny_model, *keys.flags, "--workers", "2")
    for _ in range(10):
        with keys.channel(service.address) as channel:
            assert refusal(channel, METHODS[0]).code() is grpc.StatusCode.UNAUTHENTICATED
        with grpc.insecure_channel(service.probe_address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status == SERVING
    assert service.stop()[0] == 0


@pytest.mark.filterwarnings("ignore:.*TLSVersion.TLSv1_1 is deprecated")
def test_tls_older_than_1_2_is_refused(guarded, keys):
    """Whatever a client would take."""
    host, port = guarded.address.split(":")
    for version, is_taken in ((ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)):
        context = ssl.create_default_context(cafile=keys.folder / "ca.pem")
        context.load_cert_chain(keys.folder / "client.pem", keys.folder / "client.key")
        context.set_ciphers("ALL:@SECLEVEL=0")  # so that it is not our side that refuses
        context.set_alpn_protocols(["h2"])
        context.minimum_version = context.maximum_version = version
        with (
            socket.create_connection((host, int(port)), 5) as plain,
            nullcontext() if is_taken else pytest.raises((ssl.SSLError, ConnectionError)),
        ):
            context.wrap_socket(plain, server_hostname=host).close()


def test_what_keeps_a_guarded_service_from_starting_is_one_line(run_command, tiny_model, tmp_path):
    """It never starts unguarded instead."""
    (tmp_path / "tokens").write_text("# to come")
    for flags, reason in [
        (["--token-file", tmp_path / "tokens"], "tokens: expected one token per line, got none"),
        (["--tls-cert", tmp_path / "c", "--tls-key", tmp_path / "k"], "c: cannot be read: No such file or directory"),
        (["--probe-address", "192.0.2.1:1"], "cannot listen for probes on 192.0.2.1:1"),
    ]:
        words = ["--model", tiny_model, "--address", "127.0.0.1:0", "--log-level", "error", *flags]
        finished = run_command("sketchbatch-serve", *words)
        assert finished.returncode == 1
        assert finished.stderr.startswith("sketchbatch-serve: ")
        assert reason in finished.stderr
        assert finished.stderr.count("\n") == 1


def test_grpcurl_and_its_user_see_the_same(guarded, keys):
    """The command that people try first."""
    grpcurl = shutil.which("grpcurl")
    if not grpcurl:
        pytest.skip("no grpcurl on the PATH")
    own = ["-cacert", keys.folder / "ca.pem", "-cert", keys.folder / "client.pem", "-key", keys.folder / "client.key"]

    def ask(*words: object) -> str:
        finished = subprocess.run(
            [grpcurl, "-max-time", "5", *map(str, words)], capture_output=True, text=True, check=False, timeout=15
        )
        return finished.stdout + finished.stderr

    assert "a bearer token is needed" in ask(*own, guarded.address, "list")
    with_token = [*own, "-H", f"authorization: Bearer {NEW}", guarded.address]
    assert "sketchbatch.v1.ClassifierService" in ask(*with_token, "list")
    assert '"labels"' in ask(*with_token, "sketchbatch.v1.ClassifierService/ListModels")
    assert "Failed to dial" in ask("-insecure", "-H", f"authorization: Bearer {NEW}", guarded.address, "list")


class Http2:
    """A bare HTTP/2 connection in plain text."""

    def __init__(self, address: str) -> None:
        host, port = address.split(":")
        self._socket = socket.create_connection((host, int(port)), 5)
        self._socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))  # settings, none

    def frame(self) -> tuple[int, bytes] | None:
        """The type and content of the next frame; None once the service has closed the connection."""
        try:
            head = self._socket.recv(9, socket.MSG_WAITALL)
            return (head[3], self._socket.recv(int.from_bytes(head[:3]), socket.MSG_WAITALL)) if head else None
        except ConnectionError:
            return None

    def close(self) -> None:
        self._socket.close()


def test_connections_and_what_each_may_hold_are_limited(start_service, tiny_model):
    """One too many is closed at once, an old one is asked to go, and calls and metadata are held to a number."""
    limits = ["--max-connections=2", "--max-calls-per-connection=7", "--max-connection-age-s=2"]
    service = start_service(tiny_model, *limits)
    first, second = Http2(service.address), Http2(service.address)
    kind, content = first.frame()
    settings = dict(struct.iter_unpack(">HI", content))
    assert (kind, settings[3]) == (4, 7)  # SETTINGS_MAX_CONCURRENT_STREAMS: RFC 9113, section 6.5.2
    assert second.frame()
    third = Http2(service.address)
    assert third.frame() is None
    goodbye = b""
    while b"max_age" not in goodbye:
        kind, goodbye = first.frame()
    assert kind == 7  # GOAWAY
    for connection in (first, second, third):
        connection.close()


def test_too_much_metadata_is_refused_before_a_handler_sees_it(tiny_service):
    """16 KiB is gRPC's own limit."""
    with grpc.insecure_channel(tiny_service.address) as channel:
        error = refusal(channel, METHODS[0], (("much", "x" * 17_000),))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_no_answer_tells_of_the_machine(tiny_service, tiny_model):
    """Paths are for the log alone: not in descriptions, nor in rejections."""
    answers = []
    with grpc.insecure_channel(tiny_service.address) as channel:
        for method in METHODS:
            for request in (b"", b"\x0a\x04none", b"\xff\xff"):  # nothing, a name or id, and no message
                call = channel.stream_stream(method)(iter([request]), timeout=10)
                try:
                    answers += list(call)
                except grpc.RpcError as exc:
                    answers.append(exc.details().encode())
                answers += [str(call.initial_metadata()).encode(), str(call.trailing_metadata()).encode()]
    said = b" ".join(answers)
    assert b"bitmaps" in said
    for secret in (str(tiny_model.parent), "Traceback", "site-packages", ".py", str(Path.home())):
        assert secret.encode() not in said, secret
