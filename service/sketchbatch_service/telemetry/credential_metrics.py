"""Define the metrics about certificate and token files."""

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ..transport.tls import ServerTls
from ..transport.tokens import TokenFile


def credential_metrics(tls: ServerTls | None, tokens: TokenFile | None) -> list[Metric]:
    """Return the metrics of the files that are set; the samples have no label `worker` yet."""
    text = "When the first certificate of the file in use expires, in seconds since the epoch."
    expiry = GaugeMetricFamily("sketchbatch_certificate_expiry_seconds", text, labels=["file"])
    for file, seconds in tls.expiries.items() if tls else ():
        expiry.add_metric([file], seconds)
    text = "Failed attempts to read changed files: certificates or tokens."
    failures = CounterMetricFamily("sketchbatch_credential_reload_failures", text, labels=["credentials"])
    text = "1 = the last attempt to read the changed files failed; what was read before stays in use."
    stale = GaugeMetricFamily("sketchbatch_credentials_stale", text, labels=["credentials"])
    for name, source in (("certificates", tls), ("tokens", tokens)):
        if source:
            failures.add_metric([name], source.reload_failures)
            stale.add_metric([name], source.is_stale)
    return [expiry, failures, stale]
