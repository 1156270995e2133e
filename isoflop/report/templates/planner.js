"use strict";
/* The best split of a compute budget, as laws/chinchilla.py and laws/intervals.py compute it.
   `law` holds the fitted parameters and draws (E, A, B, alpha, beta), and every constant. */
const planner = (() => {
  const lossAt = ([E, A, B, alpha, beta], params, tokens) =>
    E + A * Math.exp(-alpha * Math.log(params)) + B * Math.exp(-beta * Math.log(tokens));

  /* Compute-optimal N and D when a token costs kappa N^gamma FLOPs: C = 6 M D, a = alpha / gamma. */
  function split([, A, B, alpha, beta], flops, { kappa, gamma }) {
    const a = alpha / gamma;
    const scaled = A * Math.pow(kappa / 6, a);
    const G = Math.pow((a * scaled) / (beta * B), 1 / (a + beta));
    const c = flops / 6;
    const M = G * Math.pow(c, beta / (a + beta));
    return { params: Math.pow((6 * M) / kappa, 1 / gamma), tokens: c / M };
  }

  const isDefined = ({ params, tokens }) =>
    Number.isFinite(params) && Number.isFinite(tokens) && params > 0 && tokens > 0;

  function halfEven(x) {
    const floor = Math.floor(x);
    if (x - floor !== 0.5) return Math.round(x);
    return floor % 2 === 0 ? floor : floor + 1;
  }

  /* Central interval by order statistics. */
  function quantiles(values, tails) {
    const kept = values.filter((v) => !Number.isNaN(v)).sort((x, y) => x - y);
    return tails.map((q) => kept[halfEven(q * (kept.length - 1))]);
  }

  const median = (values) => {
    const kept = [...values].sort((x, y) => x - y);
    const half = kept.length / 2;
    return kept.length % 2 ? kept[Math.floor(half)] : (kept[half - 1] + kept[half]) / 2;
  };

  function around(value, values, tails) {
    if (values.length === 0) return { value, low: value, high: value };
    const [low, high] = quantiles(values, tails);
    return { value, low: Math.min(low, value), high: Math.max(high, value) };
  }

  /* Loss of a new run: parameters, run-to-run noise and model error in quadrature on the log. */
  function predict(law, { params, tokens }) {
    const growth = (a, b) => Math.sqrt(Math.max(a, 1) * Math.max(b, 1)) * Math.max(a, b, 1);
    const grown = law.runs.map(([n, d]) => growth(params / n, tokens / d));
    const shrunk = law.runs.map(([n, d]) => growth(n / params, d / tokens));
    const reach = Math.max(Math.min(...grown), Math.min(...shrunk));
    const value = lossAt(law.theta, params, tokens);
    const losses = law.draws.length > 1 ? law.draws.map((draw) => lossAt(draw, params, tokens)) : [];
    const { low, high } = around(value, losses, law.tails);
    const model = law.model_sd * Math.pow(Math.log2(1 + reach), law.model_power);
    const below = Math.hypot(Math.log(value / low), law.model_sides[0] * model, law.noise);
    const above = Math.hypot(Math.log(high / value), law.model_sides[1] * model, law.noise);
    return { value, low: value * Math.exp(-below), high: value * Math.exp(above) };
  }

  /* N, D and loss with their intervals for a budget in FLOPs. */
  function plan(law, flops) {
    const splits = law.draws.map((draw) => split(draw, flops, law)).filter(isDefined);
    let best = split(law.theta, flops, law);
    if (!isDefined(best)) {
      const params = median(splits.map((s) => s.params));
      best = { params, tokens: flops / (law.kappa * Math.pow(params, law.gamma)) };
    }
    const ratio = (law.kappa * Math.pow(best.params, law.gamma) * best.tokens) / law.max_flops;
    return {
      params: around(best.params, splits.map((s) => s.params), law.tails),
      tokens: around(best.tokens, splits.map((s) => s.tokens), law.tails),
      loss: predict(law, best),
      ratio,
    };
  }

  return { plan };
})();
