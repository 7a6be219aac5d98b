// What exactly happened in one chain: the transcript as it is written, and the facts beside it.

import { html, useChains, useEffect, useFollowed, useKeys, useLayoutEffect, usePage, useRef, useState, useTicks, useTopics } from "../ui.js";
import { counted, duration, fixed, odds, signed, whole } from "../format.js";
import { compareIds } from "../group.js";
import { isFollowing, neighbour } from "../lists.js";
import { piecesOf } from "../pieces.js";
import { segmentsOf } from "../segments.js";
import { chainKey } from "../store.js";
import { oneLine, visible } from "../text.js";
import { trainSteps } from "../training.js";
import { itemsOf } from "../turns.js";
import { CancelButton } from "./cancel.js";
import { GapBlock, gapsBefore } from "./gap.js";
import { TextBlock } from "./text_block.js";
import { TimeLine } from "./time_line.js";
import { TokenText } from "./token_text.js";

/** @typedef {import("../turns.js").Turn} Turn */
/** @typedef {import("../segments.js").Segment} Segment */

export function ChainPage() {
  const { store, feed, route, rollout, go, to } = usePage();
  const chain = /** @type {string} */ (route.chain);
  useFollowed(rollout, chain, true);
  useTopics(`rows\n${rollout}`);
  useChains(rollout, [chain]);
  const [focus, setFocus] = useState(/** @type {{segment: Segment, turn: Turn} | null} */ (null));
  const [following, follow] = useState(true);
  const row = rollout === null ? undefined : store.row(rollout, chain);
  const view = rollout === null ? undefined : store.chain(rollout, chain);
  const group = view?.groupId ?? row?.group_id ?? null;
  const open = row ? row.state === "running" : view?.state !== "ended";

  // Following: the end stays in sight while it is written, until somebody scrolls up.
  const wanted = useRef(following && open);
  wanted.current = following && open;
  const transcript = useRef(/** @type {HTMLElement | null} */ (null));
  const shown = view !== undefined && view.state !== "unknown";
  useEffect(() => {
    if (!transcript.current) return undefined;
    const observer = new ResizeObserver(() => {
      if (wanted.current) scrollTo({ top: document.documentElement.scrollHeight });
    });
    observer.observe(transcript.current);
    return () => observer.disconnect();
  }, [chain, rollout, shown]);
  useEffect(() => {
    let before = scrollY;
    const scrolled = () => {
      const { scrollHeight, clientHeight } = document.documentElement;
      if (isFollowing({ top: scrollY, height: clientHeight, total: scrollHeight })) follow(true);
      else if (scrollY < before) follow(false);
      before = scrollY;
    };
    addEventListener("scroll", scrolled, { passive: true });
    return () => removeEventListener("scroll", scrolled);
  }, []);

  const step = route.query;
  const siblings = rollout === null ? [] : store.rows(rollout).filter((each) => each.group_id === group).map((each) => each.chain_id).sort(compareIds);
  const all = siblings.length > 1 ? siblings : rollout === null ? [] : store.rows(rollout).map((each) => each.chain_id).sort(compareIds);
  const goTo = (/** @type {number} */ delta) => {
    const next = neighbour(all, (id) => id === chain, delta);
    if (next !== undefined && next !== chain) go({ view: "chain", chain: next, query: step });
  };
  useKeys({
    j: () => goTo(1),
    k: () => goTo(-1),
    l: () => moveTurn(1),
    h: () => moveTurn(-1),
    g: () => group !== null && go({ view: "group", group, query: step }),
    f: () => {
      follow(!following);
      if (!following) scrollTo({ top: document.documentElement.scrollHeight });
    },
  });
  useEffect(() => {
    setFocus(null);
    follow(true);
  }, [chain, rollout]);
  useLayoutEffect(() => {
    if (route.turn !== null) document.getElementById(`turn-${route.turn}`)?.scrollIntoView({ block: "center" });
  }, [route.turn, view !== undefined]);

  const missing = rollout === null ? [] : (feed.missing.get(chainKey(rollout, chain)) ?? []);
  const heading = html`<div class="title"><div><h1>${oneLine(chain, 80)}</h1><p class="muted">${group !== null && html`<a class="link-button" href=${to({ view: "group", group, query: step })}>${oneLine(group, 80)}</a>`}
    ${row?.index !== null && row?.index !== undefined && siblings.length > 1 ? ` · ${row.index + 1} of ${siblings.length}` : ""}${fact(view?.fields.policy_version ?? row?.policy_last, " · policy ")}</p></div>
    <span class="muted small wide-only"><kbd>j</kbd> <kbd>k</kbd> next, previous · <kbd>h</kbd> <kbd>l</kbd> turns · <kbd>g</kbd> group · <kbd>f</kbd> ${open ? (following ? "stop following" : "follow") : "end"}</span></div>`;
  if (rollout === null || !view || !shown) {
    const loading = rollout !== null && (feed.loading.has(chainKey(rollout, chain)) || feed.line.session.state.word !== "connected" || row?.state === "running");
    const known = rollout !== null && store.rows(rollout).length > 0 && !row;
    return html`${heading}<section class="panel"><p class="empty">${missing[0] ?? (known ? `There is no chain ${oneLine(chain, 80)} in this run.` : loading ? "Reading what happened …" : "Nothing of this chain has come yet.")}</p></section>`;
  }
  const items = itemsOf(view);
  let turns = 0;
  const gaps = gapsBefore(items, store.gaps.get(chainKey(rollout, chain))?.all ?? []);
  const gapBlocks = (/** @type {number} */ i) => (gaps[i] ?? []).map((gap) => html`<${GapBlock} key=${`g${gap.from}-${gap.to}`} runId=${rollout} chainId=${chain} gap=${gap} />`);
  const onToken = (/** @type {Segment | null} */ segment, /** @type {Turn} */ turn) => setFocus(segment && { segment, turn });
  return html`${heading}
    ${missing.map((sentence) => html`<p class="notice">${sentence}</p>`)}
    <div class="chain-page">
      <section class="panel transcript" aria-label="Transcript" ref=${transcript}>
        ${view.fields.tools && html`<div class="block"><div class="who"><b>tools</b><span>given to the model</span></div><span class="mono">${view.fields.tools.map(visible).join(", ")}</span></div>`}
        ${items.map((item, i) => {
          const before = i === (view.conversation.promptLength ?? 0) && view.conversation.omitted > 0 && html`<div class="block gap">${counted(view.conversation.omitted, "earlier message")} are not kept by this page.</div>`;
          if (item.kind === "message") return html`${before}${gapBlocks(i)}<div class="block" key=${`m${i}`}><div class="who"><b>${item.role}</b>${!item.prompt && html`<span>from outside</span>`}</div><${TextBlock} text=${item.text} /></div>`;
          turns += 1;
          return html`${before}${gapBlocks(i)}<${TurnBlock} key=${`t${item.step ?? i}`} runId=${rollout} chainId=${chain} turn=${item} number=${turns} onToken=${onToken} />`;
        })}
        ${gapBlocks(items.length)}
        ${view.fields.gaps > 0 && !gaps.length && html`<${GapBlock} runId=${rollout} chainId=${chain} gap=${null} />`}
        ${view.fields.error && html`<div class="block error"><div class="who"><b>error</b><span>${visible(view.fields.error.where ?? view.fields.error.error_type ?? "")}</span></div><${TextBlock} text=${String(view.fields.error.error ?? "")} class="mono text" /></div>`}
        ${view.state !== "ended" && view.generation === null && html`<div class="block"><span class="muted">${{ waiting: "Waiting to generate", tool: "Waiting for a tool", scoring: "Waiting for its reward", lost: "Its run ended, and its end was not seen" }[/** @type {string} */ (view.state)] ?? ""}</span></div>`}
      </section>
      <aside class="side stack" aria-label="Facts">
        <${Facts} view=${view} row=${row} open=${open} />
        ${focus && html`<${TokenFacts} focus=${focus} view=${view} />`}
        <${Decisions} runId=${rollout} chainId=${chain} view=${view} />
      </aside>
    </div>`;
}

