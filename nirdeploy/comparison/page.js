// The page's one script: a click on a node of a network shows its spikes and voltages, in charts that zoom and move.
// Names come from files of unknown origin: they only ever become text (textContent), never markup.
"use strict";
(() => {
  // --- data -----------------------------------------------------------------------------------------------------

  const BOTH = 0, REFERENCE = 1, CHIP = 2;

  /** Spikes of a view as [row, step, kind] and, by "row step", the counts; places are stored as distances. */
  function unpack(view) {
    const spikes = [], counts = new Map(), rows = view.rows;
    [view.both, view.reference, view.chip].forEach((gaps, kind) => {
      let place = 0;
      for (const gap of gaps) {
        place += gap;
        const row = place % rows, step = view.first + (place - row) / rows;
        spikes.push([row, step, kind]);
        const found = counts.get(place) || [0, 0];
        counts.set(place, [Math.max(found[0], kind !== CHIP ? 1 : 0), Math.max(found[1], kind !== REFERENCE ? 1 : 0)]);
      }
    });
    for (const [place, ours, theirs] of view.many) counts.set(place, [ours, theirs]);
    return { spikes, at: (row, step) => counts.get((step - view.first) * rows + row) || [0, 0] };
  }

  /** Index of a row's neuron in the node's own shape, as text. */
  function neuronText(view, row) {
    let flat = view.neurons ? view.neurons[row] : row;
    if (view.shape.length === 1) return String(flat);
    const index = [];
    for (const size of [...view.shape].reverse()) { index.unshift(flat % size); flat = Math.floor(flat / size); }
    return `(${index.join(", ")})`;
  }

  const short = (value) => value === null ? "–" : String(Number(value.toPrecision(4)));

  // --- drawing --------------------------------------------------------------------------------------------------

  const MANY = 40; // nodes, from which on they can be chosen by name, too
  const LEAST = 5; // steps or neurons in view
  const LEFT = 80, RIGHT = 12, TOP = 8, BOTTOM = 36;

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  /** A cleared canvas at the screen's resolution: context, width and height in CSS pixels. */
  function cleared(canvas) {
    const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const c = canvas.getContext("2d");
    c.scale(ratio, ratio);
    c.font = '11px system-ui, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif';
    return [c, width, height];
  }

  /** Round numbers between two bounds, at most about `most`; `whole`: integers alone. */
  function ticks(low, high, most, whole) {
    const span = high - low;
    if (!(span > 0)) return [low];
    const power = 10 ** Math.floor(Math.log10(span / most));
    let spacing = [1, 2, 5, 10].map((m) => m * power).find((s) => span / s <= most);
    if (whole) spacing = Math.max(1, Math.round(spacing));
    const found = [];
    for (let i = Math.ceil(low / spacing); i * spacing <= high; i++) found.push(Number((i * spacing).toPrecision(12)));
    return found;
  }

  function stroke(c, path, style, width, dash = []) {
    c.save();
    c.beginPath(); path(); c.strokeStyle = style; c.lineWidth = width; c.lineJoin = "round"; c.setLineDash(dash); c.stroke();
    c.restore();
  }

  function text(c, words, x, y, align, style) {
    c.textAlign = align; c.fillStyle = style; c.fillText(words, x, y);
  }

  /** Frame, step axis, the first difference, the step under the pointer; returns x(step). */
  function frame(c, chart, top, bottom, width, titled) {
    const { from, to } = chart.window, ink = colour("ink");
    const x = (step) => LEFT + (step - from) / (to - from) * (width - LEFT - RIGHT);
    if (chart.pointer) {
      c.fillStyle = colour("band");
      c.fillRect(x(chart.pointer.step - 0.5), top, x(1) - x(0), bottom - top);
    }
    stroke(c, () => { c.moveTo(LEFT, top); c.lineTo(LEFT, bottom); c.lineTo(width - RIGHT, bottom); }, colour("edge"), 1);
    for (const step of ticks(Math.ceil(from), Math.floor(to), Math.min(26, (width - LEFT) / 38), true)) {
      stroke(c, () => { c.moveTo(x(step), bottom); c.lineTo(x(step), bottom + 4); }, colour("edge"), 1);
      text(c, String(step), x(step), bottom + 16, "center", ink);
    }
    if (titled) text(c, "step of the reference", (LEFT + width - RIGHT) / 2, bottom + 31, "center", colour("soft"));
    return x;
  }

  function here(c, x, step, top, bottom) {
    stroke(c, () => { c.moveTo(x(step), top); c.lineTo(x(step), bottom); }, colour("ink"), 1, [4, 3]);
  }

  function inside(c, top, bottom, width, draw) {
    c.save();
    c.beginPath(); c.rect(LEFT, top - 1, width - LEFT - RIGHT, bottom - top + 2); c.clip();
    draw();
    c.restore();
  }

  const MARKS = [
    ["both", (c, x, y, r) => { c.moveTo(x + r, y); c.arc(x, y, r, 0, 7); }],
    ["reference", (c, x, y, r) => { c.moveTo(x + 1.3 * r, y); c.arc(x, y, 1.3 * r, 0, 7); }],
    ["chip", (c, x, y, r) => { c.moveTo(x - r, y - r); c.lineTo(x + r, y + r); c.moveTo(x + r, y - r); c.lineTo(x - r, y + r); }],
  ];

  function drawRaster(canvas, chart) {
    const [c, width, height] = cleared(canvas), top = TOP, bottom = height - BOTTOM, view = chart.view;
    const { from, to, low, high } = chart.window;
    const y = (row) => top + (row - low) / (high - low) * (bottom - top), row = y(1) - y(0);
    const x = frame(c, chart, top, bottom, width, !chart.trace);
    inside(c, top, bottom, width, () => {
      const told = chart.trace ? chart.trace.row : -1;
      c.fillStyle = colour("band");
      if (told >= 0) c.fillRect(LEFT, y(told - 0.5), width, Math.max(1.5, row));
      if (view.here) here(c, x, view.here.step, top, bottom);
      const size = Math.min(4.5, 0.36 * row, 0.36 * (x(1) - x(0)));
      MARKS.forEach(([name, mark], kind) => {
        const r = Math.max(kind === BOTH ? 1.2 : 2.4, size); // in a crowd the differences are what one looks for
        c.beginPath();
        for (const [n, step, its] of chart.data.spikes) {
          if (its === kind && n >= low - 1 && n <= high + 1 && step >= from - 1 && step <= to + 1) mark(c, x(step), y(n), r);
        }
        if (kind === BOTH) { c.fillStyle = colour(name); c.fill(); }
        else { c.strokeStyle = colour(name); c.lineWidth = Math.max(1, r * (kind === CHIP ? 0.55 : 0.35)); c.stroke(); }
      });
      if (view.here) {
        const size = Math.max(6, Math.min(14, row)), left = x(view.here.step) - size;
        stroke(c, () => c.rect(left, y(view.here.row) - size, 2 * size, 2 * size), colour("ink"), 1.5);
      }
    });
    for (const n of ticks(Math.max(0, low), Math.min(view.rows - 1, high), (bottom - top) / 22, true)) {
      text(c, String(view.neurons ? view.neurons[n] : n), LEFT - 8, y(n) + 4, "right", colour("ink"));
    }
    c.save(); c.translate(12, (top + bottom) / 2); c.rotate(-Math.PI / 2);
    text(c, "neuron", 0, 0, "center", colour("soft")); c.restore();
  }

  function drawTrace(canvas, chart) {
    const [c, width, height] = cleared(canvas), { view, trace } = chart, { from, to } = chart.window;
    const rows = trace.row >= 0 ? 2 : 0, top = TOP, plot = top + 15 * rows + 4, bottom = height - BOTTOM;
    const x = frame(c, chart, top, bottom, width, true);
    const first = Math.max(0, Math.ceil(from) - view.first), last = Math.min(view.steps - 1, Math.floor(to) - view.first);
    const known = trace.thresholds.filter((t) => t !== null);
    for (const side of trace.values) for (let i = first; i <= last; i++) if (side[i] !== null) known.push(side[i]);
    let low = Math.min(...known), high = Math.max(...known);
    if (!known.length) [low, high] = [0, 1];
    const span = high - low || 1;
    low -= 0.07 * span; high += 0.07 * span;
    const y = (v) => bottom - (v - low) / (high - low) * (bottom - plot), room = x(1) - x(0);
    inside(c, top, bottom, width, () => {
      if (trace.differs !== null) here(c, x, trace.differs, top, bottom);
      trace.thresholds.forEach((t, side) => {
        if (t !== null) stroke(c, () => { c.moveTo(LEFT, y(t)); c.lineTo(width, y(t)); }, colour(side ? "chip" : "both"), 1.2, [1.5, 2.5]);
      });
      trace.values.forEach((values, side) => {
        const style = colour(side ? "chip" : "both");
        let pen = false;
        stroke(c, () => {
          for (let i = Math.max(0, first - 1); i <= Math.min(view.steps - 1, last + 1); i++) {
            if (values[i] === null) { pen = false; continue; }
            const at = [x(view.first + i), y(values[i])];
            if (pen) c.lineTo(...at); else c.moveTo(...at);
            pen = true;
          }
        }, style, side ? 1.5 : 2.6, side ? [5, 3] : []);
        if (room > 7 || values.filter((v) => v !== null).length < 3) {
          c.fillStyle = style;
          for (let i = first; i <= last; i++) {
            if (values[i] !== null) { c.beginPath(); c.arc(x(view.first + i), y(values[i]), side ? 2 : 3, 0, 7); c.fill(); }
          }
        }
      });
      for (let i = first; rows && i <= last; i++) {
        chart.data.at(trace.row, view.first + i).forEach((count, side) => {
          if (!count) return;
          const at = x(view.first + i), middle = top + 8 + 15 * side;
          stroke(c, () => { c.moveTo(at, middle - 5); c.lineTo(at, middle + 5); }, colour(side ? "chip" : "both"), 2.4);
          if (count > 1) text(c, `×${count}`, at + 4, middle + 4, "left", colour("ink"));
        });
      }
    });
    for (const value of ticks(low, high, 5, false)) text(c, short(value), LEFT - 8, y(value) + 4, "right", colour("ink"));
    if (rows) ["reference", "chip"].forEach((words, i) => text(c, words, LEFT - 6, top + 12 + 15 * i, "right", colour(i ? "chip" : "both")));
  }

  // --- one section: network, charts, cores ----------------------------------------------------------------------

  /** Chooses a node, a view of it and a neuron, and holds the window of steps [from, to] and rows [low, high]. */
  class Explorer {
    constructor(root) {
      this.root = root;
      this.id = root.dataset.section;
      this.data = JSON.parse(document.getElementById(`${this.id}-data`).textContent);
      this.find = (selector) => root.querySelector(selector);
      this.raster = this.find("canvas.raster");
      this.line = this.find("canvas.trace");
      this.chart = null;
      this.frame = 0;
      root.hidden = false;
      this.wireNetwork();
      this.wireTools();
      for (const canvas of [this.raster, this.line]) this.wireCanvas(canvas);
      new ResizeObserver(() => this.draw()).observe(this.raster.parentElement);
      this.select(this.data.first);
      this.scrollToChosen();
    }

    /** Brings the chosen box into view inside its drawing; the page itself stays where it is. */
    scrollToChosen() {
      const box = this.boxes.find((b) => b.classList.contains("chosen")), frame = box && box.closest(".network");
      if (!frame) return;
      const a = box.getBoundingClientRect(), b = frame.getBoundingClientRect();
      frame.scrollTop += a.top + a.height / 2 - b.top - b.height / 2;
      frame.scrollLeft += a.left + a.width / 2 - b.left - b.width / 2;
    }

    wireNetwork() {
      this.boxes = [...document.querySelectorAll(`#${this.id}-network a.node`)];
      for (const box of this.boxes) {
        box.setAttribute("role", "button");
        box.setAttribute("aria-controls", this.root.id);
        const choose = (event) => { event.preventDefault(); this.choose(Number(box.dataset.node)); };
        box.addEventListener("click", choose);
        box.addEventListener("keydown", (event) => { if (event.key === " " || event.key === "Enter") choose(event); });
      }
      for (const link of document.querySelectorAll(`#${this.id} a.pick`)) {
        link.addEventListener("click", (event) => { event.preventDefault(); this.choose(Number(link.dataset.node)); });
      }
      this.cells = [...document.querySelectorAll(`#${this.id}-cores a.cell`)];
      this.cards = new Map();
      for (const cell of this.cells) {
        const card = document.getElementById(`${this.id}-core-${cell.dataset.core}`);
        if (card) this.cards.set(cell.dataset.core, card);
        cell.addEventListener("click", (event) => { event.preventDefault(); this.showCores([cell.dataset.core]); });
      }
    }

    wireTools() {
      this.names = this.find(".names select");
      fill(this.names, this.data.nodes.map((node) => node.name));
      this.find(".names").hidden = this.data.nodes.length < MANY;
      this.names.addEventListener("change", () => { this.select(this.names.selectedIndex); this.scrollToChosen(); });
      this.views = this.find(".views select");
      this.neurons = this.find(".neurons select");
      this.views.addEventListener("change", () => this.show(this.views.selectedIndex));
      this.neurons.addEventListener("change", () => this.follow(this.neurons.selectedIndex));
      const actions = { here: () => this.toDifference(), in: () => this.zoom(0.6), out: () => this.zoom(1 / 0.6), all: () => this.all() };
      for (const button of this.root.querySelectorAll("button")) {
        button.addEventListener("click", () => { actions[button.dataset.do](); this.draw(); });
      }
      this.actions = actions;
    }

    /** What a click does: the node is shown, and its charts are brought into the window where they are not. */
    choose(index) {
      this.select(index);
      const { top, bottom } = this.root.getBoundingClientRect();
      if (top > 0.75 * innerHeight || bottom < 0.25 * innerHeight) scrollBy(0, top - 0.3 * innerHeight);
    }

    select(index) {
      const node = this.data.nodes[index];
      this.boxes.forEach((box, i) => {
        box.classList.toggle("chosen", i === index);
        box.setAttribute("aria-pressed", String(i === index));
      });
      this.node = node;
      this.names.selectedIndex = index;
      this.find("h4").textContent = node.name;
      const list = this.find("dl");
      const cores = node.cores.length ? [["cores", node.cores.join(", ")]] : [];
      list.replaceChildren(...[...node.facts, ...cores].map(([name, value]) => {
        const entry = document.createElement("div"), term = document.createElement("dt"), told = document.createElement("dd");
        term.textContent = name; told.textContent = value;
        entry.append(term, told);
        return entry;
      }));
      const why = this.find(".why");
      why.textContent = node.why; why.hidden = node.views.length > 0;
      this.find(".charts").hidden = !node.views.length;
      this.cells.forEach((cell) => cell.classList.toggle("mine", node.cores.includes(Number(cell.dataset.core))));
      this.showCores(node.cores.length ? node.cores.map(String) : this.cells.slice(0, 3).map((cell) => cell.dataset.core));
      fill(this.views, node.views.map((view) => view.title));
      if (node.views.length) this.show(0);
    }

    showCores(cores) {
      for (const [core, card] of this.cards) card.classList.toggle("chosen", cores.includes(core));
      this.cells.forEach((cell) => cell.classList.toggle("chosen", cores.includes(cell.dataset.core)));
    }

    show(index) {
      const view = this.node.views[index];
      this.chart = { view, data: unpack(view), trace: null, window: null, pointer: null };
      fill(this.neurons, view.traces.map((t) => t.neuron + (t.differs === null ? "" : `, differs at step ${t.differs}`)));
      this.find(".neurons").hidden = !view.traces.length;
      this.raster.hidden = !view.rows;
      this.line.hidden = !view.traces.length;
      this.find('[data-do="here"]').disabled = !this.difference(view);
      this.chart.trace = view.traces[0] || null;
      this.all();
      this.beginAround();
      this.find(".readout").textContent = "";
      this.draw();
    }

    follow(index) {
      this.chart.trace = this.chart.view.traces[index];
      this.neurons.selectedIndex = index;
      this.draw();
    }

    // --- the window

    difference(view) {
      const differs = view.traces.length ? view.traces[0].differs : null;
      return view.here || (differs === null ? null : { step: differs, row: view.traces[0].row });
    }

    all() {
      const { view } = this.chart;
      this.chart.window = { from: view.first - 0.6, to: view.first + view.steps - 0.4, low: -0.8, high: Math.max(1, view.rows) - 0.2 };
    }

    /** The first look: everything where it fits, else a part around the first difference. */
    beginAround() {
      const { view } = this.chart, at = this.difference(view);
      const step = at ? at.step : view.first, row = at && at.row >= 0 ? at.row : 0;
      if (view.steps > 120) this.centre("from", "to", step + 15, 90);
      if (view.rows > 60) this.centre("low", "high", row, 40);
    }

    toDifference() {
      const at = this.difference(this.chart.view);
      if (!at) return;
      this.centre("from", "to", at.step, 24);
      if (at.row >= 0) this.centre("low", "high", at.row, 16);
    }

    centre(a, b, middle, length) {
      this.chart.window[a] = middle - length / 2;
      this.chart.window[b] = middle + length / 2;
      this.clamp();
    }

    /** Steps and neurons at once, about the middle. */
    zoom(factor) {
      const w = this.chart.window;
      this.stretch("from", "to", factor, (w.from + w.to) / 2);
      this.stretch("low", "high", factor, (w.low + w.high) / 2);
    }

    /** One of the two ranges about a place that stays where it is. */
    stretch(a, b, factor, at) {
      const w = this.chart.window, scale = Math.max(factor, LEAST / (w[b] - w[a]));
      [w[a], w[b]] = [at + (w[a] - at) * scale, at + (w[b] - at) * scale];
      this.clamp();
    }

    move(steps, rows) {
      const w = this.chart.window;
      w.from += steps; w.to += steps; w.low += rows; w.high += rows;
      this.clamp();
    }

    /** Keeps the window inside what there is, its size unchanged where it can be. */
    clamp() {
      const { view, window: w } = this.chart;
      for (const [a, b, low, high] of [
        ["from", "to", view.first - 0.6, view.first + view.steps - 0.4], ["low", "high", -0.8, Math.max(1, view.rows) - 0.2],
      ]) {
        const size = Math.min(w[b] - w[a], high - low);
        w[a] = Math.min(Math.max(w[a], low), high - size);
        w[b] = w[a] + size;
      }
    }

    // --- pointer and keys

    wireCanvas(canvas) {
      let grip = null;
      const place = (event) => {
        const box = canvas.getBoundingClientRect(), w = this.chart.window;
        const step = w.from + (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT) * (w.to - w.from);
        const row = w.low + (event.clientY - box.top - TOP) / (box.height - TOP - BOTTOM) * (w.high - w.low);
        return { step, row };
      };
      canvas.addEventListener("pointerdown", (event) => {
        grip = { x: event.clientX, y: event.clientY, window: { ...this.chart.window }, moved: false };
        canvas.setPointerCapture(event.pointerId);
      });
      canvas.addEventListener("pointermove", (event) => {
        if (!this.chart) return;
        if (grip && event.buttons) {
          const { window: w } = grip, dx = event.clientX - grip.x, dy = event.clientY - grip.y;
          grip.moved = grip.moved || Math.abs(dx) + Math.abs(dy) > 3;
          if (!grip.moved) return;
          Object.assign(this.chart.window, w);
          const rows = canvas === this.raster ? -dy / (canvas.clientHeight - TOP - BOTTOM) * (w.high - w.low) : 0;
          this.move(-dx / (canvas.clientWidth - LEFT - RIGHT) * (w.to - w.from), rows);
        }
        this.point(place(event), canvas === this.raster);
      });
      canvas.addEventListener("pointerup", (event) => {
        if (grip && !grip.moved && canvas === this.raster) this.pick(Math.round(place(event).row));
        grip = null;
      });
      canvas.addEventListener("pointerleave", () => { if (this.chart) { this.chart.pointer = null; this.draw(); } });
      canvas.addEventListener("wheel", (event) => {
        if (!(event.ctrlKey || event.metaKey || document.activeElement === canvas)) return;
        event.preventDefault();
        const { step, row } = place(event), delta = event.deltaY || event.deltaX;
        if (event.shiftKey) this.stretch("low", "high", 1.0015 ** delta, row);
        else this.stretch("from", "to", 1.0015 ** delta, step);
        this.draw();
      }, { passive: false });
      canvas.addEventListener("keydown", (event) => this.key(event));
    }

    key(event) {
      const w = this.chart.window, steps = (w.to - w.from) / 8, rows = (w.high - w.low) / 8;
      const keys = {
        ArrowLeft: () => this.move(-steps, 0), ArrowRight: () => this.move(steps, 0), ArrowUp: () => this.move(0, -rows),
        ArrowDown: () => this.move(0, rows), "+": this.actions.in, "=": this.actions.in, "-": this.actions.out, 0: this.actions.all,
        Home: this.actions.here,
      };
      if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      keys[event.key]();
      this.draw();
    }

    pick(row) {
      const index = this.chart.view.traces.findIndex((t) => t.row === row);
      if (index >= 0) this.follow(index);
      else if (row >= 0 && row < this.chart.view.rows) {
        this.find(".readout").textContent = `Neuron ${neuronText(this.chart.view, row)}: its voltage is not on this page.`;
      }
    }

    point({ step, row }, onRaster) {
      const { view, data, trace } = this.chart, at = Math.round(step), n = onRaster ? Math.round(row) : trace ? trace.row : -1;
      const known = at >= view.first && at < view.first + view.steps;
      this.chart.pointer = known ? { step: at } : null;
      const told = known ? [`step ${at}`] : [];
      if (known && n >= 0 && n < view.rows) {
        const [ours, theirs] = data.at(n, at);
        told.push(`neuron ${neuronText(view, n)}`, `spikes: ${ours} reference, ${theirs} chip`);
      }
      if (known && trace && (n === trace.row || !onRaster)) {
        const [ours, theirs] = trace.values.map((side) => short(side[at - view.first]));
        told.push(`${view.variable}: ${ours} reference, ${theirs} chip`);
      }
      this.find(".readout").textContent = told.join(" · ");
      this.draw();
    }

    paint() {
      this.frame = 0;
      if (!this.raster.parentElement.clientWidth) return;
      if (this.chart.view.rows) drawRaster(this.raster, this.chart);
      if (this.chart.trace) drawTrace(this.line, this.chart);
    }

    /** Tells what is in view, and paints it with the next frame. */
    draw() {
      if (!this.chart) return;
      if (!this.frame) this.frame = requestAnimationFrame(() => this.paint());
      const { view, window: w, trace } = this.chart;
      const steps = `steps ${Math.max(view.first, Math.ceil(w.from))} to ${Math.min(view.first + view.steps - 1, Math.floor(w.to))}`;
      const ends = [Math.max(0, Math.ceil(w.low)), Math.min(view.rows - 1, Math.floor(w.high))];
      const rows = `neurons ${ends.map((row) => (view.neurons ? view.neurons[row] : row)).join(" to ")} of ${view.total}`;
      const on = `on this page: steps ${view.first} to ${view.first + view.steps - 1} of ${view.compared[0]} to ${view.compared[1] - 1}`;
      const kept = view.rows && view.rows < view.total ? `, ${view.rows} neurons, those that differ or spike most` : "";
      const told = `In view: ${steps}${view.rows ? `, ${rows}` : ""}; ${on}${kept}.`;
      this.find(".range").textContent = told;
      this.raster.setAttribute("aria-label", `Spikes of ${this.node.name} on both sides. ${told}`);
      this.line.setAttribute("aria-label", `${view.variable} of neuron ${trace ? trace.neuron : ""} on both sides. ${told}`);
    }
  }

  function fill(select, titles) {
    select.replaceChildren(...titles.map((title) => {
      const option = document.createElement("option");
      option.textContent = title;
      return option;
    }));
  }

  // --- the page -------------------------------------------------------------------------------------------------

  document.documentElement.classList.add("script");
  const explorers = [...document.querySelectorAll(".explorer")].map((root) => new Explorer(root));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => explorers.forEach((e) => e.draw()));
})();
