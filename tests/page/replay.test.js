// A replay without a browser: rows as they were, stories that replace what was seen in parts, gaps, the clock, and what the session sends.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Feed } from "../../src/rollcast/serve/page/feed.js";
import { Gaps } from "../../src/rollcast/serve/page/gaps.js";
import { rowAt, runRowAt, spanOf } from "../../src/rollcast/serve/page/past.js";
import { Replay, speedOf } from "../../src/rollcast/serve/page/replay.js";
import { Session } from "../../src/rollcast/serve/page/session.js";
import { Store, chainKey } from "../../src/rollcast/serve/page/store.js";
import { chainFromStory } from "../../src/rollcast/serve/page/story.js";

const at = (seq, event_type, data = {}, more = {}) => ({
  event_type, chain_id: "c", timestamp: 100 + seq, data, step: null, depth: 0, seq, run_id: "r", group_id: "g", source: "", ...more,
}); // prettier-ignore
const chunk = (seq, content, offset, id, step = 1) =>
  at(seq, "llm_generation_chunk", { content, offset, token_ids: [id], logprobs: [-0.5] }, { step });
const STORY = [
  at(1, "chain_start", { messages: [{ role: "user", content: "Go." }], index: 0 }),
  at(2, "llm_generation_start", {}, { step: 1 }),
  chunk(3, "one ", 0, 11),
  chunk(4, "two", 4, 12),
  at(5, "llm_generation_end", { content: "one two", finish_reason: "stop", token_ids: [11, 12], logprobs: [-0.5, -0.5] }, { step: 1 }),
  at(6, "llm_generation_start", {}, { step: 2 }),
  chunk(7, "three", 0, 13, 2),
];
const ROW = {
  run_id: "r", chain_id: "c", group_id: "g", state: "ended", started_at: 101, ended_at: 120, reward: 1, advantage: 0.5, train_step: 3, answer: "x",
  finish_reason: "answered", completion_tokens: 9,
}; // prettier-ignore

test("a row is as it was: not there, then running, then over, and what was learned comes last", () => {
  assert.equal(rowAt(ROW, undefined, 100.5), null);
  const running = rowAt(ROW, undefined, 110);
  assert.deepEqual([running.state, running.activity, running.reward, running.advantage], ["running", "waiting", null, null]);
  assert.ok(!("answer" in running) && !("finish_reason" in running));
  const over = rowAt(ROW, undefined, 120, { learnedAt: 130 });
  assert.deepEqual([over.state, over.reward, over.advantage], ["ended", 1, null]);
  assert.equal(rowAt(ROW, undefined, 130, { learnedAt: 130 }).advantage, 0.5);
  assert.equal(ROW.advantage, 0.5);
});

test("a chain whose end was lost is lost only once its run was over", () => {
  const lost = { run_id: "r", chain_id: "c", state: "lost", started_at: 101 };
  assert.equal(rowAt(lost, undefined, 110, { runEndedAt: 120 }).state, "running");
  assert.equal(rowAt(lost, undefined, 120, { runEndedAt: 120 }).state, "lost");
});

test("a run is as it was, and can be replayed from its start to its end", () => {
  const row = { run_id: "r", started_at: 100, ended_at: 200, status: "completed", mean_reward: 0.7, chains: 4 };
  assert.equal(runRowAt(row, [], 99), null);
  assert.equal(runRowAt(row, [], 200), row);
  const then = runRowAt(row, [{ ...ROW, reward: 0.25 }, { run_id: "r", chain_id: "d", state: "running" }], 150);
  assert.deepEqual([then.status, then.ended_at, then.chains, then.open_chains, then.mean_reward], ["running", null, 2, 1, 0.25]);
  assert.deepEqual(spanOf(row, [], 1000), { start: 100, end: 200, goesOn: false });
  assert.deepEqual(spanOf({ ...row, ended_at: null, status: "running" }, [], 1000), { start: 100, end: 1000, goesOn: true });
  assert.deepEqual(spanOf({ ...row, ended_at: null, status: "lost" }, [ROW, { started_at: 140 }], 1000), { start: 100, end: 140, goesOn: false });
  assert.equal(spanOf({ run_id: "r" }, [], 1000), null);
});

