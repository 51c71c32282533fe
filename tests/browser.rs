//! The report as a browser sees it.

use std::collections::BTreeMap;
use std::process::Command;

use covid19_diag_tests::chrome::Chrome;
use covid19_diag_tests::{chromium, python, smoke_run, succeed, workspace};
use serde_json::Value;

const WIDTHS: [u32; 2] = [400, 1600];
const SCHEMES: [&str; 2] = ["light", "dark"];

/// The report of the smoke run, open.
fn report(chromium: &std::path::Path) -> Chrome {
    let page = smoke_run().join("run/report.html").canonicalize().unwrap();
    let mut chrome = Chrome::start(chromium);
    chrome.open(&page);
    chrome
}

/// Waits until a script says true; a picture is decoded a moment after the key.
#[track_caller]
fn wait_for(chrome: &mut Chrome, script: &str) {
    let poll = format!(
        "(async () => {{ for (let i = 0; i < 100; i++) {{ if ({script}) return true; await new Promise(r => setTimeout(r, 50)); }} return false; }})()"
    );
    assert_eq!(chrome.run(&poll), true, "never came true: {script}");
}

#[test]
fn the_report_opens_offline_without_a_console_message_or_a_request() {
    let Some(chromium) = chromium() else { return };
    let mut chrome = report(&chromium);
    let text = chrome.text("document.body.innerText").to_lowercase();
    assert!(text.contains("synthetic"), "a report on synthetic data says so");
    assert!(text.contains("not for clinical"), "a report says that it is not for clinical use");
    // Everything that can be opened, is.
    chrome.run("document.querySelectorAll('details').forEach(d => { d.open = true; })");
    chrome.run("window.scrollTo(0, document.body.scrollHeight)");
    for kind in ["Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"] {
        assert!(chrome.heard(kind).is_empty(), "{kind}: {:?}", chrome.heard(kind));
    }
    let asked = chrome.heard("Network.requestWillBeSent");
    let url = |event: &&Value| event["params"]["request"]["url"].as_str().unwrap().to_owned();
    let asked: Vec<String> = asked.iter().map(url).filter(|url| !url.starts_with("data:")).collect();
    assert!(asked.len() == 1 && asked[0].starts_with("file:///"), "{asked:?}");
    let size = std::fs::metadata(smoke_run().join("run/report.html")).unwrap().len();
    assert!(size < 15 << 20, "{size} bytes");
}

/// Texts whose colours are too near to each other (WCAG 2.2, 1.4.3: 4.5, large text 3).
const FAINT_TEXTS: &str = r#"(() => {
  const parse = (text) => { const v = text.match(/[\d.]+/g).map(Number); return v.length < 4 ? [...v, 1] : v; };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const luminance = (c) => {
    const [r, g, b] = c.map((v) => { const s = v / 255; return s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let n = 0;
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || element.closest("script, style, svg")) continue;
    if (!element.checkVisibility()) continue;
    n++;
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
    let back = [255, 255, 255, 1];
    for (const layer of layers.reverse()) back = over(layer, back);
    const style = getComputedStyle(element);
    const [a, b] = [luminance(over(parse(style.color), back)), luminance(back)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const large = parseFloat(style.fontSize) >= 24;
    if (ratio < (large ? 3 : 4.5)) faint.push(`${element.tagName}.${element.className} ${ratio.toFixed(2)}: ${element.textContent.slice(0, 30)}`);
  }
  return n > 300 ? [...new Set(faint)] : [`only ${n} texts`];
})()"#;

/// What sticks out to the right, beside what scrolls by itself.
const STICKING_OUT: &str = r#"(() => {
  const wide = [...document.querySelectorAll("main *")].filter((e) =>
    e.getBoundingClientRect().right > innerWidth + 1 && e.checkVisibility() && !e.parentElement.closest(".scroll, pre, svg"));
  const page = document.documentElement.scrollWidth > innerWidth ? [`page ${document.documentElement.scrollWidth}`] : [];
  return page.concat(wide.map((e) => `${e.tagName}.${e.className}`));
})()"#;

