// All chains of a run in a list that can be sorted and filtered. Only the rows on screen are drawn.

import { html, useEffect, useKeys, useLayoutEffect, usePage, useRef, useState, useTicks, useTopics } from "../ui.js";
import { counted, duration, fixed, signed, sourceBeside, whole } from "../format.js";
import { chipsOf, filterRows, haveSeveralSources, sortRows, windowOf } from "../lists.js";
import { oneLine, visible } from "../text.js";
import { addressOf, childrenOf, runRow } from "../training.js";
import { rewardLevel, rewardScale, stateOf } from "../wall.js";
import { stepAbsence } from "./absence.js";
import { Chips, STATE_WORDS } from "./chips.js";
import { cellState } from "./wall.js";

/** @typedef {import("../store.js").Row} Row */

/** `down`: whether the highest is wanted first when the column is chosen. @type {{name: string, words: string, down: boolean, wide?: boolean}[]} */
const COLUMNS = [
  { name: "chain_id", words: "chain", down: false },
  { name: "state", words: "state", down: false },
  { name: "reward", words: "reward", down: true },
  { name: "advantage", words: "advantage", down: true, wide: true },
  { name: "group_id", words: "group", down: false, wide: true },
  { name: "steps", words: "turns", down: true },
  { name: "completion_tokens", words: "tokens", down: true },
  { name: "calls_failed", words: "calls", down: true, wide: true },
  { name: "duration_s", words: "duration", down: true },
  { name: "policy_last", words: "policy", down: true, wide: true },
];
const ROW = 30; // pixels
const NARROW_ROW = 48; // two lines
const NARROW = 700;

