"""A server that speaks OpenAI and backends on it, each closed after its test."""

import asyncio

import pytest

from rollcast.models.openai import OpenAIBackend
from rollcast.models.tiny.backend import CHECKPOINT
from rollcast.testing import OpenAIServer


@pytest.fixture
async def serve():
    """Start a server on this test's event loop."""
    servers = []

    async def started(script="The answer is 4.", **options):
        server = await OpenAIServer(script, **options).start()
        servers.append(server)
        return server

    yield started
    for server in servers:
        await server.stop()


@pytest.fixture
async def connect():
    """Make a backend on a server; its constructor blocks, so it runs on a thread."""
    backends = []

    async def made(server, model="scripted", **options):
        options = {"base_url": server.url, "tokenizer": CHECKPOINT, **options}
        backend = await asyncio.to_thread(OpenAIBackend, model, **options)
        backends.append(backend)
        return backend

    yield made
    for backend in backends:
        await backend.close()
