//! Rows to columns and back.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, FixedSizeBinaryArray, Float32Array, Float64Array,
    Int8Array, Int32Array, ListArray, RecordBatch, StringArray, StructArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Fields, Float32Type, Float64Type, Int8Type, Int32Type, Schema};
use arrow::error::ArrowError;

use crate::DataError;
use crate::case::{CaseId, Label, LabelSet, Split};
use crate::manifest::{CaseRow, Layout, ShardSpec};
use crate::shard::SliceKey;
use crate::shard::check::RowKey;
use crate::slice::{Acquisition, CtSlice, Geometry, Provenance, Selection};
use crate::units::{Mm, Spacing};

/// The columns that hold image bytes, as Parquet paths.
pub(super) fn image_columns() -> Vec<Vec<String>> {
    let path = |parts: &[&str]| parts.iter().map(|part| part.to_string()).collect();
    vec![path(&["pixels"]), path(&["hu"]), path(&["image", "bytes"])]
}

/// The schema of slice rows. Every field says its unit or shape in its metadata.
pub(super) fn slice_schema(spec: &ShardSpec) -> Schema {
    let shape = format!("[1,{0},{0}]", spec.reader.size);
    let mut fields = vec![
        field("case_id", DataType::Utf8, false, &[("about", "pseudonym")]),
        field(
            "slice_index",
            DataType::Int32,
            false,
            &[("about", "position among the kept slices, lowest z first")],
        ),
        field("label", DataType::Int8, false, &[("about", "index into label names")]),
        field("label_name", DataType::Utf8, false, &[]),
        field("split", DataType::Utf8, false, &[]),
    ];
    let window = spec.reader.window.map_or("none".into(), |w| format!("{}:{} HU", w.lo().0, w.hi().0));
    let image_about = [("shape", shape.as_str()), ("dtype", "uint8"), ("window", window.as_str())];
    fields.push(match spec.layout {
        Layout::Raw => {
            field("pixels", DataType::FixedSizeBinary(spec.reader.n_pixels() as i32), false, &image_about)
        }
        Layout::Hf => field("image", DataType::Struct(png_fields()), true, &image_about),
    });
    if spec.with_hu {
        let about =
            [("shape", shape.as_str()), ("dtype", "int16 as two byte planes, low then high"), ("unit", "HU")];
        fields.push(field("hu", DataType::FixedSizeBinary(2 * spec.reader.n_pixels() as i32), true, &about));
    }
    let unit = |name: &str, data_type, unit: &str| field(name, data_type, true, &[("unit", unit)]);
    fields.extend([
        unit("z_mm", DataType::Float64, "mm"),
        unit("gap_before_mm", DataType::Float32, "mm"),
        unit("pixel_spacing_row_mm", DataType::Float64, "mm"),
        unit("pixel_spacing_col_mm", DataType::Float64, "mm"),
        unit("slice_thickness_mm", DataType::Float32, "mm"),
        unit("tilt_deg", DataType::Float32, "degree"),
        field("source_rows", DataType::Int32, false, &[("unit", "pixel")]),
        field("source_cols", DataType::Int32, false, &[("unit", "pixel")]),
        field("manufacturer", DataType::Utf8, true, &[]),
        field("model", DataType::Utf8, true, &[]),
        field("kernel", DataType::Utf8, true, &[]),
        unit("kvp", DataType::Float32, "kV"),
        field("transfer_syntax", DataType::Utf8, false, &[]),
        field("lossy", DataType::Boolean, false, &[]),
        unit("rescale_slope", DataType::Float64, "HU per stored unit"),
        unit("rescale_intercept", DataType::Float64, "HU"),
        field("padding_px", DataType::Int32, false, &[("unit", "pixel")]),
        unit("lung_fraction", DataType::Float32, "share of the body"),
        unit("hu_min", DataType::Float32, "HU"),
        unit("hu_max", DataType::Float32, "HU"),
        unit("hu_mean", DataType::Float32, "HU"),
        field("source_blake3", DataType::Utf8, false, &[("about", "keyed BLAKE3 of the source file")]),
        field("pixel_sha256", DataType::Utf8, false, &[]),
        field("sop_uid_hash", DataType::Utf8, true, &[]),
        field("series_uid_hash", DataType::Utf8, true, &[]),
        field("warnings", DataType::List(list_item()), false, &[]),
    ]);
    let schema = Schema::new(fields);
    match spec.layout {
        Layout::Raw => schema,
        Layout::Hf => schema.with_metadata([(HUGGING_FACE.to_string(), image_feature())]),
    }
}

