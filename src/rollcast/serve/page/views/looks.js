// What needs a look: hints with the chains that show them, never verdicts. Each leads to its evidence: the group, or the turn of a chain.

import { html, useListener, usePage, useTimer, useTopicsApart } from "../ui.js";
import { whenThereIsTime } from "../frame.js";
import { clock } from "../format.js";
import { namedChains, needsALook, trendHints } from "../hints.js";
import { oneLine } from "../text.js";
import { failureOf } from "../turns.js";
import { addressOf, runRow, summariesOf } from "../training.js";

/** @typedef {import("../hints.js").Hint} Look */
/** @typedef {{run?: string | null, query?: Record<string, string[]>}} Base what the addresses of all links here share */

const AGAIN_MS = 1000; // hints of a run are found no more often

/** @type {Record<Look["kind"], [string, string]>} a sign and the class of its colour */
const SIGNS = {
  quiet: ["◔", "warn"], tool_fails: ["✕", "bad"], flat_groups: ["=", "muted"], alike_and_wrong: ["≠", "bad"], reward_without_reference: ["!", "warn"],
  truncated: ["…", "warn"], same_answers: ["≡", "warn"], length_drift: ["↔", "warn"],
}; // prettier-ignore

const MAX_NAMED = 4; // chains with a link of their own

/**
 * The hints of the runs whose rows are shown, and when they were found; one list for everyone who draws them. `due`: they are about to be found anew.
 * @typedef {{runs: string, open: boolean, at: number, due: boolean, looks: Look[]}} Found
 */

/** @type {WeakMap<object, Found>} */
const found = new WeakMap();

/**
 * The hints of the chains that the page has rows of. They are found anew when the rows have changed, and while the run goes on once a second,
 * in a frame that has time for it.
 * @returns {Look[]}
 */
export function useLooks() {
  const { store, rollouts, topics } = usePage();
  const open = rollouts.some((id) => runRow(store, id)?.status === "running");
  const runs = rollouts.join("\n");
  const find = () => needsALook(rollouts.flatMap((id) => store.rows(id)), open ? store.now : null);
  let known = found.get(store);
  if (known === undefined || known.runs !== runs || known.open !== open) found.set(store, (known = { runs, open, at: performance.now(), due: false, looks: find() }));
  const shown = known;
  const renew = () => {
    if (shown.due) return;
    shown.due = true;
    const anew = () => {
      const looks = find();
      const same = JSON.stringify(looks) === JSON.stringify(shown.looks);
      Object.assign(shown, { at: performance.now(), due: false, looks: same ? shown.looks : looks });
      if (!same) topics.tell(["looks"]);
    };
    setTimeout(() => whenThereIsTime(anew), shown.at + AGAIN_MS - performance.now());
  };
  useListener(rollouts.map((id) => `rows\n${id}`), renew);
  useTimer(AGAIN_MS, open, renew);
  useTopicsApart("looks");
  return known.looks;
}

/** The hints about the steps of the training that is shown, up to the chosen step. @returns {Look[]} */
export function useTrends() {
  const { runs, run, route } = usePage();
  return trendHints(summariesOf(runs, run, route.query.step?.[0]));
}

/**
 * Where the evidence in a chain is: its group if the hint is about groups, else the chain, at the turn that shows it.
 * @param {import("../ui.js").PageContext} page
 * @param {Look} look
 * @param {string} chain
 * @param {(runId: string) => Base} baseOf
 */
function chainHref({ to, store, runs }, look, chain, baseOf) {
  if (look.kind === "same_answers" || look.kind === "length_drift") return to({ ...addressOf(runs, look.runId), view: "chain", chain });
  const base = baseOf(look.runId);
  const group = store.row(look.runId, chain)?.group_id;
  if (look.kind === "flat_groups" && group) return to({ ...base, view: "group", group });
  return to({ ...base, view: "chain", chain, query: { ...base.query, look: [look.kind], ...(look.subject ? { subject: [look.subject] } : {}) } });
}

/** Where the first evidence is. @param {import("../ui.js").PageContext} page @param {Look} look @param {(runId: string) => Base} baseOf */
export function lookHref(page, look, baseOf) {
  if (look.groupId !== null) return page.to({ ...baseOf(look.runId), view: "group", group: look.groupId });
  const chain = look.chains[0];
  return chain === undefined ? page.to({ ...baseOf(look.runId), view: "overview" }) : chainHref(page, look, chain, baseOf);
}

