// A chart: drawn by uPlot, with a text summary for screen readers, and as a table.

const HEIGHT = 144;
const COLOURS = 6;
const TABLE_ROWS = 24;

function element(name, className, words) {
  const created = document.createElement(name);
  if (className) created.className = className;
  if (words !== undefined) created.textContent = words;
  return created;
}

/** Read the colours of the charts, which differ in dark mode. */
export function readColours() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return {
    text: read("--chart-text"),
    grid: read("--chart-grid"),
    ground: read("--pico-card-background-color"),
    series: Array.from({ length: COLOURS }, (_each, number) => read(`--series-${number + 1}`)),
  };
}

function timeText(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
}

export class Chart {
  constructor(place, wanted, say) {
    this.say = say;
    this.box = element("div", "card chart");
    this.box.id = `chart-${wanted.id}`;
    const heading = element("h3", "", wanted.title);
    this.legend = element("ul", "legend");
    this.canvas = element("div", "plot");
    this.canvas.setAttribute("role", "img");
    this.details = element("details");
    this.details.append(element("summary", "", say("table")));
    this.table = element("div", "table-scroll");
    this.table.tabIndex = 0;
    this.table.setAttribute("role", "group");
    this.table.setAttribute("aria-label", wanted.title);
    this.details.append(this.table);
    this.details.addEventListener("toggle", () => this.fillTable());
    this.box.append(heading, this.legend, this.canvas, this.details);
    place.append(this.box);
    new ResizeObserver(() => this.fit()).observe(this.canvas);
  }

  /** Set the values, of which `draw` shows the last `hours`. */
  take(wanted, at, hours) {
    const names = wanted.series.map((each) => each.label).join();
    this.isNew = this.names !== names;
    this.names = names;
    this.at = at;
    this.hours = hours;
    this.data = [at, ...wanted.series.map((each) => each.values)];
    this.wanted = wanted;
    if (this.isNew) this.showLegend();
    else this.showValues(null);
  }

  /** Measure the width. Do this for all charts before drawing one, which changes the layout. */
  measure() {
    this.width = this.canvas.clientWidth || 320;
  }

  /** Draw the values; make a new plot if the colours or series have changed. */
  draw(colours, isAnew = this.isNew) {
    this.colours = colours;
    if (this.plot && !isAnew) {
      this.plot.setData(this.data, false);
      this.plot.setScale("x", this.span());
    } else {
      this.plot?.destroy();
      this.plot = this.hasValues() ? new uPlot(this.options(), this.data, this.canvas) : null;
      if (!this.plot) this.canvas.textContent = this.say("empty");
      this.box.classList.toggle("is-drawn", !this.plot);
    }
    setTimeout(() => this.tell()); // what is said can wait for what is seen
  }

  hasValues() {
    return this.wanted.series.length > 0 && this.at.length > 0;
  }

  tell() {
    this.describe();
    this.fillTable();
  }

  zoom(hours) {
    this.hours = hours;
    this.plot?.setScale("x", this.span());
    this.tell();
  }

  fit() {
    const width = this.canvas.clientWidth;
    if (this.plot && width > 0 && width !== this.plot.width) {
      this.plot.setSize({ width, height: HEIGHT });
    }
  }

  span() {
    const max = this.at[this.at.length - 1];
    return { min: max - this.hours * 3600, max };
  }

  options() {
    const { unit, series, pointsOnly } = this.wanted;
    const { text, grid } = this.colours;
    const axis = { stroke: text, grid: { stroke: grid, width: 1 } };
    const span = this.span();
    return {
      width: this.width,
      height: HEIGHT,
      legend: { show: false },
      cursor: { show: true, drag: { x: false, y: false }, points: { size: 6 } },
      padding: [8, 20, 0, 0],
      scales: { x: { min: span.min, max: span.max }, y: this.scale(unit) },
      axes: [
        { ...axis, ticks: { show: false }, values: (_plot, values) => values.map(timeText), size: 28 },
        {
          ...axis,
          grid: unit.log ? { ...axis.grid, filter: powersOfTen } : axis.grid,
          size: 64,
          ticks: { show: false },
          space: 28,
          incrs: unit.whole ? [1, 2, 5, 10, 20, 50, 100, 200, 500] : undefined,
          values: (_plot, values) => values.map((value) => (value === null ? "" : unit.show(value))),
        },
      ],
      series: [{}, ...series.map((each, number) => this.line(each, number, pointsOnly))],
      hooks: {
        draw: [() => this.box.classList.add("is-drawn")],
        setCursor: [(plot) => this.showValues(plot.cursor.idx)],
      },
    };
  }

