//! The kernels without vector instructions: the same results as [`super::ifma`], bit for bit, on any machine.

use super::lanes::{LANES, LIMB_BITS, Lanes, limbs_from_words, words_from_limbs};
use multiversion::multiversion;
use zeroize::Zeroizing;

/// `a := (a·b + m·n) / R` in each lane, where `m < R` is the one number that makes the division exact and
/// `R = 2^(52·limbs)`. Computed in 64-bit words: whole words are cleared one by one, then the rest of R's bits.
pub(super) fn montgomery_multiply(n: &[u64], n_inverse: u64, a: &mut [Lanes], b: &[Lanes]) {
    let bits = a.len() * LIMB_BITS as usize;
    let (whole, rest) = (bits / 64, bits % 64);
    let words = bits.div_ceil(64);
    let n = padded(&n[..words]);
    let mut limbs = Zeroizing::new(vec![0_u64; a.len()]);
    let (mut x, mut y) = (Zeroizing::new(vec![0_u64; words]), padded(&vec![0_u64; words]));
    let mut t = Zeroizing::new(vec![0_u64; 2 * words + ROWS + 1]);
    for lane in 0..LANES {
        limbs.iter_mut().zip(&*a).for_each(|(limb, column)| *limb = column.0[lane]);
        words_from_limbs(&limbs, &mut x);
        limbs.iter_mut().zip(b).for_each(|(limb, column)| *limb = column.0[lane]);
        words_from_limbs(&limbs, &mut y[ROWS - 1..][..words]);

        t.fill(0);
        let (fours, ones) = x.as_chunks::<ROWS>();
        for (i, rows) in fours.iter().enumerate() {
            let t = &mut t[i * ROWS..];
            let carry = add_rows(t, &y, *rows, [0; ROWS], 0);
            t[words + ROWS] = carry;
        }
        for (i, &row) in (fours.len() * ROWS..).zip(ones) {
            t[i + words] += add_product(&mut t[i..i + words], &y[ROWS - 1..], row);
        }
        let blocks = whole / ROWS;
        for i in 0..blocks {
            clear_words(&mut t[i * ROWS..], &n, n_inverse, words);
        }
        for i in blocks * ROWS..whole {
            clear_bits(&mut t[i..], &n[ROWS - 1..][..words], n_inverse, u64::MAX);
        }
        if rest > 0 {
            clear_bits(&mut t[whole..], &n[ROWS - 1..][..words], n_inverse, (1 << rest) - 1);
            for i in whole..t.len() - 1 {
                t[i] = t[i] >> rest | t[i + 1] << (64 - rest);
            }
        }
        limbs_from_words(&t[whole..whole + words], &mut limbs);
        a.iter_mut().zip(limbs.iter()).for_each(|(column, &limb)| column.0[lane] = limb);
    }
}

/// Rows at a time: as many chains of carries run side by side.
const ROWS: usize = 4;

/// `y` with zeros around it, so that a row's carry runs out within [`add_rows`] and every column has all rows.
fn padded(y: &[u64]) -> Zeroizing<Vec<u64>> {
    let mut padded = Zeroizing::new(vec![0; y.len() + 2 * ROWS - 1]);
    padded[ROWS - 1..][..y.len()].copy_from_slice(y);
    padded
}

/// `t += rows · y` for `y` as [`padded`] makes it, from column `first` on, given the carries into it; returns the carry
/// out of column `words + ROWS − 1`.
#[inline]
fn add_rows(t: &mut [u64], y: &[u64], rows: [u64; ROWS], carries: [u64; ROWS], first: usize) -> u64 {
    let [x0, x1, x2, x3] = rows;
    let [mut c0, mut c1, mut c2, mut c3] = carries;
    for (t, y) in t[first..].iter_mut().zip(y[first..].windows(ROWS)) {
        let mut v = *t;
        (v, c0) = y[3].carrying_mul_add(x0, v, c0);
        (v, c1) = y[2].carrying_mul_add(x1, v, c1);
        (v, c2) = y[1].carrying_mul_add(x2, v, c2);
        (v, c3) = y[0].carrying_mul_add(x3, v, c3);
        *t = v;
    }
    c0 + c1 + c2 + c3
}

