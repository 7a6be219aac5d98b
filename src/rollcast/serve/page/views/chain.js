// What exactly happened in one chain: the transcript as it is written, and the facts beside it.

import { html, useChains, useContext, useEffect, useFollowed, useKeys, useNodes, usePage, useRef, useState, useTicks, useTopics, useTopicsFor } from "../ui.js";
import { counted, duration, fixed, odds, signed, sourceBeside, whole } from "../format.js";
import { compareIds } from "../group.js";
import { neighbour } from "../lists.js";
import { piecesOf } from "../pieces.js";
import { segmentsOf } from "../segments.js";
import { chainKey } from "../store.js";
import { oneLine, visible } from "../text.js";
import { trainSteps } from "../training.js";
import { rewardScale } from "../wall.js";
import { failureOf, itemsOf } from "../turns.js";
import { toolsOf } from "../strips.js";
import { absence } from "./absence.js";
import { CancelButton } from "./cancel.js";
import { Doing } from "./doing.js";
import { LooksAbout } from "./looks.js";
import { evidenceIn } from "./looks.js";
import { cellsOf, ColourBy, colouredBy, StripCells, StripLegend } from "./strips.js";
import { GapBlock, gapsBefore } from "./gap.js";
import { Nearness, useFollowing, useJumps, useNear } from "./place.js";
import { TextBlock } from "./text_block.js";
import { TimeLine } from "./time_line.js";
import { TokenText } from "./token_text.js";

/** @typedef {import("../turns.js").Turn} Turn */
/** @typedef {import("../segments.js").Segment} Segment */
/** @typedef {import("../generations.js").ChainSegment} ChainSegment */

const MANY_TURNS = 24; // beyond that only turns near the screen have their text in the page, and the turns are shown as cells
const TURNS_OF_A_PART = 4; // that a browser watches, lays out and paints together

export function ChainPage() {
  const page = usePage();
  const { store, feed, route, rollout, go } = page;
  const chain = /** @type {string} */ (route.chain);
  useFollowed(rollout, chain, true);
  useChains(rollout, [chain]);
  useTopicsFor([`rows\n${rollout}`], () => (rollout === null ? "" : `${store.row(rollout, chain)?.state} ${store.rows(rollout).length}`));
  const [focus, setFocus] = useState(/** @type {{segment: Segment, turn: Turn} | null} */ (null));
  const row = rollout === null ? undefined : store.row(rollout, chain);
  const view = rollout === null ? undefined : store.chain(rollout, chain);
  const group = view?.groupId ?? row?.group_id ?? null;
  const open = row ? row.state === "running" : view?.state !== "ended";
  const known = view !== undefined && view.state !== "unknown";
  const items = known ? itemsOf(view) : [];
  const turns = items.filter((item) => item.kind === "turn");
  const loaded = turns.length > 0 && rollout !== null && !feed.loading.has(chainKey(rollout, chain));

  const transcript = useRef(/** @type {HTMLElement | null} */ (null));
  const { following, follow } = useFollowing(transcript, `${rollout} ${chain} ${known}`, open);
  const { jump, aim, moveTurn, cameNear } = useJumps(turns, follow);
  useEffect(() => {
    setFocus(null);
    follow(true);
  }, [chain, rollout]);
  const evidence = useArrival({ turns, loaded, follow, aim });
  const chains = useNeighbours(group);
  useKeys({
    j: () => chains.move(1),
    k: () => chains.move(-1),
    l: () => moveTurn(1),
    h: () => moveTurn(-1),
    g: () => group !== null && go({ view: "group", group, query: chains.kept }),
    f: () => {
      follow(!following);
      if (!following) scrollTo({ top: document.documentElement.scrollHeight });
    },
  });
  const onToken = useRef((/** @type {Segment | null} */ segment, /** @type {Turn} */ turn) => setFocus(segment && { segment, turn })).current;

  const heading = html`<${Heading} group=${group} siblings=${chains.siblings} turns=${turns} jump=${jump} following=${following} open=${open} />`;
  const missing = missingOf(page, chain);
  if (rollout === null || view === undefined || !known) return html`${heading}<section class="panel"><p class="empty">${missing[0] ?? whyEmpty(page, chain, row)}</p></section>`;
  const windowed = turns.length > MANY_TURNS;
  const segments = store.generations.get(chainKey(rollout, chain))?.segments() ?? [];
  return html`${heading}
    <${LooksAbout} chains=${[chain]} />
    ${missing.map((sentence) => html`<p class="notice">${sentence}</p>`)}
    ${evidence === "none" && html`<p class="notice" role="note">What the hint is about is not in the turns that this page knows of this chain.</p>`}
    ${windowed && html`<${TurnMarks} view=${view} query=${route.query} />`}
    <div class="chain-page">
      <section class=${`panel transcript ${windowed ? "windowed" : ""}`} aria-label="Transcript" ref=${transcript}>
        <${Transcript} view=${view} items=${items} segments=${segments} evidence=${evidence === "none" ? null : evidence} windowed=${windowed} onToken=${onToken} cameNear=${cameNear} />
      </section>
      <aside class="side stack" aria-label="Facts">
        <${Facts} view=${view} open=${open} />
        ${focus && html`<${TokenFacts} focus=${focus} view=${view} segments=${segments} />`}
        ${segments.length > 1 && html`<${Segments} segments=${segments} jump=${jump} />`}
        <${Decisions} runId=${rollout} chainId=${chain} view=${view} jump=${jump} />
      </aside>
    </div>`;
}

