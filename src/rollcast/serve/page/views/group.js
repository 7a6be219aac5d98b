// Why a question fails: its chains side by side, aligned by turn, or as a tree of where they part.

import { html, memo, useAgain, useChains, useEffect, useFollowed, useKeys, useLayoutEffect, useMemo, useNodes, useOnScreen, usePage, useRef, useTopicsApart } from "../ui.js";
import { whenThereIsTime } from "../frame.js";
import { counted, fixed, mean, odds, signed, spread } from "../format.js";
import { alignTurns, cellsOf, compareIds } from "../group.js";
import { chipsOf, filterRows, neighbour } from "../lists.js";
import { Lines } from "../lines.js";
import { piecesOf } from "../pieces.js";
import { callProbability, segmentsOf } from "../segments.js";
import { oneLine } from "../text.js";
import { surprise } from "../tokens.js";
import { contentOf, failureOf } from "../turns.js";
import { stateOf } from "../wall.js";
import { absence } from "./absence.js";
import { CancelButton } from "./cancel.js";
import { Chips } from "./chips.js";
import { Doing } from "./doing.js";
import { LooksAbout, LookSigns, useLooks } from "./looks.js";
import { Parts } from "./parts.js";
import { MOST_OPEN, Strips } from "./strips.js";
import { Stuck } from "./stuck.js";
import { TokenTail, TokenText } from "./token_text.js";

/** @typedef {import("../store.js").Row} Row */
/** @typedef {import("../group.js").Member} Member */
/** @typedef {import("../turns.js").Turn} Turn */

const MAX_TEXT = 240; // characters of a turn in a column
const COLUMNS_A_FRAME = 3; // that have changed; the others are drawn in the next frames
const MOST_COLUMNS = 12; // a larger group is shown as strips, unless one asks for columns
/** @type {(string | null)[]} */
const MODES = [null, "strips", "side", "tokens", "parts"];

