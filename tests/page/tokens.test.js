// Tokens and how much they surprised the model.

import assert from "node:assert/strict";
import { test } from "node:test";

import { surprise, Tokens } from "../../src/rollcast/serve/page/tokens.js";

const chunk = (step, content, ids, logprobs, more = {}) => ({
  event_type: "llm_generation_chunk",
  chain_id: "chain_0",
  timestamp: 0,
  step,
  data: { content, token_ids: ids, logprobs, ...more },
});

test("each token keeps its text, place, id and log-probability", () => {
  const tokens = new Tokens();
  tokens.apply(chunk(1, "a🤔", [5], [-0.5], { offset: 0 }));
  tokens.apply(chunk(1, "b", [6], [-1], { offset: 2 }));
  tokens.apply(chunk(2, "c", [7], [-2], { offset: 0 }));
  assert.deepEqual(tokens.of(1), [
    { at: 0, end: 2, text: "a🤔", ids: [5], logprobs: [-0.5] },
    { at: 2, end: 3, text: "b", ids: [6], logprobs: [-1] },
  ]);
  assert.deepEqual(tokens.ids(1), [5, 6]);
  assert.deepEqual(tokens.ids(2), [7]);
  assert.equal(tokens.ids(3), null);
});

test("ids with a hole before or between them are not the generation's", () => {
  const late = new Tokens();
  late.apply(chunk(1, "b", [6], [-1], { offset: 2 }));
  assert.equal(late.ids(1), null);
  assert.equal(late.of(1).length, 1);
});

test("what comes again, or merged with what is known, is not counted twice", () => {
  const tokens = new Tokens();
  tokens.apply(chunk(1, "ab", [5, 6], [-1, -1], { offset: 0 }));
  tokens.apply(chunk(1, "ab", [5, 6], [-1, -1], { offset: 0 }));
  tokens.apply(chunk(1, "bc", [6, 7], [-1, -1], { offset: 1 }));
  assert.deepEqual(tokens.ids(1), [5, 6]);
});

test("a generation's end tells the ids if no chunk did", () => {
  const tokens = new Tokens();
  const end = { event_type: "llm_generation_end", chain_id: "c", timestamp: 0, step: 1, data: { content: "abc", token_ids: [1, 2], logprobs: [-1, -2] } };
  tokens.apply(end);
  assert.deepEqual(tokens.of(1), [{ at: 0, end: 3, text: "abc", ids: [1, 2], logprobs: [-1, -2] }]);
  tokens.apply(end);
  assert.equal(tokens.of(1).length, 1);
});

test("a chain that begins again has no tokens", () => {
  const tokens = new Tokens();
  tokens.apply(chunk(1, "a", [5], [-0.5], { offset: 0 }));
  tokens.apply({ event_type: "chain_start", chain_id: "c", timestamp: 0, data: {} });
  assert.deepEqual(tokens.of(1), []);
});

test("memory is bounded: the earliest generations go first", () => {
  const tokens = new Tokens();
  const ids = new Array(10_000).fill(1);
  for (let step = 1; step <= 30; step += 1) tokens.apply(chunk(step, "x", ids, [], { offset: 0 }));
  assert.deepEqual(tokens.of(1), []);
  assert.equal(tokens.of(30).length, 1);
  assert.ok(tokens.count <= 131_072);
});

test("sure tokens are on the lowest level, and levels rise with surprise up to the highest", () => {
  const levels = [1, 0.95, 0.9, 0.6, 0.4, 0.3, 0.15, 0.1, 0.05, 0.001, 0].map(surprise);
  assert.deepEqual(levels.slice(0, 3), [0, 0, 0]);
  assert.deepEqual(levels, [...levels].sort());
  assert.equal(new Set(levels).size, 7);
  assert.deepEqual(levels.slice(-3), [6, 6, 6]);
});

test("a token without a probability, such as a masked one, has no level", () => {
  assert.equal(surprise(null), null);
});

test("merged chunks that say how long their pieces are, are divided; those whose lengths do not fit stay together", () => {
  const tokens = new Tokens();
  tokens.apply(chunk(1, "a🤔b", [5, 6, 7], [-0.5, -1, -2], { offset: 0, lengths: [2, 0, 1] }));
  assert.deepEqual(tokens.of(1), [
    { at: 0, end: 2, text: "a🤔", ids: [5], logprobs: [-0.5] },
    { at: 2, end: 2, text: "", ids: [6], logprobs: [-1] },
    { at: 2, end: 3, text: "b", ids: [7], logprobs: [-2] },
  ]);
  assert.deepEqual(tokens.ids(1), [5, 6, 7]);
  for (const lengths of [[1, 1], [2, 0], [-1, 1, 3], "abc", [1, 1, 2]]) {
    tokens.apply(chunk(2, "abc", [1, 2, 3], [-1, -1, -1], { offset: tokens.of(2).at(-1)?.end ?? 0, lengths }));
    assert.equal(tokens.of(2).at(-1).ids.length, 3);
  }
});

test("the tokens of a turn are the same list each time, also if there are none: what shows them is not drawn again", () => {
  const tokens = new Tokens();
  tokens.apply(chunk(1, "a", [5], [-0.5], { offset: 0 }));
  assert.equal(tokens.of(1), tokens.of(1));
  assert.equal(tokens.of(2), tokens.of(2));
});
