"""Test which calls and connections a service process with TLS, client certificates, tokens and limits rejects."""

import resource
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import urllib.request
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from polling import wait_until
from process_resources import open_files
from prometheus_client.parser import text_string_to_metric_families
from sketchbatch.openinference.v2 import open_inference_pb2
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc

pytestmark = [pytest.mark.timeout(90), pytest.mark.both_transports]  # several tests start several processes

LIMIT_S = 15  # time limit of calls and connections that return within milliseconds on an idle machine
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
    """Write certificates and a token file to a folder, and make connections with these certificates.

    A service that is started with `flags` requires a client certificate of the authority `ca`, and a token of the token
    file. Another authority has issued the certificate `stranger`, so the service must reject it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca, self.other_ca = trustme.CA(), trustme.CA()
        self.ca.cert_pem.write_to_path(folder / "ca.pem")
        self.ca.cert_pem.write_to_path(folder / "clients.pem")
        self.write("server", self.ca.issue_cert("localhost", "127.0.0.1"))
        self.write("client", self.ca.issue_cert("client@example.org"))
        self.write("stranger", self.other_ca.issue_cert("client@example.org"))
        (folder / "tokens").write_text(f"# the old token and the new one\n{OLD}\n{NEW}\n")
        self.flags = [
            *(f"--tls-cert={folder}/server.pem", f"--tls-key={folder}/server.key"),
            *(f"--tls-client-ca={folder}/clients.pem", f"--token-file={folder}/tokens"),
            "--probe-address=127.0.0.1:0",
        ]

    def write(self, name: str, issued: trustme.LeafCert) -> None:
        """Write NAME.pem and NAME.key; replace each file atomically."""
        parts = {
            "pem": b"".join(blob.bytes() for blob in issued.cert_chain_pems),
            "key": issued.private_key_pem.bytes(),
        }
        for ending, content in parts.items():
            (self.folder / "partial").write_bytes(content)
            (self.folder / "partial").replace(self.folder / f"{name}.{ending}")

    def channel(self, address: str, name: str = "client") -> grpc.Channel:
        """Open a new connection with the certificate `name`, or without a certificate if `name` is empty."""
        own = [(self.folder / f"{name}.{ending}").read_bytes() for ending in ("key", "pem")] if name else []
        credentials = grpc.ssl_channel_credentials((self.folder / "ca.pem").read_bytes(), *own)
        return grpc.secure_channel(address, credentials, [("grpc.use_local_subchannel_pool", 1)])

    def served_certificate(self, address: str) -> bytes:
        """Return the certificate, in DER, that the server presents to a new connection."""
        context = ssl.create_default_context(cafile=self.folder / "ca.pem")
        context.set_alpn_protocols(["h2"])
        host, port = address.split(":")
        with (
            socket.create_connection((host, int(port)), LIMIT_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            return secure.getpeercert(binary_form=True)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Make keys and certificates once for all tests, because making them is slow."""
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def guarded(start_service, tiny_model, keys):
    """Start a service that requires a client certificate and a token."""
    return start_service(tiny_model, *keys.flags)


def bearer(token: str) -> tuple[tuple[str, str]]:
    """Return the metadata of a call with the given token."""
    return (("authorization", f"Bearer {token}"),)


def error_of(channel: grpc.Channel, method: str, metadata=()) -> grpc.RpcError:
    """Return the error that a call receives before the client sends a request or ends its side of the call."""
    returned = threading.Event()
    try:
        with pytest.raises(grpc.RpcError) as caught:
            list(channel.stream_stream(method)(iter(returned.wait, True), metadata=metadata, timeout=LIMIT_S))
    finally:
        returned.set()
    return caught.value


def test_without_a_token_only_health_answers(guarded, keys):
    """Without a valid token, every call except health checks receives UNAUTHENTICATED, before its request arrives.

    This is true even for calls of unknown methods. docs/load-balancing.md states the status that the health check of a
    load balancer receives.
    """
    assert len(METHODS) > 10
    with keys.channel(guarded.address) as channel:
        for method in [*METHODS, "/no.such.Service/Method", "/grpc.health.v1.Health/Checks"]:
            for metadata in ((), bearer("wrong-token-0123456789")):
                error = error_of(channel, method, metadata)
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED, method
        assert "a bearer token is needed" in error_of(channel, METHODS[0]).details()
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest()).status == SERVING
        assert next(health.Watch(health_pb2.HealthCheckRequest(), timeout=LIMIT_S)).status == SERVING
        assert len(health.List(health_pb2.HealthListRequest()).statuses) == 3
        for service in ("liveness", "sketchbatch.v1.ClassifierService"):
            assert health.Check(health_pb2.HealthCheckRequest(service=service)).status == SERVING
        # the health check of an Application Load Balancer of AWS calls a method that no service has
        assert error_of(channel, "/AWS.ALB/healthcheck").code() is grpc.StatusCode.UNAUTHENTICATED


