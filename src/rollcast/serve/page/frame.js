// One requestAnimationFrame for everything that draws. A task runs once a frame however often it was asked for.

/** @type {Set<() => void>} */
let waiting = new Set();
let requested = 0;

/** Run the task in the next frame. @param {() => void} task */
export function inNextFrame(task) {
  waiting.add(task);
  requested ||= requestAnimationFrame(run);
}

function run() {
  requested = 0;
  const tasks = waiting;
  waiting = new Set();
  for (const task of tasks) task();
}