/** The number of a turn: its step, else its place. @param {Turn} turn @param {readonly Turn[]} turns */
function numberOf(turn, turns) {
  return turn.step ?? turns.indexOf(turn) + 1;
}

/** What an answer lacks about a chain, besides what the page says at its top. @param {import("../ui.js").PageContext} page @param {string} chain */
function missingOf({ feed, rollout }, chain) {
  const said = new Set(["runs", "steps", "chains"].flatMap((about) => feed.missing.get(about) ?? []));
  return rollout === null ? [] : (feed.missing.get(chainKey(rollout, chain)) ?? []).filter((sentence) => !said.has(sentence));
}

/** Why nothing of a chain is shown. @param {import("../ui.js").PageContext} page @param {string} chain @param {import("../store.js").Row | undefined} row */
function whyEmpty(page, chain, row) {
  const { feed, rollout } = page;
  const why = row ? null : absence(page, `chain ${oneLine(chain, 80)}`, (each) => each.chain_id === chain);
  if (why !== null) return why;
  if (feed.line.session.paused) return "The page is paused. What happens in this chain is shown when it goes on: p.";
  const loading = rollout !== null && (feed.loading.has(chainKey(rollout, chain)) || feed.line.session.state.word !== "connected" || row?.state === "running");
  return loading ? "Reading what happened …" : "Nothing of this chain has come yet.";
}

/**
 * The other chains of the group, or of the run if there are none. The step in the address is kept from chain to chain; what else it says is
 * about this one.
 * @param {string | null} group
 */
function useNeighbours(group) {
  const { store, rollout, route, go } = usePage();
  const kept = route.query.step ? { step: route.query.step } : {};
  const rows = rollout === null ? [] : store.rows(rollout);
  const siblings = rows.filter((each) => each.group_id === group).map((each) => each.chain_id);
  const move = (/** @type {number} */ delta) => {
    const all = siblings.length > 1 ? siblings : rows.map((each) => each.chain_id);
    const next = neighbour(all.sort(compareIds), (id) => id === route.chain, delta);
    if (next !== undefined && next !== route.chain) go({ view: "chain", chain: next, query: kept });
  };
  return { siblings: siblings.length, kept, move };
}

/** The turn in which the evidence of the address's hint is; "none" if it is in none of them; null if the address names no hint, or nothing is known yet. @typedef {ReturnType<typeof evidenceIn> | "none"} Evidence */

/**
 * Goes to what the address names, once: a turn, or the evidence of a hint.
 * @param {{turns: Turn[], loaded: boolean, follow: (on: boolean) => void, aim: (target: import("./place.js").Target) => void}} given
 * @returns {Evidence}
 */
function useArrival({ turns, loaded, follow, aim }) {
  const { route } = usePage();
  const go = (/** @type {number} */ number) => {
    follow(false);
    aim({ number, focus: false });
  };
  useEffect(() => {
    if (loaded && route.turn !== null) go(route.turn);
  }, [route.turn, loaded]);
  const look = route.query.look?.[0];
  const subject = route.query.subject?.[0] ?? "";
  const evidence = look === undefined || !loaded ? null : (evidenceIn(look, subject, turns) ?? "none");
  const shown = evidence === null || evidence === "none" ? null : numberOf(evidence.turn, turns);
  useEffect(() => {
    if (shown !== null && route.turn === null) go(shown);
  }, [route.chain, look, subject, shown !== null]);
  return evidence;
}

