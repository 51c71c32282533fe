//! A model with its decided rule, ready for studies.

use std::path::Path;

use candle_core::Device;
use ct_read::case::{ReadCase, check_volume_settings};
use diag_data::files;
use diag_data::reader::{ReaderSettings, Source};
use diag_decision::Decision;
use diag_model::{FINAL_HEAD, FoldedNetwork, ModelCard, OpenModel, input, softmax};

use crate::error::PredictError;
use crate::report::SliceReport;

/// Slices of one pass through the network.
const BATCH_SIZE: usize = 16;

/// A model that was checked.
pub struct Predictor {
    network: FoldedNetwork,
    card: ModelCard,
    decision: Decision,
}

impl Predictor {
    /// Opens a run folder or a one-file model.
    ///
    /// # Errors
    /// A model without a rule, of plain images, or whose parts do not belong together.
    pub fn open(place: &Path) -> Result<Self, PredictError> {
        let open = OpenModel::at(place, &Device::Cpu)?;
        let Some(rule) = &open.decision else {
            return Err(PredictError::NoDecision { run: place.into() });
        };
        open.check_published()?;
        let labels = &open.model.card.labels;
        let decision = Decision::from_json(rule.bytes.clone(), &rule.place, labels, open.sha256())?;
        let settings = &open.model.card.input.reader;
        if settings.source == Source::Images {
            return Err(PredictError::PlainImages);
        }
        check_volume_settings(settings)?;
        Ok(Self { network: open.model.network.folded()?, card: open.model.card, decision })
    }

    /// What the model says of itself.
    pub(crate) fn card(&self) -> &ModelCard {
        &self.card
    }

    /// Its rule.
    pub(crate) fn decision(&self) -> &Decision {
        &self.decision
    }

    /// How it reads studies.
    pub(crate) fn settings(&self) -> &ReaderSettings {
        &self.card.input.reader
    }

    /// Hash of all that a prediction depends on beside the study.
    pub(crate) fn sha256(&self) -> String {
        let card = serde_json::json!(self.card);
        let parts = format!("{} {card} {}", env!("CARGO_PKG_VERSION"), self.decision.sha256());
        files::sha256_hex(parts.as_bytes())
    }

    /// Class probabilities of every slice, lowest first.
    pub(crate) fn slices(&self, case: &ReadCase) -> Result<Vec<SliceReport>, PredictError> {
        let size = self.settings().size as usize;
        let mut slices = Vec::with_capacity(case.slices.len());
        for batch in case.slices.chunks(BATCH_SIZE) {
            let images = batch.iter().map(|slice| slice.pixels.as_slice());
            let image_nchw = input::from_grey(images, size, size)?;
            let logits = self.network.forward(&image_nchw)?;
            let Some(logits_nk) = logits.get(FINAL_HEAD) else {
                return Err(PredictError::NoFinalHead);
            };
            for (slice, row) in batch.iter().zip(logits_nk.to_vec2::<f32>()?) {
                slices.push(SliceReport {
                    slice_index: slices.len() as i32,
                    z_mm: slice.geometry.z.map(|z| z.0),
                    probabilities: softmax(&row),
                });
            }
        }
        Ok(slices)
    }
}
