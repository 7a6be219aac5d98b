// Chains as strips, and what events tell of each generation.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Generations } from "../../src/rollcast/serve/page/generations.js";
import { cellOf, rewardsOnTheWay, toolsOf } from "../../src/rollcast/serve/page/strips.js";
import { ChainView } from "../../src/rollcast/serve/page/chain_view.js";

const call = (name, more = {}) => ({ id: "1", name, arguments: { n: 12345 }, line: `${name}(n=12345)`, output: "higher", omitted: 0, status: "success", durationS: null, startedAt: null, open: false, ...more });
const turn = (more = {}) => ({ kind: "turn", step: 1, text: "", omitted: 0, reasoning: null, finishReason: "stop", calls: [], open: false, tail: null, ...more });

test("a cell tells what a turn did", () => {
  assert.deepEqual(cellOf(turn({ calls: [call("guess")] }), 1, null), { step: 1, kind: "call", tool: "guess", sign: "123…", words: "guess(n=12345) → higher", p: null });
  assert.equal(cellOf(turn({ calls: [call("guess"), call("guess", { status: "timeout" })] }), 1, null).kind, "failed");
  assert.equal(cellOf(turn({ calls: [call("guess", { status: null, open: true, output: null })] }), 1, null).kind, "waiting");
  assert.equal(cellOf(turn({ finishReason: "length", text: "and then" }), 1, null).kind, "cut");
  assert.equal(cellOf(turn({ step: null, text: "It is 12." }), 7, null).step, 7);
  assert.equal(cellOf(turn({ text: "ab" }), 1, [{ text: "a", ids: [1], logprobs: [0], p: 1 }, { text: "b", ids: [2], logprobs: [-1], p: 0.4 }]).p, 0.4);
});

test("tools have letters that differ, the one that is called most the first", () => {
  const cells = ["search", "see", "see", "éa", "s"].map((name) => cellOf(turn({ calls: [call(name)] }), 1, null));
  const tools = toolsOf(cells);
  assert.deepEqual([...tools].map(([name, { letter, place }]) => [name, letter, place]), [["see", "s", 0], ["s", "a", 1], ["search", "e", 2], ["éa", "é", 3]]);
  assert.equal(new Set([...toolsOf(Array.from({ length: 40 }, (_, i) => cellOf(turn({ calls: [call(`tool${i}`)] }), 1, null)))].map(([, each]) => each.letter)).has(undefined), false);
});

const event = (event_type, data, more = {}) => ({ event_type, chain_id: "c", run_id: "r", timestamp: 1, data, ...more });
const generation = (step, depth, prompt, sampled, version) => [
  event("llm_generation_start", { prompt_tokens: prompt, model: "m", policy_version: version, sampling: {} }, { step, depth }),
  event("llm_generation_end", { content: "x", finish_reason: "stop", prompt_tokens: prompt, completion_tokens: sampled }, { step, depth }),
];

test("each generation has its own policy version, and a fresh prompt begins a segment", () => {
  const known = new Generations();
  for (const each of [...generation(1, 1, 40, 3, 7), ...generation(2, 2, 52, 3, 8), ...generation(3, 1, 48, 3, 9), ...generation(4, 2, 59, 2, 9)]) known.apply(each);
  assert.deepEqual([1, 2, 3, 4, 5].map((step) => known.of(step)?.policyVersion), [7, 8, 9, 9, undefined]);
  assert.deepEqual(known.segments(), [
    { number: 1, first: 1, last: 2, prompt: 40, sent: 52, sampled: 6, before: null },
    { number: 2, first: 3, last: 4, prompt: 48, sent: 59, sampled: 5, before: 55 },
  ]);
});

test("a snapshot tells where the segment of an open generation began", () => {
  const known = new Generations();
  known.apply(event("chain_snapshot", { content: "It is", generation_step: 5, depth: 2, policy_version: 9, prompt_tokens: 80 }));
  assert.equal(known.segments()[0].first, 4);
  known.apply(event("chain_snapshot", { content: null, step: 6 }));
  assert.equal(known.of(6), undefined);
  known.apply(event("chain_start", {}));
  assert.deepEqual(known.segments(), []);
});

test("events that lack what they should have tell nothing wrong", () => {
  const known = new Generations();
  for (const each of [event("llm_generation_start", null), event("llm_generation_start", { policy_version: "x", prompt_tokens: NaN }, { step: 2, depth: "y" }), event("llm_generation_end", null, { step: 9 })]) known.apply(each);
  assert.deepEqual(known.segments(), [{ number: 1, first: 2, last: 2, prompt: null, sent: null, sampled: 0, before: null }]);
  assert.equal(known.of(2).policyVersion, null);
});

test("the reward on the way is that of the chains that went the same way", () => {
  const member = (chainId, words, reward) => {
    const view = new ChainView();
    Object.assign(view, { runId: "r", chainId });
    const of = (event_type, data, more = {}) => view.apply({ ...event(event_type, data, more), chain_id: chainId });
    of("chain_start", { messages: [] });
    words.forEach((text, i) => {
      of("llm_generation_start", {}, { step: i + 1 });
      of("llm_generation_end", { content: text, finish_reason: "stop" }, { step: i + 1 });
    });
    of("reward", { reward, final: true });
    of("chain_end", { finish_reason: "answered" });
    return { view };
  };
  const rewards = rewardsOnTheWay([member("a", ["x", "y"], 1), member("b", ["x", "z"], 0), member("c", ["w"], 0.5)]);
  assert.deepEqual(Object.fromEntries(rewards), { a: [0.5, 1], b: [0.5, 0], c: [0.5] });
});
