let Plotly = window.Plotly;
const figure = element.querySelector('.chart');
const plot = element.querySelector('.chart-plot');
const title = element.querySelector('.chart-title');
const note = element.querySelector('.chart-note');
const nothing = element.querySelector('.chart-empty');
const save = element.querySelector('.chart-png');
const NARROW = 640;
const BELOW = 26;
const FAR_BELOW = 78;
const SLIVER = 0.2;
const noFigure = nothing.textContent;
let drawn = false;
let wired = false;
let picked = null;
let brushed = [];

const variable = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();
const isNarrow = () => figure.clientWidth < NARROW;
const brushable = () => drawn && Boolean(props.value.brush);
const heatmaps = (data) => data.filter((trace) => trace.type === 'heatmap');
let narrow = isNarrow();

function box(trace, [top, bottom, left, right], more) {
  const line = {color: variable('--chart-outline'), width: 2.5};
  return [{color: variable('--chart-halo'), width: 6}, Object.assign(line, more)].map((drawn) => ({
    type: 'rect', xref: trace.xaxis || 'x', yref: trace.yaxis || 'y',
    x0: left - 0.5, x1: right + 0.5, y0: top - 0.5, y1: bottom + 0.5, line: drawn,
  }));
}

function outline(data, isBrushed) {
  const shapes = [];
  for (const trace of heatmaps(data)) {
    const fits = ([, bottom, , right]) => bottom < trace.z.length && right < trace.x.length;
    if (isBrushed) shapes.push(...brushed.filter(fits).flatMap((cells) => box(trace, cells, {dash: '6px,3px'})));
    if (picked && trace.z[picked[0]] !== undefined) {
      shapes.push(...box(trace, [picked[0], picked[0], picked[1], picked[1]]));
    }
  }
  return shapes;
}

function themed(value) {
  const ink = variable('--body-text-color');
  const quiet = variable('--body-text-color-subdued');
  const line = variable('--border-color-primary');
  const layout = Object.assign({}, value.layout, narrow ? value.narrow : {});
  Object.assign(layout, {
    autosize: true,
    paper_bgcolor: 'rgba(0,0,0,0)',
    plot_bgcolor: 'rgba(0,0,0,0)',
    font: Object.assign({}, layout.font, {color: ink, family: variable('--font')}),
    hoverlabel: Object.assign({}, layout.hoverlabel, {
      bgcolor: variable('--background-fill-primary'), bordercolor: line, font: {color: ink},
    }),
    shapes: (layout.shapes || []).map((shape) => Object.assign({line: {color: quiet, dash: 'dot', width: 1.5}}, shape))
      .concat(outline(value.data, value.brush)),
  });
  if (value.brush) {
    // under a finger a drag must go on scrolling the page; names of rows and columns can be tapped
    layout.dragmode = matchMedia('(pointer: coarse)').matches ? false : 'select';
    layout.selectdirection = 'd';
    layout.newselection = {line: {color: variable('--chart-outline'), width: 2, dash: 'solid'}};
  }
  for (const key of Object.keys(layout)) {
    if (!/^[xy]axis\d*$/.test(key)) continue;
    layout[key] = Object.assign({gridcolor: line, zerolinecolor: line, linecolor: line}, layout[key]);
    layout[key].tickfont = Object.assign({color: quiet}, layout[key].tickfont);
  }
  return layout;
}

function draw() {
  if (!Plotly) {
    document.querySelector('script[src*="plotly.min.js"]').addEventListener('load', () => {
      Plotly = window.Plotly;
      draw();
    }, {once: true});
    return;
  }
  const value = props.value;
  drawn = Boolean(value && value.data);
  figure.classList.toggle('has-figure', drawn);
  save.hidden = !drawn;
  title.textContent = drawn ? value.title : '';
  note.textContent = drawn ? value.note : '';
  nothing.textContent = (value && value.empty) || noFigure;
  plot.setAttribute('aria-label', drawn ? value.alt : 'empty chart');
  if (!drawn) {
    if (wired) Plotly.purge(plot);
    wired = false;
    return;
  }
  narrow = isNarrow();
  plot.style.height = themed(value).height + 'px';
  const config = {displayModeBar: false, showSendToCloud: false, doubleClick: 'reset'};
  Plotly.react(plot, value.data, themed(value), config).then(() => {
    if (wired) return;
    wired = true;
    plot.on('plotly_click', (event) => {
      const point = event.points && event.points[0];
      if (!point || !Array.isArray(point.pointIndex)) return;
      picked = point.pointIndex;
      Plotly.relayout(plot, {shapes: themed(props.value).shapes});
      trigger('select', {index: picked, value: point.z === undefined ? null : point.z});
    });
    plot.on('plotly_selected', (event) => {
      const cells = brushable() && event && event.range ? inside(event.range) : null;
      if (cells) brush([cells]);
    });
  });
}

