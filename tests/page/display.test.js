// What the views compute before they draw: tokens told apart, probabilities of calls, time lines, runs of a training.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Pieces, probability } from "../../src/rollcast/serve/page/pieces.js";
import { callProbability, segmentsOf } from "../../src/rollcast/serve/page/segments.js";
import { Store } from "../../src/rollcast/serve/page/store.js";
import { TimeLine } from "../../src/rollcast/serve/page/time_line.js";
import { evaluationsOf, latestRun, rolloutOf, rolloutsOf, rootsOf, trainSteps, allRuns } from "../../src/rollcast/serve/page/training.js";
import { duration, fixed, odds, runName, shortRunId, signed, sourceBeside, sourcesOf } from "../../src/rollcast/serve/page/format.js";

const textsOf = (pieces) => pieces.map((piece) => [piece.text, piece.ids.length]);

test("a chunk of one token teaches its text", () => {
  const pieces = new Pieces();
  pieces.divide("8", [32], [-0.5]);
  assert.deepEqual(textsOf(pieces.divide("8}", [32, 9], [-0.5, 0])), [["8", 1], ["}", 1]]);
  assert.equal(pieces.known.get(9), "}");
});

test("tokens that cannot be told apart stay together", () => {
  const pieces = new Pieces();
  assert.deepEqual(textsOf(pieces.divide("abc", [1, 2], [-1, -2])), [["abc", 2]]);
});

test("what came together elsewhere divides what is longer", () => {
  const pieces = new Pieces();
  pieces.divide("4}}", [28, 510], []);
  assert.deepEqual(textsOf(pieces.divide(" 4}}", [229, 28, 510], [])), [[" ", 1], ["4}}", 2]]);
});

test("a token whose text differs from place to place divides nothing", () => {
  const pieces = new Pieces();
  pieces.divide("é", [7], []);
  pieces.divide("", [7], []);
  assert.deepEqual(textsOf(pieces.divide("éa", [7, 8], [])), [["éa", 2]]);
});

test("pieces make up the text, whatever was learned", () => {
  const pieces = new Pieces();
  let seed = 1;
  const random = (n) => (seed = (seed * 48271) % 2147483647) % n;
  const words = ["a", "b", "ab", "ba", "", "aab"];
  for (let round = 0; round < 3000; round += 1) {
    const ids = Array.from({ length: 1 + random(6) }, () => random(12)); // two ids may have the same text, one two texts
    const text = ids.map((id) => words[(id + (random(20) === 0 ? 1 : 0)) % words.length]).join("");
    const logprobs = ids.map((id) => -id);
    const found = pieces.divide(text, ids, logprobs);
    assert.equal(found.map((piece) => piece.text).join(""), text);
    assert.deepEqual(found.flatMap((piece) => piece.ids), ids);
    assert.deepEqual(found.flatMap((piece) => piece.logprobs), logprobs);
  }
});

test("the probability of a piece is that of all its tokens", () => {
  assert.equal(probability({ text: "", ids: [1, 2], logprobs: [Math.log(0.5), Math.log(0.5)] }), 0.25);
  assert.equal(probability({ text: "", ids: [1], logprobs: [] }), null);
});

const span = (at, text, ids, logprobs) => ({ at, end: at + [...text].length, text, ids, logprobs });

test("text whose tokens were not seen stands between those that were", () => {
  const segments = segmentsOf("😀one two", 0, [span(4, " ", [1], [-0.1]), span(5, "two", [2], [-0.2])], 0, new Pieces());
  assert.deepEqual(segments.map((each) => [each.text, each.ids]), [["😀one", []], [" ", [1]], ["two", [2]]]);
});

test("text that goes on is divided from where it stopped", () => {
  const spans = [span(0, "one", [1], [-0.1]), span(3, " two", [2], [-0.2])];
  assert.deepEqual(segmentsOf(" two", 3, spans, 1, new Pieces()).map((each) => each.text), [" two"]);
});

test("the probability of a call is that of its arguments' values", () => {
  const pieces = new Pieces();
  const spans = [span(0, 'guess {"n": ', [1], [-5]), span(12, "1", [2], [Math.log(0.5)]), span(13, "5", [3], [Math.log(0.1)]), span(14, "}", [4], [-3])];
  const segments = segmentsOf('guess {"n": 15}', 0, spans, 0, pieces);
  assert.ok(Math.abs(callProbability("guess", { n: 15 }, segments) - 0.05) < 1e-12);
  assert.equal(callProbability("guess", { n: 99 }, segments), null);
});

const at = (event_type, timestamp, data = {}) => ({ event_type, chain_id: "chain_0", run_id: "r", timestamp, data });

test("a time line has what a chain did, in order", () => {
  const line = new TimeLine();
  for (const event of [
    at("chain_start", 10), at("llm_generation_start", 11), at("llm_generation_end", 13, { finish_reason: "tool_call" }),
    at("tool_call_start", 13), at("tool_call_start", 13.5), at("tool_call_end", 14), at("tool_call_end", 15),
    at("llm_generation_start", 15), at("llm_generation_end", 16, { finish_reason: "stop" }), at("chain_end", 17),
  ]) line.apply(event); // prettier-ignore
  assert.deepEqual(line.stretches.map((each) => [each.doing, each.from, each.to]), [
    ["waiting", 10, 11], ["generating", 11, 13], ["waiting", 13, 13], ["tool", 13, 15], ["waiting", 15, 15], ["generating", 15, 16], ["scoring", 16, 17],
  ]);
  assert.equal(line.whole, true);
});