export function GroupPage() {
  const page = usePage();
  const { store, route, rollout, go, to } = page;
  const group = /** @type {string} */ (route.group);
  useTopicsApart(`rows\n${rollout}`);
  const all = (rollout === null ? [] : store.rows(rollout)).filter((row) => row.group_id === group).sort((a, b) => compareIds(a.chain_id, b.chain_id));
  const rows = filterRows(all, chipsOf(route.query));
  const over = all.length > 0 && all.every((row) => row.state !== "running");
  // While chains run they keep their places; when all are over the best comes first.
  if (over) rows.sort((a, b) => (b.reward ?? -Infinity) - (a.reward ?? -Infinity) || compareIds(a.chain_id, b.chain_id));
  const ids = rows.map((row) => row.chain_id);
  useChains(rollout, ids, true);
  const query = route.query;
  const large = all.length > MOST_COLUMNS;
  // What the address says; a large group without a word of it is shown as strips, a small one side by side.
  const mode = route.mode === (large ? "strips" : "side") || !MODES.includes(route.mode) ? null : route.mode;
  const shown = mode ?? (large ? "strips" : "side");
  const open = (query.open ?? []).filter((id) => rows.some((row) => row.chain_id === id)).slice(0, MOST_OPEN);
  const toggle = (/** @type {string} */ chain) => {
    const next = open.includes(chain) ? open.filter((each) => each !== chain) : [...open, chain];
    const { open: _, ...others } = query;
    go({ view: "group", group, mode, query: next.length ? { ...others, open: next } : others });
  };
  const groups = [...new Set((rollout === null ? [] : store.rows(rollout)).map((row) => row.group_id).filter((name) => typeof name === "string"))].sort(compareIds);
  const moveColumn = (/** @type {number} */ delta) => {
    const links = /** @type {HTMLElement[]} */ ([...document.querySelectorAll("[data-column]")]);
    const focused = links.indexOf(/** @type {HTMLElement} */ (document.activeElement));
    const next = links[focused < 0 ? 0 : Math.min(Math.max(focused + delta, 0), links.length - 1)];
    next?.focus();
    next?.scrollIntoView({ block: "nearest", inline: "nearest" });
  };
  const moveGroup = (/** @type {number} */ delta) => {
    const next = neighbour(groups, (name) => name === group, delta);
    if (next !== undefined && next !== group) go({ view: "group", group: next, mode, query });
  };
  useKeys({
    j: () => moveColumn(1),
    k: () => moveColumn(-1),
    l: () => moveGroup(1),
    h: () => moveGroup(-1),
    t: () => go({ view: "group", group, mode: mode === "tokens" ? null : "tokens", query }),
    s: () => go({ view: "group", group, mode: shown === "strips" ? (large ? "side" : null) : large ? null : "strips", query }),
    w: () => go({ view: "group", group, mode: mode === "parts" ? null : "parts", query }),
    g: () => moveColumn(0),
  });
  const members = /** @type {Member[]} */ (ids.map((id) => ({ view: store.chain(/** @type {string} */ (rollout), id), tokens: store.tokens(/** @type {string} */ (rollout), id) })).filter((member) => member.view));
  if (!all.length) {
    const why = absence(page, `group ${oneLine(group, 80)}`, (row) => row.group_id === group);
    return html`<div class="title"><h1>${oneLine(group, 80)}</h1></div><section class="panel"><p class="empty">${why ?? "Asking for its chains …"}</p></section>`;
  }
  const rewards = all.map((row) => row.reward).filter((reward) => typeof reward === "number");
  const done = all.filter((row) => row.state !== "running").length;
  const first = members.find((member) => member.view.messages.length)?.view;
  const prompt = first?.messages.slice(0, first.conversation.promptLength ?? 1).filter((message) => message.role === "user").at(-1);
  const reference = all[0]?.reference ?? first?.fields.reference ?? null;
  const versions = all.flatMap((row) => [row.policy_first, row.policy_last]).filter((version) => typeof version === "number");
  const policy = !versions.length ? null : Math.min(...versions) === Math.max(...versions) ? versions[0] : `${Math.min(...versions)}–${Math.max(...versions)}`;
  const step = all.find((row) => typeof row.train_step === "number")?.train_step ?? null;
  const flat = over && rewards.length > 1 && Math.max(...rewards) - Math.min(...rewards) < 1e-9;
  const answers = answersOf(all).slice(0, 4);
  const pill = (/** @type {string} */ name, /** @type {unknown} */ value) => html`<span class="pill">${name} <b><bdi>${value}</bdi></b></span>`;
  return html`<div class="title">
      <div>
        <h1>${oneLine(group, 80)} <span class="muted">· ${counted(all.length, "chain")} of one question</span></h1>
        ${prompt && html`<p dir="auto">${oneLine(contentOf(prompt), 400)}</p>`}
        <div class="pills">
          ${reference !== null && pill("reference", oneLine(typeof reference === "string" ? reference : JSON.stringify(reference), 60))}
          ${step !== null && pill("step", step)} ${pill("over", `${done} of ${all.length}`)} ${rewards.length > 0 && pill("mean reward", fixed(mean(rewards)))} ${rewards.length > 1 && pill("spread", fixed(spread(rewards)))}
          ${policy !== null && pill("policy", policy)} ${flat && html`<span class="pill warn">all the same reward: nothing to learn from</span>`}
        </div>
        ${answers.length > 0 && html`<div class="pills" aria-label="Answers">${answers.map((answer) => html`<span class="pill">${answer.count} × <b><bdi>${answer.label || "no answer"}</bdi></b>${answer.reward === null ? "" : ` reward ${fixed(answer.reward)}`}</span>`)}</div>`}
        <${CancelButton} key=${`${rollout} ${group}`} target=${{ run: rollout, group }} open=${!over} name=${`the ${counted(all.length - done, "chain")} of ${oneLine(group, 60)} that run`} label="Cancel this group …" byKey=${true} />
      </div>
      <nav class="choice" aria-label="How to show the group">
        ${/** @type {[string, string][]} */ ([["side", "Side by side"], ["strips", "Strips"], ["tokens", "Tokens"], ["parts", "Where they part"]]).map(([name, words]) => html`<a key=${words} href=${to({ view: "group", group, mode: name === (large ? "strips" : "side") ? null : name, query })} aria-current=${shown === name ? "true" : undefined}>${words}</a>`)}
      </nav>
    </div>
    <${Stuck} rows=${all} all=${store.rows(/** @type {string} */ (rollout))} baseOf=${() => ({ query })} />
    <${LooksAbout} chains=${ids} besides="quiet" />
    <${Chips} rows=${all} shown=${rows.length} leaveOut=${["train_step"]} />
    ${rows.length === 0 && html`<section class="panel"><p class="empty">No chain of this group is as the chips say.</p></section>`}
    ${shown === "parts" && html`<${PartsOfAll} runId=${rollout} ids=${ids} members=${members} rows=${rows} />`}
    ${shown === "strips" && open.length > 0 && html`<${Columns} runId=${rollout} rows=${rows.filter((row) => open.includes(row.chain_id))} members=${members.filter((member) => open.includes(member.view.chainId))} tokens=${false} over=${over} />`}
    ${shown === "strips" && rows.length > 0 && html`<${Strips} runId=${rollout} rows=${rows} members=${members} open=${open} toggle=${toggle} />`}
    ${(shown === "side" || shown === "tokens") && rows.length > 0 && html`<${Columns} runId=${rollout} rows=${rows} members=${members} tokens=${shown === "tokens"} over=${over} />`}`;
}