/** @param {unknown} value @param {string} before */
function fact(value, before) {
  return value === null || value === undefined ? "" : `${before}${value}`;
}

/** Put the focus on the next or previous turn. @param {number} delta */
function moveTurn(delta) {
  const turns = /** @type {HTMLElement[]} */ ([...document.querySelectorAll("[data-turn]")]);
  const focused = turns.indexOf(/** @type {HTMLElement} */ (document.activeElement));
  const next = turns[focused < 0 ? (delta > 0 ? 0 : turns.length - 1) : Math.min(Math.max(focused + delta, 0), turns.length - 1)];
  next?.focus();
  next?.scrollIntoView({ block: "nearest" });
}

/** @param {{runId: string, chainId: string, turn: Turn, number: number, onToken: (segment: Segment | null, turn: Turn) => void}} props */
function TurnBlock({ runId, chainId, turn, number, onToken }) {
  const { store } = usePage();
  const count = store.tokens(runId, chainId)?.of(turn.step).reduce((sum, span) => sum + span.ids.length, 0) ?? 0;
  const ended = turn.finishReason && turn.finishReason !== "stop" && turn.finishReason !== "tool_call" ? turn.finishReason : null;
  return html`<div class="block" id=${`turn-${turn.step ?? number}`}>
    <div class="who"><b>assistant</b><span>turn ${turn.step ?? number}</span>${!turn.tail && count > 0 && html`<span>${counted(count, "token")}</span>`}
      ${turn.tail && html`<span class="accent">generating</span>`}${ended && html`<span class="bad">${ended === "length" ? "ended at its limit of tokens" : ended}</span>`}
      ${turn.omitted > 0 && html`<span class="warn">${whole(turn.omitted)} characters before this were not seen</span>`}</div>
    ${turn.reasoning && html`<details class="call"><summary><span class="muted">reasoning, ${counted(turn.reasoning.length, "character")}</span></summary><div class="body"><${TextBlock} text=${turn.reasoning} /></div></details>`}
    ${!turn.tail && !turn.text && turn.calls.length > 0
      ? html`<span class="small muted">how it wrote this call was not seen by this page</span>`
      : html`<${TokenText} runId=${runId} chainId=${chainId} turn=${turn} label=${`Tokens of turn ${turn.step ?? number}; arrow keys go from token to token`} onToken=${onToken} />`}
    ${turn.calls.map((call) => html`<${CallBlock} key=${call.id} call=${call} />`)}
  </div>`;
}

