//! What a rendered cohort must be: the same bytes again, valid headers, true truth.

use ct_phantom::{
    CaseTruth, CohortSpec, Label, MASK_SIZE, Options, PhantomError, SLICE_MM, Truth, Vendor, generate,
};
use dicom::{
    core::Tag,
    dictionary_std::{tags, uids},
    object::{DefaultDicomObject, open_file},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::LazyLock,
};

const COHORT: &str = r#"
name = "tests"
description = "for tests"
cases = 18
slices_per_case = [5, 6]
placement = "thinned"
z_coverage = [0.2, 0.85]
severity = [0.5, 1.0]
sick_slices = [0.6, 0.9]
siemens = 0.5
implicit_vr = 0.5
localizer = 0.3

[ratio]
"covid-19" = 1
normal = 1
"bacterial-pneumonia" = 1
"#;

struct Made {
    dir: PathBuf,
    truth: Truth,
    _keep: tempfile::TempDir,
}

fn make(spec: &CohortSpec, seed: u64, n_threads: usize) -> Made {
    let keep = tempfile::tempdir().expect("temporary folder");
    let dir = keep.path().join("cohort");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().expect("pool");
    let go = |_| ControlFlow::Continue(());
    pool.install(|| generate(spec, seed, &dir, Options::default(), &go)).expect("made");
    let truth = serde_json::from_str(&fs::read_to_string(dir.join("truth.json")).expect("truth.json"));
    Made { dir, truth: truth.expect("truth parses"), _keep: keep }
}

fn spec() -> CohortSpec {
    CohortSpec::from_toml("tests", COHORT).expect("valid")
}

/// One cohort for all tests that only look at it.
static MADE: LazyLock<Made> = LazyLock::new(|| make(&spec(), 5, 2));

fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("folder").map(|entry| entry.expect("entry").path()) {
        if entry.is_dir() {
            found.extend(files(&entry));
        } else {
            found.insert(entry.clone(), fs::read(&entry).expect("file"));
        }
    }
    found
}

fn by_name(made: &Made) -> BTreeMap<PathBuf, Vec<u8>> {
    let strip = |path: PathBuf| path.strip_prefix(&made.dir).expect("inside").to_path_buf();
    files(&made.dir).into_iter().map(|(path, bytes)| (strip(path), bytes)).collect()
}

#[test]
fn same_seed_gives_the_same_bytes_on_one_and_two_threads() {
    let spec = CohortSpec { cases: Some(3), slices_per_case: [2, 2], ..spec() };
    let (one, two, other) = (make(&spec, 9, 1), make(&spec, 9, 2), make(&spec, 10, 2));
    assert_eq!(by_name(&one), by_name(&two));
    assert_ne!(by_name(&one), by_name(&other));
}

fn number(object: &DefaultDicomObject, tag: Tag) -> f64 {
    object.element(tag).expect("present").to_float64().expect("a number")
}

fn text(object: &DefaultDicomObject, tag: Tag) -> String {
    object.element(tag).expect("present").to_str().expect("text").trim_end_matches(['\0', ' ']).to_string()
}

