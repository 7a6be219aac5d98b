// The session: what it sends, what it tells, and how it comes back.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Session } from "../../src/rollcast/serve/page/session.js";

const WELCOME = {
  type: "welcome",
  version: 1,
  runs: [{ run_id: "r", parent_run_id: null, status: "running", chains: 2 }],
  heartbeat_s: 20,
  limits: { message_bytes: 65536, messages_per_s: 50, subscriptions: 16, queries: 2, rows: 1000 },
  scopes: ["read"],
  features: ["parts", "queries", "replay"],
};

/** A session on a clock of its own, which `clock.now` moves. */
function made({ token = null, random = 0.5 } = {}) {
  const clock = { now: 100, epoch: 1_000_000 };
  const session = new Session({ token, now: () => clock.now, epoch: () => clock.epoch, random: () => random });
  const take = (frame) => session.receive(JSON.stringify(frame));
  const connect = (welcome = WELCOME) => {
    session.opened();
    return take(welcome);
  };
  return { session, clock, take, connect };
}

const event = (seq, more = {}) => ({
  event_type: "message",
  chain_id: "chain_0",
  timestamp: 1_000_000,
  data: {},
  step: null,
  depth: null,
  seq,
  run_id: "r",
  group_id: null,
  source: "",
  ...more,
});
const batch = (cursor, events, more = {}) => ({ type: "batch", id: "a", cursor, events, ...more });
const seqs = (notices) => notices.flatMap((notice) => notice.events).map((each) => each.seq);

test("hello says who comes, and has the token only if there is one", () => {
  const [hello] = made({ token: "secret" }).session.opened();
  assert.equal(hello.type, "hello");
  assert.equal(hello.role, "page");
  assert.equal(hello.token, "secret");
  assert.ok(hello.features.includes("parts"));
  assert.ok(!("token" in made().session.opened()[0]));
});

test("what is asked before the connection is there is sent after welcome", () => {
  const { session, connect } = made();
  assert.deepEqual(session.subscribe("a", { runs: ["r"] }), []);
  assert.deepEqual(session.ask("q", { what: "runs" }), []);
  const { frames, notices } = connect();
  assert.deepEqual(frames, [
    { type: "subscribe", id: "a", filter: { runs: ["r"] }, since: "live" },
    { type: "query", id: "q", what: "runs" },
  ]);
  assert.equal(notices[0].kind, "welcome");
  assert.deepEqual(notices[0].scopes, ["read"]);
});

test("events come to their subscription, and those of others are passed over", () => {
  const { session, take, connect } = made();
  session.subscribe("a", {});
  connect();
  const { notices } = take(batch("c1", [event(1), event(2)]));
  assert.deepEqual(notices, [{ kind: "events", id: "a", events: [event(1), event(2)] }]);
  assert.deepEqual(take({ ...batch("c", [event(3)]), id: "other" }).notices, []);
});

test("a lost connection is resumed from each subscription's cursor", () => {
  const { session, take, connect } = made();
  session.subscribe("a", {});
  session.subscribe("b", {}, { since: "start" });
  connect();
  take(batch("after 7", [event(7)]));
  session.closed(1006);
  const { frames } = connect();
  assert.deepEqual(frames.map((frame) => [frame.id, frame.since]), [["a", "after 7"], ["b", "start"]]);
});

test("an empty batch moves the cursor", () => {
  const { session, take, connect } = made();
  session.subscribe("a", {});
  connect();
  assert.deepEqual(take(batch("after 9", [])).notices, []);
  session.closed(1006);
  assert.equal(connect().frames[0].since, "after 9");
});

test("a batch in parts is whole with its last part, and without it changes nothing", () => {
  const { session, take, connect } = made();
  session.subscribe("a", {});
  connect();
  assert.deepEqual(take(batch("c", [event(1)], { part: 1, parts: 3 })).notices, []);
  assert.deepEqual(take(batch("c", [event(2)], { part: 2, parts: 2 })).notices, [
    { kind: "events", id: "a", events: [event(1), event(2)] },
  ]);
  take(batch("late", [event(3)], { part: 1, parts: 2 }));
  session.closed(1006);
  assert.equal(connect().frames[0].since, "c");
});

