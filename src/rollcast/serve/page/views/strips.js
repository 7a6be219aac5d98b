// A large group: a line for each chain, a cell for each turn, coloured by tool, by how likely its decision was, or by the reward of the
// chains that went the same way. Chosen chains stand side by side above the lines.

import { html, useFollowed, useMembers, useMemo, useNodes, useOnScreen, usePage, useRef } from "../ui.js";
import { counted, fixed, odds, signed } from "../format.js";
import { piecesOf } from "../pieces.js";
import { segmentsOf } from "../segments.js";
import { cellOf, rewardsOnTheWay, toolsOf } from "../strips.js";
import { oneLine, visible } from "../text.js";
import { surprise } from "../tokens.js";
import { turnsOf } from "../turns.js";
import { rewardLevel, rewardScale, stateOf } from "../wall.js";
import { STATE_WORDS } from "./chips.js";

/** @typedef {import("../store.js").Row} Row */
/** @typedef {import("../group.js").Member} Member */
/** @typedef {import("../strips.js").StripCell} StripCell */
/** @typedef {"tool" | "decision" | "reward"} By */

const KINDS_OF_TOOLS = 6; // that have a colour of their own
export const MOST_OPEN = 12; // chains side by side

/** By what the cells are coloured. @param {Record<string, string[]>} query @returns {By} */
export function colouredBy(query) {
  const by = query.by?.[0];
  return by === "decision" || by === "reward" ? by : "tool";
}

/** Cells that were made of a turn before, by the turn. @type {WeakMap<import("../turns.js").Turn, {spans: number, cell: StripCell}>} */
const MADE = new WeakMap();

/** The cells of a chain. @param {Member} member @returns {StripCell[]} */
export function cellsOf({ view, tokens }) {
  return turnsOf(view).map((turn, i) => {
    const spans = tokens?.of(turn.step) ?? [];
    const made = MADE.get(turn);
    if (made && made.spans === spans.length) return made.cell;
    const cell = cellOf(turn, i + 1, segmentsOf(turn.text, turn.omitted, spans, 0, piecesOf(view.fields.model ?? "")));
    if (!turn.open) MADE.set(turn, { spans: spans.length, cell });
    return cell;
  });
}

/**
 * How a cell looks: class, text, and words for a title.
 * @param {StripCell} cell
 * @param {By} by
 * @param {Map<string, {letter: string, place: number}>} tools
 * @param {number | null} reward of the chains that went the same way
 * @param {import("../wall.js").RewardScale} scale
 */
function looks(cell, by, tools, reward, scale) {
  const tool = cell.tool === null ? undefined : tools.get(cell.tool);
  const state = cell.kind === "failed" ? "failed" : cell.kind === "cut" ? "cut" : cell.kind === "generating" ? "generating" : cell.kind === "waiting" ? "in-tool" : "";
  const known = `turn ${cell.step}: ${cell.words}${cell.p === null ? "" : `, p ${odds(cell.p)}`}`;
  if (by === "decision") return { name: `u${surprise(cell.p) ?? 0} ${state}`, text: cell.sign || (tool?.letter ?? "¶"), title: known, style: undefined };
  if (by === "reward") {
    const level = rewardLevel(reward, scale);
    return { name: `${level === null ? "unscored" : "level"} ${state}`, text: "", title: `${known}; mean reward of the chains that went this way ${fixed(reward)}`, style: level === null ? undefined : { "--r": `${Math.round(level * 100)}%` } };
  }
  return { name: `${tool ? `k${tool.place % KINDS_OF_TOOLS}` : "k-none"} ${state}`, text: cell.kind === "failed" ? "✕" : cell.kind === "cut" ? "…" : (tool?.letter ?? (cell.kind === "generating" ? "" : "¶")), title: known, style: undefined };
}

