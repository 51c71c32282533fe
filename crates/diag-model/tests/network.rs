//! The network: names, gradients, and the way to the disk and back.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use diag_data::case::LabelSet;
use diag_data::model_file::ModelFile;
use diag_data::reader::ReaderSettings;
use diag_model::loss::{Loss, LossSpec, SaalSpec};
use diag_model::{
    Backbone, FORMAT_VERSION, Fusion, InputSpec, ModelCard, ModelError, Network, NetworkSpec, OpenModel,
    Pass, SavedModel, SavedNetwork, SideStages, TrainingData, WEIGHTS, tensors,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn spec(backbone: Backbone, deep_supervision: bool) -> NetworkSpec {
    NetworkSpec::new(backbone, 3, deep_supervision)
}

fn images(n: usize, side: usize, dtype: DType) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let values: Vec<f64> = (0..n * side * side).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_vec(values, (n, 1, side, side), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

#[test]
fn every_weight_has_the_gradient_of_finite_differences() {
    let spec = spec(Backbone::Tiny, true);
    let network = Network::with_dtype(&spec, 3, DType::F64).unwrap();
    let loss = Loss::new(
        &LossSpec::Saal(SaalSpec::default()),
        &network.head_names(),
        &LabelSet::paper(),
        &[30, 80, 20],
    )
    .unwrap();
    let image_nchw = images(3, 40, DType::F64);
    let total = || loss.terms(&network.forward_t(&image_nchw, true).unwrap(), &[0, 1, 2]).unwrap().total;
    let gradients = total().backward().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    for (name, var) in network.named_vars() {
        let gradient = gradients.get(var).unwrap_or_else(|| panic!("{name} has no gradient"));
        let gradient: Vec<f64> = gradient.flatten_all().unwrap().to_vec1().unwrap();
        let start = var.as_tensor().copy().unwrap();
        let values: Vec<f64> = start.flatten_all().unwrap().to_vec1().unwrap();
        for _ in 0..2 {
            let i = rng.random_range(0..values.len());
            let moved = |by: f64| {
                let mut values = values.clone();
                values[i] += by;
                var.set(&Tensor::from_vec(values, start.shape(), &Device::Cpu).unwrap()).unwrap();
                total().to_scalar::<f64>().unwrap()
            };
            let want = (moved(1e-6) - moved(-1e-6)) / 2e-6;
            assert!(
                (gradient[i] - want).abs() <= 1e-5 * want.abs().max(0.01),
                "{name}[{i}]: {}, expected {want}",
                gradient[i]
            );
        }
        var.set(&start).unwrap();
    }
}

#[track_caller]
fn check_names(backbone: Backbone, deep_supervision: bool, heads: &[&str], n_parameters: u64) {
    let network = Network::new(&spec(backbone, deep_supervision), 1).unwrap();
    assert_eq!(network.head_names(), heads);
    assert_eq!(network.n_parameters(), n_parameters);
}

#[test]
fn heads_have_names() {
    let all = ["stage1", "stage2", "stage3", "stage4", "final"];
    // torchvision's 11,689,512 less the two folded stem channels and 997 of 1000 classes.
    let plain = 11_689_512 - 2 * 64 * 49 - 997 * 513;
    check_names(Backbone::ResNet18, false, &["final"], plain);
    // A side head on C channels: convolution, normalisation, linear layer; four fusion weights.
    let side = |channels: u64| channels * channels + 2 * channels + 3 * (channels + 1);
    let sides = side(64) + side(128) + side(256) + side(512) + 4;
    check_names(Backbone::ResNet18, true, &all, plain + sides);
}

#[test]
fn the_backbone_bears_torchvision_s_names() {
    let network = Network::new(&spec(Backbone::ResNet18, false), 1).unwrap();
    let state = network.state().unwrap();
    for name in ["conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer4.1.bn2.bias"] {
        assert!(state.contains_key(name), "{name}");
    }
    for name in ["layer2.0.downsample.0.weight", "layer2.0.downsample.1.running_mean", "fc.weight"] {
        assert!(state.contains_key(name), "{name}");
    }
    assert!(!state.contains_key("layer1.0.downsample.0.weight"));
}

#[test]
fn a_backbone_starts_the_same_with_and_without_side_heads() {
    let [with, without] = [true, false].map(|deep| Network::new(&spec(Backbone::Tiny, deep), 9).unwrap());
    let [with, without] = [with, without].map(|network| network.state().unwrap());
    for (name, tensor) in &without {
        let difference = (tensor - &with[name]).unwrap().abs().unwrap().sum_all().unwrap();
        assert_eq!(difference.to_scalar::<f32>().unwrap(), 0.0, "{name}");
    }
}

#[test]
fn a_folded_network_answers_the_same() {
    for backbone in Backbone::ALL {
        let network = Network::new(&spec(backbone, true), 3).unwrap();
        // Running statistics that are not those of a fresh network.
        network.forward_t(&images(3, 64, DType::F32), true).unwrap();
        let image_nchw = images(2, 64, DType::F32);
        let folded = network.folded().unwrap().forward(&image_nchw).unwrap();
        let want = network.forward_t(&image_nchw, false).unwrap();
        for ((name, got), (_, want)) in folded.iter().zip(want.iter()) {
            assert!(!got.track_op(), "{name} keeps a graph");
            let largest = want.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            let difference = (got - want).unwrap().abs().unwrap().max_all().unwrap();
            let difference = difference.to_scalar::<f32>().unwrap();
            assert!(difference <= 1e-4 * largest.max(1.0), "{name}: off by {difference} of {largest}");
        }
    }
}

#[test]
fn a_saved_model_answers_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (card_path, weights_path) =
        (folder.path().join("model.json"), folder.path().join("model.safetensors"));
    let network = Network::new(&spec(Backbone::Tiny, true), 2).unwrap();
    let image_nchw = images(2, 32, DType::F32);
    network.forward_t(&image_nchw, true).unwrap();
    tensors::write(&weights_path, &network.state().unwrap(), "note").unwrap();
    let saved_network = SavedNetwork {
        spec: *network.spec(),
        weights: WEIGHTS.into(),
        sha256: diag_data::files::sha256_file(&weights_path).unwrap(),
    };
    let card = ModelCard {
        format_version: FORMAT_VERSION,
        networks: vec![saved_network.clone()],
        labels: LabelSet::paper(),
        heads: network.head_names(),
        input: InputSpec {
            reader: ReaderSettings { size: 32, ..ReaderSettings::IMAGES },
            range: (-1.0, 1.0),
        },
        training: TrainingData { synthetic: true, cases: vec![4, 5, 6] },
        positive: "covid-19".into(),
    };
    SavedModel::write_card(&card_path, &card).unwrap();
    let saved = SavedModel::read(&card_path, &weights_path).unwrap();
    assert_eq!(saved.card, card);
    let answer = |network: &Network| {
        let logits = network.forward_t(&image_nchw, false).unwrap();
        logits.get("final").unwrap().to_vec2::<f32>().unwrap()
    };
    assert_eq!(answer(&saved.network), answer(&network));
    opens_as_folder_and_as_file(folder.path(), |opened| answer(opened) == answer(&network));

    let other = SavedNetwork { spec: spec(Backbone::Tiny, false), ..saved_network.clone() };
    SavedModel::write_card(&card_path, &ModelCard { networks: vec![other], ..card.clone() }).unwrap();
    assert!(matches!(SavedModel::read(&card_path, &weights_path), Err(ModelError::Weights { .. })));
    let changed = SavedNetwork { sha256: "00".repeat(32), ..saved_network.clone() };
    SavedModel::write_card(&card_path, &ModelCard { networks: vec![changed], ..card.clone() }).unwrap();
    assert!(matches!(SavedModel::read(&card_path, &weights_path), Err(ModelError::Weights { .. })));
    let two = ModelCard { networks: vec![saved_network; 2], ..card.clone() };
    SavedModel::write_card(&card_path, &two).unwrap();
    assert!(matches!(SavedModel::read(&card_path, &weights_path), Err(ModelError::Card { .. })));
    let mut json = serde_json::to_value(&card).unwrap();
    json["input"]["reader"]["resize"] = "nonsense".into();
    diag_data::files::write_json(&card_path, &json).unwrap();
    let refused = SavedModel::read(&card_path, &weights_path).err().unwrap().to_string();
    assert!(refused.contains("nonsense"), "{refused}");
    SavedModel::write_card(&card_path, &ModelCard { format_version: 99, ..card }).unwrap();
    assert!(matches!(SavedModel::read(&card_path, &weights_path), Err(ModelError::Version { .. })));
}

/// The model of a run folder, with a rule and a list of what it has seen beside it: opened as it
/// is, and as one file.
fn opens_as_folder_and_as_file(run: &Path, answers: impl Fn(&Network) -> bool) {
    let opened = |place: &Path| OpenModel::at(place, &Device::Cpu).unwrap();
    let bare = opened(run);
    assert!(bare.decision.is_none() && bare.seen.is_none() && answers(&bare.model.network));
    std::fs::write(run.join("decision.json"), "a rule\n").unwrap();
    std::fs::write(run.join("seen.json"), "hashes\n").unwrap();
    let read = |name: &str| std::fs::read(run.join(name)).unwrap();
    let file = run.join("one.safetensors");
    let parts = ModelFile {
        card: read("model.json"),
        decision: read("decision.json"),
        seen: Some(read("seen.json")),
        weights: read("model.safetensors"),
    };
    parts.write(&file).unwrap();
    let (folder, one) = (opened(run), opened(&file));
    assert_eq!(folder.model.card, one.model.card);
    assert_eq!(folder.sha256(), one.sha256());
    assert!(answers(&folder.model.network) && answers(&one.model.network));
    for (name, of_folder, of_file) in
        [("decision.json", folder.decision, one.decision), ("seen.json", folder.seen, one.seen)]
    {
        let (of_folder, of_file) = (of_folder.unwrap(), of_file.unwrap());
        assert_eq!((of_folder.bytes.clone(), of_folder.bytes), (of_file.bytes, read(name)));
        assert_eq!((of_folder.place, &of_file.place), (run.join(name), &file));
    }
    // A reader of the format that knows nothing of models takes it for weights.
    let (tensors, note) = tensors::read(&file).unwrap();
    let (want, _) = tensors::read(&run.join("model.safetensors")).unwrap();
    assert!(tensors.keys().eq(want.keys()) && note.starts_with("model in one file"));
    for (name, tensor) in tensors {
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(&tensor), values(&want[&name]), "{name}");
    }
    // Numbers that another rule published.
    std::fs::write(run.join("metrics.json"), "{\"decision_sha256\": \"00\"}").unwrap();
    assert!(matches!(opened(run).check_published(), Err(ModelError::Unpublished { .. })));
    assert!(opened(&file).check_published().is_ok());
}