def test_every_token_of_the_file_is_accepted(guarded, keys):
    """A call with any token of the file reaches its method; a call of an unknown method receives UNIMPLEMENTED."""
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
        requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        assert next(reflect(requests, metadata=bearer(NEW))).list_services_response.service
        assert error_of(channel, "/no.such.Service/Method", bearer(NEW)).code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("name", ["", "stranger"])
def test_a_connection_without_a_certificate_of_the_authority_is_rejected(guarded, keys, name):
    """Without a client certificate of the authority, every call receives UNAVAILABLE, even a health check.

    This is true even for calls with a valid token. A connection in plain text is rejected as well.
    """
    with keys.channel(guarded.address, name) as channel:
        assert error_of(channel, METHODS[0], bearer(NEW)).code() is grpc.StatusCode.UNAVAILABLE
        assert error_of(channel, "/grpc.health.v1.Health/Check").code() is grpc.StatusCode.UNAVAILABLE
    with grpc.insecure_channel(guarded.address) as channel:
        assert error_of(channel, METHODS[0], bearer(NEW)).code() is grpc.StatusCode.UNAVAILABLE


def test_the_probe_port_answers_only_health_and_in_plain_text(guarded):
    """The probe port answers health checks in plain text, and no other calls.

    A health check on this port needs no certificate and no token, because a kubelet has neither.
    """
    with grpc.insecure_channel(guarded.probe_address) as channel:
        assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status == SERVING
        for method in METHODS:
            assert error_of(channel, method, bearer(NEW)).code() is grpc.StatusCode.UNIMPLEMENTED


def test_certificates_and_tokens_are_replaced_without_a_restart(start_service, tiny_model, tmp_path):
    """The service uses new certificates and tokens soon after their files have changed, without a restart.

    While a new file is invalid, the last valid file stays in use. Connections stay open while files change.
    """
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
            # the call receives the error of a missing token, so its connection has passed the TLS handshake
            assert error_of(stranger, METHODS[0]).code() is grpc.StatusCode.UNAUTHENTICATED
            assert error_of(late, METHODS[0], bearer(OLD)).code() is grpc.StatusCode.UNAVAILABLE

        def code_with(token: str) -> grpc.StatusCode:
            return stub.ListModels.future(pb.ListModelsRequest(), metadata=bearer(token)).code()

        (tmp_path / "tokens").write_text(NEW)
        # The service polls the token and certificate files at most once per second.
        wait_until(lambda: code_with(OLD) is grpc.StatusCode.UNAUTHENTICATED)
        assert code_with(NEW) is grpc.StatusCode.OK
    code, log = service.stop()
    assert code == 0
    events = [event["message"] for event in log]
    assert events.count("not reloaded, what was read before stays") == 1
    assert events.count("reloaded") == 3
    assert not any(token in str(log) for token in (OLD, NEW))


def test_metrics_report_expiry_and_failed_reloads_of_certificates_and_tokens(start_service, tiny_model, tmp_path):
    """The metrics contain the expiry of the certificates in use, and count changed files that are unusable."""
    keys = Keys(tmp_path)
    first, second, of_client_ca = (datetime(year, 5, 6, 7, 8, 9, tzinfo=UTC) for year in (2041, 2042, 2040))
    keys.write("server", keys.ca.issue_cert("localhost", "127.0.0.1", not_after=first))
    short = keys.ca.issue_cert("client@example.org", not_after=of_client_ca).cert_chain_pems[0].bytes()
    (tmp_path / "clients.pem").write_bytes(keys.ca.cert_pem.bytes() + short)
    service = start_service(tiny_model, *keys.flags, "--metrics-address=127.0.0.1:0")

    def metrics() -> dict[str, float]:
        with urllib.request.urlopen(f"http://{service.metrics_address}/metrics", timeout=LIMIT_S) as response:
            families = text_string_to_metric_families(response.read().decode())
        samples = [sample for family in families for sample in family.samples]
        return {
            " ".join([sample.name, *sorted(sample.labels.values())[1:]]).removeprefix("sketchbatch_"): sample.value
            for sample in samples
            if sample.labels.keys() & {"file", "credentials"}
        }

    def expected(end: datetime, *, certificates: tuple[int, int] = (0, 0), tokens: tuple[int, int] = (0, 0)):
        return {
            "certificate_expiry_seconds tls_cert": end.timestamp(),
            "certificate_expiry_seconds tls_client_ca": of_client_ca.timestamp(),
            "credential_reload_failures_total certificates": certificates[0],
            "credentials_stale certificates": certificates[1],
            "credential_reload_failures_total tokens": tokens[0],
            "credentials_stale tokens": tokens[1],
        }

    assert metrics() == expected(first)
    (tmp_path / "server.pem").write_text("half a certif")
    keys.served_certificate(service.address)
    assert metrics() == expected(first, certificates=(1, 1))
    keys.write("server", keys.ca.issue_cert("localhost", "127.0.0.1", not_after=second))
    keys.served_certificate(service.address)
    assert metrics() == expected(second, certificates=(1, 0))
    (tmp_path / "tokens").write_text("short")
    with keys.channel(service.address) as channel:
        assert error_of(channel, METHODS[0], bearer("unknown-token-012345")).code() is grpc.StatusCode.UNAUTHENTICATED
    assert metrics() == expected(second, certificates=(1, 0), tokens=(1, 1))