export function ChainsPage() {
  const here = usePage();
  const { store, run, rollouts, route, go } = here;
  useTopics("runs", ...rollouts.map((id) => `rows\n${id}`));
  const all = rollouts.flatMap((id) => store.rows(id));
  const chips = chipsOf(route.query);
  const sort = route.query.sort?.[0] ?? "chain_id";
  const rows = sortRows(filterRows(all, chips), COLUMNS.some((each) => each.name === sort.replace(/^-/, "")) ? sort : "chain_id");
  const scale = rewardScale(all);

  const place = useRef(/** @type {HTMLElement | null} */ (null));
  const [top, setTop] = useState(0);
  const [box, setBox] = useState({ height: 600, width: 1200 });
  const [current, setCurrent] = useState(/** @type {string | null} */ (null)); // the key of the row that has the focus, or had it last
  const wanted = useRef(false); // whether that row is to be focused once it is drawn
  const rowHeight = box.width < NARROW ? NARROW_ROW : ROW;
  useLayoutEffect(() => {
    if (!place.current) return undefined;
    const observer = new ResizeObserver(([entry]) => entry && setBox({ height: entry.contentRect.height, width: entry.contentRect.width }));
    observer.observe(place.current);
    return () => observer.disconnect();
  }, []);
  const chosen = JSON.stringify([chips, sort]);
  useEffect(() => {
    if (place.current) place.current.scrollTop = 0;
  }, [chosen]);
  useLayoutEffect(() => {
    if (!wanted.current) return;
    const link = /** @type {HTMLElement | null} */ (place.current?.querySelector("[data-current] a") ?? null);
    if (!link) return;
    wanted.current = false;
    link.focus({ preventScroll: true });
  });

  const text = route.query.text?.[0] ?? "";
  const [typed, setTyped] = useState(text); // kept while rows come in
  useEffect(() => setTyped(text), [text]);

  const moveTo = (/** @type {number} */ index) => {
    const row = rows[Math.min(Math.max(index, 0), rows.length - 1)];
    const list = place.current;
    if (!row || !list) return;
    const at = rows.indexOf(row) * rowHeight;
    if (at < list.scrollTop) list.scrollTop = at;
    else if (at + rowHeight > list.scrollTop + box.height) list.scrollTop = at + rowHeight - box.height;
    wanted.current = true;
    setTop(list.scrollTop);
    setCurrent(keyOf(row));
  };
  const at = rows.findIndex((row) => keyOf(row) === current);
  const page = Math.max(Math.floor(box.height / rowHeight) - 1, 1);
  useKeys({ j: () => moveTo(at + 1), k: () => moveTo(Math.max(at, 1) - 1) });
  const onKeyDown = (/** @type {KeyboardEvent} */ event) => {
    /** @type {Record<string, number>} */
    const moves = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: Math.max(at, 0) + page, PageUp: at - page, Home: 0, End: rows.length - 1 };
    const next = moves[event.key];
    if (next === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    moveTo(next);
  };
  const order = (/** @type {{name: string, down: boolean}} */ column) => {
    const now = sort.replace(/^-/, "") === column.name;
    const next = now ? (sort.startsWith("-") ? column.name : `-${column.name}`) : column.down ? `-${column.name}` : column.name;
    go({ ...route, run, query: { ...route.query, sort: [next] } });
  };
  const search = (/** @type {Event} */ event) => {
    event.preventDefault();
    const { text: _, ...others } = route.query;
    go({ ...route, run, query: typed.trim() ? { ...others, text: [typed.trim()] } : others });
  };

  const row = runRow(store, run);
  const training = childrenOf(here.runs, run).length > 0;
  const steps = [...new Set(all.map((each) => each.train_step).filter((step) => typeof step === "number"))].sort((one, other) => one - other);
  const { first, last } = windowOf({ count: rows.length, rowHeight, top, height: box.height });
  const narrow = box.width < NARROW;
  const sourced = haveSeveralSources(all);
  return html`<div class="title"><div><h1>Chains</h1>
      <p class="muted">${rows.length === all.length ? counted(all.length, "chain") : `${whole(rows.length)} of ${counted(all.length, "chain")}`}${training && steps.length ? ` of step${steps.length > 1 ? "s" : ""} ${steps.join(", ")}` : ""}</p></div>
      <form class="search" role="search" onSubmit=${search}><label><span class="hidden-name">Text in answers, errors, ids</span>
        <input type="search" value=${typed} onInput=${(/** @type {Event} */ event) => setTyped(/** @type {HTMLInputElement} */ (event.currentTarget).value)} placeholder="text in answers, errors, ids" /></label>
        <button class="small-button">Find</button></form></div>
    <${Chips} rows=${all} shown=${rows.length} />
    ${narrow && html`<label class="small muted sort-by">sorted by <select onChange=${(/** @type {Event} */ event) => go({ ...route, run, query: { ...route.query, sort: [/** @type {HTMLSelectElement} */ (event.currentTarget).value] } })}>
      ${COLUMNS.flatMap(({ name, words }) => [name, `-${name}`].map((value) => html`<option key=${value} value=${value} selected=${sort === value}>${words}, ${value.startsWith("-") ? "highest" : "lowest"} first</option>`))}</select></label>`}
    <section class=${`panel chain-list ${narrow ? "narrow" : ""}`} aria-label="Chains">
      <div role="table" aria-rowcount=${rows.length + 1} aria-label="Chains">
      <div role="rowgroup" class="head-rows"><div class="chain-row heads" role="row" aria-rowindex="1">${COLUMNS.map((column) => {
        const sorted = sort.replace(/^-/, "") === column.name ? (sort.startsWith("-") ? "descending" : "ascending") : "none";
        return html`<span key=${column.name} role="columnheader" aria-sort=${sorted} class=${`of-${column.name}`}><button onClick=${() => order(column)}>${column.words}<span aria-hidden="true">${{ ascending: " ↑", descending: " ↓", none: "" }[sorted]}</span></button></span>`;
      })}</div></div>
      <div class="chain-rows" role="rowgroup" ref=${place} tabindex="0" aria-label="Rows; arrow keys move" onKeyDown=${onKeyDown} onScroll=${() => setTop(place.current?.scrollTop ?? 0)}>
        <div class="all-rows" style=${{ height: `${rows.length * rowHeight}px` }} role="presentation">
          ${rows.slice(first, last).map((each, i) => html`<${ChainRow} key=${keyOf(each)} row=${each} index=${first + i} top=${(first + i) * rowHeight} current=${keyOf(each) === current}
            scale=${scale} training=${training} narrow=${narrow} sourced=${sourced} focused=${() => setCurrent(keyOf(each))} />`)}
        </div>
      </div></div>
      ${rows.length === 0 && html`<p class="empty">${all.length ? "No chain is as the chips say." : row === null ? "There is no run yet." : rollouts.length === 0 ? stepAbsence(here) : row.status === "running" ? "Waiting for the first chains …" : "This run has no chains."}</p>`}
    </section>`;
}

