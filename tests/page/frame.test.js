// Frames that do not take long: what may wait does.

import assert from "node:assert/strict";
import { test } from "node:test";

/** @type {(() => void)[]} */
let asked = [];
let now = 0;
globalThis.requestAnimationFrame = (/** @type {any} */ task) => asked.push(task);
globalThis.performance.now = () => now;
const { inNextFrame, whenThereIsTime } = await import("../../src/rollcast/serve/page/frame.js");

/** The next frame, and the microtasks behind it. */
async function frame() {
  const tasks = asked;
  asked = [];
  for (const task of tasks) task();
  await new Promise(setImmediate);
}

test("a task runs once in the next frame, however often it was asked for", async () => {
  let runs = 0;
  const task = () => (runs += 1);
  inNextFrame(task);
  inNextFrame(task);
  await frame();
  await frame();
  assert.equal(runs, 1);
});

test("tasks that take no time share a frame, in the order in which they came", async () => {
  const done = [];
  for (const name of ["a", "b", "c"]) whenThereIsTime(() => done.push(name));
  await frame();
  assert.deepEqual(done, ["a", "b", "c"]);
});

test("a task that takes long leaves the others to the next frame, also if it draws in a microtask", async () => {
  const done = [];
  whenThereIsTime(() => queueMicrotask(() => ((now += 5), done.push("long"))));
  whenThereIsTime(() => done.push("short"));
  await frame();
  assert.deepEqual(done, ["long"]);
  await frame();
  assert.deepEqual(done, ["long", "short"]);
  await frame();
  assert.equal(done.length, 2);
});