test("a story replaces what was seen in parts, and what came meanwhile counts once", () => {
  const since = [chunk(7, "three", 0, 13, 2), chunk(8, " four", 5, 14, 2)];
  const { view, tokens, timeLine } = chainFromStory(STORY, since);
  assert.equal(view.generation.text, "three four");
  assert.equal(view.messages.at(-1).content, "one two");
  assert.deepEqual(tokens.ids(1), [11, 12]);
  assert.deepEqual(tokens.ids(2), [13, 14]);
  assert.equal(timeLine.whole, true);
  assert.equal(view.asOf, 8);
});

test("of a replay, the story counts up to what has passed", () => {
  const { view, tokens } = chainFromStory(STORY, [], { until: 3 });
  assert.equal(view.generation.text, "one ");
  assert.deepEqual(tokens.ids(1), [11]);
});

test("a story without the beginning replaces nothing", () => {
  assert.equal(chainFromStory(STORY.slice(2), []), null);
  assert.equal(chainFromStory([], []), null);
  assert.equal(chainFromStory([at(5, "chain_snapshot", { messages: [], state: "generating" })], []), null);
});

test("the text of an open generation stays if the record has none of it", () => {
  const store = new Store();
  store.apply(STORY);
  const record = STORY.filter((event) => event.event_type !== "llm_generation_chunk");
  assert.equal(store.retell("r", "c", record, Infinity), true);
  assert.equal(store.chain("r", "c").generation.text, "three");
  assert.deepEqual(store.tokens("r", "c").ids(1), [11, 12]);
  assert.deepEqual(store.tokens("r", "c").ids(2), [13]);
});

test("a gap stands behind the messages that came before it, and is gone when the story was told", () => {
  const store = new Store();
  store.apply(STORY.slice(0, 5));
  store.apply([at(9, "gap", { from_seq: 6, to_seq: 9, dropped: { llm_generation_chunk: 3 }, reason: "too slow" }, { chain_id: "", step: null })]);
  const [gap] = store.gaps.get(chainKey("r", "c")).all;
  assert.deepEqual([gap.after, gap.from, gap.to], [2, 6, 9]);
  assert.equal(Gaps.words(gap), "3 × llm_generation_chunk missing here: too slow");
  store.taps.set(chainKey("r", "c"), []);
  assert.equal(store.retell("r", "c", STORY, Infinity), true);
  assert.equal(store.gaps.has(chainKey("r", "c")), false);
});

test("another moment begins with nothing, and moves on with what passes", () => {
  const store = new Store();
  store.apply(STORY);
  store.takeChainRows([ROW]);
  store.takeRunRows([{ run_id: "r", started_at: 100, ended_at: 125, status: "completed" }]);
  store.takeStepRows([{ row: "train_step", run_id: "r", train_step: 3, timestamp: 123, metrics: {} }]);
  store.take();
  store.showMoment(101);
  assert.equal(store.take().everything, true);
  assert.equal(store.chain("r", "c"), undefined);
  assert.deepEqual([store.row("r", "c").state, store.runRow("r").status], ["running", "running"]);
  const passing = [at(2, "llm_generation_start", {}, { step: 1 })];
  store.apply(passing);
  store.passed(passing);
  assert.deepEqual([store.moment, store.row("r", "c").activity], [102, "generating"]);
  assert.ok(store.take().rows.has("r"));
  store.showMoment(121);
  assert.deepEqual([store.row("r", "c").state, store.row("r", "c").advantage], ["ended", null]);
  store.showMoment(124);
  assert.equal(store.row("r", "c").advantage, 0.5);
  store.showMoment(null);
  assert.equal(store.row("r", "c").advantage, 0.5);
  assert.equal(store.runRow("r").status, "completed");
});