/** Since when a hint about quiet chains holds: when the first of them was last heard of. @param {import("../ui.js").PageContext} page @param {Look} look */
function since({ store }, look) {
  if (look.kind !== "quiet") return "";
  const heard = look.chains.map((chain) => store.row(look.runId, chain)?.last_event_at).filter((at) => typeof at === "number");
  return heard.length ? `since ${clock(Math.min(...heard))}` : "";
}

/** @param {{look: Look}} props */
function Sign({ look }) {
  const [sign, colour] = SIGNS[look.kind];
  return html`<span class=${`sign ${colour}`} aria-hidden="true">${sign}</span>`;
}

/** @param {{looks: Look[], baseOf: (runId: string) => Base}} props */
export function Looks({ looks, baseOf }) {
  const page = usePage();
  if (!looks.length) return html`<p class="muted">Nothing stands out.</p>`;
  return html`<ul class="looks">${looks.map((look) => {
    const named = namedChains(look) ? look.chains.slice(0, MAX_NAMED) : [];
    const more = look.count - named.length;
    const from = since(page, look);
    return html`<li class="look" key=${`${look.runId} ${look.kind} ${look.groupId} ${look.subject}`}>
      <${Sign} look=${look} /><span><a class="look-what" href=${lookHref(page, look, baseOf)}>${look.sentence}</a>
      ${(named.length > 0 || from) && html`<span class="why">${named.map((chain, i) => html`${i > 0 ? ", " : ""}<a href=${chainHref(page, look, chain, baseOf)}>${oneLine(chain, 40)}</a>`)}${named.length > 0 && more > 0 ? ` and ${more.toLocaleString("en")} more` : ""}${named.length > 0 && from ? " · " : ""}${from}</span>`}</span>
    </li>`;
  })}</ul>`;
}

/**
 * The hints that some of these chains show, above what else is told of them; nothing if there is none.
 * @param {{chains: string[], besides?: Look["kind"] | null}} props `besides`: a kind that is told elsewhere
 */
export function LooksAbout({ chains, besides = null }) {
  const page = usePage();
  const here = new Set(chains);
  const looks = useLooks().filter((look) => look.kind !== besides && look.chains.some((chain) => here.has(chain)));
  if (!looks.length) return null;
  return html`<section class="panel looks-about" aria-label="Needs a look"><ul class="looks">${looks.map((look) => {
    const named = look.chains.filter((chain) => here.has(chain)).slice(0, 4);
    const from = since(page, look);
    return html`<li key=${`${look.kind} ${look.groupId} ${look.subject}`} class="look"><${Sign} look=${look} /><span>${look.sentence}
      <span class="why"> ${here.size > 1 && named.map((chain) => html`<a class="link-button" href=${page.to({ view: "chain", chain, query: page.route.query })}>${oneLine(chain, 60)}</a> `)}${here.size > 1 && from ? "· " : ""}${from}</span></span></li>`;
  })}</ul></section>`;
}

/** A sign for each hint that a chain shows, beside its name. @param {{looks: Look[]}} props */
export function LookSigns({ looks }) {
  return looks.map((look) => html`<span key=${`${look.kind} ${look.subject}`} class="look-sign" role="img" aria-label=${look.sentence} title=${look.sentence}><${Sign} look=${look} /></span>`);
}

/**
 * The turn in which the evidence of a hint is, and the call if it is one: the number of the item, or null if it is not there.
 * @param {string} kind of the hint
 * @param {string} subject its tool, or ""
 * @param {readonly import("../turns.js").Turn[]} turns
 * @returns {{turn: import("../turns.js").Turn, call: string | null} | null}
 */
export function evidenceIn(kind, subject, turns) {
  if (kind === "tool_fails") {
    for (const turn of turns) {
      const call = turn.calls.find((each) => each.name === subject && failureOf(each) !== null) ?? null;
      if (call) return { turn, call: call.id };
    }
    return null;
  }
  if (kind === "truncated") {
    const turn = turns.find((each) => each.finishReason === "length");
    return turn ? { turn, call: null } : null;
  }
  const last = turns.at(-1);
  return last ? { turn: last, call: last.calls.find((each) => each.open)?.id ?? null } : null;
}
