"""Measurements for Prometheus: vLLM's names under our prefix, so that its dashboards need one edit."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from llmos_cli.serve.link import Link

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
LABELS = ("model_name",)


class Meter:
    def __init__(self, name: str, link: Link) -> None:
        self.registry = CollectorRegistry()
        self.name, self.link = name, link
        self.ttft = self.seconds("time_to_first_token_seconds", "From a request's arrival to its first token.")
        self.gap = self.seconds("inter_token_latency_seconds", "Between two tokens of one choice.")
        self.whole = self.seconds("e2e_request_latency_seconds", "From a request's arrival to its end.")
        self.read = self.counter("prompt_tokens", "Tokens of prompts, once for each choice.")
        self.written = self.counter("generation_tokens", "Tokens generated.")
        self.predicted = self.counter("predictions", "Rows classified.")
        self.ended = Counter(
            "llmos:request_success", "Choices ended, by reason.", (*LABELS, "finished_reason"), registry=self.registry
        )
        self.gauge("num_requests_running", "Requests being decoded.", lambda: link.running)
        self.gauge("num_requests_waiting", "Requests waiting for a slot.", lambda: link.waiting)
        self.gauge("kv_cache_usage_perc", "Share of the cache that is used, 0 to 1.", lambda: link.usage)

    def seconds(self, name: str, text: str) -> Histogram:
        return Histogram(f"llmos:{name}", text, LABELS, registry=self.registry, buckets=SECONDS).labels(self.name)

    def counter(self, name: str, text: str) -> Counter:
        return Counter(f"llmos:{name}", text, LABELS, registry=self.registry).labels(self.name)

    def gauge(self, name: str, text: str, value: object) -> None:
        Gauge(f"llmos:{name}", text, LABELS, registry=self.registry).labels(self.name).set_function(value)  # type: ignore[arg-type]

    def finished(self, reason: str, count: int = 1) -> None:
        if count:
            self.ended.labels(self.name, reason).inc(count)

    def watch(self) -> Watch:
        return Watch(self)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class Watch:
    """Times one request's choices."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.start = time.perf_counter()
        self.last: dict[int, tuple[float, int]] = {}

    def spoke(self, choice: int, generated: int) -> None:
        """`choice` has just said something; it has `generated` tokens by now."""
        now = time.perf_counter()
        before, known = self.last.get(choice, (self.start, 0))
        self.last[choice] = (now, generated)
        self.meter.written.inc(generated - known)
        if known == 0 and generated:
            self.meter.ttft.observe(now - self.start)
        elif generated > known:
            self.meter.gap.observe((now - before) / (generated - known))

    def ended(self, reason: str) -> None:
        self.meter.whole.observe(time.perf_counter() - self.start)
        self.meter.finished(reason)