/** @param {Row} row */
function keyOf(row) {
  return `${row.run_id}\n${row.chain_id}`;
}

/** How long a chain has been running. Its row does not change while it writes. @param {{row: Row}} props */
function SoFar({ row }) {
  const { store } = usePage();
  useTicks(1000);
  return duration(Math.max(store.now, row.last_event_at ?? 0) - (row.started_at ?? NaN));
}

/** @param {{row: Row, index: number, top: number, current: boolean, scale: import("../wall.js").RewardScale, training: boolean, narrow: boolean, sourced: boolean, focused: () => void}} props `sourced`: whether the row says which process it is of */
function ChainRow({ row, index, top, current, scale, training, narrow, sourced, focused }) {
  const { to, route, runs } = usePage();
  const state = stateOf(row);
  const level = rewardLevel(row.reward, scale);
  const [name] = cellState({ chainId: row.chain_id, state, reward: row.reward ?? null, level }, false);
  const words = state === "ended" ? String(row.finish_reason ?? "over").replaceAll("_", " ") : (STATE_WORDS[state] ?? state);
  const tools = row.state === "running" && state === "tool" ? (row.open_tools ?? []).map(visible).join(", ") : "";
  const base = addressOf(runs, row.run_id);
  const several = training && (route.query.step === undefined);
  const beside = sourced && sourceBeside(row.chain_id, row.source);
  /** @type {[string, unknown][]} */
  const cells = [
    ["chain_id", html`<a data-row href=${to({ ...base, view: "chain", chain: row.chain_id })} onFocus=${focused}>${oneLine(row.chain_id, 60)}</a>${beside && html` <span class="muted small">${beside}</span>`}`],
    ["state", html`<i class=${`cell ${name}`} style=${name === "" ? { "--r": `${Math.round((level ?? 0) * 100)}%` } : undefined} aria-hidden="true"></i>${tools ? `in ${oneLine(tools, 40)}` : oneLine(words, 30)}`],
    ["reward", row.reward === null || row.reward === undefined ? html`<span class="muted">–</span>` : fixed(row.reward)],
    ["advantage", row.advantage === null || row.advantage === undefined ? html`<span class="muted">–</span>` : signed(row.advantage)],
    ["group_id", row.group_id ? html`<a href=${to({ ...base, view: "group", group: row.group_id })}>${several && typeof row.train_step === "number" ? `step ${row.train_step} · ` : ""}${oneLine(row.group_id, 40)}</a>` : html`<span class="muted">–</span>`],
    ["steps", narrow ? counted(row.steps ?? row.step ?? 0, "turn") : whole(row.steps ?? row.step)],
    ["completion_tokens", narrow ? counted(row.completion_tokens ?? 0, "token") : whole(row.completion_tokens)],
    ["calls_failed", html`${whole(row.calls)}${row.calls_failed ? html` <span class="bad">✕ ${whole(row.calls_failed)}</span>` : ""}`],
    ["duration_s", row.state === "running" ? html`<${SoFar} row=${row} />` : duration(row.duration_s)],
    ["policy_last", typeof row.policy_last === "number" ? (row.policy_first !== row.policy_last && typeof row.policy_first === "number" ? `${row.policy_first}–${row.policy_last}` : String(row.policy_last)) : "–"],
  ];
  return html`<div class="chain-row" role="row" aria-rowindex=${index + 2} style=${{ top: `${top}px` }} data-current=${current || undefined}>
    ${cells.map(([column, cell]) => html`<span key=${column} role="cell" class=${`of-${column}`}>${cell}</span>`)}</div>`;
}
