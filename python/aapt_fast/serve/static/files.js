// SPDX-License-Identifier: Apache-2.0
// Hands files to the browser's downloads, and names them.

/** The time now, as part of a file's name. */
export function timestamp() {
  return new Date().toISOString().slice(0, 19).replaceAll(":", "-");
}

/** @param {Blob} blob @param {string} name */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
