"""Runs that are hard to show: very many chains, very long ones, several steps at once, and runs that lack what others have.

Each takes a `StagedRuns`. Chains that are to stay open wait for `stage.goes_on`.
"""

import asyncio
import time

from rollcast import StreamEvent, StreamEventType

LONG_NAME = "a-tool-whose-name-does-not-end-" * 6
RIGHT_TO_LEFT = "مرحبا بالعالم، هذا سؤال: كم عدد الكتب؟"


def answer(chain, text, reward=None, *, logprob=-0.1, ids=True):
    """One turn that answers, and the end of the chain."""
    with chain.generation() as generation:
        for number, word in enumerate(text.split(" ")):
            more = {"token_ids": [number], "logprobs": [logprob]} if ids else {}
            generation.chunk(word if number == 0 else f" {word}", **more)
    if reward is not None:
        chain.reward(reward)
    chain.end("answered", final_response=text)


def guess(chain, number, result, logprob, *, tool="guess", **of_generation):
    """One turn that calls a tool."""
    with chain.generation(**of_generation) as generation:
        for text, id_, lp in (
            (f"{tool} ", 5, -0.01),
            (str(number), 100 + number, logprob),
            (".", 22, -0.001),
        ):
            generation.chunk(text, token_ids=[id_], logprobs=[lp])
    with chain.tool_call(tool, {"number": number}) as call:
        if result == "error":
            call.observation("there is no such number", "error")
        else:
            call.observation(result)


async def many(stage, chains=2_000, group=8):
    """`chains` chains in groups; a third of them goes on: generating, in a tool, between turns, or waiting for a reward."""
    async with stage.manager.run(
        chains=chains, groups=chains // group, agent="many", model="staged", policy_version=3
    ) as run:
        await asyncio.gather(*(_one_of_many(stage, run, number, group) for number in range(chains)))


async def _one_of_many(stage, run, number, group):
    question = number // group
    await asyncio.sleep(number / 1_000)  # so many at once would be a gap for those who watch
    messages = [{"role": "user", "content": f"Question {question}: how many?"}]
    with run.chain(
        messages, group_id=f"group_{question}", index=number % group, reference=question % 20
    ) as chain:
        if number % 50 == 7:
            chain.end("error")
            return
        guess(chain, number % 16, "lower" if number % 3 else "higher", -0.1 * (number % 8))
        kind = number % 12
        if kind < 4:
            if kind == 0:
                with chain.generation() as generation:
                    generation.chunk("Well, ", token_ids=[7], logprobs=[-0.2])
                    await stage.goes_on.wait()
            elif kind == 1:
                with chain.tool_call("search", {"query": f"books about {number}"}) as call:
                    await stage.goes_on.wait()
                    call.observation("none")
            else:
                await stage.goes_on.wait()
        answer(
            chain,
            "twelve" if kind % 2 else "I give up",
            [0.0, 1.0, 0.25, 0.5][(number * 7 + question) % 4] if question % 9 else 1.0,
        )


async def long_chain(stage, turns=300, tokens_a_turn=213):
    """A chain of many turns and tokens, whose last turn waits."""
    async with stage.manager.run(chains=1, groups=1, agent="long", model="staged") as run:
        with run.chain(
            [{"role": "user", "content": "Write a long book, and look things up."}], group_id="group_0"
        ) as chain:
            for turn in range(1, turns + 1):
                with chain.generation() as generation:
                    for number in range(tokens_a_turn):
                        generation.chunk(
                            f"word{number} ",
                            token_ids=[number],
                            logprobs=[-2.0 if number % 40 == 13 else -0.01],
                        )
                    if turn == turns:
                        await stage.goes_on.wait()
                if turn < turns:
                    with chain.tool_call("look_up", {"page": turn}) as call:
                        call.observation(f"page {turn} of the book")
                await asyncio.sleep(0)
            chain.reward(0.5)
            chain.end("answered", final_response="The end.")


