// The producers of a hub: which of them send, which are silent, and what is wrong with one. Pure.

import { lasting } from "./format.js";
import { oneLine } from "./text.js";

/**
 * A row of the query `sources`, see docs/hub.md. `state`: `silent` if it left a run open and is not connected, `ended` if it left none.
 * `wrong`: what is, in words.
 * @typedef {Record<string, any> & {state: string, wrong: string[]}} Producer
 */

const CLOCK_S = 60; // a larger difference of clocks is told, as the hub's own log does
const STATES = ["silent", "connected", "ended"];

/**
 * The producers, those that are missed first, and those that have ended last.
 * @param {readonly Record<string, any>[]} rows
 * @returns {Producer[]}
 */
export function producersOf(rows) {
  const found = rows.map((row) => ({ ...row, state: row.connected ? "connected" : row.open_runs ? "silent" : "ended", wrong: wrongWith(row) }));
  return STATES.flatMap((state) => found.filter((each) => each.state === state));
}

/** @param {Record<string, any>} row */
function wrongWith({ refused, clock_s: clock }) {
  const wrong = Object.entries(refused).map(([cause, count]) => `${count} refused: ${oneLine(cause, 40)}`);
  if (Math.abs(clock) > CLOCK_S) wrong.push(`clock ${lasting(Math.abs(clock))} ${clock > 0 ? "ahead" : "behind"}`);
  return wrong;
}

/** How many there are in each state. @param {readonly Producer[]} producers */
export function producersInWords(producers) {
  return STATES.map((state) => `${producers.filter((each) => each.state === state).length} ${state}`).join(", ");
}
