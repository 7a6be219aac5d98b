// Turns, groups side by side, and where their chains part.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { ChainView } from "../../src/rollcast/serve/page/chain_view.js";
import { alignTurns, cellsOf, compareIds, placeTree, turnLabel, whereTheyPart } from "../../src/rollcast/serve/page/group.js";
import { RunViews } from "../../src/rollcast/serve/page/run_view.js";
import { Tokens } from "../../src/rollcast/serve/page/tokens.js";
import { itemsOf, turnsOf } from "../../src/rollcast/serve/page/turns.js";
import { chainAsDict } from "./as_dict.js";

/** A chain of guesses: each turn calls `guess` and hears an outcome; a last text answers. */
function member(name, guesses, { reward = null, answer = null, open = null, ids = true } = {}) {
  const view = new ChainView();
  const tokens = new Tokens();
  let seq = 0;
  const apply = (event_type, data, step = null) => {
    const event = { event_type, chain_id: name, run_id: "r", group_id: "group_0", source: "", timestamp: 1000 + seq, data, step, depth: step, seq: seq++ };
    view.apply(event);
    if (ids) tokens.apply(event);
  };
  const say = (step, text, finish_reason) => {
    apply("llm_generation_start", { prompt_tokens: 1 }, step);
    apply("llm_generation_chunk", { content: text, offset: 0, token_ids: [...text].map((c) => c.codePointAt(0)), logprobs: [...text].map(() => -0.5) }, step);
    if (finish_reason) apply("llm_generation_end", { content: text, finish_reason, completion_tokens: 3 }, step);
  };
  apply("chain_start", { messages: [{ role: "user", content: "Guess." }], index: 0 });
  let step = 0;
  for (const [number, outcome] of guesses) {
    step += 1;
    say(step, `<tool_call>{"name": "guess", "arguments": {"number": ${number}}}</tool_call>`, "tool_call");
    apply("tool_call_start", { call_id: `call_${name}_${step}`, tool_name: "guess", arguments: { number } }, step);
    if (outcome === null) return { view, tokens };
    apply("tool_observation", { call_id: `call_${name}_${step}`, tool_name: "guess", observation: outcome, status: "success", partial: false }, step);
    apply("tool_call_end", { call_id: `call_${name}_${step}`, tool_name: "guess", status: "success", duration_s: 0.5 }, step);
  }
  if (open !== null) say(step + 1, open, null);
  if (answer !== null) {
    say(step + 1, answer, "stop");
    if (reward !== null) apply("reward", { reward, metrics: {}, final: true });
    apply("chain_end", { finish_reason: "answered", final_response: answer, steps: step + 1, completion_tokens: 9, reward, metrics: {} });
  }
  return { view, tokens };
}

const right = () => member("chain_0", [[8, "higher"], [12, "lower"], [10, "correct"]], { answer: "Found it.", reward: 1 });
const wrong = () => member("chain_10", [[8, "higher"], [9, "higher"]], { answer: "I give up.", reward: 0 });
const running = () => member("chain_2", [[8, "higher"], [12, "lower"]], { open: "<tool_call>{" });

test("a turn is a generation with its calls and what they gave", () => {
  const items = itemsOf(right().view);
  assert.deepEqual(items[0], { kind: "message", role: "user", text: "Guess.", prompt: true, first: 0 });
  const [first] = turnsOf(right().view);
  assert.equal(first.step, 1);
  assert.equal(first.calls.length, 1);
  const { line, output, status, durationS, open } = first.calls[0];
  assert.deepEqual([line, output, status, durationS, open], ["guess(number=8)", "higher", "success", 0.5, false]);
  assert.equal(turnsOf(right().view).length, 4);
});

test("what is open is the last turn: the text as it is written, or the calls that run", () => {
  const writing = turnsOf(running().view).at(-1);
  assert.deepEqual([writing.open, writing.text, writing.step], [true, "<tool_call>{", 3]);
  assert.equal(writing.tail.text, "<tool_call>{");
  const calling = turnsOf(member("c", [[8, null]]).view).at(-1);
  assert.equal(calling.calls.length, 1);
  assert.deepEqual([calling.open, calling.calls[0].open, calling.calls[0].output], [true, true, null]);
  assert.equal(calling.calls[0].startedAt, 1004);
});

