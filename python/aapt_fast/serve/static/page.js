// SPDX-License-Identifier: Apache-2.0
// Elements of the page, and words for the user.

/** The element with this id. @param {string} id @returns {any} */
export function byId(id) {
  return document.getElementById(id);
}

/** Say something to a screen reader, politely. @param {string} text */
export function announce(text) {
  byId("announcer").textContent = text;
}

let hide = 0;

/** Show what went wrong, for some seconds. @param {unknown} error */
export function complain(error) {
  const notice = byId("notice");
  notice.textContent = error instanceof Error ? error.message : String(error);
  notice.hidden = false;
  clearTimeout(hide);
  hide = setTimeout(() => (notice.hidden = true), 9000);
}

/** Call an async function for a click; what goes wrong is shown. @param {() => unknown} action */
export function attempt(action) {
  return async () => {
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
