//! What `inspect` tells of a messy folder.

use ct_ingest::inspect;

use crate::common::{Cohort, Dicom, program, series};

/// Two patients, one with two series and a localizer, one coronal; a report, a
/// broken file, a NIfTI volume, a note.
fn messy() -> Cohort {
    let cohort = Cohort::new();
    cohort.label("case_id,label\na,normal\n");
    cohort.write("first", &series(1));
    let mut thin: Vec<Dicom> = (0..12).map(|i| Dicom::chest(1, -30.0 + f64::from(i))).collect();
    for slice in &mut thin {
        slice.text(0x0020_000E, "UI", "1.2.5.77");
        slice.text(0x0020_0011, "IS", "2");
        slice.text(0x0018_0050, "DS", "1");
    }
    thin.remove(5);
    cohort.write("first/thin", &thin);
    let mut coronal = series(2);
    for (i, slice) in coronal.iter_mut().enumerate() {
        slice.text(0x0020_0032, "DS", &format!("-176\\{}\\0", 5 * i));
        slice.text(0x0020_0037, "DS", "1\\0\\0\\0\\0\\-1");
        slice.text(0x0010_0040, "CS", "F");
    }
    cohort.write("second", &coronal);
    let mut localizer = Dicom::chest(1, 99.0);
    localizer.text(0x0008_0008, "CS", "ORIGINAL\\PRIMARY\\LOCALIZER");
    let mut report = Dicom::chest(1, 98.0);
    report.text(0x0008_0016, "UI", "1.2.840.10008.5.1.4.1.1.88.67");
    cohort.write("mixed", &[localizer, report]);
    std::fs::write(cohort.dicom().join("mixed/broken.dcm"), b"broken").unwrap();
    std::fs::write(cohort.dicom().join("mixed/volume.nii"), crate::nifti::seed()).unwrap();
    cohort
}

#[test]
fn patients_series_and_what_is_left_out_are_told() {
    let found = inspect::inspect(&messy().dicom(), false, None).unwrap();
    assert_eq!((found.n_files, found.n_folders, found.n_studies), (6 + 11 + 6 + 4 + 1, 5, 2));
    assert_eq!(found.patients.len(), 2);
    assert_eq!(found.patients[1].sex.as_deref(), Some("F"));
    let told: Vec<_> = found
        .series
        .iter()
        .map(|line| (line.patient, line.number, line.n_images, line.plane, line.is_first_choice))
        .collect();
    assert_eq!(
        told,
        [(0, Some(1), 6, "axial", false), (0, Some(2), 11, "axial", true), (1, Some(1), 6, "coronal", false)]
    );
    assert_eq!(found.series[1].warnings, ["1 gaps between slices, the largest 2.0 mm"]);
    assert_eq!(found.series[2].unusable.as_deref(), Some("it is coronal, not axial"));
    let others: Vec<_> = found.others.iter().map(|(reason, n)| (reason.as_str(), *n)).collect();
    assert_eq!(others, [("dose report", 1), ("localizer", 1), ("not an image", 1)]);
    assert_eq!(found.volumes.len(), 1);
    assert_eq!(found.broken.iter().map(|file| file.reason).collect::<Vec<_>>(), ["not-dicom"]);
    let asked = |what: &str| found.advice.iter().any(|line| line.contains(what));
    assert!(asked("1 patient has more than one usable series"), "{:?}", found.advice);
    assert!(asked("1 patient has no usable series") && asked("broken file"), "{:?}", found.advice);
}

#[test]
fn paths_are_told_only_on_request() {
    let cohort = messy();
    let hidden = inspect::inspect(&cohort.dicom(), false, None).unwrap();
    assert!(hidden.series.iter().all(|line| line.folder.is_none()));
    assert!(hidden.broken.iter().all(|file| file.path.is_none()));
    let shown = inspect::inspect(&cohort.dicom(), true, None).unwrap();
    assert_eq!(shown.series[1].folder.as_deref(), Some("first/thin"));
    assert_eq!(shown.broken[0].path.as_deref(), Some("mixed/broken.dcm"));
}

#[test]
fn scanners_off_the_list_are_numbered_and_an_operator_names_them() {
    let cohort = Cohort::new();
    for (case, model) in [("first", "Wu"), ("second", "Acme 7"), ("third", "Wu")] {
        let mut series = series(1);
        for slice in &mut series {
            slice.text(
                0x0020_000E,
                "UI",
                &format!("1.2.5.{}", case.len() * 7 + usize::from(case == "third")),
            );
            slice.text(0x0008_1090, "LO", model);
        }
        cohort.write(case, &series);
    }
    let scanners = |allow: Option<&std::path::Path>| {
        let found = inspect::inspect(&cohort.dicom(), false, allow).unwrap();
        let mut scanners: Vec<String> = found.series.into_iter().map(|line| line.scanner).collect();
        scanners.sort();
        (scanners, found.advice.iter().any(|line| line.contains("--allow-values")))
    };
    let (model_1, model_2) = ("SIEMENS unlisted model 1".to_string(), "SIEMENS unlisted model 2".to_string());
    let (told, advised) = scanners(None);
    assert!(told.contains(&model_1) && told.contains(&model_2) && advised, "{told:?}");
    assert_eq!(
        told.iter().filter(|scanner| **scanner == told[0]).count()
            + told.iter().filter(|scanner| **scanner == told[2]).count(),
        3,
        "{told:?}"
    );
    let list = cohort.folder.path().join("words.txt");
    std::fs::write(&list, "Wu\nacme 7\n").unwrap();
    let want = ["SIEMENS Wu", "SIEMENS Wu", "SIEMENS acme 7"].map(String::from).to_vec();
    assert_eq!(scanners(Some(&list)), (want, false));
}

#[test]
fn the_text_reads_from_the_whole_to_the_series_to_what_to_decide() {
    let cohort = messy();
    let output = program(cohort.folder.path()).arg("inspect").arg(cohort.dicom()).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut rest = text.as_str();
    for part in [
        "28 files, ",
        "2 patients, 2 studies, 3 series of CT, 2 of them usable",
        "patient 1 (90 years or older), 1 study",
        "  series 2: 11 images, axial",
        "64 x 64, pixels of 5.5 mm, 1 mm thick, every 1 mm, covers 11 mm",
        "SIEMENS, uncompressed",
        "usable; first choice of this patient",
        "patient 2 (female, 90 years or older), 1 study",
        "not usable: it is coronal, not axial",
        "1 volume:",
        "3 files are left out, as they should be:",
        "1 file is broken:",
        "fix: remove the file",
        "to decide:",
    ] {
        let at = rest.find(part);
        assert!(at.is_some(), "`{part}` is not in its place:\n{text}");
        rest = &rest[at.unwrap_or(0)..];
    }
}

#[test]
fn a_label_table_to_fill_in_names_every_case() {
    let found = inspect::inspect(&messy().dicom(), false, None).unwrap();
    let want = "case_id,label,patient_id\nfirst,,\nfirst/thin,,\nmixed/volume.nii,,\nsecond,,\n";
    assert_eq!(found.labels_template(), want);
    let pictures = tempfile::tempdir().unwrap();
    image::GrayImage::new(8, 8).save(pictures.path().join("1.png")).unwrap();
    let found = inspect::inspect(pictures.path(), false, None).unwrap();
    assert_eq!(found.advice, ["`ct-ingest images` reads 1 picture"]);
}
