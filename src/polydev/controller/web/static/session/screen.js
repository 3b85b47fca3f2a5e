// The VM's screen: noVNC on our own WebSocket, which has close code and reason.

import RFB from "../novnc/core/rfb.js";
import { initLogging } from "../novnc/core/util/logging.js";

// The page itself shows why a connection ended.
initLogging("none");

export class Screen {
  /**
   * label       what a screen reader calls the screen
   * onOpened    the picture comes; onLost({ code, reason }) it does not any more
   * onCopied    a text was copied in the VM
   */
  constructor(element, { label, viewOnly, onOpened, onLost, onCopied }) {
    this.element = element;
    this.label = label;
    this.viewOnly = viewOnly;
    this.onOpened = onOpened;
    this.onLost = onLost;
    this.onCopied = onCopied;
    this.rfb = null;
    this.socket = null;
    this.matchesWindow = false;
  }

  open(url) {
    this.close();
    const address = new URL(url, location.href);
    address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = (this.socket = new WebSocket(address, ["binary"]));
    const rfb = (this.rfb = new RFB(this.element, socket, { shared: true }));
    const canvas = this.element.querySelector("canvas");
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", this.label);
    rfb.viewOnly = this.viewOnly;
    rfb.scaleViewport = true;
    rfb.resizeSession = this.matchesWindow;
    rfb.background = "transparent";
    rfb.addEventListener("connect", () => rfb === this.rfb && this.onOpened());
    rfb.addEventListener("clipboard", ({ detail }) => this.onCopied(detail.text));
    socket.addEventListener("close", ({ code, reason }) => {
      if (socket !== this.socket) return;
      this.close();
      this.onLost({ code, reason });
    });
  }

  /** Close the connection without calling `onLost`. */
  close() {
    const { rfb, socket } = this;
    this.rfb = this.socket = null;
    rfb?.disconnect();
    socket?.close();
  }

  matchWindow(wanted) {
    this.matchesWindow = wanted;
    if (this.rfb) this.rfb.resizeSession = wanted;
  }

  focus() {
    this.rfb?.focus({ preventScroll: true });
  }

  get hasFocus() {
    return this.element.contains(document.activeElement);
  }

  key(keysym, code, down) {
    this.rfb?.sendKey(keysym, code, down);
  }

  /** Release all keys in the VM: it will not get their release events. */
  liftKeys() {
    window.dispatchEvent(new Event("blur")); // noVNC lifts them when its window is left
  }

  paste(text) {
    this.rfb?.clipboardPasteFrom(text);
  }
}
