// The socket around the session: attempts that nobody answers, a machine that slept, a hidden tab, another token.

import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";

import { Socket } from "../../src/rollcast/serve/page/socket.js";

/** A WebSocket whose server is played by the test. */
class Wire {
  static all = [];

  constructor(url, protocol) {
    Object.assign(this, { url, protocol, readyState: 0, sent: [], closed: false });
    Wire.all.push(this);
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  close() {
    this.closed = true;
  }

  open() {
    this.readyState = 1;
    this.onopen();
  }

  say(frame) {
    this.onmessage({ data: JSON.stringify(frame) });
  }

  welcome() {
    this.open();
    this.say({ type: "welcome", runs: [], heartbeat_s: 20, limits: {}, scopes: ["read"], features: [] });
  }

  end(code, reason = "") {
    this.readyState = 3;
    this.onclose({ code, reason });
  }
}

let clock;
let socket;

beforeEach(() => {
  mock.timers.enable({ apis: ["setInterval", "setTimeout"] });
  Wire.all = [];
  clock = { now: 100, epoch: 1e6 };
  socket = new Socket("ws://here/", () => {}, { token: "t", WebSocket: Wire, now: () => clock.now, epoch: () => clock.epoch });
});

afterEach(() => {
  socket.close();
  mock.timers.reset();
});

/** Time passes, in steps of a tick. */
function pass(seconds) {
  for (let i = 0; i < seconds * 10; i += 1) {
    clock.now += 0.1;
    clock.epoch += 0.1;
    mock.timers.tick(100);
  }
}

/** The machine sleeps: no timer runs, and the clock that is never set back may stand still. */
function sleep(seconds, { standing = true } = {}) {
  clock.epoch += seconds;
  if (!standing) clock.now += seconds;
}

const last = () => Wire.all.at(-1);
const word = () => socket.session.state.word;

test("an attempt that nobody answers is given up, and tried again", () => {
  socket.connect();
  pass(14);
  assert.equal(Wire.all.length, 1);
  pass(3);
  assert.ok(Wire.all[0].closed);
  assert.equal(Wire.all.length, 2);
  last().open();
  pass(17); // nor does a server count that says nothing after the connection is made
  assert.equal(Wire.all.length, 3);
  last().welcome();
  assert.equal(word(), "connected");
});

test("a server that does not answer is asked after half a heartbeat, and let go of after a whole one", () => {
  socket.connect();
  last().welcome();
  pass(10.5);
  assert.deepEqual(last().sent.at(-1), { type: "ping" });
  last().say({ type: "pong" });
  pass(19);
  assert.equal(Wire.all.length, 1);
  pass(2.5);
  assert.ok(Wire.all[0].closed);
  assert.equal(Wire.all.length, 2);
  assert.equal(word(), "reconnecting");
  assert.ok(socket.session.lostFor > 20, "since it was heard last");
  assert.match(socket.session.why, /does not answer/);
});

test("on a slow line, where an answer stands behind a large message, it waits longer each time, up to three heartbeats", () => {
  const waits = [];
  socket.connect();
  for (let i = 0; i < 4; i += 1) {
    last().welcome();
    const began = clock.now;
    const wire = last();
    while (!wire.closed) pass(0.1);
    waits.push(Math.round(clock.now - began));
    pass(6); // the pause before the next attempt
  }
  assert.deepEqual(waits, [20, 30, 50, 60]);
});

for (const standing of [true, false]) {
  test(`after sleep the server is asked at once${standing ? ", though the clock stood still" : ""}`, () => {
    socket.connect();
    last().welcome();
    pass(1);
    sleep(8 * 3600, { standing });
    pass(0.1);
    assert.deepEqual(last().sent.at(-1), { type: "ping" });
    assert.equal(word(), "connected"); // what it said meanwhile may still wait to be read
    pass(4);
    assert.ok(Wire.all[0].closed);
    assert.equal(Wire.all.length, 2);
    last().welcome();
    assert.equal(word(), "connected");
  });
}

test("a server that answers after sleep is kept", () => {
  socket.connect();
  last().welcome();
  sleep(8 * 3600);
  pass(0.1);
  last().say({ type: "pong" });
  pass(9);
  assert.equal(Wire.all.length, 1);
  assert.equal(word(), "connected");
});

test("a pause before the next attempt does not outlast sleep", () => {
  socket.connect();
  for (let i = 0; i < 8; i += 1) {
    last().end(1006);
    pass(11);
  }
  last().end(1006);
  const attempts = Wire.all.length;
  sleep(3600);
  pass(0.1);
  assert.equal(Wire.all.length, attempts + 1);
});

test("another token connects anew, also after a refusal", () => {
  socket.connect();
  last().open();
  last().say({ type: "error", code: 4500, message: "the token is missing or wrong" });
  last().end(4500, "the token is missing or wrong");
  assert.equal(word(), "refused");
  assert.equal(socket.session.refusedWith, 4500);
  pass(60);
  sleep(3600);
  pass(1);
  assert.equal(Wire.all.length, 1, "it does not try again by itself");
  socket.useToken("other");
  last().open();
  assert.equal(last().sent[0].token, "other");
  last().welcome();
  assert.equal(word(), "connected");
  assert.equal(socket.session.refusedWith, 0);
  socket.useToken(null); // one that is connected, too
  last().open();
  assert.ok(!("token" in last().sent[0]));
  assert.equal(Wire.all.length, 3);
});

test("what an old connection still says is passed over", () => {
  socket.connect();
  const old = last();
  old.welcome();
  socket.useToken("other");
  old.say({ type: "error", code: 4500, message: "late" });
  old.end(4500, "late");
  assert.notEqual(word(), "refused");
});

test("cancel is answered, also by a refusal, and its outcome is unknown if the connection is lost", () => {
  const notices = [];
  socket.onNotices = (came) => notices.push(...came);
  socket.connect();
  assert.equal(socket.cancel("r"), null);
  last().welcome();
  const one = socket.cancel("r", { group: "g" });
  last().say({ type: "done", id: one, run_id: "r", group_id: "g", chains: ["a"], ending: 3, over: 5 });
  const two = socket.cancel("r");
  last().say({ type: "error", id: two, code: 404, message: "no run 'r' is open" });
  assert.deepEqual(notices.filter((each) => each.kind === "done").map((each) => each.counts), [{ ending: 3, notBegun: 0, over: 5 }]);
  assert.deepEqual(notices.filter((each) => each.kind === "refused").map((each) => each.message), ["no run 'r' is open"]);
  socket.cancel("r");
  last().end(1006);
  assert.equal(socket.session.cancels.size, 0);
});
