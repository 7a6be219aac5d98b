// Is it alive, is it learning? Figures, the curve, the wall, and what needs a look.

import { html, usePage, useKeys, useRef, useTicks, useTopics } from "../ui.js";
import { counted, duration, fixed, mean, runName, when, whole } from "../format.js";
import { childrenOf, evaluationsOf, runRow, trainSteps } from "../training.js";
import { wallOf } from "../wall.js";
import { needsALook } from "../hints.js";
import { oneLine } from "../text.js";
import { Curve, Spark } from "./curve.js";
import { lookHref, Looks } from "./looks.js";
import { temperatureOf } from "./temperature.js";
import { Legend, Wall } from "./wall.js";

export function Overview() {
  const page = usePage();
  const { store, feed, run, rollout, runs, route, go, to } = page;
  useTopics("steps", `rows\n${rollout}`);
  useTicks(1000);
  const row = runRow(store, run);
  const rolloutRow = runRow(store, rollout);
  const rows = rollout === null ? [] : store.rows(rollout);
  const steps = trainSteps(store, run);
  const open = rolloutRow?.status === "running";
  const isTraining = steps.length > 0 || childrenOf(runs, run).length > 0;
  const looks = needsALook(rows, open ? store.now : null);
  const quiet = new Set(looks.filter((each) => each.kind === "quiet").flatMap((each) => each.chains));
  const wall = wallOf(rows);
  if (wall.length && wall.every((each) => each.cells.length === 1)) wall.sort((a, b) => order(a, b));
  const chosen = route.query.step?.[0];
  // Where links lead: a step of the training, or the run itself, such as an evaluation.
  /** @type {import("./looks.js").Base} */
  const base = !isTraining || rolloutRow === null ? {} : rolloutRow.split === "eval" || rolloutRow.train_step === null ? { run: rollout } : { query: { step: [String(rolloutRow.train_step)] } };

  const at = useRef(-1);
  const move = (/** @type {number} */ delta) => {
    const links = /** @type {HTMLElement[]} */ ([...document.querySelectorAll("main [data-row]")]);
    const focused = links.indexOf(/** @type {HTMLElement} */ (document.activeElement));
    const next = focused < 0 ? Math.max(at.current, 0) : Math.min(Math.max(focused + delta, 0), links.length - 1);
    at.current = next;
    links[next]?.focus();
  };
  useKeys({
    j: () => move(1),
    k: () => move(-1),
    g: () => {
      const first = wall.find((each) => each.groupId);
      if (first) go({ ...base, view: "group", group: first.groupId });
    },
    ".": () => {
      const first = looks[0];
      if (first) location.hash = lookHref(page, first, base);
    },
  });

  if (row === null) {
    const asking = !store.runRows.size && feed.line.session.state.word !== "connected";
    return html`<h1 class="hidden-name">Overview</h1><section class="panel"><p class="empty">${asking ? "Asking which runs there are …" : "There is no run yet. This page shows it as soon as one begins."}</p></section>`;
  }
  return html`
    <h1 class="hidden-name">Overview of ${runName(row)}</h1>
    <div class="stack">
      <${Figures} row=${row} rows=${rows} steps=${steps} />
      <div class="two">
        ${isTraining
          ? html`<section class="panel"><div class="panel-head"><h2>How it learns</h2><span class="small muted">a click on a step shows its chains</span></div><${Learning} steps=${steps} chosen=${chosen} /></section>`
          : html`<section class="panel"><h2>The run</h2><${About} row=${row} rows=${rows} /></section>`}
        <section class="panel"><h2>Needs a look</h2><${Looks} looks=${looks} base=${base} /></section>
      </div>
      <section class="panel">
        <div class="panel-head">
          <h2>${isTraining && rolloutRow ? `${rolloutRow.split === "eval" ? "Evaluation after step" : "Step"} ${rolloutRow.train_step ?? ""}` : "Chains"}</h2>
          <span class="small muted">${counted(wall.length, "question")}, a row for each; a cell for each chain; those that differ most first</span>
          <span class="grow"></span>
          ${isTraining && html`<${StepLinks} shown=${rolloutRow?.train_step ?? null} chosen=${chosen} steps=${steps} />`}
        </div>
        ${rows.length
          ? html`<${Wall} rows=${wall} quiet=${quiet} base=${base} />`
          : html`<p class="empty">${rollout === null ? `No chains of step ${chosen} are known here.` : row.status === "running" ? "Waiting for the first chains …" : "This run has no chains."}</p>`}
        <${Legend} />
      </section>
    </div>`;
}

