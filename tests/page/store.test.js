// The store and the feed: what is asked of the server, and what the page knows then.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Feed } from "../../src/rollcast/serve/page/feed.js";
import { Session } from "../../src/rollcast/serve/page/session.js";
import { chainKey, Store } from "../../src/rollcast/serve/page/store.js";

const event = (event_type, chain_id, seq, data = {}, more = {}) => ({
  event_type, chain_id, timestamp: 1000 + seq, data, step: null, depth: null, seq, run_id: "r", group_id: null, source: "", ...more,
});
const row = (n, more = {}) => ({ run_id: "r", chain_id: `chain_${n}`, state: "ended", ...more });
const chunk = (chain, seq, text, offset) => event("llm_generation_chunk", chain, seq, { content: text, offset, token_ids: [seq], logprobs: [-1] }, { step: 1 });

/** A feed on a session that is connected to nobody; `sent` are the frames, `say` is the server, `due` are its timers. */
function made() {
  const clock = { now: 100 };
  const session = new Session({ now: () => clock.now, epoch: () => 2000, random: () => 0 });
  const [sent, due] = [[], []];
  let numbers = 0;
  const send = (frames) => sent.push(...frames);
  const line = {
    session,
    subscribe: (id, filter, options) => send(session.subscribe(id, filter, options)),
    update: (id, filter) => send(session.update(id, filter)),
    unsubscribe: (id) => send(session.unsubscribe(id)),
    ask: (query) => {
      const id = `${query.what}-${(numbers += 1)}`;
      send(session.ask(id, query));
      return id;
    },
    stop: (id) => send(session.stop(id)),
  };
  const store = new Store();
  const feed = new Feed(line, store, (action, ms) => due.push({ action, ms }));
  const say = (frame) => {
    const { frames, notices } = session.receive(JSON.stringify(frame));
    send(frames);
    feed.take(notices);
  };
  session.opened();
  say({ type: "welcome", runs: [], heartbeat_s: 20, limits: { queries: 8 }, scopes: ["read"], features: [] });
  return { clock, session, store, feed, sent, say, due };
}

test("the first change asks for one frame, and the next one only after the marks were taken", () => {
  let asked = 0;
  const store = new Store(() => (asked += 1));
  store.apply([event("chain_start", "chain_0", 0, { messages: [] })]);
  store.takeChainRows([row(0)]);
  assert.equal(asked, 1);
  const marks = store.take();
  assert.deepEqual([[...marks.chains], [...marks.rows], marks.events], [[chainKey("r", "chain_0")], ["r"], false]);
  assert.deepEqual([...store.take().chains], []);
  store.list([event("message", "chain_0", 1)]);
  assert.equal(asked, 2);
  assert.equal(store.take().events, true);
});

test("events make views, with their tokens", () => {
  const store = new Store();
  store.apply([event("chain_start", "chain_0", 0, { messages: [] }), chunk("chain_0", 1, "Hel", 0), chunk("chain_0", 2, "lo", 3)]);
  assert.equal(store.chain("r", "chain_0").generation.text, "Hello");
  assert.deepEqual(store.tokens("r", "chain_0").ids(1), [1, 2]);
  store.forgetChain("r", "chain_0");
  assert.equal(store.chain("r", "chain_0"), undefined);
  assert.equal(store.tokens("r", "chain_0"), undefined);
  assert.equal(store.views.chains, 0);
});

test("the end of a run that comes before what its chains still send ends no chain", () => {
  const store = new Store();
  store.apply([event("chain_start", "chain_0", 0, { messages: [] }), chunk("chain_0", 1, "Hel", 0)]);
  store.applyToRuns([event("run_end", "", 9, { status: "completed" })]);
  store.apply([chunk("chain_0", 2, "lo", 3)]);
  assert.equal(store.chain("r", "chain_0").generation.text, "Hello");
  assert.equal(store.views.runs.get("r").fields.status, "completed");
});

test("memory stays bounded, however much comes", () => {
  const store = new Store();
  for (let run = 0; run < 40; run += 1) {
    store.takeChainRows(Array.from({ length: 1_000 }, (_, n) => ({ run_id: `r${run}`, chain_id: `chain_${n}`, state: "ended" })));
    store.apply(Array.from({ length: 400 }, (_, n) => ({ ...chunk(`chain_${n}`, n, "word ", 0), run_id: `r${run}` })));
    store.list(Array.from({ length: 1_000 }, (_, n) => event("message", "c", n)));
  }
  const rows = [...store.chainRows.values()].reduce((sum, each) => sum + each.size, 0);
  assert.equal(rows, store.rowCount);
  assert.ok(rows <= 16_384 && rows >= 16_000, `${rows} rows`);
  assert.equal(store.rows("r39").length, 1_000);
  assert.ok(store.events.length <= 4_000);
  assert.ok(store.tracks.size <= 256);
  assert.ok(store.views.chains <= 16_384);
});