/**
 * The turns of one chain in a line. A cell leads to its turn; keys reach turns by `h` and `l` in the chain, so cells take no tab stop.
 * @param {{cells: StripCell[], by: By, tools: Map<string, {letter: string, place: number}>, rewards: (number | null)[], scale: import("../wall.js").RewardScale,
 *   hrefOf: (cell: StripCell) => string, label: string}} props
 */
export function StripCells({ cells, by, tools, rewards, scale, hrefOf, label }) {
  const same = useNodes();
  const like = JSON.stringify([by, [...tools].map(([name, { letter, place }]) => [name, letter, place]), scale, cells[0] && hrefOf(cells[0])]);
  const nodeOf = (/** @type {StripCell} */ cell, /** @type {number} */ i) => {
    const reward = rewards[i] ?? null;
    return same(cell.step, [like, cell, reward], () => {
      const { name, text, title, style } = looks(cell, by, tools, reward, scale);
      return html`<a key=${cell.step} class=${`turn-mark ${name}`} style=${style} title=${title} href=${hrefOf(cell)} tabindex="-1">${visible(text)}</a>`;
    });
  };
  return html`<span class="hidden-name">${label}</span><span class="strip-cells" aria-hidden="true">${cells.map(nodeOf)}</span>`;
}

/** @param {{cells: Iterable<StripCell>, by: By, scale: import("../wall.js").RewardScale}} props */
export function StripLegend({ cells, by, scale }) {
  const tools = [...toolsOf(cells)].slice(0, 12);
  return html`<div class="legend">
    ${by === "tool" && tools.map(([name, { letter, place, calls }]) => html`<span key=${name}><i class=${`turn-mark k${place % KINDS_OF_TOOLS}`}>${letter}</i>${oneLine(name, 40)} <span class="muted">${calls.toLocaleString("en")}</span></span>`)}
    ${by === "decision" && [0, 2, 4, 6].map((level) => html`<span key=${level}><i class=${`turn-mark u${level}`}></i>${{ 0: "sure", 2: "less sure", 4: "unlikely", 6: "very unlikely" }[level]}</span>`)}
    ${by === "reward" && [0, 0.5, 1].map((level) => html`<span key=${level}><i class="turn-mark level" style=${{ "--r": `${level * 100}%` }}></i>${fixed(scale.low + (scale.high - scale.low) * level)}</span>`)}
    ${by === "reward" && html`<span class="muted">mean reward of the chains that went the same way up to that turn</span>`}
    ${by !== "reward" && html`<span><i class=${`turn-mark ${by === "tool" ? "k-none" : "u0"}`}>¶</i>text, no call</span>`}
    <span><i class="turn-mark failed">${by === "tool" ? "✕" : ""}</i>a call failed</span><span><i class="turn-mark generating"></i>generating</span><span><i class="turn-mark in-tool"></i>in a tool</span>
  </div>`;
}

/** @type {By[]} */
const KINDS = ["tool", "decision", "reward"];

/** Buttons that choose by what the cells are coloured. @param {{by: By, choices?: By[]}} props */
export function ColourBy({ by, choices = KINDS }) {
  const { route, run, go } = usePage();
  return html`<span class="colour-by" role="group" aria-label="Cells are coloured by"><span class="muted">coloured by</span>
    ${choices.map((name) => html`<button key=${name} class="chip" aria-pressed=${by === name ? "true" : "false"}
      onClick=${() => go({ ...route, run, query: { ...route.query, by: [name] } })}>${name}</button>`)}</span>`;
}

