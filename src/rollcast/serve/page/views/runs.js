// The runs: a row for each, with its trainings' steps counted.

import { html, usePage, useTopics } from "../ui.js";
import { duration, fixed, runName, when, whole } from "../format.js";
import { formatRoute } from "../route.js";
import { childrenOf, rootsOf, trainSteps } from "../training.js";
import { oneLine } from "../text.js";

export function RunsPage() {
  const { runs, store, feed } = usePage();
  useTopics("runs", "steps");
  const rows = rootsOf(runs);
  return html`<div class="title"><div><h1>Runs</h1><p class="muted">${whole(rows.length)} known to this server, the newest first</p></div></div>
    <section class="panel scroll-x" tabindex="0" aria-label="List of runs">
      ${rows.length
        ? html`<table>
            <thead><tr><th scope="col">run</th><th scope="col">status</th><th scope="col">started</th><th scope="col">duration</th><th scope="col">steps</th><th scope="col">chains</th><th scope="col">failed</th><th scope="col">mean reward</th></tr></thead>
            <tbody>${rows.slice(0, 500).map((row) => {
              const children = childrenOf(runs, row.run_id);
              const all = children.length ? children : [row];
              const steps = trainSteps(store, row.run_id);
              const chains = all.reduce((sum, each) => sum + (each.chains || each.expected_chains || 0), 0);
              const failed = all.reduce((sum, each) => sum + (each.failed ?? 0), 0);
              const reward = steps.length ? steps.at(-1)?.metrics?.mean_reward : row.mean_reward;
              const seconds = row.duration_s ?? (row.started_at && (row.ended_at ?? Date.now() / 1000) - row.started_at);
              return html`<tr key=${row.run_id}>
                <td><a href=${formatRoute({ view: "overview", run: row.run_id })}><b>${runName(row)}</b> <span class="muted small">${oneLine(String(row.model ?? ""), 60)} · ${row.run_id.slice(-6)}</span></a></td>
                <td>${row.status === "running" ? html`<span class="accent">● running</span>` : row.status === "failed" ? html`<span class="bad">✕ failed</span>` : row.status}</td>
                <td class="mono">${when(row.started_at)}</td><td class="mono">${duration(seconds)}</td><td class="mono">${steps.length || "–"}</td>
                <td class="mono">${whole(chains)}</td><td class="mono">${failed ? html`<span class="bad">${whole(failed)}</span>` : "0"}</td><td class="mono">${fixed(reward)}</td></tr>`;
            })}</tbody>
          </table>`
        : html`<p class="empty">${feed.line.session.state.word === "connected" ? "There is no run yet. This page shows it as soon as one begins." : "Asking which runs there are …"}</p>`}
    </section>`;
}