test("every chain of the recorded cases has turns, whatever its events hold", () => {
  for (const name of ["hostile", "tools_and_errors", "late_join", "fell_behind", "without_chunks"]) {
    const path = new URL(`../records/view_cases/${name}.json`, import.meta.url);
    const views = new RunViews();
    const { events } = JSON.parse(readFileSync(path, "utf8"));
    let turns = 0;
    for (const event of events) {
      views.apply(event);
      for (const run of views.runs.values()) {
        const members = [...run.chains.values()].map((view) => ({ view }));
        for (const { view } of members) turns += turnsOf(view).length;
        placeTree(whereTheyPart(members));
        alignTurns(members);
      }
    }
    assert.ok(turns > 0, name);
  }
});

test("chains stand by id as a person counts", () => {
  assert.ok(compareIds("chain_2", "chain_10") < 0);
});

test("turns are aligned by step; a line in which all did the same says so", () => {
  const lines = alignTurns([right(), wrong(), running()]);
  assert.deepEqual(lines.map((line) => [line.step, line.alike]), [[1, true], [2, false], [3, false], [4, false]]);
  assert.deepEqual(lines[3].cells.map((cell) => cell?.text ?? null), ["Found it.", null, null]);
});

test("a turn has a label: what it called and got, or what it said", () => {
  const turns = turnsOf(right().view);
  assert.equal(turnLabel(turns[0]), "guess(number=8) → higher");
  assert.equal(turnLabel(turns[3]), "Found it.");
  assert.equal([...turnLabel(turns[0], 12)].length, 12);
});

test("the tree parts where chains first differ, and names the decision", () => {
  const root = whereTheyPart([right(), wrong(), running()]);
  assert.equal(root.label, "prompt");
  assert.equal(root.children.length, 1);
  const [eight] = root.children;
  assert.deepEqual(eight.chains, ["chain_0", "chain_10", "chain_2"]);
  assert.equal(eight.decision, "");
  assert.equal(eight.reward, 0.5);
  assert.deepEqual(eight.children.map((child) => [child.decision, child.chains]), [["12", ["chain_0", "chain_2"]], ["9", ["chain_10"]]]);
  const open = eight.children[0].children.find((child) => child.open);
  assert.deepEqual(open.chains, ["chain_2"]);
});

test("the same text of other token ids is another decision, if the ids of both are known", () => {
  const [one, other] = [right(), member("chain_1", [[8, "higher"]], {})];
  const again = () => member("chain_1", [[8, "higher"]], { ids: false });
  other.tokens.steps.get(1)[0].ids[0] += 1;
  assert.equal(whereTheyPart([one, other]).children.length, 2);
  assert.equal(whereTheyPart([one, again()]).children.length, 1);
});

test("chains that did the same and got something else are apart", () => {
  const [one, other] = [member("a", [[8, "higher"]]), member("b", [[8, "lower"]])];
  assert.equal(whereTheyPart([one, other]).children.length, 2);
});

test("a tree has a row a leaf, its branches in the middle of them, and one leaf for a chain that goes on alone", () => {
  const { places, rows, columns } = placeTree(whereTheyPart([right(), wrong(), running()]));
  assert.equal(rows, 3);
  assert.equal(columns, 4);
  const alone = places.find((place) => place.branch.chains[0] === "chain_10" && place.branch.chains.length === 1);
  assert.deepEqual(alone.alone.map((each) => each.label), ["I give up."]);
  for (const place of places) assert.ok(place.row >= 0 && place.row <= rows - 1);
  for (const [i, place] of places.entries()) assert.ok(place.parent === null || place.parent < i);
  const leaves = places.filter((place, i) => !places.some((each) => each.parent === i));
  assert.deepEqual(leaves.map((place) => place.row), [0, 1, 2]);
});

