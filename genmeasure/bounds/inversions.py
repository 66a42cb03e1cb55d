"""From an empirical error and a budget to an upper bound on the true error; losses in [0, 1] unless said otherwise."""

from __future__ import annotations

import math

from scipy.optimize import brentq, minimize_scalar
from scipy.special import rel_entr
from scipy.stats import beta


def binary_kl(q: float, p: float) -> float:
    """kl(q || p) of two coins, infinite where p rules out what q allows."""
    return float(rel_entr(q, p) + rel_entr(1 - q, 1 - p))


def kl_inverse(q: float, budget: float) -> float:
    """The largest p with kl(q || p) <= budget."""
    if q >= 1:
        return 1.0
    if q <= 0:
        return -math.expm1(-budget)
    if binary_kl(q, math.nextafter(1.0, 0.0)) <= budget:
        return 1.0
    return brentq(lambda p: binary_kl(q, p) - budget, q, math.nextafter(1.0, 0.0), xtol=1e-15, rtol=1e-14)


def pinsker(q: float, budget: float) -> float:
    """q + sqrt(budget / 2), McAllester's form."""
    return q + math.sqrt(budget / 2)


def quadratic(q: float, budget: float) -> float:
    """(sqrt(q + budget/2) + sqrt(budget/2))^2, from kl(q || p) >= (p - q)^2 / (2 p)."""
    return (math.sqrt(q + budget / 2) + math.sqrt(budget / 2)) ** 2


def best_lambda(q: float, budget: float) -> float:
    """The lambda in (0, 2) at which `linear` is least, where it equals `quadratic`."""
    return 2 / (math.sqrt(2 * q / budget + 1) + 1)


def linear(q: float, budget: float, weight: float) -> float:
    """q / (1 - weight/2) + budget / (weight (1 - weight/2)), for all weights in (0, 2) at once.

    Thiemann et al. 2017, arXiv:1608.05610.
    """
    return q / (1 - weight / 2) + budget / (weight * (1 - weight / 2))


def pac_bayes_budget(divergence: float, n: int, delta: float) -> float:
    """(KL + ln(2 sqrt(n) / delta)) / n of the PAC-Bayes-kl bound (Maurer 2004), for n >= 8."""
    return (divergence + math.log(2 * math.sqrt(n) / delta)) / n


def dziugaite_budget(divergence: float, n: int, delta: float, step: int) -> float:
    """(KL + ln(pi^2 n / (6 delta)) + 2 ln j) / (n - 1), the `step` j = 1, 2, … of the prior's variance paid for.

    Dziugaite & Roy 2017, arXiv:1703.11008.
    """
    return (divergence + math.log(math.pi**2 * n / (6 * delta)) + 2 * math.log(step)) / (n - 1)


def prefix_bits(bits: float) -> float:
    """The length of a code that says its own length as well: L + 2 log2 L."""
    return bits + 2 * math.log2(bits) if bits > 1 else bits + 1


def catoni(q: float, divergence: float, n: int, delta: float, log_weight: float, alpha: float = 1e-4) -> float:
    """Catoni's bound at the inverse temperature e^log_weight, which the term in `alpha` pays for.

    Zhou et al. 2019 and Lotfi et al. 2022, arXiv:2211.13609; log_weight > 0.
    """
    paid = 2 * math.log(2 + log_weight / math.log1p(alpha))
    a = math.exp(log_weight) / n
    inner = q + (1 + alpha) / math.exp(log_weight) * (divergence - math.log(delta) + paid)
    return math.expm1(-a * inner) / math.expm1(-a)


def best_catoni(q: float, divergence: float, n: int, delta: float, alpha: float = 1e-4) -> tuple[float, float]:
    """The least `catoni`, and the log_weight that it has it at; bounded search over [0, ln n + 5]."""
    found = minimize_scalar(lambda g: catoni(q, divergence, n, delta, g, alpha), bounds=(1e-9, math.log(n) + 5),
                            method="bounded", options={"xatol": 1e-10})
    return float(found.fun), float(found.x)


def binomial_upper(errors: int, n: int, delta: float) -> float:
    """The largest error rate under which at most `errors` of n are wrong with probability delta (Clopper-Pearson)."""
    return 1.0 if errors >= n else float(beta.ppf(1 - delta, errors + 1, n - errors))


def hoeffding(q: float, n: int, delta: float) -> float:
    """q + sqrt(ln(1/delta) / 2n)."""
    return q + math.sqrt(math.log(1 / delta) / (2 * n))


def bernstein(q: float, n: int, delta: float) -> float:
    """q + sqrt(2 V ln(2/delta) / n) + 7 ln(2/delta) / (3 (n - 1)), V = q (1 - q) n/(n - 1) the sample's variance.

    The empirical Bernstein bound of Maurer & Pontil 2009, arXiv:0907.3740, Theorem 4.
    """
    variance, confidence = q * (1 - q) * n / (n - 1), math.log(2 / delta)
    return q + math.sqrt(2 * variance * confidence / n) + 7 * confidence / (3 * (n - 1))


def drawn_upper(mean: float, draws: int, largest_weight: float, delta: float) -> float:
    """Upper bound on a weighted mean of expectations from one independent draw in [0, 1] for each of them.

    The weights add up to 1 and are at most `largest_weight`: Chernoff's bound for `draws` variables in
    [0, largest_weight], which for equal weights is the usual one.
    """
    spread = draws * largest_weight
    return min(1.0, spread * kl_inverse(min(1.0, mean / spread), math.log(1 / delta) / draws))


def smoothing_range(vocabulary: int, share: float) -> float:
    """log2(1 + (1 - a) V / a), in bits: the range of -log2 of a prediction mixed with a share a of the uniform one."""
    return math.log2(1 + (1 - share) * vocabulary / share)


def full_term(divergence: float, documents: int, delta: float, spread: float) -> float:
    """spread sqrt((KL + ln(1/delta)) / 2m) of a loss of this range (Lotfi et al. 2024, arXiv:2312.17173)."""
    return spread * math.sqrt((divergence + math.log(1 / delta)) / (2 * documents))


def subsampled_term(divergence: float, documents: int, evaluated: int, delta: float, spread: float) -> float:
    """As `full_term` where the empirical loss is that of `evaluated` documents, drawn from the m (the same paper)."""
    ratio = evaluated / (evaluated + documents)
    return spread * (math.sqrt((divergence - math.log(ratio * delta)) / (2 * documents))
                     + math.sqrt(-math.log((1 - ratio) * delta) / (2 * evaluated)))


def code_length(symbols: list[int], alphabet: int, concentration: float = 0.5) -> float:
    """Length in nats of whole numbers below `alphabet` in an adaptive code.

    -ln of their probability under a Dirichlet(concentration) mixture: prefix-free given how many there are, without a
    table of frequencies. 1/2 is Krichevsky & Trofimov's (1981); less is shorter where few symbols are used.
    """
    counts: dict[int, int] = {}
    for symbol in symbols:
        counts[symbol] = counts.get(symbol, 0) + 1
    whole = alphabet * concentration
    found = math.lgamma(len(symbols) + whole) - math.lgamma(whole)
    return found - math.fsum(math.lgamma(c + concentration) - math.lgamma(concentration) for c in counts.values())