/** @param {import("../wall.js").WallRow} a @param {import("../wall.js").WallRow} b */
function order(a, b) {
  return (b.cells[0]?.reward ?? -1) - (a.cells[0]?.reward ?? -1) || a.groupId.localeCompare(b.groupId, "en", { numeric: true });
}

/** @param {{shown: number | null, chosen: string | undefined, steps: Record<string, any>[]}} props */
function StepLinks({ shown, chosen, steps }) {
  const { to } = usePage();
  if (shown === null) return null;
  const last = (steps.at(-1)?.train_step ?? 0) + 1;
  const link = (/** @type {number} */ step, /** @type {string} */ sign, /** @type {string} */ name) =>
    html`<a href=${to({ view: "overview", query: { step: [String(step)] } })} aria-label=${name}>${sign}</a>`;
  return html`<nav class="steps" aria-label="Steps">
    ${shown > 1 && link(shown - 1, "‹", `Step ${shown - 1}`)}
    ${shown < last && chosen !== undefined && link(shown + 1, "›", `Step ${shown + 1}`)}
    ${chosen !== undefined && html`<a href=${to({ view: "overview" })}>latest</a>`}
  </nav>`;
}

/** @param {{steps: Record<string, any>[], chosen: string | undefined}} props */
function Learning({ steps, chosen }) {
  const page = usePage();
  const { store, run, runs } = page;
  const evaluations = evaluationsOf(runs, run);
  /** @type {import("./curve.js").Line[]} */
  const lines = [{ name: "mean reward", kind: "mean", points: pointsOf(steps, "mean_reward") }];
  const greedy = [];
  const sampled = [];
  for (const each of evaluations) {
    const temperature = temperatureOf(page, each.run_id);
    const point = /** @type {[number, number]} */ ([each.train_step ?? 0, each.mean_reward]);
    if (temperature === 0) greedy.push(point);
    else if (temperature !== null) sampled.push(point);
  }
  lines.push({ name: "held-out, sampled", kind: "sampled", points: sampled }, { name: "held-out, greedy", kind: "greedy", points: greedy });
  const wanted = store.views.runs.get(run ?? "")?.fields.expected_steps ?? 0;
  const last = Math.max(wanted, steps.at(-1)?.train_step ?? 0, ...evaluations.map((each) => each.train_step ?? 0), 1);
  return html`<${Curve} lines=${lines} last=${last} chosen=${chosen === undefined ? null : Number(chosen)} />`;
}

/** @param {Record<string, any>[]} steps @param {string} name @returns {[number, number][]} */
function pointsOf(steps, name) {
  return steps.filter((step) => typeof step.metrics?.[name] === "number").map((step) => [step.train_step, step.metrics[name]]);
}

