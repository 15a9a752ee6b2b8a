"""What the gateway counts, as Prometheus reads it."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics"]

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """The metrics of one gateway, on a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def made(kind, name, doc, labels=(), **options):
            return kind(f"optscale_{name}", doc, labels, registry=registry, **options)

        by = ("model", "policy")
        self.requests = made(Counter, "requests", "Requests by their status.", ("model", "status"))
        self.stops = made(Counter, "stops", "Answers by stop reason.", (*by, "reason"))
        self.tokens = made(Counter, "tokens", "Tokens by what they went to.", ("model", "kind"))
        self.samples = made(Counter, "samples", "Completions that answers rest on.", by)
        self.saved = made(Counter, "saved_samples", "Completions below the policy's cap.", by)
        self.seconds = made(Histogram, "seconds", "Time to an answer.", by, buckets=_SECONDS)
        tenths = [i / 10 for i in range(1, 11)]
        self.confidence = made(Histogram, "confidence", "P(right) claimed.", by, buckets=tenths)
        self.in_flight = made(Gauge, "in_flight", "Requests at work.")
        self.queued = made(Gauge, "queued", "Requests that wait.")
        self.share = made(Gauge, "budget_share", "Share of its budget that a request gets.")
        self.share.set(1)

    def text(self) -> bytes:
        """All of them in Prometheus' own form."""
        return generate_latest(self.registry)
