//! From the axes of a file to axial slices: which axis runs where, and which way.

use diag_data::units::{Mm, Spacing};

use super::header::Header;
use crate::fault::Fault;
use crate::stack::View;

/// As for DICOM: an axial slice has a normal this near to the body's axis.
const MIN_AXIAL: f64 = 0.9;

/// How a volume is cut into axial slices, as radiologists look at them: from
/// below, the first row anterior, the first column to the patient's right.
#[derive(Clone, Debug, PartialEq)]
pub struct Axial {
    /// Rows of a slice.
    pub rows: usize,
    /// Columns of a slice.
    pub cols: usize,
    /// Number of slices.
    pub n_slices: usize,
    /// Pixel spacing in a slice.
    pub spacing: Spacing,
    /// Distance between slices along their normal.
    pub step: Mm,
    /// Angle between stacking direction and normal, in degrees.
    pub tilt_deg: f64,
    /// What had to be turned.
    pub view: View,
    /// Position of the lowest slice on the normal.
    lowest: f64,
    /// Index of the first voxel of the lowest slice.
    first: i64,
    /// Voxels from slice to slice, row to row, column to column.
    strides: [i64; 3],
}

impl Axial {
    /// Finds the slices of a volume.
    ///
    /// # Errors
    /// [`Fault::Volume`] when its axes are no box, or none of them runs along the body.
    pub fn of(header: &Header) -> Result<Self, Fault> {
        let wrong = |why: &str| Fault::Volume { why: why.into() };
        let column = |axis: usize| header.affine.map(|row| row[axis]);
        let lengths: [f64; 3] = std::array::from_fn(|axis| length(column(axis)));
        if lengths.iter().any(|mm| !(0.01..=50.0).contains(mm)) {
            return Err(wrong("its voxels have no usable size"));
        }
        let unit = |axis: usize| column(axis).map(|part| part / lengths[axis]);
        // The file axis for each direction of the body: the assignment that fits best.
        const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        let fit = |order: &[usize; 3]| (0..3).map(|world| unit(order[world])[world].abs()).sum::<f64>();
        let order = ORDERS.into_iter().max_by(|a, b| fit(a).total_cmp(&fit(b))).unwrap_or(ORDERS[0]);
        let [right, anterior, superior] = order;
        let mut normal = cross(unit(right), unit(anterior));
        if length(normal) < MIN_AXIAL {
            return Err(wrong("its axes are not perpendicular"));
        }
        let scale = length(normal).copysign(normal[2]);
        normal.iter_mut().for_each(|part| *part /= scale);
        let along = dot(unit(superior), normal);
        if normal[2] < MIN_AXIAL || along.abs() < 0.1 {
            return Err(wrong("none of its axes runs along the body"));
        }
        // Slices go up, rows to the back, columns to the patient's left.
        let is_flipped = [along < 0.0, unit(anterior)[1] > 0.0, unit(right)[0] > 0.0];
        let axes = [superior, anterior, right];
        let step_of = |axis: usize| header.sides[..axis].iter().product::<usize>() as i64;
        let mut first = 0;
        let mut corner = header.affine.map(|row| row[3]);
        let mut strides = [0; 3];
        for ((stride, axis), flipped) in strides.iter_mut().zip(axes).zip(is_flipped) {
            let last = header.sides[axis] - 1;
            *stride = if flipped { -step_of(axis) } else { step_of(axis) };
            if flipped {
                first += step_of(axis) * last as i64;
                corner.iter_mut().zip(column(axis)).for_each(|(at, part)| *at += part * last as f64);
            }
        }
        Ok(Self {
            rows: header.sides[anterior],
            cols: header.sides[right],
            n_slices: header.sides[superior],
            spacing: Spacing { row: Mm(lengths[anterior]), col: Mm(lengths[right]) },
            step: Mm(lengths[superior] * along.abs()),
            tilt_deg: along.abs().min(1.0).acos().to_degrees(),
            view: View::new(right > anterior, is_flipped[1], is_flipped[2]),
            lowest: dot(corner, normal),
            first,
            strides,
        })
    }

    /// Position of a slice on the normal.
    pub fn z(&self, index: usize) -> Mm {
        Mm(self.lowest + index as f64 * self.step.0)
    }

    /// Index of a voxel in the file.
    pub fn voxel(&self, slice: usize, row: usize, col: usize) -> usize {
        let [by_slice, by_row, by_col] = self.strides;
        (self.first + slice as i64 * by_slice + row as i64 * by_row + col as i64 * by_col) as usize
    }
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn length(a: [f64; 3]) -> f64 {
    dot(a, a).sqrt()
}

fn cross(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}
