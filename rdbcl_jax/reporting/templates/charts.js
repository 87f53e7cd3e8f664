// Draws every figure.chart from the numbers in it. Each section has a smoothing and an axis of its
// own; its charts share the cursor, so that one step is read in all of them.
(() => {
  const shown = new Map();  // figure → its uPlot
  const colour = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const short = v => v && Math.abs(v) < 1e-3 ? v.toExponential() : v.toString();
  const number = v => v == null ? "–" : short(Object.is(v, -0) ? 0 : +v.toPrecision(3)).replaceAll("-", "−");

  // mean over up to 2·half + 1 values: symmetric at the start, so that the first stays as it is
  function smoothed(y, half) {
    return y.map((value, i) => {
      if (value == null) return null;
      let sum = 0, n = 0;
      const reach = Math.min(half, i);
      for (let k = i - reach; k <= Math.min(i + reach, y.length - 1); k++)
        if (y[k] != null) { sum += y[k]; n++; }
      return sum / n;
    });
  }

  function build(figure, width) {
    const data = JSON.parse(figure.querySelector("script").textContent);
    const section = figure.closest("section"), share = section.querySelector(".smooth")?.value ?? 7;
    const values = data.lines.flatMap(line => line.y).filter(v => v != null);
    const log = (data.log || section.querySelector(".log")?.checked) && values.some(v => v > 0);
    const columns = [data.x], series = [{}], firm = [];
    const add = (line, y, options) => {
      const all = new Array(data.x.length).fill(null);
      y.forEach((v, i) => all[line.first + i] = log && v <= 0 ? null : v);
      columns.push(all);
      series.push({ stroke: line.colour, spanGaps: true, points: { show: false }, ...options });
    };
    for (const line of data.lines) {
      const half = line.points || line.y.length <= 15 ? 0 : Math.round(line.y.length * share / 100);
      const single = line.y.filter(v => v != null).length < 2;
      if (half) add(line, line.y, { alpha: 0.45, width: 0.7 });
      firm[columns.length] = line;
      const dots = { show: true, size: 5, fill: line.points ? colour("ink") : line.colour };
      add(line, half ? smoothed(line.y, half) : line.y, line.points
        ? { stroke: colour("ink"), paths: () => null, points: { ...dots, size: 7 } }
        : { width: line.faint ? 0.8 : 1.8, alpha: line.faint ? 0.5 : 1, points: single ? dots : { show: false } });
    }
    const font = "12px system-ui, sans-serif", muted = colour("muted");
    const range = (u, low, high) => {
      if (log) return uPlot.rangeLog(low ?? 1, high ?? 10, 10, true);
      [low, high] = data.limits ? [Math.min(low, data.limits[0]), Math.max(high, data.limits[1])] : [low ?? 0, high ?? 1];
      if (data.top != null) high = Math.min(high, data.top);
      const pad = (high - low) * 0.05 || Math.abs(high) * 0.05 || 0.05;
      return [low - (low < 0 || low > pad ? pad : low), high + pad];
    };
    const out = figure.querySelector("output");
    const read = u => {
      const i = u.cursor.idx;
      const words = i == null ? [] : firm.flatMap((line, k) => columns[k][i] == null ? [] : [`${line.label} ${number(columns[k][i])}`]);
      out.textContent = words.length ? `${data.name} ${number(data.x[i])}: ${words.join(", ")}` : "";
    };
    shown.get(figure)?.destroy();
    shown.set(figure, new uPlot({
      width, height: Math.round(Math.min(220, Math.max(150, width * 0.55))),
      legend: { show: false },
      cursor: { y: false, sync: { key: section.id || "page" }, points: { size: 7 } },
      scales: { x: { time: false, range: (u, low, high) => low == null || high > low ? [low, high] : [low - 1, low + 1] },
                y: { distr: log ? 3 : 1, range } },
      axes: [
        { stroke: muted, font, size: 28, grid: { show: false }, ticks: { show: false }, values: (u, v) => v.map(x => Number.isInteger(x) ? number(x) : "") },
        { stroke: muted, font, size: 52, grid: { stroke: colour("grid"), width: 1 }, ticks: { show: false }, values: (u, v) => v.map(x => x == null ? "" : number(x)) },
      ],
      series, hooks: { setCursor: [read] },
    }, columns, figure.querySelector(".plot")));
  }

  const again = figures => figures.forEach(figure => figure.clientWidth && build(figure, figure.clientWidth));
  const widths = new ResizeObserver(entries => {
    for (const { target, contentRect } of entries) {
      const width = Math.floor(contentRect.width);
      if (width && shown.get(target)?.width !== width) build(target, width);
    }
  });
  const figures = [...document.querySelectorAll("figure.chart")];
  figures.forEach(figure => widths.observe(figure));
  document.querySelectorAll("section").forEach(section =>
    section.querySelectorAll(".smooth, .log").forEach(input =>
      input.addEventListener("input", () => again([...section.querySelectorAll("figure.chart")]))));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => again(figures));
})();
