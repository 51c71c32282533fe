//! Image folders: classes, cases, official splits.

use std::path::Path;

use crate::common::{settings, test_data, with_control};
use ct_ingest::IngestError;
use ct_ingest::images_run::{self, ImagesRun};
use ct_ingest::run::Summary;
use ct_ingest::settings::Settings;
use ct_read::picture::HuLine;
use diag_data::case::Split;
use diag_data::reader::ReaderSettings;
use diag_data::shard::ShardSet;
use diag_data::units::HuWindow;

fn run(
    root: &Path,
    out: &Path,
    change: impl FnOnce(&mut ImagesRun),
) -> (Result<Summary, IngestError>, Vec<String>) {
    let settings = Settings {
        reader: ReaderSettings { size: 32, ..ReaderSettings::IMAGES },
        with_hu: false,
        keep_case_ids: false,
        ..settings()
    };
    let mut run = ImagesRun {
        root: root.into(),
        labels: None,
        split_lists: None,
        out: out.into(),
        hu_line: None,
        window: HuWindow::LUNG,
        settings,
    };
    change(&mut run);
    with_control(|control| images_run::ingest(&run, control))
}

fn n_rows(shards: &Path, split: Split) -> u64 {
    let set = ShardSet::open(shards).unwrap();
    set.manifest().files.iter().filter(|file| file.split == split).map(|file| file.n_rows).sum()
}

/// Writes a grey image whose levels depend on the seed.
fn write_image(path: &Path, seed: u32) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    image::GrayImage::from_fn(20, 10, |x, y| image::Luma([(x * 7 + y * 3 + seed * 31) as u8]))
        .save(path)
        .unwrap();
}

#[test]
fn covid_ct_has_the_rows_of_its_official_split() {
    let Some(root) = test_data("data/covid-ct") else { return };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("shards");
    let (result, codes) = run(&root, &out, |run| run.split_lists = Some(root.join("split")));
    let summary = result.unwrap();
    assert_eq!(Split::ALL.map(|split| n_rows(&out, split)), [425, 118, 203]);
    assert_eq!(summary.manifest.spec.labels.names(), ["CT_COVID", "CT_NonCOVID"]);
    assert!(codes.iter().all(|code| code == "leak"), "{codes:?}");
}

#[test]
fn folders_are_classes_and_deeper_folders_cases() {
    let folder = tempfile::tempdir().unwrap();
    let (root, out) = (folder.path().join("images"), folder.path().join("shards"));
    for (i, path) in ["a/1.png", "a/2.png", "b/p/1.png", "b/p/2.png", "b/q/1.png"].iter().enumerate() {
        write_image(&root.join(path), i as u32);
    }
    let (result, codes) = run(&root, &out, |_| ());
    result.unwrap();
    assert_eq!(codes, Vec::<String>::new());
    let cases = ShardSet::open(&out).unwrap().cases().unwrap();
    let mut sizes: Vec<(u8, i32)> = cases.iter().map(|case| (case.label.0, case.n_slices)).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [(0, 1), (0, 1), (1, 1), (1, 2)]);
}

