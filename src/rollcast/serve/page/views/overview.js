// Is it alive, is it learning? Figures, the curve, the wall, and what needs a look.

import { html, memo, usePage, useKeys, useRef, useTicks, useTopics, useTopicsApart } from "../ui.js";
import { counted, duration, fixed, mean, runName, sourcesOf, tagsOf, when, whole } from "../format.js";
import { chipsOf, filterRows } from "../lists.js";
import { chainKey } from "../store.js";
import { oneLine, visible } from "../text.js";
import { addressOf, childrenOf, evaluationsOf, runRow, trainSteps } from "../training.js";
import { rewardScale, wallOf } from "../wall.js";
import { stepAbsence } from "./absence.js";
import { CancelButton } from "./cancel.js";
import { Chips } from "./chips.js";
import { Curve, Spark } from "./curve.js";
import { lookHref, Looks, useLooks, useTrends } from "./looks.js";
import { Stuck } from "./stuck.js";
import { temperatureOf } from "./temperature.js";
import { Legend, Wall } from "./wall.js";

// Each part listens for itself and is drawn in a frame that has time for it, so that no frame takes long if a run has thousands of chains.

export function Overview() {
  const { store, run, runs, route } = usePage();
  useTopics("steps");
  useMoves();
  const row = runRow(store, run);
  const steps = trainSteps(store, run);
  const isTraining = steps.length > 0 || childrenOf(runs, run).length > 0;
  if (row === null) return html`<${NoRun} />`;
  const tags = tagsOf(row);
  return html`
    <h1 class="hidden-name">Overview of ${runName(row)}</h1>
    <div class="stack">
      ${tags.length > 0 && html`<div class="pills" aria-label="Tags" role="list">${tags.map((tag) => html`<span class="pill" role="listitem">${tag}</span>`)}</div>`}
      ${FAILED.includes(row.status) && html`<${Failure} row=${row} />`}
      <${Figures} />
      <div class="two">
        ${isTraining
          ? html`<section class="panel"><${Learning} steps=${steps} chosen=${route.query.step?.[0]} /></section>`
          : html`<section class="panel"><h2>The run</h2><${About} /></section>`}
        <${NeedsALook} />
      </div>
      <${StuckHere} />
      <${Chains} isTraining=${isTraining} />
    </div>`;
}

/** Why there is nothing to show. */
function NoRun() {
  const { store, feed, run } = usePage();
  useTopics("session");
  const asking = run !== null || (!store.runRows.size && feed.line.session.state.word !== "connected");
  const words = run !== null && store.moment !== null ? "This run had not begun at the moment that is shown." : asking ? "Asking which runs there are …" : "There is no run yet. This page shows it as soon as one begins.";
  return html`<h1 class="hidden-name">Overview</h1><section class="panel"><p class="empty">${words}</p></section>`;
}

/** The keys that go from question to question. */
function useMoves() {
  const at = useRef(-1);
  const move = (/** @type {number} */ delta) => {
    const links = /** @type {HTMLElement[]} */ ([...document.querySelectorAll("main [data-row]")]);
    const focused = links.indexOf(/** @type {HTMLElement} */ (document.activeElement));
    const next = focused < 0 ? Math.max(at.current, 0) : Math.min(Math.max(focused + delta, 0), links.length - 1);
    at.current = next;
    links[next]?.focus();
  };
  useKeys({ j: () => move(1), k: () => move(-1) });
}

/** The rows of the chains that are shown. What asks for them is drawn again when they change. */
function useRows() {
  const { store, rollouts } = usePage();
  useTopicsApart(...rollouts.map((id) => `rows\n${id}`));
  return rollouts.flatMap((id) => store.rows(id));
}

/** The address of what is shown of a run. @param {import("../ui.js").PageContext} page */
function baseIn({ runs }) {
  return (/** @type {string} */ id) => addressOf(runs, id);
}

