// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package timing

import (
	"math/big"
)

// Merge returns the baseline of all samples of several baselines of one domain. It is the
// update of T. F. Chan, G. H. Golub and R. J. LeVeque (1979) for all baselines at once, in
// whole numbers: only the final mean and M2 are rounded, each once and to the nearest. Without
// samples the result is the zero State. The samples must sum to less than 2⁶⁴.
func Merge(states []State) State {
	// With N = Σn and S = Σ n·mean: mean = S/N, and M2 = Σ M2ᵢ + Σ n·mean² − S²/N.
	var merged State
	sum, squares, within := new(big.Int), new(big.Int), new(big.Int)
	for _, s := range states {
		merged.N += s.N
		mean := new(big.Int).SetUint64(s.MeanQ16)
		product := new(big.Int).SetUint64(s.N)
		sum.Add(sum, product.Mul(product, mean))
		squares.Add(squares, product.Mul(product, mean))
		within.Add(within, s.M2.Big())
	}
	if merged.N == 0 {
		return State{}
	}
	n := new(big.Int).SetUint64(merged.N)
	merged.MeanQ16 = nearest(sum, n).Uint64()

	between := squares.Mul(squares, n)
	// In 2⁻³² units², times N. The Cauchy–Schwarz inequality keeps it from being negative.
	between.Sub(between, sum.Mul(sum, sum))
	between = nearest(between, n.Lsh(n, 2*meanShift))
	merged.M2 = newUint128(within.Add(within, between))
	return merged
}

// nearest returns a/b for a ≥ 0 and b > 0, rounded to the nearest whole number.
func nearest(a, b *big.Int) *big.Int {
	half := new(big.Int).Rsh(b, 1)
	return half.Add(half, a).Quo(half, b)
}

// newUint128 returns v, which must be in the range of a Uint128.
func newUint128(v *big.Int) Uint128 {
	low := new(big.Int).And(v, new(big.Int).SetUint64(1<<64-1))
	return Uint128{new(big.Int).Rsh(v, 64).Uint64(), low.Uint64()}
}
