"use strict";
// Draws the charts from the data in the page, and makes tables sort and filter. Nothing is fetched.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 640px)");
  const MIB = 2 ** 20;
  const hidden = new Set(); // "scenario/method" that a legend has switched off
  const all = (selector, place = document) => [...place.querySelectorAll(selector)];

  // --- words and colours ---------------------------------------------------------------------------------------------

  // Plotly reads a small HTML and formulas in labels, so names are escaped before it sees them.
  const ENTITIES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", $: "&#36;" };
  const safe = (text) => String(text).replace(/[&<>$]/g, (sign) => ENTITIES[sign]);

  function wrapped(text, width) {
    const lines = [""];
    for (const word of String(text).split(" ")) {
      const last = lines[lines.length - 1];
      if (last && last.length + word.length + 1 > width) lines.push(word);
      else lines[lines.length - 1] = last ? `${last} ${word}` : word;
    }
    return lines.map(safe).join("<br>");
  }

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = (pair) => (dark.matches ? pair.dark : pair.light);

  function faint(hex, alpha) {
    const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
    return `rgba(${r}, ${g}, ${b}, ${alpha})`;
  }

  const percent = (value) => (value === null ? null : 100 * value);
  const percents = (spreads) => spreads.map((spread) => percent(spread.mean));
  const spreadText = (spread) =>
    spread.mean === null
      ? "undefined"
      : `${percent(spread.mean).toFixed(1)}${spread.deviation === null ? "" : ` ± ${percent(spread.deviation).toFixed(1)}`} %`;

  function line(method) {
    const style = data.styles[method];
    return {
      line: { color: colour(style), width: 2, dash: style.dash },
      marker: { color: colour(style), symbol: style.marker, size: 8 },
    };
  }

  const same = (a, b) => ["kind", "number", "convention", "align"].every((key) => a[key] === b[key]);
  const shown = (scenario, method) => !hidden.has(`${scenario}/${method}`);

  // --- layout --------------------------------------------------------------------------------------------------------

  function layout(x, y, more = {}) {
    const axis = (title, extra) => ({
      title: { text: title, standoff: 10 },
      gridcolor: css("--grid"),
      linecolor: css("--line"),
      zeroline: false,
      automargin: true,
      fixedrange: narrow.matches,
      ...extra,
    });
    const { xaxis = {}, yaxis = {}, ...rest } = more;
    return {
      font: { family: css("--sans"), size: narrow.matches ? 12 : 13, color: css("--ink") },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 52, r: 14, t: 30, b: 46 },
      showlegend: false,
      hovermode: "closest",
      hoverlabel: { bgcolor: css("--panel"), bordercolor: css("--line"), font: { color: css("--ink") } },
      // A finger that drags wants to scroll the page.
      dragmode: narrow.matches ? false : "zoom",
      xaxis: axis(x, xaxis),
      yaxis: axis(y, yaxis),
      ...rest,
    };
  }

  const config = () => ({
    responsive: true,
    displaylogo: false,
    displayModeBar: narrow.matches ? false : "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  });

  const draw = (figure, traces, form) => Plotly.react(figure.querySelector(".plot"), traces, form, config());

  // --- charts --------------------------------------------------------------------------------------------------------

  const control = (figure, name) => {
    const select = document.querySelector(`select[data-scenario="${figure.dataset.scenario}"][data-control="${name}"]`);
    return select ? select.value : null;
  };

  const charts = {
    memory(figure, scenario, n) {
      const convention = control(figure, "convention");
      const metric = figure.dataset.metric;
      const traces = scenario.curves
        .filter((curve) => shown(n, curve.method))
        .map((curve) => {
          const rows = curve.rows
            .map((id) => scenario.rows.find((row) => row.id === id))
            .sort((a, b) => a.bytes[convention] - b.bytes[convention]);
          const style = line(curve.method);
          return {
            type: "scatter",
            mode: "lines+markers",
            name: safe(curve.method),
            x: rows.map((row) => row.bytes[convention] / MIB),
            y: percents(rows.map((row) => row[metric])),
            error_y: {
              type: "data",
              array: rows.map((row) => percent(row[metric].deviation) ?? 0),
              color: style.line.color,
              thickness: 1.2,
              width: 4,
            },
            text: rows.map((row) => `${spreadText(row[metric])}<br>${safe(row.setting.text)}<br>${safe(row.options["model.backbone"] ?? "")}`),
            hovertemplate: `<b>${wrapped(curve.method, 40)}</b><br>%{x:.2f} MiB: %{text}<extra></extra>`,
            ...style,
          };
        });
      draw(figure, traces, layout(`carried at the end, MiB (${convention})`, metric === "last_accuracy" ? "last accuracy, %" : "average accuracy, %"));
    },

    tasks(figure, scenario, n) {
      const setting = scenario.settings[Number(control(figure, "facet"))];
      const rows = scenario.rows.filter((row) => same(row.setting, setting) || ["none", "all"].includes(row.setting.kind));
      const bands = [];
      const lines = [];
      for (const row of rows.filter((row) => shown(n, row.method))) {
        const style = line(row.method);
        const spreads = row.tasks.seen_accuracy;
        const x = row.tasks.classes_seen;
        const at = (sign) => spreads.map((spread) => percent(spread.mean + sign * (spread.deviation ?? 0)));
        if (spreads.some((spread) => spread.deviation !== null)) {
          bands.push({
            type: "scatter",
            mode: "lines",
            x: [...x, ...[...x].reverse()],
            y: [...at(1), ...at(-1).reverse()],
            fill: "toself",
            fillcolor: faint(style.line.color, 0.14),
            line: { width: 0 },
            hoverinfo: "skip",
          });
        }
        lines.push({
          type: "scatter",
          mode: "lines+markers",
          x,
          y: percents(spreads),
          text: spreads.map((spread, t) => `after task ${t + 1}: ${spreadText(spread)}`),
          hovertemplate: `<b>${wrapped(row.method, 40)}</b><br>%{text}, %{x} classes<extra></extra>`,
          ...style,
        });
      }
      draw(figure, [...bands, ...lines], layout("classes seen", "accuracy on all of them, %", { yaxis: { rangemode: "tozero" } }));
    },

    ledger(figure, scenario) {
      const choice = control(figure, "ledger");
      const rows = scenario.rows.filter((row) => choice === "" || same(row.setting, scenario.settings[Number(choice)]));
      const width = narrow.matches ? 17 : 40;
      const labels = rows.map((row) => wrapped(choice === "" ? `${row.method}, ${row.setting.text}` : row.method, width));
      // An upper bound would leave no room for the others: its bar runs out of the chart and says how long it is.
      const bounded = rows.filter((row) => !row.upper_bound).map((row) => row.bytes.strict / MIB);
      const limit = bounded.length ? 1.04 * Math.max(...bounded) : null;
      const traces = categories(rows.map((row) => row.bytes)).map((category) => ({
        type: "bar",
        orientation: "h",
        name: category,
        y: rows.map((_, index) => index),
        x: rows.map((row) => (row.bytes[category] ?? 0) / MIB),
        text: labels,
        textposition: "none",
        marker: { color: colour(data.categories[category]) },
        hovertemplate: `<b>%{text}</b><br>${category}: %{x:.3f} MiB<extra></extra>`,
      }));
      const annotations = rows.flatMap((row, index) =>
        limit !== null && row.bytes.strict / MIB > limit
          ? [{ x: limit, y: index, text: `${(row.bytes.strict / MIB).toFixed(1)} MiB`, showarrow: false, xanchor: "right", font: { color: "#ffffff" } }]
          : [],
      );
      const lines = labels.reduce((sum, label) => sum + Math.max(1.7, label.split("<br>").length * 1.25), 0);
      const height = Math.round(80 + 16 * lines);
      figure.querySelector(".plot").style.height = `${height}px`;
      draw(
        figure,
        traces,
        layout("MiB (strict)", "", {
          barmode: "stack",
          bargap: 0.28,
          height,
          annotations,
          margin: { l: 20, r: 14, t: 26, b: 46 },
          xaxis: limit === null ? {} : { range: [0, limit] },
          yaxis: { autorange: "reversed", tickvals: labels.map((_, index) => index), ticktext: labels, ticklen: 4, showgrid: false },
        }),
      );
    },

    ledger_tasks(figure, scenario) {
      const row = scenario.rows.find((row) => row.id === control(figure, "ledger_row"));
      const traces = categories(row.tasks.bytes).map((category) => ({
        type: "bar",
        name: category,
        x: row.tasks.bytes.map((_, t) => t + 1),
        y: row.tasks.bytes.map((bytes) => (bytes[category] ?? 0) / MIB),
        marker: { color: colour(data.categories[category]) },
        hovertemplate: `after task %{x}, ${category}: %{y:.3f} MiB<extra></extra>`,
      }));
      const stated = row.setting.kind === "budget" && row.setting.convention === "strict";
      const budget = row.setting.number / MIB;
      draw(
        figure,
        traces,
        layout("after task", "MiB (strict)", {
          barmode: "stack",
          bargap: 0.25,
          xaxis: { dtick: row.tasks.bytes.length > 12 ? 5 : 1 },
          shapes: stated
            ? [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: budget, y1: budget, line: { color: css("--ink"), width: 1, dash: "dot" } }]
            : [],
          annotations: stated
            ? [{ xref: "paper", x: 0, xanchor: "left", y: budget, yanchor: "bottom", text: `budget ${budget.toFixed(2)} MiB`, showarrow: false }]
            : [],
        }),
      );
    },

    classes(figure, scenario) {
      const row = scenario.rows.find((row) => row.id === control(figure, "classes_row"));
      const { names, mean, deviation } = row.class_accuracy;
      const order = mean.map((_, at) => at).sort((a, b) => mean[b] - mean[a] || a - b);
      const few = names.length <= (narrow.matches ? 10 : 30);
      draw(
        figure,
        [
          {
            type: "bar",
            x: order.map((_, place) => place + 1),
            y: order.map((at) => percent(mean[at])),
            text: order.map((at) => `<b>${wrapped(names[at], 40)}</b><br>${spreadText({ mean: mean[at], deviation: deviation[at] })}`),
            textposition: "none",
            marker: { color: colour(data.styles[row.method]) },
            hovertemplate: "%{text}<extra></extra>",
          },
        ],
        layout(few ? "" : "classes, best first", "accuracy, %", {
          yaxis: { range: [0, 100] },
          xaxis: few
            ? { tickvals: order.map((_, place) => place + 1), ticktext: order.map((at) => wrapped(names[at], 20)), showgrid: false }
            : { showgrid: false },
        }),
      );
    },

    confusion(figure, scenario) {
      const row = scenario.rows.find((row) => row.id === control(figure, figure.dataset.control));
      const shares = row.task_confusion.map((line) => line.map(percent));
      const tasks = shares.map((_, t) => t + 1);
      const written = tasks.length <= 12 && !narrow.matches;
      draw(
        figure,
        [
          {
            type: "heatmap",
            x: tasks,
            y: tasks,
            z: shares,
            zmin: 0,
            zmax: 100 * data.largest_share,
            colorscale: [[0, css("--low")], [0.5, css("--middle")], [1, css("--high")]],
            xgap: 1,
            ygap: 1,
            texttemplate: written ? "%{z:.0f}" : "",
            textfont: { size: 11 },
            hovertemplate: "images of task %{y}<br>predicted as task %{x}: %{z:.1f} %<extra></extra>",
            colorbar: { thickness: 10, outlinewidth: 0, title: { text: "%", side: "top" }, len: 0.9 },
          },
        ],
        layout("predicted task", "true task", {
          margin: { l: 44, r: 8, t: 26, b: 46 },
          xaxis: { dtick: tasks.length > 12 ? 5 : 1, showgrid: false, constrain: "domain" },
          yaxis: { dtick: tasks.length > 12 ? 5 : 1, showgrid: false, autorange: "reversed", scaleanchor: "x", constrain: "domain" },
        }),
      );
    },
  };

  const categories = (ledgers) => Object.keys(data.categories).filter((name) => ledgers.some((bytes) => bytes[name]));

  function redraw(scenario = null) {
    for (const figure of all("figure[data-chart]")) {
      const n = figure.dataset.scenario;
      if (scenario === null || n === scenario) charts[figure.dataset.chart](figure, data.comparison.scenarios[Number(n)], n);
    }
  }

  // --- tables --------------------------------------------------------------------------------------------------------

  function sort(table, column, ascending) {
    const body = table.tBodies[0];
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const rows = [...body.rows].map((row, index) => ({ row, index, key: key(row) }));
    const numeric = rows.every(({ key }) => key === "" || Number.isFinite(Number(key)));
    rows.sort((a, b) => {
      if ((a.key === "") !== (b.key === "")) return a.key === "" ? 1 : -1; // what is undefined comes last, both ways
      const order = numeric ? Number(a.key) - Number(b.key) : a.key.localeCompare(b.key, undefined, { numeric: true });
      return (ascending ? order : -order) || a.index - b.index;
    });
    body.append(...rows.map(({ row }) => row));
  }

  for (const table of all("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        // Of numbers the largest are wanted first, of names the alphabet.
        const first = head.classList.contains("text") ? "ascending" : "descending";
        const next = before === "none" ? first : before === "ascending" ? "descending" : "ascending";
        heads.forEach((other) => other.setAttribute("aria-sort", other === head ? next : "none"));
        sort(table, column, next === "ascending");
      });
    });
  }

  function apply(select) {
    const { scenario, control: name } = select.dataset;
    for (const place of all(`[data-scenario="${scenario}"][data-only-${name}]`)) {
      place.hidden = place.getAttribute(`data-only-${name}`) !== select.value;
    }
    for (const row of all(`table[data-scenario="${scenario}"][data-filter="${name}"] tbody tr`)) {
      row.hidden = select.value !== "" && row.dataset.setting !== select.value;
    }
  }

  for (const select of all("select")) {
    select.addEventListener("change", () => {
      apply(select);
      redraw(select.dataset.scenario);
    });
    apply(select); // a browser may have kept a choice from before a reload
  }

  for (const button of all(".legend button")) {
    button.addEventListener("click", () => {
      const { scenario, method } = button.dataset;
      const key = `${scenario}/${data.comparison.methods[Number(method)]}`;
      const on = hidden.delete(key);
      if (!on) hidden.add(key);
      for (const twin of all(`.legend button[data-scenario="${scenario}"][data-method="${method}"]`)) {
        twin.setAttribute("aria-pressed", String(on));
      }
      redraw(scenario);
    });
  }

  dark.addEventListener("change", () => redraw());
  narrow.addEventListener("change", () => redraw());
  redraw();
  document.documentElement.dataset.ready = "true";
})();
