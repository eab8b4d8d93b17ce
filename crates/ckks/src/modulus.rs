//! Arithmetic modulo one prime of the residue number system.

/// A prime q below 2^51, as the products of 52 bits in AVX-512 IFMA want it, and what reduces by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modulus {
    q: u64,
    /// Number of bits of q.
    bits: u32,
    /// ⌊2^(2·bits) / q⌋.
    ratio: u64,
    /// ⌊2^64 / q⌋.
    reciprocal: u64,
}

/// A constant factor w modulo q with ⌊w·2^64 / q⌋ beside it: products by it need no division (Shoup).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Factor {
    w: u64,
    quotient: u64,
}

impl Factor {
    /// w.
    pub(crate) fn value(self) -> u64 {
        self.w
    }
}

impl Modulus {
    /// Primes have at most so many bits.
    pub const BITS_MAX: u32 = 51;

    /// # Panics
    /// If q is not an odd number of 3 to 51 bits: moduli come from the presets.
    #[must_use]
    pub(crate) fn new(q: u64) -> Self {
        let bits = 64 - q.leading_zeros();
        assert!(q % 2 == 1 && (3..=Self::BITS_MAX).contains(&bits), "a modulus of {bits} bits");
        let ratio = ((1_u128 << (2 * bits)) / u128::from(q)) as u64;
        Self { q, bits, ratio, reciprocal: ((1_u128 << 64) / u128::from(q)) as u64 }
    }

    /// The prime.
    #[must_use]
    pub fn value(self) -> u64 {
        self.q
    }

    /// Its number of bits.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.bits
    }

    /// a + b, for a, b < q.
    #[must_use]
    pub(crate) fn add(self, a: u64, b: u64) -> u64 {
        // Never wraps, and the check for it would be the only branch of many a loop.
        let sum = a.wrapping_add(b);
        sum.min(sum.wrapping_sub(self.q))
    }

    /// a − b, for a, b < q.
    #[must_use]
    pub(crate) fn sub(self, a: u64, b: u64) -> u64 {
        let difference = a.wrapping_sub(b);
        difference.min(difference.wrapping_add(self.q))
    }

    /// x mod q, for x < q².
    ///
    /// Barrett (Menezes, van Oorschot, Vanstone, Algorithm 14.42 in base 2): with k bits, the estimate of the quotient from
    /// ⌊x / 2^(k−1)⌋·⌊2^(2k) / q⌋ is at most two too small.
    #[must_use]
    pub(crate) fn reduce_product(self, x: u128) -> u64 {
        let high = (x >> (self.bits - 1)) as u64;
        let quotient = ((u128::from(high) * u128::from(self.ratio)) >> (self.bits + 1)) as u64;
        let rest = (x as u64).wrapping_sub(quotient.wrapping_mul(self.q));
        let rest = rest.min(rest.wrapping_sub(self.q));
        rest.min(rest.wrapping_sub(self.q))
    }

    /// x mod q for x below 8·q²: a sum of up to eight products.
    ///
    /// As [`reduce_product`](Self::reduce_product); the estimate is at most ten too small.
    #[must_use]
    pub(crate) fn reduce_sum(self, x: u128) -> u64 {
        let high = (x >> (self.bits - 1)) as u64;
        let quotient = ((u128::from(high) * u128::from(self.ratio)) >> (self.bits + 1)) as u64;
        self.reduce((x as u64).wrapping_sub(quotient.wrapping_mul(self.q)))
    }

    /// x mod q for any x.
    #[must_use]
    pub(crate) fn reduce(self, x: u64) -> u64 {
        // A division would take longer for some secrets than for others. The estimate is at most one too small.
        let quotient = ((u128::from(x) * u128::from(self.reciprocal)) >> 64) as u64;
        let rest = x.wrapping_sub(quotient.wrapping_mul(self.q));
        rest.min(rest.wrapping_sub(self.q))
    }

    /// x mod q for any whole number.
    #[must_use]
    pub(crate) fn reduce_signed(self, x: i64) -> u64 {
        let rest = self.reduce(x.unsigned_abs());
        let is_negative = (x >> 63).cast_unsigned();
        rest ^ (is_negative & (rest ^ self.sub(0, rest)))
    }

    /// a·b, for a, b < q.
    #[must_use]
    pub(crate) fn mul(self, a: u64, b: u64) -> u64 {
        self.reduce_product(u128::from(a) * u128::from(b))
    }

    /// a to the power of `exponent`. Not in constant time: for public numbers.
    #[must_use]
    pub(crate) fn pow(self, a: u64, mut exponent: u64) -> u64 {
        let (mut base, mut power) = (a, 1);
        while exponent > 0 {
            if exponent & 1 == 1 {
                power = self.mul(power, base);
            }
            base = self.mul(base, base);
            exponent >>= 1;
        }
        power
    }

    /// 1/a, for a ≠ 0 and prime q.
    #[must_use]
    pub(crate) fn inverse(self, a: u64) -> u64 {
        self.pow(a, self.q - 2)
    }

    /// w as a constant factor.
    #[must_use]
    pub(crate) fn factor(self, w: u64) -> Factor {
        debug_assert!(w < self.q);
        Factor { w, quotient: ((u128::from(w) << 64) / u128::from(self.q)) as u64 }
    }

    /// x·w below 2q and congruent modulo q, for any x.
    #[must_use]
    pub(crate) fn mul_lazy(self, x: u64, factor: Factor) -> u64 {
        let quotient = ((u128::from(x) * u128::from(factor.quotient)) >> 64) as u64;
        x.wrapping_mul(factor.w).wrapping_sub(quotient.wrapping_mul(self.q))
    }

    /// x·w mod q, for any x.
    #[must_use]
    pub(crate) fn mul_factor(self, x: u64, factor: Factor) -> u64 {
        let product = self.mul_lazy(x, factor);
        product.min(product.wrapping_sub(self.q))
    }

    /// The representative of a in (−q/2, q/2].
    #[must_use]
    pub(crate) fn centered(self, a: u64) -> i64 {
        let (a, q) = (a.cast_signed(), self.q.cast_signed());
        // All ones above q/2.
        let above = (q / 2 - a) >> 63;
        a - (q & above)
    }
}

