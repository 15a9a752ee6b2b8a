"""Benches: speed and accuracy as ratios against a baseline in the same run.

python -m eval.bench              the core against SciPy, mpmath and exact arithmetic (make bench)
python -m eval.bench.live         the backends and the live loop
python -m eval.bench.predictor    features and training of the predictor
"""
