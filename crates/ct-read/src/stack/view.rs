//! The usual view of an axial slice: columns run to the patient's left, rows to posterior, as
//! radiologists look at it. Scanners and converters store slices in other ways too, and say so
//! in the direction of rows and columns.

use std::borrow::Cow;

use diag_data::units::{Mm, Spacing};

/// How a stored pixel matrix becomes the usual view: transposed first, then reversed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    transposed: bool,
    rows_reversed: bool,
    cols_reversed: bool,
}

impl View {
    /// The turn for an axial slice with this ImageOrientationPatient.
    pub fn of_axial(orientation: [f64; 6]) -> Self {
        let [a, b, _, d, e, _] = orientation;
        let transposed = d.abs() > a.abs();
        // What becomes the direction along a row, and along a column.
        let (across, down) = if transposed { (d, b) } else { (a, e) };
        Self { transposed, rows_reversed: down < 0.0, cols_reversed: across < 0.0 }
    }

    /// From which axes a file stores: whether they are exchanged, and which run the other way.
    pub fn new(transposed: bool, rows_reversed: bool, cols_reversed: bool) -> Self {
        Self { transposed, rows_reversed, cols_reversed }
    }

    /// Whether nothing has to be turned.
    pub fn is_usual(self) -> bool {
        self == Self::default()
    }

    /// What is turned, in words; `None` where nothing is.
    pub fn describe(self) -> Option<String> {
        let steps = [
            (self.transposed, "rows and columns exchanged"),
            (self.rows_reversed, "rows reversed"),
            (self.cols_reversed, "columns reversed"),
        ];
        let steps: Vec<&str> = steps.into_iter().filter(|step| step.0).map(|step| step.1).collect();
        (!steps.is_empty()).then(|| format!("turned to the usual view: {}", steps.join(", ")))
    }

    /// Pixel spacing of the usual view.
    pub fn spacing(self, stored: Spacing) -> Spacing {
        let Spacing { row: Mm(row), col: Mm(col) } = stored;
        if self.transposed { Spacing { row: Mm(col), col: Mm(row) } } else { stored }
    }

    /// Rows and columns of the usual view.
    pub fn size(self, (rows, cols): (usize, usize)) -> (usize, usize) {
        if self.transposed { (cols, rows) } else { (rows, cols) }
    }

    /// Turns `rows * cols` stored values, row-major.
    pub fn turned<T: Copy>(self, stored: &[T], (rows, cols): (usize, usize)) -> Cow<'_, [T]> {
        if self.is_usual() {
            return Cow::Borrowed(stored);
        }
        let (height, width) = self.size((rows, cols));
        let mut turned = Vec::with_capacity(stored.len());
        for y in 0..height {
            let y = if self.rows_reversed { height - 1 - y } else { y };
            for x in 0..width {
                let x = if self.cols_reversed { width - 1 - x } else { x };
                turned.push(if self.transposed { stored[x * cols + y] } else { stored[y * cols + x] });
            }
        }
        Cow::Owned(turned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A body of 2 x 3 pixels in the usual view, stored with the given directions of rows and columns.
    #[track_caller]
    fn check(orientation: [f64; 6], stored: &[u8], size: (usize, usize)) {
        let view = View::of_axial(orientation);
        assert_eq!(view.size(size), (2, 3));
        assert_eq!(*view.turned(stored, size), [1, 2, 3, 4, 5, 6], "{orientation:?}");
    }

    #[test]
    fn every_way_to_store_a_slice_gives_one_view() {
        check([1.0, 0.0, 0.0, 0.0, 1.0, 0.0], &[1, 2, 3, 4, 5, 6], (2, 3));
        check([-1.0, 0.0, 0.0, 0.0, 1.0, 0.0], &[3, 2, 1, 6, 5, 4], (2, 3));
        check([1.0, 0.0, 0.0, 0.0, -1.0, 0.0], &[4, 5, 6, 1, 2, 3], (2, 3));
        check([-1.0, 0.0, 0.0, 0.0, -1.0, 0.0], &[6, 5, 4, 3, 2, 1], (2, 3));
        check([0.0, 1.0, 0.0, 1.0, 0.0, 0.0], &[1, 4, 2, 5, 3, 6], (3, 2));
        check([0.0, -1.0, 0.0, 1.0, 0.0, 0.0], &[4, 1, 5, 2, 6, 3], (3, 2));
        check([0.0, 1.0, 0.0, -1.0, 0.0, 0.0], &[3, 6, 2, 5, 1, 4], (3, 2));
        check([0.0, -1.0, 0.0, -1.0, 0.0, 0.0], &[6, 3, 5, 2, 4, 1], (3, 2));
        // A head that is tilted by less than 45 degrees is not turned.
        check([0.9, 0.4, 0.0, -0.4, 0.9, 0.0], &[1, 2, 3, 4, 5, 6], (2, 3));
    }

    #[test]
    fn what_was_turned_is_said() {
        let view = View::of_axial([0.0, -1.0, 0.0, 1.0, 0.0, 0.0]);
        let want = "turned to the usual view: rows and columns exchanged, rows reversed";
        assert_eq!(view.describe().as_deref(), Some(want));
        assert_eq!(View::default().describe(), None);
        let spacing = Spacing { row: Mm(2.0), col: Mm(1.0) };
        assert_eq!(view.spacing(spacing), Spacing { row: Mm(1.0), col: Mm(2.0) });
    }
}
