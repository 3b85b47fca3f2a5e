import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { rateText } from "../../../src/polydev/controller/web/static/chart_definitions.js";

const RATES = JSON.parse(readFileSync(new URL("rates.json", import.meta.url)));

for (const [rate, words] of RATES) {
  test(`${rate} bytes a second are ${words}`, () => assert.equal(rateText(rate), words));
}
