// The wall: a row for each question, a cell for each chain, its state while it runs and its reward when it is done.

import { compareIds } from "./group.js";
import { oneLine } from "./text.js";

/** @typedef {import("./store.js").Row} Row */

/**
 * A cell. `level` is where its reward is between the lowest and the highest of the wall, from 0 to 1; null if there is none.
 * @typedef {{chainId: string, state: "waiting" | "generating" | "tool" | "scoring" | "ended" | "failed" | "lost", reward: number | null,
 *   level: number | null}} Cell
 */

/**
 * A row of the wall. `spread`: the standard deviation of its rewards.
 * @typedef {object} WallRow
 * @property {string} groupId "" for chains without a group
 * @property {string} label what tells it from the others: its reference, else its id
 * @property {Cell[]} cells by repeat
 * @property {number} done chains that have ended
 * @property {number | null} mean of the rewards
 * @property {number} spread
 * @property {boolean} flat whether all have ended with the same reward, so that there is nothing to learn
 */

const EQUAL = 1e-9; // rewards that differ by less are equal

/**
 * @param {readonly Row[]} rows of one run
 * @param {RewardScale} [scale] of all that is shown beside them
 * @returns {WallRow[]} those with the most spread first, then by id
 */
export function wallOf(rows, scale = rewardScale(rows)) {
  /** @type {Map<string, Row[]>} */
  const groups = new Map();
  for (const row of rows) {
    const name = row.group_id ?? "";
    const known = groups.get(name);
    if (known) known.push(row);
    else groups.set(name, [row]);
  }
  const made = [...groups].map(([groupId, found]) => sameOrNew(groupId, found, scale));
  return made.sort((one, other) => other.spread - one.spread || compareIds(one.groupId, other.groupId));
}

/** Rows of the wall by the first row of their chains, and what they were made of. @type {WeakMap<Row, {rows: Row[], scale: RewardScale, made: WallRow}>} */
const MADE = new WeakMap();

/**
 * The row of the wall, the same object as before if nothing of it has changed. (A chain's row is replaced and never changed.)
 * @param {string} groupId
 * @param {Row[]} rows
 * @param {RewardScale} scale
 * @returns {WallRow}
 */
function sameOrNew(groupId, rows, scale) {
  const first = /** @type {Row} */ (rows[0]);
  const before = MADE.get(first);
  const isSame = before && before.scale.low === scale.low && before.scale.high === scale.high && before.rows.length === rows.length;
  if (isSame && rows.every((row, i) => row === before.rows[i])) return before.made;
  const made = wallRow(groupId, [...rows], scale);
  MADE.set(first, { rows, scale, made });
  return made;
}

/** @typedef {{low: number, high: number}} RewardScale */

/**
 * From 0 to 1, or further if there are such rewards.
 * @param {readonly Row[]} rows
 * @returns {RewardScale}
 */
export function rewardScale(rows) {
  let [low, high] = [0, 1];
  for (const { reward } of rows) {
    if (typeof reward !== "number") continue;
    low = Math.min(low, reward);
    high = Math.max(high, reward);
  }
  return { low, high };
}

/**
 * @param {number | null | undefined} reward
 * @param {RewardScale} scale
 * @returns {number | null}
 */
export function rewardLevel(reward, { low, high }) {
  return typeof reward === "number" ? (reward - low) / (high - low) : null;
}

/**
 * @param {string} groupId
 * @param {Row[]} rows
 * @param {RewardScale} scale
 * @returns {WallRow}
 */
function wallRow(groupId, rows, scale) {
  rows.sort((one, other) => (one.index ?? 0) - (other.index ?? 0) || compareIds(one.chain_id, other.chain_id));
  const rewards = rows.map((row) => row.reward).filter((reward) => typeof reward === "number");
  const mean = rewards.length ? rewards.reduce((sum, each) => sum + each, 0) / rewards.length : null;
  const variance = mean === null ? 0 : rewards.reduce((sum, each) => sum + (each - mean) ** 2, 0) / rewards.length;
  const reference = rows.find((row) => row.reference !== null && row.reference !== undefined)?.reference;
  const done = rows.filter((row) => row.state === "ended").length;
  return {
    groupId,
    label: reference === undefined ? groupId : oneLine(typeof reference === "string" ? reference : JSON.stringify(reference), 40),
    cells: rows.map((row) => cellOf(row, scale)),
    done,
    mean,
    spread: Math.sqrt(variance),
    flat: rewards.length > 1 && rewards.length === rows.length && done === rows.length && Math.max(...rewards) - Math.min(...rewards) <= EQUAL,
  };
}

/** Cells by the row of their chain, and the scale that they were made for. @type {WeakMap<Row, {scale: RewardScale, cell: Cell}>} */
const CELLS = new WeakMap();

/** The cell of a chain, the same object as before if its row is. @param {Row} row @param {RewardScale} scale @returns {Cell} */
function cellOf(row, scale) {
  const before = CELLS.get(row);
  if (before && before.scale.low === scale.low && before.scale.high === scale.high) return before.cell;
  const cell = { chainId: row.chain_id, state: stateOf(row), reward: row.reward ?? null, level: rewardLevel(row.reward, scale) };
  CELLS.set(row, { scale, cell });
  return cell;
}

/**
 * What a chain does or how it ended, in one word.
 * @param {Row} row
 * @returns {Cell["state"]}
 */
export function stateOf(row) {
  if (row.state === "running") return row.activity ?? "waiting";
  if (row.state === "lost") return "lost";
  return row.finish_reason === "error" ? "failed" : "ended";
}
