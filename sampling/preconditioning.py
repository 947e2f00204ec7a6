"""What stands around a network so that it sees and answers numbers of about unit size (EDM, arXiv:2206.00364).

    prediction of the data = skip(σ) · x + out(σ) · network(into(σ) · x, noise(σ))

Functions of σ alone, for float64 numpy on the host and traced arrays alike; x = data + σ · noise.
"""

from typing import Any, NamedTuple

from sampling.paths import array_module

Sigma = Any  # float, float64 numpy array or JAX array


class Preconditioner(NamedTuple):
    """The four functions' values at some σ."""

    skip: Sigma
    out: Sigma
    into: Sigma
    noise: Sigma


def edm(sigma: Sigma, sigma_data: float = 0.5) -> Preconditioner:
    """EDM's, under which the network's training target has unit variance at every σ."""
    total = sigma**2 + sigma_data**2
    xp = array_module(sigma)
    root = xp.sqrt(total)
    return Preconditioner(sigma_data**2 / total, sigma * sigma_data / root, 1.0 / root, xp.log(sigma) / 4.0)


def consistency(sigma: Sigma, sigma_data: float = 0.5, epsilon: float = 0.002) -> Preconditioner:
    """Consistency models' (arXiv:2303.01469): at σ = ε the prediction is x itself, whatever the network says."""
    inner = edm(sigma, sigma_data)
    skip = sigma_data**2 / ((sigma - epsilon) ** 2 + sigma_data**2)
    return inner._replace(skip=skip, out=(sigma - epsilon) * sigma_data * inner.into)


def edm_weight(sigma: Sigma, sigma_data: float = 0.5) -> Sigma:
    """EDM's weight of a squared error of the data: 1 / out², so the network's own squared errors weigh alike."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
