//! The kernels in AVX-512 IFMA: eight Montgomery products at once. The one module with `unsafe`.
//!
//! Numbers are columns of 52-bit limbs, one lane each. A product is made in passes of ten rows: ten limbs of one factor
//! stay in registers, the other factor walks past, and a window of eleven columns slides along. The window is eleven
//! scalars, not an array: an array that shifts becomes a memory move and costs a factor of five.
//!
//! A column collects at most `4 · 120` halves of products below 2^52, far below 2^64, so carries wait until the end.

use super::lanes::{BLOCK, LANES, LIMB_BITS, LIMB_MAX, Lanes};
use std::arch::x86_64::{
    __m512i, _mm512_add_epi64, _mm512_and_si512, _mm512_cmpeq_epi64_mask, _mm512_load_si512, _mm512_madd52hi_epu64,
    _mm512_madd52lo_epu64, _mm512_mask_mov_epi64, _mm512_set1_epi64, _mm512_setzero_si512, _mm512_slli_epi64,
    _mm512_srli_epi64, _mm512_store_si512,
};

/// Columns that a product of two numbers of `limbs` limbs passes through.
pub(super) fn columns_for(limbs: usize) -> usize {
    2 * limbs + 1
}

/// Whether this machine has the instructions.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512ifma")
}

/// As [`super::portable::montgomery_multiply`]; `n` in every lane, `columns` as scratch. Of `n_inverse`, as of every
/// factor, the instructions take the low 52 bits.
///
/// # Panics
/// Without the instructions: the caller asked [`available`] when it chose this kernel.
pub(super) fn montgomery_multiply(n: &[Lanes], n_inverse: u64, a: &mut [Lanes], b: &[Lanes], columns: &mut [Lanes]) {
    assert!(available());
    #[expect(unsafe_code, reason = "calls code for a processor feature")]
    // SAFETY: the features were found on this machine in the line above.
    unsafe {
        multiply(a, b, columns);
        reduce(n, n_inverse, columns, a);
    }
}

/// As [`montgomery_multiply`] with both factors `a`, in three quarters of the time.
pub(super) fn montgomery_square(n: &[Lanes], n_inverse: u64, a: &mut [Lanes], columns: &mut [Lanes]) {
    assert!(available());
    #[expect(unsafe_code, reason = "calls code for a processor feature")]
    // SAFETY: the features were found on this machine in the line above.
    unsafe {
        square(a, columns);
        reduce(n, n_inverse, columns, a);
    }
}

