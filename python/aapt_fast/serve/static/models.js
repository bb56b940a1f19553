// SPDX-License-Identifier: Apache-2.0
// The choice of a model, where the server has several: each has a page of its own.

import { byId, fragment } from "./page.js";

/** The path of the server's first model. */
const ROOT = location.pathname.replace(/models\/\d+\/$/, "");

/**
 * Show the name and size of this page's model, and a choice if there are others.
 * @param {import("./connection.js").Connection} connection
 * @param {{name: string, width: number, height: number}} model
 */
export async function showModels(connection, model) {
  const size = `${model.width}×${model.height}`;
  byId("model-name").textContent = `${model.name}, ${size}`;
  const models = await (await connection.fetch("v1/models")).json();
  if (models.length < 2) return;
  const select = byId("models");
  select.replaceChildren(...models.map(({ name, path }) => new Option(name, path)));
  select.value = location.pathname.slice(ROOT.length);
  select.onchange = () => {
    const fields = fragment();
    fields.delete("watch");  // the stream belongs to this page's model
    location.assign(`${ROOT}${select.value}#${fields}`);
  };
  select.hidden = false;
  byId("model-name").textContent = size;
}