test("rows of one run alone are bounded too, and those that run stay", () => {
  const store = new Store();
  store.takeChainRows([row(0, { state: "running" })]);
  for (let i = 1; i <= 20_000; i += 1) store.takeChainRows([row(i)]);
  assert.ok(store.rowCount <= 16_384);
  assert.equal(store.row("r", "chain_0").state, "running");
  assert.ok(store.row("r", "chain_20000"));
});

test("runs are followed: a new run is asked for at once, others in a moment", () => {
  const { clock, store, feed, sent, say, due } = made();
  feed.followRuns();
  assert.deepEqual(sent.map((frame) => [frame.type, frame.id]), [["subscribe", "runs"], ["query", "runs-1"]]);
  say({ type: "rows", id: "runs-1", rows: [{ run_id: "r", status: "running" }] });
  say({ type: "done", id: "runs-1", missing: ["there is no record"] });
  assert.equal(store.runRows.get("r").status, "running");
  assert.deepEqual(feed.missing.get("runs"), ["there is no record"]);
  say({ type: "batch", id: "runs", cursor: "c", events: [event("run_start", "", 0, { chains: 4 }), event("run_start", "", 0, {}, { run_id: "s" })] });
  assert.equal(due.length, 1);
  assert.equal(sent.length, 2);
  clock.now += 1;
  due[0].action();
  assert.deepEqual(sent.at(-1), { type: "query", id: "runs-2", what: "runs", limit: 64 });
  assert.equal(store.views.runs.get("r").fields.expected_chains, 4);
});

test("rows that are followed say what they lack, and are asked for again after the server could not go on", () => {
  const { clock, store, feed, sent, say } = made();
  feed.watchChains({ run: "r" });
  const watched = sent.at(-1);
  assert.equal(watched.watch, true);
  say({ type: "rows", id: watched.id, rows: [row(0)], total: 1, missing: ["a row is missing"] });
  assert.deepEqual(feed.missing.get("chains"), ["a row is missing"]);
  say({ type: "error", id: watched.id, code: 503, message: "more rows have changed than were kept" });
  assert.deepEqual(feed.missing.get("chains"), ["a row is missing", "more rows have changed than were kept"]);
  feed.tick();
  assert.equal(sent.at(-1), watched); // in a moment
  clock.now += 1;
  feed.tick();
  const again = sent.at(-1);
  assert.deepEqual([again.watch, again.run], [true, "r"]);
  assert.notEqual(again.id, watched.id);
  assert.equal(feed.missing.get("chains"), undefined);
  say({ type: "rows", id: again.id, rows: [row(0), row(1)], total: 2 });
  assert.ok(store.row("r", "chain_1"));
  say({ type: "error", id: again.id, code: 400, message: "the query is wrong" });
  say({ type: "error", id: again.id, code: 503, message: "gone" });
  clock.now += 1_000;
  feed.tick();
  assert.equal(sent.filter((frame) => frame.watch).at(-1), again);
});

test("a question that the server cannot answer now is asked again, each time after a longer pause, and what is missing is said meanwhile", () => {
  const { clock, store, feed, sent, say } = made();
  feed.followRuns();
  const pauses = [];
  for (const code of [503, 429, 503, 503, 503, 503, 503]) {
    const { id } = sent.at(-1);
    say({ type: "error", id, code, message: `not now: ${id}` });
    assert.deepEqual(feed.missing.get("runs"), [`not now: ${id}`]);
    const since = clock.now;
    while (sent.at(-1).id === id) {
      clock.now += 0.5;
      feed.tick();
    }
    pauses.push(clock.now - since);
  }
  assert.deepEqual(pauses, [1, 2, 4, 8, 16, 30, 30]);
  assert.equal(feed.knowsRuns("r"), false);
  say({ type: "rows", id: sent.at(-1).id, rows: [{ run_id: "r", name: "guess" }], total: 1 });
  say({ type: "done", id: sent.at(-1).id });
  assert.equal(store.runRows.get("r").name, "guess");
  assert.deepEqual([feed.knowsRuns("r"), feed.missing.get("runs"), feed.asked.size], [true, undefined, 0]);
});