#[test]
fn the_report_is_readable_at_two_widths_in_light_and_dark() {
    let Some(chromium) = chromium() else { return };
    let mut chrome = report(&chromium);
    let mut brightness = BTreeMap::new();
    for width in WIDTHS {
        for scheme in SCHEMES {
            chrome.view(width, scheme);
            chrome.run("window.scrollTo(0, 0)");
            assert_eq!(chrome.run(STICKING_OUT), serde_json::json!([]), "sticks out at {width} px");
            assert_eq!(chrome.run(FAINT_TEXTS), serde_json::json!([]), "too faint, {scheme} at {width} px");
            let picture = chrome.photograph();
            let measure = format!(
                r#"(async () => {{
                  const image = new Image(); image.src = "data:image/png;base64,{picture}"; await image.decode();
                  const canvas = document.createElement("canvas"); canvas.width = image.width; canvas.height = image.height;
                  const context = canvas.getContext("2d"); context.drawImage(image, 0, 0);
                  const {{ data }} = context.getImageData(0, 0, image.width, image.height);
                  let sum = 0; const levels = new Set();
                  for (let i = 0; i < data.length; i += 4) {{ sum += data[i + 1]; levels.add(data[i + 1]); }}
                  return [image.width, sum / (data.length / 4), levels.size];
                }})()"#
            );
            let measured = chrome.run(&measure);
            assert_eq!(measured[0], width);
            assert!(measured[2].as_u64().unwrap() > 50, "an empty picture: {measured}");
            brightness.insert((width, scheme), measured[1].as_f64().unwrap());
        }
        let [light, dark] = SCHEMES.map(|scheme| brightness[&(width, scheme)]);
        assert!(light > 190.0 && dark < 80.0, "light {light}, dark {dark} at {width} px");
    }
}

#[test]
fn pictures_and_charts_have_words_and_headings_have_an_order() {
    let Some(chromium) = chromium() else { return };
    let mut chrome = report(&chromium);
    let wordless = "[...document.querySelectorAll('img, svg[role=img]')].filter(e => !(e.getAttribute('alt') || e.getAttribute('aria-label'))).length";
    // The viewer's own picture gets its words with its slice.
    assert_eq!(chrome.run(wordless), 0);
    assert_eq!(chrome.run("document.querySelectorAll('figure.chart:not(:has(details table))').length"), 0);
    assert_eq!(chrome.run("document.querySelectorAll('h1').length"), 1);
    let broken = "[...document.querySelectorAll('a[href^=\"#\"]')].filter(a => !document.getElementById(a.hash.slice(1))).map(a => a.hash)";
    assert_eq!(chrome.run(broken), serde_json::json!([]), "links to nothing");
    let twice = "(() => { const ids = [...document.querySelectorAll('[id]')].map(e => e.id); return ids.filter((id, i) => ids.indexOf(id) !== i); })()";
    assert_eq!(chrome.run(twice), serde_json::json!([]), "an id given twice");
}

#[test]
fn the_case_viewer_obeys_the_keyboard() {
    let Some(chromium) = chromium() else { return };
    let mut chrome = report(&chromium);
    chrome.view(1600, "light");
    chrome.run("document.querySelector('.viewer').focus()");
    let place = "document.querySelector('.viewer .side p[aria-live]').textContent.match(/\\((\\d+) of \\d+\\), case (\\d+)/).slice(1, 3).join('/')";
    let here = |chrome: &mut Chrome| {
        let text = chrome.text(place);
        let (slice, case) = text.split_once('/').unwrap();
        (slice.parse::<u32>().unwrap(), case.parse::<u32>().unwrap())
    };
    let (slice, case) = here(&mut chrome);
    assert_eq!(case, 1, "the most wrong case comes first");
    chrome.press("ArrowRight");
    assert_eq!(here(&mut chrome), (slice + 1, 1));
    chrome.press("ArrowLeft");
    chrome.press("ArrowLeft");
    assert_eq!(here(&mut chrome), (slice - 1, 1));
    chrome.press("ArrowUp");
    assert_eq!(here(&mut chrome).1, 1, "there is nothing before the first case");
    chrome.press("ArrowDown");
    assert_eq!(here(&mut chrome).1, 2);
    let shown = chrome.text("document.querySelector('.viewer h4').textContent");
    let second = chrome.text("document.querySelectorAll('article.case')[1].dataset.case");
    assert_eq!(shown, second);

    // The heat map: on, another head, off. The case opened on a slice that has one.
    let painted = "(() => { const c = document.querySelector('.viewer canvas'); if (c.hidden) return false; \
                   const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; \
                   let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n > 100; })()";
    let head = "document.querySelectorAll('.heat select')[0].value";
    assert_eq!(chrome.run(painted), false, "a radiologist sees the slice first");
    chrome.press("m");
    wait_for(&mut chrome, painted);
    assert_eq!(chrome.text(head), "final");
    chrome.press("h");
    assert_ne!(chrome.text(head), "final");
    wait_for(&mut chrome, painted);
    let words = chrome.text("document.querySelector('.heat p').textContent");
    assert!(words.contains("Evidence for") && words.contains("peak"), "{words}");
    chrome.press("m");
    wait_for(&mut chrome, "document.querySelector('.viewer canvas').hidden");
    assert!(chrome.heard("Runtime.exceptionThrown").is_empty());
}

