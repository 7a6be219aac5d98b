// The producers of a hub, as the page tells of them.

import assert from "node:assert/strict";
import { test } from "node:test";

import { isTroubled, producersInWords, producersOf } from "../../src/rollcast/serve/page/producers.js";

const row = (source, rest = {}) => ({ source, host: "there", connected: true, silent_s: 1, clock_s: 0.2, refused: {}, open_runs: 1, open_chains: 3, ...rest });

test("who is missed comes first, and who has ended last", () => {
  const found = producersOf([row("a"), row("b", { connected: false, open_runs: 0 }), row("c", { connected: false }), row("d")]);
  assert.deepEqual(found.map(({ source, state }) => [source, state]), [["c", "silent"], ["a", "connected"], ["d", "connected"], ["b", "ended"]]);
  assert.equal(producersInWords(found), "2 connected, 1 silent, 1 ended");
});

test("the silence of one that is not connected goes on after the hub told of it", () => {
  const [silent, connected] = producersOf([row("a", { connected: false, silent_s: 40 }), row("b")], 3);
  assert.equal(silent.silentS, 43);
  assert.equal(connected.silentS, 1);
});

test("a difference of clocks is told above a minute", () => {
  assert.deepEqual(producersOf([row("a", { clock_s: 60 }), row("b", { clock_s: -61 }), row("c", { clock_s: null })]).map(({ clockS }) => clockS), [null, -61, null]);
});

test("what was refused is a sum with its causes", () => {
  const [one] = producersOf([row("a", { refused: { grammar: 2, payload: 1, "forged source": 0 } })]);
  assert.equal(one.refused, 3);
  assert.deepEqual(one.causes, ["grammar", "payload"]);
});

test("trouble is silence, a refusal or a clock", () => {
  const troubled = (rest) => isTroubled(producersOf([row("a", rest)])[0]);
  assert.ok(!troubled({}));
  assert.ok(!troubled({ connected: false, open_runs: 0 }));
  assert.ok(troubled({ connected: false }));
  assert.ok(troubled({ refused: { grammar: 1 } }));
  assert.ok(troubled({ clock_s: 600 }));
});

test("a row that lacks everything is shown as a producer without a name", () => {
  assert.deepEqual(producersOf([{}]), [{ source: "", host: "", state: "ended", silentS: 0, chains: 0, refused: 0, causes: [], clockS: null }]);
});
