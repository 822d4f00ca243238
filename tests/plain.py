"""The equations written out, one edge at a time in float64: slow, and what everything faster is held against."""

import torch

BALLS = {"von_neumann": lambda dy, dx: abs(dy) + abs(dx), "moore": lambda dy, dx: max(abs(dy), abs(dx))}


def edges(height, width, neighborhood="von_neumann", radius=2):
    """Each undirected edge once, as two pixels (y, x)."""
    pixels = [(y, x) for y in range(height) for x in range(width)]
    return [
        (p, q)
        for k, p in enumerate(pixels)
        for q in pixels[:k]
        if BALLS[neighborhood](p[0] - q[0], p[1] - q[1]) <= radius
    ]


def degree(height, width, pairs):
    d = torch.zeros(height, width, dtype=torch.float64)
    for p, q in pairs:
        d[p] += 1
        d[q] += 1
    return d / d.sum()


def energy(X, g, neighborhood="von_neumann", radius=2, degree_normalized=True):
    """Sum over edges of (X_i/d_i + X_j/d_j)/2 (g_i - g_j)^2 for one image (H, W)."""
    pairs = edges(*X.shape, neighborhood, radius)
    density = X.double() / degree(*X.shape, pairs) if degree_normalized else X.double()
    return sum(
        (0.5 * (density[p] + density[q]) * (g[p].double() - g[q].double()) ** 2 for p, q in pairs),
        torch.zeros((), dtype=torch.float64),
    )


def released_squared_norm(g, x):
    """The released code's formula for one image (C, H, W), all edges: X_i + X_j on edges, plus the sum of squares."""
    X = (x.double() + 1) / 2
    return sum(2 * energy(X[c], g[c], degree_normalized=False) for c in range(len(x))) + g.double().square().sum()


def paper_squared_norm(g, x, mass=1.0):
    """The paper's formula for one image (C, H, W): unit mass in each channel, degrees, squared sum of each channel."""
    X = (x.double() + 1) / 2
    return sum(energy(X[c] / X[c].sum(), g[c]) + mass * g[c].double().sum() ** 2 for c in range(len(x)))
