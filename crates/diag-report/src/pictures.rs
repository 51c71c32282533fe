//! Which slices and heat maps are embedded, and their PNGs.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use diag_data::case::Split;
use diag_data::heatmaps::{Heatmap, Method};
use image::{ExtendedColorType, ImageFormat};

use crate::ReportError;
use crate::load::Run;
use crate::numbers::CaseResult;

/// The cases shown openly, without scripts and in print, with all their embedded slices.
pub(crate) const N_WORST: usize = 6;

/// Fewest bytes that a pixel of CT takes in a base64 PNG: it bounds how many
/// slices are encoded before the budget, which counts true bytes, cuts them.
const FEWEST_BYTES_PER_PIXEL: f64 = 0.4;

/// Data URIs by case (in the run's order) and slice index.
pub(crate) type Pictures = BTreeMap<(usize, i32), String>;

/// Embeds slices until the budget is spent: all slices of the worst cases first,
/// then in turns one more slice of every case, spread over its height. A case
/// outside the budget has its probabilities shown without pictures.
pub(crate) fn embed(run: &Run, results: &[CaseResult], budget: usize) -> Result<Pictures, ReportError> {
    let Ok(shards) = &run.shards else { return Ok(Pictures::new()) };
    let spec = &shards.set.manifest().spec;
    let n_pictures =
        (budget as f64 / (FEWEST_BYTES_PER_PIXEL * spec.reader.n_pixels().max(1) as f64)) as usize;
    let by_priority = choose(run, results, n_pictures);
    let wanted: BTreeSet<(usize, i32)> = by_priority.iter().copied().collect();
    let index: BTreeMap<_, usize> = run.case_ids.iter().enumerate().map(|(i, id)| (id, i)).collect();
    let mut pictures = Pictures::new();
    // A run's validation cases lie in the shards' training part.
    let splits: BTreeSet<Split> =
        shards.cases.iter().filter(|row| index.contains_key(&row.case_id)).map(|row| row.split).collect();
    for slice in splits.into_iter().flat_map(|split| shards.set.slices(split)) {
        let slice = slice.map_err(|source| ReportError::Run { run: run.dir.root().into(), source })?;
        let Some(&case) = index.get(&slice.case_id) else { continue };
        let key = (case, slice.slice_index);
        if wanted.contains(&key) {
            pictures.insert(key, png_uri(&slice.pixels, spec.reader.size, spec.reader.size)?);
        }
    }
    let mut spent = 0;
    let within = by_priority.into_iter().filter_map(|key| Some((key, pictures.remove(&key)?))).take_while(
        |(_, uri)| {
            spent += uri.len();
            spent <= budget
        },
    );
    Ok(within.collect())
}

/// Case and slice of at most `n_pictures`, the most wanted first.
fn choose(run: &Run, results: &[CaseResult], n_pictures: usize) -> Vec<(usize, i32)> {
    let mut slices_of: Vec<Vec<i32>> = vec![Vec::new(); run.case_ids.len()];
    for slice in &run.slices {
        slices_of[slice.case].push(slice.slice_index);
    }
    let with_map: BTreeSet<(usize, i32)> = mapped(run).map(|(key, _)| key).collect();
    let keys = |result: &CaseResult| {
        let slices = &slices_of[result.case];
        let mut keys: Vec<_> = spread(slices.len()).into_iter().map(|i| (result.case, slices[i])).collect();
        // A slice that has a heat map is worth more than one that has none.
        keys.sort_by_key(|key| !with_map.contains(key));
        keys
    };
    let (worst, others) = results.split_at(results.len().min(N_WORST));
    let others: Vec<Vec<(usize, i32)>> = others.iter().map(keys).collect();
    let longest = others.iter().map(Vec::len).max().unwrap_or(0);
    let in_turns =
        (0..longest).flat_map(|turn| others.iter().filter_map(move |keys| keys.get(turn).copied()));
    worst.iter().flat_map(keys).chain(in_turns).take(n_pictures).collect()
}

/// The heat maps of a run that can be shown, with case and slice.
fn mapped(run: &Run) -> impl Iterator<Item = ((usize, i32), &Heatmap)> {
    let index: BTreeMap<_, usize> = run.case_ids.iter().enumerate().map(|(i, id)| (id, i)).collect();
    let rows = run.maps.iter().flat_map(|maps| &maps.rows).filter(|row| !row.values.is_empty());
    rows.filter_map(move |row| Some(((*index.get(&row.case_id)?, row.slice_index), row)))
}

/// A heat map on the page.
pub(crate) struct ShownMap<'a> {
    pub(crate) row: &'a Heatmap,
    /// Base64 PNG of its values.
    pub(crate) png: String,
}

/// Heat maps of embedded slices by case and slice, until the budget is spent: all
/// maps of the worst cases, then the final head's Grad-CAM of the others, then the rest.
pub(crate) fn embed_maps<'a>(
    run: &'a Run,
    results: &[CaseResult],
    pictures: &Pictures,
    budget: usize,
) -> Result<BTreeMap<(usize, i32), Vec<ShownMap<'a>>>, ReportError> {
    let rank: BTreeMap<usize, usize> = results.iter().enumerate().map(|(rank, r)| (r.case, rank)).collect();
    let last = run.heads().last();
    let mut wanted: Vec<((usize, i32), &Heatmap)> =
        mapped(run).filter(|(key, _)| pictures.contains_key(key)).collect();
    wanted.sort_by_key(|((case, slice), row)| {
        let rank = rank.get(case).copied().unwrap_or(usize::MAX);
        let plain = row.method == Method::GradCam && Some(&row.head) == last;
        let turn = if rank < N_WORST { 0 } else { 1 + usize::from(!plain) };
        (turn, rank, *slice)
    });
    let (mut spent, mut shown) = (0, BTreeMap::<_, Vec<ShownMap>>::new());
    for (key, row) in wanted {
        let png = png_base64(&row.values, row.width as u32, row.height as u32)?;
        spent += png.len();
        if spent > budget {
            break;
        }
        shown.entry(key).or_default().push(ShownMap { row, png });
    }
    Ok(shown)
}

/// The numbers below `n`, the middle first, then ever finer: any beginning of
/// the list covers the range.
fn spread(n: usize) -> Vec<usize> {
    let mut order = Vec::with_capacity(n);
    let mut seen = vec![false; n];
    let mut parts = 1;
    while order.len() < n {
        for part in 0..parts {
            let middle = (2 * part + 1) * n / (2 * parts);
            if middle < n && !seen[middle] {
                seen[middle] = true;
                order.push(middle);
            }
        }
        parts *= 2;
    }
    order
}

fn png_uri(pixels: &[u8], width: u32, height: u32) -> Result<String, ReportError> {
    Ok(format!("data:image/png;base64,{}", png_base64(pixels, width, height)?))
}

fn png_base64(pixels: &[u8], width: u32, height: u32) -> Result<String, ReportError> {
    let mut png = Cursor::new(Vec::new());
    image::write_buffer_with_format(&mut png, pixels, width, height, ExtendedColorType::L8, ImageFormat::Png)
        .map_err(|source| ReportError::Picture { source })?;
    Ok(STANDARD.encode(png.into_inner()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slice_comes_once_and_the_middle_first() {
        for n in 0..60 {
            let order = spread(n);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..n).collect::<Vec<_>>());
        }
        assert_eq!(spread(8), [4, 2, 6, 1, 3, 5, 7, 0]);
    }
}
