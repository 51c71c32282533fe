//! The localizer: one frontal projection that a reader must set aside.

use crate::{
    PhantomError,
    dicom::{ImageHeader, SeriesHeader, write},
    noise::SIZE,
    vessels::LungSampler,
};
use std::path::Path;

/// Points per side at which the projection is computed; each fills 4x4 pixels.
const COARSE: usize = 128;
const STEP_Y_MM: f32 = 10.0;

/// Writes `localizer.dcm`, InstanceNumber 1 of acquisition 0, into the folder of a case.
pub(crate) fn write_localizer(
    sampler: &LungSampler<'_>,
    series: &SeriesHeader<'_>,
    sop_uid: String,
    table_z: f32,
    dir: &Path,
) -> Result<(), PhantomError> {
    let step = SIZE as f32 / COARSE as f32 * series.spacing_mm;
    let top = 0.5 * COARSE as f32 * step + 130.0;
    let mut coarse = vec![0.0f32; COARSE * COARSE];
    for (idx, value) in coarse.iter_mut().enumerate() {
        let x = ((idx % COARSE) as f32 - 0.5 * COARSE as f32) * step;
        let z = top - (idx / COARSE) as f32 * step;
        let level = sampler.level(z);
        for i in -14..=14 {
            let y = i as f32 * STEP_Y_MM;
            if level.body(x, y) < 0.0 {
                *value += if level.cavity(x, y).lung < 0.0 { 0.15 } else { 1.0 };
            }
        }
    }
    let stored: Vec<i32> = (0..SIZE * SIZE)
        .map(|idx| {
            let (col, row) = (idx % SIZE, idx / SIZE);
            let thickness = coarse[row * COARSE / SIZE * COARSE + col * COARSE / SIZE];
            series.scanner.store(-1000.0 + 70.0 * thickness)
        })
        .collect();
    let image = ImageHeader {
        sop_uid,
        instance_number: 1,
        kind: "LOCALIZER",
        position: [-0.5 * COARSE as f32 * step, 0.0, top + table_z],
        orientation: [1, 0, 0, 0, 0, -1],
    };
    write(&dir.join("localizer.dcm"), series, &image, &stored)
}
