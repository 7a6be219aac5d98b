// The runs: a row for each, with its trainings' steps counted. A server of a folder of records lists its records.

import { html, useEffect, usePage, useTicks, useTimer, useTopics } from "../ui.js";
import { counted, duration, fixed, lasting, runName, shortRunId, sourcesOf, tagsOf, when, whole } from "../format.js";
import { producersInWords, producersOf } from "../producers.js";
import { formatRoute } from "../route.js";
import { childrenOf, rootsOf, trainSteps } from "../training.js";
import { oneLine } from "../text.js";

/** @typedef {import("../training.js").RunRow} RunRow */

const MAX_ROWS = 1_000;
const AGAIN_MS = 5_000; // how often a folder is looked at again, and a hub asked for its producers

export function RunsPage() {
  const { runs, store, feed } = usePage();
  useTopics("runs", "steps");
  const folder = feed.hasFolder;
  useTimer(AGAIN_MS, folder, () => feed.askRuns());
  const rows = rootsOf(runs).filter((row) => !folder || row.record);
  useTicks(1000, rows.some((row) => row.status === "running")); // its duration goes on
  const what = folder ? `${counted(rows.length, "record")} in this folder` : `${whole(rows.length)} known to this server`;
  const more = rows.length > MAX_ROWS ? `; the first ${whole(MAX_ROWS)} are shown` : "";
  return html`<div class="title"><div><h1>Runs</h1><p class="muted">${what}, the newest first${more}</p></div></div>
    <${Producers} />
    <section class="panel scroll-x" tabindex="0" aria-label="List of runs">
      ${rows.length
        ? html`<table class="runs">
            <thead><tr><th scope="col">run</th><th scope="col">status</th><th scope="col">started</th><th scope="col">duration</th><th scope="col">steps</th><th scope="col">chains</th><th scope="col">failed</th><th scope="col">mean reward</th></tr></thead>
            <tbody>${rows.slice(0, MAX_ROWS).map((row) => html`<${Run} key=${row.run_id} row=${row} figures=${figuresOf(row, runs, store)} />`)}</tbody>
          </table>`
        : html`<${NoRuns} />`}
    </section>`;
}

/** What stands in place of the list while it is empty. */
function NoRuns() {
  const { feed } = usePage();
  useTopics("session");
  return html`<p class="empty">${feed.line.session.state.word === "connected" ? "There is no run yet. This page shows it as soon as one begins." : "Asking which runs there are …"}</p>`;
}

/**
 * The figures of a run and of those in it: as its record counts them, or else from their rows.
 * @param {RunRow} row
 * @param {RunRow[]} runs
 * @param {import("../store.js").Store} store
 * @returns {{steps: number, chains: number, failed: number, reward: number | null}}
 */
function figuresOf(row, runs, store) {
  const { record } = row;
  if (record && !(row.status === "running" && store.views.runs.has(row.run_id))) {
    return { steps: record.train_steps ?? 0, chains: record.chains ?? 0, failed: record.failed ?? 0, reward: record.mean_reward ?? null };
  }
  const children = childrenOf(runs, row.run_id);
  const all = children.length ? children : [row];
  const steps = trainSteps(store, row.run_id);
  return {
    steps: steps.length,
    chains: all.reduce((sum, each) => sum + (each.chains || each.expected_chains || 0), 0),
    failed: all.reduce((sum, each) => sum + (each.failed ?? 0), 0),
    reward: steps.length ? steps.at(-1)?.metrics?.mean_reward : row.mean_reward,
  };
}

/** @param {{row: RunRow, figures: ReturnType<typeof figuresOf>}} props */
function Run({ row, figures }) {
  const { steps, chains, failed, reward } = figures;
  const { record } = row;
  const seconds = row.duration_s ?? (row.started_at && row.status === "running" ? Date.now() / 1000 - row.started_at : row.ended_at ? row.ended_at - row.started_at : null);
  const where = record ? oneLine(record.name, 80) : `${oneLine(String(row.model ?? ""), 60)} · ${shortRunId(row.run_id)}`;
  const sources = sourcesOf(row);
  const name = html`<b>${runName(row)}</b> <span class="muted small">${where}${sources && ` · ${sources}`}</span>${tagsOf(row).map((tag) => html` <span class="pill">${tag}</span>`)}`;
  const readable = !row.run_id.startsWith("record:");
  return html`<tr>
    <td>${readable ? html`<a href=${formatRoute({ view: "overview", run: row.run_id })}>${name}</a>` : name}${record?.damage && html` <span class="bad small">${oneLine(record.damage, 200)}</span>`}</td>
    <td data-name="status">${statusOf(row.status)}</td>
    <td class="mono" data-name="started">${when(row.started_at)}</td><td class="mono" data-name="duration">${duration(seconds)}</td><td class="mono" data-name="steps">${steps || "–"}</td>
    <td class="mono" data-name="chains">${whole(chains)}</td><td class="mono" data-name="failed">${failed ? html`<span class="bad">${whole(failed)}</span>` : "0"}</td><td class="mono" data-name="mean reward">${fixed(reward)}</td></tr>`;
}

/** @param {string} status */
function statusOf(status) {
  if (status === "running") return html`<span class="accent">● running</span>`;
  if (status === "failed" || status === "damaged") return html`<span class="bad">✕ ${status}</span>`;
  if (status === "lost") return html`<span class="warn">✕ its process died</span>`;
  if (status === "silent") return html`<span class="warn">◔ silent</span>`;
  return status;
}

/** The producers of a hub: who is connected, who is silent and for how long, and what is wrong. */
function Producers() {
  const { feed } = usePage();
  useTicks(1000);
  const { isHub } = feed;
  useEffect(() => feed.askSources(), [isHub]);
  useTimer(AGAIN_MS, isHub, () => feed.askSources());
  const producers = producersOf(feed.sources);
  if (!isHub || !producers.length) return null;
  return html`<details class="panel producers" open=${producers.some(({ state, wrong }) => state === "silent" || wrong.length)}>
    <summary><h2>Producers</h2> <span class="muted small">${producersInWords(producers)}${producers.length > MAX_ROWS && `; the first ${whole(MAX_ROWS)} are shown`}</span></summary>
    <table class="runs">
      <thead><tr><th scope="col">source</th><th scope="col">status</th><th scope="col">open chains</th><th scope="col">wrong</th></tr></thead>
      <tbody>${producers.slice(0, MAX_ROWS).map((each) => html`<${Producer} key=${each.source} each=${each} />`)}</tbody>
    </table>
  </details>`;
}

/** @param {{each: import("../producers.js").Producer}} props */
function Producer({ each }) {
  const { source, host, state, wrong } = each;
  const words = state === "silent" ? html`<span class="warn">◔ silent for ${lasting(each.silent_s)}</span>` : state === "connected" ? html`<span class="accent">● connected</span>` : state;
  return html`<tr><td><b>${oneLine(source, 60)}</b> <span class="muted small">${oneLine(host, 60)}</span></td><td data-name="status">${words}</td>
    <td class="mono" data-name="chains">${whole(each.open_chains)}</td><td class="warn">${wrong.join("; ")}</td></tr>`;
}
