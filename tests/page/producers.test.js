// The producers of a hub, as the page tells of them.

import assert from "node:assert/strict";
import { test } from "node:test";

import { lasting } from "../../src/rollcast/serve/page/format.js";
import { producersInWords, producersOf } from "../../src/rollcast/serve/page/producers.js";

const row = (source, rest = {}) => ({ source, host: "there", connected: true, silent_s: 1, clock_s: 0.2, refused: {}, open_runs: 1, open_chains: 3, ...rest });
const wrongWith = (rest) => producersOf([row("a", rest)])[0].wrong;

test("who is missed comes first, and who has ended last", () => {
  const found = producersOf([row("a"), row("b", { connected: false, open_runs: 0 }), row("c", { connected: false }), row("d")]);
  assert.deepEqual(found.map(({ source, state }) => [source, state]), [["c", "silent"], ["a", "connected"], ["d", "connected"], ["b", "ended"]]);
  assert.equal(producersInWords(found), "1 silent, 2 connected, 1 ended");
});

test("a difference of clocks is told above a minute", () => {
  assert.deepEqual(wrongWith({ clock_s: 60 }), []);
  assert.deepEqual(wrongWith({ clock_s: -61 }), ["clock 1 min 1 s behind"]);
  assert.deepEqual(wrongWith({ clock_s: 600 }), ["clock 10 min 0 s ahead"]);
  assert.deepEqual(wrongWith({ clock_s: null }), []);
});

test("what was refused is told by cause", () => {
  assert.deepEqual(wrongWith({ refused: { grammar: 2, "a\nb": 1 } }), ["2 refused: grammar", "1 refused: a b"]);
});

test("a silence is told in whole seconds", () => {
  assert.equal(lasting(0.4), "0 s");
  assert.equal(lasting(59.9), "59 s");
  assert.equal(lasting(60), "1 min 0 s");
});