/// Columns of slices. `rows` are of the sizes that `spec` states.
pub(super) fn slice_batch<'a>(
    schema: &Arc<Schema>,
    spec: &'a ShardSpec,
    rows: &'a [CtSlice],
) -> Result<RecordBatch, ArrowError> {
    let mut columns: Vec<ArrayRef> = vec![
        text(rows, |r| Some(r.case_id.as_str())),
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|r| r.slice_index))),
        Arc::new(Int8Array::from_iter_values(rows.iter().map(|r| r.label.0 as i8))),
        text(rows, |r| spec.labels.name(r.label)),
        text(rows, |r| Some(r.split.as_str())),
    ];
    columns.push(match spec.layout {
        Layout::Raw => Arc::new(FixedSizeBinaryArray::try_from_iter(rows.iter().map(|r| &r.pixels))?),
        Layout::Hf => png_column(spec, rows)?,
    });
    if spec.with_hu {
        let planes = rows.iter().map(|r| r.hu.as_deref().map(byte_planes));
        columns.push(Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(
            planes,
            2 * spec.reader.n_pixels() as i32,
        )?));
    }
    let geometry = |value: fn(&Geometry) -> Option<f64>| doubles(rows, move |r: &CtSlice| value(&r.geometry));
    columns.extend([
        geometry(|g| g.z.map(|z| z.0)),
        floats(rows, |r| r.geometry.gap_before.map(|gap| gap.0 as f32)),
        geometry(|g| g.spacing.map(|s| s.row.0)),
        geometry(|g| g.spacing.map(|s| s.col.0)),
        floats(rows, |r| r.geometry.slice_thickness.map(|t| t.0 as f32)),
        floats(rows, |r| r.geometry.tilt_deg),
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|r| r.geometry.source_rows))),
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|r| r.geometry.source_cols))),
        text(rows, |r| r.acquisition.manufacturer.as_deref()),
        text(rows, |r| r.acquisition.model.as_deref()),
        text(rows, |r| r.acquisition.kernel.as_deref()),
        floats(rows, |r| r.acquisition.kvp),
        text(rows, |r| Some(r.acquisition.transfer_syntax.as_str())),
        Arc::new(BooleanArray::from_iter(rows.iter().map(|r| Some(r.acquisition.lossy)))),
        doubles(rows, |r| r.acquisition.rescale_slope),
        doubles(rows, |r| r.acquisition.rescale_intercept),
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|r| r.acquisition.padding_px))),
        floats(rows, |r| r.selection.lung_fraction),
        floats(rows, |r| r.selection.hu_min),
        floats(rows, |r| r.selection.hu_max),
        floats(rows, |r| r.selection.hu_mean),
        text(rows, |r| Some(r.provenance.source_blake3.as_str())),
        text(rows, |r| Some(r.provenance.pixel_sha256.as_str())),
        text(rows, |r| r.provenance.sop_uid_hash.as_deref()),
        text(rows, |r| r.provenance.series_uid_hash.as_deref()),
        texts(rows.iter().map(|r| r.provenance.warnings.as_slice())),
    ]);
    RecordBatch::try_new(schema.clone(), columns)
}