#[test]
fn headers_are_those_of_a_ct_and_match_the_truth() {
    let mut sop_uids = BTreeSet::new();
    for case in &MADE.truth.cases {
        for slice in &case.slices {
            let object = open_file(MADE.dir.join(&case.case_id).join(&slice.file)).expect("reads");
            assert_eq!(text(&object, tags::SOP_CLASS_UID), uids::CT_IMAGE_STORAGE);
            assert_eq!(object.meta().media_storage_sop_instance_uid(), slice.sop_uid);
            assert_eq!(text(&object, tags::SOP_INSTANCE_UID), slice.sop_uid);
            assert!(sop_uids.insert(slice.sop_uid.clone()), "a UID is used twice");
            assert!(slice.sop_uid.len() <= 64 && slice.sop_uid.starts_with("2.25."));
            assert_eq!(text(&object, tags::SERIES_INSTANCE_UID), case.series_uid);
            assert_eq!(text(&object, tags::MANUFACTURER), case.vendor.manufacturer());
            assert_eq!(text(&object, tags::CONVOLUTION_KERNEL), case.kernel);
            assert_eq!(text(&object, tags::IMAGE_TYPE), "ORIGINAL\\PRIMARY\\AXIAL");
            for tag in [tags::PATIENT_NAME, tags::PATIENT_ID, tags::SERIES_DESCRIPTION, tags::IMAGE_COMMENTS]
            {
                assert!(text(&object, tag).contains("SYNTHETIC"), "{tag}");
            }
            assert_eq!(text(&object, tags::IMAGE_COMMENTS), diag_data::case::SYNTHETIC_MARK);
            let population = format!("SYNTHETIC-{}-{}-", MADE.truth.cohort.name, MADE.truth.seed);
            assert!(text(&object, tags::PATIENT_ID).starts_with(&population));
            assert_eq!((number(&object, tags::ROWS), number(&object, tags::COLUMNS)), (512.0, 512.0));
            assert_eq!(number(&object, tags::SLICE_THICKNESS), f64::from(SLICE_MM));
            let spacing =
                object.element(tags::PIXEL_SPACING).expect("present").to_multi_float64().expect("DS");
            // The header holds decimal text, the truth an f32.
            assert!(
                spacing.iter().all(|s| (s - f64::from(case.pixel_spacing_mm)).abs() < 1e-6),
                "{spacing:?}"
            );
            assert!((0.65..=0.85).contains(&spacing[0]));
            let position = object
                .element(tags::IMAGE_POSITION_PATIENT)
                .expect("present")
                .to_multi_float64()
                .expect("DS");
            assert!((position[2] - f64::from(slice.z_mm)).abs() < 1e-4, "{position:?}");
            let signed = number(&object, tags::PIXEL_REPRESENTATION) == 1.0;
            assert_eq!(signed, case.vendor == Vendor::Ge);
            assert_eq!(number(&object, tags::HIGH_BIT), number(&object, tags::BITS_STORED) - 1.0);
        }
        let steps: Vec<f32> = case.slices.windows(2).map(|pair| pair[1].z_mm - pair[0].z_mm).collect();
        assert!(steps[0] >= SLICE_MM && steps.iter().all(|step| *step == steps[0]), "{steps:?}");
    }
    let localizers = MADE.truth.cases.iter().map(|case| MADE.dir.join(&case.case_id).join("localizer.dcm"));
    let localizers: Vec<PathBuf> = localizers.filter(|path| path.exists()).collect();
    assert!(!localizers.is_empty(), "the cohort asks for some");
    for path in localizers {
        assert_eq!(text(&open_file(path).expect("reads"), tags::IMAGE_TYPE), "ORIGINAL\\PRIMARY\\LOCALIZER");
    }
}

/// HU of a file, `[512 * 512]`, padding as air.
fn hu(path: &Path) -> Vec<f64> {
    let object = open_file(path).expect("reads");
    let (slope, intercept) = (number(&object, tags::RESCALE_SLOPE), number(&object, tags::RESCALE_INTERCEPT));
    let signed = number(&object, tags::PIXEL_REPRESENTATION) == 1.0;
    let padding = object.element_opt(tags::PIXEL_PADDING_VALUE).expect("readable");
    let padding = padding.map(|element| element.to_float64().expect("a number"));
    let bytes = object.element(tags::PIXEL_DATA).expect("present").to_bytes().expect("bytes");
    assert_eq!(bytes.len(), 2 * 512 * 512);
    let words = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    words
        .map(|word| if signed { f64::from(word as i16) } else { f64::from(word) })
        .map(|stored| if Some(stored) == padding { -1024.0 } else { stored * slope + intercept })
        .collect()
}

#[test]
fn rescaled_pixels_are_a_chest() {
    for case in &MADE.truth.cases {
        let slice = &case.slices[case.slices.len() / 2];
        let hu = hu(&MADE.dir.join(&case.case_id).join(&slice.file));
        let share =
            |lo: f64, hi: f64| hu.iter().filter(|v| (lo..hi).contains(*v)).count() as f64 / hu.len() as f64;
        let corner = hu[512 * 3 + 3];
        assert!(corner < -850.0, "{}: corner {corner}", case.case_id);
        assert!(share(-970.0, -700.0) > 0.06, "{}: lung {}", case.case_id, share(-970.0, -700.0));
        assert!(share(-160.0, 140.0) > 0.15, "{}: soft tissue {}", case.case_id, share(-160.0, 140.0));
        assert!(share(250.0, 3072.0) > 0.002, "{}: bone {}", case.case_id, share(250.0, 3072.0));
    }
}

fn of(label: Label) -> impl Iterator<Item = &'static CaseTruth> {
    MADE.truth.cases.iter().filter(move |case| case.true_label == label)
}

