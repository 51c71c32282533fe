//! Pieces of Markdown tables.

/// Title line and rule of a table with a column a setting: ratio and share of wrong labels,
/// without what all settings share.
pub(super) fn setting_titles(settings: &[(Option<String>, f64)], first: &str, last: Option<&str>) -> String {
    let same_ratio = settings.windows(2).all(|pair| pair[0].0 == pair[1].0);
    let titles = settings.iter().map(|(ratio, noise)| match ratio {
        Some(ratio) if !same_ratio && *noise == 0.0 => ratio.clone(),
        Some(ratio) if !same_ratio => format!("{ratio}, {:.0} % wrong labels", 100.0 * noise),
        _ => format!("{:.0} % wrong labels", 100.0 * noise),
    });
    let titles: Vec<String> =
        [first.to_owned()].into_iter().chain(titles).chain(last.map(str::to_owned)).collect();
    format!("| {} |\n| --- |{}\n", titles.join(" | "), " --- |".repeat(titles.len() - 1))
}

/// The index of an item in a list, to which it is added if it is missing.
pub(super) fn index_or_push<T: PartialEq>(list: &mut Vec<T>, item: T) -> usize {
    list.iter().position(|known| *known == item).unwrap_or_else(|| {
        list.push(item);
        list.len() - 1
    })
}

pub(super) fn line(first: &str, cells: impl IntoIterator<Item = String>) -> String {
    let cells: Vec<String> = [first.to_owned()].into_iter().chain(cells).collect();
    format!("| {} |\n", cells.join(" | "))
}
