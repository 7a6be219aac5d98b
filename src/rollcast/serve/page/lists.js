// Long lists: which rows are on screen, which are wanted, and in which order.

import { compareIds } from "./group.js";
import { stateOf } from "./wall.js";

/** @typedef {import("./store.js").Row} Row */

/**
 * The rows of a list that are to be drawn, of rows that are all equally high.
 * @param {{count: number, rowHeight: number, top: number, height: number, overscan?: number}} list heights in pixels; `top`: how far it is scrolled
 * @returns {{first: number, last: number, before: number, after: number}} `last` is behind the last one; `before`, `after`: pixels left empty
 */
export function windowOf({ count, rowHeight, top, height, overscan = 8 }) {
  const first = Math.max(Math.min(Math.floor(top / rowHeight) - overscan, count - 1), 0);
  const last = Math.max(Math.min(Math.ceil((top + height) / rowHeight) + overscan, count), Math.min(first + 1, count));
  return { first, last, before: first * rowHeight, after: (count - last) * rowHeight };
}

/**
 * Whether a scrolled view is at its end, so that it follows what comes.
 * @param {{top: number, height: number, total: number}} view in pixels
 */
export function isFollowing({ top, height, total }) {
  return total - top - height <= 30;
}

/**
 * What rows are wanted: by field, one of these values. Beside the fields of a row: `state` as the wall names it, `reward` as `0..0.5`,
 * `tool` that was called, `trained` (`yes`, `no`), `text` somewhere in the answer, the error or the ids.
 * @typedef {Record<string, string[]>} Chips
 */

/**
 * @template {Row} R
 * @param {readonly R[]} rows
 * @param {Chips} chips
 * @returns {R[]}
 */
export function filterRows(rows, chips) {
  const wanted = Object.entries(chips).filter(([, values]) => values.length);
  return rows.filter((row) => wanted.every(([name, values]) => values.some((value) => fits(row, name, value))));
}

/**
 * @param {Row} row
 * @param {string} name
 * @param {string} value
 */
function fits(row, name, value) {
  if (name === "state") return stateOf(row) === value;
  if (name === "tool") return Object.hasOwn(row.tool_use ?? {}, value);
  if (name === "trained") return (typeof row.advantage === "number") === (value === "yes");
  if (name === "text") {
    const needle = value.toLowerCase();
    return [row.chain_id, row.group_id, row.answer, row.error].some((each) => String(each ?? "").toLowerCase().includes(needle));
  }
  const range = value.match(/^(-?[\d.]*)\.\.(-?[\d.]*)$/);
  if (range) return isWithin(row[name], range[1] ?? "", range[2] ?? "");
  return String(row[name] ?? "") === value;
}

/**
 * @param {unknown} found
 * @param {string} low "" for no bound
 * @param {string} high
 */
function isWithin(found, low, high) {
  if (typeof found !== "number") return false;
  return (low === "" || found >= Number(low)) && (high === "" || found <= Number(high));
}

/**
 * @template {Row} R
 * @param {readonly R[]} rows
 * @param {string} sort the field; with `-` before it the highest first. Rows without it come last.
 * @returns {R[]}
 */
export function sortRows(rows, sort) {
  const down = sort.startsWith("-");
  const name = down ? sort.slice(1) : sort;
  return [...rows].sort((one, other) => {
    const [first, second] = [one[name] ?? null, other[name] ?? null];
    if (first === null || second === null) {
      if (first !== second) return first === null ? 1 : -1;
    } else {
      const order = typeof first === "number" && typeof second === "number" ? first - second : compareIds(String(first), String(second));
      if (order) return down ? -order : order;
    }
    return compareIds(one.chain_id, other.chain_id);
  });
}

/**
 * The neighbour of a row, for keys: `delta` rows further, held at both ends; the first one if the row is not there.
 * @template T
 * @param {readonly T[]} items
 * @param {(item: T) => boolean} isCurrent
 * @param {number} delta
 * @returns {T | undefined}
 */
export function neighbour(items, isCurrent, delta) {
  const at = items.findIndex(isCurrent);
  return at < 0 ? items[0] : items[Math.max(0, Math.min(at + delta, items.length - 1))];
}
