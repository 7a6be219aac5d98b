// The wall, long lists, and routes.

import assert from "node:assert/strict";
import { test } from "node:test";

import { chipsOf, facetsOf, filterRows, haveSeveralSources, isFollowing, neighbour, sortRows, windowOf } from "../../src/rollcast/serve/page/lists.js";
import { formatRoute, parseRoute } from "../../src/rollcast/serve/page/route.js";
import { stateOf, wallOf } from "../../src/rollcast/serve/page/wall.js";

const row = (n, more = {}) => ({ run_id: "r", chain_id: `chain_${n}`, group_id: `group_${Math.floor(n / 2)}`, index: n % 2, state: "ended", finish_reason: "answered", ...more });

test("the wall has a row a question, the one with the most spread first", () => {
  const rows = [row(3, { reward: 0 }), row(2, { reward: 1 }), row(0, { reward: 1, reference: 7 }), row(1, { reward: 1 }), row(4, { state: "running", activity: "tool" })];
  const wall = wallOf(rows);
  assert.deepEqual(wall.map((each) => [each.groupId, each.mean, each.spread, each.flat, each.done]), [
    ["group_1", 0.5, 0.5, false, 2],
    ["group_0", 1, 0, true, 2],
    ["group_2", null, 0, false, 0],
  ]);
  assert.deepEqual(wall[0].cells.map((cell) => [cell.chainId, cell.state, cell.level]), [["chain_2", "ended", 1], ["chain_3", "ended", 0]]);
  assert.equal(wall[1].label, "7");
  assert.deepEqual(wall[2].cells[0], { chainId: "chain_4", state: "tool", reward: null, level: null });
});

test("rewards beyond 0 and 1 widen the scale, and a group that is not over is not flat", () => {
  const wall = wallOf([row(0, { reward: -1 }), row(1, { reward: 3 }), row(2, { reward: 1 }), row(3, { state: "running", reward: 1 })]);
  assert.deepEqual(wall[0].cells.map((cell) => cell.level), [0, 1]);
  assert.equal(wall[1].flat, false);
});

test("rows without groups, rewards or anything else have a wall", () => {
  assert.deepEqual(wallOf([]), []);
  const [only] = wallOf([{ run_id: "r", chain_id: "c" }]);
  assert.deepEqual([only.groupId, only.cells.length, only.mean], ["", 1, null]);
});

test("a state is one word", () => {
  assert.equal(stateOf(row(0, { state: "running", activity: "generating" })), "generating");
  assert.equal(stateOf(row(0, { finish_reason: "error" })), "failed");
  assert.equal(stateOf(row(0, { state: "lost" })), "lost");
});

test("a window holds what is on screen and a little more, at any place", () => {
  const list = { count: 2000, rowHeight: 20, height: 600, overscan: 5 };
  assert.deepEqual(windowOf({ ...list, top: 0 }), { first: 0, last: 35, before: 0, after: 39_300 });
  assert.deepEqual(windowOf({ ...list, top: 20_000 }), { first: 995, last: 1035, before: 19_900, after: 19_300 });
  const end = windowOf({ ...list, top: 1_000_000 });
  assert.equal(end.last, 2000);
  assert.ok(end.first < 2000);
  assert.deepEqual(windowOf({ ...list, count: 0, top: 0 }), { first: 0, last: 0, before: 0, after: 0 });
});

test("a view follows within 30 pixels of its end", () => {
  assert.ok(isFollowing({ top: 970, height: 1000, total: 2000 }));
  assert.ok(!isFollowing({ top: 969, height: 1000, total: 2000 }));
});