/** A line that notes what is asked of it. */
function noted() {
  const said = [];
  const say = (kind) => (...rest) => void said.push([kind, ...rest]); // prettier-ignore
  const line = {
    subscribe: say("subscribe"), replay: say("replay"), speed: say("speed"), update: say("update"), unsubscribe: say("unsubscribe"), stop: say("stop"),
    ask: (query) => (said.push(["ask", query]), `q-${said.length}`),
    session: { subscriptions: new Map(), now: () => 1, features: ["replay_at", "record"], state: { word: "connected" } },
  }; // prettier-ignore
  return { said, line };
}

test("a replay asks for a place once, changes its speed, and leaves", () => {
  const { said, line } = noted();
  const store = new Store();
  const feed = new Feed(line, store);
  let now = 50;
  const replay = new Replay(feed, store, () => now);
  replay.show({ runId: "r", start: 100, at: 5, speed: 4 });
  replay.show({ runId: "r", start: 100, at: 5, speed: 4 });
  const asked = said.filter(([kind]) => kind === "replay");
  assert.deepEqual(asked.map((each) => each.slice(1)), [["replay-1", { types: asked[0][2].types }, { time: 105, speed: 4, ofRun: "r" }]]);
  assert.ok(!asked[0][2].types.includes("llm_generation_chunk"));
  now = 51;
  assert.equal(replay.clock, 109);
  replay.pause();
  now = 60;
  assert.equal(replay.clock, 109);
  replay.play();
  now = 100;
  assert.equal(replay.clock, 109 + 40); // the next event comes after ten seconds at most
  store.moment = 112;
  assert.equal(replay.clock, 112);
  replay.show({ runId: "r", start: 100, at: 5, speed: "max" });
  assert.deepEqual(said.filter(([kind]) => kind === "speed").map((each) => each[2]), [0, 4, "max"]);
  feed.showChains("r", ["c"]);
  assert.deepEqual(said.at(-1), ["update", "replay-1", {}]);
  replay.show({ runId: "r", start: 100, at: 2, speed: 1, playing: false });
  assert.deepEqual(said.filter(([kind]) => kind === "replay").at(-1).slice(1), ["replay-2", {}, { time: 102, speed: 0, ofRun: "r" }]);
  replay.leave();
  assert.equal(store.moment, null);
  assert.ok(said.some(([kind, id]) => kind === "subscribe" && id === "runs"));
});

test("the clock waits for an event that comes a little late, and does not go back", () => {
  const store = new Store();
  let now = 50;
  const replay = new Replay(new Feed(noted().line, store), store, () => now);
  replay.show({ runId: "r", start: 100, at: 0, speed: 4 });
  now = 52;
  assert.equal(replay.clock, 108);
  store.moment = 106; // sent half a second late
  assert.equal(replay.clock, 108);
  now = 52.25;
  assert.equal(replay.clock, 108);
  now = 53;
  assert.equal(replay.clock, 110);
  store.moment = 109;
  replay.pause();
  assert.equal(replay.clock, 110);
  replay.show({ runId: "r", start: 100, at: 2, speed: 4 });
  assert.equal(replay.clock, 102); // somebody went back
});

test("a story that was asked for at another moment is dropped", () => {
  const { line } = noted();
  const store = new Store();
  const feed = new Feed(line, store);
  store.takeChainRows([ROW]);
  feed.showChains("r", ["c"]);
  const [id] = [...feed.asked.keys()];
  feed.replay({ runId: "r", time: 105, speed: 0 });
  feed.take([{ kind: "rows", id, rows: STORY, total: null, next: null, changed: false, anew: false }, { kind: "done", id, cursor: null, missing: [], chains: [] }]);
  assert.equal(store.chain("r", "c"), undefined);
});