test("an empty group and a group of one have a tree", () => {
  assert.equal(placeTree(whereTheyPart([])).rows, 1);
  const { places } = placeTree(whereTheyPart([right()]));
  assert.equal(places.length, 2);
  assert.equal(places[1].alone.length, 3);
});

test("a group of 64 chains of 300 turns is aligned, and parts in its last turn", () => {
  const guesses = (n) => Array.from({ length: 300 }, (_, i) => [i === 299 ? n : i, "higher"]);
  const members = Array.from({ length: 64 }, (_, n) => member(`chain_${n}`, guesses(n), { ids: false }));
  const lines = alignTurns(members);
  assert.deepEqual([lines.length, lines.filter((line) => line.alike).length], [300, 299]);
  let deepest = whereTheyPart(members);
  while (deepest.children.length === 1) deepest = deepest.children[0];
  assert.equal(deepest.children.length, 64);
});

test("what is over of a conversation stays as it was made, and is the same as if it was made anew", () => {
  const view = new ChainView();
  let seq = 0;
  const apply = (event_type, data, step = null) => view.apply({ event_type, chain_id: "c", run_id: "r", group_id: "g", source: "", timestamp: 1, data, step, depth: step, seq: seq++ });
  const anew = () => {
    const copy = new ChainView();
    copy.apply({ event_type: "chain_snapshot", chain_id: "c", run_id: "r", group_id: "g", timestamp: 1, step: null, depth: null, data: structuredClone({ ...chainAsDict(view), as_of: -1 }) });
    return itemsOf(copy);
  };
  apply("chain_start", { messages: [{ role: "user", content: "Guess." }], index: 0 });
  let kept = itemsOf(view);
  for (let step = 1; step <= 6; step += 1) {
    apply("llm_generation_start", { prompt_tokens: 1 }, step);
    apply("llm_generation_chunk", { content: `turn ${step}`, offset: 0 }, step);
    assert.deepEqual(itemsOf(view).map((item) => item.text), anew().map((item) => item.text));
    apply("llm_generation_end", { content: `turn ${step}`, finish_reason: "tool_call" }, step);
    if (step === 4) apply("message", { role: "user", content: "from outside" });
    for (const call of ["a", "b"].slice(0, step % 3)) {
      apply("tool_call_start", { call_id: `${call}${step}`, tool_name: "look", arguments: {} }, step);
      apply("tool_observation", { call_id: `${call}${step}`, tool_name: "look", observation: `seen ${step}`, status: "success", partial: false }, step);
      apply("tool_call_end", { call_id: `${call}${step}`, tool_name: "look", status: "success", duration_s: 1 }, step);
      assert.deepEqual(itemsOf(view), anew());
    }
    const items = itemsOf(view);
    const same = kept.filter((item, i) => item === items[i]).length;
    assert.ok(same >= kept.length - 1, `${same} of ${kept.length} items are as before`);
    kept = items;
  }
  assert.equal(itemsOf(view), itemsOf(view));
});

test("the cells of a chain are the same list while it only writes", () => {
  const one = member("chain_0", [[8, "lower"]], { open: "Well" });
  const other = member("chain_1", [[8, "lower"]], { open: "So" });
  const cells = () => cellsOf(one.view, alignTurns([one, other]), 0);
  const before = cells();
  assert.deepEqual(before.map((turn) => turn?.open), [false, true]);
  one.view.apply({ event_type: "llm_generation_chunk", chain_id: "chain_0", run_id: "r", source: "", timestamp: 1, data: { content: " then" }, step: 2, depth: 2 });
  assert.equal(cells(), before);
  one.view.apply({ event_type: "llm_generation_end", chain_id: "chain_0", run_id: "r", source: "", timestamp: 1, data: { content: "Well then", finish_reason: "stop" }, step: 2, depth: 2 });
  assert.notEqual(cells(), before);
  assert.deepEqual(cells().map((turn) => turn?.text.slice(-4)), [before[0]?.text.slice(-4), "then"]);
});
