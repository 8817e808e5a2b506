"use strict";

(() => {
  const byId = (id) => document.getElementById(id);
  const table = byId("table");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const total = body.rows.length;
  let sorted = "";

  // Sorting: numbers by data-value, words by what is shown; what was not measured stays last both ways.

  const valueOf = (row, column) => {
    const cell = row.cells[column];
    const value = cell.dataset.value;
    if (value === undefined) return cell.textContent.trim();
    return value === "" ? null : Number(value);
  };

  const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));

  const sortBy = (column) => {
    const head = heads[column];
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...body.rows].map((row) => [valueOf(row, column), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return up ? compare(a, b) : compare(b, a);
    });
    body.append(...rows.map(([, row]) => row));
    const title = head.querySelector("button").innerText.trim().replace(/\s+/g, " ");
    sorted = `, sorted by ${title}, ${up ? "ascending" : "descending"}`;
    tell();
  };

  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => sortBy(column)));

  // Filtering

  const tell = () => {
    const left = [...body.rows].filter((row) => !row.hidden).length;
    byId("shown").textContent = `${left} of ${total} files${sorted}.`;
  };

  const filter = () => {
    const words = byId("find").value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden =
        !words.every((word) => text.includes(word)) ||
        ["precision", "format"].some((key) => byId(key).value && byId(key).value !== row.dataset[key]);
    }
    tell();
  };

  const filters = byId("filters");
  filters.addEventListener("input", filter);
  filters.addEventListener("submit", (event) => event.preventDefault());
  // The fields are empty only after the event.
  filters.addEventListener("reset", () => setTimeout(filter));

  // Charts take the page's colours, also those of print.

  const data = JSON.parse(byId("data").textContent);
  const config = { displayModeBar: false, responsive: true, scrollZoom: false };

  const colored = (figure) => {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const axis = {
      gridcolor: color("--grid"), zerolinecolor: color("--grid"), linecolor: color("--quiet"), showgrid: true,
      fixedrange: true,
    };
    const layout = structuredClone(figure.layout);
    layout.font = { color: color("--ink"), family: "system-ui, sans-serif", size: 13 };
    layout.hoverlabel = {
      bgcolor: color("--paper"), bordercolor: color("--quiet"), font: { color: color("--ink") }, align: "left",
    };
    layout.xaxis = { ...layout.xaxis, ...axis };
    layout.yaxis = { ...layout.yaxis, ...axis };
    return [structuredClone(figure.data), layout, config];
  };

  const drawTradeoff = () => {
    const place = byId("tradeoff");
    if (!place) return;
    const metric = byId("metric").value;
    const figure = data.tradeoffs[`${byId("setting").value}/${metric}`];
    if (!figure) {
      Plotly.purge(place);
      place.textContent = "Not measured in this setting.";
      return;
    }
    if (!place.classList.contains("js-plotly-plot")) place.textContent = "";
    Plotly.react(place, ...colored(figure));
  };

  const drawOperators = () => {
    const place = byId("operator-chart");
    if (place) Plotly.react(place, ...colored(data.operators));
  };

  const draw = () => {
    drawTradeoff();
    drawOperators();
  };

  for (const id of ["metric", "setting"]) byId(id)?.addEventListener("change", drawTradeoff);
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", draw);
  draw();
})();
