// One requestAnimationFrame for everything that draws. A task runs once a frame however often it was asked for.

/** @type {Set<() => void>} */
let waiting = new Set();
let requested = 0;

/** Run the task in the next frame. @param {() => void} task */
export function inNextFrame(task) {
  waiting.add(task);
  requested ||= requestAnimationFrame(run);
}

const SPARE_MS = 1; // of a frame: after that, tasks that may wait do

/** @type {Set<() => void>} */
const queue = new Set();

/** Run the task in a frame that has time for it, after those that came before it. What it draws may be drawn in a microtask. @param {() => void} task */
export function whenThereIsTime(task) {
  queue.add(task);
  inNextFrame(runQueue);
}

function runQueue() {
  const began = performance.now();
  const runNext = () => {
    const [task] = queue;
    if (task === undefined) return;
    queue.delete(task);
    task();
    queueMicrotask(() => (performance.now() - began < SPARE_MS ? runNext() : inNextFrame(runQueue)));
  };
  runNext();
}

function run() {
  requested = 0;
  const tasks = waiting;
  waiting = new Set();
  for (const task of tasks) task();
}