test("a time line that begins in the middle says so", () => {
  const line = new TimeLine();
  line.apply(at("chain_snapshot", 12));
  line.apply(at("tool_call_start", 13));
  assert.equal(line.whole, false);
  assert.equal(line.stretches[0].doing, "tool");
});

function training() {
  const store = new Store();
  store.takeRunRows([
    { run_id: "t", parent_run_id: null, status: "running", started_at: 1, agent: "guess" },
    { run_id: "e0", parent_run_id: "t", split: "eval", train_step: 0, status: "completed", mean_reward: 0.5, started_at: 2 },
    { run_id: "s1", parent_run_id: "t", split: "train", train_step: 1, status: "completed", started_at: 3 },
    { run_id: "s2", parent_run_id: "t", split: "train", train_step: 2, status: "running", started_at: 4 },
    { run_id: "old", parent_run_id: null, status: "completed", started_at: 9 },
  ]);
  return store;
}

test("a training leads to its rollouts, the latest or those of a step", () => {
  const runs = allRuns(training());
  assert.deepEqual(rootsOf(runs).map((row) => row.run_id), ["old", "t"]);
  assert.equal(latestRun(runs), "t");
  assert.equal(rolloutOf(runs, "t", undefined), "s2");
  assert.equal(rolloutOf(runs, "t", "1"), "s1");
  assert.equal(rolloutOf(runs, "t", "7"), null);
  assert.equal(rolloutOf(runs, "old", undefined), "old");
  assert.deepEqual(evaluationsOf(runs, "t").map((row) => row.run_id), ["e0"]);
});

test("steps that a query gave and steps that came since are one list", () => {
  const store = training();
  store.takeStepRows([{ row: "train_step", run_id: "t", train_step: 1, timestamp: 5, metrics: { mean_reward: 0.4 } }]);
  store.apply([{ event_type: "train_step", chain_id: "", run_id: "t", timestamp: 6, seq: 4, data: { train_step: 2, policy_version: 2, metrics: { mean_reward: 0.6 } } }]);
  assert.deepEqual(trainSteps(store, "t").map((step) => [step.train_step, step.metrics.mean_reward]), [[1, 0.4], [2, 0.6]]);
});

test("numbers as a reader expects them", () => {
  assert.deepEqual([0.0000123, 0.25, 3.21, 75, 4000].map(duration), ["12 µs", "250 ms", "3.21 s", "1 min 15 s", "1 h 6 min"]);
  assert.deepEqual([1, 0.999, 0.5, 0.001, 0, null].map(odds), ["1", "1", ".50", "1e−3", "0", "–"]);
  assert.deepEqual([0.5, -0.25, 0, null].map(signed), ["+0.50", "−0.25", "+0.00", "–"]);
  assert.equal(runName({ name: "a\u202eb" }), "a\\u202eb");
});

test("rollouts that go on are shown together, in the order of their steps; a chosen step alone, and its evaluation if it had no rollout", () => {
  const run = (run_id, more) => ({ run_id, status: "completed", started_at: Number(run_id.slice(1)), parent_run_id: "t", split: "train", ...more });
  const runs = [{ run_id: "t", status: "running" }, run("r5", { train_step: 3, split: "eval" }), run("r4", { train_step: 4, status: "running" }), run("r3", { train_step: 5, status: "running" }), run("r2", { train_step: 2 })];
  assert.deepEqual(rolloutsOf(runs, "t", undefined), ["r4", "r3"]);
  assert.deepEqual(rolloutsOf(runs, "t", "5"), ["r3"]);
  assert.deepEqual(rolloutsOf(runs, "t", "3"), ["r5"]);
  assert.deepEqual(rolloutsOf(runs, "t", "9"), []);
  assert.deepEqual(rolloutsOf(runs.filter((each) => each.run_id !== "r3"), "t", undefined), ["r4"]);
  assert.deepEqual(rolloutsOf([run("x1", { parent_run_id: null })], "x1", undefined), ["x1"]);
});

test("numbers keep short, and small ones are not taken for zero", () => {
  assert.deepEqual([0, 0.25, -3.5, 1e9, -2.5e7, 3e-6, 1e-17, 999_999.5, NaN, null].map((value) => fixed(value)), ["0.00", "0.25", "−3.50", "1.0e+9", "−2.5e+7", "3e−6", "0.00", "999999.50", "–", "–"]);
  assert.deepEqual([0.5, -0.25, 2e7].map(signed), ["+0.50", "−0.25", "+2.0e+7"]);
});

test("a run is told from others by the end of an id that was made, or by the whole of one that somebody gave", () => {
  assert.equal(shortRunId("01a2278f-b296-7fe2-b1bd-a33ce74b6ee8"), "4b6ee8");
  assert.equal(shortRunId("nightly-eval"), "nightly-eval");
  assert.equal(shortRunId("x".repeat(300)).length, 40);
  assert.equal(shortRunId("a\u202eb"), "a\\u202eb");
});

test("a chain whose id ends with its source does not name it again", () => {
  assert.equal(sourceBeside("chain_0@alpha", "alpha"), "");
  assert.equal(sourceBeside("chain_0", "alpha"), "alpha");
  assert.equal(sourceBeside("chain_0@beta", "eta"), "eta");
  assert.equal(sourceBeside("chain_0", ""), "");
  assert.equal(sourceBeside("chain_0", undefined), "");
});

test("a run says which process it is on, or on how many", () => {
  assert.equal(sourcesOf({}), "");
  assert.equal(sourcesOf({ sources: { "": "running" } }), "");
  assert.equal(sourcesOf({ sources: { "gpu-7": "completed" } }), "gpu-7");
  assert.equal(sourcesOf({ sources: { a: "running", b: "running" } }), "2 sources");
});