test("chips filter rows by state, reward, tool, text and any field", () => {
  const rows = [
    row(0, { reward: 0.2, tool_use: { guess: { calls: 1 } }, answer: "I give up" }),
    row(1, { reward: 1, advantage: 0.5 }),
    row(2, { finish_reason: "error", error: "Boom" }),
    row(3, { state: "running", activity: "tool" }),
  ];
  const ids = (chips) => filterRows(rows, chips).map((each) => each.chain_id);
  assert.deepEqual(ids({ state: ["failed", "tool"] }), ["chain_2", "chain_3"]);
  assert.deepEqual(ids({ reward: ["0..0.5"] }), ["chain_0"]);
  assert.deepEqual(ids({ reward: ["0.5.."] }), ["chain_1"]);
  assert.deepEqual(ids({ tool: ["guess"] }), ["chain_0"]);
  assert.deepEqual(ids({ trained: ["yes"] }), ["chain_1"]);
  assert.deepEqual(ids({ text: ["boom"] }), ["chain_2"]);
  assert.deepEqual(ids({ group_id: ["group_0"], text: ["GIVE"] }), ["chain_0"]);
  assert.deepEqual(ids({ tool: ["constructor"] }), []);
  assert.equal(ids({ state: [] }).length, 4);
});

test("rows are sorted either way, and those without the field come last", () => {
  const rows = [row(10, { reward: 0 }), row(2, { reward: 1 }), row(3), row(1, { reward: 0 })];
  const ids = (sort) => sortRows(rows, sort).map((each) => each.chain_id);
  assert.deepEqual(ids("reward"), ["chain_1", "chain_10", "chain_2", "chain_3"]);
  assert.deepEqual(ids("-reward"), ["chain_2", "chain_1", "chain_10", "chain_3"]);
  assert.deepEqual(ids("chain_id"), ["chain_1", "chain_2", "chain_3", "chain_10"]);
});

test("keys move to a neighbour and stop at the ends", () => {
  const items = ["a", "b", "c"];
  const from = (name, delta) => neighbour(items, (each) => each === name, delta);
  assert.deepEqual([from("a", 1), from("c", 1), from("a", -1), from("gone", 1)], ["b", "c", "a", "a"]);
  assert.equal(neighbour([], () => true, 1), undefined);
});

const ROUTES = [
  ["#/", { view: "overview" }],
  ["#/runs", { view: "runs" }],
  ["#/run/01a2", { view: "overview", run: "01a2" }],
  ["#/run/01a2/chains?state=failed&state=tool&sort=-reward", { view: "chains", run: "01a2", query: { state: ["failed", "tool"], sort: ["-reward"] } }],
  ["#/run/01a2/group/group_3/parts?step=47", { view: "group", run: "01a2", group: "group_3", mode: "parts", query: { step: ["47"] } }],
  ["#/run/01a2/chain/chain_5/turn/12", { view: "chain", run: "01a2", chain: "chain_5", turn: 12 }],
  ["#/run/01a2/events", { view: "events", run: "01a2" }],
];
for (const [hash, wanted] of ROUTES) {
  test(`${hash} is read and written`, () => {
    const route = parseRoute(hash);
    const plain = { view: "overview", run: null, group: null, chain: null, mode: null, turn: null, query: {}, ...wanted };
    assert.deepEqual(JSON.parse(JSON.stringify(route)), plain);
    assert.equal(formatRoute(route), hash);
  });
}

test("names with any characters survive a URL", () => {
  const route = { view: "chain", run: "a/b?c#d", chain: "%41 ü&=+", query: { "te xt": ["x&y=z", "100%"], __proto__x: ["1"] } };
  const back = parseRoute(formatRoute(route));
  assert.deepEqual([back.run, back.chain], [route.run, route.chain]);
  assert.deepEqual({ ...back.query }, { ...route.query });
});

test("what is no route leads to the overview", () => {
  for (const hash of ["", "#", "#nonsense", "#/nowhere/x", "#/run", "#/run/r/group", "#/run/%zz/what", "#/run/r/chain"]) {
    assert.equal(parseRoute(hash).view, "overview", hash);
  }
  assert.equal(parseRoute("#/run/r/chain/c/turn/x").turn, null);
  assert.equal(parseRoute("#/run/r?__proto__=x").query.__proto__[0], "x");
});

test("rewards are chosen by ranges whose ends are said, also large, small and negative ones, or by having none", () => {
  const rows = [row(0, { reward: -3.5 }), row(1, { reward: 0.25 }), row(2, { reward: 0.5 }), row(3, { reward: 2e9 }), row(4)];
  const of = (value) => filterRows(rows, { reward: [value] }).map((each) => each.chain_id);
  assert.deepEqual(of("0.25..0.5"), ["chain_1", "chain_2"]);
  assert.deepEqual(of("0.25..<0.5"), ["chain_1"]);
  assert.deepEqual(of("..<0"), ["chain_0"]);
  assert.deepEqual(of("1e+9.."), ["chain_3"]);
  assert.deepEqual(of("-3.5..-3.5"), ["chain_0"]);
  assert.deepEqual(of("none"), ["chain_4"]);
  assert.deepEqual(of("nonsense"), []);
});