#[test]
fn lesions_have_the_stated_densities_and_normal_has_none() {
    for case in of(Label::Normal) {
        assert_eq!(case.lesion_ml, 0.0, "{}", case.case_id);
        assert!(case.slices.iter().all(|slice| slice.mask.is_empty()));
    }
    let mut n_measured = 0;
    for case in of(Label::Covid19).chain(of(Label::BacterialPneumonia)) {
        assert!(case.lesion_ml > 1.0, "{}: {} ml", case.case_id, case.lesion_ml);
        assert!(case.slices.iter().any(|slice| slice.lesion_ml == 0.0), "{}: all sick", case.case_id);
        for slice in &case.slices {
            for (hu, range) in
                [(slice.ground_glass_hu, -700.0..=-300.0), (slice.consolidation_hu, -100.0..=60.0)]
            {
                n_measured += usize::from(hu.is_some());
                assert!(hu.is_none_or(|hu| range.contains(&hu)), "{}: {hu:?}", case.case_id);
            }
        }
    }
    assert!(n_measured > 20, "{n_measured}");
    // In the pixels, too: the lesions of the densest slice differ from healthy lung as the truth says.
    for label in [Label::Covid19, Label::BacterialPneumonia] {
        let slices = of(label).flat_map(|case| case.slices.iter().map(move |slice| (case, slice)));
        let (case, slice) = slices.max_by(|a, b| a.1.lesion_ml.total_cmp(&b.1.lesion_ml)).expect("some");
        let hu = hu(&MADE.dir.join(&case.case_id).join(&slice.file));
        let cells = slice.mask_cells();
        let inside: Vec<f64> = (0..512 * 512)
            .filter(|idx| cells[idx / 512 / 4 * MASK_SIZE + idx % 512 / 4])
            .map(|idx| hu[idx])
            .collect();
        let mean = inside.iter().sum::<f64>() / inside.len() as f64;
        assert!((-720.0..80.0).contains(&mean), "{label}: mean {mean} HU under the mask");
    }
}

/// Share of the smaller side, and mean distance from the middle line relative to the lungs' half width.
fn bilateral(case: &CaseTruth) -> f64 {
    let (mut right, mut left) = (0.0, 0.0);
    for slice in &case.slices {
        for (idx, _) in slice.mask_cells().iter().enumerate().filter(|(_, lesion)| **lesion) {
            if idx % MASK_SIZE < MASK_SIZE / 2 { right += 1.0 } else { left += 1.0 }
        }
    }
    f64::min(right, left) / f64::max(right + left, 1.0)
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.collect();
    values.iter().sum::<f64>() / values.len() as f64
}

/// Mean distance of lesion cells from the image centre, in millimetres.
fn distance_from_centre(case: &CaseTruth) -> f64 {
    let half = MASK_SIZE as f64 / 2.0;
    let cells = case.slices.iter().flat_map(|slice| {
        let cells = slice.mask_cells();
        (0..cells.len()).filter(move |&idx| cells[idx])
    });
    let scale = f64::from(case.pixel_spacing_mm) * 4.0;
    mean(cells.map(|idx| ((idx % MASK_SIZE) as f64 - half).hypot((idx / MASK_SIZE) as f64 - half) * scale))
}

#[test]
fn covid_is_more_bilateral_and_peripheral_than_bacterial() {
    let (covid, bacterial) =
        (mean(of(Label::Covid19).map(bilateral)), mean(of(Label::BacterialPneumonia).map(bilateral)));
    assert!(covid > 0.15 && covid > 2.0 * bacterial, "smaller side: {covid} against {bacterial}");
    let (covid, bacterial) = (
        mean(of(Label::Covid19).map(distance_from_centre)),
        mean(of(Label::BacterialPneumonia).map(distance_from_centre)),
    );
    assert!(covid > bacterial + 3.0, "from the centre: {covid} mm against {bacterial} mm");
}

#[test]
fn an_interrupted_or_refused_run_leaves_nothing() {
    let keep = tempfile::tempdir().expect("temporary folder");
    let dir = keep.path().join("cohort");
    let stop = |_| ControlFlow::Break(());
    let err = generate(&spec(), 1, &dir, Options::default(), &stop).expect_err("stopped");
    assert!(matches!(err, PhantomError::Interrupted), "{err}");
    assert_eq!(fs::read_dir(keep.path()).expect("folder").count(), 0);

    fs::create_dir(&dir).expect("folder");
    fs::write(dir.join("mine.txt"), "keep me").expect("file");
    for force in [false, true] {
        let err = generate(&spec(), 1, &dir, Options { force }, &stop).expect_err("refused");
        assert!(matches!(err, PhantomError::OutputNotEmpty { .. }), "{err}");
    }
    assert_eq!(fs::read_to_string(dir.join("mine.txt")).expect("still there"), "keep me");
}
