"""Weighted k-means of rows against scikit-learn's, called as the SqueezeLLM reference calls it."""

import subprocess
import warnings

import numpy
import pytest

pytestmark = pytest.mark.torch  # scipy comes along: not one of the small wheels


@pytest.mark.parametrize("size, centers", [(64, 16), (576, 16), (576, 8), (1536, 8), (4096, 16)])
def test_error_is_never_above_scikit_learns(build_dir, tmp_path, size, centers):
    from sklearn.cluster import KMeans
    tool = build_dir / "bin" / "nibble_kmeans"
    random = numpy.random.default_rng(size + centers)
    values = (random.standard_t(5, (6, size)) * 0.03).astype(numpy.float16).astype(numpy.float32)
    weights = (numpy.exp(random.normal(0, 2, (6, size))) * 1e-6).astype(numpy.float32)
    weights[0, ::3] = 0  # as where sparse values are taken out
    values.tofile(tmp_path / "values")
    weights.tofile(tmp_path / "weights")
    subprocess.run([tool, tmp_path / "values", tmp_path / "weights", "6", str(centers), "1", tmp_path / "centers"],
                   check=True, capture_output=True)
    ours = numpy.fromfile(tmp_path / "centers", numpy.float32).reshape(6, centers)

    def error(row, found):
        distance = numpy.abs(values[row][:, None].astype(numpy.float64) - found[None, :]).min(axis=1)
        return (weights[row] * distance**2).sum()

    for row in range(6):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = KMeans(n_clusters=centers, random_state=0, n_init=1, max_iter=50).fit(
                values[row].reshape(-1, 1), sample_weight=weights[row])
        theirs = error(row, fit.cluster_centers_.reshape(-1))
        # Both hold centers in f32: one part in 2^24 of a value, where errors are those of 4 bits.
        assert error(row, ours[row]) <= theirs * (1 + 1e-6)
        assert error(row, ours[row]) > 0.5 * theirs
