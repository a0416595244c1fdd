// The number beside a slider: what is being typed is kept from the server until it is within the slider's limits, and
// moved to the nearer limit when the field is left; an empty field gets back the value it had.
(() => {
  const isField = (field) => field instanceof HTMLInputElement && field.matches('.head input[type="number"]');
  const fits = ({ value, min, max }) =>
    value !== "" && (min === "" || +value >= +min) && (max === "" || +value <= +max);
  const last = new WeakMap();

  document.addEventListener("focusin", ({ target }) => isField(target) && fits(target) && last.set(target, target.value));
  document.addEventListener("input", (event) => {
    const field = event.target;
    if (!isField(field)) return;
    if (fits(field)) last.set(field, field.value);
    else event.stopImmediatePropagation();
  }, true);
  document.addEventListener("change", ({ target: field }) => {
    if (!isField(field) || fits(field)) return;
    if (field.value === "") field.value = last.get(field) ?? field.min;
    else field.value = Math.min(Math.max(+field.value, +field.min), field.max === "" ? Infinity : +field.max);
    field.dispatchEvent(new Event("input", { bubbles: true }));
  }, true);
})();
