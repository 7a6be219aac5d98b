// Why what an address names is not shown: there is none, or it had not begun at the moment of a replay.

import { html, usePage } from "../ui.js";
import { formatRoute } from "../route.js";
import { oneLine } from "../text.js";

/** @typedef {import("../ui.js").PageContext} PageContext */

/** Whether the server has said which runs there are, and that of the address is not among them. @param {Pick<PageContext, "feed" | "store" | "run">} page */
export function isUnknownRun({ feed, store, run }) {
  return run !== null && feed.knowsRuns(run) && !store.runRows.has(run) && !store.views.runs.has(run);
}

/** @param {PageContext} page */
export function stepAbsence({ store, route }) {
  const step = oneLine(route.query.step?.[0] ?? "", 20);
  return store.moment === null ? `No chains of step ${step} are known here.` : `Step ${step} had not begun at the moment that is shown.`;
}

/**
 * Why a chain or a group of the address is not among the rows.
 * @param {PageContext} page
 * @param {string} what `chain` or `group`, and its name
 * @param {(row: import("../store.js").Row) => boolean} isIt
 * @returns {string | null} null as long as the rows have not come
 */
export function absence(page, what, isIt) {
  const { store, feed, rollout } = page;
  if (rollout === null) return stepAbsence(page);
  if (store.moment !== null && [...(store.chainRows.get(rollout)?.values() ?? [])].some(isIt)) return `Nothing of ${what} had begun at the moment that is shown.`;
  return feed.total === null && store.rows(rollout).length === 0 ? null : `There is no ${what} in this run.`;
}

/** In place of a view of a run that the server does not have. */
export function UnknownRun() {
  const { run } = usePage();
  return html`<div class="title"><h1>No such run</h1></div>
    <section class="panel"><p class="empty">This server knows no run ${oneLine(run ?? "", 60)}. <a class="link-button" href=${formatRoute({ view: "runs" })}>The runs that it has</a></p></section>`;
}
