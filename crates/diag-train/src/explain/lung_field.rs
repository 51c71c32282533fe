//! Where the lungs are in a windowed slice, roughly and without a network.

use diag_data::units::{Hu, HuWindow};

/// Aerated lung is darker than this.
const AERATED: Hu = Hu(-500.0);
/// The same where the picture has no HU.
const AERATED_GREY: u8 = 110;

/// The lungs of one slice.
pub(super) struct LungField {
    /// Row-major; consolidated parts between aerated ones belong to it.
    pub inside: Vec<bool>,
    /// Median grey level of the aerated parts; of the whole picture where there is none.
    pub median_grey: u8,
}

/// Aerated pixels that air outside the body does not reach; then, in each half of
/// the picture and each row, everything between the first and the last of them.
pub(super) fn lung_field(
    pixels: &[u8],
    (height, width): (usize, usize),
    window: Option<HuWindow>,
) -> LungField {
    let limit = window.map_or(AERATED_GREY, |window| window.grey(AERATED));
    let dark: Vec<bool> = pixels.iter().map(|&grey| grey < limit).collect();
    let outside = reached_from_border(&dark, (height, width));
    let aerated: Vec<bool> = dark.iter().zip(outside).map(|(dark, outside)| *dark && !outside).collect();
    let mut inside = vec![false; pixels.len()];
    for row in 0..height {
        for half in [0..width / 2, width / 2..width] {
            let line = row * width;
            let mut cols = half.clone().filter(|col| aerated[line + col]);
            if let Some(first) = cols.next() {
                let last = cols.next_back().unwrap_or(first);
                inside[line + first..=line + last].fill(true);
            }
        }
    }
    let of_lung: Vec<u8> = pixels.iter().zip(&aerated).filter(|(_, a)| **a).map(|(grey, _)| *grey).collect();
    LungField { inside, median_grey: median(if of_lung.is_empty() { pixels.to_vec() } else { of_lung }) }
}

fn median(mut values: Vec<u8>) -> u8 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Dark pixels that hang together with the border through dark pixels.
fn reached_from_border(dark: &[bool], (height, width): (usize, usize)) -> Vec<bool> {
    let mut reached = vec![false; dark.len()];
    let border = |i: usize| {
        i / width == 0 || i / width == height - 1 || i.is_multiple_of(width) || i % width == width - 1
    };
    let mut open: Vec<usize> = (0..dark.len()).filter(|&i| border(i) && dark[i]).collect();
    open.iter().for_each(|&i| reached[i] = true);
    while let Some(i) = open.pop() {
        let (row, col) = (i / width, i % width);
        let next = [
            (row > 0).then(|| i - width),
            (row + 1 < height).then(|| i + width),
            (col > 0).then(|| i - 1),
            (col + 1 < width).then(|| i + 1),
        ];
        for next in next.into_iter().flatten() {
            if dark[next] && !reached[next] {
                reached[next] = true;
                open.push(next);
            }
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `.` air, `#` body, `o` aerated lung, `x` consolidation.
    fn check(picture: &[&str], want: &[&str]) {
        let width = picture[0].len();
        let grey = |letter| match letter {
            '.' => 50,
            'o' => 70,
            _ => 250,
        };
        let pixels: Vec<u8> = picture.iter().flat_map(|row| row.chars().map(grey)).collect();
        let field = lung_field(&pixels, (picture.len(), width), None);
        let want: Vec<bool> = want.iter().flat_map(|row| row.chars().map(|letter| letter == '1')).collect();
        assert_eq!(field.inside, want);
        assert_eq!(field.median_grey, 70);
    }

    #[test]
    fn a_dense_part_between_aerated_ones_is_lung_and_the_air_outside_is_not() {
        check(
            &["..........", ".########.", ".#oxo##oo.", ".########.", ".........."],
            &["0000000000", "0000000000", "0011100000", "0000000000", "0000000000"],
        );
        check(
            &["..........", ".########.", ".#oxo#oo#.", ".########.", ".........."],
            &["0000000000", "0000000000", "0011101100", "0000000000", "0000000000"],
        );
    }
}
