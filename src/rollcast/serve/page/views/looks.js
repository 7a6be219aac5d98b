// What needs a look: hints with the chains that show them, never verdicts.

import { namedChains } from "../hints.js";
import { html, usePage } from "../ui.js";

/** @typedef {import("../hints.js").Hint} Look */
/** @typedef {{run?: string | null, query?: Record<string, string[]>}} Base what the addresses of all links here share */

/** @type {Record<string, [string, string]>} a sign and the class of its colour */
const SIGNS = { quiet: ["◔", "warn"], tool_fails: ["✕", "bad"], flat_groups: ["=", "muted"], alike_and_wrong: ["≠", "bad"], reward_without_reference: ["!", "warn"], truncated: ["…", "warn"] };

/** @param {import("../ui.js").PageContext} page @param {Look} look @param {Base} base */
export function lookHref({ to, store, rollout }, look, base) {
  if (look.groupId !== null) return to({ ...base, view: "group", group: look.groupId });
  const chain = look.chains[0];
  if (chain === undefined) return to({ ...base, view: "overview" });
  const group = store.row(rollout ?? "", chain)?.group_id;
  return look.kind === "flat_groups" && group ? to({ ...base, view: "group", group }) : to({ ...base, view: "chain", chain });
}

/** @param {{looks: Look[], base: Base}} props */
export function Looks({ looks, base }) {
  const page = usePage();
  if (!looks.length) return html`<p class="muted">Nothing stands out.</p>`;
  return html`<ul class="looks">${looks.map((look) => {
    const [sign, colour] = SIGNS[look.kind] ?? ["•", "muted"];
    return html`<li key=${`${look.kind} ${look.groupId} ${look.subject}`}><a class="look" href=${lookHref(page, look, base)}>
      <span class=${`sign ${colour}`} aria-hidden="true">${sign}</span><span>${look.sentence}<br /><span class="why">${namedChains(look)}</span></span>
    </a></li>`;
  })}</ul>`;
}