/** @param {{call: import("../turns.js").Call}} props */
function CallBlock({ call }) {
  const { store } = usePage();
  useTicks(1000, call.open);
  const failed = call.status === "error" || call.status === "timeout" || call.status === "cancelled";
  const running = call.status === null && call.open;
  const result = call.output === null ? (running ? "…" : "no result was seen") : oneLine(call.output, 100);
  const seconds = call.durationS ?? (running && call.startedAt !== null ? store.now - call.startedAt : null);
  return html`<details class=${`call ${failed ? "failed" : ""}`}>
    <summary><span class="name">${visible(call.line)}</span><span>→ ${result}</span>
      <span class="muted">${failed ? call.status : running ? "running" : ""} ${seconds === null ? "" : duration(seconds)}</span></summary>
    <div class="body">
      <div><span class="muted">arguments</span><${TextBlock} tag="pre" class="" text=${typeof call.arguments === "string" ? call.arguments : JSON.stringify(call.arguments, null, 1)} /></div>
      <div><span class="muted">${call.omitted > 0 ? `result, without its first ${whole(call.omitted)} characters` : "result"}</span><${TextBlock} tag="pre" class="" text=${call.output ?? ""} /></div>
    </div>
  </details>`;
}

/** @param {{view: import("../chain_view.js").ChainView, row: import("../store.js").Row | undefined, open: boolean}} props */
function Facts({ view, row, open }) {
  const { store, run } = usePage();
  useTicks(1000, open);
  const trained = (trainSteps(store, run).at(-1)?.train_step ?? 0) >= (row?.train_step ?? 0);
  const { fields } = view;
  const reward = fields.reward ?? row?.reward ?? null;
  const advantage = fields.advantage ?? row?.advantage ?? null;
  const started = fields.started_at ?? row?.started_at ?? null;
  const seconds = fields.duration_s ?? row?.duration_s ?? (started === null ? null : store.now - started);
  const reference = fields.reference ?? row?.reference ?? null;
  const metrics = Object.entries(fields.metrics ?? {}).slice(0, 12);
  return html`<section class="panel">
    <dl>
      <dt>state</dt><dd>${open ? html`<span class="accent">${row?.activity ?? view.state}</span>` : (fields.finish_reason ?? row?.finish_reason ?? view.state).replace("_", " ")}</dd>
      <dt>reward</dt><dd>${reward === null ? (open ? "not yet" : "none") : fixed(reward)}</dd>
      ${metrics.map(([name, value]) => html`<dt>${visible(name)}</dt><dd>${typeof value === "number" ? fixed(value) : oneLine(String(value), 40)}</dd>`)}
      ${(advantage !== null || row?.split === "train") && html`<dt>advantage</dt><dd>${advantage === null ? (trained ? "not trained on" : "not yet") : signed(advantage)}</dd>`}
      ${reference !== null && html`<dt>reference</dt><dd>${oneLine(typeof reference === "string" ? reference : JSON.stringify(reference), 200)}</dd>`}
      <dt>tokens</dt><dd>${whole(view.tokens || row?.completion_tokens)}</dd>
      <dt>duration</dt><dd>${duration(seconds)}</dd>
      ${Number.isSafeInteger(fields.seed) && html`<dt>seed</dt><dd>${String(fields.seed)}</dd>`}
    </dl>
    <${TimeLine} runId=${view.runId} chainId=${view.chainId} view=${view} />
    ${open && store.moment === null && html`<${CancelButton} runId=${view.runId} chainId=${view.chainId} />`}
  </section>`;
}

