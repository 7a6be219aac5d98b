// What needs a look: hints with the chains that show them, never verdicts.

import { namedChains } from "../hints.js";
import { html, usePage } from "../ui.js";

/** @typedef {import("../hints.js").Hint} Look */

/** @type {Record<string, [string, string]>} a sign and the class of its colour */
const SIGNS = { quiet: ["◔", "warn"], tool_fails: ["✕", "bad"], flat_groups: ["=", "muted"], alike_and_wrong: ["≠", "bad"], reward_without_reference: ["!", "warn"], truncated: ["…", "warn"] };

/** @param {import("../ui.js").PageContext} page @param {Look} look @param {Record<string, string[]>} query */
export function lookHref({ to, store, rollout }, look, query) {
  if (look.groupId !== null) return to({ view: "group", group: look.groupId, query });
  const chain = look.chains[0];
  if (chain === undefined) return to({ view: "overview", query });
  const group = store.row(rollout ?? "", chain)?.group_id;
  return look.kind === "flat_groups" && group ? to({ view: "group", group, query }) : to({ view: "chain", chain, query });
}

/** @param {{looks: Look[], query: Record<string, string[]>}} props */
export function Looks({ looks, query }) {
  const page = usePage();
  if (!looks.length) return html`<p class="muted">Nothing stands out.</p>`;
  return html`<ul class="looks">${looks.map((look) => {
    const [sign, colour] = SIGNS[look.kind] ?? ["•", "muted"];
    return html`<li key=${`${look.kind} ${look.groupId} ${look.subject}`}><a class="look" href=${lookHref(page, look, query)}>
      <span class=${`sign ${colour}`} aria-hidden="true">${sign}</span><span>${look.sentence}<br /><span class="why">${namedChains(look)}</span></span>
    </a></li>`;
  })}</ul>`;
}