/// As [`super::portable::select`].
pub(super) fn select(row: &[u64], digits: &[u8; LANES], out: &mut [Lanes]) {
    assert!(available());
    #[expect(unsafe_code, reason = "calls code for a processor feature")]
    // SAFETY: the features were found on this machine in the line above.
    unsafe {
        select_entries(row, digits, out);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(lanes: &Lanes) -> __m512i {
    #[expect(unsafe_code, reason = "vector load")]
    // SAFETY: a reference to 64 readable bytes, aligned to 64 by the type.
    unsafe {
        _mm512_load_si512(std::ptr::from_ref(lanes).cast())
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(lanes: &mut Lanes, value: __m512i) {
    #[expect(unsafe_code, reason = "vector store")]
    // SAFETY: a unique reference to 64 writable bytes, aligned to 64 by the type.
    unsafe {
        _mm512_store_si512(std::ptr::from_mut(lanes).cast(), value);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
fn lo(sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
    _mm512_madd52lo_epu64(sum, a, b)
}

#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
fn hi(sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
    _mm512_madd52hi_epu64(sum, a, b)
}

/// Adds ten rows times one limb to the window: row k times `b` belongs to columns k and k + 1.
macro_rules! rows_times {
    ($b:expr; $a0:ident $a1:ident $a2:ident $a3:ident $a4:ident $a5:ident $a6:ident $a7:ident $a8:ident $a9:ident;
     $w0:ident $w1:ident $w2:ident $w3:ident $w4:ident $w5:ident $w6:ident $w7:ident $w8:ident $w9:ident $w10:ident) => {
        let b = $b;
        $w0 = lo($w0, $a0, b);
        $w1 = lo($w1, $a1, b);
        $w2 = lo($w2, $a2, b);
        $w3 = lo($w3, $a3, b);
        $w4 = lo($w4, $a4, b);
        $w5 = lo($w5, $a5, b);
        $w6 = lo($w6, $a6, b);
        $w7 = lo($w7, $a7, b);
        $w8 = lo($w8, $a8, b);
        $w9 = lo($w9, $a9, b);
        $w1 = hi($w1, $a0, b);
        $w2 = hi($w2, $a1, b);
        $w3 = hi($w3, $a2, b);
        $w4 = hi($w4, $a3, b);
        $w5 = hi($w5, $a4, b);
        $w6 = hi($w6, $a5, b);
        $w7 = hi($w7, $a6, b);
        $w8 = hi($w8, $a7, b);
        $w9 = hi($w9, $a8, b);
        $w10 = hi($w10, $a9, b);
    };
}

/// Moves the window one column on.
macro_rules! slide {
    ($next:expr; $w0:ident $w1:ident $w2:ident $w3:ident $w4:ident $w5:ident $w6:ident $w7:ident $w8:ident $w9:ident
     $w10:ident) => {
        $w0 = $w1;
        $w1 = $w2;
        $w2 = $w3;
        $w3 = $w4;
        $w4 = $w5;
        $w5 = $w6;
        $w6 = $w7;
        $w7 = $w8;
        $w8 = $w9;
        $w9 = $w10;
        $w10 = $next;
    };
}

/// `columns += rows · b`; `columns` has eleven more entries than `b`.
#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
fn add_rows(rows: &[Lanes; BLOCK], b: &[Lanes], columns: &mut [Lanes]) {
    let columns = &mut columns[..b.len() + BLOCK + 1];
    let [a0, a1, a2, a3, a4, a5, a6, a7, a8, a9] = rows;
    let (a0, a1, a2, a3, a4) = (load(a0), load(a1), load(a2), load(a3), load(a4));
    let (a5, a6, a7, a8, a9) = (load(a5), load(a6), load(a7), load(a8), load(a9));
    let (mut w0, mut w1, mut w2) = (load(&columns[0]), load(&columns[1]), load(&columns[2]));
    let (mut w3, mut w4, mut w5) = (load(&columns[3]), load(&columns[4]), load(&columns[5]));
    let (mut w6, mut w7, mut w8) = (load(&columns[6]), load(&columns[7]), load(&columns[8]));
    let (mut w9, mut w10) = (load(&columns[9]), load(&columns[10]));
    let mut at = 0;
    for block in b.chunks_exact(BLOCK) {
        // One slice per ten steps: its bounds are checked once.
        let out = &mut columns[at..at + 2 * BLOCK + 1];
        macro_rules! step {
            ($($j:literal)*) => {$(
                rows_times!(load(&block[$j]); a0 a1 a2 a3 a4 a5 a6 a7 a8 a9; w0 w1 w2 w3 w4 w5 w6 w7 w8 w9 w10);
                store(&mut out[$j], w0);
                slide!(load(&out[$j + BLOCK + 1]); w0 w1 w2 w3 w4 w5 w6 w7 w8 w9 w10);
            )*};
        }
        step!(0 1 2 3 4 5 6 7 8 9);
        at += BLOCK;
    }
    for (column, w) in columns[at..].iter_mut().zip([w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10]) {
        store(column, w);
    }
}

/// The rows of block `i`.
#[inline]
fn block(a: &[Lanes], i: usize) -> &[Lanes; BLOCK] {
    &a.as_chunks::<BLOCK>().0[i]
}

#[target_feature(enable = "avx512f,avx512ifma")]
fn multiply(a: &[Lanes], b: &[Lanes], columns: &mut [Lanes]) {
    columns.fill(Lanes::ZERO);
    for i in 0..a.len() / BLOCK {
        add_rows(block(a, i), b, &mut columns[i * BLOCK..]);
    }
}

#[target_feature(enable = "avx512f,avx512ifma")]
fn square(a: &[Lanes], columns: &mut [Lanes]) {
    columns.fill(Lanes::ZERO);
    let blocks = a.len() / BLOCK;
    for i in 0..blocks - 1 {
        add_rows(block(a, i), &a[(i + 1) * BLOCK..], &mut columns[(2 * i + 1) * BLOCK..]);
    }
    for column in columns.iter_mut() {
        let doubled = _mm512_slli_epi64::<1>(load(column));
        store(column, doubled);
    }
    for i in 0..blocks {
        add_rows(block(a, i), block(a, i), &mut columns[2 * i * BLOCK..]);
    }
}

/// Clears the lower half of `columns` by multiples of `n` and leaves the upper half, carried, in `out`.
#[target_feature(enable = "avx512f,avx512ifma")]
fn reduce(n: &[Lanes], n_inverse: u64, columns: &mut [Lanes], out: &mut [Lanes]) {
    let limbs = n.len();
    let inverse = _mm512_set1_epi64(n_inverse.cast_signed());
    for i in 0..limbs / BLOCK {
        let columns = &mut columns[i * BLOCK..];
        let rows = clear_block(block(n, 0), inverse, columns);
        add_rows(&rows, &n[BLOCK..], &mut columns[BLOCK..]);
    }
    let mask = _mm512_set1_epi64(LIMB_MAX.cast_signed());
    let mut carry = _mm512_setzero_si512();
    for (out, column) in out.iter_mut().zip(&columns[limbs..]) {
        let sum = _mm512_add_epi64(load(column), carry);
        store(out, _mm512_and_si512(sum, mask));
        carry = _mm512_srli_epi64::<LIMB_BITS>(sum);
    }
}

/// Clears ten columns, one after the other, with the lowest ten limbs of the modulus; returns the multipliers.
#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
fn clear_block(n: &[Lanes; BLOCK], inverse: __m512i, columns: &mut [Lanes]) -> [Lanes; BLOCK] {
    let columns = &mut columns[..2 * BLOCK + 1];
    let mut rows = [Lanes::ZERO; BLOCK];
    let [n0, n1, n2, n3, n4, n5, n6, n7, n8, n9] = n;
    let (n0, n1, n2, n3, n4) = (load(n0), load(n1), load(n2), load(n3), load(n4));
    let (n5, n6, n7, n8, n9) = (load(n5), load(n6), load(n7), load(n8), load(n9));
    let (mut w0, mut w1, mut w2) = (load(&columns[0]), load(&columns[1]), load(&columns[2]));
    let (mut w3, mut w4, mut w5) = (load(&columns[3]), load(&columns[4]), load(&columns[5]));
    let (mut w6, mut w7, mut w8) = (load(&columns[6]), load(&columns[7]), load(&columns[8]));
    let (mut w9, mut w10) = (load(&columns[9]), load(&columns[10]));
    for (i, row) in rows.iter_mut().enumerate() {
        let m = lo(_mm512_setzero_si512(), w0, inverse);
        store(row, m);
        rows_times!(m; n0 n1 n2 n3 n4 n5 n6 n7 n8 n9; w0 w1 w2 w3 w4 w5 w6 w7 w8 w9 w10);
        w1 = _mm512_add_epi64(w1, _mm512_srli_epi64::<LIMB_BITS>(w0));
        slide!(load(&columns[i + BLOCK + 1]); w0 w1 w2 w3 w4 w5 w6 w7 w8 w9 w10);
    }
    for (column, w) in columns[BLOCK..].iter_mut().zip([w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10]) {
        store(column, w);
    }
    rows
}

#[target_feature(enable = "avx512f")]
fn select_entries(row: &[u64], digits: &[u8; LANES], out: &mut [Lanes]) {
    let limbs = out.len();
    let wanted = load(&Lanes(digits.map(u64::from)));
    for (block, out) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
        let zero = _mm512_setzero_si512();
        let mut chosen = [zero; BLOCK];
        let mut index = zero;
        for number in row.chunks_exact(limbs) {
            let here = _mm512_cmpeq_epi64_mask(wanted, index);
            index = _mm512_add_epi64(index, _mm512_set1_epi64(1));
            let number = &number.as_chunks::<BLOCK>().0[block];
            for k in 0..BLOCK {
                chosen[k] = _mm512_mask_mov_epi64(chosen[k], here, _mm512_set1_epi64(number[k].cast_signed()));
            }
        }
        for k in 0..BLOCK {
            store(&mut out[k], chosen[k]);
        }
    }
}
