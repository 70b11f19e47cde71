"""The bytes between KEDA and the external scaler, written by hand from the contract's field numbers; and what a trigger
says."""

import math
import struct
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvgauge.cluster.keda_messages import (
    MalformedError,
    Reference,
    as_double,
    read_metrics_request,
    read_reference,
    write_activity,
    write_spec,
    write_value,
)
from kvgauge.cluster.keda_triggers import MAX_KEYS, read_trigger
from kvgauge.complaints import InputError
from tests.cluster.keda_client import LLAMA


def varint(number: int) -> bytes:
    written = b""
    while number > 0x7F:
        written += bytes([number & 0x7F | 0x80])
        number >>= 7
    return written + bytes([number])


def text(field: int, value: str | bytes) -> bytes:
    encoded = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(encoded)) + encoded


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def double(field: int, value: float) -> bytes:
    return varint(field << 3 | 1) + struct.pack("<d", value)


def test_a_reference_is_read_from_bytes_by_the_contract() -> None:
    entries = text(3, text(1, "workload") + text(2, "deployment/llama")) + text(3, text(1, "target") + text(2, "1"))
    told = read_reference(text(1, "scaled") + text(2, "llm") + entries)
    assert told == Reference("scaled", "llm", {"workload": "deployment/llama", "target": "1"})


def test_a_request_is_read_from_bytes_by_the_contract() -> None:
    told = read_metrics_request(text(1, text(1, "scaled") + text(2, "llm")) + text(2, "kvgauge_load_ratio"))
    assert told.reference == Reference("scaled", "llm", {})
    assert told.metric_name == "kvgauge_load_ratio"


def test_answers_are_written_by_the_contract() -> None:
    assert write_activity(True) == number(1, 1)
    assert write_activity(False) == b""
    assert write_spec("m", 1000) == text(1, text(1, "m") + number(2, 1))
    assert write_spec("m", 850) == text(1, text(1, "m") + number(2, 1) + double(3, 0.85))
    assert write_value("m", 4000) == text(1, text(1, "m") + number(2, 4))
    assert write_value("m", 4100) == text(1, text(1, "m") + number(2, 5) + double(3, 4.1))
    assert write_value("m", 0) == text(1, text(1, "m"))


def test_fields_of_later_contracts_are_passed_over() -> None:
    assert read_reference(text(1, "a") + text(2, "b") + text(99, "new") + number(98, 7)) == Reference("a", "b", {})


@pytest.mark.parametrize("body", [b"\xff", text(1, b"\xff\xfe"), varint(1 << 3 | 2) + varint(200) + b"short"])
def test_bytes_that_are_no_message_are_told_so(body: bytes) -> None:
    with pytest.raises(MalformedError, match=r"^the message is no ScaledObjectRef$"):
        read_reference(body)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_malformed(body: bytes) -> None:
    for read in (read_reference, read_metrics_request):
        with suppress(MalformedError):
            read(body)


@given(st.integers(0, 10**12))
@example(1001)
def test_keda_cuts_no_thousandth_off(milli: int) -> None:
    assert int(as_double(milli) * 1000) == milli
    assert math.isclose(as_double(milli), milli / 1000, rel_tol=1e-15)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "workload: must be given in the trigger's metadata, such as deployment/NAME; KEDA does not tell it"),
        ({"workload": " "}, "workload: must be given"),
        ({"workload": "daemonset/x"}, "workload: should be NAME or one of deployment/NAME, statefulset/NAME, leader"),
        ({"workload": "deployment/"}, "workload: should be NAME or one of"),
        ({"workload": "/x"}, "workload: should be NAME or one of"),
        ({"workload": "deployment/a/b"}, "workload: should be NAME or one of"),
        ({"workload": "deployment/UPPER"}, "got 'deployment/UPPER'"),
        ({"workload": "x" * 300}, "got '" + "x" * 100 + "'"),
        ({"workload": "x", "metric": "up"}, "metric: should be one of kvgauge_required_replicas, kvgauge_load_ratio"),
        ({"workload": "x", "target": "0"}, "target: should be above 0"),
        ({"workload": "x", "target": "0.000"}, "target: should be above 0"),
        ({"workload": "x", "target": "-1"}, "target: should be a number such as 0.85, got '-1'"),
        ({"workload": "x", "target": "nan"}, "target: should be a number"),
        ({"workload": "x", "target": "1e9"}, "target: should be a number"),
        ({"workload": "x", "target": "0.0001"}, "target: should be a number"),
        ({"workload": "x", "target": "٣"}, "target: should be a number"),
        ({"workload": "x", "target": "1" * 5000}, "target: should be a number"),
        ({"workload": "x", "activation": "yes"}, "activation: should be a number"),
        ({"workload": "x", "activationThreshold": "1"}, "no such key in the trigger's metadata, is it activation?"),
        ({"workload": "x", "targetValue": "1"}, "targetValue: no such key in the trigger's metadata, is it target?"),
        ({"Workload": "x"}, "Workload: no such key in the trigger's metadata, is it workload?"),
        ({f"k{n}": "" for n in range(MAX_KEYS + 1)}, "scalerMetadata: 65 keys, more than 64"),
    ],
)
def test_what_is_wrong_with_a_trigger_names_the_key(metadata: dict[str, str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_trigger(Reference("so", "llm", metadata))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("namespace", ["", "a/b", "A", "x" * 300])
def test_a_namespace_is_needed(namespace: str) -> None:
    with pytest.raises(InputError, match=r"^namespace: should be the ScaledObject's"):
        read_trigger(Reference("so", namespace, {"workload": "x"}))


def test_kedas_own_keys_and_strange_ones_are_passed_over() -> None:
    own = (
        "scalerAddress",
        "enableTLS",
        "unsafeSsl",
        "caCert",
        "tlsClientCert",
        "tlsClientKey",
        "tlsCertFile",
        "timeout",
    )
    strange = {"\x00": "\x00", "k" * 5000: "v" * 5000, "passwordFromEnv": "secret"}
    told = read_trigger(Reference("so", "llm", {**dict.fromkeys(own, "x"), **strange, "workload": "llama"}))
    assert [key.resource for key in told.keys] == ["deployments", "statefulsets", "leaderworkersets"]
    assert (told.metric, told.target_milli, told.activation_milli) == ("kvgauge_required_replicas", 1000, 0)


@pytest.mark.parametrize("name", ["deployment/llama", "Deployment/llama", "deployments/llama", " deployment/llama "])
def test_a_kind_may_be_written_as_people_do(name: str) -> None:
    assert read_trigger(Reference("so", "llm", {"workload": name})).keys == (LLAMA,)


@given(st.dictionaries(st.sampled_from(["workload", "metric", "target", "activation", "x"]), st.text(max_size=30)))
def test_any_metadata_are_a_trigger_or_one_line(metadata: dict[str, str]) -> None:
    message = "one line"
    try:
        told = read_trigger(Reference("so", "llm", metadata))
    except InputError as error:
        message = str(error)
    else:
        assert told.target_milli > 0
        assert told.activation_milli >= 0
    assert len(message.splitlines()) == 1
