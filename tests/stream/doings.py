"""What a chain may do, chosen at random."""


def do_something(choose, chain):
    """What a chain may do next: part of a generation or of a call, a message, an error, a reward."""
    if chain.generation_open is not None:
        if choose([True, False]):
            chain.generation_open.chunk("word", [1], [-0.1])
        else:
            chain.generation_open.end(choose(["stop", "length", "tool_call", "error"]))
    elif chain.tools_open and choose([True, True, False]):
        call = choose(list(chain.tools_open.values()))
        step = choose(["partial", "final", "end"])
        if step == "end":
            call.end(choose(["error", "cancelled"]))
        else:
            call.observation("text", choose(["success", "error", "timeout"]), partial=step == "partial")
    elif chain.trajectory.reward is None:
        what = choose(["generate", "generate", "call", "call", "error", "message", "step reward", "reward"])
        if what == "call" and chain.trajectory.turns and not chain.spoken_to:
            chain.tool_call(choose(["look", "calc"]), {"at": 1}).start()
        elif what == "error":
            chain.error(choose(["odd", "very odd"]), "agent")
        elif chain.tools_open:
            return
        elif what == "generate":
            chain.generation(policy_version=choose([None, 4])).start()
        elif what == "message":
            chain.message({"role": "user", "content": "go on"}, from_outside=True)
        elif what == "step reward":
            chain.step_reward(choose([0.0, 0.5]), choose([None, {"exact": 1.0}]))
        elif what == "reward" and choose([True, False, False]):
            chain.reward(choose([0.0, 1.0]), choose([None, {"exact": 1.0}]))