/** The answers of the chains that are over, the most frequent first, each with its mean reward. @param {readonly Row[]} rows */
function answersOf(rows) {
  /** @type {Map<string, Row[]>} */
  const found = new Map();
  for (const row of rows) {
    if (row.state === "running") continue;
    const label = oneLine(String(row.answer ?? ""), 80);
    found.set(label, [...(found.get(label) ?? []), row]);
  }
  const made = [...found].map(([label, with_]) => ({ label, count: with_.length, reward: mean(with_.map((row) => row.reward).filter((reward) => typeof reward === "number")) }));
  return made.sort((one, other) => other.count - one.count || (one.label < other.label ? -1 : 1));
}

/** The tree needs all chains of the group. @param {{runId: string, ids: string[], members: Member[], rows: Row[]}} props */
function PartsOfAll({ runId, ids, members, rows }) {
  const { onScreen } = usePage();
  useEffect(() => {
    const ends = ids.map((id) => onScreen.add(runId, id));
    return () => ends.forEach((end) => end());
  }, [onScreen, runId, ids.join("\n")]);
  return html`<${Parts} members=${members} rows=${rows} />`;
}

/** @param {{runId: string, rows: Row[], members: Member[], tokens: boolean, over: boolean}} props */
function Columns({ runId, rows, members, tokens, over }) {
  const lines = alignTurns(members);
  const looks = useLooks();
  const again = useAgain();
  const made = useRef(/** @type {Map<string, {props: ColumnProps, column: any}>} */ (new Map())).current; // those that were drawn last are last
  const onScreen = useRef(/** @type {Set<string>} */ (new Set())).current;
  const enter = useRef((/** @type {string} */ chain) => {
    onScreen.add(chain);
    again();
    return () => void onScreen.delete(chain);
  }).current;
  const table = useMemo(() => new Lines(), []);
  useEffect(() => () => table.end(), [table]);
  const at = new Map(members.map((member, i) => [member.view.chainId, i]));
  const best = over ? Math.max(...rows.map((row) => row.reward ?? -Infinity)) : Infinity;
  const worst = Math.min(...rows.map((row) => row.reward ?? Infinity));
  const largest = Math.max(...rows.map((row) => Math.abs(row.advantage ?? 0)), 1e-9);
  const steps = lines.map((line) => line.step).join();
  const drawsAll = rows.length <= MOST_COLUMNS;
  const alike = lines.map((line) => (line.alike ? 1 : 0)).join("");
  const propsOf = (/** @type {Row} */ row) => {
    const index = at.get(row.chain_id) ?? -1;
    const view = members[index]?.view;
    const running = row.state === "running" && view?.state !== "ended";
    const shown = looks.filter((look) => look.chains.includes(row.chain_id));
    /** @type {ColumnProps} */
    const props = {
      runId, row, alike, running, tokens, largest, enter, table,
      steps: drawsAll || onScreen.has(row.chain_id) ? steps : null,
      turns: view ? cellsOf(view, lines, index) : null,
      advantage: view?.fields.advantage ?? row.advantage ?? null,
      reward: view?.fields.reward ?? row.reward ?? null,
      model: view?.fields.model ?? "",
      best: best > worst && row.reward === best,
      looks: shown.length ? shown : NO_LOOKS,
    }; // prettier-ignore
    return props;
  };
  const all = new Map(rows.map((row) => [row.chain_id, propsOf(row)]));
  const stale = [...made.keys()].filter((chain) => {
    const props = all.get(chain);
    return props !== undefined && (drawsAll || onScreen.has(chain)) && !isSame(props, /** @type {{props: ColumnProps}} */ (made.get(chain)).props);
  });
  const now = stale.slice(0, COLUMNS_A_FRAME);
  for (const [chain, props] of all) {
    if (made.has(chain) && !now.includes(chain)) continue;
    made.delete(chain);
    made.set(chain, { props, column: html`<${Column} key=${chain} ...${props} />` });
  }
  useLayoutEffect(() => {
    if (stale.length > now.length) whenThereIsTime(again);
  });
  return html`<section class=${`columns ${tokens ? "wide" : ""}`} tabindex="0" aria-label="Chains side by side">
    <${Numbers} steps=${steps} table=${table} />
    ${rows.map((row) => made.get(row.chain_id)?.column)}
  </section>`;
}

