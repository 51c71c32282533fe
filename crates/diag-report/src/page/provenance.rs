//! Where the run came from: hashes, versions, seeds, device, command lines.

use maud::{Markup, html};

use super::Context;
use super::summary::{listed, thousands};

pub(crate) fn section(context: &Context) -> Markup {
    let info = &context.run.info;
    let absent = || "not recorded".to_string();
    let facts: Vec<(&str, String)> = vec![
        ("Program", info.tool.clone()),
        ("Report", concat!("diag-report ", env!("CARGO_PKG_VERSION")).into()),
        ("Device", info.device.clone()),
        ("Seed", info.seed.to_string()),
        ("Network", format!("{}, {} weights", info.backbone, thousands(info.n_parameters))),
        ("Heads", listed(&info.heads)),
        ("Initialisation", info.initialisation.clone()),
        ("Loss", info.loss.clone()),
        ("Choice of the weights", info.selection.clone()),
        ("Bootstrap seed", context.options.seed.to_string()),
        ("Shards written by", info.shards.tool.clone()),
    ];
    let hashes: Vec<(&str, String)> = vec![
        ("Shards (SHA256SUMS)", info.shards.sha256.clone()),
        ("Recipe", info.recipe_sha256.clone()),
        ("Model weights", info.model_sha256.clone().unwrap_or_else(absent)),
        ("Predictions", context.run.predictions_sha256.clone()),
    ];
    html! {
        div.scroll {
            table.facts {
                tbody { @for (name, value) in &facts { tr { th scope="row" { (name) } td { (value) } } } }
            }
        }
        h3 { "Hashes (SHA-256)" }
        div.scroll {
            table.facts {
                tbody { @for (name, value) in &hashes { tr { th scope="row" { (name) } td { code { (value) } } } } }
            }
        }
        h3 { "Libraries" }
        @if info.libraries.is_empty() { p.note { "Not recorded." } }
        @else {
            table.facts { tbody {
                @for (name, version) in &info.libraries { tr { th scope="row" { (name) } td { (version) } } }
            } }
        }
        h3 { "Command lines" }
        @if info.commands.is_empty() { p.note { "Not recorded." } }
        @else { pre { @for command in &info.commands { (command) "\n" } } }
        @match &context.run.plan {
            Some(plan) => details { summary { "What was run, resolved (plan.toml)" } pre { (plan) } },
            None => p.note { "Missing: plan.toml." },
        }
    }
}
