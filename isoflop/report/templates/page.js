"use strict";
/* Binds the budget slider to the planner. */
(() => {
  const source = document.getElementById("law-data");
  if (!source) return;
  const law = JSON.parse(source.textContent);
  const slider = document.getElementById("budget");
  const put = (id, text) => { document.getElementById(id).textContent = text; };

  const short = (value) => {
    const units = [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]];
    const found = units.find(([, size]) => value >= 0.9995 * size) || ["", 1];
    return Number((value / found[1]).toPrecision(3)) + found[0];
  };
  const power = (value) => {
    const [digits, exponent] = value.toExponential(1).split("e");
    const raised = [...String(Number(exponent))].map((d) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[d] || "⁻").join("");
    return (Number(digits) === 1 ? "" : Number(digits) + "×") + "10" + raised;
  };
  const duration = (seconds) => {
    if (seconds < 59.5) return Number(seconds.toPrecision(2)) + " s";
    const whole = Math.round(seconds);
    const two = (high, low, many, few) => high + many + (low ? " " + low + few : "");
    if (whole < 3600) return two(Math.floor(whole / 60), whole % 60, " min", " s");
    if (whole < 172800) return two(Math.floor(whole / 3600), Math.floor((whole % 3600) / 60), " h", " min");
    return Number((whole / 86400).toPrecision(3)) + " days";
  };
  const range = ({ low, high }, words) => words(low) + " to " + words(high);
  const nats = (value) => value.toFixed(3);

  function show() {
    const { low, high } = law.budget;
    const flops = low * Math.pow(high / low, slider.value / law.budget.steps);
    const found = planner.plan(law, flops);
    const seconds = law.flops_per_second ? "about " + duration(flops / law.flops_per_second) : "";
    put("budget-flops", power(flops) + " FLOP");
    put("budget-seconds", seconds);
    put("plan-params", short(found.params.value));
    put("plan-params-range", range(found.params, short));
    put("plan-tokens", short(found.tokens.value));
    put("plan-tokens-range", range(found.tokens, short));
    put("plan-loss", nats(found.loss.value));
    put("plan-loss-range", range(found.loss, nats));
    const ratio = found.ratio;
    put("plan-reach", ratio > 1.005
      ? Number(ratio.toPrecision(2)) + " times the largest fitted compute"
      : "within the fitted compute");
    slider.setAttribute("aria-valuetext", power(flops) + " FLOP " + seconds);
  }

  slider.addEventListener("input", show);
  slider.disabled = false;
  show();
})();
