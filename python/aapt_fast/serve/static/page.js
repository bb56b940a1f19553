// SPDX-License-Identifier: Apache-2.0
// Elements of the page, and words for the user.

/** The element with this id. @param {string} id @returns {any} */
export function byId(id) {
  return document.getElementById(id);
}

const ANNOUNCED_MS = 8000;
const COMPLAINED_MS = 12_000;
const timers = { announcer: 0, notice: 0 };

/** Show a message for some seconds; a screen reader reads it politely. @param {string} text */
export function announce(text) {
  byId("announcer").textContent = text;
  clearTimeout(timers.announcer);
  timers.announcer = setTimeout(() => (byId("announcer").textContent = ""), ANNOUNCED_MS);
}

/** Show what went wrong, until something works or some seconds later. @param {unknown} error */
export function complain(error) {
  const notice = byId("notice");
  notice.textContent = error instanceof Error ? error.message : String(error);
  notice.hidden = false;
  clearTimeout(timers.notice);
  timers.notice = setTimeout(() => (notice.hidden = true), COMPLAINED_MS);
}

/** Call an async function for a click; what goes wrong is shown. @param {() => unknown} action */
export function attempt(action) {
  return async () => {
    byId("notice").hidden = true;
    try {
      await action();
    } catch (error) {
      complain(error);
    }
  };
}

/** Show another icon. @param {HTMLElement} button @param {string} name */
export function setIcon(button, name) {
  button.querySelector("use").setAttribute("href", `icons.svg#${name}`);
}

/** The values of the address' fragment, such as #token=...&watch=...: it never reaches a server's log. */
export function fragment() {
  return new URLSearchParams(location.hash.slice(1));
}
