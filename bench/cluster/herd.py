"""2,000 fake sidecars, each on an address of its own, in a process of their own: `python -m bench.cluster.herd`.

Every one answers any request with the same advice, that of a real sidecar on a simulated engine under load.
"""

import asyncio
import random
from dataclasses import replace

from pydantic import TypeAdapter

from kvgauge.advise import History, advise
from kvgauge.assess import EngineFlags, Memo, assess
from kvgauge.cluster.records import Pod, PodKey, Workload, WorkloadKey
from kvgauge.cluster.store import Store
from kvgauge.publish.views import AdviceView, advice_view
from kvgauge.simulate.engine import PagedEngine
from kvgauge.simulate.reading import observation_of, reading_of
from kvgauge.simulate.scenario import load_scenario
from kvgauge.simulate.spec import Request

PODS, WORKLOADS = 2000, 50


def real_advice() -> bytes:
    """The JSON that `/v1/advice` answers after ten minutes of load."""
    spec = load_scenario("llm-d").spec()
    engine, history, memo, draw = PagedEngine(spec), History(), Memo(), random.Random(1)
    arrival, told = 0.0, b""
    for second in range(1, 601):
        while arrival < second:
            engine.submit(Request(arrival, draw.randint(200, 3000), draw.randint(50, 600)))
            arrival += draw.expovariate(1.0)
        engine.advance(second)
        observation = observation_of(reading_of(engine.state(), spec, "m"), float(second))
        history.remember(observation)
        assessment = replace(assess(observation, EngineFlags(tp=1), memo), step_cost=spec.step_cost)
        advice = advise(assessment, history, max_num_seqs=spec.max_num_seqs, slo_ttft_seconds=3, slo_tpot_seconds=0.1)
        told = TypeAdapter(AdviceView).dump_json(advice_view(advice)) if second == 600 else b""
    return told


def stocked(port: int) -> Store:
    """Pods whose sidecars are the fakes on that port."""
    store = Store()
    keys = [WorkloadKey("llm", "apps", "deployments", f"model-{number}") for number in range(WORKLOADS)]
    for key in keys:
        labels = {"app": key.name}
        store.put_workload(
            Workload(key, "Deployment", "apps/v1", key.name, labels, PODS // WORKLOADS, PODS // WORKLOADS)
        )
    for number in range(PODS):
        key = keys[number % WORKLOADS]
        # A quarter of them is what a list is about.
        labels = {"app": key.name, "quarter": str(number % 4)}
        address = f"http://127.1.{number // 250}.{number % 250 + 1}:{port}"
        pod = PodKey("llm", f"{key.name}-{number}")
        store.put_pod(Pod(pod, pod.name, labels, {}, key, address, None, "Running", True, False, 0.0))
    return store


class _Answering(asyncio.Protocol):
    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        # Requests without a body, one at a time: each ends with an empty line.
        for _ in range(data.count(b"\r\n\r\n")):
            self._transport.write(self._answer)


async def main() -> None:
    body = real_advice()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Answering(head + body), "0.0.0.0", 0, backlog=4096)  # noqa: S104
    print(server.sockets[0].getsockname()[1], len(body), flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
