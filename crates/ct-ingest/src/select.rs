//! Which slices show lung, and where the body and the lungs lie.
//!
//! Body: above -500 HU, largest connected part, holes filled. Lung: below
//! -400 HU inside the body, parts above 0.3 % of the body that do not touch the
//! image border. Slices are kept whose lung fraction is at least half the case's
//! 95th percentile, 2 to 54 of them. Dense consolidation lowers the fraction, so
//! the selection can favour a class: the fraction is stored, and the manifest
//! counts what was dropped.

/// Sides of the grid on which masks are computed: fine enough for areas and
/// boxes, and coarse enough that noise does not tear the lungs apart.
const GRID: usize = 128;
const BODY_HU: f32 = -500.0;
const LUNG_HU: f32 = -400.0;
const MIN_LUNG_SHARE: f32 = 0.003;
/// A case whose 95th percentile is lower shows no lung, but at most gas in the bowel.
const MIN_CASE_FRACTION: f32 = 0.05;

/// Fewest slices of a case.
pub const MIN_SLICES: usize = 2;
/// Most slices of a case, as on the data card.
pub const MAX_SLICES: usize = 54;

/// Region of an image in pixels: rows `top..bottom`, columns `left..right`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Region {
    /// First row.
    pub top: f64,
    /// First column.
    pub left: f64,
    /// Row after the last.
    pub bottom: f64,
    /// Column after the last.
    pub right: f64,
}

impl Region {
    /// The whole of an image.
    pub fn whole(rows: usize, cols: usize) -> Self {
        Self { top: 0.0, left: 0.0, bottom: rows as f64, right: cols as f64 }
    }

    /// The smallest region around both.
    pub fn union(self, other: Self) -> Self {
        Self {
            top: self.top.min(other.top),
            left: self.left.min(other.left),
            bottom: self.bottom.max(other.bottom),
            right: self.right.max(other.right),
        }
    }
}

/// What the masks of one slice say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LungMeasure {
    /// Lung area over body area, 0 to 1.
    pub fraction: f32,
    /// Box around the body.
    pub body: Option<Region>,
    /// Box around the lungs.
    pub lung: Option<Region>,
}

/// Body and lungs of one slice, on a coarse grid.
#[derive(Clone, Debug)]
pub struct Masks {
    size: (usize, usize),
    width: usize,
    block: usize,
    body: Vec<bool>,
    lung: Vec<bool>,
}

/// Measures one slice: `hu` is row-major, `rows * cols`, without padding.
pub fn measure(hu: &[f32], rows: usize, cols: usize) -> LungMeasure {
    Masks::of(hu, rows, cols).measure()
}

impl Masks {
    /// Finds body and lungs: `hu` is row-major, `rows * cols`, without padding.
    pub fn of(hu: &[f32], rows: usize, cols: usize) -> Self {
        let grid = Grid::of(hu, rows, cols);
        let solid: Vec<bool> = grid.hu.iter().map(|hu| *hu > BODY_HU).collect();
        let (mut body, mut lung) = (vec![false; solid.len()], vec![false; solid.len()]);
        if let Some(largest) = grid.parts(&solid).into_iter().max_by_key(|part| part.cells.len()) {
            body = grid.filled(&largest);
            let n_body = body.iter().filter(|inside| **inside).count();
            let is_airy = |(hu, inside): (&f32, &bool)| *inside && *hu < LUNG_HU;
            let airy: Vec<bool> = grid.hu.iter().zip(&body).map(is_airy).collect();
            for part in grid.parts(&airy) {
                if part.cells.len() as f32 > MIN_LUNG_SHARE * n_body as f32 && !part.touches_border {
                    part.cells.iter().for_each(|cell| lung[*cell] = true);
                }
            }
        }
        Self { size: (rows, cols), width: grid.width, block: grid.block, body, lung }
    }

    /// Fraction and boxes.
    pub fn measure(&self) -> LungMeasure {
        let count = |mask: &[bool]| mask.iter().filter(|inside| **inside).count();
        let n_body = count(&self.body);
        LungMeasure {
            fraction: if n_body == 0 { 0.0 } else { count(&self.lung) as f32 / n_body as f32 },
            body: self.region(&self.body),
            lung: self.region(&self.lung),
        }
    }

    /// Whether a point, in pixels of the slice, lies in the body.
    pub fn is_body(&self, row: f64, col: f64) -> bool {
        self.cell(row, col).is_some_and(|cell| self.body[cell])
    }

