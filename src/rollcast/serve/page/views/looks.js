// What needs a look: hints with the chains that show them, never verdicts.

import { html, usePage } from "../ui.js";

/** @typedef {{kind: string, sentence: string, runId: string, chains: string[], count: number, groupId: string | null, subject: string}} Look */

/** @type {Record<string, [string, string]>} a sign and the class of its colour */
const SIGNS = { quiet: ["◔", "warn"], tool_fails: ["✕", "bad"], flat_groups: ["=", "muted"], alike_and_wrong: ["≠", "bad"], reward_without_reference: ["!", "warn"], truncated: ["…", "warn"], failed: ["✕", "bad"] };

/**
 * @param {import("../store.js").Row[]} _rows
 * @param {import("../store.js").Store} _store
 * @returns {Look[]}
 */
export function looksOf(_rows, _store) {
  return [];
}

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
      <span class=${`sign ${colour}`} aria-hidden="true">${sign}</span><span>${look.sentence}<br /><span class="why">${look.chains.slice(0, 6).join(", ")}${look.count > 6 ? ` and ${look.count - 6} more` : ""}</span></span>
    </a></li>`;
  })}</ul>`;
}
