//! Matrix products of strided slices by the `gemm` crate, on the calling thread:
//! parallelism is the caller's, so that the bits do not depend on it.
#![expect(unsafe_code, reason = "the gemm crate takes raw pointers; extents are checked here")]

use crate::element::Element;

/// A matrix laid over a slice.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    pub values: &'a [T],
    pub row_stride: usize,
    pub col_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// Rows one after the other, `row_stride` apart.
    pub(crate) fn rows(values: &'a [T], row_stride: usize) -> Self {
        Self { values, row_stride, col_stride: 1 }
    }

    /// The transpose of [`Matrix::rows`].
    pub(crate) fn transposed(values: &'a [T], row_stride: usize) -> Self {
        Self { values, row_stride: 1, col_stride: row_stride }
    }

    fn holds(&self, rows: usize, cols: usize) -> bool {
        (rows - 1) * self.row_stride + (cols - 1) * self.col_stride < self.values.len()
    }
}

/// Extents of a product: `[rows, depth] x [depth, cols]`, none 0.
#[derive(Clone, Copy)]
pub(crate) struct Extents {
    pub rows: usize,
    pub cols: usize,
    pub depth: usize,
}

/// `result = a b`, or `result += a b` when `accumulate`; the rows of `result`
/// lie `result_stride` apart.
pub(crate) fn multiply<T: Element>(
    result: &mut [T],
    result_stride: usize,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    Extents { rows, cols, depth }: Extents,
    accumulate: bool,
) {
    assert!(rows > 0 && cols > 0 && depth > 0, "empty product");
    assert!(a.holds(rows, depth) && b.holds(depth, cols), "short factor");
    assert!(cols <= result_stride && (rows - 1) * result_stride + cols <= result.len(), "short result");
    // SAFETY: the asserts bound every index of the three strided accesses by the
    // lengths of the slices; `result` is borrowed mutably, so it overlaps neither.
    unsafe {
        gemm::gemm(
            rows,
            cols,
            depth,
            result.as_mut_ptr(),
            1,
            result_stride as isize,
            accumulate,
            a.values.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            T::one(),
            T::one(),
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