const NeedsALook = memo(function NeedsALook() {
  const page = usePage();
  useTopics("steps");
  const looks = [...useTrends(), ...useLooks()];
  useKeys({
    ".": () => {
      const first = looks[0];
      if (first) location.hash = lookHref(page, first, baseIn(page));
    },
  });
  return html`<section class="panel"><h2>Needs a look</h2><${Looks} looks=${looks} baseOf=${baseIn(page)} /></section>`;
});

const StuckHere = memo(function StuckHere() {
  const rows = useRows();
  return html`<${Stuck} rows=${rows} baseOf=${baseIn(usePage())} />`;
});

/** The wall of each run that is shown. */
const Chains = memo(
  /** @param {{isTraining: boolean}} props */
  function Chains({ isTraining }) {
    const page = usePage();
    const { store, run, rollout, rollouts, route, go, to } = page;
    const rows = useRows();
    const looks = useLooks();
    const row = runRow(store, run);
    const rolloutRow = runRow(store, rollout);
    const baseOf = baseIn(page);
    const chips = chipsOf(route.query);
    const left = Object.keys(chips).length > 0 ? new Set(filterRows(rows, chips).map((each) => chainKey(each.run_id, each.chain_id))) : null;
    const chosen = route.query.step?.[0];
    const scale = rewardScale(rows);
    const walls = rollouts.map((id) => {
      const quiet = new Set(looks.filter((each) => each.kind === "quiet" && each.runId === id).flatMap((each) => each.chains));
      const wall = wallOf(store.rows(id), scale);
      if (wall.length && wall.every((each) => each.cells.length === 1)) wall.sort((a, b) => order(a, b));
      return { id, wall, quiet, row: runRow(store, id), base: baseOf(id) };
    });
    useKeys({
      g: () => {
        for (const { wall, base } of walls) {
          const first = wall.find((each) => each.groupId);
          if (first) return go({ ...base, view: "group", group: first.groupId });
        }
      },
    });
    if (row === null) return null;
    const questions = walls.reduce((sum, each) => sum + each.wall.filter((of) => of.groupId).length, 0);
    const heading = !isTraining || rolloutRow === null ? "Chains" : walls.length > 1 ? `${walls.length} steps in flight` : `${rolloutRow.split === "eval" ? "Evaluation after step" : "Step"} ${rolloutRow.train_step ?? ""}`;
    const query = route.query.step ? { ...chips, step: route.query.step } : chips;
    return html`<section class="panel">
      <div class="panel-head">
        <h2>${heading}</h2>
        <span class="small muted">${questions ? `${counted(questions, "question")}, a row for each; a cell for each chain; those that differ most first` : rows.length ? "a cell for each chain" : ""}</span>
        <span class="grow"></span>
        <${CancelRun} row=${row} isTraining=${isTraining} />
        ${rows.length > 0 && html`<a class="small-button" href=${to({ view: "chains", query })}>List of chains</a>`}
        ${isTraining && walls.length === 1 && html`<${StepLinks} shown=${rolloutRow?.train_step ?? null} chosen=${chosen} last=${(trainSteps(store, run).at(-1)?.train_step ?? 0) + 1} />`}
      </div>
      <${Chips} rows=${rows} shown=${left?.size ?? rows.length} />
      ${left?.size === 0 && html`<p class="empty">No chain is as the chips say.</p>`}
      ${rows.length
        ? walls.filter((each) => each.wall.length).map(({ id, wall, quiet, row: of, base }) => html`<div key=${id} class="step-wall">
            ${walls.length > 1 && html`<h3><a href=${to({ ...base, view: "overview" })}>Step ${of?.train_step ?? "?"}</a> <span class="muted small">${inWords(store.rows(id))}${typeof of?.policy_version === "number" ? ` · policy ${of.policy_version}` : ""}</span></h3>`}
            <${Wall} rows=${wall} runId=${id} quiet=${quiet} base=${base} left=${left} /></div>`)
        : html`<p class="empty">${rollouts.length === 0 ? stepAbsence(page) : row.status === "running" ? "Waiting for the first chains …" : "This run has no chains."}</p>`}
      ${rows.length > 0 && html`<${Legend} scale=${scale} />`}
    </section>`;
  },
);