test("if a part is missing, the subscription begins again from its cursor", () => {
  const { session, take, connect } = made();
  session.subscribe("a", {});
  connect();
  take(batch("c", [event(1)]));
  take(batch("d", [event(2)], { part: 1, parts: 3 }));
  const { frames, notices } = take(batch("d", [event(4)], { part: 3, parts: 3 }));
  assert.deepEqual(notices, []);
  assert.deepEqual(frames.map((frame) => [frame.type, frame.since]), [["unsubscribe", undefined], ["subscribe", "c"]]);
});

test("the filter is changed at most ten times a second, and the last one counts", () => {
  const { session, clock, connect } = made();
  session.subscribe("a", { chains: ["chain_0"] });
  connect();
  const sent = [];
  for (let i = 1; i <= 40; i += 1) {
    clock.now += 0.01;
    sent.push(...session.update("a", { chains: [`chain_${i}`] }));
  }
  clock.now += 0.2;
  sent.push(...session.tick());
  assert.ok(sent.length >= 2 && sent.length <= 6, `${sent.length} updates`);
  assert.deepEqual(sent.at(-1), { type: "update", id: "a", filter: { chains: ["chain_40"] } });
  assert.deepEqual(session.tick(), []);
  assert.deepEqual(session.update("a", { chains: ["chain_40"] }), []);
});

test("no more queries run than the server lets run; the others follow", () => {
  const { session, take, connect } = made();
  for (const id of ["1", "2", "3"]) session.ask(id, { what: "steps" });
  assert.deepEqual(connect().frames.map((frame) => frame.id), ["1", "2"]);
  const { frames, notices } = take({ type: "done", id: "1", missing: ["something"] });
  assert.deepEqual(frames, [{ type: "query", id: "3", what: "steps" }]);
  assert.deepEqual(notices, [{ kind: "done", id: "1", cursor: null, missing: ["something"], chains: [] }]);
});

test("a query that was being answered is asked again after a lost connection, and says that it begins anew", () => {
  const { session, take, connect } = made();
  session.ask("q", { what: "chains", watch: true });
  connect();
  const rows = { type: "rows", id: "q", rows: [{ run_id: "r", chain_id: "chain_0" }], total: 1 };
  assert.equal(take(rows).notices[0].anew, false);
  session.closed(1006);
  assert.deepEqual(connect().frames, [{ type: "query", id: "q", what: "chains", watch: true }]);
  assert.equal(take(rows).notices[0].anew, true);
  assert.equal(take({ ...rows, changed: true }).notices[0].anew, false);
});

test("rows of a query that was stopped are passed over", () => {
  const { session, take, connect } = made();
  session.ask("q", { what: "runs" });
  connect();
  assert.deepEqual(session.stop("q"), [{ type: "stop", id: "q" }]);
  assert.deepEqual(take({ type: "rows", id: "q", rows: [{}] }).notices, []);
  assert.deepEqual(take({ type: "error", id: "q", code: 404, message: "there is no query" }).notices, []);
});

test("a refused request is told, and is not repeated after a lost connection", () => {
  const { session, take, connect } = made();
  session.subscribe("a", { types: ["nonsense"] });
  connect();
  const { notices } = take({ type: "error", id: "a", code: 400, message: "no such type" });
  assert.deepEqual(notices, [{ kind: "refused", id: "a", code: 400, message: "no such type" }]);
  session.closed(1006);
  assert.deepEqual(connect().frames, []);
});

test("a refused change of a filter leaves the subscription", () => {
  const { session, clock, take, connect } = made();
  session.subscribe("a", {});
  connect();
  take({ type: "subscribed", id: "a", recovered: true, cursor: "c" });
  clock.now += 1;
  session.update("a", { types: ["nonsense"] });
  take({ type: "error", id: "a", code: 400, message: "no such type" });
  assert.equal(take(batch("d", [event(1)])).notices.length, 1);
});

