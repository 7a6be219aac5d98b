// Why a question fails: its chains side by side, aligned by turn, or as a tree of where they part.

import { html, memo, useAgain, useEffect, useFollowed, useKeys, useLayoutEffect, useMembers, useMemo, useNodes, useOnScreen, usePage, useRef, useTopicsApart, useTopicsFor } from "../ui.js";
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
import { chainTopic } from "../topics.js";
import { stateOf } from "../wall.js";
import { absence } from "./absence.js";
import { CancelButton } from "./cancel.js";
import { Chips } from "./chips.js";
import { Doing, doingWords } from "./doing.js";
import { LooksAbout, LookSigns, useLooks } from "./looks.js";
import { Parts } from "./parts.js";
import { MOST_OPEN, Strips } from "./strips.js";
import { Stuck } from "./stuck.js";
import { TokenTail, TokenText } from "./token_text.js";

/** @typedef {import("../store.js").Row} Row */
/** @typedef {import("../turns.js").Turn} Turn */

const MAX_TEXT = 240; // characters of a turn in a column
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
  const first = () => ids.map((id) => (rollout === null ? undefined : store.chain(rollout, id))).find((view) => view?.messages.length); // has the prompt
  useTopicsFor(rollout === null ? [] : ids.map((id) => chainTopic(rollout, id)), () => first()?.chainId ?? "");
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
  if (!all.length) {
    const why = absence(page, `group ${oneLine(group, 80)}`, (row) => row.group_id === group);
    return html`<div class="title"><h1>${oneLine(group, 80)}</h1></div><section class="panel"><p class="empty">${why ?? "Asking for its chains …"}</p></section>`;
  }
  const rewards = all.map((row) => row.reward).filter((reward) => typeof reward === "number");
  const done = all.filter((row) => row.state !== "running").length;
  const told = first();
  const prompt = told?.messages.slice(0, told.conversation.promptLength ?? 1).filter((message) => message.role === "user").at(-1);
  const reference = all[0]?.reference ?? told?.fields.reference ?? null;
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
    ${shown === "parts" && html`<${PartsOfAll} runId=${rollout} rows=${rows} />`}
    ${shown === "strips" && open.length > 0 && html`<${Columns} runId=${rollout} rows=${rows.filter((row) => open.includes(row.chain_id))} tokens=${false} over=${over} />`}
    ${shown === "strips" && rows.length > 0 && html`<${Strips} runId=${rollout} rows=${rows} open=${open} toggle=${toggle} />`}
    ${(shown === "side" || shown === "tokens") && rows.length > 0 && html`<${Columns} runId=${rollout} rows=${rows} tokens=${shown === "tokens"} over=${over} />`}`;
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

/** The tree needs all chains of the group. @param {{runId: string, rows: Row[]}} props */
function PartsOfAll({ runId, rows }) {
  const { onScreen } = usePage();
  const ids = rows.map((row) => row.chain_id);
  const members = useMembers(runId, ids);
  useEffect(() => {
    const ends = ids.map((id) => onScreen.add(runId, id));
    return () => ends.forEach((end) => end());
  }, [onScreen, runId, ids.join("\n")]);
  return html`<${Parts} members=${members} rows=${rows} />`;
}

/** @param {{runId: string, rows: Row[], tokens: boolean, over: boolean}} props */
function Columns({ runId, rows, tokens, over }) {
  const members = useMembers(runId, rows.map((row) => row.chain_id));
  const lines = alignTurns(members);
  const looks = useLooks();
  const sameLooks = useNodes();
  const sameColumn = useNodes();
  const again = useAgain();
  const columns = useRef(/** @type {Map<string, ColumnState>} */ (new Map())).current;
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
  const steps = lines.map((line) => line.step);
  const drawsAll = rows.length <= MOST_COLUMNS;
  const alike = lines.map((line) => (line.alike ? 1 : 0)).join("");
  const propsOf = (/** @type {Row} */ row) => {
    const index = at.get(row.chain_id) ?? -1;
    const view = members[index]?.view;
    const running = row.state === "running" && view?.state !== "ended";
    const shown = looks.filter((look) => look.chains.includes(row.chain_id));
    const turns = view ? cellsOf(view, lines, index) : null;
    const shownLines = turns === null ? 0 : turns.length + (running ? 0 : 1); // those behind the last turn of a chain are empty
    const state = stateOf(row);
    /** @type {ColumnProps} */
    const props = {
      runId, chain: row.chain_id, running, tokens, largest, enter, table, turns,
      steps: drawsAll || onScreen.has(row.chain_id) ? steps.slice(0, shownLines).join() : null,
      alike: alike.slice(0, shownLines),
      failed: row.finish_reason === "error",
      words: running ? "" : `${state === "failed" ? "failed" : state === "lost" ? "its end was not seen" : (row.finish_reason ?? "over").replaceAll("_", " ")}${row.completion_tokens ? ` · ${counted(row.completion_tokens, "token")}` : ""}`,
      advantage: view?.fields.advantage ?? row.advantage ?? null,
      reward: view?.fields.reward ?? row.reward ?? null,
      model: view?.fields.model ?? "",
      best: best > worst && row.reward === best,
      looks: sameLooks(row.chain_id, shown, () => shown),
    }; // prettier-ignore
    return props;
  };
  for (const row of rows) {
    const column = columns.get(row.chain_id);
    if (column) column.props = propsOf(row);
    else columns.set(row.chain_id, { props: propsOf(row), drawn: null, again: () => {} });
  }
  useLayoutEffect(() => {
    const gone = new Set(columns.keys());
    for (const { chain_id: chain } of rows) {
      gone.delete(chain);
      const column = /** @type {ColumnState} */ (columns.get(chain));
      if ((drawsAll || onScreen.has(chain)) && column.drawn !== null && !isSame(column.props, column.drawn)) whenThereIsTime(column.again);
    }
    for (const chain of gone) columns.delete(chain);
  });
  return html`<section class=${`columns ${tokens ? "wide" : ""}`} tabindex="0" aria-label="Chains side by side">
    <${Numbers} steps=${steps.join()} table=${table} />
    ${rows.map((row) => sameColumn(row.chain_id, [], () => html`<${PacedColumn} key=${row.chain_id} chain=${row.chain_id} columns=${columns} />`))}
  </section>`;
}

/** What a column is made of now, what it was made of when it was drawn, and what draws it again. @typedef {{props: ColumnProps, drawn: ColumnProps | null, again: () => void}} ColumnState */

/** A column, which is drawn again only in a frame that has time for it. */
const PacedColumn = memo(function PacedColumn(/** @type {{chain: string, columns: Map<string, ColumnState>}} */ { chain, columns }) {
  const again = useAgain();
  const column = /** @type {ColumnState} */ (columns.get(chain));
  column.again = again;
  column.drawn = column.props;
  return html`<${Column} ...${column.props} />`;
});

/** @param {Record<string, any>} one @param {Record<string, any>} other with the same names */
function isSame(one, other) {
  return Object.keys(one).every((name) => one[name] === other[name]);
}

/**
 * A chain. `steps`: the numbers of its lines, with commas; null if it is not on screen, and its cells are not wanted. `alike`: a digit for each
 * line, 1 if all chains did the same there; `turns`: what the chain did there, null if that is not known; `words`: how it ended;
 * `enter`: tells that it is on screen.
 * @typedef {{runId: string, chain: string, steps: string | null, alike: string, turns: (Turn | null)[] | null, running: boolean, failed: boolean, words: string,
 *   advantage: number | null, reward: number | null, model: string, tokens: boolean, largest: number, best: boolean, looks: import("../hints.js").Hint[],
 *   enter: (chain: string) => () => void, table: Lines}} ColumnProps
 */

/** The content of a cell, whose height the table keeps. @param {{table: Lines, line: string, children?: any}} props */
function Content({ table, line, children }) {
  const keep = useRef(/** @type {((content: HTMLElement | null) => void) | null} */ (null));
  keep.current ??= table.keep(line);
  return html`<div ref=${keep.current}>${children}</div>`;
}

/** The numbers of the lines. */
const Numbers = memo(function Numbers(/** @type {{steps: string, table: Lines}} */ { steps, table }) {
  const same = useNodes();
  return html`<div class="column numbers" aria-hidden="true"><div class="column-head"><${Content} table=${table} line="head" /></div>
    ${steps && steps.split(",").map((step) => same(step, [], () => html`<div class="turn-cell" key=${step}><${Content} table=${table} line=${step}>${step}<//></div>`))}</div>`;
});

/** @param {ColumnProps} props */
function Column({ runId, chain, steps, alike, turns, running, failed, words, advantage, reward, model, tokens, largest, best, looks, enter, table }) {
  const { to, route, store } = usePage();
  const place = useRef(/** @type {HTMLElement | null} */ (null));
  const seen = useOnScreen(place);
  useFollowed(runId, chain, seen);
  useEffect(() => (seen ? enter(chain) : undefined), [seen, chain, enter]);
  const row = store.row(runId, chain);
  const ended = !running && turns !== null ? turns.length : -1;
  return html`<article class=${`column ${best ? "best" : ""}`} ref=${place} aria-label=${oneLine(chain, 120)}>
    <div class="column-head"><${Content} table=${table} line="head">
      <div class="line"><a data-column href=${to({ view: "chain", chain, query: route.query })}>${oneLine(chain, 40)}</a><${LookSigns} looks=${looks} /><span class="grow"></span>
        <span class=${`reward ${failed ? "bad" : ""}`}>${reward === null ? (running ? "…" : "–") : fixed(reward)}</span></div>
      <div class="line"><span class="bar" role="img" aria-label=${advantage === null ? "no advantage yet" : `advantage ${signed(advantage)}`}>${advantage !== null && advantage !== 0 && html`<i class=${advantage > 0 ? "plus" : "minus"} style=${{ "--w": `${(Math.abs(advantage) / largest) * 50}%` }}></i>`}</span>${advantage !== null && html`<span class="small mono" title="advantage">${signed(advantage)}</span>`}</div>
      <div class="small muted">${!running || !row ? words : seen ? html`<${Doing} row=${row} />` : doingWords(row)}</div>
    <//></div>
    ${steps && html`<${TurnCells} runId=${runId} chainId=${chain} turns=${turns} steps=${steps} alike=${alike} ended=${ended} tokens=${tokens} model=${model} table=${table} />`}
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