def test_every_worker_requires_certificate_and_token(start_service, tiny_model, keys):
    """Each of two workers requires a certificate and a token, and both workers share one probe port."""
    service = start_service(tiny_model, *keys.flags, "--workers", "2")
    for _ in range(10):
        with keys.channel(service.address) as channel:
            assert error_of(channel, METHODS[0]).code() is grpc.StatusCode.UNAUTHENTICATED
        with grpc.insecure_channel(service.probe_address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status == SERVING
    assert service.stop()[0] == 0


@pytest.mark.filterwarnings("ignore:.*TLSVersion.TLSv1_1 is deprecated")
def test_tls_older_than_1_2_is_rejected(guarded, keys):
    """The server rejects TLS 1.1, even if the client allows TLS 1.1."""
    host, port = guarded.address.split(":")
    for version, is_accepted in ((ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)):
        context = ssl.create_default_context(cafile=keys.folder / "ca.pem")
        context.load_cert_chain(keys.folder / "client.pem", keys.folder / "client.key")
        # the client allows every cipher, so that only the server can reject the connection
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.set_alpn_protocols(["h2"])
        context.minimum_version = context.maximum_version = version
        with (
            socket.create_connection((host, int(port)), LIMIT_S) as plain,
            nullcontext() if is_accepted else pytest.raises((ssl.SSLError, ConnectionError)),
        ):
            context.wrap_socket(plain, server_hostname=host).close()


def test_unusable_credentials_stop_the_start_with_one_line(run_command, tiny_model, tmp_path):
    """A service with unusable credentials would be unprotected, so it does not start and prints one line of error."""
    (tmp_path / "tokens").write_text("# no token yet")
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


def test_grpcurl_needs_certificate_and_token(guarded, keys):
    """The output of grpcurl names the missing token, or the failed TLS handshake."""
    grpcurl = shutil.which("grpcurl")
    if not grpcurl:
        pytest.skip("no grpcurl on the PATH")
    tls = ["-cacert", keys.folder / "ca.pem", "-cert", keys.folder / "client.pem", "-key", keys.folder / "client.key"]

    def grpcurl_output(*words: object) -> str:
        finished = subprocess.run(
            [grpcurl, "-max-time", "5", *map(str, words)], capture_output=True, text=True, check=False, timeout=15
        )
        return finished.stdout + finished.stderr

    assert "a bearer token is needed" in grpcurl_output(*tls, guarded.address, "list")
    with_token = [*tls, "-H", f"authorization: Bearer {NEW}", guarded.address]
    assert "sketchbatch.v1.ClassifierService" in grpcurl_output(*with_token, "list")
    assert '"labels"' in grpcurl_output(*with_token, "sketchbatch.v1.ClassifierService/ListModels")
    assert "Failed to dial" in grpcurl_output(
        "-insecure", "-H", f"authorization: Bearer {NEW}", guarded.address, "list"
    )


class Http2:
    """Open an HTTP/2 connection in plain text, and read the frames that the service sends."""

    def __init__(self, address: str) -> None:
        host, port = address.split(":")
        self._socket = socket.create_connection((host, int(port)), LIMIT_S)
        self._stream = self._socket.makefile("rb")
        with suppress(ConnectionError):  # the service may close the connection at once
            preface, empty_settings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", bytes(3) + b"\x04" + bytes(5)
            self._socket.sendall(preface + empty_settings)

    def frame(self) -> tuple[int, bytes] | None:
        """Return the type and the content of the next frame, or None if the service has closed the connection."""
        try:
            head = self._stream.read(9)
            return (head[3], self._stream.read(int.from_bytes(head[:3]))) if head else None
        except ConnectionError:
            return None

    def close(self) -> None:
        self._stream.close()
        self._socket.close()


def test_connections_and_their_calls_are_limited(start_service, tiny_model):
    """The service announces its limit of concurrent calls, and closes a connection beyond its limit of connections."""
    service = start_service(tiny_model, "--max-connections=2", "--max-calls-per-connection=7")
    first, second = Http2(service.address), Http2(service.address)
    kind, content = first.frame()
    settings = dict(struct.iter_unpack(">HI", content))
    # type 4 is SETTINGS, setting 3 is SETTINGS_MAX_CONCURRENT_STREAMS: RFC 9113, section 6.5.2
    assert (kind, settings[3]) == (4, 7)
    assert second.frame()
    third = Http2(service.address)
    assert third.frame() is None
    for connection in (first, second, third):
        connection.close()


def test_missing_file_descriptors_are_logged(start_service, tiny_model):
    """The service logs that its file descriptors run out, and, when clients have left, that there are enough again.

    Meanwhile new clients cannot be served, because the kernel accepts their connections but the service cannot.
    """
    service = start_service(tiny_model)
    pid = service.process.pid
    limit = open_files(pid).total() + 10
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))
    host, port = service.address.split(":")
    connections = [socket.create_connection((host, int(port)), LIMIT_S) for _ in range(40)]
    few = service.wait_for("few file descriptors left: without any, new clients wait in vain")
    assert (few["level"], few["limit"]) == ("warning", limit)
    assert few["open"] >= 0.9 * limit
    for connection in connections:
        connection.close()
    enough = service.wait_for("enough file descriptors again")
    assert enough["open"] < few["open"]
    with grpc.insecure_channel(service.address) as channel:
        assert (
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=LIMIT_S).status
            == SERVING
        )