#[test]
fn every_kind_of_pixel_becomes_the_same_grey() {
    let folder = tempfile::tempdir().unwrap();
    let (root, out) = (folder.path().join("images"), folder.path().join("shards"));
    let level = |x: u32, y: u32| (x * 7 + y * 5) as u8;
    std::fs::create_dir_all(root.join("a")).unwrap();
    std::fs::create_dir_all(root.join("b")).unwrap();
    image::GrayImage::from_fn(32, 32, |x, y| image::Luma([level(x, y)]))
        .save(root.join("a/grey.png"))
        .unwrap();
    image::RgbImage::from_fn(32, 32, |x, y| image::Rgb([level(x, y); 3]))
        .save(root.join("a/rgb.png"))
        .unwrap();
    image::RgbaImage::from_fn(32, 32, |x, y| {
        let grey = level(x, y);
        image::Rgba([grey, grey, grey, 255])
    })
    .save(root.join("b/rgba.png"))
    .unwrap();
    image::ImageBuffer::<image::Luma<u16>, _>::from_fn(32, 32, |x, y| {
        image::Luma([u16::from(level(x, y)) * 257])
    })
    .save(root.join("b/grey16.png"))
    .unwrap();
    let (result, _) = run(&root, &out, |_| ());
    result.unwrap();
    let set = ShardSet::open(&out).unwrap();
    let want: Vec<u8> = (0..32).flat_map(|y| (0..32).map(move |x| level(x, y))).collect();
    let rows: Vec<_> =
        Split::ALL.into_iter().flat_map(|split| set.slices(split).collect::<Vec<_>>()).collect();
    assert_eq!(rows.len(), 4);
    for row in rows {
        assert_eq!(row.unwrap().pixels, want);
    }
}

#[test]
fn what_lists_and_images_do_not_share_is_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let (root, lists, out) =
        (folder.path().join("images"), folder.path().join("lists"), folder.path().join("shards"));
    for (i, path) in ["a/1.png", "a/2.png", "b/1.png", "b/3.png"].iter().enumerate() {
        write_image(&root.join(path), i as u32);
    }
    std::fs::create_dir(&lists).unwrap();
    std::fs::write(lists.join("traina.txt"), "1.PNG\n2.png\nmissing.png\n").unwrap();
    std::fs::write(lists.join("testb.txt"), "1.png\n").unwrap();
    let (result, mut codes) = run(&root, &out, |run| run.split_lists = Some(lists));
    result.unwrap();
    codes.sort();
    assert_eq!(codes, ["no-part", "unlisted"]);
    assert_eq!(Split::ALL.map(|split| n_rows(&out, split)), [2, 0, 1]);
}

#[test]
fn a_broken_image_costs_its_case() {
    let folder = tempfile::tempdir().unwrap();
    let (root, out) = (folder.path().join("images"), folder.path().join("shards"));
    for (i, path) in ["a/1.png", "b/1.png"].iter().enumerate() {
        write_image(&root.join(path), i as u32);
    }
    let whole = std::fs::read(root.join("a/1.png")).unwrap();
    std::fs::write(root.join("a/cut.png"), &whole[..whole.len() / 2]).unwrap();
    std::fs::write(root.join("b/text.jpg"), "no image").unwrap();
    let (result, codes) = run(&root, &out, |_| ());
    result.unwrap();
    assert_eq!(codes, ["image", "image"]);
}

#[test]
fn a_label_table_may_name_images_and_folders() {
    let folder = tempfile::tempdir().unwrap();
    let (root, out) = (folder.path().join("images"), folder.path().join("shards"));
    for (i, path) in ["one.png", "deep/two.png", "case/1.png", "case/2.png"].iter().enumerate() {
        write_image(&root.join(path), i as u32);
    }
    let table = folder.path().join("labels.csv");
    std::fs::write(&table, "case_id,label\none,x\ndeep/two.png,y\ncase,y\nabsent,x\n").unwrap();
    let (result, codes) = run(&root, &out, |run| run.labels = Some(table));
    result.unwrap();
    assert_eq!(codes, ["no-files"]);
    let cases = ShardSet::open(&out).unwrap().cases().unwrap();
    assert_eq!(cases.iter().map(|case| case.n_slices).sum::<i32>(), 4);
}

