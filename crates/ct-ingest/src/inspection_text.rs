//! An inspection as a person reads it: patient by patient, the verdict at the
//! end of each series, what needs a decision at the end of all.

use std::collections::BTreeMap;
use std::fmt::Write;

use ct_ingest::inspect::{Inspection, PatientLine, SeriesLine};
use diag_cli::printable;

/// Most broken files that are listed one by one.
const MAX_LISTED: usize = 20;

/// The text of an inspection, with a line break at the end.
pub fn of(found: &Inspection) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut text, found);
    text
}

fn write(text: &mut String, found: &Inspection) -> std::fmt::Result {
    writeln!(
        text,
        "{}, {} in {}",
        count(found.n_files, "file", "files"),
        size(found.n_bytes),
        count(found.n_folders, "folder", "folders"),
    )?;
    let n_usable = found.series.iter().filter(|series| series.unusable.is_none()).count();
    writeln!(
        text,
        "{}, {}, {} of CT, {n_usable} of them usable",
        count(found.patients.len(), "patient", "patients"),
        count(found.n_studies, "study", "studies"),
        count(found.series.len(), "series", "series"),
    )?;
    for (i, patient) in found.patients.iter().enumerate() {
        let of_patient: Vec<&SeriesLine> = found.series.iter().filter(|line| line.patient == i).collect();
        writeln!(text, "\n{}", patient_text(i, patient))?;
        let n_usable = of_patient.iter().filter(|line| line.unusable.is_none()).count();
        for line in of_patient {
            series(text, line, patient.n_studies > 1, n_usable > 1)?;
        }
    }
    if !found.volumes.is_empty() {
        writeln!(text, "\n{}:", count(found.volumes.len(), "volume", "volumes"))?;
        for volume in &found.volumes {
            let [slices, rows, cols] = volume.shape;
            let name = volume.path.as_ref().map(|path| format!("{}: ", printable(path))).unwrap_or_default();
            writeln!(
                text,
                "  {name}{slices} slices of {rows} x {cols}, pixels {}, every {} mm",
                pixels(volume.spacing.row.0, volume.spacing.col.0),
                short(volume.step.0)
            )?;
        }
    }
    if !found.others.is_empty() {
        let total: usize = found.others.values().sum();
        let total =
            count(total, "file is left out, as it should be", "files are left out, as they should be");
        writeln!(text, "\n{total}:")?;
        for (reason, n) in &found.others {
            writeln!(text, "  {n:>5}  {reason}")?;
        }
    }
    broken(text, found)?;
    if !found.advice.is_empty() {
        writeln!(text, "\nto decide:")?;
        for line in &found.advice {
            writeln!(text, "  - {line}")?;
        }
    }
    Ok(())
}

fn patient_text(index: usize, patient: &PatientLine) -> String {
    let sex = patient.sex.as_deref().and_then(|sex| match sex {
        "F" => Some("female"),
        "M" => Some("male"),
        _ => None,
    });
    let age = patient.age_years.map(|years| match years {
        90 => "90 years or older".into(),
        _ => count(years as usize, "year", "years"),
    });
    let mut about: Vec<String> = [sex.map(String::from), age].into_iter().flatten().collect();
    if !patient.has_id {
        about.insert(0, "files without PatientID".into());
    }
    let about = if about.is_empty() { String::new() } else { format!(" ({})", about.join(", ")) };
    format!("patient {}{about}, {}", index + 1, count(patient.n_studies, "study", "studies"))
}

fn series(text: &mut String, line: &SeriesLine, with_study: bool, is_choice: bool) -> std::fmt::Result {
    let number = line.number.map_or("without number".into(), |number| number.to_string());
    let study = if with_study { format!("study {}, ", line.study) } else { String::new() };
    let folder = line.folder.as_ref().map(|folder| format!(", in {}", printable(folder))).unwrap_or_default();
    let synthetic = if line.synthetic { ", SYNTHETIC" } else { "" };
    let plane = line.plane;
    let images = count(line.n_images, "image", "images");
    writeln!(text, "  {study}series {number}: {images}, {plane}{synthetic}{folder}")?;
    let mut geometry = vec![format!("{} x {}", line.size.0, line.size.1)];
    geometry.extend(line.spacing.map(|spacing| format!("pixels {}", pixels(spacing.row.0, spacing.col.0))));
    geometry.extend(line.slice_thickness.map(|thick| format!("{} mm thick", short(thick.0))));
    geometry.extend(line.step.map(|step| format!("every {} mm", short(step.0))));
    if let Some((lowest, highest)) = line.extent.filter(|_| line.n_images > 1) {
        geometry.push(format!("covers {:.0} mm", highest.0 - lowest.0));
    }
    writeln!(text, "      {}", geometry.join(", "))?;
    let mut origin = Vec::new();
    origin.extend(Some(line.scanner.clone()).filter(|scanner| !scanner.is_empty()));
    origin.extend(line.kernel.as_ref().map(|kernel| format!("kernel {kernel}")));
    origin.extend(line.kvp.map(|kvp| format!("{kvp} kV")));
    origin.extend(line.transfer_syntaxes.iter().cloned());
    if line.lossy {
        origin.push("LOSSY".into());
    }
    writeln!(text, "      {}", origin.join(", "))?;
    for warning in &line.warnings {
        writeln!(text, "      note: {warning}")?;
    }
    match (&line.unusable, is_choice, line.is_first_choice) {
        (Some(why), ..) => writeln!(text, "      not usable: {why}"),
        (None, true, true) => writeln!(text, "      usable; first choice of this patient"),
        (None, ..) => writeln!(text, "      usable"),
    }
}

fn broken(text: &mut String, found: &Inspection) -> std::fmt::Result {
    if found.broken.is_empty() {
        return Ok(());
    }
    writeln!(text, "\n{} broken:", count(found.broken.len(), "file is", "files are"))?;
    let mut by_detail: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for file in &found.broken {
        *by_detail.entry((&file.detail, &file.remedy)).or_default() += 1;
    }
    for ((detail, remedy), n) in by_detail {
        writeln!(text, "  {n:>5}  {detail}\n         fix: {remedy}")?;
    }
    let paths: Vec<&String> = found.broken.iter().filter_map(|file| file.path.as_ref()).collect();
    for path in paths.iter().take(MAX_LISTED) {
        writeln!(text, "         {}", printable(path))?;
    }
    if paths.len() > MAX_LISTED {
        writeln!(text, "         and {} more", paths.len() - MAX_LISTED)?;
    }
    if paths.is_empty() {
        writeln!(text, "         (--keep-paths names them; paths may name patients)")?;
    }
    Ok(())
}

fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

fn pixels(row: f64, col: f64) -> String {
    if row == col {
        format!("of {} mm", short(row))
    } else {
        format!("of {} x {} mm", short(row), short(col))
    }
}

/// At most three decimals, and no zeros at the end.
fn short(mm: f64) -> String {
    let text = format!("{mm:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

fn size(n_bytes: u64) -> String {
    const UNITS: [&str; 4] = ["B", "kB", "MB", "GB"];
    let (mut value, mut unit) = (n_bytes as f64, 0);
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{n_bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}
