//! Zip and tar archives as folders: every case in them is read, and none of them can
//! write a file, take the memory, or lead out of itself.

use std::io::{Cursor, Write};

use ct_read::scan::Format;
use ct_read::source::listing::Listing;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::common::{Cohort, Dicom, rows, series, settings};
use crate::tested::check_hu;

/// An archive of named contents.
fn zipped(entries: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(method);
    for (name, bytes) in entries {
        writer.start_file(*name, options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// A case of its own pixels as files `FOLDER/i.dcm`.
fn case_entries(case: usize, folder: &str) -> Vec<(String, Vec<u8>)> {
    let mut slices = series(case);
    for slice in &mut slices {
        slice.stored(&slice.stored_values().iter().map(|v| v + 3 * (case as i16 - 2)).collect::<Vec<_>>());
    }
    slices.iter().enumerate().map(|(i, slice)| (format!("{folder}/{i}.dcm"), slice.bytes())).collect()
}

/// An archive of files.
pub fn archive(entries: &[(String, Vec<u8>)], method: CompressionMethod) -> Vec<u8> {
    let entries: Vec<(&str, &[u8])> =
        entries.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    zipped(&entries, method)
}

/// Small archives, for the tests of damaged input.
pub fn seeds() -> Vec<Vec<u8>> {
    let entries: [(&str, &[u8]); 3] = [("a/0.dcm", &[1; 90]), ("a/1.dcm", &[2; 70]), ("b.txt", b"note")];
    [CompressionMethod::Stored, CompressionMethod::Deflated].map(|method| zipped(&entries, method)).into()
}

fn cohort(archives: &[(&str, Vec<u8>)]) -> Cohort {
    let cohort = Cohort::new();
    cohort.label("case_id,label,split\ngood,normal,train\ntested,covid-19,test\n");
    for (name, bytes) in archives {
        let path = cohort.dicom().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    cohort
}

#[test]
fn cases_in_archives_are_read_by_folder_or_archive_name() {
    for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
        // One archive of two cases; an archive a case; folders inside of other names.
        let mut both = case_entries(1, "export/good");
        both.extend(case_entries(2, "export/tested"));
        let one = archive(&case_entries(1, "DICOM"), method);
        let two = archive(&case_entries(2, "IMAGES/deep"), method);
        for archives in [
            vec![("all.zip", archive(&both, method))],
            vec![("good.zip", one.clone()), ("sub/tested.ZIP", two.clone())],
        ] {
            let cohort = cohort(&archives);
            let (result, codes) = cohort.run(settings());
            assert_eq!(codes, Vec::<String>::new());
            let flow = result.unwrap().manifest.flow;
            assert_eq!((flow.files.used, flow.cases.used), (12, 2));
            check_hu(&rows(&cohort.shards(), "tested"), -30.0);
        }
    }
}

#[test]
fn the_bytes_are_those_of_the_unpacked_folder() {
    let mut both = case_entries(1, "good");
    both.extend(case_entries(2, "tested"));
    let packed = cohort(&[("all.zip", archive(&both, CompressionMethod::Deflated))]);
    let plain = cohort(&[]);
    for (name, bytes) in &both {
        let path = plain.dicom().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let sums = |cohort: &Cohort| {
        cohort.run(settings()).0.unwrap();
        std::fs::read_to_string(cohort.shards().join("SHA256SUMS")).unwrap()
    };
    assert_eq!(sums(&packed), sums(&plain));
}

#[test]
fn an_archive_itself_may_be_the_input() {
    let mut both = case_entries(1, "good");
    both.extend(case_entries(2, "tested"));
    let cohort = cohort(&[("all.zip", archive(&both, CompressionMethod::Deflated))]);
    let listing = Listing::of(&cohort.dicom().join("all.zip")).unwrap();
    assert_eq!((listing.files.len(), &*listing.files[0].relative), (12, "good/0.dcm"));
}

#[test]
fn a_name_that_leads_elsewhere_is_a_label_only() {
    let slice = Dicom::chest(2, 0.0).bytes();
    let names = ["../../escape.dcm", "/etc/absolute.dcm", "..\\windows.dcm", "a/../../b.dcm"];
    let entries: Vec<(&str, &[u8])> = names.iter().map(|name| (*name, slice.as_slice())).collect();
    let cohort = cohort(&[("x.zip", zipped(&entries, CompressionMethod::Stored))]);
    let listing = Listing::of(&cohort.dicom()).unwrap();
    let seen: Vec<&str> = listing.files.iter().map(|file| &*file.relative).collect();
    assert_eq!(
        seen,
        ["labels.csv", "x.zip/a/b.dcm", "x.zip/escape.dcm", "x.zip/etc/absolute.dcm", "x.zip/windows.dcm"]
    );
    assert!(!cohort.folder.path().join("escape.dcm").exists());
}

/// Outcome of a good case and an archive of the tested one.
fn outcome(bytes: Vec<u8>) -> Vec<String> {
    let cohort = cohort(&[("tested.zip", bytes)]);
    let good: Vec<Vec<u8>> = case_entries(1, "").into_iter().map(|(_, bytes)| bytes).collect();
    cohort.write_files("good", &good);
    let (result, codes) = cohort.run_as(Format::Dicom, settings());
    result.unwrap();
    assert_eq!(rows(&cohort.shards(), "good").len(), 6, "the other case is untouched");
    codes
}

#[test]
fn broken_archives_cost_their_case_only() {
    let whole = archive(&case_entries(2, "d"), CompressionMethod::Deflated);
    assert_eq!(outcome(whole.clone()), Vec::<String>::new());
    for cut in [0, 3, whole.len() / 2, whole.len() - 1] {
        assert_eq!(outcome(whole[..cut].to_vec()), ["archive", "no-files"], "cut at {cut}");
    }
    assert_eq!(outcome(b"PK\x03\x04 no archive".to_vec()), ["archive", "no-files"]);
    // A flipped byte inside an entry is found by the checksum.
    let mut damaged = archive(&case_entries(2, "d"), CompressionMethod::Stored);
    damaged[5000] ^= 1;
    assert_eq!(outcome(damaged), ["unreadable"]);
}

#[test]
fn bombs_are_refused_before_they_inflate() {
    // 300 MB of zeros pack to 0.3 MB: more than 200 times, and more than 64 MB.
    let zeros = vec![0; 300 << 20];
    let bomb = zipped(&[("d/0.dcm", &zeros)], CompressionMethod::Deflated);
    assert!(bomb.len() < 1 << 20);
    assert_eq!(outcome(bomb), ["archive", "no-files"]);
    // A length that is only announced: the entry's own bytes end far earlier.
    let mut liar = zipped(&[("d/0.dcm", &[7; 1000])], CompressionMethod::Stored);
    let at = liar.windows(4).rposition(|mark| mark == b"PK\x01\x02").unwrap();
    liar[at + 24..at + 28].copy_from_slice(&(60u32 << 20).to_le_bytes());
    assert_eq!(outcome(liar).len(), 1);
}

#[test]
fn entries_that_share_their_bytes_are_refused() {
    // Two entries of the directory point to the same bytes, as in the densest bombs.
    let mut doubled = zipped(&[("d/0.dcm", &[1; 500]), ("d/1.dcm", &[2; 500])], CompressionMethod::Stored);
    let marks: Vec<usize> =
        (0..doubled.len() - 4).filter(|&at| &doubled[at..at + 4] == b"PK\x01\x02").collect();
    let offset: [u8; 4] = doubled[marks[0] + 42..marks[0] + 46].try_into().unwrap();
    doubled[marks[1] + 42..marks[1] + 46].copy_from_slice(&offset);
    assert_eq!(outcome(doubled), ["archive", "no-files"]);
}

#[test]
fn an_archive_in_an_archive_is_named_not_opened() {
    let inner = archive(&case_entries(2, "d"), CompressionMethod::Stored);
    let outer = zipped(&[("d/inner.zip", &inner)], CompressionMethod::Stored);
    assert_eq!(outcome(outer), ["not-dicom"]);
}

#[test]
fn objects_packed_by_gzip_are_read_within_a_cap() {
    use flate2::write::GzEncoder;
    let packed = |bytes: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let cohort = Cohort::new();
    cohort.write("good", &series(1));
    let folder = cohort.dicom().join("tested");
    std::fs::create_dir_all(&folder).unwrap();
    for (i, slice) in series(2).iter().enumerate() {
        std::fs::write(folder.join(format!("{i}.dcm.gz")), packed(&slice.bytes())).unwrap();
    }
    cohort.label("case_id,label,split\ngood,normal,train\ntested,covid-19,train\n");
    let (result, codes) = cohort.run(settings());
    result.unwrap();
    assert_eq!(codes, Vec::<String>::new());
    check_hu(&rows(&cohort.shards(), "tested"), -30.0);
    for (bytes, code) in [
        (packed(&vec![0; 80 << 20]), "too-large"),
        (packed(&series(2)[0].bytes())[..400].to_vec(), "truncated"),
        (b"This is no file that gzip has made.".to_vec(), "archive"),
    ] {
        std::fs::remove_dir_all(cohort.shards()).unwrap();
        std::fs::write(folder.join("6.dcm.gz"), bytes).unwrap();
        assert_eq!(cohort.run(settings()).1, [code]);
    }
}

/// A tar archive of files; `kind` changes what an entry says that it is.
fn tarred(entries: &[(String, Vec<u8>)], kind: tar::EntryType) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_entry_type(kind);
        header.set_mode(0o644);
        // Names that lead elsewhere, which the builder refuses.
        if name.len() < 100 {
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            builder.append(&header, bytes.as_slice()).unwrap();
        } else {
            builder.append_data(&mut header, name, bytes.as_slice()).unwrap();
        }
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Small archives, for the tests of damaged input.
pub fn tar_seeds() -> Vec<Vec<u8>> {
    let long = "a".repeat(120);
    let entries =
        [("a/0.dcm", vec![1; 90]), (&*long, vec![2; 700])].map(|(name, bytes)| (name.into(), bytes));
    [tar::EntryType::Regular, tar::EntryType::Symlink].map(|kind| tarred(&entries, kind)).into()
}

#[test]
fn tar_archives_are_folders_too() {
    let long = format!("{}/deep", "very-long-name".repeat(12));
    let mut both = case_entries(1, "export/good");
    both.extend(case_entries(2, &format!("export/tested/{long}")));
    let all = tarred(&both, tar::EntryType::Regular);
    let one = tarred(&case_entries(1, "DICOM"), tar::EntryType::Regular);
    let two = tarred(&case_entries(2, "DICOM"), tar::EntryType::Regular);
    for archives in [
        vec![("all.tar", all.clone())],
        vec![("all.tar.gz", gzip(&all))],
        vec![("good.TGZ", gzip(&one)), ("sub/tested.tar.gz", gzip(&two))],
        vec![("good.tar", one), ("tested.zip", archive(&case_entries(2, "x"), CompressionMethod::Stored))],
    ] {
        let cohort = cohort(&archives);
        let (result, codes) = cohort.run(settings());
        assert_eq!(codes, Vec::<String>::new(), "{}", archives[0].0);
        assert_eq!(result.unwrap().manifest.flow.files.used, 12);
        check_hu(&rows(&cohort.shards(), "tested"), -30.0);
        if archives.len() == 1 {
            let listing = Listing::of(&cohort.dicom().join(archives[0].0)).unwrap();
            assert_eq!((listing.files.len(), &*listing.files[0].relative), (12, "export/good/0.dcm"));
        }
    }
}

/// Outcome of a good case and a tar archive of the tested one.
fn tar_outcome(name: &str, bytes: &[u8]) -> Vec<String> {
    let cohort = cohort(&[(name, bytes.to_vec())]);
    let good: Vec<Vec<u8>> = case_entries(1, "").into_iter().map(|(_, bytes)| bytes).collect();
    cohort.write_files("good", &good);
    let (result, codes) = cohort.run_as(Format::Dicom, settings());
    result.unwrap();
    assert_eq!(rows(&cohort.shards(), "good").len(), 6, "the other case is untouched");
    codes
}

#[test]
fn broken_tar_archives_cost_their_case_only() {
    let whole = tarred(&case_entries(2, "d"), tar::EntryType::Regular);
    let packed = gzip(&whole);
    assert_eq!(tar_outcome("tested.tar", &whole), Vec::<String>::new());
    assert_eq!(tar_outcome("tested.tar.gz", &packed), Vec::<String>::new());
    // In a header, in an entry, and between two entries; without the block of zeros.
    let first = 512 + case_entries(2, "d")[0].1.len().div_ceil(512) * 512;
    for cut in [100, 5000, first, first + 512, whole.len() - 1024] {
        let codes = tar_outcome("tested.tar", &whole[..cut]);
        assert!(
            codes == ["truncated", "no-files"] || codes == ["archive", "no-files"],
            "cut at {cut}: {codes:?}"
        );
    }
    for cut in [20, packed.len() / 2, packed.len() - 1] {
        assert_eq!(tar_outcome("tested.tgz", &packed[..cut]), ["truncated", "no-files"], "cut at {cut}");
    }
    let mut damaged = packed.clone();
    damaged[packed.len() / 2] ^= 4;
    assert_eq!(tar_outcome("tested.tgz", &damaged)[1], "no-files");
    assert_eq!(tar_outcome("tested.tar", b"no archive, but long enough"), ["archive", "no-files"]);
    assert_eq!(tar_outcome("tested.tar", &[]), ["truncated", "no-files"]);
}

#[test]
fn a_tar_bomb_is_refused_and_a_link_in_one_is_none() {
    // 300 MB of zeros pack to 0.3 MB: more than 200 times, and more than 64 MB.
    let zeros = tarred(&[("d/0.dcm".into(), vec![0; 300 << 20])], tar::EntryType::Regular);
    let mut best = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    best.write_all(&zeros).unwrap();
    assert_eq!(tar_outcome("tested.tar.gz", &best.finish().unwrap()), ["archive", "no-files"]);
    for kind in [tar::EntryType::Symlink, tar::EntryType::Link, tar::EntryType::Fifo] {
        let links = tarred(&[("d/0.dcm".into(), Vec::new())], kind);
        assert_eq!(tar_outcome("tested.tar", &links), ["archive", "no-files"]);
    }
    let names = ["../../escape.dcm", "/etc/absolute.dcm", "..\\windows.dcm"];
    let slice = Dicom::chest(2, 0.0).bytes();
    let entries = names.map(|name| (name.to_string(), slice.clone()));
    let cohort = cohort(&[("x.tar", tarred(&entries, tar::EntryType::Regular))]);
    let listing = Listing::of(&cohort.dicom()).unwrap();
    let seen: Vec<&str> = listing.files.iter().map(|file| &*file.relative).collect();
    assert_eq!(seen, ["labels.csv", "x.tar/escape.dcm", "x.tar/etc/absolute.dcm", "x.tar/windows.dcm"]);
    assert!(!cohort.folder.path().join("escape.dcm").exists());
}