/// Clears the lowest [`ROWS`] words of `t` by multiples of the modulus, [`padded`].
fn clear_words(t: &mut [u64], n: &[u64], n_inverse: u64, words: usize) {
    let (mut rows, mut carries) = ([0; ROWS], [0; ROWS]);
    for j in 0..ROWS {
        let mut v = t[j];
        for i in 0..j {
            (v, carries[i]) = n[ROWS - 1 + j - i].carrying_mul_add(rows[i], v, carries[i]);
        }
        rows[j] = v.wrapping_mul(n_inverse);
        (t[j], carries[j]) = n[ROWS - 1].carrying_mul_add(rows[j], v, 0);
    }
    let carry = add_rows(t, n, rows, carries, ROWS);
    propagate(&mut t[words + ROWS..], carry);
}

/// Clears those of the lowest 64 bits of `t` that `mask` names.
fn clear_bits(t: &mut [u64], n: &[u64], n_inverse: u64, mask: u64) {
    let m = t[0].wrapping_mul(n_inverse) & mask;
    let carry = add_product(&mut t[..n.len()], n, m);
    propagate(&mut t[n.len()..], carry);
}

/// `t += y·x`, returns the carry out.
#[inline]
fn add_product(t: &mut [u64], y: &[u64], x: u64) -> u64 {
    let mut carry = 0;
    for (t, &y) in t.iter_mut().zip(y) {
        (*t, carry) = y.carrying_mul_add(x, *t, carry);
    }
    carry
}

/// Adds `carry` over all of `t`, whatever it is: time must not tell.
fn propagate(t: &mut [u64], mut carry: u64) {
    for t in t {
        let (sum, overflow) = t.overflowing_add(carry);
        *t = sum;
        carry = u64::from(overflow);
    }
}

/// In lane k, the number at `digits[k]` of `row`, in which numbers of `out.len()` limbs lie one after the other.
/// Every number is read, so neither time nor memory access depends on the digits.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub(super) fn select(row: &[u64], digits: &[u8; LANES], out: &mut [Lanes]) {
    let limbs = out.len();
    let mut chosen = Zeroizing::new(vec![0_u64; limbs]);
    for (lane, &digit) in digits.iter().enumerate() {
        chosen.fill(0);
        for (index, number) in row.chunks_exact(limbs).enumerate() {
            let mask = mask_if_equal(index, usize::from(digit));
            // Along the limbs, not across the lanes: this the compiler turns into vector instructions.
            chosen.iter_mut().zip(number).for_each(|(chosen, &limb)| *chosen |= limb & mask);
        }
        out.iter_mut().zip(chosen.iter()).for_each(|(column, &limb)| column.0[lane] = limb);
    }
}

/// All ones if they are equal. Opaque to the optimiser, which might otherwise find that a branch would do.
#[inline]
fn mask_if_equal(a: usize, b: usize) -> u64 {
    let difference = core::hint::black_box((a ^ b) as u64);
    (difference.wrapping_sub(1) >> 63).wrapping_neg()
}

/// The group at `digit` of `table`, in which groups of `out.len()` limbs lie one after the other; all are read.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub(super) fn select_group(table: &[Lanes], digit: usize, out: &mut [Lanes]) {
    out.fill(Lanes::ZERO);
    for (index, group) in table.chunks_exact(out.len()).enumerate() {
        let mask = mask_if_equal(index, digit);
        for (out, group) in out.iter_mut().zip(group) {
            for lane in 0..LANES {
                out.0[lane] |= group.0[lane] & mask;
            }
        }
    }
}
