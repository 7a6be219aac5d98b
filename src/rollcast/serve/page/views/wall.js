// The wall: a row for each question, a cell for each chain. A cell tells the state while the chain runs, and the reward when it is over:
// how far it is filled says it without colour.

import { html, usePage } from "../ui.js";
import { fixed } from "../format.js";
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

/** The class of a cell, and what it means. @param {import("../wall.js").Cell} cell @param {boolean} quiet @returns {[string, string]} */
export function cellState(cell, quiet) {
  const [name, words] = STATES[cell.state] ?? (cell.level === null ? ["unscored", "over, without a reward"] : ["", `reward ${fixed(cell.reward)}`]);
  return quiet && !["failed", "ended", "lost"].includes(cell.state) ? ["quiet", `${words}, quiet for long`] : [name, words];
}

/** @param {{cell: import("../wall.js").Cell, quiet: boolean}} props */
function Cell({ cell, quiet }) {
  const [name, words] = cellState(cell, quiet);
  const style = name === "" ? { "--r": `${Math.round((cell.level ?? 0) * 100)}%` } : undefined;
  return html`<i class=${`cell ${name}`} style=${style} title=${`${oneLine(cell.chainId, 60)}: ${words}`}></i>`;
}

/** @param {{rows: WallRow[], quiet: Set<string>, base: import("./looks.js").Base}} props */
export function Wall({ rows, quiet, base }) {
  const { to } = usePage();
  if (rows.every((row) => row.cells.length === 1) || (rows.length === 1 && rows[0]?.groupId === "")) {
    return html`<div class="cells">${rows.flatMap((row) => row.cells).map((cell) => html`<a key=${cell.chainId} data-row
      href=${to({ ...base, view: "chain", chain: cell.chainId })} aria-label=${`${oneLine(cell.chainId, 60)}: ${cellState(cell, quiet.has(cell.chainId))[1]}`}
      ><${Cell} cell=${cell} quiet=${quiet.has(cell.chainId)} /></a>`)}</div>`;
  }
  return html`<div class="wall">${rows.map((row) => html`<${Question} key=${row.groupId} row=${row} quiet=${quiet} base=${base} />`)}</div>`;
}

/** @param {{row: WallRow, quiet: Set<string>, base: import("./looks.js").Base}} props */
function Question({ row, quiet, base }) {
  const { to } = usePage();
  const what = row.label === row.groupId ? oneLine(row.groupId, 60) : `answer ${row.label}`;
  const href = row.groupId ? to({ ...base, view: "group", group: row.groupId }) : to({ ...base, view: "chain", chain: row.cells[0]?.chainId ?? "" });
  return html`<a class="question" data-row href=${href}>
    <span class="cells">${row.cells.map((cell) => html`<${Cell} key=${cell.chainId} cell=${cell} quiet=${quiet.has(cell.chainId)} />`)}</span>
    <span class="what">${what}</span>
    <span class="hidden-name">, ${oneLine(row.groupId, 60) || "chains without a group"}, ${row.done} of ${row.cells.length} over, mean reward </span>
    <span class="mean">${row.mean === null ? "…" : fixed(row.mean)}</span>
  </a>`;
}

/** What the cells mean. */
export function Legend() {
  return html`<div class="legend">
    <span><i class="cell waiting"></i>between two turns</span><span><i class="cell generating"></i>generating</span><span><i class="cell in-tool"></i>in a tool</span>
    <span><i class="cell scoring"></i>waiting for its reward</span><span><i class="cell quiet"></i>quiet for long</span><span><i class="cell failed"></i>failed or lost</span>
    <span><i class="cell"></i>reward 0</span><span><i class="cell" style=${{ "--r": "50%" }}></i>half</span><span><i class="cell" style=${{ "--r": "100%" }}></i>full</span>
  </div>`;
}