/** @param {{group: string | null, siblings: number, turns: Turn[], jump: (number: number) => void, following: boolean, open: boolean}} props */
function Heading({ group, siblings, turns, jump, following, open }) {
  const { store, route, rollout, to } = usePage();
  useTopics(`rows\n${rollout}`);
  const chain = /** @type {string} */ (route.chain);
  const row = rollout === null ? undefined : store.row(rollout, chain);
  const view = rollout === null ? undefined : store.chain(rollout, chain);
  const kept = route.query.step ? { step: route.query.step } : {};
  const last = turns.at(-1);
  const source = sourceBeside(chain, view?.source || row?.source);
  return html`<div class="title"><div><h1><bdi>${oneLine(chain, 80)}</bdi></h1><p class="muted">${group !== null && html`<a class="link-button" href=${to({ view: "group", group, query: kept })}><bdi>${oneLine(group, 80)}</bdi></a>`}
    ${typeof row?.train_step === "number" ? ` · step ${row.train_step}` : ""}${row?.index !== null && row?.index !== undefined && siblings > 1 ? ` · ${row.index + 1} of ${siblings}` : ""}${fact(view?.fields.policy_version ?? row?.policy_last, " · policy ")}${source && html` · <bdi>${source}</bdi>`}
    ${row?.session && html` · session <a class="link-button" href=${to({ view: "chains", query: { session: [row.session] } })}><bdi>${oneLine(row.session, 80)}</bdi></a>`}</p></div>
    ${turns.length > MANY_TURNS && last && html`<${GoToTurn} count=${turns.length} last=${numberOf(last, turns)} jump=${jump} />`}
    <span class="muted small wide-only"><kbd>j</kbd> <kbd>k</kbd> next, previous · <kbd>h</kbd> <kbd>l</kbd> turns · <kbd>g</kbd> group · <kbd>f</kbd> ${open ? (following ? "stop following" : "follow") : "end"}</span></div>`;
}

/** @typedef {(segment: Segment | null, turn: Turn) => void} OnToken */

/**
 * @param {{view: import("../chain_view.js").ChainView, items: readonly import("../turns.js").Item[], segments: ChainSegment[], evidence: ReturnType<typeof evidenceIn>,
 *   windowed: boolean, onToken: OnToken, cameNear: () => void}} props
 */
