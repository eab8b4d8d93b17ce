//! Matrix products.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, CowArray, s};

/// Products at most this many columns wide run on ndarray's kernel, wider ones on `gemm`.
///
/// Microseconds, one core with AVX-512, `m × k × n`, ndarray / `gemm`: 5000×14×8 40 / 54, 5000×8×8 28 / 46,
/// 8×5000×8 10 / 20, 14×5000×8 28 / 28; but 1024×8×16 5.6 / 3.4, 5000×32×10 123 / 84, 1024×400×16 270 / 112,
/// 1024×42×400 364 / 173, 42×1024×400 393 / 146. The rule must not look at `m`, see [`matmul`].
const NDARRAY_COLUMNS_MAX: usize = 8;

/// `gemm` sums at least this many products before it touches the output, whatever the number of rows; longer sums it
/// cuts at places that depend on the number of rows. So longer sums are cut here.
const GEMM_DEPTH: usize = 512;

/// `gemm` has another kernel for outputs of at most this many elements, which sums in another order, when both
/// operands are contiguous along the sum.
const GEMM_HORIZONTAL_MAX: usize = 256;

/// `out = a·b`, or `out += a·b` if `accumulate`: `[m, k]·[k, n]`, any strides, one thread.
///
/// A row of the result has the same bits however many other rows are in the call, so that training does not depend on
/// how a batch was cut.
///
/// # Panics
/// If the shapes do not fit together, which is a bug of the caller.
pub fn matmul(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>, mut out: ArrayViewMut2<'_, f32>, accumulate: bool) {
    let ((m, k), n) = (a.dim(), b.ncols());
    assert!(
        b.nrows() == k && out.dim() == (m, n),
        "shapes do not fit: {:?} · {:?} → {:?}",
        a.dim(),
        b.dim(),
        out.dim()
    );
    if m == 0 || n == 0 {
        return;
    }
    if n <= NDARRAY_COLUMNS_MAX {
        let beta = if accumulate { 1.0 } else { 0.0 };
        return general_mat_mul(1.0, &a, &b, beta, &mut out);
    }
    if k == 0 {
        if !accumulate {
            out.fill(0.0);
        }
        return;
    }
    if m == 1 {
        return gemm_one_row(a, b, out, accumulate);
    }
    let horizontal = m * n <= GEMM_HORIZONTAL_MAX && b.strides()[0] == 1;
    let b = if horizontal { CowArray::from(b.as_standard_layout().into_owned()) } else { CowArray::from(b) };
    for start in (0..k).step_by(GEMM_DEPTH) {
        let depth = start..k.min(start + GEMM_DEPTH);
        gemm_block(a.slice(s![.., depth.clone()]), b.slice(s![depth, ..]), out.view_mut(), accumulate || start > 0);
    }
}

/// `gemm` has its own kernel for one row, so the row is computed twice by the kernel for many.
fn gemm_one_row(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>, mut out: ArrayViewMut2<'_, f32>, accumulate: bool) {
    let mut twice = Array2::zeros((2, b.ncols()));
    if accumulate {
        twice.assign(&out);
    }
    let a = ndarray::concatenate![ndarray::Axis(0), a, a];
    matmul(a.view(), b, twice.view_mut(), accumulate);
    out.assign(&twice.slice(s![..1, ..]));
}

#[expect(unsafe_code, reason = "gemm takes pointers and strides; it is twice as fast as safe code")]
fn gemm_block(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>, mut out: ArrayViewMut2<'_, f32>, accumulate: bool) {
    let ((m, k), n) = (a.dim(), b.ncols());
    assert!(b.nrows() == k && out.dim() == (m, n));
    let out_strides = [out.strides()[0], out.strides()[1]];
    // SAFETY: the pointers and strides are those of live views whose dimensions were just checked to be [m, k], [k, n]
    // and [m, n], so every element addressed lies in its view; `out` is borrowed mutably, so it overlaps neither of the
    // others and its elements are distinct. Elements of an `f32` view are initialised, and read only if `accumulate`.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            out_strides[1],
            out_strides[0],
            accumulate,
            a.as_ptr(),
            a.strides()[1],
            a.strides()[0],
            b.as_ptr(),
            b.strides()[1],
            b.strides()[0],
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// A row-major view of `slice` as rows of `width`.
#[expect(clippy::expect_used, reason = "the buffers of this crate hold whole rows, and no layer is 0 wide")]
pub(crate) fn view(slice: &[f32], width: usize) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((slice.len() / width, width), slice).expect("whole rows")
}