  scale(unit) {
    if (unit.log) return { distr: 3 };
    const [low, high] = unit.range;
    return { range: (_plot, _min, max) => [low, high ?? Math.max(1, (max ?? 0) * 1.1)] };
  }

  line(each, number, pointsOnly) {
    const stroke = this.colours.series[number % COLOURS];
    if (pointsOnly) {
      const fill = each.hollow ? this.colours.ground : stroke;
      return { label: each.label, stroke, paths: () => null, points: { show: true, size: 6, fill } };
    }
    const paths = this.wanted.unit.whole ? uPlot.paths.stepped({ align: 1 }) : undefined;
    return { label: each.label, stroke, width: 1.5, paths, points: { show: false } };
  }

  showLegend() {
    this.values = this.wanted.series.map((each, number) => {
      const entry = element("li", `series-${(number % COLOURS) + 1}`);
      const value = element("span", "value");
      entry.append(element("span", "swatch"), element("span", "", each.label), value);
      return { entry, value };
    });
    this.legend.replaceChildren(...this.values.map((each) => each.entry));
    this.showValues(null);
  }

  /** Show the values at an index of the data, by default the newest. */
  showValues(index) {
    this.wanted.series.forEach((each, number) => {
      const found = index === null || index === undefined ? lastOf(each.values) : each.values[index];
      const words = found === null || found === undefined ? "–" : this.wanted.unit.show(found);
      this.values[number].value.textContent = words;
    });
  }

  seen() {
    const { min } = this.span();
    const first = this.at.findIndex((each) => each >= min);
    return first < 0 ? this.at.length : first;
  }

  /** Summarize the chart as text. */
  describe() {
    const first = this.seen();
    const { unit, series, title } = this.wanted;
    const parts = series.map((each) => {
      const values = each.values.slice(first).filter((value) => value !== null);
      const label = `${title}, ${each.label}`;
      if (values.length === 0) return `${label}: ${this.say("empty")}`;
      const [least, most] = values.reduce(
        ([low, high], value) => [Math.min(low, value), Math.max(high, value)],
        [Infinity, -Infinity],
      );
      return this.say("summary", {
        title: label,
        last: unit.show(values[values.length - 1]),
        least: unit.show(least),
        most: unit.show(most),
      });
    });
    this.canvas.setAttribute("aria-label", parts.join("; ") || `${title}: ${this.say("empty")}`);
  }

  fillTable() {
    if (!this.details.open) return;
    const { unit, series } = this.wanted;
    const table = element("table", "small");
    const head = table.createTHead().insertRow();
    for (const words of [this.say("time"), ...series.map((each) => each.label)]) {
      const cell = element("th", "", words);
      cell.scope = "col";
      head.append(cell);
    }
    const body = table.createTBody();
    for (const index of spread(this.seen(), this.at.length, TABLE_ROWS)) {
      const row = body.insertRow();
      const time = element("th", "", timeText(this.at[index]));
      time.scope = "row";
      row.append(time);
      for (const each of series) {
        const value = each.values[index];
        row.append(element("td", "number", value === null ? "–" : unit.show(value)));
      }
    }
    this.table.replaceChildren(table);
  }
}

function powersOfTen(_plot, values) {
  return values.map((value) => (Math.abs(Math.log10(value) % 1) < 1e-9 ? value : null));
}

function lastOf(values) {
  for (let index = values.length - 1; index >= 0; index -= 1) {
    if (values[index] !== null) return values[index];
  }
  return null;
}

/** Return about `count` indexes from `first` to `end` - 1, newest first, including the newest. */
function spread(first, end, count) {
  const step = Math.max(1, Math.ceil((end - first) / count));
  const found = [];
  for (let index = end - 1; index >= first; index -= step) found.push(index);
  return found;
}
