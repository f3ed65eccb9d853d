// The derivatives of TARGETS, of which rational.js has the functions.
const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const SLOPES_OF = {
  identity: () => 1, relu: (x) => (x > 0 ? 1 : 0), tanh: (x) => 1 - Math.tanh(x) ** 2, swish: (x) => sigmoid(x) * (1 + x * (1 - sigmoid(x))),
  gelu: (x) => (1 + erf(x / Math.SQRT2)) / 2 + x * Math.exp(-x * x / 2) / Math.sqrt(2 * Math.PI),
};
