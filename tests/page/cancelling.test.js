// What became of what was cancelled, and where a run is stuck.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Cancellations, outcomeOf } from "../../src/rollcast/serve/page/cancelling.js";
import { stuckOf } from "../../src/rollcast/serve/page/stuck.js";
import { adviceOn } from "../../src/rollcast/serve/page/advice.js";

/** Requests on a line that notes what it is told. */
function made() {
  const sent = [];
  const line = { session: { reconnections: 0, phase: "open" }, cancel: (run, part) => (sent.push([run, part]), `c${sent.length}`) };
  return { cancels: new Cancellations(line, () => {}), line, sent };
}

const GROUP = { run: "r", group: "g" };
const rowsOf = (...rows) => (chain) => rows.find((row) => row.chain_id === chain);
const running = (chain_id, more = {}) => ({ run_id: "r", chain_id, state: "running", activity: "generating", ...more });
const ended = (chain_id, finish_reason = "cancelled") => ({ run_id: "r", chain_id, state: "ended", finish_reason });

/** What the page says of a group of which a, b and c were told to end. */
function said(rows, { counts = { ending: 3, notBegun: 0, over: 5 }, target = GROUP, chains = ["a", "b", "c"], run = null, isTraining = false } = {}) {
  const { cancels } = made();
  cancels.send(target);
  cancels.answered({ kind: "done", id: "c1", cursor: null, missing: [], chains, counts });
  return outcomeOf(cancels.of(target), { row: rowsOf(...rows), run, connection: 0, isTraining });
}

test("a group: how many were told, who has not ended yet and where he is, how many ended", () => {
  const tool = { activity: "tool", open_tools: ["search"] };
  assert.deepEqual(said([ended("a"), ended("b"), running("c", tool)]), {
    sentence: "3 of 8 chains were told to end, and 2 have; not yet: c, still in the tool search, 5 were over already.",
    pending: true,
    failed: false,
  });
  assert.equal(said([ended("a"), ended("b"), ended("c")]).sentence, "3 of 8 chains ended, 5 were over already.");
  assert.equal(said([ended("a"), ended("b"), ended("c", "answered")]).sentence, "3 of 8 chains ended, 1 of them by itself, 5 were over already.");
  const counts = { ending: 1, notBegun: 4, over: 0 };
  assert.equal(said([ended("a")], { counts, chains: ["a"] }).sentence, "1 of 5 chains ended, 4 had not begun and will not.");
});

test("a run: also how it ended; it may still change until then", () => {
  const target = { run: "r" };
  const rows = [ended("a"), ended("b"), ended("c")];
  assert.equal(said(rows, { target, run: { status: "running" } }).pending, true);
  assert.deepEqual(said(rows, { target, run: { status: "cancelled" } }), {
    sentence: "3 of 8 chains ended, 5 were over already. The run has ended: cancelled.",
    pending: false,
    failed: false,
  });
});

test("a training ends after its step", () => {
  const target = { run: "r" };
  const options = { target, chains: [], counts: { ending: 0, notBegun: 0, over: 0 }, isTraining: true };
  assert.match(said([], { ...options, run: { status: "running" } }).sentence, /ends after the step that it is in, and saves it/);
  assert.equal(said([], { ...options, run: { status: "cancelled" } }).sentence, "The training has ended: cancelled.");
});

test("a chain: whether it was cancelled, or was over before", () => {
  const target = { run: "r", chain: "a" };
  const of = (row) => said(row ? [row] : [], { target, chains: [], counts: undefined }).sentence;
  assert.equal(of(running("a")), "It was told to end.");
  assert.equal(of(running("a", { activity: "tool", open_tools: ["x"] })), "It was told to end, still in the tool x.");
  assert.equal(of(ended("a")), "It was cancelled.");
  assert.equal(of(ended("a", "max_steps")), "It was over before it could be cancelled: max steps.");
  assert.equal(of({ ...ended("a", null), state: "lost" }), "It was told to end; its end was not seen.");
});

