// What a chain did when: stretches of generating, tools, waiting for its reward, and pauses between turns. Pure: it takes events.

const MAX_STRETCHES = 4_096;

/** @typedef {"generating" | "tool" | "scoring" | "waiting"} Doing */
/** @typedef {{doing: Doing, from: number, to: number | null}} Stretch timestamps; `to` is null if it goes on */

export class TimeLine {
  constructor() {
    /** @type {Stretch[]} */
    this.stretches = [];
    this.openCalls = 0;
    /** Whether it begins with the chain; otherwise something was not seen. */
    this.whole = false;
  }

  /** @param {import("./chain_view.js").StreamEvent} event */
  apply(event) {
    const at = event.timestamp;
    if (typeof at !== "number") return;
    switch (event.event_type) {
      case "chain_start":
        this.stretches = [];
        this.openCalls = 0;
        this.whole = true;
        this.go("waiting", at);
        break;
      case "llm_generation_start":
        this.go("generating", at);
        break;
      case "llm_generation_end":
        this.openCalls = 0;
        this.go(event.data?.finish_reason === "tool_call" ? "waiting" : "scoring", at);
        break;
      case "tool_call_start":
        this.openCalls += 1;
        this.go("tool", at);
        break;
      case "tool_call_end":
        this.openCalls = Math.max(this.openCalls - 1, 0);
        if (this.openCalls === 0) this.go("waiting", at);
        break;
      case "gap":
      case "chain_snapshot":
        this.whole = false;
        break;
      case "chain_end":
        this.go(null, at);
        break;
    }
  }

  /** @param {Doing | null} doing @param {number} at */
  go(doing, at) {
    const last = this.stretches.at(-1);
    if (last?.doing === doing && last.to === null) return;
    if (last && last.to === null) last.to = Math.max(at, last.from);
    if (doing !== null && this.stretches.length < MAX_STRETCHES) this.stretches.push({ doing, from: at, to: null });
  }
}
