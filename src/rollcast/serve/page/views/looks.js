// What needs a look: hints with the chains that show them, never verdicts. Each leads to its evidence: the group, or the turn of a chain.

import { namedChains } from "../hints.js";
import { html, usePage } from "../ui.js";
import { oneLine } from "../text.js";

/** @typedef {import("../hints.js").Hint} Look */
/** @typedef {{run?: string | null, query?: Record<string, string[]>}} Base what the addresses of all links here share */

const MAX_NAMED = 4; // chains with a link of their own

/** @type {Record<string, [string, string]>} a sign and the class of its colour */
const SIGNS = { quiet: ["◔", "warn"], tool_fails: ["✕", "bad"], flat_groups: ["=", "muted"], alike_and_wrong: ["≠", "bad"], reward_without_reference: ["!", "warn"], truncated: ["…", "warn"] };

/**
 * Where the evidence in a chain is: its group if the hint is about groups, else the chain, at the turn that shows it.
 * @param {import("../ui.js").PageContext} page
 * @param {Look} look
 * @param {string} chain
 * @param {(runId: string) => Base} baseOf
 */
function chainHref({ to, store }, look, chain, baseOf) {
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

/** @param {{looks: Look[], baseOf: (runId: string) => Base}} props */
export function Looks({ looks, baseOf }) {
  const page = usePage();
  if (!looks.length) return html`<p class="muted">Nothing stands out.</p>`;
  return html`<ul class="looks">${looks.map((look) => {
    const [sign, colour] = SIGNS[look.kind] ?? ["•", "muted"];
    const named = namedChains(look) ? look.chains.slice(0, MAX_NAMED) : [];
    const more = look.count - named.length;
    return html`<li class="look" key=${`${look.runId} ${look.kind} ${look.groupId} ${look.subject}`}>
      <span class=${`sign ${colour}`} aria-hidden="true">${sign}</span><span><a class="look-what" href=${lookHref(page, look, baseOf)}>${look.sentence}</a>
      ${named.length > 0 && html`<span class="why">${named.map((chain, i) => html`${i > 0 ? ", " : ""}<a href=${chainHref(page, look, chain, baseOf)}>${oneLine(chain, 40)}</a>`)}${more > 0 ? ` and ${more.toLocaleString("en")} more` : ""}</span>`}</span>
    </li>`;
  })}</ul>`;
}

/**
 * The turn in which the evidence of a hint is, and the call if it is one: the number of the item, or null if it is not there.
 * @param {string} kind of the hint
 * @param {string} subject its tool, or ""
 * @param {readonly import("../turns.js").Turn[]} turns
 * @returns {{turn: import("../turns.js").Turn, call: string | null} | null}
 */
export function evidenceIn(kind, subject, turns) {
  const failed = (/** @type {import("../turns.js").Call} */ call) => call.status === "error" || call.status === "timeout" || call.status === "cancelled";
  if (kind === "tool_fails") {
    for (const turn of turns) {
      const call = turn.calls.find((each) => each.name === subject && failed(each)) ?? null;
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