test("ping is answered, and what is not known is passed over", () => {
  const { session, take, connect } = made();
  connect();
  assert.deepEqual(take({ type: "ping" }).frames, [{ type: "pong" }]);
  for (const odd of ["", "{", "7", "null", "[]", '{"type":"later_frame"}', '{"type":"batch","id":"x"}']) {
    assert.deepEqual(session.receive(odd), { frames: [], notices: [] });
  }
});

test("pauses before reconnecting double up to ten seconds, vary, and begin anew after a steady connection", () => {
  const { session, clock, connect } = made({ random: 0 });
  const pauses = Array.from({ length: 10 }, () => session.closed(1006));
  assert.deepEqual(pauses.slice(0, 4), [0.05, 0.1, 0.2, 0.4]);
  assert.equal(pauses.at(-1), 5);
  assert.equal(made({ random: 1 }).session.closed(1006), 0.1);
  connect();
  clock.now += 5;
  assert.equal(session.closed(1006), 0.05);
});

for (const [code, back] of [[4001, true], [4008, true], [4012, true], [1006, true], [1001, true], [4003, false], [4500, false], [4507, false]]) {
  test(`a connection closed with ${code} ${back ? "comes back" : "does not come back"}`, () => {
    const { session, take, connect } = made();
    connect();
    take({ type: "error", code, message: "the reason" });
    assert.equal(session.closed(code) !== null, back);
    assert.equal(session.state.word, back ? "reconnecting" : "refused");
  });
}

test("why the server refused is told in its own words", () => {
  const { session, take } = made();
  session.opened();
  take({ type: "error", code: 4500, message: "the token is missing or wrong" });
  assert.equal(session.closed(4500, "the token is missing or wrong"), null);
  assert.deepEqual(session.state, { word: "refused", waiting: 0, why: "the token is missing or wrong" });
});

test("a server that says nothing for three heartbeats counts as gone", () => {
  const { session, clock, take, connect } = made();
  connect();
  clock.now += 59;
  assert.equal(session.isSilent, false);
  take({ type: "ping" });
  clock.now += 59;
  assert.equal(session.isSilent, false);
  clock.now += 2;
  assert.equal(session.isSilent, true);
});

test("the state is a word: connecting, catching up, connected, reconnecting", () => {
  const { session, clock, take, connect } = made();
  assert.equal(session.state.word, "connecting");
  session.subscribe("a", {}, { since: "start" });
  connect();
  assert.equal(session.state.word, "catching up");
  clock.now += 0.35;
  take(batch("c", [event(1, { timestamp: clock.epoch - 3600 })]));
  assert.equal(session.state.word, "catching up");
  take(batch("d", [event(2, { timestamp: clock.epoch - 0.1 })]));
  assert.equal(session.state.word, "connected");
  session.closed(1006);
  assert.equal(session.state.word, "reconnecting");
});

test("old events after which nothing comes are caught up with", () => {
  const { session, clock, take, connect } = made();
  session.subscribe("a", {}, { since: "start" });
  connect();
  take(batch("c", [event(1, { timestamp: clock.epoch - 3600 })]));
  clock.now += 1;
  session.tick();
  assert.equal(session.state.word, "connected");
});

test("a replay says so, and keeps its speed over a lost connection", () => {
  const { session, take, connect } = made();
  session.subscribe("a", {}, { since: "start", speed: 2 });
  assert.equal(connect().frames[0].speed, 2);
  assert.equal(session.state.word, "replaying");
  assert.deepEqual(session.speed("a", "max"), [{ type: "speed", id: "a", speed: "max" }]);
  assert.deepEqual(session.seek("a", { time: 12.5 }), [{ type: "seek", id: "a", time: 12.5 }]);
  take(batch("c", [event(1)]));
  session.closed(1006);
  const [again] = connect().frames;
  assert.deepEqual([again.since, again.speed], ["c", "max"]);
  assert.deepEqual(session.speed("unknown", 1), []);
});

