// Long lists: which rows are on screen, which are wanted, by what they can be chosen, and in which order.

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
 * What rows are wanted: by field, one of these values. Besides the fields of a row: `state` as the wall names it, `tool` that was called,
 * `trained` (`yes`, `no`), `text` somewhere in the answer, the error or the ids. A number may be given as a range, `0..0.5` with both ends
 * or `0..<0.5` without the upper one; `none` means that a row has no such field.
 * @typedef {Record<string, string[]>} Chips
 */

/** The fields by which rows are chosen in an address; other names of a query say something else. */
export const CHOSEN_BY = ["state", "reward", "tool", "finish_reason", "policy_last", "train_step", "source", "session", "trained", "text"];

/**
 * The chips of an address, without what else its query says.
 * @param {Record<string, string[]>} query
 * @returns {Chips}
 */
export function chipsOf(query) {
  /** @type {Chips} */
  const chips = {};
  for (const name of CHOSEN_BY) if (query[name]?.length) chips[name] = query[name];
  return chips;
}

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
    return [row.chain_id, row.group_id, row.source, row.session, row.answer, row.error].some((each) => String(each ?? "").toLowerCase().includes(needle));
  }
  if (value === "none") return row[name] === null || row[name] === undefined;
  const range = value.match(/^(|-?\d[\d.e+-]*?)\.\.(<?)(|-?\d[\d.e+-]*)$/);
  if (range) return isWithin(row[name], range[1] ?? "", range[3] ?? "", range[2] === "<");
  return String(row[name] ?? "") === value;
}

/**
 * @param {unknown} found
 * @param {string} low "" for no bound
 * @param {string} high
 * @param {boolean} open whether `high` itself is not within
 */
function isWithin(found, low, high, open) {
  if (typeof found !== "number") return false;
  return (low === "" || found >= Number(low)) && (high === "" || (open ? found < Number(high) : found <= Number(high)));
}

/**
 * Whether several processes emit these chains, so that rows have to say whose they are.
 * @param {readonly Row[]} rows
 */
export function haveSeveralSources(rows) {
  return rows.some((row) => (row.source ?? "") !== (rows[0]?.source ?? ""));
}

// -- by what rows can be chosen ---------------------------------------------------------------------------------------------

/**
 * A field with its values in these rows, and how many rows have each. `more`: values that are left out.
 * @typedef {{name: string, choices: {value: string, count: number}[], more: number}} Facet
 */

const MAX_CHOICES = 10; // of a field
const MAX_REWARDS = 6; // that differ, to be named one by one; if there are more, ranges are

/**
 * By what rows can be chosen: only fields in which they differ.
 * @param {readonly Row[]} rows
 * @returns {Facet[]}
 */
export function facetsOf(rows) {
  const valuesOf = /** @type {[string, (row: Row) => string[]][]} */ ([
    ["state", (row) => [stateOf(row)]],
    ["tool", (row) => Object.keys(row.tool_use ?? {})],
    ["finish_reason", (row) => (typeof row.finish_reason === "string" ? [row.finish_reason] : [])],
    ["policy_last", (row) => (typeof row.policy_last === "number" ? [String(row.policy_last)] : [])],
    ["train_step", (row) => (typeof row.train_step === "number" ? [String(row.train_step)] : [])],
    ["source", (row) => (row.source ? [row.source] : [])],
  ]);
  const facets = valuesOf.map(([name, read]) => {
    /** @type {Map<string, number>} */
    const counts = new Map();
    for (const row of rows) for (const value of read(row)) counts.set(value, (counts.get(value) ?? 0) + 1);
    const choices = [...counts].map(([value, count]) => ({ value, count })).sort((one, other) => other.count - one.count);
    return { name, choices: choices.slice(0, MAX_CHOICES), more: Math.max(choices.length - MAX_CHOICES, 0) };
  });
  facets.splice(1, 0, rewardFacet(rows));
  return facets.filter(({ name, choices }) => choices.length > 1 || (name === "tool" && choices.some((each) => each.count < rows.length)));
}

/** @param {readonly Row[]} rows @returns {Facet} */
function rewardFacet(rows) {
  const rewards = rows.map((row) => row.reward).filter((reward) => typeof reward === "number");
  const distinct = [...new Set(rewards)].sort((one, other) => one - other);
  /** @type {string[]} */
  let values = distinct.map((each) => `${each}..${each}`);
  if (distinct.length > MAX_REWARDS) {
    const [low, high] = [/** @type {number} */ (distinct[0]), /** @type {number} */ (distinct.at(-1))];
    const unit = 10 ** (Math.floor(Math.log10(high - low)) - 2); // bounds are rounded to a hundredth of what the rewards span
    const [first, second, third] = [1, 2, 3].map((part) => Number((Math.round((low + ((high - low) * part) / 4) / unit) * unit).toPrecision(15)));
    values = [`..<${first}`, `${first}..<${second}`, `${second}..<${third}`, `${third}..`];
  }
  if (distinct.length) values.push("none");
  const choices = values.map((value) => ({ value, count: rows.reduce((sum, row) => sum + Number(fits(row, "reward", value)), 0) }));
  return { name: "reward", choices: choices.filter((each) => each.count > 0), more: 0 };
}

/**
 * A text to sort by, so that `chain_2` comes before `chain_10`. (A collator does the same, ten times slower.)
 * @param {unknown} value
 */
function countingKey(value) {
  return String(value).replace(/\d+/g, (digits) => digits.padStart(16, "0"));
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
  const keyed = rows.map((row) => {
    const value = name === "state" ? stateOf(row) : (row[name] ?? null);
    return { row, value: value === null || typeof value === "number" ? value : countingKey(value), id: countingKey(row.chain_id) };
  });
  keyed.sort((one, other) => {
    const [first, second] = [one.value, other.value];
    if (first === null || second === null) {
      if (first !== second) return first === null ? 1 : -1;
    } else if (first !== second) {
      const order = typeof first === typeof second ? (first < second ? -1 : 1) : typeof first === "number" ? -1 : 1;
      return down ? -order : order;
    }
    return one.id < other.id ? -1 : one.id > other.id ? 1 : 0;
  });
  return keyed.map((each) => each.row);
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
