const picker = element.querySelector('details.mg-picker');
const search = element.querySelector('input[type=search]');
const none = element.querySelector('.mg-none');
const now = element.querySelector('.mg-now');
const radios = [...element.querySelectorAll('input[type=radio]')];
const narrow = window.matchMedia('(max-width: 900px)');

function show() {
  const value = props.value || {};
  for (const radio of radios) {
    const label = radio.closest('label');
    const reason = (value.reasons || {})[radio.value];
    radio.checked = radio.value === value.method;
    label.classList.toggle('selected', radio.checked);
    label.classList.toggle('unfit', Boolean(reason));
    label.querySelector('.mg-reason').textContent = reason || '';
    if (radio.checked) {
      now.textContent = label.querySelector('strong').textContent;
      const list = element.querySelector('.mg-list');
      const top = label.offsetTop - list.offsetTop;
      if (top < list.scrollTop || top + label.offsetHeight > list.scrollTop + list.clientHeight) {
        list.scrollTop = Math.max(0, top - 60);
      }
    }
  }
}

function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let found = 0;
  for (const group of element.querySelectorAll('fieldset.mg-group')) {
    let here = 0;
    for (const label of group.querySelectorAll('label')) {
      const match = words.every((word) => label.dataset.words.includes(word));
      label.hidden = !match;
      here += match;
    }
    group.hidden = !here;
    found += here;
  }
  none.hidden = found > 0;
}

picker.open = !narrow.matches;
narrow.addEventListener('change', () => { picker.open = !narrow.matches; });
search.addEventListener('input', filter);
search.addEventListener('keydown', (event) => {
  if (event.key === 'Escape') { search.value = ''; filter(); }
});
element.addEventListener('change', (event) => {
  if (event.target.type !== 'radio') return;
  props.value = {...props.value, method: event.target.value};
  show();
  if (narrow.matches) picker.open = false;
  trigger('input');
});
watch('value', show);
show();
