// What the page asks of the server for the chains on screen.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Feed } from "../../src/rollcast/serve/page/feed.js";
import { Store } from "../../src/rollcast/serve/page/store.js";

/** A feed whose server is this list of questions. */
function feedOf() {
  const asked = [];
  const line = {
    subscribe() {},
    update() {},
    unsubscribe() {},
    stop() {},
    ask: (query) => (asked.push(query), `q${asked.length}`),
    session: { now: () => 100, subscriptions: new Map() },
  };
  return { feed: new Feed(line, new Store(), () => {}), asked };
}

const row = (state) => ({ run_id: "r", chain_id: "c", state });
const event = (event_type, seq, data = {}, step = null) => ({ event_type, chain_id: "c", run_id: "r", seq, timestamp: 1, data, step });

test("a chain that ends while its story is read is read again, to its end", () => {
  const { feed, asked } = feedOf();
  feed.takeRows([row("running")]);
  feed.showChains("r", ["c"]);
  feed.askStory("r", "c");
  feed.takeOne({ kind: "rows", id: "q1", rows: [event("chain_start", 0, { messages: [] })], anew: true, total: null, next: null });
  feed.takeRows([row("ended")]);
  feed.showChains("r", ["c"]);
  assert.equal(asked.length, 1); // the first one is still being told
  feed.takeOne({ kind: "done", id: "q1", missing: [] });
  assert.equal(asked.length, 2);
  feed.takeOne({ kind: "done", id: "q2", missing: ["the server has no more"] });
  feed.showChains("r", ["c"]);
  assert.equal(asked.length, 2); // what is not there is not asked for again and again
});

test("a chain that is not on screen any more is not read again", () => {
  const { feed, asked } = feedOf();
  feed.takeRows([row("running")]);
  feed.showChains("r", ["c"]);
  feed.askStory("r", "c");
  feed.takeRows([row("ended")]);
  feed.showChains("r", []);
  feed.takeOne({ kind: "done", id: "q1", missing: [] });
  assert.equal(asked.length, 1);
});

test("a hub is asked for its producers once at a time, and its answer replaces the last one", () => {
  const { feed, asked } = feedOf();
  assert.ok(!feed.isHub);
  feed.features = ["hub"];
  assert.ok(feed.isHub);
  feed.askSources();
  feed.askSources();
  assert.deepEqual(asked, [{ what: "sources" }]);
  const rows = (id, next, ...names) => feed.takeOne({ kind: "rows", id, rows: names.map((source) => ({ source })), anew: id === "q1", total: null, next });
  rows("q1", "1", "a");
  feed.takeOne({ kind: "done", id: "q1", missing: [] });
  assert.deepEqual(feed.sources, []); // there is a second page
  rows("q2", null, "b");
  feed.takeOne({ kind: "done", id: "q2", missing: [] });
  assert.deepEqual(feed.sources.map(({ source }) => source), ["a", "b"]);
  feed.askSources();
  rows("q3", null, "b");
  feed.takeOne({ kind: "done", id: "q3", missing: [] });
  assert.deepEqual(feed.sources.map(({ source }) => source), ["b"]);
});