test("a question that the server refuses for good is not asked again", () => {
  const { clock, feed, sent, say } = made();
  feed.followRuns();
  say({ type: "error", id: sent.at(-1).id, code: 403, message: "it needs the read scope" });
  const asked = sent.length;
  clock.now += 1_000;
  feed.tick();
  assert.equal(sent.length, asked);
  assert.deepEqual(feed.missing.get("runs"), ["it needs the read scope"]);
});

test("an answer that takes long is said to be missing until it comes, and one that never comes is asked for again", () => {
  const { clock, feed, sent, say } = made();
  feed.followRuns();
  const first = sent.at(-1);
  clock.now += 11;
  feed.tick();
  assert.deepEqual([sent.at(-1), feed.missing.get("runs")], [first, ["the server has not answered yet which runs it has"]]);
  clock.now += 110;
  feed.tick();
  assert.deepEqual(sent.at(-1), { type: "stop", id: first.id });
  clock.now += 1;
  feed.tick();
  const again = sent.at(-1);
  assert.deepEqual([again.type, again.what], ["query", "runs"]);
  say({ type: "rows", id: first.id, rows: [{ run_id: "old" }], total: 1 }); // too late
  clock.now += 11;
  feed.tick();
  assert.equal(feed.missing.get("runs").length, 1);
  say({ type: "rows", id: again.id, rows: [{ run_id: "r" }], total: 1 });
  say({ type: "done", id: again.id });
  assert.deepEqual([[...feed.store.runRows.keys()], feed.missing.get("runs")], [["r"], undefined]);
});

test("rows that are followed and do not change are not asked for again, and the time without a connection does not count", () => {
  const { clock, session, feed, sent, say } = made();
  feed.watchChains({ run: "r" });
  for (const { id, watch } of sent.slice(-2)) {
    say({ type: "rows", id, rows: [row(0)], total: 1 });
    if (!watch) say({ type: "done", id });
  }
  feed.askSteps();
  session.closed(1006);
  clock.now += 10_000;
  feed.tick();
  session.opened();
  say({ type: "welcome", runs: [], heartbeat_s: 20, limits: { queries: 8 }, scopes: ["read"], features: [] });
  const before = sent.length;
  feed.tick();
  assert.deepEqual([sent.length, feed.missing.size], [before, 0]);
});

test("a page that fails begins the whole answer anew, and nobody asks again for what is no longer wanted", () => {
  const { clock, store, feed, sent, say } = made();
  feed.watchChains({ run: "r" });
  const [open, watched] = sent.slice(-2);
  say({ type: "rows", id: watched.id, rows: [row(0)], total: 2, next: "behind 0" });
  say({ type: "error", id: sent.at(-1).id, code: 503, message: "the reader died" });
  assert.deepEqual(sent.at(-1), { type: "stop", id: watched.id });
  clock.now += 1;
  feed.tick();
  const again = sent.at(-1);
  assert.deepEqual([again.what, again.watch, again.after], ["chains", true, undefined]);
  say({ type: "rows", id: again.id, rows: [row(1)], total: 1 });
  assert.deepEqual(store.rows("r").map((each) => each.chain_id), ["chain_1"]);
  say({ type: "error", id: open.id, code: 503, message: "the reader died" });
  say({ type: "error", id: again.id, code: 503, message: "the reader died" });
  feed.unwatchChains();
  const before = sent.length;
  clock.now += 1_000;
  feed.tick();
  assert.deepEqual(sent.slice(before), []);
});

test("the newest runs are asked for once at a time, however slow the server is", () => {
  const { clock, feed, sent, say, due } = made();
  const begins = (number) => say({ type: "batch", id: "runs", cursor: `x.${number}`, events: [event("run_start", "", number, { chains: 4 })] });
  feed.followRuns();
  say({ type: "done", id: sent.at(-1).id });
  const newest = () => sent.filter((frame) => frame.limit === 64);
  clock.now += 1;
  for (let number = 0; number < 20; number += 1) {
    begins(number);
    clock.now += 2;
    for (const { action } of due.splice(0)) action();
  }
  assert.equal(newest().length, 1);
  say({ type: "done", id: newest()[0].id });
  assert.equal(newest().length, 2); // what has begun since
  say({ type: "done", id: newest()[1].id });
  assert.equal(newest().length, 2);
});

