// Parse the text of a stream of server-sent events. Pure.

export class EventReader {
  constructor() {
    this.held = "";
  }

  /** Return the events that are complete: { id, kind, data }. */
  read(text) {
    const blocks = (this.held + text).split("\n\n");
    this.held = blocks.pop();
    return blocks.map(eventOf).filter((event) => event.data !== "");
  }
}

function eventOf(block) {
  const event = { id: "", kind: "", data: "" };
  for (const line of block.split("\n")) {
    const colon = line.indexOf(": ");
    const name = line.slice(0, colon);
    const value = line.slice(colon + 2);
    if (name === "id") event.id = value;
    if (name === "event") event.kind = value;
    if (name === "data") event.data = value;
  }
  return event;
}