/// A row-major mutable view of `slice` as rows of `width`.
#[expect(clippy::expect_used, reason = "the buffers of this crate hold whole rows, and no layer is 0 wide")]
pub(crate) fn view_mut(slice: &mut [f32], width: usize) -> ArrayViewMut2<'_, f32> {
    ArrayViewMut2::from_shape((slice.len() / width, width), slice).expect("whole rows")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::Rng;

    use super::*;
    use crate::init::init_rng;

    fn random(rows: usize, columns: usize, name: &str) -> Array2<f32> {
        let mut rng = init_rng(3, name);
        Array2::from_shape_simple_fn((rows, columns), || rng.next_u32() as f32 / u32::MAX as f32 - 0.5)
    }

    fn product(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> Array2<f32> {
        let mut out = Array2::from_elem((a.nrows(), b.ncols()), f32::NAN);
        matmul(a, b, out.view_mut(), false);
        out
    }

    fn bits(matrix: ArrayView2<'_, f32>) -> Vec<u32> {
        matrix.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn a_row_has_the_same_bits_in_any_batch() {
        for (k, n) in [
            (14, 8),
            (8, 8),
            (8, 1),
            (1, 8),
            (1, 16),
            (2, 16),
            (3, 9),
            (42, 40),
            (83, 33),
            (400, 16),
            (600, 20),
            (1100, 12),
            (300, 5),
        ] {
            let a = random(5000, k, "a");
            let (plain, transposed) = (random(k, n, "b"), random(n, k, "b"));
            for (b, layout) in [(plain.view(), "plain"), (transposed.t(), "transposed")] {
                let whole = product(a.view(), b);
                for rows in [1, 2, 7, 8, 16, 27, 28, 29, 64, 65, 100, 1000] {
                    let part = product(a.slice(s![..rows, ..]), b);
                    assert_eq!(bits(part.view()), bits(whole.slice(s![..rows, ..])), "{rows} rows, {k} × {n} {layout}");
                    // The last rows too, in the chunks of an epoch whose last batch is smaller.
                    let last = 5000 - rows;
                    let part = product(a.slice(s![last.., ..]), b);
                    assert_eq!(bits(part.view()), bits(whole.slice(s![last.., ..])));
                }
                let mut accumulated = Array2::from_elem((5000, n), 0.25);
                matmul(a.view(), b, accumulated.view_mut(), true);
                for rows in [1, 7, 64] {
                    let mut part = Array2::from_elem((rows, n), 0.25);
                    matmul(a.slice(s![..rows, ..]), b, part.view_mut(), true);
                    assert_eq!(
                        bits(part.view()),
                        bits(accumulated.slice(s![..rows, ..])),
                        "{rows} rows onto {k} × {n} {layout}"
                    );
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "shapes do not fit")]
    fn shapes_that_do_not_fit_are_a_bug() {
        product(Array2::zeros((2, 3)).view(), Array2::zeros((4, 2)).view());
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(
            m in 0_usize..40, k in 0_usize..40, n in 0_usize..40,
            layout in 0_u8..16, accumulate: bool,
        ) {
            let operand = |rows, columns, name, flip: bool, reverse: bool| {
                let mut matrix = if flip {
                    random(columns, rows, name).reversed_axes()
                } else {
                    random(rows, columns, name)
                };
                if reverse {
                    matrix.invert_axis(ndarray::Axis(0));
                }
                matrix
            };
            let a = operand(m, k, "a", layout & 1 != 0, layout & 8 != 0);
            let b = operand(k, n, "b", layout & 2 != 0, layout & 8 != 0);
            let mut out = operand(m, n, "out", layout & 4 != 0, layout & 8 != 0);
            let before = out.clone();
            matmul(a.view(), b.view(), out.view_mut(), accumulate);
            for ((i, j), &found) in out.indexed_iter() {
                let start = if accumulate { f64::from(before[[i, j]]) } else { 0.0 };
                let expected = (0..k).fold(start, |sum, p| {
                    sum + f64::from(a[[i, p]]) * f64::from(b[[p, j]])
                });
                prop_assert!((f64::from(found) - expected).abs() < 1e-5);
            }
        }
    }
}