test("every page of an answer is asked for, and only one if there is a limit", () => {
  const { store, feed, sent, say } = made();
  feed.watchChains({ run: "r" });
  say({ type: "done", id: "chains-1" });
  say({ type: "rows", id: "chains-2", rows: [row(0)], total: 2, next: "behind 0" });
  assert.deepEqual(sent.at(-1), { type: "query", id: "chains-3", what: "chains", watch: false, run: "r", after: "behind 0" });
  say({ type: "rows", id: "chains-3", rows: [row(1)], total: 2 });
  say({ type: "done", id: "chains-3" });
  say({ type: "rows", id: "chains-2", rows: [row(0, { reward: 1 })], changed: true });
  assert.deepEqual(store.rows("r").map((each) => each.reward ?? null), [1, null]);
  assert.equal(feed.total, 2);
  feed.watchChains({ run: "r", limit: 1 });
  assert.deepEqual(sent.slice(-3).map((frame) => [frame.type, frame.id]), [["stop", "chains-2"], ["query", "chains-4"], ["query", "chains-5"]]);
  const before = sent.length;
  say({ type: "rows", id: "chains-5", rows: [row(0)], total: 2, next: "behind 0" });
  assert.equal(sent.length, before);
});

test("chains that are open come first, unless all rows are there before them", () => {
  const { store, feed, sent, say } = made();
  feed.watchChains({ run: "r", filter: { group_id: "g" } });
  assert.deepEqual(sent.at(-2), { type: "query", id: "chains-1", what: "chains", limit: 1000, run: "r", filter: { group_id: "g", state: "running" } });
  say({ type: "rows", id: "chains-1", rows: [row(1)], total: 1 });
  assert.deepEqual(store.rows("r").map((each) => each.chain_id), ["chain_1"]);
  assert.equal(feed.total, null);
  feed.watchChains({ run: "r" });
  assert.deepEqual(sent.slice(-4).map((frame) => [frame.type, frame.id]), [["stop", "chains-1"], ["stop", "chains-2"], ["query", "chains-3"], ["query", "chains-4"]]);
  say({ type: "rows", id: "chains-4", rows: [row(0), row(1, { reward: 1 })], total: 2 });
  say({ type: "rows", id: "chains-3", rows: [row(1)], total: 1 });
  assert.equal(store.row("r", "chain_1")?.reward, 1);
  const before = sent.length;
  feed.watchChains({ filter: { state: "running" } });
  assert.equal(sent.length, before + 3); // two are stopped, and the open ones are all that is asked for
});

test("rows that are asked for again after a lost connection replace those from before", () => {
  const { session, store, feed, say } = made();
  feed.watchChains({});
  say({ type: "rows", id: "chains-2", rows: [row(0), row(1)] });
  session.closed(1006);
  session.opened();
  say({ type: "welcome", runs: [] });
  say({ type: "rows", id: "chains-2", rows: [row(1)] });
  assert.deepEqual(store.rows("r").map((each) => each.chain_id), ["chain_1"]);
});

test("open runs are known from the first message of the server on, until rows tell more", () => {
  const { session, store, feed, say } = made();
  const [open, over] = [{ run_id: "a", parent_run_id: null, status: "running", chains: 1 }, { run_id: "b", parent_run_id: null, status: "completed", chains: 1 }];
  session.closed(1006);
  session.opened();
  say({ type: "welcome", runs: [open, over] });
  assert.deepEqual([...store.runRows], [["a", { run_id: "a", parent_run_id: null, status: "running" }]]);
  store.takeRunRows([{ run_id: "a", parent_run_id: null, status: "running", name: "long" }]);
  feed.takeOne({ kind: "welcome", runs: [open], scopes: [], features: [] });
  assert.equal(store.runRows.get("a")?.name, "long");
});

test("chains on screen are one subscription, whose filter follows what is on screen", () => {
  const { clock, feed, sent } = made();
  feed.showChains("r", ["chain_1", "chain_0"]);
  assert.deepEqual(sent.at(-1), { type: "subscribe", id: "chains", filter: { runs: ["r"], chains: ["chain_0", "chain_1"] }, since: "live" });
  feed.showChains("r", ["chain_0", "chain_1"]);
  assert.equal(sent.length, 1);
  clock.now += 1;
  feed.showChains("r", ["chain_2"]);
  assert.deepEqual(sent.at(-1), { type: "update", id: "chains", filter: { runs: ["r"], chains: ["chain_2"] } });
  feed.showChains("r", []);
  assert.deepEqual(sent.at(-1), { type: "unsubscribe", id: "chains" });
});

