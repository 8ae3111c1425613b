// Numbers as text.

function written(value, unit) {
  if (value == null) return "–";
  if (unit === "share") return (100 * value).toFixed(1) + " %";
  const size = Math.abs(value);
  const text =
    size >= 1000 ? Math.round(value).toLocaleString("en")
    : size >= 100 ? value.toFixed(0)
    : size >= 1 || size === 0 ? String(Number(value.toFixed(2)))
    : size >= 0.001 ? String(Number(value.toPrecision(3)))
    : value.toExponential(1);
  return unit === "s" ? text + " s" : text;
}
