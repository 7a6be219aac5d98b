// The recorded cases of ChainView and RunViews give in JavaScript what Python made of them.

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";

import { ChainView } from "../../src/rollcast/serve/page/chain_view.js";
import { RunViews } from "../../src/rollcast/serve/page/run_view.js";
import { chainAsDict, runAsDict } from "./as_dict.js";

const FOLDER = new URL("../records/view_cases/", import.meta.url);
const CASES = readdirSync(FOLDER).filter((name) => name.endsWith(".json"));

/** As JSON has it, whatever its prototypes. */
const asJson = (value) => JSON.parse(JSON.stringify(value));
const caseOf = (name) => JSON.parse(readFileSync(new URL(name, FOLDER), "utf8"));

/** What the views tell, in the form of the cases' `expected`. */
function told(views) {
  const runs = [...views.runs].map(([id, run]) => {
    const chains = [...run.chains].map(([name, view]) => [name, chainAsDict(view)]);
    return [id, { ...runAsDict(run), chains: Object.fromEntries(chains) }];
  });
  return asJson(Object.fromEntries(runs));
}

test("there are recorded cases", () => {
  assert.ok(CASES.length >= 19, `${CASES.length} cases`);
  for (const name of ["tools_and_errors", "late_join", "fell_behind", "training", "tiny_grid", "hostile"]) {
    assert.ok(CASES.includes(`${name}.json`), name);
  }
});

for (const name of CASES) {
  test(`${name} gives the recorded views`, () => {
    const { events, expected } = caseOf(name);
    const views = new RunViews();
    for (const event of events) views.apply(event);
    assert.deepEqual(told(views), expected);
  });

  test(`${name} goes on from a snapshot at any place`, () => {
    const { events } = caseOf(name);
    const byChain = new Map();
    for (const event of events) {
      if (typeof event.chain_id !== "string" || !event.chain_id) continue;
      const key = `${event.run_id} ${event.chain_id}`;
      byChain.set(key, [...(byChain.get(key) ?? []), event]);
    }
    for (const own of byChain.values()) {
      const whole = new ChainView();
      for (const event of own) whole.apply(event);
      const end = asJson(chainAsDict(whole));
      const before = new ChainView();
      const every = Math.max(1, Math.floor(own.length / 12));
      for (const [i, event] of own.entries()) {
        before.apply(event);
        if (i % every) continue;
        const after = new ChainView();
        after.runId = before.runId;
        after.chainId = before.chainId;
        after.groupId = before.groupId;
        after.source = before.source;
        after.restore(asJson(chainAsDict(before)));
        for (const later of own.slice(i + 1)) after.apply(later);
        assert.deepEqual(asJson(chainAsDict(after)), end, `from event ${i}`);
      }
    }
  });
}

test("events without a seq that come again after their end change nothing", () => {
  const view = new ChainView();
  const call = { call_id: "1", tool_name: "look" };
  const ended = [
    { event_type: "tool_call_start", data: { ...call, arguments: {} } },
    { event_type: "tool_observation", data: { ...call, observation: "found", status: "success", partial: false } },
    { event_type: "tool_call_end", data: { ...call, status: "success", duration_s: 1 } },
  ].map((each) => ({ ...each, chain_id: "chain_0", timestamp: 1, step: 1 }));
  for (const event of ended) view.apply(event);
  const before = asJson(chainAsDict(view));
  view.apply(ended[1]);
  view.apply(ended[2]);
  assert.deepEqual(asJson(chainAsDict(view)), before);
});
