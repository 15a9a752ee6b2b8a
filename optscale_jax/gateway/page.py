"""The gateway's page: one file of HTML that needs no other, and what it shows of one request.

The page itself holds no numbers; it asks for them, with the visitor's key where there are keys.
"""

import base64
import hashlib
import math
import re
from typing import Any

import jax
import jinja2
import numpy as np

from optscale_jax.gateway.metrics import Answered
from optscale_jax.laws import Law

__all__ = ["details", "page"]

_POINTS = 101


def page() -> tuple[str, dict[str, str]]:
    """The page, and headers that let it do what it does and nothing else."""
    folders = ("optscale_jax.gateway", "optscale_jax.report")
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(one, "") for one in folders]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    html = environment.get_template("page.html.jinja").render()
    allowed = []
    for kind in ("script", "style"):
        (text,) = re.findall(f"<{kind}>(.*?)</{kind}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        allowed.append(f"{kind}-src 'sha256-{digest}'")
    policy = ["default-src 'none'", *allowed, "connect-src 'self'"]
    policy += ["base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"]
    headers = {
        "Content-Security-Policy": "; ".join(policy),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return html, headers


@jax.jit
def _cdf(law: Law, params: dict[str, Any], x: Any) -> Any:
    return law.distribution(params).cdf(x)


def details(one: Answered) -> dict[str, Any]:
    """What the page shows of a request when it is opened: its completions and the fitted law.

    Where the policy fits a law, `law` has its cumulative distribution function at `_POINTS` points.
    """
    policy, params = one.policy, one.decision.params
    law, curve = getattr(policy, "law", None), None
    if isinstance(law, Law) and set(law.parameters) == set(params):
        x = np.linspace(0, 1, _POINTS)
        cdf = np.asarray(_cdf(law, params, x), float)
        if np.isfinite(cdf).all():
            name = re.sub("(?<!^)(?=[A-Z])", "_", type(law).__name__.removesuffix("Law")).lower()
            curve = {"name": name, "x": x.tolist(), "cdf": np.clip(cdf, 0, 1).tolist()}
    aims = ((name, getattr(policy, name, None)) for name in ("s_min", "s_hi"))
    return {
        **one.summary(),
        "params": {name: value for name, value in params.items() if math.isfinite(value)},
        "law": curve,
        "aim": next(([name, float(value)] for name, value in aims if value is not None), None),
        "completions": one.completions,
    }
