// Chips that choose among chains: by state, reward, tool, end, policy and step. What is chosen is in the address.

import { html, useAtMostEvery, usePage, useState } from "../ui.js";
import { fixed, whole } from "../format.js";
import { chipsOf, CHOSEN_BY, facetsOf, filterRows } from "../lists.js";
import { oneLine } from "../text.js";

/** @typedef {import("../store.js").Row} Row */

const UNSEEN_MS = 1500; // chips that are folded are counted no more often

/** @type {Record<string, string>} */
const NAMES = { state: "state", reward: "reward", tool: "tool", finish_reason: "end", policy_last: "policy", train_step: "step", source: "source", session: "session" };

/** @type {Record<string, string>} */
export const STATE_WORDS = {
  waiting: "between two turns",
  generating: "generating",
  tool: "in a tool",
  scoring: "waiting for its reward",
  ended: "over",
  failed: "failed",
  lost: "its end was not seen",
};

/** What a value says on its chip. @param {string} name @param {string} value */
function wordsOf(name, value) {
  if (value === "none") return "none";
  if (name === "state") return STATE_WORDS[value] ?? value;
  if (name === "finish_reason") return value.replaceAll("_", " ");
  if (name !== "reward") return oneLine(value, 32);
  const [low = "", high = ""] = value.split("..").map((each) => each.replace("<", ""));
  if (low === high) return fixed(Number(low));
  return low === "" ? `below ${fixed(Number(high))}` : high === "" ? `${fixed(Number(low))} and more` : `${fixed(Number(low))} to ${fixed(Number(high))}`;
}

/**
 * The chips of these chains. `leaveOut`: fields that say nothing in this view.
 * @param {{rows: readonly Row[], shown: number, leaveOut?: string[]}} props `shown`: how many chains are left
 */
export function Chips({ rows, shown, leaveOut = [] }) {
  const { route, go } = usePage();
  const chosen = chipsOf(route.query);
  const count = Object.values(chosen).reduce((sum, values) => sum + values.length, 0);
  const [opened, open] = useState(count > 0);
  const facets = useAtMostEvery(opened ? 0 : UNSEEN_MS, () => facetsOf(rows))
    .filter((facet) => !leaveOut.includes(facet.name))
    .map((facet) => ({ ...facet, choices: [...facet.choices] }));
  // What is chosen stays there to be given up, also if no chain has it any more.
  for (const [name, values] of Object.entries(chosen)) {
    if (name === "text" || name === "trained" || leaveOut.includes(name)) continue;
    let facet = facets.find((each) => each.name === name);
    if (!facet) facets.push((facet = { name, choices: [], more: 0 }));
    for (const value of values) if (!facet.choices.some((each) => each.value === value)) facet.choices.push({ value, count: filterRows(rows, { [name]: [value] }).length });
  }
  if (!facets.length && !count) return null;
  const change = (/** @type {Record<string, string[]>} */ query) => go({ ...route, query });
  const press = (/** @type {string} */ name, /** @type {string} */ value) => {
    const values = chosen[name] ?? [];
    const next = values.includes(value) ? values.filter((each) => each !== value) : [...values, value];
    const { [name]: _, ...others } = route.query;
    change(next.length ? { ...others, [name]: next } : others);
  };
  const clear = () => change(Object.fromEntries(Object.entries(route.query).filter(([name]) => !CHOSEN_BY.includes(name))));
  return html`<details class="filters" open=${opened} onToggle=${(/** @type {Event} */ event) => open(/** @type {HTMLDetailsElement} */ (event.currentTarget).open)}>
    <summary>Filter${count ? html` · <b>${whole(shown)}</b> of ${whole(rows.length)} chains` : ""}</summary>
    <div class="facets">
      ${facets.map(({ name, choices, more }) => html`<div class="facet" key=${name} role="group" aria-label=${`Choose by ${NAMES[name] ?? name}`}>
        <span class="facet-name">${NAMES[name] ?? name}</span>
        ${choices.map(({ value, count: many }) => html`<button key=${value} class="chip" aria-pressed=${chosen[name]?.includes(value) ? "true" : "false"} onClick=${() => press(name, value)}
          >${wordsOf(name, value)} <span class="count">${whole(many)}</span></button>`)}
        ${more > 0 && html`<span class="small muted">${whole(more)} more</span>`}
      </div>`)}
      ${count > 0 && html`<button class="small-button" onClick=${clear}>Show all</button>`}
    </div>
  </details>`;
}