    /// Whether a point, in pixels of the slice, lies in a lung.
    pub fn is_lung(&self, row: f64, col: f64) -> bool {
        self.cell(row, col).is_some_and(|cell| self.lung[cell])
    }

    fn cell(&self, row: f64, col: f64) -> Option<usize> {
        let (rows, cols) = (self.size.0 as f64, self.size.1 as f64);
        let inside = (0.0..rows).contains(&row) && (0.0..cols).contains(&col);
        inside.then(|| row as usize / self.block * self.width + col as usize / self.block)
    }

    fn region(&self, mask: &[bool]) -> Option<Region> {
        let cells = || (0..mask.len()).filter(|cell| mask[*cell]);
        let (ys, xs) = (|| cells().map(|cell| cell / self.width), || cells().map(|cell| cell % self.width));
        let pixel = |cell: usize, limit: usize| (cell * self.block).min(limit) as f64;
        let (rows, cols) = self.size;
        Some(Region {
            top: pixel(ys().min()?, rows),
            left: pixel(xs().min()?, cols),
            bottom: pixel(ys().max()? + 1, rows),
            right: pixel(xs().max()? + 1, cols),
        })
    }
}

/// Chooses slices by their lung fractions, in order of position. Returns their
/// indices, ascending; `None` when the case shows no lung.
///
/// ```
/// use ct_ingest::select::choose;
/// assert_eq!(choose(&[0.0, 0.1, 0.3, 0.3, 0.2, 0.0]), Some(vec![2, 3, 4]));
/// assert_eq!(choose(&[0.0, 0.001]), None);
/// ```
pub fn choose(fractions: &[f32]) -> Option<Vec<usize>> {
    let mut sorted = fractions.to_vec();
    sorted.sort_by(f32::total_cmp);
    let p95 = *sorted.get((0.95 * (sorted.len().checked_sub(1)?) as f64).round() as usize)?;
    if p95 < MIN_CASE_FRACTION {
        return None;
    }
    let mut kept: Vec<usize> = (0..fractions.len()).filter(|&i| fractions[i] >= 0.5 * p95).collect();
    if kept.len() < MIN_SLICES {
        let mut by_fraction: Vec<usize> = (0..fractions.len()).collect();
        by_fraction.sort_by(|&a, &b| fractions[b].total_cmp(&fractions[a]).then(a.cmp(&b)));
        kept = by_fraction.into_iter().take(MIN_SLICES).collect();
        kept.sort_unstable();
    }
    Some(thinned(&kept, MAX_SLICES))
}

/// At most `limit` of the indices, evenly spread, the first and last among them.
fn thinned(indices: &[usize], limit: usize) -> Vec<usize> {
    if indices.len() <= limit {
        return indices.to_vec();
    }
    let step = (indices.len() - 1) as f64 / (limit - 1) as f64;
    (0..limit).map(|i| indices[(i as f64 * step).round() as usize]).collect()
}

/// A slice reduced to at most [`GRID`] cells a side by averaging whole blocks.
struct Grid {
    height: usize,
    width: usize,
    block: usize,
    hu: Vec<f32>,
}

struct Part {
    cells: Vec<usize>,
    touches_border: bool,
}

impl Grid {
    fn of(hu: &[f32], rows: usize, cols: usize) -> Self {
        let block = rows.max(cols).div_ceil(GRID).max(1);
        let (height, width) = (rows.div_ceil(block), cols.div_ceil(block));
        let mut sums = Vec::with_capacity(height * width);
        let mut columns = vec![0f32; cols];
        for band in hu.chunks(block * cols) {
            columns.fill(0.0);
            for row in band.chunks_exact(cols) {
                columns.iter_mut().zip(row).for_each(|(sum, hu)| *sum += hu);
            }
            sums.extend(columns.chunks(block).map(|cells| cells.iter().sum::<f32>()));
        }
        for (i, sum) in sums.iter_mut().enumerate() {
            let n_rows = block.min(rows - i / width * block);
            let n_cols = block.min(cols - i % width * block);
            *sum /= (n_rows * n_cols) as f32;
        }
        Self { height, width, block, hu: sums }
    }