/// The largest primes below 2^bits that are 1 modulo 2n, without those in `taken`.
pub(crate) fn ntt_primes(n: usize, bits: u32, count: usize, taken: &mut Vec<u64>) -> Vec<u64> {
    let step = 2 * n as u64;
    let mut found = Vec::new();
    let mut candidate = (1_u64 << bits) + 1 - step;
    while found.len() < count {
        if is_prime(candidate) && !taken.contains(&candidate) {
            found.push(candidate);
            taken.push(candidate);
        }
        candidate -= step;
    }
    found
}

/// Miller–Rabin with the first twelve primes as bases, which decides every number below 2^64 (Sorenson, Webster 2015).
fn is_prime(n: u64) -> bool {
    let mul = |a: u64, b: u64| (u128::from(a) * u128::from(b) % u128::from(n)) as u64;
    let pow = |a: u64, mut e: u64| {
        let (mut base, mut power) = (a % n, 1);
        while e > 0 {
            if e & 1 == 1 {
                power = mul(power, base);
            }
            base = mul(base, base);
            e >>= 1;
        }
        power
    };
    const BASES: [u64; 12] = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37];
    if n < 2 || BASES.iter().any(|&p| n.is_multiple_of(p)) {
        return BASES.contains(&n);
    }
    let twos = (n - 1).trailing_zeros();
    let odd = (n - 1) >> twos;
    BASES.iter().all(|&base| {
        let mut x = pow(base, odd);
        if x == 1 || x == n - 1 {
            return true;
        }
        (1..twos).any(|_| {
            x = mul(x, x);
            x == n - 1
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_modulus() -> impl Strategy<Value = Modulus> {
        (20_u32..=51, 0..3_usize).prop_map(|(bits, which)| {
            let primes = ntt_primes(1024, bits, 3, &mut Vec::new());
            Modulus::new(primes[which])
        })
    }

    proptest! {
        #[test]
        fn operations_are_those_of_the_integers(m in any_modulus(), a in any::<u64>(), b in any::<u64>()) {
            let q = m.value();
            let (a, x) = (a % q, b);
            let b = b % q;
            let wide = |n: u128| (n % u128::from(q)) as u64;
            prop_assert_eq!(m.add(a, b), wide(u128::from(a) + u128::from(b)));
            prop_assert_eq!(m.sub(a, b), wide(u128::from(a) + u128::from(q - b)));
            prop_assert_eq!(m.mul(a, b), wide(u128::from(a) * u128::from(b)));
            prop_assert_eq!(m.mul(q - 1, q - 1), 1);
            let product = u128::from(a) * u128::from(b);
            for sum in [0, product, 8 * product, 8 * u128::from(q - 1) * u128::from(q - 1)] {
                prop_assert_eq!(m.reduce_sum(sum), wide(sum));
            }
            prop_assert_eq!(m.mul_factor(x, m.factor(a)), wide(u128::from(x) * u128::from(a)));
            prop_assert!(m.mul_lazy(x, m.factor(a)) < 2 * q);
            prop_assert_eq!(m.reduce(x), x % q);
            for x in [x.cast_signed(), i64::MIN, i64::MAX, 0, -1, q.cast_signed(), -q.cast_signed()] {
                prop_assert_eq!(m.reduce_signed(x), i128::from(x).rem_euclid(q.into()) as u64);
            }
            prop_assert_eq!(m.reduce_signed(m.centered(a)), a);
            prop_assert!(m.centered(a).unsigned_abs() <= q / 2);
            if a > 0 {
                prop_assert_eq!(m.mul(a, m.inverse(a)), 1);
            }
        }
    }

    #[test]
    fn primes_are_primes_of_the_right_form() {
        let primes = ntt_primes(4096, 36, 5, &mut Vec::new());
        for q in primes {
            assert!(q < 1 << 36 && q > (1 << 36) - (1 << 28) && q % 8192 == 1);
            assert!((2..1 << 18).all(|d: u64| q % d != 0), "{q}");
        }
        assert!([2, 3, 37, 41, 65_537].into_iter().all(is_prime));
        // Composite; strong pseudoprimes to several bases.
        assert!([1, 1681, 3_215_031_751, 3_825_123_056_546_413_051].into_iter().all(|n| !is_prime(n)));
    }
}
