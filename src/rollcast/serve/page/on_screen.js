// Which chains are on screen: those, and no others, are asked of the server token by token. No DOM.

import { inNextFrame } from "./frame.js";

export class OnScreen {
  /**
   * @param {import("./feed.js").Feed} feed
   * @param {import("./store.js").Store} store
   * @param {import("./topics.js").Topics} topics
   */
  constructor(feed, store, topics) {
    this.feed = feed;
    this.store = store;
    this.topics = topics;
    /** @type {Map<string, number>} how many views show a chain of the run */
    this.users = new Map();
    /** @type {string | null} */
    this.run = null;
    /** What was asked for, and how the rows of these chains stood then. */
    this.asked = "";
    this.place = this.place.bind(this);
    /** @type {() => void} */
    this.unlisten = () => {};
  }

  get count() {
    return this.users.size;
  }

  /** @param {string} run @param {string} chain @returns {() => void} ends it */
  add(run, chain) {
    if (run !== this.run) {
      this.unlisten();
      this.run = run;
      this.users = new Map();
      this.unlisten = this.topics.listen(`rows\n${run}`, this.place);
    }
    const users = this.users;
    users.set(chain, (users.get(chain) ?? 0) + 1);
    inNextFrame(this.place);
    return () => {
      const left = (users.get(chain) ?? 1) - 1;
      if (left > 0) users.set(chain, left);
      else users.delete(chain);
      inNextFrame(this.place);
    };
  }

  /** Request what is shown again, since another moment is shown now. */
  renew() {
    this.asked = "";
    this.place();
  }

  /** Ask for what is shown now. A chain that has ended since is asked for again: its story has what was missed. */
  place() {
    const run = this.run;
    if (run === null) return;
    const chains = [...this.users.keys()].sort();
    const asked = JSON.stringify([run, chains.map((chain) => [chain, this.store.row(run, chain)?.state ?? null])]);
    if (asked === this.asked) return;
    this.asked = asked;
    this.feed.showChains(run, chains);
    this.topics.tell(["session"]);
  }
}
