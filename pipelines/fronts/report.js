// Shows the study that the page holds as JSON. Every text is set as text; nothing is loaded, nothing is sent.
"use strict";
(() => {
  const D = JSON.parse(document.getElementById("data").textContent);
  const METRIC = D.metric.name, SIGN = D.metric.direction === "max" ? 1 : -1;
  const rowOf = new Map(D.rows.map((row) => [row.key, row]));
  const dense = D.rows.find((row) => row.kind === "dense");
  const MOST_PICKED = 4;

  // ---- texts

  const at = (id) => document.getElementById(id);
  const scaled = (value, steps) => {
    const [factor, unit] = steps.find(([from]) => Math.abs(value) >= from) || [1, ""];
    return `${Number((value / factor).toPrecision(3))} ${unit}`.trim();
  };
  const COUNTS = [[1e9, "G"], [1e6, "M"], [1e3, "k"]];
  const count = (value) => scaled(value, COUNTS);
  const size = (value) => scaled(value, [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [0, "B"]]);
  const inPercent = (value) => (D.metric.share ? 100 * value : value);
  const figure = (value) => (D.metric.share ? value.toFixed(2) : String(Number(value.toPrecision(4))));
  const unit = D.metric.unit ? ` ${D.metric.unit}` : "";
  const quality = (value) => figure(inPercent(value)) + unit;
  const points = (value) => `${value > 0 ? "+" : value < 0 ? "−" : "±"}${figure(Math.abs(inPercent(value)))}${D.metric.share ? " pt" : unit}`;
  const counted = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
  const ms = (value) => `${Number(value.toPrecision(3))} ms`;
  const short = (key) => (key.length > 16 ? `${key.slice(0, 15)}…` : key.length === 16 ? key.slice(0, 10) : key);
  const name = (row) => (row.control ? `${row.control} of ${short(row.of)}` : short(row.key));
  const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`);

  const largest = (axis) => Math.max(1, ...D.rows.map((row) => row[axis]));
  const steps = (axis, units) => units.find(([from]) => largest(axis) >= from) || [1, units.at(-1)[1]];
  const BYTES = [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [1, "B"]];
  const MANY = [[1e9, "billion"], [1e6, "million"], [1e3, "thousand"], [1, ""]];
  const AXES = {
    latency_ms: { label: "latency", scale: 1, unit: "ms", text: ms },
    size_bytes: { label: "size", scale: steps("size_bytes", BYTES)[0], unit: steps("size_bytes", BYTES)[1], text: size },
    macs: { label: "MACs", scale: steps("macs", MANY)[0], unit: steps("macs", MANY)[1], text: count },
    params: { label: "parameters", scale: steps("params", MANY)[0], unit: steps("params", MANY)[1], text: count },
  };
  const titled = (axis) => `${AXES[axis].label}${AXES[axis].unit ? ` [${AXES[axis].unit}]` : ""}`;

  // ---- elements

  function make(space, tag, attributes, children) {
    const made = space ? document.createElementNS(space, tag) : document.createElement(tag);
    for (const [key, value] of Object.entries(attributes || {})) {
      if (value === undefined || value === null || value === false) continue;
      if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
      else made.setAttribute(key, value === true ? "" : value);
    }
    made.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return made;
  }
  const el = (tag, attributes, ...children) => make(null, tag, attributes, children);
  const svg = (tag, attributes, ...children) => make("http://www.w3.org/2000/svg", tag, attributes, children);

  function table(head, rows, attributes) {
    const cell = (tag) => (content) => (content instanceof Node && ["TD", "TH"].includes(content.tagName) ? content : el(tag, {}, content));
    return el("table", attributes,
      el("thead", {}, el("tr", {}, head.map(cell("th")))),
      el("tbody", {}, rows.map(([kind, cells]) => el("tr", { class: kind }, cells.map(cell("td"))))));
  }

  const tip = at("tip");
  function showTip(target, text) {
    const box = target.getBoundingClientRect();
    tip.textContent = text;
    tip.hidden = false;
    const left = Math.min(box.right + 10, document.documentElement.clientWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(4, left) + window.scrollX}px`;
    tip.style.top = `${box.bottom + 8 + window.scrollY}px`;
  }
  const hideTip = () => { tip.hidden = true; };

  function copyButton(text) {
    const button = el("button", { type: "button", class: "copy" }, "copy");
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "copied";
      } catch {
        const range = document.createRange();  // a page in a frame may not copy: the text is selected instead
        range.selectNodeContents(button.parentNode.querySelector("code"));
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        button.textContent = "selected";
      }
    });
    return button;
  }
  const commandLine = (text) => el("div", { class: "command" }, el("code", {}, text), copyButton(text));

  // ---- state, kept in the address so that a page that is loaded again shows the same

  const state = { axis: D.axes[0], log: false, by: METRIC, under: {}, floor: null, picks: [] };
  function restore() {
    let given;
    try { given = new URLSearchParams(location.hash.slice(1)); } catch { return; }
    if (D.axes.includes(given.get("axis"))) state.axis = given.get("axis");
    state.log = given.get("log") === "1";
    if (D.axes.includes(given.get("by"))) state.by = given.get("by");
    for (const axis of D.axes) if (given.get(axis)) setBound(axis, Number(given.get(axis)));
    if (given.get("floor")) setBound(null, Number(given.get("floor")));
    state.picks = (given.get("pick") || "").split(" ").filter((key) => rowOf.has(key)).slice(0, MOST_PICKED);
  }
  function keep() {
    const kept = new URLSearchParams({ axis: state.axis, ...state.under });
    if (state.log) kept.set("log", "1");
    if (state.by !== METRIC) kept.set("by", state.by);
    if (state.floor !== null) kept.set("floor", state.floor);
    if (state.picks.length) kept.set("pick", state.picks.join(" "));
    try { history.replaceState(null, "", `#${kept}`); } catch { /* a page in a frame may have no address */ }
  }
  function setBound(axis, value) {
    const usable = Number.isFinite(value);
    if (axis === null) state.floor = usable ? value : null;
    else if (usable) state.under[axis] = value;
    else delete state.under[axis];
  }

  // ---- the choice: what `prunefront fetch` and `prunefront pick` choose under the same bounds

  const meetsFloor = (row) => state.floor === null || SIGN * (row.quality - state.floor) >= 0;
  const meetsBound = (row, axis) => !(axis in state.under) || row[axis] <= state.under[axis];
  const meets = (row) => meetsFloor(row) && D.axes.every((axis) => meetsBound(row, axis));
  function best() {
    const value = (row) => (state.by === METRIC ? -SIGN * row.quality : row[state.by]);
    const before = (a, b) => value(a) - value(b) || a.latency_ms - b.latency_ms || a.size_bytes - b.size_bytes || (a.key < b.key ? -1 : 1);
    return D.rows.filter(meets).sort(before)[0];
  }
  function floorWords() {
    const value = state.floor;
    if (METRIC === "accuracy" && value >= 1) return `${METRIC} >= 100%`;
    return `${METRIC} >= ${value}${value < 0 ? " absolute" : ""}`;
  }
  function command(row) {
    if (D.partial) return row.artifact ? `prunefront fetch ${quoted(row.artifact)} -o best/` : "";
    const words = ["prunefront fetch", D.source];
    for (const axis of D.axes) if (axis in state.under) words.push(`--under ${axis}=${state.under[axis]}`);
    if (state.floor !== null) words.push(SIGN > 0 ? `--require '${floorWords()}'` : `--under ${METRIC}=${state.floor}`);
    if (state.by !== METRIC) words.push(`--best ${state.by}`);
    return `${words.join(" ")} -o best/`;
  }
  const byKey = (row) => (D.partial ? command(row) : `prunefront fetch ${D.source} --key ${quoted(row.key)} -o best/`);

  function summary(row) {
    const lines = [
      `${METRIC} ${quality(row.quality)} (${figure(inPercent(row.quality_low))} to ${figure(inPercent(row.quality_high))})`,
      `${ms(row.latency_ms)} (${Number(row.latency_low.toPrecision(3))} to ${Number(row.latency_high.toPrecision(3))})${row.kind === "dense" ? "" : `, ${row.latency_ratio.toFixed(2)} × dense`}`,
      `${count(row.macs)} MACs, ${size(row.size_bytes)}, ${count(row.params)} parameters`,
    ];
    if (row.made) lines.push(row.made);
    return lines;
  }
  function namesOf(row) {
    const names = Object.entries(D.names[state.axis] || {}).filter(([, key]) => key === row.key).map(([word]) => (word === "best" ? `best ${METRIC}` : word));
    return row.kind === "dense" ? ["dense", ...names] : names;
  }
  const tags = (row) => namesOf(row).filter((word) => word !== row.key).map((word) => el("span", { class: "tag" }, word));
  function showChoice() {
    const row = best(), host = at("choice");
    host.classList.toggle("none", !row);
    if (row) {
      const drop = dense && row !== dense ? `, ${points(row.quality - dense.quality)} beside the dense network` : "";
      const line = command(row);
      host.replaceChildren(
        el("div", {}, "within these bounds: ", el("b", { id: "chosen", "data-key": row.key, class: "key" }, name(row)), ...tags(row)),
        el("div", { class: "small" }, summary(row).join(" · ") + drop),
        line ? commandLine(line) : el("div", { class: "small" }, "its artifact was not published"));
    } else {
      const asked = [...D.axes.filter((axis) => axis in state.under), ...(state.floor === null ? [] : [null])];
      const least = asked.map((axis) => {
        const rest = D.rows.filter((other) => (axis === null || meetsFloor(other)) && D.axes.every((a) => a === axis || meetsBound(other, a)));
        if (!rest.length) return null;
        return axis === null
          ? `${METRIC} reaches ${quality(SIGN * Math.max(...rest.map((other) => SIGN * other.quality)))}`
          : `${AXES[axis].label} goes down to ${AXES[axis].text(Math.min(...rest.map((other) => other[axis])))}`;
      }).filter(Boolean);
      host.replaceChildren(el("div", {}, el("b", {}, "no network is within these bounds"), least.length ? `; with the other bounds, ${least.join(", ")}` : "; widen more than one of them"));
    }
    return row;
  }

  // ---- charts

  function ticks(low, high, wanted) {
    const rough = (high - low) / wanted || 1, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(Number((i * step).toPrecision(12)));
    return found;
  }
  function logTicks(low, high) {
    const found = [];
    for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++)
      for (const m of [1, 2, 5]) if (m * 10 ** p >= low && m * 10 ** p <= high) found.push(Number((m * 10 ** p).toPrecision(6)));
    return found.length > 8 ? found.filter((tick) => /^1/.test(tick.toExponential())) : found;
  }
  const labelled = (value) => (Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-4) ? value.toExponential(0) : String(value));

  // frame: {x: [low, high], y: [low, high], log, xTitle, yTitle, label}; draw(place) adds to the chart
  function chart(host, frame, draw) {
    const width = Math.max(280, host.clientWidth || 600), height = Math.round(Math.min(500, Math.max(280, width * 0.58)));
    const left = 58, right = 14, top = 14, bottom = 46;
    const [x0, x1] = frame.log ? frame.x.map(Math.log10) : frame.x, [y0, y1] = frame.y;
    const px = (value) => left + ((frame.log ? Math.log10(value) : value) - x0) / (x1 - x0 || 1) * (width - left - right);
    const py = (value) => height - bottom - (value - y0) / (y1 - y0 || 1) * (height - top - bottom);
    const drawn = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": frame.label });
    for (const tick of frame.log ? logTicks(...frame.x) : ticks(...frame.x, width / 110)) {
      drawn.append(svg("line", { class: "grid", x1: px(tick), x2: px(tick), y1: top, y2: height - bottom }),
        svg("text", { class: "soft", x: px(tick), y: height - bottom + 16, "text-anchor": "middle" }, labelled(tick)));
    }
    for (const tick of ticks(y0, y1, height / 60)) {
      drawn.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: py(tick), y2: py(tick) }),
        svg("text", { class: "soft", x: left - 7, y: py(tick) + 4, "text-anchor": "end" }, labelled(tick)));
    }
    drawn.append(svg("text", { x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" }, frame.xTitle),
      svg("text", { transform: `translate(14 ${(top + height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, frame.yTitle));
    const clip = (low, high) => (value) => Math.min(high, Math.max(low, value));
    draw({ drawn, px, py, cx: clip(left, width - right), cy: clip(top, height - bottom), left, right: width - right, top, bottom: height - bottom });
    return drawn;
  }
  function span(values, { zero = false, most = Infinity, least = -Infinity } = {}) {
    let low = Infinity, high = -Infinity;
    for (const value of values) { if (value < low) low = value; if (value > high) high = value; }
    if (!(high >= low)) return [0, 1];
    const room = 0.06 * (high - low || Math.abs(high) || 1);
    return [zero ? 0 : Math.max(least, low - room), Math.min(most, high + room)];
  }
  // two percent more than the range itself, so that a point at its end is whole
  const qualityRange = D.metric.share ? { least: -2, most: 102 } : {};
  const SHAPES = {
    front: (r) => `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`,
    behind: (r) => `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`,
    dense: (r) => `M0 ${-1.3 * r}L${1.3 * r} 0L0 ${1.3 * r}L${-1.3 * r} 0Z`,
    control: (r) => `M0 ${-1.2 * r}L${1.1 * r} ${0.9 * r}H${-1.1 * r}Z`,
  };
  const cloud = (xs, ys, place) => svg("path", { class: "cloud", d: xs.map((x, i) => `M${place.px(x).toFixed(1)} ${place.py(ys[i]).toFixed(1)}h0`).join("") });

  function stairs(axis) {
    const found = [];
    for (const row of [...D.rows].sort((a, b) => a[axis] - b[axis] || SIGN * (b.quality - a.quality)))
      if (!row.control && (!found.length || SIGN * (row.quality - found.at(-1).quality) > 0)) found.push(row);
    return found;
  }

  function drawFront() {
    const host = at("front"), axis = state.axis, { scale } = AXES[axis];
    const x = (row) => row[axis] / scale, y = (row) => inPercent(row.quality);
    const ends = (row) => (axis === "latency_ms" ? [row.latency_low / scale, row.latency_high / scale] : [x(row), x(row)]);
    const others = D.others.filter((other) => other[axis] > 0);
    const log = state.log && D.rows.every((row) => row[axis] > 0);
    const xs = [...D.rows.flatMap(ends), ...others.map(x)];
    const positive = xs.filter((value) => value > 0);
    const frame = {
      x: log ? [Math.min(...positive) / 1.2, Math.max(...positive) * 1.2] : span(xs, { zero: true }),
      y: span([...D.rows.flatMap((row) => [inPercent(row.quality_low), inPercent(row.quality_high)]), ...others.map(y)], qualityRange),
      log, xTitle: titled(axis), yTitle: `${METRIC}${unit ? ` [${unit.trim()}]` : ""} on ${D.images}`,
      label: `${METRIC} against ${AXES[axis].label}`,
    };
    const chosen = best();
    const drawn = chart(host, frame, (place) => {
      const line = stairs(axis);
      if (line.length) place.drawn.append(svg("path", { class: "stairs", d: line.map((row, i) => `${i ? `H${place.px(x(row))}V` : `M${place.px(x(row))} `}${place.py(y(row))}`).join("") }));
      if (others.length) place.drawn.append(cloud(others.map(x), others.map(y), place));
      if (axis in state.under) {
        const to = place.cx(place.px(state.under[axis] / scale));
        place.drawn.append(svg("line", { class: "bound", x1: to, x2: to, y1: place.top, y2: place.bottom }));
      }
      if (state.floor !== null) {
        const to = place.cy(place.py(inPercent(state.floor)));
        place.drawn.append(svg("line", { class: "bound", x1: place.left, x2: place.right, y1: to, y2: to }));
      }
      const labels = [];
      for (const row of [...D.rows].sort((a, b) => x(a) - x(b))) {
        const cx = place.px(x(row)), cy = place.py(y(row)), [low, high] = ends(row);
        const text = `${row.control ? "control " : ""}${name(row)}${namesOf(row).length ? ` (${namesOf(row).join(", ")})` : ""}\n${summary(row).join("\n")}`;
        const bar = (x1, y1, x2, y2) => svg("line", { class: "bar", x1, y1, x2, y2 });
        const mark = svg("g", {
          class: `point ${row.kind}${row === chosen ? " chosen" : ""}${state.picks.includes(row.key) ? " picked" : ""}${meets(row) ? "" : " out"}`,
          tabindex: 0, role: "button", "data-key": row.key, "aria-pressed": String(state.picks.includes(row.key)), "aria-label": text.replaceAll("\n", ", "),
          onclick: () => pick(row.key),
          onkeydown: (event) => walk(event, row.key),
          onmouseenter: (event) => showTip(event.currentTarget, text), onmouseleave: hideTip,
          onfocus: (event) => showTip(event.currentTarget, text), onblur: hideTip,
        },
        bar(cx, place.cy(place.py(inPercent(row.quality_low))), cx, place.cy(place.py(inPercent(row.quality_high)))),
        high > low ? bar(place.cx(place.px(low)), cy, place.cx(place.px(high)), cy) : null,
        svg("path", { class: "dot", d: SHAPES[row.kind](5.5), transform: `translate(${cx} ${cy})` }),
        svg("circle", { class: "ring", cx, cy, r: 10 }));
        place.drawn.append(mark);
        const names = namesOf(row);
        if (names.length) {
          const words = names.join(", "), wide = 7 * words.length, middle = cx > (place.left + place.right) / 2;
          const [near, side] = middle ? [cx + 6, "end"] : [cx - 6, "start"];
          const places = [[near, cy - 14, side], [near, cy + 24, side], [cx - 12, cy + 4, "end"], [cx + 12, cy + 4, "start"]];
          const dots = D.rows.filter((other) => other !== row).map((other) => [place.px(x(other)), place.px(x(other)), place.py(y(other)) + 4]);
          const box = ([lx, , anchor]) => (anchor === "end" ? [lx - wide, lx] : [lx, lx + wide]);
          const free = (spot) => {
            const [from, to] = box(spot);
            return from > place.left && to < place.right && spot[1] > place.top + 10 && spot[1] < place.bottom
              && ![...labels, ...dots].some(([a, b, ly]) => b > from - 8 && a < to + 8 && Math.abs(ly - spot[1]) < 14);
          };
          const spot = places.find(free) ?? places[cy < place.top + 24 ? 1 : 0];
          labels.push([...box(spot), spot[1]]);
          place.drawn.append(svg("text", { x: spot[0], y: spot[1], "text-anchor": spot[2], class: "named" }, words));
        }
      }
    });
    const word = (kind, text) => el("span", {}, svg("svg", { viewBox: "-8 -8 16 16", class: kind }, svg("path", { class: "dot", d: SHAPES[kind](5), "stroke-width": 1.8 })), text);
    const kinds = new Set(D.rows.map((row) => row.kind));
    const legend = el("figcaption", { class: "legend" },
      kinds.has("front") ? word("front", "on the front") : null, kinds.has("behind") ? word("behind", "behind another one on the test data") : null,
      kinds.has("dense") ? word("dense", "dense network") : null, kinds.has("control") ? word("control", "control") : null,
      others.length ? el("span", {}, svg("svg", { viewBox: "-8 -8 16 16" }, svg("path", { class: "cloud", d: "M0 0h0" })), "trained, not chosen (figures of validation data)") : null,
      el("span", {}, "bars are 95 % intervals · pick points to compare them"));
    const tools = el("div", { class: "tools", role: "toolbar", "aria-label": "horizontal axis" },
      D.axes.map((other) => el("button", { type: "button", "aria-pressed": String(other === axis), onclick: () => { state.axis = other; update(`[data-axis=${other}]`); }, "data-axis": other }, AXES[other].label)),
      el("label", {}, el("input", { type: "checkbox", id: "log", checked: state.log, onchange: (event) => { state.log = event.target.checked; update("#log"); } }), " logarithmic"),
      Object.entries(D.names[axis] || {}).map(([word, key]) => el("button", { type: "button", "data-name": word, onclick: () => { pick(key, true); at("compare").scrollIntoView({ block: "nearest" }); } }, word === "best" ? `best ${METRIC}` : word)));
    host.replaceChildren(tools, drawn, legend);
  }

  function walk(event, key) {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      pick(key);
      at("front").querySelector(`[data-key="${CSS.escape(key)}"]`).focus();
    }
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) {
      event.preventDefault();
      const order = [...at("front").querySelectorAll(".point")], to = order.indexOf(event.currentTarget) + step;
      if (order[to]) order[to].focus();
    }
  }

  function pick(key, add) {
    const there = state.picks.includes(key);
    if (there && add) return;
    state.picks = there ? state.picks.filter((other) => other !== key) : [...state.picks, key].slice(-MOST_PICKED);
    update();
  }

  // ---- bounds

  // digits that a person reads, and a bound that still admits the network that it stands at
  function outward(value, up) {
    if (!value) return 0;
    const step = 10 ** (Math.floor(Math.log10(Math.abs(value))) - 3);
    for (let digit = (up ? Math.floor : Math.ceil)(value / step); ; digit += up ? 1 : -1) {
      const rounded = Number((digit * step).toPrecision(6));
      if (up ? rounded >= value : rounded <= value) return rounded;
    }
  }
  const exact = (value) => Number(value.toPrecision(12));
  const inputs = new Map();

  function bounded(axis) {
    const cost = axis !== null, up = cost || SIGN < 0;
    const factor = cost ? AXES[axis].scale : D.metric.share ? 0.01 : 1;
    const own = (row) => (cost ? row[axis] : row.quality);
    const stop = (value) => {
      let shown = outward(exact(value / factor), up);
      while (up ? exact(shown * factor) < value : exact(shown * factor) > value) shown = exact(shown + (up ? 1 : -1) * Math.max(Math.abs(shown) * 1e-4, 1e-12));
      return shown;
    };
    const stops = [...new Set([...new Set(D.rows.map(own))].sort((a, b) => (up ? a - b : b - a)).map(stop))];
    if (!up) stops.reverse();
    if (up) stops.push(null); else stops.unshift(null);  // the loose end: no bound
    const word = cost ? AXES[axis].label : METRIC, units = cost ? AXES[axis].unit : D.metric.unit;
    const number = el("input", { type: "number", step: "any", id: `number-${axis}`, placeholder: "any", "aria-label": `${word} ${up ? "at most" : "at least"}, in ${units || "its own unit"}` });
    const slider = el("input", { type: "range", min: 0, max: stops.length - 1, step: 1, id: `range-${axis}`, "aria-label": `${word} ${up ? "at most" : "at least"}` });
    const said = el("div", { class: "small" });
    const set = (shown) => { setBound(axis, shown === null || shown === "" ? NaN : exact(Number(shown) * factor)); update(); };
    slider.addEventListener("input", () => set(stops[Number(slider.value)]));
    number.addEventListener("input", () => set(number.value));
    inputs.set(axis, () => {
      const value = cost ? state.under[axis] : state.floor;
      const none = value === undefined || value === null, shown = none ? null : exact(value / factor);
      if (document.activeElement !== number) number.value = none ? "" : shown;
      const place = none ? stops.indexOf(null) : up
        ? stops.reduce((found, one, i) => (one !== null && one <= shown ? i : found), 0)
        : stops.findIndex((one) => one !== null && one >= shown);
      if (document.activeElement !== slider || none) slider.value = place < 0 ? stops.length - 1 : place;
      slider.setAttribute("aria-valuetext", none ? "no bound" : `${shown} ${units}`);
      said.textContent = none || cost || !dense ? "" : `${points(value - dense.quality)} beside the dense network`;
    });
    return el("div", { class: "bounded" }, el("label", { for: `number-${axis}` }, `${word} ${up ? "≤" : "≥"}`), el("span", {}, number, el("span", { class: "unit" }, units)), slider, said);
  }

  function makeBounds() {
    const select = el("select", { id: "by", onchange: (event) => { state.by = event.target.value; update(); } },
      [METRIC, ...D.axes].map((one) => el("option", { value: one }, one === METRIC ? `best ${METRIC}` : `least ${AXES[one].label}`)));
    inputs.set("by", () => { select.value = state.by; });
    at("bounds").addEventListener("submit", (event) => event.preventDefault());
    at("bounds").append(
      ...D.axes.map(bounded), bounded(null),
      el("div", { class: "tools" }, el("label", { for: "by" }, "of these, the "), select),
      el("button", { type: "button", id: "reset", onclick: () => { state.under = {}; state.floor = null; state.by = METRIC; update(); } }, "no bounds"));
  }

  // ---- comparison

  const PERCENTS = D.metric.share ? "points" : "units";
  function told(a, b, what, low, high) {
    const overlap = a[low] <= b[high] && b[low] <= a[high];
    return el("p", { class: `verdict${overlap ? "" : " apart"}` }, `${name(a)} and ${name(b)}, ${what}: `,
      el("b", {}, overlap ? "cannot be told apart" : "differ"), overlap ? ": their 95 % intervals overlap" : ": their 95 % intervals do not overlap");
  }
  const criteriaOf = (row, field) => [...new Set(row.parts.filter((part) => part.dropped > 0 && part[field]).map((part) => part[field]))].join(", ") || "–";
  function partText(part) {
    if (!part) return "whole";
    const left = part.units ? `${part.kept}/${part.units}` : `${Math.round(100 * (1 - part.dropped))} %`;
    return [left, part.dropped > 0 ? part.criterion : "", part.granularity && part.granularity !== "channel" ? part.granularity : "", part.bits && part.bits < 32 ? `${part.bits} bit` : ""].filter(Boolean).join(" · ");
  }
  function showCompared() {
    const rows = state.picks.map((key) => rowOf.get(key)).filter(Boolean), host = at("compared");
    at("compare").hidden = !D.rows.length;
    if (!rows.length) {
      host.replaceChildren(el("p", { class: "small" }, "Pick two or more networks: on the chart (click, or Tab and Enter), or in the table below."));
      return;
    }
    const ratio = (row) => (row.kind === "dense" ? "1" : `${row.latency_ratio.toFixed(3)} (${row.ratio_low.toFixed(3)} to ${row.ratio_high.toFixed(3)})`);
    const lines = [
      [`${METRIC}${unit}`, (row) => `${figure(inPercent(row.quality))} (${figure(inPercent(row.quality_low))} to ${figure(inPercent(row.quality_high))})`],
      ["beside the dense network", (row) => (dense && row !== dense ? points(row.quality - dense.quality) : "–")],
      ["on validation data", (row) => (row.validation === null ? "–" : quality(row.validation))],
      ["samples", (row) => (row.images ? row.images.toLocaleString("en") : "–")],
      ["latency", (row) => `${ms(row.latency_ms)} (${Number(row.latency_low.toPrecision(3))} to ${Number(row.latency_high.toPrecision(3))})`],
      ["latency, × dense", ratio],
      ["MACs", (row) => count(row.macs) + (dense && row !== dense && row.macs ? ` ÷${Number((dense.macs / row.macs).toPrecision(3))}` : "")],
      ["size", (row) => size(row.size_bytes)], ["parameters", (row) => count(row.params)],
      ["criterion", (row) => criteriaOf(row, "criterion")], ["granularity", (row) => criteriaOf(row, "granularity")],
      ["bits of weights", (row) => [...new Set(row.parts.map((part) => part.bits || 32))].sort((a, b) => a - b).join(", ") || "32"],
      ["epochs trained", (row) => String(row.epochs)], ["proposed by", (row) => row.origin || "–"],
    ];
    const groups = [...new Set(rows.flatMap((row) => row.parts.map((part) => part.name)))];
    const head = ["", ...rows.map((row) => el("th", { class: "key" }, name(row), ...tags(row)))];
    const cells = (row, group) => {
      const part = row.parts.find((one) => one.name === group), cell = el("td", { class: "share" }, partText(part));
      cell.style.setProperty("--kept", part ? 1 - part.dropped : 1);
      return cell;
    };
    // what each newly gets wrong, beside the dense network
    const newly = (row) => {
      const found = D.mistakes && D.mistakes.networks[row.key];
      if (!found) return null;
      const pictures = found.shown.map((place) => (D.mistakes.pictures[place]
        ? el("img", { src: D.mistakes.pictures[place], alt: `validation sample ${place}`, title: `validation sample ${place}`, class: "sample" })
        : el("span", { class: "tag" }, `sample ${place}`)));
      const more = found.wrong - found.shown.length;
      return el("div", { class: "newly" },
        el("b", { class: "key" }, name(row)), ` newly gets ${found.wrong} of ${counted(D.mistakes.samples, "validation sample")} wrong, and ${found.right} right`,
        el("div", { class: "samples" }, pictures, more > 0 && pictures.length ? `and ${more} more` : null));
    };
    const verdicts = rows.flatMap((a, i) => rows.slice(i + 1).flatMap((b) => [
      told(a, b, METRIC, "quality_low", "quality_high"), told(a, b, "latency", "latency_low", "latency_high")]));
    host.replaceChildren(
      ...verdicts,
      el("div", { class: "scroll" }, table(head, [
        ...lines.map(([label, text]) => ["", [label, ...rows.map(text)]]),
        ...groups.map((group) => ["", [el("td", { class: "key" }, group), ...rows.map((row) => cells(row, group))]]),
      ])),
      ...rows.map(newly).filter(Boolean),
      ...rows.map((row) => commandLine(byKey(row))),
      el("button", { type: "button", onclick: () => { state.picks = []; update(); } }, "compare none"));
  }

  // ---- tables

  function showTable(chosen) {
    const head = [el("th", { class: "pick" }, "compare"), el("th", { class: "left" }, "network"), `${METRIC}${unit}`, "latency", "× dense", "MACs", "size", "parameters", el("th", { class: "left" }, "made of")];
    const half = (low, high) => (high - low) / 2;
    const rows = D.rows.map((row) => [`is-${row.kind}${row === chosen ? " is-chosen" : ""}`, [
      el("td", { class: "pick" }, el("input", { type: "checkbox", checked: state.picks.includes(row.key), "aria-label": `compare ${name(row)}`, "data-pick": row.key, onchange: () => { pick(row.key); at("table").querySelector(`[data-pick="${CSS.escape(row.key)}"]`).focus(); } })),
      el("td", { class: "left key" }, row.control ? name(row) : row.key, ...tags(row)),
      `${figure(inPercent(row.quality))} ±${figure(half(inPercent(row.quality_low), inPercent(row.quality_high)))}`,
      ms(row.latency_ms), row.kind === "dense" ? "1" : `${row.latency_ratio.toFixed(3)} ±${half(row.ratio_low, row.ratio_high).toFixed(3)}`,
      count(row.macs), size(row.size_bytes), count(row.params), el("td", { class: "left" }, row.made)]]);
    at("networks").hidden = !D.rows.length;
    at("table").replaceChildren(table(head, rows));
    at("meaning").textContent = D.rows.length
      ? `± is half of a 95 % interval. Latency is measured in turn with the dense network on the same runtime.${D.partial ? ` All figures are those of ${D.images}, which also chose these networks.` : " Networks were chosen on validation data; the figures are from test data."}`
      : "";
  }

  function showKept() {
    const rows = D.rows.filter((row) => !row.control && row.kind !== "dense" && row.parts.length);
    const groups = [...new Set(rows.flatMap((row) => row.parts.map((part) => part.name)))];
    at("parts").hidden = !rows.length || !groups.length;
    const mean = (group) => rows.reduce((sum, row) => sum + 1 - (row.parts.find((part) => part.name === group)?.dropped ?? 0), 0) / rows.length;
    const cell = (text, share) => { const made = el("td", { class: "share" }, text); made.style.setProperty("--kept", share); return made; };
    at("kept").replaceChildren(
      el("p", { class: "small" }, "A stronger colour keeps more. A group that keeps much in every network is a bottleneck; one that keeps little is redundant."),
      table(["group", "mean", ...rows.map((row) => el("th", { class: "key", title: row.key }, name(row)))],
        groups.map((group) => ["", [el("td", { class: "key" }, group), cell(`${Math.round(100 * mean(group))} %`, mean(group)),
          ...rows.map((row) => { const part = row.parts.find((one) => one.name === group); return cell(part?.units ? `${part.kept}/${part.units}` : `${Math.round(100 * (1 - (part?.dropped ?? 0)))} %`, 1 - (part?.dropped ?? 0)); })]])));
  }

  function showSearch() {
    const host = at("charts");
    const said = (value) => (value === null ? "too few for a rank correlation" : `rank correlation ${value.toFixed(2)} (Spearman; 1 = same order)`);
    // a chart is as wide as its place, which is known once all of them are there
    const waiting = [];
    const boxed = (title, fill) => {
      const box = el("figure", {}, el("h3", {}, title));
      host.append(box);
      waiting.push(() => fill(box));
    };
    const scatter = (title, found, xTitle, yTitle, limits) => boxed(title, (box) => {
      const ends = found.points.flatMap((point) => [...point.x, ...point.y]);
      const range = span(ends, limits);
      box.append(chart(box, { x: range, y: range, xTitle, yTitle, label: title }, (place) => {
        place.drawn.append(svg("line", { class: "guide", x1: place.px(range[0]), y1: place.py(range[0]), x2: place.px(range[1]), y2: place.py(range[1]) }));
        for (const { key, x, y } of found.points) {
          const cx = place.px(x[0]), cy = place.py(y[0]);
          place.drawn.append(svg("g", { class: "point front" },
            svg("line", { class: "bar", x1: place.cx(place.px(x[1])), x2: place.cx(place.px(x[2])), y1: cy, y2: cy }),
            svg("line", { class: "bar", x1: cx, x2: cx, y1: place.cy(place.py(y[1])), y2: place.cy(place.py(y[2])) }),
            svg("path", { class: "dot", d: SHAPES.front(4), transform: `translate(${cx} ${cy})` }), svg("title", {}, key)));
        }
      }), el("figcaption", {}, `${counted(found.points.length, "network")}; ${said(found.correlation)}`));
    });
    if (D.volume.length) boxed("Hypervolume", (box) => {
      const last = D.volume.at(-1);
      box.append(chart(box, { x: [0, Math.max(1, last[0])], y: span(D.volume.map(([, v]) => v), { zero: true }), xTitle: "candidates scored", yTitle: "share of the ideal", label: "hypervolume over candidates" }, (place) => {
        place.drawn.append(svg("path", { class: "stairs", d: D.volume.map(([n, v], i) => `${i ? `H${place.px(n)}V` : `M${place.px(n)} `}${place.py(v)}`).join("") }));
      }), el("figcaption", {}, `${last[1].toFixed(3)} after ${last[0].toLocaleString("en")} candidates, by quality before training`));
    });
    if (D.scored.key.length) boxed("Every candidate, before training", (box) => {
      const xs = D.scored.macs.map((value) => value / AXES.macs.scale), ys = D.scored.quality.map(inPercent);
      box.append(chart(box, { x: span(xs, { zero: true }), y: span(ys, qualityRange), xTitle: titled("macs"), yTitle: `${METRIC}${unit} on validation data`, label: "every candidate" }, (place) => place.drawn.append(cloud(xs, ys, place))),
        el("figcaption", {}, `${xs.length.toLocaleString("en")} candidates`));
    });
    if (D.qualities.points.length) scatter("Before training and after", D.qualities, `${METRIC}${unit} before training`, `${METRIC}${unit} after training`, qualityRange);
    if (D.latencies.points.length) scatter("Latency, predicted and measured", D.latencies, "predicted, × dense", "measured, × dense", { zero: true });
    at("search").hidden = !waiting.length;
    for (const fill of waiting) fill();
  }

  function showLeftOut() {
    at("left").hidden = !D.left_out.length;
    const more = D.left_out_more ? el("p", { class: "small" }, `… and ${D.left_out_more} more`) : null;
    const shown = el("details", { open: D.left_out.length <= 12 }, el("summary", {}, `${counted(D.left_out.length + D.left_out_more, "network")}, each with its reason`),
      el("div", { class: "scroll" }, table(["network", el("th", { class: "left" }, "left out in"), el("th", { class: "left" }, "reason")],
        D.left_out.map(({ key, where, why }) => ["", [el("td", { class: "key" }, key), el("td", { class: "left" }, where), el("td", { class: "left wrap" }, why)]]))));
    at("reasons").replaceChildren(...[shown, more].filter(Boolean));
  }

  function showSettings() {
    const list = (entries) => el("div", { class: "scroll" }, table(["", el("th", { class: "left" }, "")], entries.map(([key, value]) => ["", [el("td", {}, key), el("td", { class: "left wrap key" }, value)]])));
    at("settings").replaceChildren(
      ...(D.facts.length ? [list(D.facts)] : []),
      ...(D.settings.length ? [el("details", {}, el("summary", {}, "every setting of the study"), list(D.settings))] : []));
    at("study").hidden = !D.facts.length && !D.settings.length;
  }

  // ---- all together

  function update(focus) {
    keep();
    if (D.rows.length) {
      drawFront();
      const chosen = showChoice();
      showCompared();
      showTable(chosen);
      for (const show of inputs.values()) show();
    }
    if (focus) at("front").querySelector(focus)?.focus();
  }

  restore();
  at("state").textContent = `${counted(D.rows.length, "network")} · written ${D.written}${D.running ? " · the search runs, and this page follows it" : ""}`;
  at("choose").hidden = !D.rows.length;
  if (D.rows.length) makeBounds();
  update();
  showKept();
  showSearch();
  showLeftOut();
  showSettings();

  let width = document.documentElement.clientWidth;
  window.addEventListener("resize", () => {
    if (width === document.documentElement.clientWidth) return;
    width = document.documentElement.clientWidth;
    update();
    at("charts").replaceChildren();
    showSearch();
  });
  window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
  if (D.running) {
    let touched = 0;
    for (const kind of ["pointermove", "keydown"]) window.addEventListener(kind, () => { touched = Date.now(); });
    setInterval(() => { if (Date.now() - touched > 10000) location.reload(); }, 20000);
  }
})();