/// Rows of a batch that [`slice_batch`] made.
pub(super) fn slices_of(
    batch: &RecordBatch,
    spec: &ShardSpec,
    split: Split,
    path: &Path,
) -> Result<Vec<CtSlice>, DataError> {
    let columns = Columns { batch, path };
    let image = columns.get(pixel_column(spec))?;
    let hu = if spec.with_hu { Some(columns.get("hu")?) } else { None };
    (0..batch.num_rows())
        .map(|i| {
            let spacing =
                columns.double("pixel_spacing_row_mm", i)?.zip(columns.double("pixel_spacing_col_mm", i)?);
            Ok(CtSlice {
                case_id: CaseId::new(columns.required_text("case_id", i)?)?,
                slice_index: columns.int("slice_index", i)?,
                label: columns.label(i)?,
                split,
                pixels: image_bytes(image, spec, i).ok_or_else(|| columns.bad("image"))?,
                hu: hu.and_then(|hu| {
                    hu.as_fixed_size_binary_opt()
                        .filter(|hu| hu.is_valid(i))
                        .map(|hu| from_planes(hu.value(i)))
                }),
                geometry: Geometry {
                    z: columns.double("z_mm", i)?.map(Mm),
                    gap_before: columns.float("gap_before_mm", i)?.map(|gap| Mm(gap.into())),
                    spacing: spacing.map(|(row, col)| Spacing { row: Mm(row), col: Mm(col) }),
                    slice_thickness: columns.float("slice_thickness_mm", i)?.map(|t| Mm(t.into())),
                    tilt_deg: columns.float("tilt_deg", i)?,
                    source_rows: columns.int("source_rows", i)?,
                    source_cols: columns.int("source_cols", i)?,
                },
                acquisition: Acquisition {
                    manufacturer: columns.text("manufacturer", i)?,
                    model: columns.text("model", i)?,
                    kernel: columns.text("kernel", i)?,
                    kvp: columns.float("kvp", i)?,
                    transfer_syntax: columns.required_text("transfer_syntax", i)?,
                    lossy: columns
                        .get("lossy")?
                        .as_boolean_opt()
                        .ok_or_else(|| columns.bad("lossy"))?
                        .value(i),
                    rescale_slope: columns.double("rescale_slope", i)?,
                    rescale_intercept: columns.double("rescale_intercept", i)?,
                    padding_px: columns.int("padding_px", i)?,
                },
                selection: Selection {
                    lung_fraction: columns.float("lung_fraction", i)?,
                    hu_min: columns.float("hu_min", i)?,
                    hu_max: columns.float("hu_max", i)?,
                    hu_mean: columns.float("hu_mean", i)?,
                },
                provenance: Provenance {
                    source_blake3: columns.required_text("source_blake3", i)?,
                    pixel_sha256: columns.required_text("pixel_sha256", i)?,
                    sop_uid_hash: columns.text("sop_uid_hash", i)?,
                    series_uid_hash: columns.text("series_uid_hash", i)?,
                    warnings: columns.texts("warnings", i)?,
                },
            })
        })
        .collect()
}

/// The columns of [`keys_of`].
pub(super) const KEY_COLUMNS: [&str; 5] = ["case_id", "slice_index", "label", "label_name", "split"];

/// What names the slices of a batch.
pub(super) fn keys_of(batch: &RecordBatch, path: &Path) -> Result<Vec<SliceKey>, DataError> {
    let columns = Columns { batch, path };
    let key = |i| {
        Ok(SliceKey {
            case_id: CaseId::new(columns.required_text("case_id", i)?)?,
            slice_index: columns.int("slice_index", i)?,
            label: columns.label(i)?,
        })
    };
    (0..batch.num_rows()).map(key).collect()
}

/// Hands what each row of a batch says of itself to `check`.
pub(super) fn check_rows(
    batch: &RecordBatch,
    path: &Path,
    check: &mut dyn FnMut(&RowKey<'_>) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let columns = Columns { batch, path };
    for i in 0..batch.num_rows() {
        let case_id = CaseId::new(columns.required_text("case_id", i)?)?;
        let (label_name, split) =
            (columns.required_text("label_name", i)?, columns.required_text("split", i)?);
        check(&RowKey {
            case_id: &case_id,
            slice_index: columns.int("slice_index", i)?,
            label: columns.label(i)?,
            label_name: &label_name,
            split: &split,
        })?;
    }
    Ok(())
}

/// The column of [`pixels_of`].
pub(super) fn pixel_column(spec: &ShardSpec) -> &'static str {
    match spec.layout {
        Layout::Raw => "pixels",
        Layout::Hf => "image",
    }
}