function show() {
  picked = props.value ? props.value.picked : null;
  if (props.value && props.value.brushed) brushed = props.value.brushed;
  draw();
}

function outlineBrushed() {
  Plotly.relayout(plot, {shapes: themed(props.value).shapes, selections: []});
}

function brush(cells) {
  brushed = cells;
  outlineBrushed();
  trigger('brush', {cells: cells.length ? cells[0] : null});
}

function snapped(ends, count) {
  const [from, to] = [Math.min(...ends), Math.max(...ends)];
  const within = (place) => Math.min(count - 1, Math.max(0, Math.round(place)));
  const [first, last] = [within(from + SLIVER), within(to - SLIVER)];
  return first <= last ? [first, last] : [within((from + to) / 2), within((from + to) / 2)];
}

function inside(range) {
  const across = Object.keys(range).find((key) => key.startsWith('x'));
  const trace = heatmaps(props.value.data).find((one) => (one.xaxis || 'x') === across);
  if (!trace) return null;
  return [...snapped(range[trace.yaxis || 'y'], trace.z.length), ...snapped(range[across], trace.x.length)];
}

// the whole row or column whose name, beside or below a map, is at the pointer
function named(event) {
  const frame = plot.getBoundingClientRect();
  for (const trace of heatmaps(props.value.data)) {
    const across = plot._fullLayout['xaxis' + (trace.xaxis || 'x').slice(1)];
    const down = plot._fullLayout['yaxis' + (trace.yaxis || 'y').slice(1)];
    const x = event.clientX - frame.left - across._offset;
    const y = event.clientY - frame.top - down._offset;
    const [lastRow, lastColumn] = [trace.z.length - 1, trace.x.length - 1];
    if (x < 0 && y >= 0 && y < down._length && down.showticklabels) {
      const row = snapped([down.p2c(y)], trace.z.length)[0];
      return [row, row, 0, lastColumn];
    }
    const below = y - down._length;
    const leaning = Boolean(across.tickangle);
    const under = leaning ? x + below / Math.tan(Math.abs(across.tickangle) * Math.PI / 180) : x;
    if (below >= 0 && below < (leaning ? FAR_BELOW : BELOW) && under >= 0 && under < across._length) {
      const column = snapped([across.p2c(under)], trace.x.length)[0];
      return [0, lastRow, column, column];
    }
  }
  return null;
}

plot.addEventListener('click', (event) => {
  // plotly sends clicks of its own after a touch, which are at no place
  const cells = brushable() && event.isTrusted && named(event);
  if (cells) brush([cells]);
});
plot.addEventListener('mousemove', (event) => {
  plot.style.cursor = brushable() && named(event) ? 'pointer' : '';
});
document.addEventListener('keydown', (event) => {
  if (event.key !== 'Escape' || event.defaultPrevented || !brushable() || !brushed.length) return;
  if (plot.offsetParent && !event.target.closest('input, textarea, [role="listbox"], [contenteditable]')) brush([]);
});

save.addEventListener('click', () => {
  const value = props.value;
  if (!value) return;
  const layout = themed(value);
  layout.paper_bgcolor = variable('--background-fill-primary');
  layout.margin = Object.assign({}, layout.margin, {t: layout.margin.t + 56, l: 24, r: 24, b: layout.margin.b + 16});
  layout.height += 72;
  if (layout.legend && layout.legend.yref === 'container') {
    layout.legend = Object.assign({}, layout.legend, {y: layout.legend.y - 56 / layout.height}); // below the title
  }
  layout.title = {text: value.title.replace(/</g, '&lt;'), x: 0, xref: 'paper', y: 1, yref: 'container',
    yanchor: 'top', pad: {t: 24}, font: {size: 15, weight: 600}};
  Plotly.downloadImage({data: value.data, layout}, {
    format: 'png', filename: figure.dataset.file, width: figure.clientWidth + 48, height: layout.height, scale: 2,
  });
});

watch('value', show);
watch('brushed', () => {
  brushed = props.brushed || [];
  if (brushable()) outlineBrushed();
});
watch('pointed', () => {
  if (!drawn || !(props.pointed || []).length) return;
  picked = props.pointed.slice(0, 2);
  Plotly.relayout(plot, {shapes: themed(props.value).shapes});
});
show();
new MutationObserver(() => { if (drawn) draw(); }).observe(document.body, {attributes: true, attributeFilter: ['class']});
new ResizeObserver(() => {
  if (!drawn || !plot.offsetParent) return;
  if (isNarrow() !== narrow) draw(); else Plotly.Plots.resize(plot);
}).observe(figure);
