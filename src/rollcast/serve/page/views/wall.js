// The wall: a row for each question, a cell for each chain. A cell tells the state while the chain runs, and the reward when it is over:
// how far it is filled says it without colour.

import { html, useNodes, usePage } from "../ui.js";
import { fixed } from "../format.js";
import { chainKey } from "../store.js";
import { oneLine } from "../text.js";

/** @typedef {import("../wall.js").WallRow} WallRow */

/** @type {Record<string, [string, string]>} */
const STATES = {
  waiting: ["waiting", "between two turns"],
  generating: ["generating", "generating"],
  tool: ["in-tool", "in a tool"],
  scoring: ["scoring", "waiting for its reward"],
  failed: ["failed", "failed"],
  lost: ["failed", "its end was not seen"],
};

const MOST_IN_LINE = 32; // cells of a question; more go on in the next line

/** The class of a cell, and what it means. @param {import("../wall.js").Cell} cell @param {boolean} quiet @returns {[string, string]} */
export function cellState(cell, quiet) {
  const [name, words] = STATES[cell.state] ?? (cell.level === null ? ["unscored", "over, without a reward"] : ["", `reward ${fixed(cell.reward)}`]);
  return quiet && !["failed", "ended", "lost"].includes(cell.state) ? ["quiet", `${words}, quiet for long`] : [name, words];
}

/** @param {import("../wall.js").Cell} cell @param {boolean} quiet @param {boolean} dim */
function drawnCell(cell, quiet, dim) {
  const [name, words] = cellState(cell, quiet);
  const style = name === "" ? { "--r": `${Math.round((cell.level ?? 0) * 100)}%` } : undefined;
  return html`<i key=${cell.chainId} class=${`cell ${name}${dim ? " dim" : ""}`} style=${style} title=${`${oneLine(cell.chainId, 60)}: ${words}`}></i>`;
}

/**
 * @param {{rows: WallRow[], runId: string, quiet: Set<string>, base: import("./looks.js").Base, left: Set<string> | null}} props `left`: keys of
 *   the chains that chips have left; the others are pale, and questions without any are not shown
 */
export function Wall({ rows, runId, quiet, base, left }) {
  const { to } = usePage();
  const same = useNodes();
  const dims = (/** @type {import("../wall.js").Cell} */ cell) => left !== null && !left.has(chainKey(runId, cell.chainId));
  if (rows.every((row) => row.cells.length === 1) || (rows.length === 1 && rows[0]?.groupId === "")) {
    return html`<div class="cells">${rows.flatMap((row) => row.cells).filter((cell) => !dims(cell)).map((cell) => html`<a key=${cell.chainId} data-row
      href=${to({ ...base, view: "chain", chain: cell.chainId })} aria-label=${`${oneLine(cell.chainId, 60)}: ${cellState(cell, quiet.has(cell.chainId))[1]}`}
      >${drawnCell(cell, quiet.has(cell.chainId), false)}</a>`)}</div>`;
  }
  const shown = left === null ? rows : rows.filter((row) => row.cells.some((cell) => !dims(cell)));
  const marks = (/** @type {WallRow} */ row) => (quiet.size || left !== null ? row.cells.map((cell) => (quiet.has(cell.chainId) ? 1 : 0) + (dims(cell) ? 2 : 0)).join("") : "");
  const like = to({ ...base, view: "group", group: "-" });
  const href = (/** @type {WallRow} */ { groupId }) => (groupId ? to({ ...base, view: "group", group: groupId }) : to({ ...base, view: "chains" }));
  const question = (/** @type {WallRow} */ row) => {
    const at = marks(row);
    return same(row.groupId, [row, at, like], () => html`<${Question} key=${row.groupId} row=${row} href=${href(row)} marks=${at} />`);
  };
  const most = Math.min(Math.max(...shown.map((row) => row.cells.length), 8), MOST_IN_LINE);
  return html`<div class="wall" style=${{ "--cells": most }}>${shown.map(question)}</div>`;
}

/**
 * A row of the wall. `marks`: a digit for each cell, 1 if it is quiet, 2 if it is pale, 3 if it is both; "" if none is.
 * @param {{row: WallRow, href: string, marks: string}} props
 */
function Question({ row, href, marks }) {
  const same = useNodes();
  const what = row.groupId === "" ? "chains without a group" : row.label === row.groupId ? oneLine(row.groupId, 60) : `answer ${row.label}`;
  const cellAt = (/** @type {import("../wall.js").Cell} */ cell, /** @type {number} */ i) => {
    const mark = marks[i] ?? "0";
    return same(cell.chainId, [cell, mark], () => drawnCell(cell, mark === "1" || mark === "3", mark > "1"));
  };
  return html`<a class="question" data-row href=${href}>
    <span class="cells">${row.cells.map(cellAt)}</span>
    <span class="what"><bdi>${what}</bdi></span>
    <span class="hidden-name">, ${oneLine(row.groupId, 60) || "chains without a group"}, ${row.done} of ${row.cells.length} over, mean reward </span>
    <span class="mean">${row.mean === null ? (row.done === row.cells.length ? "–" : "…") : fixed(row.mean)}</span>
  </a>`;
}

/** What the cells mean. @param {{scale: import("../wall.js").RewardScale}} props */
export function Legend({ scale: { low, high } }) {
  return html`<div class="legend">
    <span><i class="cell waiting"></i>between two turns</span><span><i class="cell generating"></i>generating</span><span><i class="cell in-tool"></i>in a tool</span>
    <span><i class="cell scoring"></i>waiting for its reward</span><span><i class="cell quiet"></i>quiet for long</span><span><i class="cell failed"></i>failed or lost</span>
    <span><i class="cell unscored"></i>no reward</span>
    <span><i class="cell"></i>reward ${fixed(low)}</span><span><i class="cell" style=${{ "--r": "50%" }}></i>${fixed((low + high) / 2)}</span><span><i class="cell" style=${{ "--r": "100%" }}></i>${fixed(high)}</span>
  </div>`;
}
