"""Names the loss of the registry, or the weighted pair, that the observed values are.

Weights are least squares of values on columns of losses, up to a function of the teacher alone:
such a function, an entropy or a constant, is the same in all rows of one teacher. Centred values
show the student's part only.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from jaxdiv.audit.findings import Finding, finding
from jaxdiv.audit.formulas import (
    POPULAR,
    SAME,
    TEMPERATURES,
    Candidate,
    Family,
    log_softmax,
    plain_candidates,
    right,
)
from jaxdiv.audit.inputs import ProbeRows
from jaxdiv.divergences.registry import ENTRIES

_NOISE = 6e-7  # of a value of weight 1: float32 sums of a few nats
_LARGEST = 3e4  # a weight over the values' size; more means that two parts cancel


@dataclass(frozen=True)
class Observed:
    """Values [K] of the audited loss on rows of logits.

    Attributes:
      tolerance: of the centred values' size, what float32 leaves of a right loss.
    """

    values: np.ndarray
    rows: ProbeRows
    tolerance: float = 3e-5

    @functools.cached_property
    def centred(self) -> np.ndarray:
        return self.centre(self.values)

    @property
    def size(self) -> float:
        return float(np.sqrt(np.mean(self.values**2))) + 1e-30

    def centre(self, values: np.ndarray) -> np.ndarray:
        """Returns [..., K] less the mean of each teacher's rows."""
        member = (self.rows.groups[:, None] == np.unique(self.rows.groups)).astype(np.float64)
        with np.errstate(all="ignore"):
            return values - (values @ member / member.sum(0)) @ member.T

    def allowed(self, weight: np.ndarray) -> np.ndarray:
        """Returns the relative residual that float32 explains."""
        spread = max(np.sqrt(np.mean(self.centred**2)), 1e-30)
        return np.maximum(self.tolerance, _NOISE * np.abs(weight) / spread)

    def is_nothing(self, extra: np.ndarray) -> bool:
        """Returns whether a difference of values is rounding alone."""
        return float(np.max(np.abs(extra))) < 2e-4 * self.size

    def singles(self, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns weights and relative residuals of each column [..., K]; inf where undefined."""
        x, y = self.centre(columns), self.centred
        with np.errstate(all="ignore"):
            power = (x * x).sum(-1)
            weights = (x * y).sum(-1) / power
            residuals = np.sqrt(((y - weights[..., None] * x) ** 2).sum(-1) / (y @ y))
        return weights, np.where(~np.isfinite(residuals) | (power < 1e-18), np.inf, residuals)

    def weigh(self, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the least-squares weights [n] of columns [n, K], and the relative residuals."""
        x, y = self.centre(columns), self.centred
        size = np.linalg.norm(y)
        if not np.all(np.isfinite(x)) or size == 0:
            return np.full(len(x), np.nan), np.full(len(y), 1e3)
        weights = np.linalg.lstsq(x.T, y, rcond=1e-10)[0]
        return weights, (y - weights @ x) / size


@dataclass(frozen=True)
class Fit:
    """An explanation of a row's value: the weighted sum of one or two losses.

    Attributes:
      parts: losses and their weights, the factor of T included in the weights.
      temperatures: of teacher and student.
      family: what the losses share: they are right, or wrong in one way.
      mistakes: codes and details of what is wrong.
      arguments: from rows to what the function takes in the place of logits.
      classes: how many classes exist, if the loss leaves the others out.
      extra: the code of a note if a function of the teacher is added, else empty.
      loose: whether it fits only to the digits of a half-precision type.
    """

    parts: tuple[tuple[Candidate, float], ...]
    temperatures: tuple[float, float]
    family: Family
    mistakes: tuple[tuple[str, dict], ...] = ()
    extra: str = ""
    loose: bool = False
    arguments: Callable[[ProbeRows], ProbeRows] = lambda rows: rows
    classes: int | None = None

    def predict(self, rows: ProbeRows) -> np.ndarray:
        """Returns the values of rows, [K]."""
        forms = {candidate: self.family.formulas[candidate] for candidate, _ in self.parts}
        family, temperatures = self.family._replace(formulas=forms), np.array(self.temperatures)
        columns = family.columns(rows.first_classes(self.classes), temperatures[:, None])[:, 0]
        return np.array([weight for _, weight in self.parts]) @ columns

    @property
    def temperature(self) -> float:
        """The temperature of both sides, or the one that isn't 1."""
        return max(self.temperatures, key=lambda t: abs(math.log(t)))

    @property
    def is_right(self) -> bool:
        """True if the registry's own loss has its values and gradients anywhere."""
        tempered = any(candidate.at_temperature for candidate, _ in self.parts)
        return not (self.mistakes or self.loose or self.classes or tempered)

    @property
    def is_odd(self) -> bool:
        """True if another loss explains better.

        Its parts cancel, one weighs next to nothing, or one is at T where T is 1.
        """
        weights = [abs(weight) for candidate, weight in self.parts if candidate.is_loss]
        return bool(
            (weights and min(weights) < 1e-2 * max(weights))
            or max(abs(weight) for _, weight in self.parts) > _LARGEST
            or (len(self.parts) > 1 and self.extra == "teacher_term")
            or (self.temperature == 1 and any(loss.at_temperature for loss, _ in self.parts))
        )

    def is_explained(self, classes: int) -> bool:
        """Returns whether the weights sum to 1, or 1/V, with the factor of T or without."""
        losses = [(c, w) for c, w in self.parts if c.is_loss] or list(self.parts)
        allowed = losses[0][0].factors if len(losses) == 1 else (1.0,)
        units = [unit * f for f in allowed for unit in (1, -1, 1 / classes, -1 / classes)]
        for t in self.temperatures:
            totals = [sum(w / t**c.power for c, w in losses)]
            totals += [sum(w for _, w in losses) / t**power for power in (0, 1, 2)]
            if any(is_near(total, unit) for total in totals for unit in units):
                return True
            if all(any(is_near(w / t**k, 1) for k in (c.power, 0, 2)) for c, w in losses):
                return True
        return False


def is_near(value: float, target: float) -> bool:
    return math.isclose(value, target, rel_tol=1e-3)


def exact_loss(observed: Observed) -> Fit | None:
    """Returns a loss with its usual parameters, or a popular pair, that explains everything.

    Nothing is left over and no factor is unexplained, so that no other loss has to be tried.
    """
    plain, classes = plain_candidates(), observed.rows.student.shape[-1]
    popular = plain[: len(POPULAR)]
    labels = next(c for c in popular if c.entry.target == "labels")
    partners = right([*popular, replace(labels, at_temperature=True), Candidate("z_loss")])
    fits = [
        fit
        for fit in (*single_fits(right(plain), observed), *_pair_fits(partners, observed, 6))
        if not fit.extra and not fit.is_odd and fit.is_explained(classes)
    ]
    # Rényi's is twice Bhattacharyya's: the one whose weight is right is meant.
    weighted = (f for f in fits if all(is_near(w, f.temperature**c.power) for c, w in f.parts))
    return next(weighted, fits[0] if fits else None)


def any_loss(observed: Observed) -> Fit | None:
    """Returns the plainest single loss or pair of the registry that explains the values."""
    plain, classes = plain_candidates(), observed.rows.student.shape[-1]
    varied = [variant for candidate in plain for variant in candidate.variants(classes)]

    def doubts(fit):
        changed = sum(v != c.entry.defaults[k] for c, _ in fit.parts for k, v in c.parameters)
        text = "".join(candidate.text for candidate, _ in fit.parts)
        unclear = not fit.is_explained(classes)
        return bool(fit.extra), unclear, len(fit.parts), changed, fit.temperature != 1, len(text)

    for stage in (
        single_fits(right(plain), observed),
        _refined_fits(plain, observed, free=False),
        single_fits(right(varied), observed),
        _refined_fits(plain + varied, observed, free=True),
        _pair_fits(right(plain + varied), observed, 30),
    ):
        fits = [fit for fit in stage if not fit.is_odd]
        if fits:
            return min(fits, key=doubts)
    return None


def close_loss(observed: Observed) -> Fit | None:
    """Returns a popular loss that explains values in steps, as after a cast, to two digits."""
    rough, fits = replace(observed, tolerance=2e-2), []
    for fit in single_fits(right(plain_candidates()[: len(POPULAR)]), rough):
        ((candidate, weight),) = fit.parts
        factor = fit.temperature**candidate.power
        left = observed.values - fit.predict(observed.rows)
        if math.isclose(weight, factor, rel_tol=2e-2) and np.abs(left).max() < 0.05 * observed.size:
            residual = np.linalg.norm(observed.centre(left)) / np.linalg.norm(observed.centred)
            exact = replace(fit, parts=((candidate, factor),), loose=True, extra="")
            fits.append((residual > 5e-3, fit.temperature != 1, residual, exact))
    return min(fits, key=lambda each: each[:3])[-1] if fits else None


def single_fits(
    family: Family, observed: Observed, temperatures: np.ndarray = SAME
) -> Iterator[Fit]:
    """Yields each loss of a family that explains the values alone; temperatures are [2, n]."""
    weights, residuals = observed.singles(family.columns(observed.rows, temperatures))
    losses = list(family.formulas)
    for i, k in np.argwhere(residuals < observed.allowed(weights)):
        if not (losses[i].fixed and k):  # whose values are one at all temperatures
            yield _fit(family, ((losses[i], float(weights[i, k])),), temperatures[:, k], observed)


def _pair_fits(family: Family, observed: Observed, count: int) -> Iterator[Fit]:
    """Yields pairs at one temperature that explain the values, the best `count` tried at each."""
    losses, tables = list(family.formulas), family.columns(observed.rows, SAME)
    i, j = np.triu_indices(len(losses), 1)
    for n, temperatures in enumerate(SAME.T):
        with np.errstate(all="ignore"):
            x, y = observed.centre(tables[:, n]), observed.centred
            x, y = x / np.linalg.norm(x, axis=-1, keepdims=True), y / np.linalg.norm(y)
            overlap, right_side = (x @ x.T)[i, j], x @ y
            first = (right_side[i] - overlap * right_side[j]) / (1 - overlap**2)
            second = (right_side[j] - overlap * right_side[i]) / (1 - overlap**2)
            residuals = 1 - first * right_side[i] - second * right_side[j]
            usable = (first * second > 0) & (1 - overlap**2 > 1e-9) & np.isfinite(residuals)
        order = np.argsort(np.where(usable, residuals, np.inf))[:count]
        for k in order[usable[order]]:
            weights, residual = observed.weigh(tables[[i[k], j[k]], n])
            if np.linalg.norm(residual) < observed.allowed(np.sum(np.abs(weights))):
                parts = zip((losses[i[k]], losses[j[k]]), map(float, weights), strict=True)
                yield _fit(family, tuple(parts), temperatures, observed)


def _refined_fits(losses: list[Candidate], observed: Observed, free: bool) -> Iterator[Fit]:
    """Yields near losses with their temperature, and parameters if `free`, adjusted."""
    residuals = observed.singles(right(losses).columns(observed.rows, SAME))[1]
    best = {}
    for i in np.argsort(residuals.min(-1)):
        if residuals[i].min() < 0.2 and not (free and not losses[i].free):
            best.setdefault(losses[i].name, (losses[i], TEMPERATURES[np.argmin(residuals[i])]))
    for candidate, t in best.values():
        fit = _refine(candidate, t, candidate.free if free else [], observed)
        # A free temperature and parameter explain much: here nothing may be left over.
        if fit and not fit.extra and fit.is_explained(observed.rows.student.shape[-1]):
            yield fit


def _refine(candidate: Candidate, t: float, keys: list[str], observed: Observed) -> Fit | None:
    """Returns the loss at the temperature and parameters that explain the values, if any do.

    The weight is solved for at each step, so that the search is over the parameters alone. They are
    rounded as far as the fit allows.
    """
    from scipy.optimize import least_squares  # loaded when needed: `import jaxdiv` needs JAX alone

    parameters = candidate.entry.parameters
    bounds = [(0.05, 100.0), *((parameters[k].low, min(parameters[k].high, 50.0)) for k in keys)]
    low, high = np.array(bounds).T

    def family(point):
        return right([candidate.with_values(dict(zip(keys, map(float, point[1:]), strict=True)))])

    def weigh(point):
        temperatures = np.full((2, 1), point[0])
        return observed.weigh(family(point).columns(observed.rows, temperatures)[:, 0])

    margin = 1e-3 * np.minimum(high - low, 1)
    start = [t, *(dict(candidate.parameters)[key] for key in keys)]
    options = {"bounds": (low, high), "diff_step": 1e-5, "max_nfev": 20, "xtol": 1e-9}
    start = np.clip(start, low + margin, high - margin)
    point = least_squares(lambda x: weigh(x)[1], start, **options).x
    (weight,), residual = weigh(point)
    size, limit = np.linalg.norm(residual), observed.allowed(weight)
    if not size < limit:
        return None
    for i, value in enumerate(point):
        for plainer in _roundings(float(value))[:-1]:
            trial = np.array([*point[:i], plainer, *point[i + 1 :]])
            if not low[i] < plainer < high[i]:
                continue
            (other,), residual = weigh(trial)
            if np.linalg.norm(residual) < max(1.5 * size, 0.5 * limit):
                point, weight, size = trial, other, np.linalg.norm(residual)
                break
    edge = 4e-3 * np.minimum(high - low, 5)
    if not np.all((low + edge < point) & (point < high - edge)):
        return None
    loss = family(point)
    return _fit(loss, ((*loss.formulas, float(weight)),), np.full(2, point[0]), observed)


def _fit(family: Family, parts: tuple, temperatures: np.ndarray, observed: Observed) -> Fit:
    """Returns the fit of losses, with a note's code if a function of the teacher is added."""
    fit = Fit(parts, tuple(map(float, temperatures)), family)
    if all(candidate.fixed for candidate, _ in parts):
        fit = replace(fit, temperatures=(1.0, 1.0))
    extra = observed.values - fit.predict(observed.rows)
    if observed.is_nothing(extra):
        return fit
    by_teacher = extra - observed.centre(extra)
    log_p = log_softmax(observed.rows.teacher / fit.temperature)
    entropy = -(np.exp(log_p) * log_p).sum(-1)
    line = np.polyval(np.polyfit(entropy, by_teacher, 1), entropy)
    is_entropy = np.abs(line - by_teacher).max() < 1e-3 * np.ptp(by_teacher)
    return replace(fit, extra="entropy_dropped" if is_entropy else "teacher_term")


def _roundings(value: float) -> list[float]:
    """Returns plainer numbers near one, the plainest first, itself last."""
    if value == 0 or not math.isfinite(value):
        return [value]
    size = math.floor(math.log10(abs(value)))
    return [round(value, digits - size) for digits in (0, 1, 2, 3)] + [value]


def _plain(value, tolerance=3e-4):
    """Returns the plainest number within a relative tolerance."""
    return next(one for one in _roundings(value) if math.isclose(one, value, rel_tol=tolerance))


def normalize_weights(fit: Fit, unit: float) -> tuple[str, float, list[Finding]]:
    """Divides the weights by `unit`, the reduction's, and by the factor of T that each should have.

    The first explanation of the weights that fits is reported: each has its own power of T, all
    have one, or the labels have T² too. If none fits, the scale is a note.

    Returns:
      text that `jaxdiv.get` takes, its factor, and findings on both.
    """
    sign = -1 if sum(weight for _, weight in fit.parts) < 0 else 1
    weights = {candidate: sign * weight / unit for candidate, weight in fit.parts}
    losses = [candidate for candidate in weights if candidate.is_loss] or list(weights)
    tempered = [candidate for candidate in losses if not candidate.fixed]
    t, single = fit.temperature, len(weights) == 1
    ways = {"right": {c: 0 if c.fixed else c.power for c in weights}}  # powers of T
    if t != 1 and tempered:
        ways |= {k: {c: 0 if c.fixed else k for c in weights} for k in (0, 1, 2)}
        ways["labels"] = {c: 2 if c.fixed and c.is_loss else k for c, k in ways["right"].items()}

    def is_plain(way, factor):
        each = [weights[candidate] / t ** ways[way][candidate] for candidate in losses]
        # Weights of 1 each show where T stands if they are at their own power, or beside labels.
        telling = way in ("right", "labels") or (way == 0 and len(tempered) < len(losses))
        ones = not single and telling and all(is_near(one, 1) for one in each)
        return ones or is_near(sum(each), factor)

    cases = itertools.product(ways, losses[0].factors if single else (1.0,))
    way, factor = next((case for case in cases if is_plain(*case)), (None, None))
    powers = ways["right" if single or way is None else way]
    parts = {candidate: weight / t ** powers[candidate] for candidate, weight in weights.items()}
    total, scale, findings = sum(parts[candidate] for candidate in losses), 1.0, []
    if single or not any(is_near(parts[candidate], 1) for candidate in losses):
        scale = _plain(total)
    if sign < 0:
        evidence = "ordinary rows", "a positive factor", "a negative one"
        findings.append(finding("sign_flipped", evidence))
    if len(set(fit.temperatures)) == 1:  # the factor of two temperatures has no right value
        power = max((candidate.power for candidate in tempered), default=0)
        whole = float(sum(weights[candidate] for candidate in tempered))
        factor_evidence = "ordinary rows", f"T^{power} = {t**power:.4g}", whole
        unexplained = factor if single and factor else scale
        if way is None and len(ways) > 1:
            shares = "ordinary rows", "weights with the sum 1", f"{total:.4g}"
            evidence, unclear = (factor_evidence, whole) if single else (shares, total)
            details = {"temperature": t, "scale": unclear}
            findings.append(finding("temperature_factor_unclear", evidence, **details))
        elif not is_near(unexplained, 1):
            evidence = "ordinary rows", "1", float(unexplained)
            findings.append(finding("scale", evidence, scale=unexplained))
        if way == "labels":
            label = next(candidate for candidate in losses if candidate.fixed)
            evidence = "the weight on labels", f"{parts[label]:.4g}", weights[label]
            findings.append(finding("labels_factor", evidence))
        elif isinstance(way, int):
            details = {"temperature": t, "got": way, "power": power}
            findings.append(finding("temperature_factor", factor_evidence, **details))
    if single:
        return losses[0].text, sign * scale, findings
    parts = {candidate: _plain(weight / scale, 5e-3) for candidate, weight in parts.items()}
    order = list(ENTRIES)
    parts = sorted(parts.items(), key=lambda x: (not x[0].is_loss, -x[1], order.index(x[0].name)))
    pieces = [("" if weight == 1 else f"{weight:.4g}*") + c.text for c, weight in parts]
    return " + ".join(pieces), sign * scale, findings