test("a chain that is over is told by its story, once, in all its windows", () => {
  const { store, feed, sent, say } = made();
  store.takeChainRows([row(0)]);
  const stories = () => sent.filter((frame) => frame.what === "chain");
  feed.showChains("r", ["chain_0"]);
  feed.showChains("r", ["chain_0"]);
  assert.deepEqual(stories().map((frame) => [frame.id, frame.run, frame.chain]), [["chain-1", "r", "chain_0"]]);
  const key = chainKey("r", "chain_0");
  assert.ok(feed.loading.has(key));
  say({ type: "rows", id: "chain-1", rows: [event("chain_start", "chain_0", 0, { messages: [{ role: "user", content: "?" }] })], next: "more" });
  say({ type: "done", id: "chain-1" });
  assert.ok(feed.loading.has(key));
  say({ type: "rows", id: "chain-2", rows: [event("chain_end", "chain_0", 5, { finish_reason: "answered", final_response: "yes" })] });
  say({ type: "done", id: "chain-2", missing: ["the record is behind"] });
  assert.ok(!feed.loading.has(key));
  assert.deepEqual(feed.missing.get(key), ["the record is behind"]);
  assert.equal(store.chain("r", "chain_0").fields.final_response, "yes");
  feed.showChains("r", ["chain_0"]);
  assert.equal(stories().length, 2);
});

test("a story that cannot be told is not asked for again and again, and says why", () => {
  const { store, feed, sent, say } = made();
  store.takeChainRows([row(0)]);
  feed.showChains("r", ["chain_0"]);
  say({ type: "error", id: "chain-1", code: 404, message: "there is no such chain" });
  for (let i = 0; i < 5; i += 1) feed.showChains("r", ["chain_0"]);
  assert.equal(sent.filter((frame) => frame.what === "chain").length, 1);
  assert.deepEqual(feed.missing.get(chainKey("r", "chain_0")), ["there is no such chain"]);
});

test("a running chain of which no snapshot comes is told by its story too", () => {
  const { clock, store, feed, sent } = made();
  store.takeChainRows([row(0, { state: "running" })]);
  feed.showChains("r", ["chain_0"]);
  assert.equal(sent.filter((frame) => frame.what === "chain").length, 0);
  clock.now += 2;
  feed.showChains("r", ["chain_0"]);
  assert.equal(sent.filter((frame) => frame.what === "chain").length, 1);
});

test("events of the list do not reach the views, which get theirs in order", () => {
  const { store, feed, say } = made();
  feed.followEvents({ types: ["chain_start"] });
  say({ type: "batch", id: "events", cursor: "c", events: [event("chain_start", "chain_0", 7)] });
  assert.equal(store.events.length, 1);
  assert.equal(store.views.runs.size, 0);
});

test("answers to what the feed did not ask, such as cancel, go to who did", () => {
  const { feed, say } = made();
  const answers = [];
  feed.onAnswer = (notice) => answers.push(notice);
  say({ type: "done", id: "cancel-1", run_id: "r", chains: ["chain_0"] });
  say({ type: "error", id: "cancel-2", code: 403, message: "the token lacks the scope" });
  assert.deepEqual(answers.map((notice) => [notice.kind, notice.id]), [["done", "cancel-1"], ["refused", "cancel-2"]]);
  assert.deepEqual(answers[0].chains, ["chain_0"]);
});

test("a step that comes again is not listed twice, and steps are bounded", () => {
  const store = new Store();
  const step = (run, n) => ({ run_id: run, row: "train_step", train_step: n, timestamp: n, metrics: {} });
  store.takeStepRows([step("t", 1), step("t", 2)]);
  store.takeStepRows([step("t", 2), step("t", 3)]);
  assert.deepEqual(store.stepRows.get("t").map((row) => row.train_step), [1, 2, 3]);
  for (let n = 0; n < 40_000; n += 1) store.takeStepRows([step("u", n)]);
  const rows = [...store.stepRows.values()].flat();
  assert.ok(rows.length <= 16_384 && rows.at(-1).train_step === 39_999);
});

test("runs are bounded, and the latest stay", () => {
  const store = new Store();
  store.takeRunRows(Array.from({ length: 5_000 }, (_, n) => ({ run_id: `r${n}` })));
  assert.equal(store.runRows.size, 4_096);
  assert.ok(store.runRows.has("r4999"));
});
