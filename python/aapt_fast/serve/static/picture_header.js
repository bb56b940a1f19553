// SPDX-License-Identifier: Apache-2.0
// The 16 bytes before every picture.

const HEADER_BYTES = 16;
export const JPEG = 1;
export const H264_KEY = 2;
export const H264_DELTA = 3;

/**
 * @typedef {object} Picture
 * @property {number} frame video frame, counted from the start of the stream
 * @property {number} serverTime milliseconds of the server's clock when its step was done
 * @property {number} control id of the newest control that it obeys, 0 for none
 * @property {number} stream
 * @property {number} codec JPEG, H264_KEY or H264_DELTA
 * @property {boolean} first it is the first of its step
 * @property {boolean} discontinuity a reset or rewind lies before it
 * @property {Uint8Array} bytes the encoded picture
 */

/** Take a binary message apart. @param {ArrayBuffer} message @returns {Picture} */
export function readPicture(message) {
  const view = new DataView(message);
  const flags = view.getUint8(15);
  return {
    frame: view.getUint32(0, true),
    serverTime: view.getUint32(4, true),
    control: view.getUint32(8, true),
    stream: view.getUint16(12, true),
    codec: view.getUint8(14),
    first: (flags & 1) !== 0,
    discontinuity: (flags & 2) !== 0,
    bytes: new Uint8Array(message, HEADER_BYTES),
  };
}