/** How many chains of a step go on. @param {import("../store.js").Row[]} rows */
function inWords(rows) {
  const running = rows.filter((each) => each.state === "running").length;
  return running ? `${whole(running)} of ${whole(rows.length)} running` : `${counted(rows.length, "chain")}, all over`;
}

const FAILED = ["failed", "lost", "crashed"]; // a run's status

/** Why a run failed. @param {{row: import("../training.js").RunRow}} props */
function Failure({ row }) {
  const { store, to } = usePage();
  const rows = useRows();
  const fields = store.views.runs.get(row.run_id)?.fields;
  const failed = rows.filter((each) => each.finish_reason === "error" || each.state === "lost");
  const told = fields?.error ?? failed.find((each) => each.error)?.error ?? null;
  const sentence = told === null ? "" : typeof told === "string" ? told : `${told.where ?? told.error_type ?? "error"}: ${told.error ?? ""}`;
  return html`<section class="panel failure" role="note"><b>${row.status === "failed" ? "This run failed." : "This run ended without saying how."}</b>
    ${sentence ? html` <span>${oneLine(sentence, 400)}</span>` : html` <span>What raised is not among its events; the output of its process has it.</span>`}
    ${failed.length > 0 && html` <a class="small-button" href=${to({ view: "chains", query: { state: ["failed", "lost"] } })}>${counted(failed.length, "chain")} failed with it</a>`}</section>`;
}

/** @param {{row: import("../training.js").RunRow, isTraining: boolean}} props */
function CancelRun({ row, isTraining }) {
  const what = isTraining ? "training" : "run";
  const warning = isTraining ? "It ends after the step that it is in, and saves it." : "All of its chains end.";
  return html`<${CancelButton} key=${row.run_id} target=${{ run: row.run_id }} open=${row.status === "running"} name=${`this ${what}`} label=${`Cancel the ${what} …`} warning=${warning} byKey=${true} />`;
}

/** @param {import("../wall.js").WallRow} a @param {import("../wall.js").WallRow} b */
function order(a, b) {
  return (b.cells[0]?.reward ?? -1) - (a.cells[0]?.reward ?? -1) || a.groupId.localeCompare(b.groupId, "en", { numeric: true });
}

/** @param {{shown: number | null, chosen: string | undefined, last: number}} props */
function StepLinks({ shown, chosen, last }) {
  const { to } = usePage();
  if (shown === null) return null;
  const link = (/** @type {number} */ step, /** @type {string} */ sign, /** @type {string} */ name) =>
    html`<a href=${to({ view: "overview", query: { step: [String(step)] } })} aria-label=${name}>${sign}</a>`;
  return html`<nav class="steps" aria-label="Steps">
    ${shown > 1 && link(shown - 1, "‹", `Step ${shown - 1}`)}
    ${shown < last && chosen !== undefined && link(shown + 1, "›", `Step ${shown + 1}`)}
    ${chosen !== undefined && html`<a href=${to({ view: "overview" })}>latest</a>`}
  </nav>`;
}

