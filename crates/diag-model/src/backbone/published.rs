//! The names under which others publish the weights of our backbones.

use super::Backbone;
use super::efficientnet::TABLE;

/// Every name that a tensor of ours may bear in a file, our own first.
pub(crate) fn names(backbone: Backbone, own: &str) -> Vec<String> {
    let mut names = vec![own.to_owned()];
    if let Some(part) = own.strip_prefix("fc.") {
        names.extend([format!("classifier.{part}"), format!("_fc.{part}")]);
    }
    match backbone {
        Backbone::EfficientNetLite0 => names.extend(timm_efficientnet(own)),
        Backbone::DenseNet121 => names.extend(early_densenet(own)),
        Backbone::Tiny | Backbone::ResNet18 | Backbone::ResNet34 | Backbone::ResNet50 => {}
    }
    names
}

/// Whether a tensor is the stem's, which others keep for three channels.
pub(crate) fn is_stem(own: &str) -> bool {
    ["conv1.weight", "_conv_stem.weight", "features.conv0.weight"].contains(&own)
}

/// timm counts blocks stage by stage and numbers the normalisations of each from 1.
fn timm_efficientnet(own: &str) -> Option<String> {
    for (ours, theirs) in
        [("_conv_stem.", "conv_stem."), ("_bn0.", "bn1."), ("_conv_head.", "conv_head."), ("_bn1.", "bn2.")]
    {
        if let Some(part) = own.strip_prefix(ours) {
            return Some(format!("{theirs}{part}"));
        }
    }
    let (index, layer) = own.strip_prefix("_blocks.")?.split_once('.')?;
    let mut index: usize = index.parse().ok()?;
    let (stage, row) = TABLE.iter().enumerate().find(|(_, row)| {
        let here = index < row.repeats;
        index -= if here { 0 } else { row.repeats };
        here
    })?;
    let (layer, part) = layer.split_once('.')?;
    let layer = match (layer, row.expand) {
        ("_depthwise_conv", _) => "conv_dw",
        ("_expand_conv", _) | ("_project_conv", 1) => "conv_pw",
        ("_project_conv", _) => "conv_pwl",
        ("_bn0", _) | ("_bn1", 1) => "bn1",
        ("_bn1", _) | ("_bn2", 1) => "bn2",
        ("_bn2", _) => "bn3",
        _ => return None,
    };
    Some(format!("blocks.{stage}.{index}.{layer}.{part}"))
}

/// torchvision's first files write `norm.1` for `norm1` inside dense layers.
fn early_densenet(own: &str) -> Option<String> {
    let (layer, part) = own.split_once(".denselayer").map(|_| own.rsplit_once('.'))??;
    let number = layer.chars().last().filter(char::is_ascii_digit)?;
    Some(format!("{}.{number}.{part}", layer.strip_suffix(number)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(backbone: Backbone, own: &str, published: &str) {
        let names = names(backbone, own);
        assert!(names.iter().any(|name| name == published), "{own}: {names:?}");
    }

    #[test]
    fn timm_numbers_blocks_by_stage() {
        let lite = Backbone::EfficientNetLite0;
        check(lite, "_conv_stem.weight", "conv_stem.weight");
        check(lite, "_bn1.running_var", "bn2.running_var");
        check(lite, "_blocks.0._depthwise_conv.weight", "blocks.0.0.conv_dw.weight");
        check(lite, "_blocks.0._project_conv.weight", "blocks.0.0.conv_pw.weight");
        check(lite, "_blocks.0._bn2.bias", "blocks.0.0.bn2.bias");
        check(lite, "_blocks.2._expand_conv.weight", "blocks.1.1.conv_pw.weight");
        check(lite, "_blocks.14._bn2.weight", "blocks.5.3.bn3.weight");
        check(lite, "_blocks.15._project_conv.weight", "blocks.6.0.conv_pwl.weight");
        check(lite, "fc.weight", "classifier.weight");
        check(lite, "fc.bias", "_fc.bias");
    }

    #[test]
    fn early_dense_layers_have_a_dot_more() {
        let own = "features.denseblock3.denselayer24.norm1.running_mean";
        check(Backbone::DenseNet121, own, "features.denseblock3.denselayer24.norm.1.running_mean");
        let own = "features.transition1.conv.weight";
        assert_eq!(names(Backbone::DenseNet121, own), [own]);
    }
}