/// The grey levels of one row of a batch.
pub(super) fn pixels_of(
    batch: &RecordBatch,
    spec: &ShardSpec,
    row: usize,
    path: &Path,
) -> Result<Vec<u8>, DataError> {
    let columns = Columns { batch, path };
    let image = columns.get(pixel_column(spec))?;
    image_bytes(image, spec, row).ok_or_else(|| columns.bad("image"))
}

/// Columns of cases.
pub(super) fn case_batch<'a>(rows: &'a [CaseRow], labels: &'a LabelSet) -> Result<RecordBatch, ArrowError> {
    let columns: Vec<(&str, ArrayRef, bool)> = vec![
        ("case_id", text(rows, |r| Some(r.case_id.as_str())), false),
        ("label", Arc::new(Int8Array::from_iter_values(rows.iter().map(|r| r.label.0 as i8))), false),
        ("label_name", text(rows, |r| labels.name(r.label)), false),
        ("split", text(rows, |r| Some(r.split.as_str())), false),
        ("n_slices", Arc::new(Int32Array::from_iter_values(rows.iter().map(|r| r.n_slices))), false),
        (
            "n_source_slices",
            Arc::new(Int32Array::from_iter_values(rows.iter().map(|r| r.n_source_slices))),
            false,
        ),
        ("lung_fraction_source", doubles(rows, |r| r.lung_fraction_source), true),
        ("lung_fraction", doubles(rows, |r| r.lung_fraction), true),
        ("patient_hash", text(rows, |r| r.patient_hash.as_deref()), true),
        ("study_uid_hash", text(rows, |r| r.study_uid_hash.as_deref()), true),
        ("series_uid_hash", text(rows, |r| r.series_uid_hash.as_deref()), true),
        ("manufacturer", text(rows, |r| r.manufacturer.as_deref()), true),
        ("model", text(rows, |r| r.model.as_deref()), true),
        ("kernel", text(rows, |r| r.kernel.as_deref()), true),
        ("slice_thickness_mm", doubles(rows, |r| r.slice_thickness_mm), true),
        ("patient_sex", text(rows, |r| r.patient_sex.as_deref()), true),
        (
            "patient_age_years",
            Arc::new(Int32Array::from_iter(rows.iter().map(|r| r.patient_age_years))),
            true,
        ),
        ("warnings", texts(rows.iter().map(|r| r.warnings.as_slice())), false),
    ];
    RecordBatch::try_from_iter_with_nullable(columns)
}

/// Rows of a batch that [`case_batch`] made.
pub(super) fn cases_of(
    batch: &RecordBatch,
    labels: &LabelSet,
    path: &Path,
) -> Result<Vec<CaseRow>, DataError> {
    let columns = Columns { batch, path };
    (0..batch.num_rows())
        .map(|i| {
            let label = columns.label(i)?;
            if labels.name(label).is_none() {
                return Err(columns.bad("label"));
            }
            let age = columns.get("patient_age_years")?.as_primitive_opt::<Int32Type>();
            let age = age.ok_or_else(|| columns.bad("patient_age_years"))?;
            Ok(CaseRow {
                case_id: CaseId::new(columns.required_text("case_id", i)?)?,
                label,
                split: columns.required_text("split", i)?.parse()?,
                n_slices: columns.int("n_slices", i)?,
                n_source_slices: columns.int("n_source_slices", i)?,
                lung_fraction_source: columns.double("lung_fraction_source", i)?,
                lung_fraction: columns.double("lung_fraction", i)?,
                patient_hash: columns.text("patient_hash", i)?,
                study_uid_hash: columns.text("study_uid_hash", i)?,
                series_uid_hash: columns.text("series_uid_hash", i)?,
                manufacturer: columns.text("manufacturer", i)?,
                model: columns.text("model", i)?,
                kernel: columns.text("kernel", i)?,
                slice_thickness_mm: columns.double("slice_thickness_mm", i)?,
                patient_sex: columns.text("patient_sex", i)?,
                patient_age_years: age.is_valid(i).then(|| age.value(i)),
                warnings: columns.texts("warnings", i)?,
            })
        })
        .collect()
}

