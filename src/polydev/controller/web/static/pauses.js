// The pauses before what was lost is tried again. Pure.

export const PAUSES_SECONDS = [1, 2, 4, 8, 16];

/** Return the pause after so many failures in a row; the last one is kept. */
export function pauseSeconds(failures) {
  return PAUSES_SECONDS[Math.min(failures, PAUSES_SECONDS.length - 1)];
}