    /// Connected parts (4 neighbours) of a mask, in order of their first cell.
    fn parts(&self, mask: &[bool]) -> Vec<Part> {
        let mut open = mask.to_vec();
        let mut parts = Vec::new();
        for start in 0..open.len() {
            if open[start] {
                parts.push(self.flood(&mut open, vec![start]));
            }
        }
        parts
    }

    /// Takes everything connected to the seeds out of `open`.
    fn flood(&self, open: &mut [bool], seeds: Vec<usize>) -> Part {
        let mut cells = seeds;
        cells.iter().for_each(|cell| open[*cell] = false);
        let (mut at, mut touches_border) = (0, false);
        while at < cells.len() {
            let cell = cells[at];
            at += 1;
            let (y, x) = (cell / self.width, cell % self.width);
            touches_border |= y == 0 || x == 0 || y + 1 == self.height || x + 1 == self.width;
            let neighbours = [
                (y > 0).then(|| cell - self.width),
                (x > 0).then(|| cell - 1),
                (x + 1 < self.width).then_some(cell + 1),
                (y + 1 < self.height).then(|| cell + self.width),
            ];
            for next in neighbours.into_iter().flatten() {
                if open[next] {
                    open[next] = false;
                    cells.push(next);
                }
            }
        }
        Part { cells, touches_border }
    }

    /// A part with its holes: all that the border cannot reach around it.
    fn filled(&self, part: &Part) -> Vec<bool> {
        let mut outside = vec![true; self.hu.len()];
        part.cells.iter().for_each(|cell| outside[*cell] = false);
        let on_border = |cell: &usize| {
            let (y, x) = (cell / self.width, cell % self.width);
            y == 0 || x == 0 || y + 1 == self.height || x + 1 == self.width
        };
        let seeds: Vec<usize> = (0..outside.len()).filter(on_border).filter(|cell| outside[*cell]).collect();
        let reached = self.flood(&mut outside, seeds);
        let mut inside = vec![true; self.hu.len()];
        reached.cells.iter().for_each(|cell| inside[*cell] = false);
        inside
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ellipse of soft tissue with two round lungs of the given radius.
    fn chest(side: usize, lung_radius: f32) -> Vec<f32> {
        let scale = side as f32 / 512.0;
        let inside = |y: f32, x: f32, cy: f32, cx: f32, ry: f32, rx: f32| {
            ((y - cy) / ry).powi(2) + ((x - cx) / rx).powi(2) < 1.0
        };
        (0..side * side)
            .map(|i| {
                let (y, x) = ((i / side) as f32 / scale, (i % side) as f32 / scale);
                let lung = |cx| inside(y, x, 256.0, cx, lung_radius, lung_radius);
                match (lung(170.0) || lung(340.0), inside(y, x, 256.0, 256.0, 150.0, 200.0)) {
                    (true, _) => -850.0,
                    (false, true) => 40.0,
                    _ => -1000.0,
                }
            })
            .collect()
    }

    #[track_caller]
    fn check(side: usize, lung_radius: f32) {
        let measured = measure(&chest(side, lung_radius), side, side);
        let want = 2.0 * lung_radius * lung_radius / (150.0 * 200.0);
        assert!((measured.fraction - want).abs() < 0.03, "{} for {want}", measured.fraction);
    }

    #[test]
    fn the_fraction_is_the_share_of_the_areas() {
        check(512, 60.0);
        check(512, 30.0);
        check(300, 60.0);
    }

    #[test]
    fn air_around_the_body_is_no_lung() {
        check(512, 0.0);
    }

    #[test]
    fn boxes_enclose_body_and_lungs() {
        let measured = measure(&chest(512, 60.0), 512, 512);
        let body = measured.body.unwrap();
        assert!((body.top - 106.0).abs() <= 4.0 && (body.right - 456.0).abs() <= 4.0, "{body:?}");
        let lung = measured.lung.unwrap();
        assert!((lung.left - 110.0).abs() <= 4.0 && (lung.bottom - 316.0).abs() <= 4.0, "{lung:?}");
    }

    #[test]
    fn many_slices_are_thinned_evenly_and_few_are_kept() {
        let kept = choose(&[0.3; 200]).unwrap();
        assert_eq!((kept.len(), kept[0], kept[53]), (54, 0, 199));
        assert!(kept.windows(2).all(|pair| (3..=4).contains(&(pair[1] - pair[0]))));
        assert_eq!(choose(&[0.0, 0.0, 0.0, 0.5]), Some(vec![0, 3]));
    }
}