test("while it is paused events wait, are counted, and then come in order", () => {
  const { session, take, connect } = made();
  session.subscribe("a", {});
  connect();
  session.pause();
  assert.deepEqual(take(batch("c", [event(1), event(2)])).notices, []);
  take(batch("d", [event(3)]));
  assert.deepEqual(session.state, { word: "paused", waiting: 3, why: "" });
  const { frames, notices } = session.resume();
  assert.deepEqual(frames, []);
  assert.deepEqual(seqs(notices), [1, 2, 3]);
  assert.equal(session.state.waiting, 0);
});

test("when too much waits, the server is told to stop, and goes on from there after the pause", () => {
  const { session, take, connect } = made();
  session.subscribe("a", {});
  connect();
  session.pause();
  const frames = [];
  for (let i = 0; i < 300; i += 1) {
    const events = Array.from({ length: 100 }, (_, n) => event(i * 100 + n));
    frames.push(...take(batch(`after ${i}`, events)).frames);
  }
  assert.deepEqual(frames, [{ type: "unsubscribe", id: "a" }]);
  take({ type: "done", id: "a" });
  const after = session.resume();
  assert.deepEqual(after.frames, [{ type: "subscribe", id: "a", filter: {}, since: "after 299" }]);
  assert.equal(seqs(after.notices).length, 30_000);
});

test("a gap stands where the server says that events are gone", () => {
  const { session, take, connect } = made();
  session.subscribe("a", {});
  connect();
  take(batch("c", [event(5)]));
  session.closed(1006);
  connect();
  const lost = [{ run_id: "r", source: "", from_seq: null, to_seq: 20, status: "running" }];
  const { notices } = take({ type: "subscribed", id: "a", recovered: false, cursor: null, lost });
  const [gap] = notices[0].events;
  assert.equal(gap.event_type, "gap");
  assert.deepEqual([gap.data.from_seq, gap.data.to_seq, gap.run_id], [6, 20, "r"]);
  assert.ok(!("run_status" in gap.data));
  assert.deepEqual(seqs(take(batch("d", [event(22, { event_type: "chain_snapshot" })])).notices), [22, 22]);
  assert.equal(session.counts.gaps, 1);
});

test("a run that ended meanwhile has a gap with its end", () => {
  const { session, take, connect } = made();
  session.subscribe("a", {});
  connect();
  take(batch("c", [event(5)]));
  session.closed(1006);
  connect({ ...WELCOME, runs: [{ ...WELCOME.runs[0], status: "completed" }] });
  const { notices } = take({ type: "subscribed", id: "a", recovered: false, cursor: null });
  const [gap] = notices[0].events;
  assert.deepEqual([gap.data.from_seq, gap.data.run_status], [6, "completed"]);
});

test("events that were recovered have no gap", () => {
  const { session, take, connect } = made();
  session.subscribe("a", {});
  connect();
  take(batch("c", [event(5)]));
  session.closed(1006);
  connect();
  assert.deepEqual(take({ type: "subscribed", id: "a", recovered: true, cursor: "c" }).notices, []);
  assert.deepEqual(seqs(take(batch("d", [event(9)])).notices), [9]);
});

test("cancel names a run, a chain or a group, and needs a connection", () => {
  const { session, connect } = made();
  assert.deepEqual(session.cancel("1", "r"), []);
  connect();
  assert.deepEqual(session.cancel("1", "r", { chain: "chain_3" }), [{ type: "cancel", id: "1", run_id: "r", chain_id: "chain_3" }]);
  assert.deepEqual(session.cancel("1", "r", { group: "group_3" }), [{ type: "cancel", id: "1", run_id: "r", group_id: "group_3" }]);
});

test("what comes late of a subscription that was ended is passed over", () => {
  const { session, take, connect } = made();
  session.subscribe("a", {});
  connect();
  assert.deepEqual(session.unsubscribe("a"), [{ type: "unsubscribe", id: "a" }]);
  assert.deepEqual(take(batch("c", [event(1)])).notices, []);
  assert.deepEqual(session.unsubscribe("a"), []);
});
