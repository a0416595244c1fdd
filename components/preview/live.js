// Draws the numbers of a moved slider at once, past the page's own events: those gather the whole form first.
const map = () => document.querySelector('#preview-map .chart-plot');
const bars = () => document.querySelector('#preview-bars .chart-plot');
let busy = false;
let next = null;

function keyOf(node) {
  for (let one = node; one && one !== document.body; one = one.parentElement) {
    if (one.id && FIELDS[one.id]) return FIELDS[one.id];
  }
  return null;
}

function draw(plot, change) {
  if (!plot || !plot.data || !change) return;
  const traces = change.keys.map((_, number) => number).filter((number) => plot.data[number]);
  if (traces.length !== change.keys.length) return;
  Plotly.restyle(plot, change.update, traces);
}

async function send() {
  if (busy || !next) return;
  const [key, value] = next;
  next = null;
  busy = true;
  let answer = null;
  try {
    answer = await server.move({token: (props.value || {}).token || '', key, value});
  } catch (error) {
    // the page's own event follows and says what is wrong
  }
  busy = false;
  send(); // the server works on the next one while this one is drawn
  // an older answer is worth showing while the slider still moves
  if (answer && answer.map) {
    draw(map(), answer.map);
    draw(bars(), answer.bars);
  }
}

// the page's own events gather the whole form, so they follow once a field rests, is let go or is left
const REST = 350;
const AT_ONCE = 30;
const NUMBERS = 'input[type="range"], input[type="number"]';
let resting = null;
let moved = false;

function rest() {
  forget();
  trigger('rest');
}

// a button that reads the form itself, or puts other numbers in it: a number that came after it would undo it
const TAKING = '#merge-preset, #merge-seed .custom-button, #apply-yaml-button, #merge-reuse';

function takesForm(target) {
  return Boolean(target && target.closest && target.closest(TAKING));
}

function forget() {
  clearTimeout(resting);
  moved = false;
}

function restIn(time) {
  clearTimeout(resting);
  resting = setTimeout(rest, time);
}

function fieldOf(event) {
  const field = event.target;
  return field && field.matches && field.matches(NUMBERS) ? keyOf(field) : null;
}

function onMove(event) {
  const field = event.target, key = fieldOf(event);
  if (!key) return;
  moved = true;
  clearTimeout(resting);
  // a slider that is held tells by a change when it is let go; some browsers call it active even then
  if (event.type === 'change' || field.type !== 'range' || !field.matches(':active')) restIn(REST);
  if (event.type !== 'input' || !map() || !map().offsetParent) return;
  next = [key, field.value === '' ? null : Number(field.value)]; // nothing stands for the value left alone
  send();
}

document.addEventListener('input', onMove, true);
document.addEventListener('change', onMove, true);
for (const end of ['pointerup', 'pointercancel']) {
  document.addEventListener(end, () => { if (moved) restIn(AT_ONCE); }, true);
}
document.addEventListener('focusout', (event) => {
  // left for such a button: time for the click
  if (moved && fieldOf(event)) restIn(takesForm(event.relatedTarget) ? REST : AT_ONCE);
}, true);
// what a click does, such as to merge, comes after the number: a tap, or a key, clicks as soon as the field is left
document.addEventListener('click', (event) => {
  if (!moved || fieldOf(event)) return;
  if (takesForm(event.target)) forget();
  else rest();
}, true);

// what is drawn belongs to an older recipe; said only where that lasts
const PATIENCE = 250;
const UNCHANGED = 600;
let waiting = null;
let followed = false;
let changes = 0;

function mark(stale) {
  const part = document.querySelector('#preview');
  if (!part) return;
  part.classList.toggle('pv-stale', stale);
  part.querySelector('.pv-updating').textContent = stale ? 'updating…' : '';
}

function wait() {
  if (waiting === null) waiting = setTimeout(() => mark(true), PATIENCE);
}

function settle() {
  clearTimeout(waiting);
  waiting = null;
  followed = false;
  mark(false);
}

window.addEventListener('mergescope-changing', () => { changes += 1; wait(); });
window.addEventListener('mergescope-followed', () => { followed = true; wait(); });
// a change that left the recipe as it was has no picture to wait for
window.addEventListener('mergescope-changed', () => {
  const last = changes;
  setTimeout(() => { if (!followed && changes === last) settle(); }, UNCHANGED);
});
watch('value', settle);
