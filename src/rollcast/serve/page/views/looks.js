// What needs a look: hints with the chains that show them, never verdicts.

import { html, useAgain, useEffect, usePage, useTicks, useTopics } from "../ui.js";
import { clock } from "../format.js";
import { namedChains, needsALook, trendHints } from "../hints.js";
import { oneLine } from "../text.js";
import { runRow, summariesOf } from "../training.js";

/** @typedef {import("../hints.js").Hint} Look */
/** @typedef {{run?: string | null, query?: Record<string, string[]>}} Base what the addresses of all links here share */

const AGAIN_MS = 1000; // hints of a run are found no more often

/** @type {Record<Look["kind"], [string, string]>} a sign and the class of its colour */
const SIGNS = {
  quiet: ["◔", "warn"], tool_fails: ["✕", "bad"], flat_groups: ["=", "muted"], alike_and_wrong: ["≠", "bad"], reward_without_reference: ["!", "warn"],
  truncated: ["…", "warn"], same_answers: ["≡", "warn"], length_drift: ["↔", "warn"],
}; // prettier-ignore

/** The hints of the run whose rows are shown, and when they were found; one list for everyone who draws them. @type {WeakMap<object, {run: string | null, open: boolean, at: number, looks: Look[]}>} */
const found = new WeakMap();

/**
 * The hints of the chains that the page has rows of. They are found anew when the rows have changed, and while the run goes on once a second.
 * @returns {Look[]}
 */
export function useLooks() {
  const { store, rollout } = usePage();
  const again = useAgain();
  useTopics(`rows\n${rollout}`);
  const open = runRow(store, rollout)?.status === "running";
  useTicks(AGAIN_MS, open);
  const now = performance.now();
  let known = found.get(store);
  if (known === undefined || known.run !== rollout || known.open !== open || now - known.at >= AGAIN_MS) {
    const looks = rollout === null ? [] : needsALook(store.rows(rollout), open ? Date.now() / 1000 : null);
    found.set(store, (known = { run: rollout, open, at: now, looks }));
  }
  const wait = known.at === now ? null : known.at + AGAIN_MS - now;
  useEffect(() => {
    if (wait === null) return undefined;
    const timer = setTimeout(again, wait); // the rows may have changed since
    return () => clearTimeout(timer);
  });
  return known.looks;
}

/** The hints about the steps of the training that is shown, up to the chosen step. @returns {Look[]} */
export function useTrends() {
  const { runs, run, route } = usePage();
  return trendHints(summariesOf(runs, run, route.query.step?.[0]));
}

/** @param {import("../ui.js").PageContext} page @param {Look} look @param {Base} base */
export function lookHref({ to, store, rollout }, look, base) {
  if (look.groupId !== null) return to({ ...base, view: "group", group: look.groupId });
  const chain = look.chains[0];
  if (chain === undefined) return to({ ...base, view: "overview" });
  if (look.kind === "same_answers" || look.kind === "length_drift") return to({ view: "chain", run: look.runId, chain });
  const group = store.row(rollout ?? "", chain)?.group_id;
  return look.kind === "flat_groups" && group ? to({ ...base, view: "group", group }) : to({ ...base, view: "chain", chain });
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

/** @param {{looks: Look[], base: Base}} props */
export function Looks({ looks, base }) {
  const page = usePage();
  if (!looks.length) return html`<p class="muted">Nothing stands out.</p>`;
  return html`<ul class="looks">${looks.map((look) => html`<li key=${`${look.kind} ${look.groupId} ${look.subject}`}><a class="look" href=${lookHref(page, look, base)}>
      <${Sign} look=${look} /><span>${look.sentence}<br /><span class="why">${[namedChains(look), since(page, look)].filter((each) => each).join(" · ")}</span></span>
    </a></li>`)}</ul>`;
}

/**
 * The hints that some of these chains show, above what else is told of them; nothing if there is none.
 * @param {{chains: string[]}} props
 */
export function LooksAbout({ chains }) {
  const page = usePage();
  const here = new Set(chains);
  const looks = useLooks().filter((look) => look.chains.some((chain) => here.has(chain)));
  if (!looks.length) return null;
  return html`<section class="panel looks-about" aria-label="Needs a look"><ul class="looks">${looks.map((look) => {
    const named = look.chains.filter((chain) => here.has(chain)).slice(0, 4);
    const from = since(page, look);
    return html`<li key=${`${look.kind} ${look.groupId} ${look.subject}`} class="look"><${Sign} look=${look} /><span>${look.sentence}
      <span class="why"> ${here.size > 1 && named.map((chain) => html`<a class="link-button" href=${page.to({ view: "chain", chain, query: page.route.query })}>${oneLine(chain, 60)}</a> `)}${from}</span></span></li>`;
  })}</ul></section>`;
}

/** A sign for each hint that the chain shows, beside its name. @param {{chain: string}} props */
export function LookSigns({ chain }) {
  const looks = useLooks().filter((look) => look.chains.includes(chain));
  return looks.map((look) => html`<span key=${`${look.kind} ${look.subject}`} class="look-sign" role="img" aria-label=${look.sentence} title=${look.sentence}><${Sign} look=${look} /></span>`);
}
