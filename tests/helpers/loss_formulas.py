"""Formulas of the papers in NumPy."""

from __future__ import annotations

import numpy as np


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def divergence(q, p):
    return sum(a * np.log(a / b) for a, b in zip(q, p, strict=True))


def huber(d):
    return d * d / 2 if abs(d) < 1 else abs(d) - 0.5


def numpy_dml(s, t):
    return np.mean([divergence(softmax(b), softmax(a)) for a, b in zip(s, t, strict=True)])


def numpy_dkd(s, t, label, alpha=1.0, beta=8.0, temperature=4.0):
    total = []
    for a, b, true in zip(s / temperature, t / temperature, label, strict=True):
        p, q = softmax(a), softmax(b)
        tckd = divergence([q[true], 1 - q[true]], [p[true], 1 - p[true]])
        nckd = divergence(softmax(np.delete(b, true)), softmax(np.delete(a, true)))
        total.append(alpha * tckd + beta * nckd)
    return temperature**2 * np.mean(total)


def numpy_dist(s, t, temperature=1.0):
    p = np.array([softmax(row / temperature) for row in s])
    q = np.array([softmax(row / temperature) for row in t])
    between = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    within = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    return temperature**2 * (between + within)
