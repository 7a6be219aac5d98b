// Joins the parts of the page: the connection, the store, and what draws.

import "./order.js";
import { h, render } from "./vendor/preact_htm.js";
import { App } from "./app.js";
import { Cancellations } from "./cancelling.js";
import { Feed } from "./feed.js";
import { inNextFrame } from "./frame.js";
import { OnScreen } from "./on_screen.js";
import { Replay } from "./replay.js";
import { Socket } from "./socket.js";
import { Store } from "./store.js";
import { forgetToken, keepToken, takeToken, tokenInAddress } from "./token.js";
import { showTheme, storedTheme } from "./theme.js";
import { Topics, topicsOf } from "./topics.js";

const token = takeToken();
showTheme(storedTheme());

const topics = new Topics();
const store = new Store(() => inNextFrame(draw));
const url = new URL("./", document.baseURI);
url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
url.hash = "";

const socket = new Socket(url.href, (notices) => feed.take(notices), { token });
const feed = new Feed(socket, store);
const onScreen = new OnScreen(feed, store, topics);
const cancels = new Cancellations(socket, () => store.sessionChanged());
feed.onAnswer = (/** @type {Parameters<typeof cancels.answered>[0]} */ notice) => cancels.answered(notice);
const replay = new Replay(feed, store, () => performance.now() / 1000);

/** @type {Set<string>} what has changed while the page was paused */
let held = new Set();

function draw() {
  const marks = store.take();
  for (const topic of marks.everything ? topics.listeners.keys() : topicsOf(marks)) held.add(topic);
  if (marks.everything) onScreen.renew();
  if (socket.session.paused) {
    topics.tell(["session"]);
    return;
  }
  const changed = held;
  held = new Set();
  topics.tell(changed);
}

// A token that the server refuses is forgotten, so that a reload asks for a new one; one that it accepts is kept for a reload.
let before = "";
topics.listen("session", () => {
  const { phase, token } = socket.session;
  if (phase === before) return;
  before = phase;
  if (phase === "refused") forgetToken();
  else if (phase === "open" && token !== null) keepToken(token);
});

// A link with another token, opened in this tab, changes the address alone. This comes before the views read it.
addEventListener("hashchange", () => {
  const given = tokenInAddress(location.hash) ? takeToken() : null;
  if (given !== null) socket.useToken(given);
});

// The steps of a folder's records are asked for when one is opened.
const unlisten = topics.listen("session", () => {
  if (!feed.welcomed) return;
  unlisten();
  if (!feed.hasFolder) feed.askSteps();
});
feed.followRuns();
setInterval(() => feed.tick(), 1_000);
socket.follow(document);
socket.connect();

const place = /** @type {HTMLElement} */ (document.getElementById("app"));
render(h(App, { store, feed, socket, topics, onScreen, cancels, replay }), place);
