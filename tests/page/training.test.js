// How runs are addressed, and what is said of calls that failed.

import assert from "node:assert/strict";
import { test } from "node:test";

import { addressOf } from "../../src/rollcast/serve/page/training.js";
import { failureOf } from "../../src/rollcast/serve/page/turns.js";

const rollout = (id, step, more = {}) => ({ run_id: id, parent_run_id: "t", split: "train", train_step: step, ...more });

test("the chains of a step are addressed by the training, all others by their run", () => {
  const runs = [{ run_id: "t" }, rollout("e", 3, { split: "eval" }), rollout("b2", 2), rollout("b1", 2), rollout("a", 1), { run_id: "alone" }];
  const ofStep = (step) => ({ run: "t", query: { step: [step] } });
  const itself = (id) => ({ run: id, query: {} });
  assert.deepEqual(addressOf(runs, "a"), ofStep("1"));
  assert.deepEqual(addressOf(runs, "b2"), ofStep("2"));
  assert.deepEqual(addressOf(runs, "b1"), itself("b1"), "the address of the step leads to its latest rollout");
  for (const id of ["e", "t", "alone", "unknown"]) assert.deepEqual(addressOf(runs, id), itself(id));
  assert.deepEqual(addressOf([rollout("a", 1)], "a"), itself("a"), "its training is not known");
});

test("a failed call says its status once", () => {
  assert.equal(failureOf({ status: "success", output: "error: not one" }), null);
  assert.equal(failureOf({ status: null, output: null }), null);
  assert.equal(failureOf({ status: "error", output: "error: no guesses left" }), "");
  assert.equal(failureOf({ status: "error", output: "no guesses left" }), "error");
  assert.equal(failureOf({ status: "timeout", output: null }), "timeout");
});