/** What the curve shows beside rewards: any metric of the steps. @param {{steps: Record<string, any>[], chosen: string | undefined}} props */
function Learning({ steps, chosen }) {
  const page = usePage();
  const { store, run, runs, route, to } = page;
  const evaluations = evaluationsOf(runs, run);
  const names = [...new Set(steps.slice(-50).flatMap((step) => Object.keys(step.metrics ?? {}).filter((name) => typeof step.metrics[name] === "number")))].sort();
  const metric = route.query.metric?.[0];
  const shown = metric !== undefined && names.includes(metric) ? metric : null;
  /** @type {import("./curve.js").Line[]} */
  const lines = [];
  if (shown !== null) lines.push({ name: shown, kind: "mean", points: pointsOf(steps, shown) });
  else {
    lines.push({ name: "mean reward", kind: "mean", points: pointsOf(steps, "mean_reward") });
    const greedy = [];
    const sampled = [];
    for (const each of evaluations) {
      const temperature = temperatureOf(page, each.run_id);
      const point = /** @type {[number, number]} */ ([each.train_step ?? 0, each.mean_reward]);
      if (temperature === 0) greedy.push(point);
      else if (temperature !== null) sampled.push(point);
    }
    lines.push({ name: "held-out, sampled", kind: "sampled", points: sampled }, { name: "held-out, greedy", kind: "greedy", points: greedy });
  }
  const wanted = store.views.runs.get(run ?? "")?.fields.expected_steps ?? 0;
  const last = Math.max(wanted, steps.at(-1)?.train_step ?? 0, ...evaluations.map((each) => each.train_step ?? 0), 1);
  const choose = (/** @type {Event} */ event) => {
    const { metric: _, ...others } = route.query;
    const value = /** @type {HTMLSelectElement} */ (event.currentTarget).value;
    location.hash = to({ view: "overview", query: value ? { ...others, metric: [value] } : others });
  };
  return html`<div class="panel-head"><h2>How it learns</h2><span class="small muted">a click on a step, or Enter, shows its chains</span><span class="grow"></span>
      ${names.length > 1 && html`<label class="small muted">shows <select onChange=${choose}><option value="" selected=${shown === null}>rewards</option>${names.filter((name) => name !== "mean_reward").map((name) => html`<option key=${name} value=${name} selected=${shown === name}>${visible(name)}</option>`)}</select></label>`}</div>
    <${Curve} lines=${lines} last=${last} chosen=${chosen === undefined ? null : Number(chosen)} unit=${shown === null} />`;
}

/** @param {Record<string, any>[]} steps @param {string} name @returns {[number, number][]} */
function pointsOf(steps, name) {
  return steps.filter((step) => Number.isFinite(step.metrics?.[name])).map((step) => [step.train_step, step.metrics[name]]);
}

/**
 * Sums over chains. `rewards`: of those that have one; `failed`: chains that failed or whose end was not seen.
 * @param {readonly import("../store.js").Row[]} rows
 */
function totalsOf(rows) {
  const found = { running: 0, failed: 0, tokens: 0, calls: 0, callsFailed: 0, rewards: /** @type {number[]} */ ([]) };
  for (const row of rows) {
    if (row.state === "running") found.running += 1;
    if (row.finish_reason === "error" || row.state === "lost") found.failed += 1;
    if (typeof row.reward === "number") found.rewards.push(row.reward);
    found.tokens += row.completion_tokens ?? 0;
    found.calls += row.calls ?? 0;
    found.callsFailed += row.calls_failed ?? 0;
  }
  return found;
}

