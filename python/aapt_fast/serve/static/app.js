// SPDX-License-Identifier: Apache-2.0
// The page: connects, and puts its parts together once the server has said what its model can do.

import { Body } from "./body.js";
import { Connection } from "./connection.js";
import { codecs } from "./decoder.js";
import { Live } from "./live.js";
import { showModels } from "./models.js";
import { announce, attempt, byId, complain, fragment } from "./page.js";
import { Share } from "./share.js";
import { Shortcuts } from "./shortcuts.js";
import { Stage } from "./stage.js";
import { Start } from "./start.js";
import { Steer } from "./steer.js";
import { Transport } from "./transport.js";

const url = new URL("v1/stream", location.href);
url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
url.hash = url.search = "";

const offered = await codecs(fragment().get("codec"));
const connection = new Connection({ url: url.href, token: fragment().get("token"), codecs: offered });
const live = new Live(connection);
/** @type {Stage | null} */
let stage = null;

connection.addEventListener("link", ({ detail: { state, text } }) => {
  const link = byId("link");
  link.dataset.state = state;
  link.textContent = state === "refused" ? "Not connected" : text;
  byId("waiting").textContent = state === "open" ? "Waiting for the first picture" : text;
  stage?.refresh();
  if (state === "refused") complain(text);
});
connection.addEventListener("drain", ({ detail }) => complain(`The server stops in ${detail.seconds} seconds.`));
connection.addEventListener("error", ({ detail }) => {
  if (detail.request === undefined) complain(detail.message);
});
connection.addEventListener("welcome", attempt(async () => {
  if (stage) await stage.resume();
  else await build(connection.welcome.model);
}));

/** Make the parts for this model, and begin: with the stream of the link, else with a new one. */
async function build(model) {
  attempt(() => showModels(connection, model))();
  stage = new Stage(connection, model, live, model.control.kind === "pose" ? new Body(model.control) : null);
  const steer = new Steer(stage);
  const transport = new Transport(stage);
  const start = new Start(stage);
  new Share(stage);
  new Shortcuts(stage, steer, transport);
  live.start(stage);
  byId("crisp").onchange = (event) => {
    stage.settings.crisp = event.target.checked;
    stage.applySettings();
  };
  const draw = (now) => {
    stage.tick(now);
    requestAnimationFrame(draw);
  };
  requestAnimationFrame(draw);
  stage.addEventListener("change", rememberKey);
  await begin(start);
}

/** See the stream of the address, or start one. @param {Start} start */
async function begin(start) {
  const key = fragment().get("watch");
  if (key) {
    try {
      await stage.watch(key);
      return;
    } catch (error) {
      complain(`The stream of this address is not there any more, here is a new one. ${error.message}`);
    }
  }
  try {
    await start.open();
  } catch (error) {
    byId("waiting").textContent = `${error.message} Then press Start.`;
    throw error;
  }
}

/** Put the key into the address, so that the page shows the same stream when it is loaded again. */
function rememberKey() {
  const values = fragment();
  if (!stage.active?.key || values.get("watch") === stage.active.key) return;
  values.set("watch", stage.active.key);
  history.replaceState(null, "", `#${values}`);
}

byId("theme").onclick = () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const { dataset } = document.documentElement;
  dataset.theme = (dataset.theme ?? (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
};

/** For tests and measurements. */
globalThis.aapt = { connection, live, get stage() { return stage; } };
connection.start();
