"""Metrics: on a socket that only its owner may open, in a format that Prometheus reads, of all services together."""

from __future__ import annotations

import stat
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from sendense_rpc.metrics import count_call, gather_metrics, read_metrics, serving_metrics


async def test_a_service_answers_with_its_metrics_and_says_when_half_is_missing(short_tmp: Path) -> None:
    async def fail() -> None:
        raise OSError("the catalogue is away")

    count_call("/sendense.test.v1.Service/Do", "OK", "", 0.01)
    socket = short_tmp / "one.metrics"
    async with serving_metrics(socket, "one", fail):
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600
        text = await read_metrics(socket)
    assert 'sendense_metrics_complete{service="one"} 0' in text
    assert 'method="sendense.test.v1.Service/Do"' in text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert {sample.labels["service"] for sample in samples} == {"one"}


async def test_all_services_of_a_node_are_one_document_and_a_dead_one_shows(short_tmp: Path) -> None:
    (short_tmp / "dead.metrics").touch()
    async with (
        serving_metrics(short_tmp / "one.metrics", "one", None),
        serving_metrics(short_tmp / "two.metrics", "two", None),
    ):
        text = await gather_metrics(short_tmp)
    # The parser refuses a family that comes twice.
    families = {family.name: family for family in text_string_to_metric_families(text)}
    up = {sample.labels["service"]: sample.value for sample in families["sendense_up"].samples}
    assert up == {"dead": 0, "one": 1, "two": 1}
    assert text.count("# TYPE sendense_calls_total") == 1