test("facets name the fields in which rows differ, and count each value; ranges of rewards leave no row out and none twice", () => {
  const rows = [row(0, { reward: 1, tool_use: { guess: {} } }), row(1, { reward: 0, state: "running", activity: "tool" }), row(2, { finish_reason: "error" })];
  assert.deepEqual(
    facetsOf(rows).map(({ name, choices }) => [name, choices.map(({ value, count }) => [value, count])]),
    [
      ["state", [["ended", 1], ["tool", 1], ["failed", 1]]],
      ["reward", [["0..0", 1], ["1..1", 1], ["none", 1]]],
      ["tool", [["guess", 1]]],
      ["finish_reason", [["answered", 2], ["error", 1]]],
    ],
  );
  assert.deepEqual(facetsOf([row(0), row(0)]), []);
  for (const shift of [0, -1e6, 1e12]) {
    const many = Array.from({ length: 100 }, (_, i) => row(i, { reward: shift + Math.sqrt(i) }));
    const [found] = facetsOf(many).filter(({ name }) => name === "reward");
    for (const each of many) assert.equal(found.choices.filter(({ value }) => filterRows([each], { reward: [value] }).length).length, 1, `${each.reward}`);
  }
});

test("10,000 rows are sorted and filtered", () => {
  const rows = Array.from({ length: 10_000 }, (_, i) => row((i * 7919) % 10_000, { reward: (i % 97) / 97 }));
  const found = sortRows(filterRows(rows, { state: ["ended"], reward: ["0.2.."] }), "chain_id");
  assert.ok(found.length > 7_000 && found.every((each, i) => i === 0 || Number(found[i - 1].chain_id.slice(6)) <= Number(each.chain_id.slice(6))));
});

test("the chips of an address leave out what says something else", () => {
  assert.deepEqual(chipsOf(parseRoute("#/run/r/chains?state=failed&state=lost&sort=-reward&step=4").query), { state: ["failed", "lost"] });
});

test("a row of the wall is the same object as long as nothing of it has changed", () => {
  const rows = [0, 1, 2, 3].map((i) => row(i, { group_id: `group_${i % 2}`, state: "running" }));
  const before = new Map(wallOf(rows).map((each) => [each.groupId, each]));
  const after = new Map(wallOf(rows.map((each, i) => (i === 2 ? { ...each, state: "ended", reward: 1 } : each))).map((each) => [each.groupId, each]));
  assert.equal(after.get("group_1"), before.get("group_1"));
  assert.notEqual(after.get("group_0"), before.get("group_0"));
  assert.equal(after.get("group_0")?.mean, 1);
  const scaled = wallOf(rows, { low: 0, high: 2 });
  assert.notEqual(scaled.find((each) => each.groupId === "group_1"), before.get("group_1"));
  const fewer = wallOf(rows.slice(0, 3));
  assert.equal(fewer.find((each) => each.groupId === "group_1")?.cells.length, 1);
});

test("rows of several processes can be told apart by their source, and chosen by it", () => {
  const rows = [{ source: "host-rank0" }, { source: "host-rank1" }, { source: "host-rank1" }].map((row, i) => ({ run_id: "r", chain_id: `chain_${i}`, ...row }));
  assert.ok(haveSeveralSources(rows));
  assert.ok(!haveSeveralSources(rows.slice(1)));
  assert.ok(!haveSeveralSources([]));
  const facet = facetsOf(rows).find((each) => each.name === "source");
  assert.deepEqual(facet?.choices, [{ value: "host-rank1", count: 2 }, { value: "host-rank0", count: 1 }]);
  assert.deepEqual(filterRows(rows, { source: ["host-rank0"] }).map((row) => row.chain_id), ["chain_0"]);
  assert.equal(facetsOf(rows.slice(1)).find((each) => each.name === "source"), undefined);
});