#[test]
fn chosen_stages_have_heads_and_fusion_is_a_choice() {
    let image_nchw = images(2, 32, DType::F32);
    let answer = |fusion: Fusion| {
        let side_stages = SideStages::try_from(vec![2, 4]).unwrap();
        let spec = NetworkSpec { side_stages, fusion, ..spec(Backbone::Tiny, true) };
        let network = Network::new(&spec, 4).unwrap();
        assert_eq!(network.head_names(), ["stage2", "stage4", "final"]);
        let logits = network.forward_t(&image_nchw, false).unwrap();
        let values = |(_, logits): (&str, &Tensor)| logits.to_vec2::<f32>().unwrap().concat();
        logits.iter().map(values).collect::<Vec<_>>()
    };
    let [learned, averaged, none] = [Fusion::Learned, Fusion::Averaged, Fusion::None].map(answer);
    assert_eq!(learned[..2], none[..2]);
    for i in 0..6 {
        let sides = none[0][i] + none[1][i];
        assert!((learned[2][i] - (none[2][i] + sides / 2.0)).abs() < 1e-5);
        assert!((averaged[2][i] - (none[2][i] + sides) / 3.0).abs() < 1e-5);
    }
    for wrong in [vec![], vec![0], vec![5], vec![2, 2]] {
        assert!(SideStages::try_from(wrong).is_err());
    }
}