function Transcript({ view, items, segments, evidence, windowed, onToken, cameNear }) {
  const { store } = usePage();
  const { runId, chainId, fields } = view;
  const same = useNodes();
  const begins = new Map(segments.filter((each) => each.first > 1).map((each) => [each.first, each]));
  const gaps = gapsBefore(items, store.gaps.get(chainKey(runId, chainId))?.all ?? []);
  const gapBlocks = (/** @type {number} */ i) => (gaps[i] ?? []).map((gap) => html`<${GapBlock} key=${`g${gap.from}-${gap.to}`} runId=${runId} chainId=${chainId} gap=${gap} />`);
  const { version } = piecesOf(fields.model ?? "");
  const tokens = store.tokens(runId, chainId);
  let place = 0;
  const turnNode = (/** @type {Turn} */ turn, /** @type {number} */ number) => {
    const shows = evidence?.turn === turn ? evidence.call : undefined;
    const changes = turn.open ? {} : null; // one that is open is drawn each time
    return same(number, [turn, tokens?.of(turn.step).length, version, shows, changes], () => html`<${TurnBlock} key=${`t${number}`} runId=${runId} chainId=${chainId} turn=${turn} number=${number} shows=${shows} onToken=${onToken} />`);
  };
  const parts = [newPart(-1)];
  items.forEach((item, i) => {
    const omitted = i === (view.conversation.promptLength ?? 0) && view.conversation.omitted > 0;
    /** @type {any[]} */
    const found = omitted ? [html`<div class="block gap" key="omitted">${counted(view.conversation.omitted, "earlier message")} are not kept by this page.</div>`] : [];
    found.push(...gapBlocks(i));
    if (item.kind === "message") {
      found.push(html`<div class="block" key=${`m${i}`}><div class="who"><b>${item.role}</b>${!item.prompt && html`<span>from outside</span>`}</div><${TextBlock} text=${item.text} /></div>`);
      parts.at(-1)?.blocks.push(...found);
      return;
    }
    place += 1;
    const number = item.step ?? place;
    const nth = Math.floor(number / TURNS_OF_A_PART);
    if (parts.at(-1)?.nth !== nth) parts.push(newPart(nth));
    const begun = begins.get(number);
    if (begun) found.push(html`<${SegmentBegins} key=${`s${number}`} segment=${begun} segments=${segments} />`);
    found.push(turnNode(item, number));
    parts.at(-1)?.blocks.push(...found);
  });
  const lastOf = new Map(parts.map((part, i) => [part.nth, i]));
  return html`${fields.tools && fields.tools.length > 0 && html`<div class="block"><div class="who"><b>tools</b><span>given to the model</span></div><span class="mono">${fields.tools.map(visible).join(", ")}</span></div>`}
    ${parts.map(({ nth, blocks }, i) => {
      const key = lastOf.get(nth) === i ? `part ${nth}` : `part ${nth} at ${i}`; // steps may come in any order
      return blocks.length > 0 && same(key, [windowed, ...blocks], () => html`<${Part} key=${key} windowed=${windowed} cameNear=${cameNear}>${blocks}<//>`);
    })}
    ${gapBlocks(items.length)}
    ${fields.gaps > 0 && !gaps.length && html`<${GapBlock} runId=${runId} chainId=${chainId} gap=${null} />`}
    ${fields.error && html`<div class="block error"><div class="who"><b>error</b><span>${visible(fields.error.where ?? fields.error.error_type ?? "")}</span></div><${TextBlock} text=${String(fields.error.error ?? "")} class="mono text" /></div>`}
    ${view.state !== "ended" && view.generation === null && html`<div class="block"><span class="muted">${WAITS[/** @type {string} */ (view.state)] ?? ""}</span></div>`}`;
}

/** @param {number} nth from the first turn on; -1 before that @returns {{nth: number, blocks: any[]}} */
function newPart(nth) {
  return { nth, blocks: [] };
}

/** Turns that follow each other, and what stands between them. @param {{windowed: boolean, cameNear: () => void, children?: any}} props */
function Part({ windowed, cameNear, children }) {
  const place = useRef(/** @type {HTMLElement | null} */ (null));
  return html`<div class="part" ref=${place}><${Nearness.Provider} value=${useNear(place, windowed, cameNear)}>${children}<//></div>`;
}

/** @type {Record<string, string>} */
const WAITS = { waiting: "Waiting to generate", tool: "Waiting for a tool", scoring: "Waiting for its reward", lost: "Its run ended, and its end was not seen" };

/** Leads to a turn by its number. @param {{count: number, last: number, jump: (number: number) => void}} props */
function GoToTurn({ count, last, jump }) {
  const go = (/** @type {Event} */ event) => {
    event.preventDefault();
    const { value } = /** @type {HTMLInputElement} */ (/** @type {HTMLFormElement} */ (event.currentTarget).elements.namedItem("turn"));
    if (value) jump(Math.min(Math.max(Number(value), 1), last));
  };
  return html`<form class="go-to" onSubmit=${go}><label>turn <input name="turn" type="number" min="1" max=${last} /></label><span class="muted">of ${whole(count)}</span><button class="small-button">Go</button></form>`;
}

/** All turns as cells. @param {{view: import("../chain_view.js").ChainView, query: Record<string, string[]>}} props */
function TurnMarks({ view, query }) {
  const { store, to } = usePage();
  const by = colouredBy(query) === "reward" ? "tool" : colouredBy(query);
  const cells = cellsOf({ view, tokens: store.tokens(view.runId, view.chainId) });
  const kept = query.step ? { step: query.step } : {};
  return html`<section class="panel turn-marks" aria-label="Turns"><div class="panel-head"><h2>${counted(cells.length, "turn")}</h2><span class="small muted">a cell for each; press one to go there</span><span class="grow"></span><${ColourBy} by=${by} choices=${["tool", "decision"]} /></div>
    <${StripCells} cells=${cells} by=${by} tools=${toolsOf(cells)} rewards=${[]} scale=${rewardScale([])} label=${counted(cells.length, "turn")}
      hrefOf=${(/** @type {{step: number}} */ cell) => to({ view: "chain", chain: view.chainId, turn: cell.step, query: kept })} />
    <${StripLegend} cells=${cells} by=${by} scale=${rewardScale([])} /></section>`;
}

