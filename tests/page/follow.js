// Follows a server as the page does, without a DOM, until no run that it has seen is open; then it prints what it knows, as one line of JSON.
//
//   node --experimental-websocket follow.js URL RUNS
//
// URL: of the server; RUNS: how many runs have to end first.

import { Feed } from "../../src/rollcast/serve/page/feed.js";
import { Socket } from "../../src/rollcast/serve/page/socket.js";
import { Store } from "../../src/rollcast/serve/page/store.js";
import { chainAsDict } from "./as_dict.js";

const [url, wanted] = [process.argv[2], Number(process.argv[3])];
const store = new Store();
const socket = new Socket(url, (notices) => feed.take(notices));
const feed = new Feed(socket, store);
let asked = false;

/** What is known of every chain and run. */
function told() {
  const chains = {};
  for (const [runId, run] of store.views.runs) {
    for (const [chainId, view] of run.chains) {
      const spans = store.tokens(runId, chainId);
      const tokens = spans === undefined ? {} : Object.fromEntries([...spans.steps].map(([step, all]) => [step, all.flatMap((span) => span.ids)]));
      chains[`${runId} ${chainId}`] = { ...chainAsDict(view), token_ids: tokens };
    }
  }
  const { reconnections, counts, state, scopes } = socket.session;
  const rows = [...store.chainRows.values()].flatMap((each) => [...each.values()]);
  const missing = Object.fromEntries(feed.missing);
  return { chains, rows, runs: [...store.runRows.values()], reconnections, counts, state, scopes, missing };
}

/** Whether everything that was shown has ended, and all of it has come. */
function isComplete() {
  const ended = [...store.views.runs.values()].filter((run) => run.fields.ended_at !== null);
  const rows = [...store.chainRows.values()].flatMap((each) => [...each.values()]);
  if (ended.length < wanted || !rows.length || rows.some((row) => row.state === "running")) return false;
  if (rows.some((row) => store.chain(row.run_id, row.chain_id)?.state !== "ended")) return false;
  const open = [...store.runRows.values()].some((row) => row.status === "running");
  return feed.loading.size === 0 && store.runRows.size > 0 && !open;
}

feed.followRuns();
feed.watchChains({});
socket.connect();
setInterval(() => {
  if (socket.session.phase === "open" && !asked) {
    asked = true;
    console.log("ready");
  }
  if (socket.session.phase === "refused") {
    console.log(JSON.stringify({ state: socket.session.state }));
    process.exit(1);
  }
  const runId = [...store.chainRows.keys()].at(-1);
  if (runId !== undefined) feed.showChains(runId, store.rows(runId).map((row) => row.chain_id));
  if (isComplete()) {
    process.stdout.write(`${JSON.stringify(told())}\n`, () => process.exit(0));
  }
}, 20);