#[test]
fn frozen_parts_neither_learn_nor_move_their_statistics() {
    for backbone in [Backbone::Tiny, Backbone::EfficientNetLite0, Backbone::DenseNet121] {
        for n_frozen in [1, 3, 5] {
            let network = Network::new(&spec(backbone, true), 4).unwrap();
            let before = network.state().unwrap();
            let pass = Pass::Train { noise_seed: 0, first_row: 0, n_frozen };
            let logits = network.forward(&images(2, 32, DType::F32), pass).unwrap();
            let mut total = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap();
            for (_, logits) in logits.iter() {
                total = (total + logits.sqr().unwrap().sum_all().unwrap()).unwrap();
            }
            let gradients = total.backward().unwrap();
            for ((name, var), &part) in network.named_vars().iter().zip(network.parts()) {
                assert_eq!(gradients.get(var).is_some(), part >= n_frozen, "{name}, {n_frozen} frozen");
            }
            let after = network.state().unwrap();
            let moved = |name: &String| {
                let difference = (&before[name] - &after[name]).unwrap().abs().unwrap().sum_all().unwrap();
                difference.to_scalar::<f32>().unwrap() > 0.0
            };
            let part_of = |name: &String| {
                let layer = name.rsplit_once('.').unwrap().0;
                let own = |(var, _): &(String, candle_core::Var)| var.rsplit_once('.').unwrap().0 == layer;
                network.parts()[network.named_vars().iter().position(own).unwrap()]
            };
            for name in after.keys().filter(|name| name.ends_with("running_mean")) {
                assert_eq!(moved(name), part_of(name) >= n_frozen, "{name}, {n_frozen} frozen");
            }
        }
    }
}

#[test]
fn dropout_follows_from_its_seed_and_spares_inference() {
    let network = Network::new(&NetworkSpec { dropout: 0.5, ..spec(Backbone::Tiny, true) }, 4).unwrap();
    let image_nchw = images(4, 32, DType::F32);
    let answer = |pass: Pass| {
        network.forward(&image_nchw, pass).unwrap().get("final").unwrap().to_vec2::<f32>().unwrap()
    };
    let train = |noise_seed: u64| answer(Pass::Train { noise_seed, first_row: 0, n_frozen: 0 });
    assert_eq!(train(1), train(1));
    assert_ne!(train(1), train(2));
    assert_eq!(answer(Pass::Evaluate), answer(Pass::Evaluate));
    assert!(Network::new(&NetworkSpec { dropout: 1.0, ..spec(Backbone::Tiny, true) }, 4).is_err());
}