/// The key under which Hugging Face `datasets` looks for feature types, in the
/// footer as in the Arrow schema, which hides the footer from it.
pub(super) const HUGGING_FACE: &str = "huggingface";

/// The value of [`HUGGING_FACE`]: the image column is to be decoded.
pub(super) fn image_feature() -> String {
    serde_json::json!({"info": {"features": {"image": {"_type": "Image"}}}}).to_string()
}

/// The columns as the `features` of a Hugging Face card: names and types, the image
/// decoded and the label with its class names.
pub(super) fn card_features(spec: &ShardSpec) -> serde_json::Value {
    let class_names = || -> serde_json::Map<String, serde_json::Value> {
        let names = spec.labels.names().iter().enumerate();
        names.map(|(i, name)| (i.to_string(), name.as_str().into())).collect()
    };
    let feature = |field: &Arc<Field>| {
        let name = field.name();
        match (name.as_str(), field.data_type()) {
            ("label", _) => {
                serde_json::json!({"name": name, "dtype": {"class_label": {"names": class_names()}}})
            }
            (_, DataType::List(_)) => serde_json::json!({"name": name, "list": "string"}),
            (_, DataType::Struct(_)) => serde_json::json!({"name": name, "dtype": "image"}),
            (_, DataType::FixedSizeBinary(n)) => {
                serde_json::json!({"name": name, "dtype": format!("fixed_size_binary[{n}]")})
            }
            (_, DataType::Utf8) => serde_json::json!({"name": name, "dtype": "string"}),
            (_, DataType::Boolean) => serde_json::json!({"name": name, "dtype": "bool"}),
            (_, number) => serde_json::json!({"name": name, "dtype": number.to_string().to_lowercase()}),
        }
    };
    slice_schema(spec).fields().iter().map(feature).collect()
}

fn field(name: &str, data_type: DataType, nullable: bool, about: &[(&str, &str)]) -> Field {
    let metadata: HashMap<_, _> = about.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    Field::new(name, data_type, nullable).with_metadata(metadata)
}

fn png_fields() -> Fields {
    // Nullable, or `datasets` does not take the column for images.
    Fields::from(vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)])
}

fn list_item() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Utf8, false))
}

fn text<'a, R>(rows: &'a [R], value: impl Fn(&'a R) -> Option<&'a str>) -> ArrayRef {
    Arc::new(StringArray::from_iter(rows.iter().map(value)))
}

fn floats<R>(rows: &[R], value: impl Fn(&R) -> Option<f32>) -> ArrayRef {
    Arc::new(Float32Array::from_iter(rows.iter().map(value)))
}

fn doubles<R>(rows: &[R], value: impl Fn(&R) -> Option<f64>) -> ArrayRef {
    Arc::new(Float64Array::from_iter(rows.iter().map(value)))
}

fn texts<'a>(lists: impl Iterator<Item = &'a [String]> + Clone) -> ArrayRef {
    let offsets = OffsetBuffer::from_lengths(lists.clone().map(<[String]>::len));
    let values = StringArray::from_iter_values(lists.flatten());
    Arc::new(ListArray::new(list_item(), offsets, Arc::new(values), None))
}

/// All low bytes, then all high bytes: neighbouring HU share their high byte,
/// so the second plane compresses to little.
fn byte_planes(hu: &[i16]) -> Vec<u8> {
    let low = hu.iter().map(|v| v.to_le_bytes()[0]);
    low.chain(hu.iter().map(|v| v.to_le_bytes()[1])).collect()
}

fn from_planes(planes: &[u8]) -> Vec<i16> {
    let (low, high) = planes.split_at(planes.len() / 2);
    low.iter().zip(high).map(|(&low, &high)| i16::from_le_bytes([low, high])).collect()
}

