// The session under random schedules: connections that break at any moment, batches in parts, pauses, jumping clocks, and frames that
// are no frames. Each seed is one schedule; a failure names it, and `SEEDS=17:18 node --test` plays that one alone.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Session } from "../../src/rollcast/serve/page/session.js";

const [FIRST, LAST] = (process.env.SEEDS ?? "0:300").split(":").map(Number);
const CHAINS = ["a", "b", "c"];

/** Random numbers from a seed (mulberry32). */
function randomOf(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** A server with one run. It keeps its latest events, and tells snapshots where what a client missed is gone. */
class Server {
  constructor(random, { keeps, again }) {
    Object.assign(this, { random, keeps, again });
    this.history = [];
    this.subscriptions = new Map();
    this.out = [];
  }

  int(n) {
    return Math.floor(this.random() * n);
  }

  emit() {
    const seq = this.history.length;
    this.history.push({ event_type: "message", chain_id: CHAINS[this.int(CHAINS.length)], run_id: "r", seq, timestamp: 1e6, data: {} });
  }

  get oldest() {
    return Math.max(this.history.length - this.keeps, 0);
  }

  take(frame) {
    if (frame.type === "hello") {
      this.say({ type: "welcome", runs: [{ run_id: "r", parent_run_id: null, status: "running", chains: 3 }], heartbeat_s: 20, limits: { queries: 2 }, scopes: ["read"], features: [] });
    } else if (frame.type === "subscribe") {
      assert.ok(!this.subscriptions.has(frame.id), "subscribed twice on one connection");
      this.subscribe(frame);
    } else if (frame.type === "unsubscribe") {
      this.subscriptions.delete(frame.id);
      this.say({ type: "done", id: frame.id });
    } else if (frame.type === "update") {
      this.subscriptions.get(frame.id).chains = frame.filter.chains;
    } else if (frame.type === "ping") {
      this.say({ type: "pong" });
    }
  }

  subscribe({ id, filter, since }) {
    const chains = filter.chains;
    const at = since === "live" ? null : since === "start" ? 0 : Number(since);
    if (at !== null && at >= this.oldest) {
      // A return through a record may begin a little before the cursor.
      const from = this.again && since !== "start" ? Math.max(at - this.int(4), this.oldest) : at;
      this.subscriptions.set(id, { chains, at: from });
      this.say({ type: "subscribed", id, recovered: true, cursor: String(at) });
      return;
    }
    const end = this.history.length;
    const lost = at === null || at === end ? [] : [{ run_id: "r", source: "", from_seq: null, to_seq: end - 1, status: "running" }];
    this.say({ type: "subscribed", id, recovered: at === null, cursor: null, ...(at === null ? {} : { lost }) });
    this.subscriptions.set(id, { chains, at: end });
    const snapshots = chains.map((chain_id) => ({ event_type: "chain_snapshot", chain_id, run_id: "r", seq: end - 1, timestamp: 1e6, data: { as_of: end - 1 } }));
    this.batch(id, snapshots, end);
  }

  /** In one message or in parts. */
  batch(id, events, at) {
    const parts = 1 + (this.random() < 0.4 ? this.int(3) : 0);
    for (let part = 1; part <= parts; part += 1) {
      const from = Math.floor(((part - 1) * events.length) / parts);
      const to = Math.floor((part * events.length) / parts);
      const place = parts > 1 ? { part, parts } : {};
      this.say({ type: "batch", id, cursor: String(at), events: events.slice(from, to), ...place });
    }
  }

  flush() {
    for (const [id, each] of this.subscriptions) {
      const to = Math.min(each.at + 1 + this.int(6), this.history.length);
      if (to === each.at) continue;
      const events = this.history.slice(each.at, to).filter((event) => each.chains.includes(event.chain_id));
      each.at = to;
      this.batch(id, events, to);
    }
  }

  say(frame) {
    this.out.push(JSON.stringify(frame));
  }

  leave() {
    this.subscriptions.clear();
    this.out = [];
  }
}

/** What a page has got of a subscription: every event once from where it began, or a gap for it. */
class Told {
  /** @param {string[]} chains @param {number | null} from null: from its first snapshot on */
  constructor(chains, from) {
    this.chains = chains;
    this.from = from;
    this.last = -1;
    this.covered = new Set();
  }

  take(events) {
    for (const event of events) {
      if (event.event_type === "gap") {
        for (let seq = event.data.from_seq; seq <= event.data.to_seq; seq += 1) this.covered.add(seq);
      } else if (event.event_type === "chain_snapshot") {
        this.from ??= event.data.as_of + 1;
      } else {
        this.from ??= event.seq;
        assert.ok(event.seq > this.last, `event ${event.seq} came twice, or late`);
        this.covered.add(event.seq);
      }
      this.last = event.event_type === "gap" ? this.last : Math.max(this.last, event.seq);
    }
  }

  check(history) {
    assert.ok(this.from !== null, "nothing came");
    for (const { seq, chain_id } of history) {
      if (seq < this.from || !this.chains.includes(chain_id)) continue;
      assert.ok(this.covered.has(seq), `event ${seq} is missing, and no gap says so`);
    }
  }
}

function play(seed) {
  const random = randomOf(seed);
  const int = (n) => Math.floor(random() * n);
  const clock = { now: 100, epoch: 1e6 };
  const session = new Session({ now: () => clock.now, epoch: () => clock.epoch, random, maxWaiting: 12 });
  const server = new Server(random, { keeps: [4, 20, 1e9][int(3)], again: random() < 0.5 });
  for (let i = int(10); i > 0; i -= 1) server.emit();
  const told = new Map([
    ["one", new Told(["a", "b"], server.oldest === 0 ? 0 : null)],
    ["two", new Told(CHAINS, null)],
  ]);
  session.subscribe("one", { chains: ["a", "b"] }, { since: server.oldest === 0 ? "start" : "live" });
  session.subscribe("two", { chains: CHAINS });
  let up = false;
  const give = (notices) => {
    for (const notice of notices) if (notice.kind === "events") told.get(notice.id).take(notice.events);
  };
  const send = (frames) => frames.forEach((frame) => up && server.take(frame));
  const connect = () => {
    session.dialed();
    if (random() < 0.2) return void session.closed(1006); // nobody was there
    up = true;
    send(session.opened());
  };
  const receive = (count) => {
    for (const message of server.out.splice(0, count)) {
      const { frames, notices } = session.receive(message);
      send(frames);
      give(notices);
    }
  };
  const cut = () => {
    up = false;
    server.leave(); // what was on its way is lost, in the middle of a batch or not
    assert.ok(session.closed([1006, 4001, 4008, 4012][int(4)]) !== null);
  };
  const steps = [
    () => server.emit(),
    () => server.emit(),
    () => up && server.flush(),
    () => up && receive(1 + int(3)),
    () => up && receive(1 + int(3)),
    () => (up ? random() < 0.3 && cut() : connect()),
    () => session.pause(),
    () => {
      const { frames, notices } = session.resume();
      send(frames);
      give(notices);
    },
    () => {
      const passed = random() < 0.1 ? 3600 * random() : random();
      clock.now += random() < 0.5 ? passed : random();
      clock.epoch += passed;
      send(session.watchClock().frames);
      send(session.tick());
      if (session.isSilent && up) cut();
    },
  ];
  for (let i = 0; i < 250; i += 1) steps[int(steps.length)]();
  // In the end all is quiet: whatever happened, the page has everything.
  while (!up) connect();
  for (let i = 0; i < 2_000 && (server.out.length || [...server.subscriptions.values()].some((each) => each.at < server.history.length)); i += 1) {
    server.flush();
    receive(10);
  }
  const { frames, notices } = session.resume();
  send(frames);
  give(notices);
  receive(1e6);
  for (let i = 0; i < 100; i += 1) {
    server.flush();
    receive(100);
  }
  for (const each of told.values()) each.check(server.history);
  clock.now += 1;
  session.tick();
  assert.equal(session.state.word, "connected");
}

test("nothing is missing without a gap, and nothing comes twice", () => {
  for (let seed = FIRST; seed < LAST; seed += 1) {
    try {
      play(seed);
    } catch (error) {
      throw new Error(`seed ${seed}: ${error.message}`, { cause: error });
    }
  }
});

/** Any JSON. */
function anything(random, depth = 0) {
  const kind = Math.floor(random() * (depth > 3 ? 6 : 8));
  if (kind === 0) return null;
  if (kind === 1) return random() < 0.5;
  if (kind === 2) return [0, -1, 1e308, 2 ** 53, 0.5, 4500, 3][Math.floor(random() * 7)];
  if (kind <= 5) return ["", "r", "one", "q", "live", "running", "chain_snapshot", "gap", "__proto__", "constructor", "\ud800"][Math.floor(random() * 11)];
  const count = Math.floor(random() * 4);
  if (kind === 6) return Array.from({ length: count }, () => anything(random, depth + 1));
  return Object.fromEntries(Array.from({ length: count }, () => [NAMES[Math.floor(random() * NAMES.length)], anything(random, depth + 1)]));
}

const TYPES = ["welcome", "subscribed", "batch", "rows", "done", "error", "ping", "pong", "later"];
const NAMES = ["type", "id", "events", "cursor", "part", "parts", "runs", "scopes", "features", "limits", "queries", "heartbeat_s", "rows", "total", "next",
  "changed", "chains", "missing", "code", "message", "recovered", "lost", "lost_more", "began_anew", "run_id", "seq", "source", "data", "from_seq", "to_seq",
  "run_status", "status", "event_type", "chain_id", "timestamp", "__proto__"]; // prettier-ignore

test("whatever a server says, the session does not throw, and asks for nothing odd", () => {
  for (let seed = FIRST; seed < LAST; seed += 1) {
    const random = randomOf(seed);
    const clock = { now: 100, epoch: 1e6 };
    const session = new Session({ now: () => clock.now, epoch: () => clock.epoch, random });
    session.subscribe("one", {});
    session.ask("q", { what: "runs" });
    session.opened();
    for (let i = 0; i < 60; i += 1) {
      const frame = Object.fromEntries(NAMES.filter(() => random() < 0.4).map((name) => [name, anything(random)]));
      frame.type = TYPES[Math.floor(random() * TYPES.length)];
      if (random() < 0.5) frame.id = random() < 0.5 ? "one" : "q";
      const text = random() < 0.1 ? JSON.stringify(frame).slice(0, Math.floor(random() * 40)) : JSON.stringify(frame);
      let output;
      try {
        output = session.receive(text);
        clock.now += random();
        session.tick();
      } catch (error) {
        throw new Error(`seed ${seed}: ${text}: ${error.stack}`, { cause: error });
      }
      for (const each of output.frames) assert.ok(["subscribe", "unsubscribe", "update", "query", "ping", "pong"].includes(each.type));
      for (const notice of output.notices) {
        if (notice.kind === "events") for (const event of notice.events) assert.equal(typeof event.event_type, "string");
        if (notice.kind === "rows") for (const row of notice.rows) assert.ok(row !== null && typeof row === "object");
      }
      assert.ok(["connecting", "connected", "catching up", "paused", "reconnecting", "replaying", "refused"].includes(session.state.word));
      assert.equal(typeof session.isSilent, "boolean");
    }
    assert.ok(Number.isFinite(session.heartbeatS) && session.heartbeatS > 0);
  }
});
