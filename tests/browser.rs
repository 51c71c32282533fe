//! The report as a browser sees it.

use std::path::Path;
use std::process::{Command, Output};

use covid19_diag_tests::{chromium, smoke_run, stderr, succeed};

fn open(chromium: &Path, page: &Path, extra: &[&str]) -> Output {
    let profile = tempfile::tempdir().unwrap();
    let mut command = Command::new(chromium);
    command
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-quic"])
        .args(["--enable-logging=stderr", "--virtual-time-budget=4000"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(extra)
        .arg(format!("file://{}", page.display()));
    succeed(&mut command)
}

#[test]
fn the_report_opens_offline_without_a_console_message_or_a_request() {
    let Some(chromium) = chromium() else { return };
    let page = smoke_run().join("run/report.html").canonicalize().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("net.json");
    let output = open(&chromium, &page, &["--dump-dom", &format!("--log-net-log={}", log.display())]);

    let messages = stderr(&output);
    assert!(!messages.contains("CONSOLE"), "{messages}");
    // One event a line. What the browser asks for on its own account has no origin.
    let events = std::fs::read_to_string(&log).unwrap();
    let by_the_page =
        |event: &&str| event.contains("\"initiator\":") && !event.contains("\"initiator\":\"not an origin\"");
    let asked: Vec<&str> =
        events.lines().filter(by_the_page).filter(|e| e.contains("\"url\":\"http")).collect();
    assert!(asked.is_empty(), "the page asked the network: {asked:?}");
    let dom = String::from_utf8_lossy(&output.stdout).to_lowercase();
    assert!(dom.contains("synthetic"), "a report on synthetic data says so");
    assert!(dom.contains("not for clinical"), "a report says that it is not for clinical use");
    let size = std::fs::metadata(&page).unwrap().len();
    assert!(size < 15 << 20, "{size} bytes");
}

#[test]
fn the_report_can_be_photographed_at_two_widths() {
    let Some(chromium) = chromium() else { return };
    let page = smoke_run().join("run/report.html").canonicalize().unwrap();
    let folder = tempfile::tempdir().unwrap();
    for width in [500, 1600] {
        let picture = folder.path().join(format!("{width}.png"));
        let size = format!("--window-size={width},2000");
        open(&chromium, &page, &[&size, &format!("--screenshot={}", picture.display())]);
        assert!(std::fs::metadata(&picture).unwrap().len() > 50_000, "an empty picture at {width} px");
    }
}
