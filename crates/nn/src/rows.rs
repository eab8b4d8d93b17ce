//! A vector against every row of a matrix: adding it, and its gradient.
//!
//! Rows are often 8 or 1 wide, too narrow for a vector unit. So these loops run over whole multiples of a row, several
//! rows at once.

/// Numbers per block at least: four AVX-512 registers.
const BLOCK_MIN: usize = 64;

/// A row vector repeated to the length of a block, and room for one.
#[derive(Default)]
pub(crate) struct RowBlock {
    block: Vec<f32>,
}

impl RowBlock {
    /// Sets every row of `out` to `row`.
    pub(crate) fn fill(&mut self, row: &[f32], out: &mut [f32]) {
        let block = self.repeat(row);
        for out in out.chunks_mut(block.len()) {
            out.copy_from_slice(&block[..out.len()]);
        }
    }

    /// Sets `out` to `input` with `row` added to every row.
    pub(crate) fn add(&mut self, row: &[f32], input: &[f32], out: &mut [f32]) {
        let block = &*self.repeat(row);
        let chunks = out.chunks_mut(block.len()).zip(input.chunks(block.len()));
        for (out, input) in chunks {
            for ((out, &input), &row) in out.iter_mut().zip(input).zip(block) {
                *out = input + row;
            }
        }
    }

    /// Sets `sums` to the sum of all rows.
    pub(crate) fn sum(&mut self, rows: &[f32], sums: &mut [f32]) {
        sums.fill(0.0);
        let block = self.repeat(sums);
        for rows in rows.chunks(block.len()) {
            for (sum, &value) in block.iter_mut().zip(rows) {
                *sum += value;
            }
        }
        for row in block.chunks_exact(sums.len()) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += value;
            }
        }
    }

    fn repeat(&mut self, row: &[f32]) -> &mut [f32] {
        self.block.clear();
        for _ in 0..BLOCK_MIN.div_ceil(row.len()) {
            self.block.extend_from_slice(row);
        }
        &mut self.block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_one_row_at_a_time() {
        for width in [1, 3, 8, 64, 100] {
            for count in [0, 1, 2, 7, 65, 200] {
                let row: Vec<f32> = (0..width).map(|j| j as f32).collect();
                let rows: Vec<f32> = (0..width * count).map(|i| (i % 17) as f32).collect();
                let mut block = RowBlock::default();

                let mut filled = vec![f32::NAN; rows.len()];
                block.fill(&row, &mut filled);
                let mut added = vec![f32::NAN; rows.len()];
                block.add(&row, &rows, &mut added);
                let mut sums = vec![f32::NAN; width];
                block.sum(&rows, &mut sums);

                let mut expected = vec![0.0; width];
                for (i, &value) in rows.iter().enumerate() {
                    let j = i % width;
                    assert_eq!(filled[i], row[j]);
                    assert_eq!(added[i], value + row[j]);
                    expected[j] += value;
                }
                // Sums of small integers are exact in any order.
                assert_eq!(sums, expected);
            }
        }
    }
}
