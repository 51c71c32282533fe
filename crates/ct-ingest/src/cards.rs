//! The cards beside the shards: `README.md` for people and Hugging Face,
//! `croissant.json` for data-set search engines.

use std::collections::BTreeMap;

use diag_data::case::Split;
use diag_data::manifest::{KeyKind, Layout, Manifest};
use serde_json::json;

/// All cards of a shard folder, by name.
pub fn all(manifest: &Manifest, synthetic: bool) -> BTreeMap<String, Vec<u8>> {
    let croissant = format!("{:#}\n", croissant(manifest, synthetic));
    BTreeMap::from([
        ("README.md".to_string(), readme(manifest, synthetic).into_bytes()),
        ("croissant.json".to_string(), croissant.into_bytes()),
    ])
}

fn title(synthetic: bool) -> &'static str {
    if synthetic { "CT slices of a synthetic cohort" } else { "CT slices" }
}

/// What may be said about the data without knowing more than the manifest.
fn description(manifest: &Manifest, synthetic: bool, shown: fn(&str) -> String) -> String {
    let labels: Vec<String> = manifest.spec.labels.names().iter().map(|name| shown(name)).collect();
    let labels = labels.join(", ");
    let origin =
        if synthetic { "The images are SYNTHETIC: no patient was ever scanned for them. " } else { "" };
    format!(
        "{origin}Axial chest CT slices of {} x {} pixels in classes {labels}. For research only, not for clinical use.",
        manifest.spec.reader.size, manifest.spec.reader.size
    )
}

fn readme(manifest: &Manifest, synthetic: bool) -> String {
    let mut text = String::from("---\npretty_name: ");
    text.push_str(title(synthetic));
    text.push_str("\ntask_categories:\n- image-classification\ntags:\n- medical\n- computed-tomography\n");
    text.push_str("configs:\n- config_name: default\n  data_files:\n");
    for split in splits(manifest) {
        text.push_str(&format!("  - split: {split}\n    path: data/{split}-*.parquet\n"));
    }
    // JSON is YAML.
    let features = diag_data::shard::card_features(&manifest.spec);
    text.push_str(&format!("dataset_info:\n  config_name: default\n  features: {features}\n"));
    text.push_str("---\n\n# ");
    text.push_str(title(synthetic));
    text.push_str(&format!("\n\n{}\n\n", description(manifest, synthetic, markdown)));
    text.push_str("| class | part | cases | slices |\n| --- | --- | ---: | ---: |\n");
    for row in &manifest.table {
        text.push_str(&format!(
            "| {} | {} | {} | {} |\n",
            markdown(&row.label),
            row.split,
            row.n_cases,
            row.n_slices
        ));
    }
    if manifest.key.kind == KeyKind::Public && !synthetic {
        text.push_str(
            "\n**The key of these pseudonyms is public: whoever guesses a name or a number can test it against the \
             hashes. Do not publish them.**\n",
        );
    }
    text.push_str(&match manifest.n_cases_burned_in_unknown {
        0 => "\nEvery used file says that no text is burned into its pixels; pixels are not searched for text.\n".into(),
        n => format!(
            "\nOf {n} cases nothing says whether text is burned into the pixels (BurnedInAnnotation); pixels are not \
             searched for text: look at the images before they are published.\n"
        ),
    });
    let image = match manifest.spec.layout {
        Layout::Raw => "`pixels`: one byte a pixel, row by row",
        Layout::Hf => "`image`: PNG",
    };
    text.push_str(&format!(
        "\nEvery row is one slice. {image}; `label` is the index of the class, `case_id` a pseudonym, `split` the part \
         by case. What was left out and why stands in `manifest.json` (`flow`) and `quarantine.jsonl`; \
         `SHA256SUMS` covers every file. Made by {}.\n",
        manifest.tool
    ));
    text
}

/// A text from outside, without a meaning in Markdown or HTML.
fn markdown(text: &str) -> String {
    let escaped = |c: char| match c {
        c if c.is_control() => " ".into(),
        '<' => "&lt;".into(),
        '>' => "&gt;".into(),
        '&' => "&amp;".into(),
        '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' | '!' | '#' | '$' => format!("\\{c}"),
        c => c.to_string(),
    };
    text.chars().map(escaped).collect()
}

fn splits(manifest: &Manifest) -> Vec<Split> {
    let present = |split: &Split| manifest.files.iter().any(|file| file.split == *split);
    Split::ALL.into_iter().filter(present).collect()
}

/// Croissant 1.0 (mlcommons.org/croissant/1.0).
fn croissant(manifest: &Manifest, synthetic: bool) -> serde_json::Value {
    let files: Vec<_> = manifest
        .files
        .iter()
        .map(|file| {
            json!({
                "@type": "cr:FileObject",
                "@id": file.path,
                "name": file.path,
                "contentUrl": file.path,
                "encodingFormat": "application/x-parquet",
                "sha256": file.sha256,
            })
        })
        .chain(std::iter::once(json!({
            "@type": "cr:FileSet",
            "@id": "slices-files",
            "name": "slices-files",
            "encodingFormat": "application/x-parquet",
            "includes": "data/*.parquet",
        })))
        .collect();
    let field = |name: &str, data_type: &str| {
        json!({
            "@type": "cr:Field",
            "@id": format!("slices/{name}"),
            "name": name,
            "dataType": data_type,
            "source": {"fileSet": {"@id": "slices-files"}, "extract": {"column": name}},
        })
    };
    json!({
        "@context": {
            "@language": "en",
            "@vocab": "https://schema.org/",
            "citeAs": "cr:citeAs",
            "column": "cr:column",
            "conformsTo": "dct:conformsTo",
            "cr": "http://mlcommons.org/croissant/",
            "data": {"@id": "cr:data", "@type": "@json"},
            "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
            "dct": "http://purl.org/dc/terms/",
            "extract": "cr:extract",
            "field": "cr:field",
            "fileObject": "cr:fileObject",
            "fileProperty": "cr:fileProperty",
            "fileSet": "cr:fileSet",
            "format": "cr:format",
            "includes": "cr:includes",
            "isLiveDataset": "cr:isLiveDataset",
            "jsonPath": "cr:jsonPath",
            "key": "cr:key",
            "md5": "cr:md5",
            "parentField": "cr:parentField",
            "path": "cr:path",
            "recordSet": "cr:recordSet",
            "references": "cr:references",
            "regex": "cr:regex",
            "repeated": "cr:repeated",
            "replace": "cr:replace",
            "sc": "https://schema.org/",
            "separator": "cr:separator",
            "source": "cr:source",
            "subField": "cr:subField",
            "transform": "cr:transform",
        },
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": title(synthetic),
        "description": description(manifest, synthetic, str::to_string),
        "distribution": files,
        "recordSet": [{
            "@type": "cr:RecordSet",
            "@id": "slices",
            "name": "slices",
            "field": [
                field("case_id", "sc:Text"),
                field("slice_index", "sc:Integer"),
                field("label", "sc:Integer"),
                field("label_name", "sc:Text"),
                field("split", "sc:Text"),
                field("z_mm", "sc:Float"),
                field("lung_fraction", "sc:Float"),
                field("source_blake3", "sc:Text"),
                field("pixel_sha256", "sc:Text"),
            ],
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::markdown;

    #[test]
    fn no_name_is_markup() {
        assert_eq!(markdown("<b>|a_b*\n[x](y)"), "&lt;b&gt;\\|a\\_b\\* \\[x\\](y)");
        assert_eq!(markdown("covid-19"), "covid-19");
    }
}
