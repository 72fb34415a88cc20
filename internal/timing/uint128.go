// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package timing

import (
	"math"
	"math/big"
	"math/bits"
)

// Uint128 is an unsigned integer of 128 bits. The zero value is 0.
type Uint128 struct {
	Hi, Lo uint64
}

// Add returns u + v, modulo 2¹²⁸.
func (u Uint128) Add(v Uint128) Uint128 {
	lo, carry := bits.Add64(u.Lo, v.Lo, 0)
	hi, _ := bits.Add64(u.Hi, v.Hi, carry)
	return Uint128{hi, lo}
}

// Sub returns u − v, modulo 2¹²⁸.
func (u Uint128) Sub(v Uint128) Uint128 {
	lo, borrow := bits.Sub64(u.Lo, v.Lo, 0)
	hi, _ := bits.Sub64(u.Hi, v.Hi, borrow)
	return Uint128{hi, lo}
}

// Mul64 returns u · m, modulo 2¹²⁸.
func (u Uint128) Mul64(m uint64) Uint128 {
	hi, lo := bits.Mul64(u.Lo, m)
	return Uint128{hi + u.Hi*m, lo}
}

// Lsh returns u · 2ⁿ, modulo 2¹²⁸.
func (u Uint128) Lsh(n uint) Uint128 {
	if n >= 64 {
		return Uint128{u.Lo << (n - 64), 0}
	}
	return Uint128{u.Hi<<n | u.Lo>>(64-n), u.Lo << n}
}

// Rsh returns ⌊u / 2ⁿ⌋.
func (u Uint128) Rsh(n uint) Uint128 {
	if n >= 64 {
		return Uint128{0, u.Hi >> (n - 64)}
	}
	return Uint128{u.Hi >> n, u.Lo>>n | u.Hi<<(64-n)}
}

// nearest returns u/d rounded to the nearest whole number, for d > 0 and u + d/2 below 2¹²⁸.
func (u Uint128) nearest(d uint64) Uint128 {
	u = u.Add(Uint128{0, d / 2})
	lo, _ := bits.Div64(u.Hi%d, u.Lo, d)
	return Uint128{u.Hi / d, lo}
}

// Cmp returns −1 if u < v, 0 if u = v and +1 if u > v.
func (u Uint128) Cmp(v Uint128) int {
	switch {
	case u == v:
		return 0
	case u.Hi < v.Hi || u.Hi == v.Hi && u.Lo < v.Lo:
		return -1
	}
	return 1
}

// BitLen returns the number of bits that u needs; 0 for 0.
func (u Uint128) BitLen() int {
	if u.Hi != 0 {
		return 64 + bits.Len64(u.Hi)
	}
	return bits.Len64(u.Lo)
}

// Float64 returns u as a float64, with a relative error below 2⁻⁵².
func (u Uint128) Float64() float64 {
	return math.Ldexp(float64(u.Hi), 64) + float64(u.Lo)
}

// Big returns u exactly.
func (u Uint128) Big() *big.Int {
	b := new(big.Int).SetUint64(u.Hi)
	return b.Lsh(b, 64).Or(b, new(big.Int).SetUint64(u.Lo))
}
