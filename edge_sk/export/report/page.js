"use strict";

(() => {
  const byId = (id) => document.getElementById(id);
  const body = byId("table").tBodies[0];
  const heads = [...byId("table").tHead.rows[0].cells];
  let sorted = "";

  const tell = () => {
    const shown = [...body.rows].filter((row) => !row.hidden).length;
    byId("shown").textContent = `${shown} of ${body.rows.length} files${sorted}.`;
  };

  // Sort numbers by data-value and words by their text; files without a measurement come last in both directions.

  const valueOf = (cell) => cell.dataset.value ?? cell.textContent.trim();
  const order = new Intl.Collator("en", { numeric: true }).compare;
  const compare = (a, b) => (isNaN(a) || isNaN(b) ? order(a, b) : a - b);

  const sortBy = (head, column) => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    const direction = up ? "ascending" : "descending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction);
    const rows = [...body.rows].map((row) => [valueOf(row.cells[column]), row]);
    rows.sort(([a], [b]) => (a === "") - (b === "") || (up ? compare(a, b) : compare(b, a)));
    body.append(...rows.map(([, row]) => row));
    sorted = `, sorted by ${head.innerText.trim().replace(/\s+/g, " ")}, ${direction}`;
    tell();
  };

  heads.forEach((head, column) => head.firstChild.addEventListener("click", () => sortBy(head, column)));

  const filter = () => {
    const words = byId("find").value.toLowerCase().split(/\s+/);
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      const chosen = ["precision", "format"].every((key) => ["", row.dataset[key]].includes(byId(key).value));
      row.hidden = !chosen || !words.every((word) => text.includes(word));
    }
    tell();
  };

  const filters = byId("filters");
  filters.addEventListener("input", filter);
  filters.addEventListener("submit", (event) => event.preventDefault());
  // The fields are reset after this event.
  filters.addEventListener("reset", () => setTimeout(filter));

  // Charts. Text in the data is already escaped for plotly.

  // The colour-blind safe palette of Okabe and Ito, without black and yellow, which vanish on one of the backgrounds.
  const palette = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C"];
  const symbols = { fp32: "circle", fp16: "diamond", int8: "square", palette6: "triangle-up" };
  const kindColors = {
    convolution: "#0072B2", elementwise: "#E69F00", pooling: "#009E73", "data movement": "#CC79A7",
    "outside the delegate": "#D55E00",
  };
  const data = JSON.parse(byId("data").textContent);

  const tradeoff = (setting, metric) => {
    const { title, zero } = data.metrics[metric];
    const front = data.fronts[setting][metric];
    const networks = [...new Set(data.files.map((file) => file.network))];
    const points = data.files.map((file, index) => {
      const { p50_ms: p50, noise_ms: noise, p90_ms: p90, min_ms: min } = file.latencies[setting] ?? {};
      const color = palette[networks.indexOf(file.network) % palette.length];
      const onFront = front.includes(index);
      const value = file.values[metric];
      return {
        type: "scatter", mode: "markers", name: `${file.network} ${file.precision}`, x: [p50], y: [value],
        // No bar goes below 0 ms.
        error_x: {
          type: "data", symmetric: false, array: [noise], arrayminus: [Math.min(noise, p50)], thickness: 1, width: 3,
          color,
        },
        marker: {
          size: onFront ? 16 : 11, symbol: (symbols[file.precision] ?? "circle") + (onFront ? "" : "-open"), color,
          line: { width: 2, color },
        },
        hoverinfo: "text",
        hovertext: [
          `<b>${file.title}</b>${onFront ? " (on the front)" : ""}`,
          `p50 ${p50?.toFixed(2)} ms, noise ${noise?.toFixed(2)}; p90 ${p90?.toFixed(2)}, least ${min?.toFixed(2)}`,
          `${title}: ${value?.toFixed(2)}`,
          file.text,
        ].join("<br>"),
      };
    });
    const shown = points.filter(({ x, y }) => x[0] !== undefined && y[0] !== null);
    if (!shown.length) return null;
    const line = {
      type: "scatter", mode: "lines", name: "Pareto front", hoverinfo: "skip",
      x: front.map((index) => points[index].x[0]), y: front.map((index) => points[index].y[0]),
      line: { dash: "dash", width: 2, color: "#8C8C8C" },
    };
    return [[line, ...shown], {
      xaxis: { title: { text: `p50 latency, ms (${data.settings[setting]})` }, rangemode: "tozero" },
      yaxis: {
        title: { text: title[0].toUpperCase() + title.slice(1), standoff: 12 }, automargin: true,
        rangemode: zero ? "tozero" : "normal",
      },
      height: 460, showlegend: shown.length <= 16,
    }];
  };

  const sum = (group) => group.reduce((total, operator) => total + operator.p50_ms, 0);

  const operators = () => {
    const files = [...data.operators].sort((a, b) => sum(a.operators) - sum(b.operators));
    const found = files.flatMap((file) => file.operators.map(({ kind }) => kind));
    const kinds = [...new Set([...Object.keys(kindColors), ...found.sort()])];
    const bar = (kind, index) => {
      const groups = files.map((file) => file.operators.filter((operator) => operator.kind === kind));
      return {
        type: "bar", orientation: "h", name: kind, hoverinfo: "text",
        x: groups.map(sum), y: files.map(({ name }) => name),
        marker: { color: kindColors[kind] ?? palette[index % palette.length] },
        hovertext: groups.map((group, index) => [
          `<b>${files[index].title}</b>`,
          `${kind}: ${sum(group).toFixed(2)} ms, ${Math.round(100 * sum(group) / (sum(files[index].operators) || 1))}%`,
          ...[...group].sort((a, b) => b.p50_ms - a.p50_ms).slice(0, 3).map(
            ({ name, calls, p50_ms }) => `${name} x${calls}: ${p50_ms.toFixed(2)} ms`,
          ),
        ].join("<br>")),
      };
    };
    return [kinds.map(bar).filter(({ name }) => found.includes(name)), {
      barmode: "stack",
      xaxis: { title: { text: "ms in one forward, traced" }, rangemode: "tozero" },
      yaxis: { automargin: true, ticklabelstandoff: 6 },
      height: 150 + 52 * files.length, showlegend: true,
    }];
  };

  // Draw in the page's colours, which differ in print.

  const draw = (place, traces, { xaxis, yaxis, ...layout }) => {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const axis = {
      gridcolor: color("--grid"), zerolinecolor: color("--grid"), linecolor: color("--quiet"), showgrid: true,
      fixedrange: true,
    };
    if (!place.classList.contains("js-plotly-plot")) place.textContent = "";
    Plotly.react(place, traces, {
      ...layout,
      xaxis: { ...xaxis, ...axis },
      yaxis: { ...yaxis, ...axis },
      font: { color: color("--ink"), family: "system-ui, sans-serif", size: 13 },
      hoverlabel: {
        bgcolor: color("--paper"), bordercolor: color("--quiet"), font: { color: color("--ink") }, align: "left",
      },
      paper_bgcolor: "transparent", plot_bgcolor: "transparent",
      margin: { l: 60, r: 16, t: 12, b: 60 },
      legend: { orientation: "h", yanchor: "bottom", y: 1.02, x: 0, traceorder: "normal" },
      hovermode: "closest", dragmode: false,
    }, { displayModeBar: false, responsive: true });
  };

  const drawAll = () => {
    const place = byId("tradeoff");
    const figure = place && tradeoff(byId("setting").value, byId("metric").value);
    if (figure) draw(place, ...figure);
    else if (place) {
      Plotly.purge(place);
      place.textContent = "Not measured in this setting.";
    }
    if (data.operators.length) draw(byId("operator-chart"), ...operators());
  };

  for (const id of ["metric", "setting"]) byId(id)?.addEventListener("change", drawAll);
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", drawAll);
  drawAll();
})();
