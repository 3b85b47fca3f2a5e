// Copy text between the user's clipboard and the VM's: automatically if the browser allows it, else
// by hand in a panel.

import { pressPaste } from "./keyboard.js";

export class Clipboard {
  /**
   * panel     elements: outgoing and incoming (text areas), send and take (buttons)
   * say       tells the user what happened: called with the name of a text
   */
  constructor(screen, panel, say) {
    this.screen = screen;
    this.panel = panel;
    this.say = say;
    this.isControlHeld = false;
    this.inVm = null;
    document.addEventListener("paste", (event) => this.pasted(event));
    panel.send.addEventListener("click", () => this.send());
    panel.take.addEventListener("click", () => this.take());
  }

  /** Handle Ctrl+V on the screen: send the text, if any, and then the keys, to the VM. */
  pasted(event) {
    if (!this.screen.hasFocus) return;
    event.preventDefault();
    const text = event.clipboardData?.getData("text/plain");
    if (text) this.give(text);
    pressPaste(this.screen, this.isControlHeld);
    this.isControlHeld = false;
  }

  /** Do not send the same text again: it would interrupt a program that is reading it. */
  give(text) {
    if (text === this.inVm) return;
    this.screen.paste(text);
    this.inVm = text;
  }

  /** Forget earlier texts, which a new connection does not have. */
  forget() {
    this.inVm = null;
  }

  /** Handle a text that was copied in the VM. */
  async copied(text) {
    this.forget();
    this.panel.incoming.value = text;
    this.panel.take.disabled = text === "";
    try {
      await navigator.clipboard.writeText(text);
      this.say("clipboard.copied");
    } catch {
      this.say("clipboard.by_hand"); // no permission, no TLS, or another window has the focus
    }
  }

  send() {
    this.give(this.panel.outgoing.value);
    this.say("clipboard.sent");
  }

  async take() {
    const { incoming } = this.panel;
    incoming.focus();
    incoming.select();
    try {
      await navigator.clipboard.writeText(incoming.value);
      this.say("clipboard.taken");
    } catch {
      this.say("clipboard.selected");
    }
  }
}
