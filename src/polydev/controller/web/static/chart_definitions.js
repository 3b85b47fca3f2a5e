// The list of charts, made of the columns that the controller sends.

const HOWS = { pool: "how_pool", clone: "how_clone", boot: "how_boot" };
const PERCENT = { range: [0, 100], show: (value) => `${Math.round(value * 10) / 10} %` };
const COUNT = { range: [0, null], show: (value) => String(Math.round(value * 10) / 10), whole: true };
const RATE = { range: [0, null], show: rateText };
const SECONDS = { range: null, show: (value) => `${Number(value.toPrecision(3))} s`, log: true };
const CELSIUS = { range: [0, null], show: (value) => `${value} °C` };

/** Return a rate in bytes a second, such as `1.43 MB/s`, as `rate_text` of formatting.py does. */
export function rateText(rate) {
  const units = ["B/s", "kB/s", "MB/s", "GB/s"];
  let unit = 0;
  while (rate >= 999.5 && unit < units.length - 1) {
    rate /= 1000;
    unit += 1;
  }
  return `${Number(rate.toPrecision(3))} ${units[unit]}`;
}

/** Return the charts for these columns, without those that have no series. */
export function chartsOf(columns, say) {
  const one = (name, label) => (columns[name] ? [{ label, values: columns[name] }] : []);
  const inBrackets = (prefix, label) =>
    Object.keys(columns)
      .filter((name) => name.startsWith(`${prefix}[`))
      .map((name) => ({
        label: label(name.slice(prefix.length + 1, -1)),
        values: columns[name],
      }));
  const starts = Object.entries(HOWS).flatMap(([how, name]) => {
    const words = { how: say(name) };
    return [
      ...one(`start_median_seconds[${how}]`, say("median", words)),
      ...one(`start_max_seconds[${how}]`, say("longest", words)).map((each) => ({
        ...each,
        hollow: true,
      })),
    ];
  });
  return [
    { id: "cpu", unit: PERCENT, series: one("cpu_percent", say("used")) },
    { id: "memory", unit: PERCENT, series: one("memory_percent", say("used")) },
    { id: "disk", unit: PERCENT, series: inBrackets("disk_percent", (mount) => mount) },
    {
      id: "network",
      unit: RATE,
      series: [
        ...one("received_bytes_per_second", say("received")),
        ...one("sent_bytes_per_second", say("sent")),
      ],
    },
    {
      id: "sessions",
      unit: COUNT,
      series: [
        ...one("sessions", say("live")),
        ...one("sessions_starting", say("starting")),
        ...one("vms", say("vms")),
      ],
    },
    { id: "starts", unit: SECONDS, series: starts, pointsOnly: true },
    {
      id: "pool",
      unit: COUNT,
      series: [
        ...one("slots_total", say("total")),
        ...one("slots_held", say("held")),
        ...one("pool_primed_vms", say("primed")),
      ],
    },
    { id: "temperature", unit: CELSIUS, series: one("temperature_celsius", say("celsius")) },
  ]
    .filter((chart) => chart.series.length > 0 || chart.id === "starts")
    .map((chart) => ({ ...chart, title: say(chart.id) }));
}