/** Where the template showed the past differently. @param {{segment: ChainSegment, segments: ChainSegment[]}} props */
function SegmentBegins({ segment, segments }) {
  const dropped = segment.before !== null && segment.prompt !== null && segment.prompt < segment.before;
  return html`<div class="block segment" role="note"><b>Segment ${segments[0] && segments[0].first > 1 ? "" : segment.number}</b> begins here: the prompt of turn ${segment.first} was rendered afresh and does not continue the tokens above.
    ${segment.prompt !== null && html` <span>Sent: ${counted(segment.prompt, "token")}${segment.before !== null ? `; the turn before ended at ${counted(segment.before, "token")}` : ""}${dropped ? `, so the template left out or rewrote at least ${whole(/** @type {number} */ (segment.before) - /** @type {number} */ (segment.prompt))} of them` : ""}.</span>`} <span>Earlier turns are part of this prompt with mask 0; each sampled token is trained on once.</span></div>`;
}

/** What is sent, and what is trained on. @param {{segments: ChainSegment[], jump: (number: number) => void}} props */
function Segments({ segments, jump }) {
  return html`<section class="panel"><h2>Sent, and trained on</h2><table class="plain">
    <thead><tr><th scope="col">turns</th><th scope="col">last prompt</th><th scope="col">trained on</th></tr></thead>
    <tbody>${segments.map((each) => html`<tr key=${each.number}><td><button class="link-button" onClick=${() => jump(each.first)}>${each.first === each.last ? each.first : `${each.first} to ${each.last}`}</button></td>
      <td class="mono">${each.sent === null ? "not known" : whole(each.sent)}</td><td class="mono">${whole(each.sampled)}</td></tr>`)}</tbody></table>
    <p class="small muted">A sequence to train on for each segment, in tokens. The template showed earlier turns differently, so what was sent does not continue what was sampled.</p></section>`;
}

/** @param {unknown} value @param {string} before */
function fact(value, before) {
  return value === null || value === undefined ? "" : `${before}${value}`;
}

/**
 * @param {{runId: string, chainId: string, turn: Turn, number: number, shows: string | null | undefined,
 *   onToken: (segment: Segment | null, turn: Turn) => void}} props `shows`: what a hint is about, a call of the turn, or null for the turn itself
 */
function TurnBlock({ runId, chainId, turn, number, shows, onToken }) {
  const { store } = usePage();
  const { near, heights } = useContext(Nearness);
  const id = `turn-${number}`;
  if (!near && !turn.open) {
    const height = heights.get(id) ?? 60 + 22 * Math.ceil(turn.text.length / 120) + 40 * turn.calls.length;
    return html`<div class="block far" id=${id} data-far style=${{ height: `${height}px` }}></div>`;
  }
  const count = store.tokens(runId, chainId)?.of(turn.step).reduce((sum, span) => sum + span.ids.length, 0) ?? 0;
  const generation = store.generations.get(chainKey(runId, chainId))?.of(turn.step);
  const version = generation?.policyVersion ?? null;
  const sampled = Math.max(generation?.sampled ?? 0, count); // more than were seen, as at a hub that was not asked for all
  const ended = turn.finishReason && turn.finishReason !== "stop" && turn.finishReason !== "tool_call" ? turn.finishReason : null;
  return html`<div class=${`block ${shows === undefined ? "" : "evidence"}`} id=${id}>
    <div class="who"><b>assistant</b><span>turn ${number}</span>${!turn.tail && count > 0 && html`<span>${sampled > count ? `${whole(count)} of ` : ""}${counted(sampled, "token")}</span>`}${version !== null && html`<span>policy ${version}</span>`}
      ${turn.tail && html`<span class="accent">generating</span>`}${ended && html`<span class="bad">${ended === "length" ? "ended at its limit of tokens" : ended}</span>`}
      ${turn.omitted > 0 && html`<span class="warn">${whole(turn.omitted)} characters before this were not seen</span>`}${shows !== undefined && html`<span class="accent">what the hint is about</span>`}</div>
    ${turn.reasoning && html`<details class="call"><summary><span class="muted">reasoning, ${counted(turn.reasoning.length, "character")}</span></summary><div class="body"><${TextBlock} text=${turn.reasoning} /></div></details>`}
    ${!turn.tail && !turn.text && turn.calls.length > 0
      ? html`<span class="small muted" data-turn tabindex="-1">how it wrote this call was not seen by this page</span>`
      : html`<${TokenText} runId=${runId} chainId=${chainId} turn=${turn} label=${`Tokens of turn ${number}; arrow keys go from token to token`} onToken=${onToken} />`}
    ${turn.calls.map((call) => html`<${CallBlock} key=${call.id} call=${call} opened=${shows === call.id} />`)}
  </div>`;
}

