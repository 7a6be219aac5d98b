// Tokens and how much they surprised the model.

import assert from "node:assert/strict";
import { test } from "node:test";

import { BUCKETS, bucketOf, leastLogprob, probability, surpriseScale, Tokens } from "../../src/rollcast/serve/page/tokens.js";

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

const spans = (...logprobs) => logprobs.map((logprob, i) => ({ at: i, end: i + 1, text: "x", ids: [i], logprobs: logprob === null ? [] : [logprob] }));

test("sure tokens are in the lowest bucket, and buckets rise with surprise", () => {
  const scale = surpriseScale(spans(-0.01, -0.5, -1, -2, -4));
  const buckets = [-0.01, -0.5, -1, -2, -4].map((logprob) => bucketOf(logprob, scale));
  assert.equal(buckets[0], 0);
  assert.deepEqual(buckets, [...buckets].sort());
  assert.equal(buckets.at(-1), BUCKETS - 1);
});

test("one outlier does not flatten the scale of the others", () => {
  const usual = Array.from({ length: 99 }, (_, i) => -0.2 - i / 33);
  const scale = surpriseScale(spans(...usual, -30));
  assert.ok(scale.top < 4, `${scale.top}`);
  assert.ok(new Set(usual.map((logprob) => bucketOf(logprob, scale))).size >= 6);
});

test("tokens without a log-probability, such as masked ones, have no bucket and no part in the scale", () => {
  assert.equal(bucketOf(null, surpriseScale([])), null);
  assert.deepEqual(surpriseScale(spans(null, -1, -Infinity, NaN)), surpriseScale(spans(-1)));
  assert.equal(bucketOf(-Infinity, surpriseScale([])), BUCKETS - 1);
});

test("a model that is nearly always sure has no tokens that stand out for nothing", () => {
  const scale = surpriseScale(spans(-0.001, -0.12));
  assert.ok((bucketOf(-0.12, scale) ?? 9) <= 1);
});

test("probabilities of spans multiply, and are unknown if one is", () => {
  assert.ok(Math.abs((probability(spans(Math.log(0.5), Math.log(0.5))) ?? 0) - 0.25) < 1e-12);
  assert.equal(probability(spans(-1, null)), null);
  assert.equal(probability([]), null);
  assert.equal(leastLogprob({ at: 0, end: 1, text: "", ids: [1, 2], logprobs: [-1, -3] }), -3);
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
