// The keyboard: whether the VM or the page has it, pasting, and the one of touch screens.

import { edits } from "./input_diff.js";
import keysyms from "../novnc/core/input/keysymdef.js";

const CONTROL = 0xffe3;
const BACKSPACE = 0xff08;
const RETURN = 0xff0d;
const V = 0x76;
// The initial content of the input, so that Backspace has something to delete.
const HOLDS = "\u00a0".repeat(32);
const MOST_HELD = 128;

/** Recognize Ctrl+Alt+Shift, in any order, which returns the keyboard to the page. */
export function isRelease(event) {
  return event.ctrlKey && event.altKey && event.shiftKey;
}

function isPaste(event) {
  const isCommand = (event.ctrlKey || event.metaKey) && !event.altKey && !event.shiftKey;
  return isCommand && event.key.toLowerCase() === "v";
}

/**
 * onReleased   called when the user wants the keyboard for the page
 * onPasteKeys  called before the paste event, with whether Ctrl is down in the VM
 */
export function watchKeys(screen, { onReleased, onPasteKeys }) {
  // Before noVNC, which lets no key event of the screen pass.
  window.addEventListener(
    "keydown",
    (event) => {
      if (!screen.hasFocus) return;
      if (isPaste(event)) {
        event.stopImmediatePropagation(); // noVNC would keep the browser from it
        onPasteKeys(event.ctrlKey);
      }
      if (!isRelease(event)) return;
      event.stopImmediatePropagation();
      event.preventDefault();
      screen.liftKeys();
      onReleased();
    },
    { capture: true },
  );
}

/** Press Ctrl+V in the VM; `isControlHeld`: the user will release Ctrl. */
export function pressPaste(screen, isControlHeld) {
  if (!isControlHeld) screen.liftKeys();
  screen.key(CONTROL, "ControlLeft", true);
  press(screen, V, "KeyV");
  if (!isControlHeld) screen.key(CONTROL, "ControlLeft", false);
}

/** An input that opens the keyboard of touch screens and sends what is typed to the VM. */
export function typeThrough(input, screen) {
  let before = (input.value = HOLDS);
  input.addEventListener("input", (event) => {
    const { deleted, typed } = edits(before, input.value);
    for (let count = 0; count < deleted; count += 1) press(screen, BACKSPACE, "Backspace");
    for (const character of typed) type(screen, character);
    before = input.value;
    // A word that is still being put together must stay where it is.
    const isUsedUp = before.length < HOLDS.length / 2 || before.length > MOST_HELD;
    if (isUsedUp && !event.isComposing) before = input.value = HOLDS;
  });
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    press(screen, RETURN, "Enter");
    event.preventDefault();
  });
}

function type(screen, character) {
  if (character === "\n") press(screen, RETURN, "Enter");
  else press(screen, keysyms.lookup(character.codePointAt(0)), "");
}

function press(screen, keysym, code) {
  screen.key(keysym, code, true);
  screen.key(keysym, code, false);
}
