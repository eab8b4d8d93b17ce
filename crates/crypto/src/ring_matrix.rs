//! Matrix products over Z_2^64.
//!
//! Integer products are exact, so no order of sums and no number of lanes changes a bit.

use multiversion::multiversion;
use zeroize::Zeroize;

/// Rows and columns of the tile that is kept in registers: eight accumulators of eight 64-bit lanes each, which AVX-512
/// holds in 8 of its 32 registers and multiplies with one instruction (`vpmullq`) each.
const TILE: usize = 8;

/// The right factor of a product, `[d, h]`, laid out in panels of eight columns, one row of a panel after the other, the
/// last one filled up with zeros.
pub struct RingPanels {
    panels: Vec<u64>,
    inner: usize,
    columns: usize,
}

impl RingPanels {
    /// Lays out `matrix`, `[inner, columns]` row by row.
    ///
    /// # Panics
    /// If the length does not fit the shape, which is the caller's own.
    #[must_use]
    pub fn new(matrix: &[u64], inner: usize, columns: usize) -> Self {
        assert_eq!(matrix.len(), inner * columns, "a matrix of another shape");
        let mut panels = vec![0; columns.div_ceil(TILE) * inner * TILE];
        if columns > 0 && inner > 0 {
            for (row, values) in matrix.chunks_exact(columns).enumerate() {
                for (values, panel) in values.chunks(TILE).zip(panels.chunks_exact_mut(inner * TILE)) {
                    panel[row * TILE..row * TILE + values.len()].copy_from_slice(values);
                }
            }
        }
        Self { panels, inner, columns }
    }

    /// Adds `left · self` to `out`, modulo 2^64: `left` is `[n, inner]`, `out` is `[n, columns]`.
    ///
    /// # Panics
    /// If the lengths do not fit, which are the caller's own.
    pub fn multiply_add(&self, left: &[u64], out: &mut [u64]) {
        let Self { panels, inner, columns } = self;
        if *inner == 0 || *columns == 0 {
            return;
        }
        let rows = out.len() / columns;
        assert_eq!((left.len(), out.len()), (rows * inner, rows * columns), "matrices of other shapes");
        multiply_add(left, panels, out, *inner, *columns);
    }
}

/// A factor may be a share, which is a secret.
impl Drop for RingPanels {
    fn drop(&mut self) {
        self.panels.zeroize();
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl+avx512bw", "x86_64+avx2"))]
fn multiply_add(left: &[u64], panels: &[u64], out: &mut [u64], inner: usize, columns: usize) {
    for (left, out) in left.chunks(TILE * inner).zip(out.chunks_mut(TILE * columns)) {
        for (panel, first) in panels.chunks_exact(inner * TILE).zip((0..columns).step_by(TILE)) {
            let mut tile = [[0_u64; TILE]; TILE];
            if left.len() == TILE * inner {
                let rows: [&[u64]; TILE] = std::array::from_fn(|r| &left[r * inner..(r + 1) * inner]);
                for (l, right) in panel.as_chunks::<TILE>().0.iter().enumerate() {
                    for (sums, row) in tile.iter_mut().zip(rows) {
                        fused(sums, row[l], right);
                    }
                }
            } else {
                for (sums, row) in tile.iter_mut().zip(left.chunks_exact(inner)) {
                    for (x, right) in row.iter().zip(panel.as_chunks::<TILE>().0) {
                        fused(sums, *x, right);
                    }
                }
            }
            let width = TILE.min(columns - first);
            for (sums, out) in tile.iter().zip(out.chunks_exact_mut(columns)) {
                let out = &mut out[first..first + width];
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = out.wrapping_add(*sum));
            }
        }
    }
}

#[inline(always)]
fn fused(sums: &mut [u64; TILE], x: u64, right: &[u64; TILE]) {
    for (sum, y) in sums.iter_mut().zip(right) {
        *sum = sum.wrapping_add(x.wrapping_mul(*y));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn schoolbook(left: &[u64], right: &[u64], out: &mut [u64], inner: usize, columns: usize) {
        for (i, out) in out.iter_mut().enumerate() {
            let (row, column) = (i / columns, i % columns);
            for l in 0..inner {
                *out = out.wrapping_add(left[row * inner + l].wrapping_mul(right[l * columns + column]));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn is_the_schoolbook_product(rows in 0_usize..20, inner in 0_usize..20, columns in 0_usize..20, seed in any::<u64>()) {
            use rand::{Rng, SeedableRng};
            let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
            let mut matrix = |n: usize| (0..n).map(|_| rng.next_u64()).collect::<Vec<_>>();
            let (left, right, mut out) = (matrix(rows * inner), matrix(inner * columns), matrix(rows * columns));
            let mut expected = out.clone();
            schoolbook(&left, &right, &mut expected, inner, columns);
            RingPanels::new(&right, inner, columns).multiply_add(&left, &mut out);
            prop_assert_eq!(out, expected);
        }
    }
}