/** @type {import("../hints.js").Hint[]} */
const NO_LOOKS = [];

/** @param {Record<string, any>} one @param {Record<string, any>} other with the same names */
function isSame(one, other) {
  return Object.keys(one).every((name) => one[name] === other[name]);
}

/**
 * A chain. `steps`: the numbers of the lines, with commas; null if it is not on screen, and its cells are not wanted. `alike`: a digit for each
 * line, 1 if all chains did the same there; `turns`: what the chain did there, null if that is not known; `enter`: tells that it is on screen.
 * @typedef {{runId: string, row: Row, steps: string | null, alike: string, turns: (Turn | null)[] | null, running: boolean, advantage: number | null,
 *   reward: number | null, model: string, tokens: boolean, largest: number, best: boolean, looks: import("../hints.js").Hint[],
 *   enter: (chain: string) => () => void, table: Lines}} ColumnProps
 */

/** The content of a cell, whose height the table keeps. @param {{table: Lines, line: string, children?: any}} props */
function Content({ table, line, children }) {
  const keep = useRef(/** @type {((content: HTMLElement | null) => void) | null} */ (null));
  keep.current ??= table.keep(line);
  return html`<div ref=${keep.current}>${children}</div>`;
}

/** The numbers of the lines. @param {{steps: string, table: Lines}} props */
function Numbers({ steps, table }) {
  return html`<div class="column numbers" aria-hidden="true"><div class="column-head"><${Content} table=${table} line="head" /></div>
    ${steps && steps.split(",").map((step) => html`<div class="turn-cell" key=${step}><${Content} table=${table} line=${step}>${step}<//></div>`)}</div>`;
}

/** @param {ColumnProps} props */
function Column({ runId, row, steps, alike, turns, running, advantage, reward, model, tokens, largest, best, looks, enter, table }) {
  const { to, route } = usePage();
  const place = useRef(/** @type {HTMLElement | null} */ (null));
  const seen = useOnScreen(place);
  useFollowed(runId, row.chain_id, seen);
  useEffect(() => (seen ? enter(row.chain_id) : undefined), [seen, row.chain_id, enter]);
  const words = { failed: "failed", lost: "its end was not seen" }[/** @type {string} */ (stateOf(row))] ?? (row.finish_reason ?? "over").replaceAll("_", " ");
  const ended = !running && turns !== null ? turns.filter((turn) => turn !== null).length : -1;
  return html`<article class=${`column ${best ? "best" : ""}`} ref=${place} aria-label=${oneLine(row.chain_id, 120)}>
    <div class="column-head"><${Content} table=${table} line="head">
      <div class="line"><a data-column href=${to({ view: "chain", chain: row.chain_id, query: route.query })}>${oneLine(row.chain_id, 40)}</a><${LookSigns} looks=${looks} /><span class="grow"></span>
        <span class=${`reward ${row.finish_reason === "error" ? "bad" : ""}`}>${reward === null ? (running ? "…" : "–") : fixed(reward)}</span></div>
      <div class="line"><span class="bar" role="img" aria-label=${advantage === null ? "no advantage yet" : `advantage ${signed(advantage)}`}>${advantage !== null && advantage !== 0 && html`<i class=${advantage > 0 ? "plus" : "minus"} style=${{ "--w": `${(Math.abs(advantage) / largest) * 50}%` }}></i>`}</span>${advantage !== null && html`<span class="small mono" title="advantage">${signed(advantage)}</span>`}</div>
      <div class="small muted">${running ? html`<${Doing} row=${row} />` : html`${words}`}${!running && row.completion_tokens ? ` · ${counted(row.completion_tokens, "token")}` : ""}</div>
    <//></div>
    ${steps && html`<${TurnCells} runId=${runId} chainId=${row.chain_id} turns=${turns} steps=${steps} alike=${alike} ended=${ended} tokens=${tokens} model=${model} table=${table} />`}
    ${steps === "" && html`<div class="turn-cell"><span class="small muted">${running ? "nothing yet" : "reading …"}</span></div>`}
  </article>`;
}