/** @param {{runId: string, rows: Row[], open: string[], toggle: (chain: string) => void}} props */
export function Strips({ runId, rows, open, toggle }) {
  const members = useMembers(runId, rows.map((row) => row.chain_id));
  const { route } = usePage();
  const by = colouredBy(route.query);
  const scale = rewardScale(rows);
  const cells = new Map(members.map((member) => [member.view.chainId, cellsOf(member)]));
  const all = [...cells.values()].flat();
  const tools = toolsOf(all);
  // The tree is dear in a large group, and changes only when a turn is over or a reward comes.
  const changed = by !== "reward" ? "" : members.map(({ view }) => `${view.chainId} ${view.messages.length} ${view.fields.reward}`).join();
  const rewards = useMemo(() => (by === "reward" ? rewardsOnTheWay(members) : new Map()), [changed]);
  return html`<section class="panel strips" aria-label="Chains, a line each">
    <div class="panel-head"><span class="small muted">a line for each chain, a cell for each turn</span><span class="grow"></span><${ColourBy} by=${by} /></div>
    <div role="list">${rows.map((row) => html`<${Strip} key=${row.chain_id} runId=${runId} row=${row} cells=${cells.get(row.chain_id)} by=${by} tools=${tools}
      rewards=${rewards.get(row.chain_id) ?? NONE} scale=${scale} open=${open.includes(row.chain_id)} full=${open.length >= MOST_OPEN} toggle=${toggle} />`)}</div>
    <${StripLegend} cells=${all} by=${by} scale=${scale} />
  </section>`;
}

/** @type {(number | null)[]} */
const NONE = [];

/**
 * @param {{runId: string, row: Row, cells: StripCell[] | undefined, by: By, tools: Map<string, {letter: string, place: number}>, rewards: (number | null)[],
 *   scale: import("../wall.js").RewardScale, open: boolean, full: boolean, toggle: (chain: string) => void}} props
 */
function Strip({ runId, row, cells, by, tools, rewards, scale, open, full, toggle }) {
  const { to, route } = usePage();
  const place = useRef(/** @type {HTMLElement | null} */ (null));
  useFollowed(runId, row.chain_id, useOnScreen(place));
  const state = stateOf(row);
  const level = rewardLevel(row.reward, scale);
  const step = route.query.step;
  const query = step ? { step } : {};
  const words = state === "ended" ? String(row.finish_reason ?? "over").replaceAll("_", " ") : (STATE_WORDS[state] ?? state);
  const known = cells?.length ?? 0;
  const expected = row.steps ?? row.step ?? 0;
  return html`<div class=${`strip ${open ? "open" : ""}`} role="listitem" ref=${place}>
    <button class="strip-open" aria-pressed=${open ? "true" : "false"} aria-label=${`${oneLine(row.chain_id, 60)} side by side with others`} title=${open ? "take it from the columns" : full ? `${MOST_OPEN} columns are enough` : "show it side by side with others"} disabled=${full && !open}
      onClick=${() => toggle(row.chain_id)}><span aria-hidden="true">${open ? "▾" : "▸"}</span></button>
    <a class="strip-name" data-column href=${to({ view: "chain", chain: row.chain_id, query })}>${oneLine(row.chain_id, 40)}</a>
    <span class="strip-reward"><i class=${`cell ${level === null ? (row.state === "running" ? { waiting: "waiting", generating: "generating", tool: "in-tool", scoring: "scoring" }[/** @type {string} */ (state)] ?? "" : state === "ended" ? "unscored" : "failed") : ""}`} style=${level === null ? undefined : { "--r": `${Math.round(level * 100)}%` }} title=${words} aria-hidden="true"></i>
      <span class="hidden-name">${words}, reward </span>${typeof row.reward === "number" ? fixed(row.reward) : row.state === "running" ? "…" : "–"}
      ${typeof row.advantage === "number" && html`<span class="small muted advantage" title="advantage">${signed(row.advantage)}</span>`}</span>
    ${known > 0
      ? html`<${StripCells} cells=${/** @type {StripCell[]} */ (cells)} by=${by} tools=${tools} rewards=${rewards} scale=${scale} label=${`${counted(known, "turn")}: ${/** @type {StripCell[]} */ (cells).slice(0, 12).map((cell) => cell.words).join("; ")}`}
          hrefOf=${(/** @type {StripCell} */ cell) => to({ view: "chain", chain: row.chain_id, turn: cell.step, query })} />`
      : html`<span class="small muted">${expected ? `${counted(expected, "turn")}, reading …` : words}</span>`}
  </div>`;
}
