const Plotly = window.Plotly;
const figure = element.querySelector('.chart');
const plot = element.querySelector('.chart-plot');
const title = element.querySelector('.chart-title');
const note = element.querySelector('.chart-note');
const nothing = element.querySelector('.chart-empty');
const save = element.querySelector('.chart-png');
const NARROW = 640;
const noFigure = nothing.textContent;
let drawn = false;
let wired = false;
let picked = null;

const variable = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();
const isNarrow = () => figure.clientWidth < NARROW;
let narrow = isNarrow();

function outline(data) {
  if (!picked) return [];
  const [row, column] = picked;
  const maps = data.filter((trace) => trace.type === 'heatmap' && trace.z[row] !== undefined);
  const lines = [{color: variable('--chart-halo'), width: 6}, {color: variable('--chart-outline'), width: 2.5}];
  return maps.flatMap((trace) => lines.map((line) => ({
    type: 'rect', xref: trace.xaxis || 'x', yref: trace.yaxis || 'y',
    x0: column - 0.5, x1: column + 0.5, y0: row - 0.5, y1: row + 0.5, line,
  })));
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
      .concat(outline(value.data)),
  });
  for (const key of Object.keys(layout)) {
    if (!/^[xy]axis\d*$/.test(key)) continue;
    layout[key] = Object.assign({gridcolor: line, zerolinecolor: line, linecolor: line}, layout[key]);
    layout[key].tickfont = Object.assign({color: quiet}, layout[key].tickfont);
  }
  return layout;
}

function draw() {
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
  });
}

function show() {
  picked = props.value ? props.value.picked : null;
  draw();
}

save.addEventListener('click', () => {
  const value = props.value;
  if (!value) return;
  const layout = themed(value);
  layout.paper_bgcolor = variable('--background-fill-primary');
  layout.margin = Object.assign({}, layout.margin, {t: layout.margin.t + 56, l: 24, r: 24, b: layout.margin.b + 16});
  layout.height += 72;
  layout.title = {text: value.title.replace(/</g, '&lt;'), x: 0, xref: 'paper', y: 1, yref: 'container',
    yanchor: 'top', pad: {t: 24}, font: {size: 15, weight: 600}};
  Plotly.downloadImage({data: value.data, layout}, {
    format: 'png', filename: props.file, width: figure.clientWidth + 48, height: layout.height, scale: 2,
  });
});

watch('value', show);
show();
new MutationObserver(() => { if (drawn) draw(); }).observe(document.body, {attributes: true, attributeFilter: ['class']});
new ResizeObserver(() => {
  if (!drawn || !plot.offsetParent) return;
  if (isNarrow() !== narrow) draw(); else Plotly.Plots.resize(plot);
}).observe(figure);