/// The tables of the section on performance, by their column heads: row name to cells.
const TABLES: &str = r##"[...document.querySelectorAll("#run1-performance table:has(caption)")].map((table) => ({
  caption: table.caption.textContent,
  heads: [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim()),
  rows: [...table.tBodies[0].rows].map((row) => [...row.cells].map((cell) => cell.firstChild.textContent.trim())),
}))"##;

#[test]
fn the_numbers_on_the_page_are_those_of_scikit_learn() {
    let (Some(chromium), Some(python)) = (chromium(), python()) else { return };
    let mut chrome = report(&chromium);
    let tables = chrome.run(TABLES);
    let run = smoke_run().join("run");
    let output = succeed(Command::new(python).arg(workspace().join("tests/report_numbers.py")).arg(run));
    let want: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut n_compared = 0;
    let mut compare = |got: &Value, want: &Value, what: &str| {
        let got = got.as_str().unwrap_or_else(|| panic!("{what} is not on the page"));
        match want.as_f64() {
            None => assert_eq!(got, "undefined", "{what}"),
            Some(want) => {
                // Three decimals: half of the last one, and what the order of a sum may change.
                let shown: f64 = got.replace('−', "-").parse().unwrap_or_else(|_| panic!("{what}: {got}"));
                assert!((shown - want).abs() <= 0.0005 + 1e-9, "{what}: {got}, expected {want}");
            }
        }
        n_compared += 1;
    };
    let table = |caption: &str, head: &str| {
        let fits = |t: &&Value| {
            t["caption"].as_str().unwrap().starts_with(caption) && t["heads"][0].as_str().unwrap() == head
        };
        tables.as_array().unwrap().iter().find(fits).unwrap_or_else(|| panic!("no table {caption}"))
    };
    let column = |table: &Value, name: &str| {
        table["heads"].as_array().unwrap().iter().position(|head| head == name).unwrap()
    };
    for unit in ["case", "slice"] {
        let of_class = table(&format!("Unit: {unit}. 95"), "Class");
        let confusion = table(&format!("By {unit}"), "true \\ called");
        for (k, class) in want["labels"].as_array().unwrap().iter().enumerate() {
            let row = &of_class["rows"][k];
            assert_eq!(row[0], *class);
            for (measure, value) in want[unit]["classes"][k].as_object().unwrap() {
                compare(&row[column(of_class, measure)], value, &format!("{measure} of {class} by {unit}"));
            }
            for (called, count) in want[unit]["confusion"][k].as_array().unwrap().iter().enumerate() {
                assert_eq!(confusion["rows"][k][1 + called], count.to_string(), "confusion by {unit}");
            }
        }
        let overall = table("Unit of analysis in the column heads", "Measure");
        let columns =
            [("case", "case, decided"), ("case_mean", "case, mean over slices"), ("slice", "slice")];
        for (of_unit, name) in columns.into_iter().filter(|(of_unit, _)| of_unit.starts_with(unit)) {
            for (measure, value) in want[of_unit]["overall"].as_object().unwrap() {
                let rows = overall["rows"].as_array().unwrap();
                let row =
                    rows.iter().find(|row| row[0] == *measure).unwrap_or_else(|| panic!("no {measure}"));
                compare(&row[column(overall, name)], value, &format!("{measure} by {of_unit}"));
            }
        }
    }
    assert_eq!(n_compared, 2 * (3 * 7 + 12) + 12);
}