/** @param {{call: import("../turns.js").Call, opened: boolean}} props */
function CallBlock({ call, opened }) {
  const { store } = usePage();
  useTicks(1000, call.open);
  const failure = failureOf(call);
  const running = call.status === null && call.open;
  const result = call.output === null ? (running ? "…" : "no result was seen") : oneLine(call.output, 100);
  const seconds = call.durationS ?? (running && call.startedAt !== null ? store.now - call.startedAt : null);
  return html`<details class=${`call ${failure === null ? "" : "failed"}`} open=${opened || undefined}>
    <summary><span class="name"><bdi>${oneLine(call.line, 400)}</bdi></span><span>→ <bdi>${result}</bdi></span>
      <span class="muted">${failure ?? (running ? "running" : "")} ${seconds === null ? "" : duration(seconds)}</span></summary>
    <div class="body">
      <div><span class="muted">arguments</span><${TextBlock} tag="pre" class="" text=${typeof call.arguments === "string" ? call.arguments : JSON.stringify(call.arguments, null, 1)} /></div>
      <div><span class="muted">${call.omitted > 0 ? `result, without its first ${whole(call.omitted)} characters` : "result"}</span><${TextBlock} tag="pre" class="" text=${call.output ?? ""} /></div>
    </div>
  </details>`;
}

/** @param {{view: import("../chain_view.js").ChainView, open: boolean}} props */
function Facts({ view, open }) {
  const { store, run } = usePage();
  useTopics(`rows\n${view.runId}`);
  useTicks(1000, open);
  const row = store.row(view.runId, view.chainId);
  const trained = (trainSteps(store, run).at(-1)?.train_step ?? 0) >= (row?.train_step ?? 0);
  const { fields } = view;
  const reward = fields.reward ?? row?.reward ?? null;
  const advantage = fields.advantage ?? row?.advantage ?? null;
  const started = fields.started_at ?? row?.started_at ?? null;
  const seconds = fields.duration_s ?? row?.duration_s ?? (started === null ? null : store.now - started);
  const reference = fields.reference ?? row?.reference ?? null;
  const answer = fields.final_response ?? row?.answer ?? null;
  const metrics = Object.entries(fields.metrics ?? {}).slice(0, 12);
  return html`<section class="panel">
    <dl>
      <dt>state</dt><dd>${open ? (row ? html`<${Doing} row=${row} />` : html`<span class="accent">${view.state}</span>`) : (fields.finish_reason ?? row?.finish_reason ?? view.state).replaceAll("_", " ")}</dd>
      <dt>reward</dt><dd>${reward === null ? (open ? "not yet" : "none") : fixed(reward)}</dd>
      ${metrics.map(([name, value]) => html`<dt>${oneLine(name, 60)}</dt><dd>${typeof value === "number" ? fixed(value) : oneLine(String(value), 40)}</dd>`)}
      ${(advantage !== null || row?.split === "train") && html`<dt>advantage</dt><dd>${advantage === null ? (trained ? "not trained on" : "not yet") : signed(advantage)}</dd>`}
      ${answer && html`<dt>answer</dt><dd><bdi>${oneLine(answer, 200)}</bdi></dd>`}
      ${reference !== null && html`<dt>reference</dt><dd><bdi>${oneLine(typeof reference === "string" ? reference : JSON.stringify(reference), 200)}</bdi></dd>`}
      <dt>tokens</dt><dd>${whole(view.tokens || row?.completion_tokens)}</dd>
      <dt>duration</dt><dd>${duration(seconds)}</dd>
      ${Number.isSafeInteger(fields.seed) && html`<dt>seed</dt><dd>${String(fields.seed)}</dd>`}
    </dl>
    <${TimeLine} runId=${view.runId} chainId=${view.chainId} view=${view} />
    <${CancelButton} key=${view.chainId} target=${{ run: view.runId, chain: view.chainId }} open=${open} name=${oneLine(view.chainId, 60)} label="Cancel this chain …" byKey=${true} />
  </section>`;
}

