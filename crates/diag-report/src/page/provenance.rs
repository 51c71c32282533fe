//! Where the run came from: hashes, versions, seeds, device, command lines.

use maud::{Markup, html};

use super::Context;
use super::summary::{listed, thousands};
use crate::evidence::LinkState;

pub(crate) fn section(context: &Context) -> Markup {
    let info = &context.run.info;
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
    html! {
        div.scroll {
            table.facts {
                tbody { @for (name, value) in &facts { tr { th scope="row" { (name) } td { (value) } } } }
            }
        }
        h3 { "Chain of hashes" }
        (chain(context))
        h3 { "Libraries" }
        @if info.libraries.is_empty() { p.note { "Not recorded." } }
        @else {
            table.facts { tbody {
                @for (name, version) in &info.libraries { tr { th scope="row" { (name) } td { (version) } } }
            } }
        }
        h3 { "Command lines" }
        @let explained = context.run.maps.as_ref().ok().map(|maps| &maps.how.command);
        @if info.commands.is_empty() { p.note { "Not recorded." } }
        @else { pre { @for command in info.commands.iter().chain(explained) { (command) "\n" } } }
        @match &context.run.plan {
            Some(plan) => details { summary { "What was run, resolved (plan.toml)" } pre { (plan) } },
            None => p.note { "Missing: plan.toml." },
        }
    }
}

fn chain(context: &Context) -> Markup {
    html! {
        div.scroll {
            table.chain {
                caption { "SHA-256, from the DICOM files to the heat maps. Agrees: computed anew for this report and equal to what the stage before recorded." }
                thead { tr { th { "Link" } th { "State" } th { "Hash" } th { "How it is tied" } } }
                tbody {
                    @for link in &context.numbers.chain {
                        tr {
                            th scope="row" { (link.what) }
                            td { (state(link.state)) }
                            td { code { (link.sha256.as_deref().unwrap_or("not recorded")) } }
                            td { (link.tie) }
                        }
                    }
                }
            }
        }
    }
}

fn state(state: LinkState) -> Markup {
    let (class, mark) = match state {
        LinkState::Agrees => ("computed", "✓"),
        LinkState::Differs => ("missing", "✗"),
        LinkState::RecordedOnly | LinkState::Computed => ("supplied", "●"),
        LinkState::Missing => ("missing", "○"),
    };
    html! { span class=(format!("state {class}")) { (mark) " " (state.words()) } }
}
