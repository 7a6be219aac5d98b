// Reads streams of events, one JSON list a line, and writes what the page's views make of each, one JSON object a line.

import { createInterface } from "node:readline";

import { RunViews } from "../../src/rollcast/serve/page/run_view.js";
import { chainAsDict, runAsDict } from "./as_dict.js";

for await (const line of createInterface({ input: process.stdin, crlfDelay: Infinity })) {
  const views = new RunViews();
  for (const event of JSON.parse(line)) views.apply(event);
  const told = [...views.runs].map(([id, run]) => [id, { ...runAsDict(run), chains: Object.fromEntries([...run.chains].map(([name, view]) => [name, chainAsDict(view)])) }]);
  console.log(JSON.stringify(Object.fromEntries(told)));
}
