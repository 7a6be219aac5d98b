// Where the chains of a group part: a tree of decisions, branches as thick as the chains that took them, coloured by their reward.

import { html, useAtMostEvery, usePage } from "../ui.js";
import { counted, fixed } from "../format.js";
import { placeTree, whereTheyPart } from "../group.js";
import { oneLine } from "../text.js";
import { rewardLevel, rewardScale } from "../wall.js";

const ROW = 38; // pixels
const BOX = 28;
const GAP = 34;
const CHARACTER = 7.3;

/** @typedef {import("../group.js").Placed} Placed */

/** @param {Placed} place */
function labelOf(place) {
  const { branch, alone } = place;
  return [branch, ...alone].map((each) => each.label).join("  ");
}

const AGAIN_MS = 250; // the tree of chains that go on is made no more often

/** @typedef {{members: import("../group.js").Member[], rows: import("../store.js").Row[]}} Chains */

/** @param {Chains} chains */
export function Parts(chains) {
  const page = usePage();
  return useAtMostEvery(AGAIN_MS, () => treeOf(chains, page));
}

/** @param {Chains} chains @param {import("../ui.js").PageContext} page */
function treeOf({ members, rows }, { to, route }) {
  if (!members.length) return html`<section class="panel"><p class="empty">Reading what happened …</p></section>`;
  const scale = rewardScale(rows);
  const { places, rows: height, columns } = placeTree(whereTheyPart(members));
  const widths = new Array(columns).fill(64);
  const width = (/** @type {Placed} */ place) => (place.column === 0 ? 64 : Math.min(Math.max(labelOf(place).length, 6), 70) * CHARACTER + (place.branch.chains.length > 1 ? 52 : 24));
  const parents = new Set(places.map((place) => place.parent)); // nothing stands to the right of the others
  for (const [i, place] of places.entries()) if (parents.has(i)) widths[place.column] = Math.max(widths[place.column], Math.min(width(place), 330));
  const x = widths.map((_, i) => 12 + widths.slice(0, i).reduce((sum, each) => sum + each + GAP, 0));
  const y = (/** @type {Placed} */ place) => place.row * ROW + 8 + BOX / 2;
  const widest = Math.max(...places.map((place) => (x[place.column] ?? 0) + width(place))) + 70;
  return html`<section class="panel scroll-x" tabindex="0" aria-label="Where the chains part">
    <svg class="tree" width=${widest} height=${height * ROW + 16} role="group" aria-label=${`Tree of ${counted(members.length, "chain")}`}>
      ${places.map((place) => {
        const parent = place.parent === null ? undefined : places[place.parent];
        if (!parent) return null;
        const [x0, x1] = [(x[parent.column] ?? 0) + width(parent), x[place.column] ?? 0];
        const { reward, chains } = place.branch;
        const level = rewardLevel(reward, scale);
        return html`<path key=${`p${place.branch.id}`} class=${level === null ? "open" : ""} style=${level === null ? undefined : { "--r": `${Math.round(level * 100)}%` }}
          stroke-width=${1.5 + (chains.length / members.length) * 14} d=${`M${x0},${y(parent)} C${x0 + GAP / 2},${y(parent)} ${x1 - GAP / 2},${y(place)} ${x1},${y(place)}`} />`;
      })}
      ${places.map((place) => {
        const { branch } = place;
        const left = x[place.column] ?? 0;
        const top = y(place) - BOX / 2;
        const one = branch.chains.length === 1 ? branch.chains[0] : undefined;
        const last = place.alone.at(-1) ?? branch;
        const leaf = last.children.length === 0;
        const level = rewardLevel(branch.reward, scale);
        const words = branch.step === null ? "prompt" : shorten(labelOf(place), 70);
        const box = html`<g class=${branch.step === null ? "root" : ""}>
          <title>${branch.step === null ? "the prompt" : `${one ? `${oneLine(one, 60)}: ` : ""}${labelOf(place)}`}</title>
          <rect x=${left} y=${top} width=${width(place)} height=${BOX} rx="7" />
          <text x=${left + 10} y=${top + 18}>${words}</text>
          ${branch.chains.length > 1 && branch.step !== null && html`<text class="count" x=${left + width(place) - 8} y=${top + 18} text-anchor="end">${branch.chains.length} ×</text>`}
          ${leaf && html`<text class=${`result ${level === null ? "open" : level > 0.6 ? "good" : level < 0.4 ? "bad" : ""}`} x=${left + width(place) + 8} y=${top + 18}>${branch.reward === null ? "…" : fixed(branch.reward)}</text>`}
        </g>`;
        return one
          ? html`<a key=${branch.id} href=${to({ view: "chain", chain: one, query: route.query })} data-column>${box}</a>`
          : html`<g key=${branch.id}>${box}</g>`;
      })}
    </svg>
  </section>`;
}

/** @param {string} text @param {number} limit */
function shorten(text, limit) {
  return text.length > limit ? `${text.slice(0, limit - 1)}…` : text;
}