def test_a_reached_limit_of_connections_is_logged_and_visible(start_service, tiny_model):
    """The service logs that the limit of connections is reached, and /metrics has the connections and their limit."""
    service = start_service(tiny_model, "--max-connections=2", "--metrics-address=127.0.0.1:0")
    first, second = Http2(service.address), Http2(service.address)
    reached = service.wait_for("connection limit reached: further connections are closed")
    assert (reached["level"], reached["open"], reached["limit"]) == ("warning", 2, 2)
    with urllib.request.urlopen(f"http://{service.metrics_address}/metrics", timeout=LIMIT_S) as response:
        text = response.read().decode()
    assert 'sketchbatch_connections{worker="1"} 2.0' in text
    assert 'sketchbatch_connection_limit{worker="1"} 2.0' in text
    first.close()
    second.close()
    assert service.wait_for("connections below their limit again")["open"] < 2


def test_an_old_connection_receives_goaway(start_service, tiny_model):
    """When a connection reaches the age `--max-connection-age-s`, the service sends GOAWAY with the reason max_age."""
    connection = Http2(start_service(tiny_model, "--max-connection-age-s=1").address)
    kind, content = connection.frame()
    while b"max_age" not in content:
        kind, content = connection.frame()
    assert kind == 7  # frame type 7 is GOAWAY
    connection.close()


def test_large_metadata_is_rejected_before_the_handler_runs(tiny_service):
    """Metadata beyond 16 KiB, gRPC's own limit, ends the call with RESOURCE_EXHAUSTED before the handler runs."""
    with grpc.insecure_channel(tiny_service.address) as channel:
        error = error_of(channel, METHODS[0], (("much", "x" * 17_000),))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_no_response_reveals_paths_of_the_machine(tiny_service, tiny_model):
    """Responses, errors and metadata contain no path, no file name and no traceback."""
    texts = []
    with grpc.insecure_channel(tiny_service.address) as channel:
        for method in METHODS:
            # An empty message; a message whose field 1, a name or an id, is "none"; bytes that are no message.
            for request in (b"", b"\x0a\x04none", b"\xff\xff"):
                call = channel.stream_stream(method)(iter([request]), timeout=LIMIT_S)
                try:
                    texts += list(call)
                except grpc.RpcError as exc:
                    texts.append(exc.details().encode())
                texts += [str(call.initial_metadata()).encode(), str(call.trailing_metadata()).encode()]
    text = b" ".join(texts)
    assert b"bitmaps" in text
    for secret in (str(tiny_model.parent), "Traceback", "site-packages", ".py", str(Path.home())):
        assert secret.encode() not in text, secret