/** @param {{focus: {segment: Segment, turn: Turn}, view: import("../chain_view.js").ChainView}} props */
function TokenFacts({ focus, view }) {
  const { segment, turn } = focus;
  const several = segment.ids.length > 1;
  return html`<section class="panel token-facts" aria-live="polite"><h2>${several ? `${segment.ids.length} tokens` : "Token"} in turn ${turn.step ?? ""}</h2>
    <dl>
      <dt>text</dt><dd>${oneLine(JSON.stringify(segment.text), 60)}</dd>
      <dt>id</dt><dd>${segment.ids.length ? oneLine(segment.ids.join(" "), 60) : "not seen"}</dd>
      <dt>probability</dt><dd>${odds(segment.p)}</dd>
      <dt>log-probability</dt><dd>${segment.logprobs.length ? fixed(segment.logprobs.reduce((sum, each) => sum + each, 0), 3) : "–"}</dd>
      <dt>mask</dt><dd>${segment.ids.length ? "1, sampled" : "–"}</dd>
      <dt>policy version</dt><dd>${view.fields.policy_version ?? "–"}</dd>
    </dl>
    ${several && html`<p class="small muted">These tokens came together; which text belongs to which is not known.</p>`}
  </section>`;
}

/** Where it could have gone another way. @param {{runId: string, chainId: string, view: import("../chain_view.js").ChainView}} props */
function Decisions({ runId, chainId, view }) {
  const { store } = usePage();
  const tokens = store.tokens(runId, chainId);
  const pieces = piecesOf(view.fields.model ?? "");
  /** @type {{segment: Segment, step: number | null}[]} */
  const found = [];
  for (const item of itemsOf(view)) {
    if (item.kind !== "turn" || !tokens) continue;
    for (const segment of segmentsOf(item.text, item.omitted, tokens.of(item.step), 0, pieces)) {
      if (segment.p !== null && segment.p < 0.9) found.push({ segment, step: item.step });
    }
  }
  found.sort((a, b) => /** @type {number} */ (a.segment.p) - /** @type {number} */ (b.segment.p));
  if (!found.length) return null;
  return html`<section class="panel"><h2>Where it could have gone another way</h2><table class="plain">
    <thead><tr><th scope="col">token</th><th scope="col">turn</th><th scope="col">p</th><th scope="col">id</th></tr></thead>
    <tbody>${found.slice(0, 8).map(({ segment, step }) => html`<tr>
      <td class="mono"><button class="link-button" onClick=${() => focusTurn(step)}>${oneLine(JSON.stringify(segment.text), 20)}</button></td>
      <td class="mono">${step}</td><td class="mono">${odds(segment.p)}</td><td class="mono">${segment.ids.length === 1 ? segment.ids[0] : `${segment.ids.length} ids`}</td></tr>`)}</tbody>
  </table></section>`;
}

/** @param {number | null} step */
function focusTurn(step) {
  const turn = /** @type {HTMLElement | null} */ (document.querySelector(`#turn-${step} [data-turn]`));
  turn?.scrollIntoView({ block: "center" });
  turn?.focus({ preventScroll: true });
}
