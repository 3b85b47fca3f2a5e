// Pauses between attempts to reconnect. Pure.

export const PAUSES_SECONDS = [1, 2, 4, 8, 16];

/** Return the pause after a number of failures in a row; from the last one on it is the same. */
export function pauseSeconds(failures) {
  return PAUSES_SECONDS[Math.min(failures, PAUSES_SECONDS.length - 1)];
}