test("in a replay no story is told before the snapshot came, since it has what is to come", () => {
  const { said, line } = noted();
  const store = new Store();
  const feed = new Feed(line, store);
  feed.take([{ kind: "welcome", runs: [], scopes: [], features: ["record"] }]);
  store.takeChainRows([ROW]);
  feed.replay({ runId: "r", time: 105, speed: 0 });
  line.session.now = () => 100;
  feed.showChains("r", ["c"]);
  const asked = () => said.filter(([kind, query]) => kind === "ask" && query.what === "chain").length;
  assert.equal(asked(), 0);
  const snapshot = { ...STORY[0], event_type: "chain_snapshot", seq: 4, data: { messages: [], state: "generating", as_of: 4, content: "one " } };
  feed.take([{ kind: "events", id: "replay-1", events: [snapshot] }]);
  assert.equal(asked(), 1);
  const [id] = [...feed.asked.keys()];
  const rows = { kind: "rows", id, rows: STORY, total: null, next: null, changed: false, anew: false };
  feed.take([rows, { kind: "done", id, cursor: null, missing: [], chains: [] }]);
  assert.equal(store.chain("r", "c").generation.text, "one two");
  assert.equal(store.chain("r", "c").asOf, 4);
});

test("speeds of addresses", () => {
  assert.deepEqual(["4", "16", "max", "1", undefined, "5", "fast", "-1", ""].map(speedOf), [4, 16, "max", 1, 1, 1, 1, 1, 1]);
});

test("the session asks for a replay by its time, and after a lost connection goes on from its cursor", () => {
  const session = new Session({ now: () => 1, epoch: () => 1000, random: () => 0 });
  session.replay("replay-1", { types: ["run_end"] }, { time: 12.5, speed: 4, ofRun: "r" });
  session.opened();
  const welcome = JSON.stringify({ type: "welcome", runs: [], scopes: ["read"], features: ["replay_at"], heartbeat_s: 20, limits: {} });
  const about = { type: "subscribe", id: "replay-1", filter: { types: ["run_end"] }, since: "start", speed: 4, snapshots: true, of_run: "r" };
  assert.deepEqual(session.receive(welcome).frames, [{ ...about, time: 12.5 }]);
  assert.equal(session.state.word, "replaying");
  session.receive(JSON.stringify({ type: "subscribed", id: "replay-1", recovered: true, cursor: null }));
  session.receive(JSON.stringify({ type: "batch", id: "replay-1", cursor: "x.5", events: [at(3, "chain_start")], part: 1, parts: 2 }));
  session.receive(JSON.stringify({ type: "subscribed", id: "replay-1", recovered: true, cursor: null })); // a changed filter begins anew
  const { notices } = session.receive(JSON.stringify({ type: "batch", id: "replay-1", cursor: "x.6", events: [at(4, "chain_start")] }));
  assert.deepEqual(notices.flatMap((each) => each.events.map((event) => event.seq)), [4]);
  assert.deepEqual(session.speed("replay-1", 0), [{ type: "speed", id: "replay-1", speed: 0 }]);
  session.closed(1006);
  session.opened();
  assert.deepEqual(session.receive(welcome).frames, [{ ...about, since: "x.6", speed: 0 }]);
});

test("an address that stops a replay names the moment that is shown", () => {
  const { line, said } = noted();
  const store = new Store();
  const feed = new Feed(line, store);
  const replay = new Replay(feed, store, () => 0);
  replay.show({ runId: "r", start: 100, at: 5, speed: 1 });
  store.moment = 111; // it has gone on since
  replay.show({ runId: "r", start: 100, at: 5, speed: 1, playing: false });
  assert.deepEqual(said.filter(([kind]) => kind === "replay").at(-1)[3], { time: 105, speed: 0, ofRun: "r" });
  assert.equal(replay.clock, 105);
  const before = said.length;
  replay.show({ runId: "r", start: 100, at: 5, speed: 1, playing: false }); // another view of the same moment
  assert.equal(said.length, before);
});
