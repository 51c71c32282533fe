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

/// Body and lungs of one slice, on a coarse grid: a word a row, the first column in its lowest bit.
#[derive(Clone, Debug)]
pub struct Masks {
    size: (usize, usize),
    block: usize,
    body: Vec<u128>,
    lung: Vec<u128>,
}

impl Masks {
    /// Finds body and lungs in a slice reduced to a grid of HU without padding.
    pub fn of(grid: &Grid) -> Self {
        let width = grid.width;
        let solid = Parts::of(&grid.rows_where(|hu| hu > BODY_HU), width);
        let body = solid.largest().map(|largest| solid.filled(largest));
        let body = body.unwrap_or_else(|| vec![0; solid.n_rows]);
        let mut airy = grid.rows_where(|hu| hu < LUNG_HU);
        airy.iter_mut().zip(&body).for_each(|(airy, body)| *airy &= body);
        let airy = Parts::of(&airy, width);
        let smallest = MIN_LUNG_SHARE * n_cells(&body) as f32;
        let is_lung = |part: usize| airy.n_cells[part] as f32 > smallest && !airy.touches_border[part];
        let lung = airy.rows_of(is_lung);
        Self { size: (grid.rows, grid.cols), block: grid.block, body, lung }
    }

    /// Fraction and boxes.
    pub fn measure(&self) -> LungMeasure {
        let n_body = n_cells(&self.body);
        LungMeasure {
            fraction: if n_body == 0 { 0.0 } else { n_cells(&self.lung) as f32 / n_body as f32 },
            body: self.region(&self.body),
            lung: self.region(&self.lung),
        }
    }

    /// Whether a point, in pixels of the slice, lies in the body.
    pub fn is_body(&self, row: f64, col: f64) -> bool {
        self.holds(&self.body, row, col)
    }

    /// Whether a point, in pixels of the slice, lies in a lung.
    pub fn is_lung(&self, row: f64, col: f64) -> bool {
        self.holds(&self.lung, row, col)
    }

    fn holds(&self, mask: &[u128], row: f64, col: f64) -> bool {
        let (rows, cols) = (self.size.0 as f64, self.size.1 as f64);
        let inside = (0.0..rows).contains(&row) && (0.0..cols).contains(&col);
        inside && mask[row as usize / self.block] >> (col as usize / self.block) & 1 == 1
    }

    fn region(&self, mask: &[u128]) -> Option<Region> {
        let first_row = mask.iter().position(|row| *row != 0)?;
        let last_row = mask.iter().rposition(|row| *row != 0)?;
        let columns = mask.iter().fold(0, |columns, row| columns | row);
        let pixel = |cell: usize, limit: usize| (cell * self.block).min(limit) as f64;
        let (rows, cols) = self.size;
        Some(Region {
            top: pixel(first_row, rows),
            left: pixel(columns.trailing_zeros() as usize, cols),
            bottom: pixel(last_row + 1, rows),
            right: pixel(128 - columns.leading_zeros() as usize, cols),
        })
    }
}

fn n_cells(mask: &[u128]) -> usize {
    mask.iter().map(|row| row.count_ones() as usize).sum()
}

/// Chooses slices by their lung fractions, in order of position. Returns their
/// indices, ascending; `None` when the case shows no lung.
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

/// A slice reduced to at most 128 cells a side by averaging whole blocks.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    rows: usize,
    cols: usize,
    width: usize,
    block: usize,
    hu: Vec<f32>,
}

impl Grid {
    /// A grid without its cells.
    pub fn new(rows: usize, cols: usize) -> Self {
        let block = rows.max(cols).div_ceil(GRID).max(1);
        let (height, width) = (rows.div_ceil(block), cols.div_ceil(block));
        Self { rows, cols, width, block, hu: Vec::with_capacity(height * width) }
    }

    /// Reduces a slice; `add_row` may be called `rows` times, with `cols` values each.
    pub fn builder(rows: usize, cols: usize) -> GridBuilder {
        GridBuilder { grid: Self::new(rows, cols), columns: vec![0.0; cols], n_rows: 0, total: 0.0 }
    }

    /// Adds the mean HU of the next cells, row by row.
    pub fn extend(&mut self, hu: impl Iterator<Item = f32>) {
        self.hu.extend(hu);
    }