const Figures = memo(function Figures() {
  const page = usePage();
  const { store, run, runs, rollout, rollouts } = page;
  useTopics("steps");
  const rows = useRows();
  const row = runRow(store, run);
  useTicks(1000, row?.status === "running");
  const steps = trainSteps(store, run);
  const quiet = new Set(useLooks().filter((each) => each.kind === "quiet" && rollouts.includes(each.runId)).flatMap((each) => each.chains.map((chain) => chainKey(each.runId, chain)))).size;
  if (row === null) return null;
  const { running, failed, tokens, calls, callsFailed, rewards } = totalsOf(rows);
  const last = steps.at(-1)?.metrics ?? {};
  const rolloutRow = runRow(store, rollout);
  const expected = rollouts.reduce((sum, id) => sum + (runRow(store, id)?.expected_chains ?? store.rows(id).length), 0);
  const unseen = Math.max(expected - rows.length, 0);
  const open = rollouts.some((id) => runRow(store, id)?.status === "running");
  const seconds = (rolloutRow?.ended_at ?? store.now) - (rolloutRow?.started_at ?? store.now);
  const perSecond = typeof last.tokens_per_s === "number" ? last.tokens_per_s : seconds > 1 ? tokens / seconds : null;
  const evaluations = evaluationsOf(runs, run);
  const values = (/** @type {string} */ name) => pointsOf(steps, name).map((point) => point[1]).slice(-60);
  const { to, route } = page;
  const toFailed = to({ view: "chains", query: { ...(route.query.step ? { step: route.query.step } : {}), state: ["failed", "lost"] } });
  /** @type {{value: unknown, small?: string, label: unknown, name?: string, spark?: number[]}[]} */
  const figures = [
    { value: whole(running), small: `of ${whole(Math.max(expected, rows.length))} running`, label: html`${whole(rows.length - running)} over · ${failed ? html`<a class="link-button bad" href=${toFailed}>${whole(failed)} failed</a>` : "0 failed"}${quiet ? ` · ${whole(quiet)} quiet` : ""}${unseen ? ` · ${whole(unseen)} ${open ? "not begun, or not known here" : "not known here"}` : ""}` },
    { value: whole(perSecond), label: "tokens/s", spark: values("tokens_per_s") },
  ];
  if (steps.length) {
    const sampled = evaluations.filter((each) => temperatureOf(page, each.run_id) !== 0);
    const [first, latest] = [sampled[0], sampled.at(-1)];
    figures.push(
      { value: fixed(last.mean_reward), label: `mean reward of step ${steps.at(-1)?.train_step}`, spark: values("mean_reward") },
      first !== undefined || typeof last.success !== "number"
        ? { value: first !== latest ? `${fixed(first?.mean_reward)} → ${fixed(latest?.mean_reward)}` : fixed(first?.mean_reward), label: first === undefined ? "held-out reward: no evaluation yet" : first === latest ? `held-out reward at step ${first.train_step ?? "?"}` : `held-out reward, steps ${first.train_step ?? "?"} → ${latest?.train_step ?? "?"}` }
        : { value: fixed(last.success), label: `success of step ${steps.at(-1)?.train_step}`, spark: values("success") },
      { value: fixed(last.entropy, 3), label: "entropy, nats a token", spark: values("entropy") },
      { value: whole(steps.at(-1)?.policy_version), label: typeof last.flat_groups === "number" ? `policy · ${whole(last.flat_groups)} of ${whole(last.flat_groups + (last.kept_groups ?? 0))} groups flat` : "policy" },
    );
  } else {
    figures.push(
      { value: fixed(mean(rewards)), label: `mean reward of ${counted(rewards.length, "chain")}` },
      { value: whole(tokens), label: "tokens of turns that are over" },
      { value: whole(calls), label: `tool calls · ${whole(callsFailed)} failed` },
      { value: duration(row.duration_s ?? (row.started_at ? store.now - row.started_at : null)), label: row.status === "running" ? "so far" : row.status },
    );
  }
  return html`<section class="panel figures" aria-label="Figures">${figures.map(({ value, small, label, spark }) => html`<div class="figure">
    <div class="value">${value} ${small && html`<small>${small}</small>`}</div><div class="label">${label}</div>
    ${spark && spark.length > 1 && html`<${Spark} values=${spark} label=${`${label}: from ${fixed(spark[0])} to ${fixed(spark.at(-1))}`} />`}
  </div>`)}</section>`;
});

const About = memo(function About() {
  const { store, run } = usePage();
  const rows = useRows();
  const row = runRow(store, run);
  if (row === null) return null;
  /** @type {Map<string, number>} */
  const ends = new Map();
  for (const each of rows) if (each.finish_reason) ends.set(each.finish_reason, (ends.get(each.finish_reason) ?? 0) + 1);
  const ended = [...ends].sort((a, b) => b[1] - a[1]).map(([name, count]) => `${count} × ${name.replace("_", " ")}`).join(", ");
  return html`<dl>
    <dt>agent</dt><dd>${oneLine(String(row.agent ?? "–"), 200)}</dd><dt>model</dt><dd>${oneLine(String(row.model ?? "–"), 200)}</dd><dt>status</dt><dd>${row.status}</dd>
    <dt>started</dt><dd>${when(row.started_at)}</dd><dt>chains ended</dt><dd>${ended || "–"}</dd><dt>run</dt><dd>${row.run_id}</dd>
    ${sourcesOf(row) && html`<dt>on</dt><dd>${sourcesOf(row)}</dd>`}
  </dl>`;
});
