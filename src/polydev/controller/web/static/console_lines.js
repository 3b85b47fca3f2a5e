// Lines of a VM's serial console. A VM may write anything: output is shown as plain text without
// control sequences, and long lines are cut.

export const MOST_CHARACTERS = 2000;
// Terminal sequences: CSI, OSC and other strings, then all other escapes and control characters.
const SEQUENCES =
  /\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?|\x1b[ -/]*[0-~]?/g;
const CONTROLS = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;

/** Return a line to show: of text that overwrites itself, the last version. */
export function plain(line) {
  const whole = line.replace(SEQUENCES, "").replace(/\r+$/, "");
  return whole.slice(whole.lastIndexOf("\r") + 1).replace(CONTROLS, "").slice(0, MOST_CHARACTERS);
}