/** @param {{focus: {segment: Segment, turn: Turn}, view: import("../chain_view.js").ChainView, segments: ChainSegment[]}} props */
function TokenFacts({ focus, view, segments }) {
  const { store } = usePage();
  const { segment, turn } = focus;
  const generation = store.generations.get(chainKey(view.runId, view.chainId))?.of(turn.step);
  const within = segments.length > 1 ? segments.find((each) => turn.step !== null && each.first <= turn.step && turn.step <= each.last) : undefined;
  const several = segment.ids.length > 1;
  return html`<section class="panel token-facts" aria-live="polite"><h2>${several ? `${segment.ids.length} tokens` : "Token"} in turn ${turn.step ?? ""}</h2>
    <dl>
      <dt>text</dt><dd>${oneLine(JSON.stringify(segment.text), 60)}</dd>
      <dt>id</dt><dd>${segment.ids.length ? oneLine(segment.ids.join(" "), 60) : "not seen"}</dd>
      <dt>probability</dt><dd>${odds(segment.p)}</dd>
      <dt>log-probability</dt><dd>${segment.logprobs.length ? fixed(segment.logprobs.reduce((sum, each) => sum + each, 0), 3) : "–"}</dd>
      <dt>mask</dt><dd>${segment.ids.length ? "1: sampled" : "not known"}</dd>
      <dt>policy version</dt><dd>${generation?.policyVersion ?? "not seen"}</dd>
      ${within && html`<dt>trained on in</dt><dd>segment ${within.number}</dd>`}
    </dl>
    ${generation && html`<p class="small muted">The version when the turn began.</p>`}
    ${several && html`<p class="small muted">These tokens came together; which text belongs to which is not known.</p>`}
  </section>`;
}

/** The least likely tokens of a turn, least first, as long as its tokens stay the same. @type {WeakMap<Turn, {spans: number, version: number, found: Segment[]}>} */
const UNLIKELY = new WeakMap();
const SHOWN = 8;

/** @param {Turn} turn @param {readonly import("../tokens.js").Span[]} spans @param {import("../pieces.js").Pieces} pieces @returns {Segment[]} */
function unlikelyOf(turn, spans, pieces) {
  const known = UNLIKELY.get(turn);
  if (known && known.spans === spans.length && (known.version === pieces.version || known.found.every((each) => each.ids.length === 1))) return known.found;
  const found = segmentsOf(turn.text, turn.omitted, spans, 0, pieces)
    .filter((segment) => segment.p !== null && segment.p < 0.9)
    .sort((a, b) => /** @type {number} */ (a.p) - /** @type {number} */ (b.p))
    .slice(0, SHOWN);
  if (!turn.open) UNLIKELY.set(turn, { spans: spans.length, version: pieces.version, found });
  return found;
}

/** Where it could have gone another way. @param {{runId: string, chainId: string, view: import("../chain_view.js").ChainView, jump: (number: number) => void}} props */
function Decisions({ runId, chainId, view, jump }) {
  const { store } = usePage();
  const tokens = store.tokens(runId, chainId);
  const pieces = piecesOf(view.fields.model ?? "");
  /** @type {{segment: Segment, step: number | null}[]} */
  const found = [];
  for (const item of itemsOf(view)) {
    if (item.kind !== "turn" || !tokens) continue;
    for (const segment of unlikelyOf(item, tokens.of(item.step), pieces)) found.push({ segment, step: item.step });
  }
  found.sort((a, b) => /** @type {number} */ (a.segment.p) - /** @type {number} */ (b.segment.p));
  if (!found.length) return null;
  return html`<section class="panel"><h2>Where it could have gone another way</h2><table class="plain">
    <thead><tr><th scope="col">token</th><th scope="col">turn</th><th scope="col">p</th><th scope="col">id</th></tr></thead>
    <tbody>${found.slice(0, SHOWN).map(({ segment, step }) => html`<tr>
      <td class="mono"><button class="link-button" onClick=${() => step !== null && jump(step)}><bdi>${oneLine(JSON.stringify(segment.text), 20)}</bdi></button></td>
      <td class="mono">${step}</td><td class="mono">${odds(segment.p)}</td><td class="mono">${segment.ids.length === 1 ? segment.ids[0] : `${segment.ids.length} ids`}</td></tr>`)}</tbody>
  </table></section>`;
}