const CELLS_OF_A_BLOCK = 8; // that a browser paints together: with fewer it joins more layers, with more it looks at more cells when one has changed

/** The turns of a chain below each other; drawn again only if one of them has changed. `ended`: the line behind its last turn, or -1. */
const TurnCells = memo(AllTurnCells);

/** @param {{runId: string, chainId: string, turns: (Turn | null)[] | null, steps: string, alike: string, ended: number, tokens: boolean, model: string, table: Lines}} props */
function AllTurnCells({ runId, chainId, turns, steps, alike, ended, tokens, model, table }) {
  const { store } = usePage();
  const same = useNodes();
  const pieces = piecesOf(model);
  const cellAt = (/** @type {string} */ number, /** @type {number} */ i) => {
    const turn = turns?.[i] ?? null;
    const shared = alike[i] === "1";
    if (turn === null) return same(number, [i === ended], () => html`<div class="turn-cell" key=${number}><${Content} table=${table} line=${number}>${i === ended && html`<span class="small muted">ended</span>`}<//></div>`);
    const spans = turn.tail ? NO_SPANS : (store.tokens(runId, chainId)?.of(turn.step) ?? NO_SPANS);
    const learned = spans.some((span) => span.ids.length > 1) ? pieces.version : 0; // what was learned since may divide them
    return same(number, [turn, tokens, model, spans, spans.length, learned, shared], () => html`<div class=${`turn-cell ${shared ? "shared" : ""}`} key=${number}><${Content} table=${table} line=${number}><${TurnCell} ...${{ runId, chainId, turn, tokens, model, spans }} /><//></div>`);
  };
  const cells = steps.split(",").map(cellAt);
  const blocks = [];
  for (let i = 0; i < cells.length; i += CELLS_OF_A_BLOCK) {
    const own = cells.slice(i, i + CELLS_OF_A_BLOCK);
    blocks.push(same(i, own, () => html`<div class="turn-cells" key=${i}>${own}</div>`));
  }
  return blocks;
}

/** @type {readonly import("../tokens.js").Span[]} */
const NO_SPANS = [];

/** @typedef {{runId: string, chainId: string, turn: Turn, tokens: boolean, model: string, spans: readonly import("../tokens.js").Span[]}} CellProps */

/** One turn of one chain. @param {CellProps} props */
function TurnCell({ runId, chainId, turn, tokens, model, spans }) {
  const label = `Tokens of turn ${turn.step} of ${chainId}`;
  if (tokens) {
    return html`<${TokenText} runId=${runId} chainId=${chainId} turn=${turn} label=${label} />
      ${turn.calls.map((call) => html`<div class="call-line" key=${call.id}><span class="result">→ ${call.output === null ? "…" : oneLine(call.output, 120)}</span></div>`)}`;
  }
  if (turn.tail) return html`<${TokenTail} runId=${runId} chainId=${chainId} step=${turn.step} />`;
  if (!turn.calls.length) return html`<div class="say" dir="auto">${oneLine(turn.text, MAX_TEXT)}</div>`;
  const segments = segmentsOf(turn.text, turn.omitted, spans, 0, piecesOf(model));
  return turn.calls.map((call) => html`<${CallLine} key=${call.id} call=${call} p=${callProbability(call.name, call.arguments, segments)} />`);
}

/** A call on a line: what decided it stands out. @param {{call: import("../turns.js").Call, p: number | null}} props */
function CallLine({ call, p }) {
  const failure = failureOf(call);
  const given = call.arguments;
  const named = typeof given === "object" && given !== null ? Object.entries(given) : [["", given]];
  const level = surprise(p) ?? 0;
  return html`<div class=${`call-line ${failure === null ? "" : "failed"}`}>
    <span>${oneLine(call.name, 80)}(${named.map(([name, value], i) => html`${i > 0 ? ", " : ""}${named.length > 1 ? `${oneLine(String(name), 24)}=` : ""}<bdi class=${`value u${level}`}>${oneLine(typeof value === "string" ? value : (JSON.stringify(value) ?? ""), 60)}</bdi>`)})</span>
    ${p !== null && html`<span class="p" title="probability of what it passes">p ${odds(p)}</span>`}
    <span class="result">→ <bdi>${call.output === null ? "…" : oneLine(call.output, 60)}</bdi>${failure ? ` (${failure})` : ""}</span>
  </div>`;
}