/** @param {{row: import("../training.js").RunRow, rows: import("../store.js").Row[], steps: Record<string, any>[]}} props */
function Figures({ row, rows, steps }) {
  const { store, run, runs, rollout } = usePage();
  const running = rows.filter((each) => each.state === "running").length;
  const failed = rows.filter((each) => each.finish_reason === "error" || each.state === "lost").length;
  const rewards = rows.map((each) => each.reward).filter((reward) => typeof reward === "number");
  const last = steps.at(-1)?.metrics ?? {};
  const rolloutRow = runRow(store, rollout);
  const expected = rolloutRow?.expected_chains ?? rows.length;
  const tokens = rows.reduce((sum, each) => sum + (each.completion_tokens ?? 0), 0);
  const seconds = (rolloutRow?.ended_at ?? store.now) - (rolloutRow?.started_at ?? store.now);
  const perSecond = typeof last.tokens_per_s === "number" ? last.tokens_per_s : seconds > 1 ? tokens / seconds : null;
  const evaluations = evaluationsOf(runs, run);
  const values = (/** @type {string} */ name) => pointsOf(steps, name).map((point) => point[1]).slice(-60);
  /** @type {{value: unknown, small?: string, label: string, spark?: number[]}[]} */
  const figures = [
    { value: whole(running), small: `of ${whole(Math.max(expected, rows.length))} running`, label: `${whole(rows.length - running)} over · ${failed} failed` },
    { value: whole(perSecond), label: "tokens/s", spark: values("tokens_per_s") },
  ];
  if (steps.length) {
    const first = evaluations[0];
    const latest = evaluations.filter((each) => each.run_id !== first?.run_id).at(-1);
    const spoken = evaluations.length > 2 && first && latest;
    figures.push(
      { value: fixed(last.mean_reward), label: `mean reward of step ${steps.at(-1)?.train_step}`, spark: values("mean_reward") },
      typeof last.success === "number"
        ? { value: fixed(last.success), label: `success of step ${steps.at(-1)?.train_step}`, spark: values("success") }
        : { value: spoken ? `${fixed(first.mean_reward)} → ${fixed(latest.mean_reward)}` : fixed(first?.mean_reward), label: "held-out reward" },
      { value: fixed(last.entropy, 3), label: "entropy, nats a token", spark: values("entropy") },
      { value: whole(steps.at(-1)?.policy_version), label: `policy · ${whole(last.flat_groups)} of ${whole((last.flat_groups ?? 0) + (last.kept_groups ?? 0))} groups flat` },
    );
  } else {
    figures.push(
      { value: fixed(mean(rewards)), label: `mean reward of ${counted(rewards.length, "chain")}` },
      { value: whole(tokens), label: "tokens of chains that are over" },
      { value: whole(rows.reduce((sum, each) => sum + (each.calls ?? 0), 0)), label: `tool calls · ${whole(rows.reduce((sum, each) => sum + (each.calls_failed ?? 0), 0))} failed` },
      { value: duration(row.duration_s ?? (row.started_at ? store.now - row.started_at : null)), label: row.status === "running" ? "so far" : row.status },
    );
  }
  return html`<section class="panel figures" aria-label="Figures">${figures.map(({ value, small, label, spark }) => html`<div class="figure">
    <div class="value">${value} ${small && html`<small>${small}</small>`}</div><div class="label">${label}</div>
    ${spark && spark.length > 1 && html`<${Spark} values=${spark} label=${`${label}: from ${fixed(spark[0])} to ${fixed(spark.at(-1))}`} />`}
  </div>`)}</section>`;
}

/** @param {{row: import("../training.js").RunRow, rows: import("../store.js").Row[]}} props */
function About({ row, rows }) {
  /** @type {Map<string, number>} */
  const ends = new Map();
  for (const each of rows) if (each.finish_reason) ends.set(each.finish_reason, (ends.get(each.finish_reason) ?? 0) + 1);
  const ended = [...ends].sort((a, b) => b[1] - a[1]).map(([name, count]) => `${count} × ${name.replace("_", " ")}`).join(", ");
  return html`<dl>
    <dt>agent</dt><dd>${oneLine(String(row.agent ?? "–"), 200)}</dd><dt>model</dt><dd>${oneLine(String(row.model ?? "–"), 200)}</dd><dt>status</dt><dd>${row.status}</dd>
    <dt>started</dt><dd>${when(row.started_at)}</dd><dt>ended</dt><dd>${ended || "–"}</dd><dt>run</dt><dd>${row.run_id}</dd>
  </dl>`;
}
