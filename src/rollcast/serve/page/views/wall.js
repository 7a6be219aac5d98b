// The wall: a row for each question, a cell for each chain. A cell tells the state while the chain runs, and the reward when it is done.

import { html, usePage } from "../ui.js";
import { fixed, mean, spread } from "../format.js";
import { hashOf } from "../routes.js";
import { oneLine } from "../text.js";

/** @typedef {import("../data.js").Row} Row */
/** @typedef {{name: string, rows: Row[], done: number, mean: number | null, spread: number}} Question */

/**
 * The groups of a run, those whose chains differ most first. Chains without a group stand each for themselves.
 * @param {Iterable<Row>} rows
 * @returns {Question[]}
 */
export function questionsOf(rows) {
  /** @type {Map<string, Row[]>} */
  const groups = new Map();
  for (const row of rows) {
    const name = row.group_id ?? "";
    const found = groups.get(name);
    if (found) found.push(row);
    else groups.set(name, [row]);
  }
  const questions = [...groups].map(([name, found]) => {
    found.sort((a, b) => (a.index ?? 0) - (b.index ?? 0) || byName(a.chain_id, b.chain_id));
    const rewards = found.map((row) => row.reward).filter((reward) => typeof reward === "number");
    return { name, rows: found, done: found.filter((row) => row.state !== "running").length, mean: mean(rewards), spread: spread(rewards) ?? 0 };
  });
  return questions.sort((a, b) => byName(a.name, b.name));
}

/** `chain_2` before `chain_10`. @param {string} a @param {string} b */
export function byName(a, b) {
  return a.length - b.length || (a < b ? -1 : a > b ? 1 : 0);
}

/** From 0 to 1, so that a run with other rewards has the same colours. @param {Iterable<Row>} rows */
export function rewardScale(rows) {
  let low = 0;
  let high = 0;
  for (const { reward } of rows) {
    if (typeof reward !== "number") continue;
    low = Math.min(low, reward);
    high = Math.max(high, reward);
  }
  if (high === low) high = low + 1;
  if (low === 0 && high <= 1) high = 1;
  return (/** @type {number} */ reward) => (reward - low) / (high - low);
}

const ACTIVITIES = /** @type {Record<string, [string, string]>} */ ({
  waiting: ["waiting", "waiting"],
  generating: ["generating", "generating"],
  tool: ["in-tool", "in a tool"],
  scoring: ["scoring", "waiting for its reward"],
});

/**
 * The class of a cell, and the same in words.
 * @param {Row} row
 * @param {boolean} [quiet] whether it has sent nothing for long
 * @returns {[string, string]}
 */
export function cellState(row, quiet = false) {
  if (row.state === "running") {
    const [name, words] = ACTIVITIES[row.activity] ?? /** @type {[string, string]} */ (["waiting", "waiting"]);
    return quiet ? ["quiet", `${words}, quiet for long`] : [name, words];
  }
  if (row.state === "lost") return ["failed", "its end was lost"];
  if (row.finish_reason === "error" || row.finish_reason === "cancelled") return ["failed", row.finish_reason === "error" ? "failed" : "cancelled"];
  if (typeof row.reward !== "number") return ["unscored", "done, without a reward"];
  return ["", `reward ${fixed(row.reward)}`];
}

/** @param {{row: Row, scale: (reward: number) => number, quiet?: boolean}} props */
export function Cell({ row, scale, quiet = false }) {
  const [name, words] = cellState(row, quiet);
  const style = name === "" ? { "--r": `${Math.round(scale(row.reward) * 100)}%` } : undefined;
  return html`<i class=${`cell ${name}`} style=${style} title=${`${row.chain_id}: ${words}`}></i>`;
}

/** @param {{questions: Question[], run: string, params: Record<string, string>, quiet: Set<string>}} props `run` as in the address */
export function Wall({ questions, run, params, quiet }) {
  const all = questions.flatMap((question) => question.rows);
  const scale = rewardScale(all);
  const single = questions.every((question) => question.rows.length === 1);
  if (single) {
    return html`<div class="cells">${all.map((row) => html`<a key=${row.chain_id} href=${hashOf({ view: "chain", run, chain: row.chain_id, params })}
      aria-label=${`${row.chain_id}: ${cellState(row, quiet.has(row.chain_id))[1]}`}><${Cell} row=${row} scale=${scale} quiet=${quiet.has(row.chain_id)} /></a>`)}</div>`;
  }
  return html`<div class="wall">${questions.map((question) => html`<${Line} key=${question.name} question=${question} scale=${scale} run=${run} params=${params} quiet=${quiet} />`)}</div>`;
}

/** @param {{question: Question, scale: (reward: number) => number, run: string, params: Record<string, string>, quiet: Set<string>}} props */
function Line({ question, scale, run, params, quiet }) {
  const { name, rows, done } = question;
  const reference = rows[0]?.reference;
  const what = reference === null || reference === undefined ? name : `answer ${oneLine(typeof reference === "string" ? reference : JSON.stringify(reference), 60)}`;
  const to = name === "" ? hashOf({ view: "chain", run, chain: rows[0]?.chain_id ?? "", params }) : hashOf({ view: "group", run, group: name, params });
  const told = `${name || "chains without a group"}, ${what}: ${done} of ${rows.length} done${question.mean === null ? "" : `, mean reward ${fixed(question.mean)}`}`;
  return html`<a class="question" href=${to} aria-label=${told} data-row>
    <span class="cells" aria-hidden="true">${rows.map((row) => html`<${Cell} key=${row.chain_id} row=${row} scale=${scale} quiet=${quiet.has(row.chain_id)} />`)}</span>
    <span class="what">${what}</span>
    <span class="mean">${question.mean === null ? "…" : fixed(question.mean)}</span>
  </a>`;
}

/** What the cells mean. */
export function Legend() {
  return html`<div class="legend">
    <span><i class="cell waiting"></i>waiting</span><span><i class="cell generating"></i>generating</span><span><i class="cell in-tool"></i>in a tool</span>
    <span><i class="cell scoring"></i>waiting for its reward</span><span><i class="cell quiet"></i>quiet for long</span><span><i class="cell failed"></i>failed or cancelled</span>
    <span><i class="cell"></i>reward 0</span><span><i class="cell" style=${{ "--r": "50%" }}></i>half</span><span><i class="cell" style=${{ "--r": "100%" }}></i>full</span>
  </div>`;
}