fn png_column(spec: &ShardSpec, rows: &[CtSlice]) -> Result<ArrayRef, ArrowError> {
    let encode = |row: &CtSlice| {
        let mut png = Vec::new();
        let encoder = image::codecs::png::PngEncoder::new(&mut png);
        image::ImageEncoder::write_image(
            encoder,
            &row.pixels,
            spec.reader.size,
            spec.reader.size,
            image::ExtendedColorType::L8,
        )
        .map_err(|err| ArrowError::ExternalError(Box::new(err)))?;
        Ok(png)
    };
    let pngs = rows.iter().map(encode).collect::<Result<Vec<_>, ArrowError>>()?;
    let paths = rows.iter().map(|row| format!("{}/{:04}.png", row.case_id, row.slice_index));
    let columns: Vec<ArrayRef> =
        vec![Arc::new(BinaryArray::from_iter_values(pngs)), Arc::new(StringArray::from_iter_values(paths))];
    Ok(Arc::new(StructArray::try_new(png_fields(), columns, None)?))
}

fn image_bytes(column: &dyn Array, spec: &ShardSpec, row: usize) -> Option<Vec<u8>> {
    let pixels = match spec.layout {
        Layout::Raw => column.as_fixed_size_binary_opt()?.value(row).to_vec(),
        Layout::Hf => {
            let png = column.as_struct_opt()?.column_by_name("bytes")?.as_binary_opt::<i32>()?.value(row);
            let image = image::load_from_memory_with_format(png, image::ImageFormat::Png).ok()?;
            image.into_luma8().into_raw()
        }
    };
    (pixels.len() == spec.reader.n_pixels()).then_some(pixels)
}

/// Typed access to the columns of a batch; a missing or mistyped one is an error.
struct Columns<'a> {
    batch: &'a RecordBatch,
    path: &'a Path,
}

impl<'a> Columns<'a> {
    fn bad(&self, name: &str) -> DataError {
        DataError::malformed(
            self.path,
            format!("column `{name}` is missing, of another type, or holds a bad value"),
        )
    }

    fn get(&self, name: &str) -> Result<&'a dyn Array, DataError> {
        self.batch.column_by_name(name).map(AsRef::as_ref).ok_or_else(|| self.bad(name))
    }

    fn text(&self, name: &str, row: usize) -> Result<Option<String>, DataError> {
        let column = self.get(name)?.as_string_opt::<i32>().ok_or_else(|| self.bad(name))?;
        Ok(column.is_valid(row).then(|| column.value(row).to_string()))
    }

    fn required_text(&self, name: &str, row: usize) -> Result<String, DataError> {
        self.text(name, row)?.ok_or_else(|| self.bad(name))
    }

    fn texts(&self, name: &str, row: usize) -> Result<Vec<String>, DataError> {
        let list = self.get(name)?.as_list_opt::<i32>().ok_or_else(|| self.bad(name))?.value(row);
        let items = list.as_string_opt::<i32>().ok_or_else(|| self.bad(name))?;
        Ok(items.iter().flatten().map(String::from).collect())
    }

    fn int(&self, name: &str, row: usize) -> Result<i32, DataError> {
        let column = self.get(name)?.as_primitive_opt::<Int32Type>().ok_or_else(|| self.bad(name))?;
        if column.is_valid(row) { Ok(column.value(row)) } else { Err(self.bad(name)) }
    }

    fn label(&self, row: usize) -> Result<Label, DataError> {
        let column = self.get("label")?.as_primitive_opt::<Int8Type>().ok_or_else(|| self.bad("label"))?;
        // A missing label is no class 0.
        let index = if column.is_valid(row) { column.value(row) } else { -1 };
        u8::try_from(index).map(Label).map_err(|_| self.bad("label"))
    }

    fn float(&self, name: &str, row: usize) -> Result<Option<f32>, DataError> {
        let column = self.get(name)?.as_primitive_opt::<Float32Type>().ok_or_else(|| self.bad(name))?;
        Ok(column.is_valid(row).then(|| column.value(row)))
    }

    fn double(&self, name: &str, row: usize) -> Result<Option<f64>, DataError> {
        let column = self.get(name)?.as_primitive_opt::<Float64Type>().ok_or_else(|| self.bad(name))?;
        Ok(column.is_valid(row).then(|| column.value(row)))
    }
}