test("without an answer that is said", () => {
  const { cancels, line } = made();
  cancels.send(GROUP);
  const known = { row: rowsOf(), run: null, connection: 0 };
  assert.equal(outcomeOf(cancels.of(GROUP), known).sentence, "Asking the server …");
  assert.match(outcomeOf(cancels.of(GROUP), { ...known, connection: 1 }).sentence, /The connection was lost before the server answered/);
  cancels.answered({ kind: "refused", id: "c1", code: 403, message: "cancel needs a token with the control scope" });
  assert.match(outcomeOf(cancels.of(GROUP), known).sentence, /^The server does not cancel it: cancel needs a token/);
  line.cancel = () => null;
  cancels.send(GROUP);
  assert.match(outcomeOf(cancels.of(GROUP), known).sentence, /^There is no connection to the server; try again/);
  assert.equal(cancels.of({ run: "r" }), undefined);
});

test("what was over when the server was asked is said to be over, as soon as the page knows it", () => {
  const refused = (code) => {
    const { cancels } = made();
    cancels.send(GROUP);
    cancels.answered({ kind: "refused", id: "c1", code, message: "no run 'r' is open" });
    return cancels.of(GROUP);
  };
  const known = { row: rowsOf(), run: { status: "running" }, connection: 0 };
  const over = { sentence: "It was over already.", pending: false, failed: false };
  assert.match(outcomeOf(refused(404), known).sentence, /no run 'r' is open/);
  assert.deepEqual(outcomeOf(refused(404), { ...known, run: { status: "completed" } }), over);
  assert.deepEqual(outcomeOf(refused(404), { ...known, isOpen: false }), over);
  assert.equal(outcomeOf(refused(403), { ...known, isOpen: false }).failed, true);
});

test("no more than some requests are remembered", () => {
  const { cancels } = made();
  for (let i = 0; i < 1_000; i += 1) cancels.send({ run: "r", chain: `c${i}` });
  assert.ok(cancels.requests.size <= 256);
  assert.ok(cancels.of({ run: "r", chain: "c999" }));
});

const used = (chain_id, seconds, more = {}) => ({
  run_id: "r", chain_id, state: "ended", tool_use: { search: { calls: 4, failed: 0, seconds: 4 * seconds } },
  stays: { generating: { count: 4, longest: seconds } }, times: { generating: 4 * seconds }, ...more,
}); // prettier-ignore

test("a chain is stuck if it is quiet for much longer than a call of its tool usually takes", () => {
  const rows = [used("a", 1), used("b", 1.2), running("c", { activity: "tool", open_tools: ["search"], last_event_at: 1_000 })];
  assert.deepEqual(stuckOf(rows, 1_005), []);
  const [found] = stuckOf(rows, 1_042);
  assert.deepEqual([found.row.chain_id, found.silence, found.tools], ["c", 42, ["search"]]);
  assert.ok(found.usual >= 1 && found.usual <= 1.2);
  const slow = [used("a", 30), used("b", 30), rows[2]];
  assert.deepEqual(stuckOf(slow, 1_042), [], "that is usual here");
});

test("where nothing is known to compare with, that is said, and only a long silence counts", () => {
  const rows = [running("a", { activity: "tool", open_tools: ["search"], last_event_at: 1_000 }), running("b", { last_event_at: 1_000 })];
  assert.deepEqual(stuckOf(rows, 1_020), []);
  assert.deepEqual(stuckOf(rows, 1_040).map((each) => [each.row.chain_id, each.usual]), [["a", null]]);
  assert.deepEqual(stuckOf(rows, 1_070).map((each) => each.row.chain_id), ["a", "b"]);
});

test("what to do about a refusal", () => {
  const advice = (refusedWith, token = null, why = "") => adviceOn({ refusedWith, token, why });
  assert.deepEqual([advice(4500).token, advice(4500).what], [true, "This server needs a token, and this page has none."]);
  assert.match(advice(4500, "old").what, /does not know the token of this page/);
  assert.match(advice(4003, "old").what, /has expired/);
  assert.deepEqual(advice(4507, null, "pages of http://evil may not connect; --origin lets them"), {
    what: "The server does not accept this page: pages of http://evil may not connect; --origin lets them.",
    todo: "Reload this page when the server lets it in.",
    token: false,
  });
  assert.match(advice(4510).todo, /Reload this page/);
});