async def large_group(stage, chains=64, turns=6):
    """A group of many chains, of which some still go on."""
    async with stage.manager.run(
        chains=chains, groups=1, agent="large", model="staged", policy_version=5
    ) as run:
        await asyncio.gather(*(_one_of_large(stage, run, number, turns) for number in range(chains)))


async def _one_of_large(stage, run, number, turns):
    messages = [{"role": "user", "content": "I think of a number from 1 to 15. Find it."}]
    with run.chain(messages, group_id="group_0", index=number, reference=11) as chain:
        own = 2 + number % (turns - 1)
        for turn in range(own):
            tool = "search" if turn == 2 and number % 5 == 1 else "guess"
            chosen = 8 if turn == 0 else 9 + (number * 3 + turn) % 6
            result = "error" if number % 11 == 4 and turn == 1 else "higher" if chosen < 11 else "lower"
            guess(chain, chosen, result, -0.05 if turn == 0 else -0.3 * (1 + number % 5), tool=tool)
            await asyncio.sleep(0)
        if number % 8 == 3:
            with chain.generation() as generation:
                generation.chunk("Let me think: ", token_ids=[7], logprobs=[-0.2])
                await stage.goes_on.wait()
        if number % 16 == 5:
            with chain.tool_call("search", {"query": "numbers"}) as call:
                await stage.goes_on.wait()
                call.observation("none")
        answer(chain, "It is 11." if number % 3 else "I give up.", 1.0 if number % 3 else 0.0)


async def steps_in_flight(stage, steps=(47, 48, 49), groups=4, group=4):
    """A training whose rollouts of three steps go on at once, as with an asynchronous trainer."""
    manager = stage.manager
    async with manager.run(
        chains=0, groups=0, agent="guess", model="staged", name="asynchronous"
    ) as training:
        for step in range(1, steps[0]):
            metrics = {
                "mean_reward": 0.3 + 0.01 * step,
                "success": 0.2 + 0.012 * step,
                "entropy": 1.0 / step,
                "tokens_per_s": 900.0 + step,
            }
            data = {"train_step": step, "policy_version": step, "metrics": metrics}
            manager.emit(
                StreamEvent(StreamEventType.TRAIN_STEP, "", time.time(), data, run_id=training.run_id)
            )
        await asyncio.gather(
            *(
                _rollout(stage, training.run_id, step, place, groups, group)
                for place, step in enumerate(steps)
            )
        )


async def _rollout(stage, parent, step, place, groups, group):
    async with stage.manager.run(
        chains=groups * group, groups=groups, agent="guess", model="staged", parent_run_id=parent,
        train_step=step, split="train", policy_version=step - 2,
    ) as run:  # fmt: skip
        await asyncio.gather(
            *(_one_in_flight(stage, run, number, group, place) for number in range(groups * group))
        )


async def _one_in_flight(stage, run, number, group, place):
    messages = [{"role": "user", "content": f"Question {number // group}"}]
    with run.chain(
        messages, group_id=f"group_{number // group}", index=number % group, reference=number // group
    ) as chain:
        guess(chain, number % 16, "higher", -0.4)
        if number % 4 < place * 2:
            await stage.goes_on.wait()
        answer(chain, "done", float(number % 2))


async def lacking(stage, *, rewards=True, groups=True, ids=True, chains=6):
    """A run without rewards, without groups, or without token ids."""
    async with stage.manager.run(chains=chains, groups=1, agent="lacking", model="staged") as run:
        for number in range(chains):
            with run.chain(
                [{"role": "user", "content": "How many?"}], group_id="group_0" if groups else None
            ) as chain:
                answer(chain, f"There are {number}.", number / chains if rewards else None, ids=ids)


