"""Runs in which everything that comes from outside would harm a page that believes it."""

import asyncio

MARKUP = (
    "<script>document.title='taken'</script><img src=/stolen onerror=\"document.title='taken'\"><svg onload=alert(1)>"
    "<iframe src=//evil.example></iframe><base href=//evil.example/><form action=/stolen><a href='javascript:alert(1)'>press</a>"
)
# Terminal codes, controls of C0 and C1, what reorders text, what has no width, separators, tags, and letters without ink.
UNSEEN = "\x00\x07\x1b[31mred\x1b[0m\x7f\x85\u200b\u200d\u200e\u202etxt.exe\u202c\u2066\u2069\u2028\u2029\ufeff\u00ad\u3164\U000e0041"
HOSTILE = f"{MARKUP} {UNSEEN} {{{{7*7}}}} ${{7*7}} javascript:alert(1) https://evil.example/?q=1 [a](javascript:alert(1))"
ID = f"<img src=/stolen onerror=alert(1)> {UNSEEN} </a><script>"  # filters take names of 256 characters
LINE = "x" * 1_000_000
LINES = "\n".join(f"line {number} {UNSEEN}" for number in range(10_000))


async def hostile_everywhere(manager, goes_on):
    """A training with a rollout of two groups; each id, name and text that somebody else chooses is hostile. The second group has megabytes."""
    about = {"agent": HOSTILE, "model": HOSTILE, "backend": HOSTILE, "name": HOSTILE, "tags": [HOSTILE]}
    tools = [{"name": HOSTILE, "description": HOSTILE, "parameters": {HOSTILE: HOSTILE}}]
    settings = {HOSTILE: HOSTILE, "task": HOSTILE}
    async with manager.run(
        chains=4, groups=2, tools=tools, settings=settings, sampling={HOSTILE: HOSTILE}, **about
    ) as run:
        chains = [_chain(run, number, goes_on) for number in range(4)]
        await asyncio.gather(*chains, return_exceptions=True)
        run.error(HOSTILE, HOSTILE)


async def _chain(run, number, goes_on):
    messages = [{"role": "system", "content": HOSTILE}, {"role": "user", "content": HOSTILE}]
    with run.chain(
        messages,
        chain_id=f"{number} {ID}",
        group_id=f"{number // 2} {ID}",
        tools=[HOSTILE, "long"],
        reference=HOSTILE,
        row={HOSTILE: HOSTILE},
    ) as chain:
        with chain.generation() as generation:
            for at in range(0, len(HOSTILE), 7):
                generation.chunk(HOSTILE[at : at + 7], token_ids=[at], logprobs=[-0.5])
        with chain.tool_call(HOSTILE, {HOSTILE: HOSTILE, "deep": [{HOSTILE: [HOSTILE]}]}) as call:
            call.observation(HOSTILE)
        with chain.generation() as generation:
            generation.chunk(f"<think>{HOSTILE}</think><tool_call>{HOSTILE}</tool_call>")
        if number >= 2:
            with chain.tool_call("long", HOSTILE) as call:
                call.observation(LINE)
            with chain.generation() as generation:
                generation.chunk(LINE)
            with chain.tool_call("long", {"text": LINE}) as call:
                call.observation(LINES)
        else:
            with chain.tool_call(f"{HOSTILE} fails", HOSTILE) as call:
                call.observation(HOSTILE, "error")
        with chain.generation() as generation:
            generation.chunk(HOSTILE)
            await goes_on.wait()
        if number == 3:
            raise RuntimeError(HOSTILE)
        chain.reward(number / 4, {HOSTILE[:200]: 1.0, UNSEEN: 0.5})
        chain.end("answered", final_response=HOSTILE)