    /// The cells that pass a test, a bit each, the first column lowest.
    fn rows_where(&self, test: impl Fn(f32) -> bool) -> Vec<u128> {
        let byte =
            |eight: &[f32]| eight.iter().enumerate().fold(0, |byte, (i, hu)| byte | u8::from(test(*hu)) << i);
        let word = |row: &[f32]| {
            let mut bytes = [0; 16];
            bytes.iter_mut().zip(row.chunks(8)).for_each(|(bits, eight)| *bits = byte(eight));
            u128::from_le_bytes(bytes)
        };
        self.hu.chunks_exact(self.width).map(word).collect()
    }

    /// Mean HU of each cell, row by row.
    pub fn cells(&self) -> &[f32] {
        &self.hu
    }

    /// Number of cells in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Pixels that a cell is wide and high; fewer at the last row and column.
    pub fn block(&self) -> usize {
        self.block
    }
}

/// Takes the rows of a slice as they pass by, so that no whole slice of HU is needed.
#[derive(Clone, Debug)]
pub struct GridBuilder {
    grid: Grid,
    /// Sums over the rows of the block at hand.
    columns: Vec<f32>,
    n_rows: usize,
    total: f64,
}

impl GridBuilder {
    /// Adds the next row of HU.
    pub fn add_row(&mut self, hu: &[f32]) {
        self.columns.iter_mut().zip(hu).for_each(|(sum, hu)| *sum += hu);
        self.n_rows += 1;
        if self.n_rows.is_multiple_of(self.grid.block) || self.n_rows == self.grid.rows {
            self.close_block();
        }
    }

    /// The grid, and the mean of all values.
    pub fn finish(self) -> (Grid, f32) {
        let n_values = (self.grid.rows * self.grid.cols) as f64;
        (self.grid, (self.total / n_values) as f32)
    }

    fn close_block(&mut self) {
        let block = self.grid.block;
        let n_rows = (self.n_rows - 1) % block + 1;
        for cells in self.columns.chunks(block) {
            let sum: f32 = cells.iter().sum();
            self.total += f64::from(sum);
            self.grid.hu.push(sum / (n_rows * cells.len()) as f32);
        }
        self.columns.fill(0.0);
    }
}

/// The connected parts (4 neighbours) of a mask, numbered by their first cell.
struct Parts {
    n_rows: usize,
    /// A bit for every column of the grid.
    full: u128,
    runs: Vec<Run>,
    n_cells: Vec<usize>,
    touches_border: Vec<bool>,
}

/// Neighbouring cells of one row.
struct Run {
    row: usize,
    cells: u128,
    part: usize,
}

impl Parts {
    /// Joins runs of neighbouring rows that overlap.
    fn of(mask: &[u128], width: usize) -> Self {
        let mut runs: Vec<Run> = Vec::new();
        // For each run one of the same part that comes no later; itself where it is the first.
        let mut earlier: Vec<usize> = Vec::new();
        let mut above = 0..0;
        for (row, &cells) in mask.iter().enumerate() {
            let first = runs.len();
            let mut left = cells;
            while left != 0 {
                // Adding the lowest bit carries through the first run and clears it.
                let lowest = left & left.wrapping_neg();
                let cells = left & !left.wrapping_add(lowest);
                left ^= cells;
                let run = runs.len();
                earlier.push(run);
                for other in above.clone().filter(|&other| runs[other].cells & cells != 0) {
                    let (a, b) = (root(&mut earlier, run), root(&mut earlier, other));
                    earlier[a.max(b)] = a.min(b);
                }
                runs.push(Run { row, cells, part: 0 });
            }
            above = first..runs.len();
        }
        let last_row = mask.len().saturating_sub(1);
        let full = u128::MAX >> (128 - width);
        let sides = 1 | 1 << (width - 1);
        let (mut n_cells, mut touches_border) = (Vec::new(), Vec::new());
        for i in 0..runs.len() {
            let first = root(&mut earlier, i);
            let part = if first == i { n_cells.len() } else { runs[first].part };
            if first == i {
                n_cells.push(0);
                touches_border.push(false);
            }
            let run = &mut runs[i];
            run.part = part;
            n_cells[part] += run.cells.count_ones() as usize;
            touches_border[part] |= run.row == 0 || run.row == last_row || run.cells & sides != 0;
        }
        Self { n_rows: mask.len(), full, runs, n_cells, touches_border }
    }