async def rewarded(stage, *rewards):
    """A group whose chains have these rewards; None for none."""
    async with stage.manager.run(chains=len(rewards), groups=1, agent="rewarded", model="staged") as run:
        for reward in rewards:
            with run.chain([{"role": "user", "content": "How many?"}], group_id="group_0") as chain:
                answer(chain, "Some.", reward)


async def failed(stage):
    """A run that fails while its chains go on; its owner's code raised."""
    try:
        async with stage.manager.run(chains=4, groups=1, agent="failing", model="staged") as run:
            for number in range(4):
                chain = run.chain([{"role": "user", "content": "How many?"}], group_id="group_0")
                chain.start()
                guess(chain, number, "higher", -0.5)
            raise OSError("the disk is full")
    except OSError:
        pass


async def empty(stage):
    """A run that ends without a chain."""
    async with stage.manager.run(chains=0, groups=0, agent="empty", model="staged"):
        pass


async def extreme_texts(stage):
    """Names, ids, arguments and answers that are very long, and text that reads from right to left."""
    async with stage.manager.run(
        chains=3, groups=2, agent="an agent " * 30, model="model/" * 60, name=RIGHT_TO_LEFT
    ) as run:
        for number, text in enumerate((RIGHT_TO_LEFT, "word " * 2_000, "x" * 20_000)):
            with run.chain(
                [{"role": "user", "content": text}],
                group_id=f"group-{'very-long-' * 20}{number % 2}",
                chain_id=f"chain-{'of-a-long-id-' * 15}{number}",
                reference=text[:5_000],
            ) as chain:
                with chain.generation() as generation:
                    for at in range(0, min(len(text), 400), 5):
                        generation.chunk(text[at : at + 5], token_ids=[at], logprobs=[-0.4])
                with chain.tool_call(
                    LONG_NAME, {"query": text, "arabic": RIGHT_TO_LEFT, "n": 1, "list": list(range(200))}
                ) as call:
                    call.observation(f"{RIGHT_TO_LEFT} {text}")
                with chain.generation() as generation:
                    generation.chunk(RIGHT_TO_LEFT, token_ids=[1], logprobs=[-1.0])
                chain.reward([0.25, -3.5, 1e9][number], {"a metric with a long name " * 6: 0.1})
                chain.end("answered", final_response=text)


async def forked(stage):
    """A chain whose template leaves earlier reasoning out: its third turn begins a second segment; weights change at each turn."""
    async with stage.manager.run(chains=1, groups=1, agent="forked", model="staged", policy_version=7) as run:
        with run.chain(
            [{"role": "user", "content": "Find the number."}], group_id="group_0", reference=12
        ) as chain:
            guess(chain, 8, "higher", -0.1, prompt_ids=list(range(40)), prompt_tokens=40, policy_version=7)
            guess(chain, 12, "lower", -1.5, prompt_ids=list(range(9)), prompt_tokens=52, policy_version=8)
            guess(
                chain, 10, "higher", -0.7, prompt_ids=list(range(48)), prompt_tokens=48, policy_version=9, fresh=True
            )  # fmt: skip
            with chain.generation(
                prompt_ids=list(range(8)), prompt_tokens=59, policy_version=9
            ) as generation:
                generation.chunk("It is ", token_ids=[7], logprobs=[-0.2])
                await stage.goes_on.wait()
                generation.chunk("11.", token_ids=[8], logprobs=[-0.3])
            chain.reward(1.0)
            chain.end("answered", final_response="It is 11.")


async def failing_tool(stage, chains=12):
    """A tool that fails in most chains, at their second turn."""
    async with stage.manager.run(chains=chains, groups=1, agent="failing", model="staged") as run:
        for number in range(chains):
            with run.chain([{"role": "user", "content": "How many?"}], group_id="group_0") as chain:
                guess(chain, 8, "higher", -0.1)
                guess(chain, number, "error" if number >= 3 else "none", -0.5, tool="search")
                guess(chain, 9, "lower", -0.5)
                answer(chain, "None.", 0.0)
