// The page says in the same words as Python what is worth a look.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { namedChains, needsALook, trendHints } from "../../src/rollcast/serve/page/hints.js";

const CASES = JSON.parse(readFileSync(new URL("hint_cases.json", import.meta.url), "utf8"));

test("every rule is among the cases, and there is one without a hint", () => {
  const kinds = new Set(CASES.flatMap((each) => each.hints.map((hint) => hint.kind)));
  const wanted = [
    "alike_and_wrong", "flat_groups", "length_drift", "quiet", "reward_without_reference", "same_answers", "tool_fails", "truncated",
  ]; // prettier-ignore
  assert.deepEqual([...kinds].sort(), wanted);
  assert.ok(CASES.some((each) => !each.hints.length));
});

for (const { name, now, rows, steps, hints } of CASES) {
  test(name, () => {
    const found = (steps ? trendHints(steps) : needsALook(rows, now)).map(({ runId, groupId, ...rest }) => ({ ...rest, run_id: runId, group_id: groupId }));
    assert.deepEqual(found, hints);
  });
}

test("rows that lack everything are no reason for a look, and are no reason to fail", () => {
  assert.deepEqual(needsALook([], 5), []);
  const odd = [{ run_id: "r", chain_id: "c" }, { run_id: "r", chain_id: "d", state: "running", activity: "constructor", last_event_at: 0 }];
  assert.deepEqual(needsALook(odd, 1e9), []);
});

test("a hint names its first chains, unless its sentence does", () => {
  const hint = { kind: "truncated", sentence: "", runId: "r", chains: ["chain_1", "chain_5", "chain_6"], count: 1_002, groupId: null, subject: "" };
  assert.equal(namedChains(hint, 2), "chain_1, chain_5 and 1,000 more");
  assert.equal(namedChains({ ...hint, count: 3 }), "chain_1, chain_5, chain_6");
  assert.equal(namedChains({ ...hint, kind: "quiet", chains: ["chain_1"], count: 1 }), "");
});
