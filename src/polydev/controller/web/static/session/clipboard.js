// Texts between the user's clipboard and the VM's: by themselves where the browser allows it, by
// hand in a panel where it does not.

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

  /** The user pressed Ctrl+V on the screen: the VM gets the text, if there is one, then the keys. */
  pasted(event) {
    if (!this.screen.hasFocus) return;
    event.preventDefault();
    const text = event.clipboardData?.getData("text/plain");
    if (text) this.give(text);
    pressPaste(this.screen, this.isControlHeld);
    this.isControlHeld = false;
  }

  /** A paste of the same text again must not come between a program and the text. */
  give(text) {
    if (text === this.inVm) return;
    this.screen.paste(text);
    this.inVm = text;
  }

  /** A new connection knows nothing of the texts before it. */
  forget() {
    this.inVm = null;
  }

  /** A text was copied in the VM. */
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