    fn largest(&self) -> Option<usize> {
        (0..self.n_cells.len()).max_by_key(|&part| self.n_cells[part])
    }

    /// The mask of some of the parts.
    fn rows_of(&self, is_wanted: impl Fn(usize) -> bool) -> Vec<u128> {
        let mut rows = vec![0; self.n_rows];
        for run in self.runs.iter().filter(|run| is_wanted(run.part)) {
            rows[run.row] |= run.cells;
        }
        rows
    }

    /// A part with its holes: all around it that the border cannot reach.
    fn filled(&self, part: usize) -> Vec<u128> {
        let inverse = |rows: Vec<u128>| -> Vec<u128> { rows.iter().map(|row| !row & self.full).collect() };
        let around = inverse(self.rows_of(|other| other == part));
        let outside = Self::of(&around, 128 - self.full.leading_zeros() as usize);
        inverse(outside.rows_of(|part| outside.touches_border[part]))
    }
}

/// The first run of a run's part; shortens the way to it.
fn root(earlier: &mut [usize], mut run: usize) -> usize {
    while earlier[run] != run {
        earlier[run] = earlier[earlier[run]];
        run = earlier[run];
    }
    run
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

    fn measured(hu: &[f32], side: usize) -> LungMeasure {
        let mut grid = Grid::builder(side, side);
        hu.chunks_exact(side).for_each(|row| grid.add_row(row));
        Masks::of(&grid.finish().0).measure()
    }

    #[track_caller]
    fn check(side: usize, lung_radius: f32) {
        let measured = measured(&chest(side, lung_radius), side);
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
        let measured = measured(&chest(512, 60.0), 512);
        let body = measured.body.unwrap();
        assert!((body.top - 106.0).abs() <= 4.0 && (body.right - 456.0).abs() <= 4.0, "{body:?}");
        let lung = measured.lung.unwrap();
        assert!((lung.left - 110.0).abs() <= 4.0 && (lung.bottom - 316.0).abs() <= 4.0, "{lung:?}");
    }

    /// Parts of a picture of `#` and `.`: cells of each, and whether it touches the border.
    #[track_caller]
    fn check_parts(rows: &[&str], want: &[(usize, bool)]) {
        let word = |row: &&str| row.bytes().rev().fold(0, |word, byte| word << 1 | u128::from(byte == b'#'));
        let parts = Parts::of(&rows.iter().map(word).collect::<Vec<_>>(), rows[0].len());
        let got: Vec<_> = parts.n_cells.into_iter().zip(parts.touches_border).collect();
        assert_eq!(got, want, "{rows:?}");
    }

    #[test]
    fn parts_are_joined_by_sides_but_not_by_corners() {
        check_parts(&["....", ".#..", "..#.", "...."], &[(1, false), (1, false)]);
        check_parts(&["#.#.", "#.#.", "###.", "...."], &[(7, true)]);
        check_parts(&[".....", ".###.", ".#.#.", "...#.", "....."], &[(6, false)]);
        check_parts(&["....#", "#...."], &[(1, true), (1, true)]);
    }

    #[test]
    fn the_mean_is_that_of_the_values_where_blocks_are_cut_short() {
        let mut grid = Grid::builder(130, 131);
        (0..130).for_each(|row| grid.add_row(&vec![row as f32; 131]));
        let (grid, mean) = grid.finish();
        assert_eq!((grid.cells().len(), grid.width(), mean), (65 * 66, 66, 64.5));
        assert_eq!((grid.cells()[0], grid.cells()[65 * 66 - 1]), (0.5, 128.5));
    }

    #[test]
    fn slices_with_half_the_lung_of_the_95th_percentile_are_kept() {
        assert_eq!(choose(&[0.0, 0.1, 0.3, 0.3, 0.2, 0.0]), Some(vec![2, 3, 4]));
        assert_eq!(choose(&[0.0, 0.001]), None);
    }

    #[test]
    fn many_slices_are_thinned_evenly_and_few_are_kept() {
        let kept = choose(&[0.3; 200]).unwrap();
        assert_eq!((kept.len(), kept[0], kept[53]), (54, 0, 199));
        assert!(kept.windows(2).all(|pair| (3..=4).contains(&(pair[1] - pair[0]))));
        assert_eq!(choose(&[0.0, 0.0, 0.0, 0.5]), Some(vec![0, 3]));
    }
}
