"""The line of verl's configuration: workers in Ray's processes are watched, and publish to a hub."""

import asyncio

import pytest
import ray
import transformers
from verl.experimental.agent_loop import AgentLoopManager
from verl.utils.import_utils import load_class_from_fqn

from rollcast import StreamingManager, WebSocketStreamingServer
from rollcast.attaching.verl import WatchedAgentLoopManager
from rollcast.fleet import Hub
from rollcast.serve import ServerSettings, Token
from rollcast.testing import capture_events

from . import parts
from .parts import Answering, make_batch, make_config
from .test_worker import assert_same, plain

pytestmark = [pytest.mark.timeout(550), pytest.mark.filterwarnings("ignore")]  # as in test_worker

SUMS = ((1, 2), (1, 2), (30, 4), (13, 4))


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=8, include_dashboard=False, configure_logging=False)
    ray.cloudpickle.register_pickle_by_value(parts)  # the workers have no tests
    yield
    ray.cloudpickle.unregister_pickle_by_value(parts)
    ray.shutdown()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return make_config(tmp_path_factory.mktemp("verl"), **{"trainer.use_v1": False})


def client(config):
    return Answering(config, transformers.AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path))


async def wait_for(holds):
    async with asyncio.timeout(120):
        while not holds():
            await asyncio.sleep(0.05)


async def test_a_line_of_configuration_shows_every_worker(cluster, config, monkeypatch):
    """At the hub the workers are two sources of one run for the step; the trainer gets the same batch."""
    plain_manager = await AgentLoopManager.create(config=config, llm_client=client(config))
    expected = await plain_manager.generate_sequences(make_batch("tool_agent", sums=SUMS))
    settings = ServerSettings(tokens=(Token("a-secret", ("read", "control", "publish")),))
    seen = StreamingManager(publish=False)
    async with Hub(WebSocketStreamingServer(port=0, settings=settings), seen) as hub:
        monkeypatch.setenv("ROLLCAST_HUB", hub.server.url)
        monkeypatch.setenv("ROLLCAST_HUB_TOKEN", "a-secret")
        with capture_events(seen) as capture:
            found = load_class_from_fqn("rollcast.attaching.verl.WatchedAgentLoopManager", "AgentLoopManager")
            manager = await found.create(config=config, llm_client=client(config))
            assert isinstance(manager, AgentLoopManager)
            result = await manager.generate_sequences(make_batch("tool_agent", sums=SUMS))
            await wait_for(lambda: len(capture.of("run_end")) == 2)
        capture.check()
    assert_same(plain(expected), plain(result))
    assert len({event.source for event in capture.of("run_start")}) == 2
    assert len({event.run_id for event in capture.events}) == 1
    assert len({event.chain_id for event in capture.of("chain_start")}) == len(SUMS)
    assert len(capture.of("tool_call_end")) == len(SUMS)
    ids = [chunk.data["token_ids"] for chunk in capture.of("llm_generation_chunk")]
    assert sum(map(len, ids)) == int(result.batch["response_mask"].sum())


def tensor_batch(loop, step):
    """The batch of the trainer's version 1, which repeats prompts itself."""
    from tensordict import NonTensorData, NonTensorStack, TensorDict

    given = make_batch(loop, sums=((1, 2), (30, 4))).non_tensor_batch
    fields = {
        name: NonTensorStack.from_list([NonTensorData(value) for value in values])
        for name, values in given.items()
    }
    fields["global_steps"] = NonTensorData(step)
    return TensorDict(fields, batch_size=[2])


async def test_the_trainer_with_a_transfer_queue_is_watched_too(cluster, tmp_path, monkeypatch):
    """Its workers answer later, through the queue; the run of a step ends when its last prompt is done."""
    import transfer_queue as tq

    config = make_config(
        tmp_path,
        **{
            "trainer.use_v1": True,
            "transfer_queue.enable": True,
            "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
            "actor_rollout_ref.rollout.n": 2,
        },
    )
    tq.init(config.transfer_queue)
    settings = ServerSettings(tokens=(Token("a-secret", ("read", "control", "publish")),))
    seen = StreamingManager(publish=False)
    async with Hub(WebSocketStreamingServer(port=0, settings=settings), seen) as hub:
        monkeypatch.setenv("ROLLCAST_HUB", hub.server.url)
        monkeypatch.setenv("ROLLCAST_HUB_TOKEN", "a-secret")
        with capture_events(seen) as capture:
            manager = await WatchedAgentLoopManager.create(config=config, llm_client=client(config))
            assert type(manager).__mro__[1].__name__ == "AgentLoopManagerTQ"
            manager.generate_sequences(tensor_batch("tool_agent", 7))
            await wait_for(lambda: len(capture.of("run_end")) == 2)
            stored = tq.kv_list(partition_id="train")
        capture.check()
    tq.close()
    assert len(capture.of("chain_end")) == 4
    assert sorted(start.data["index"] for start in capture.of("chain_start")) == [0, 0, 1, 1]
    assert {run.data["train_step"] for run in capture.of("run_start")} == {7}
    assert len([key for key in stored["train"] if key.endswith("_0")]) >= 4