#[test]
fn images_of_a_patient_stay_in_one_split() {
    let folder = tempfile::tempdir().unwrap();
    let (root, out) = (folder.path().join("images"), folder.path().join("shards"));
    let mut text = String::from("case_id,label,patient_id\n");
    // 12 patients with an image of either class.
    for i in 0..24 {
        write_image(&root.join(format!("{i}.png")), i);
        text += &format!("{i},{},person{}\n", ["x", "y"][i as usize % 2], i / 2);
    }
    let table = folder.path().join("labels.csv");
    std::fs::write(&table, text).unwrap();
    let (result, _) = run(&root, &out, |run| {
        run.labels = Some(table);
        run.settings.keep_case_ids = true;
    });
    result.unwrap();
    let mut split_of = std::collections::BTreeMap::new();
    for case in ShardSet::open(&out).unwrap().cases().unwrap() {
        let patient = case.patient_hash.unwrap();
        assert!(!patient.contains("person"));
        assert_eq!(*split_of.entry(patient).or_insert(case.split), case.split);
    }
    assert_eq!(split_of.len(), 12);
    assert!(split_of.values().any(|split| *split == Split::Test));
}

#[test]
fn pictures_of_stored_values_become_hu_by_a_line_or_are_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("images");
    let hu = crate::common::chest_hu(30.0);
    for (class, offset) in [("a", 1024), ("b", 32_768)] {
        std::fs::create_dir_all(root.join(class)).unwrap();
        image::ImageBuffer::<image::Luma<u16>, _>::from_fn(64, 64, |x, y| {
            // Not the same picture in both classes.
            let shift = if class == "a" { 0 } else { 9 };
            image::Luma([(i32::from(hu[(y * 64 + x) as usize]) + shift + offset) as u16])
        })
        .save(root.join(class).join("1.png"))
        .unwrap();
    }
    let out = folder.path().join("without");
    let (result, codes) = run(&root, &out, |_| ());
    assert!(result.is_err());
    assert_eq!(codes, ["stored-values", "stored-values"]);
    // One line for all is right for one of them only.
    let out = folder.path().join("one");
    let line = HuLine { slope: 1.0, intercept: -1024.0 };
    let (result, codes) = run(&root, &out, |run| run.hu_line = Some(line));
    result.unwrap();
    assert_eq!(codes, ["not-hu"]);
    // The table says it for each.
    let table = folder.path().join("labels.csv");
    std::fs::write(&table, "case_id,label,hu_slope,hu_intercept\na/1.png,x,1,-1024\nb/1.png,y,1,-32768\n")
        .unwrap();
    let out = folder.path().join("each");
    let (result, codes) = run(&root, &out, |run| {
        run.labels = Some(table);
        run.settings.reader.size = 64;
    });
    result.unwrap();
    assert_eq!(codes, Vec::<String>::new());
    let set = ShardSet::open(&out).unwrap();
    assert_eq!(set.manifest().spec.reader.window, Some(HuWindow::LUNG));
    let rows: Vec<_> =
        Split::ALL.into_iter().flat_map(|split| set.slices(split).collect::<Vec<_>>()).collect();
    assert_eq!(rows.len(), 2);
    for row in rows {
        let row = row.unwrap();
        let shift = if row.acquisition.rescale_intercept == Some(-1024.0) { 0 } else { 9 };
        let grey = |hu: &i16| HuWindow::LUNG.grey(diag_data::units::Hu(f32::from(*hu + shift)));
        assert_eq!(row.pixels, hu.iter().map(grey).collect::<Vec<u8>>());
    }
}

#[test]
fn shared_pictures_have_their_outcome() {
    let folder = tempfile::tempdir().unwrap();
    if let Some(root) = test_data("cases/truncated-jpeg/images") {
        let out = folder.path().join("jpeg");
        let (_, codes) = run(&root, &out, |_| ());
        assert_eq!(codes, ["image", "image", "image"]);
    }
    if let Some(root) = test_data("cases/tiff-16bit/images") {
        let (_, codes) = run(&root, &folder.path().join("without"), |_| ());
        assert_eq!(codes, ["stored-values", "stored-values"]);
        let out = folder.path().join("tiff");
        let line = HuLine { slope: 1.0, intercept: -1024.0 };
        let (result, codes) = run(&root, &out, |run| run.hu_line = Some(line));
        result.unwrap();
        assert_eq!(codes, Vec::<String>::new());
    }
}
