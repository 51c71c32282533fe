//! Why one file or one case is set aside.

/// What is wrong with a file or a case. The text never holds anything that was
/// read from a header, except numbers, and names that the standard gives.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The operating system refused the file.
    #[error("it cannot be read: {why}")]
    Unreadable {
        /// The system's words.
        why: String,
    },
    /// The bytes are no DICOM file.
    #[error("it is not a DICOM file: {why}")]
    NotDicom {
        /// What was found instead.
        why: String,
    },
    /// The file ends inside an element.
    #[error("it ends too early")]
    Truncated,
    /// The data set breaks the rules of DICOM.
    #[error("its header is damaged: {why}")]
    Malformed {
        /// The rule.
        why: String,
    },
    /// Sequences are nested without end.
    #[error("its sequences are nested more than {limit} deep")]
    TooDeep {
        /// Deepest level that is read.
        limit: usize,
    },
    /// The file inflates beyond reason.
    #[error("it inflates to more than {limit} bytes")]
    TooLarge {
        /// Most bytes that are accepted.
        limit: u64,
    },
    /// No decoder for the pixels.
    #[error("its transfer syntax {syntax} is not supported")]
    TransferSyntax {
        /// Name from the standard, or the UID.
        syntax: String,
    },
    /// An attribute is missing or has an impossible value.
    #[error("attribute {name} {why}")]
    Attribute {
        /// Keyword of the standard.
        name: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Slope or intercept is missing or unreadable.
    #[error("{name} {why}, so CT numbers are unknown")]
    Rescale {
        /// Keyword of the standard.
        name: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The pixel data is not what the header says.
    #[error("its pixel data is not usable: {why}")]
    Pixels {
        /// What is wrong.
        why: String,
    },
    /// The image may show a name.
    #[error("it says that text is burned into its pixels")]
    BurnedIn,
    /// Some slices of a series were made by a scanner, others not.
    #[error("some of its slices bear the mark of synthetic images, others do not")]
    MixedOrigin,
    /// Two slices at one position differ.
    #[error("two different slices lie at the same position ({count} positions)")]
    SamePosition {
        /// Number of positions concerned.
        count: usize,
    },
    /// The files of a case are of several people.
    #[error("its files are of {count} patients")]
    SeveralPatients {
        /// Number of distinct PatientIDs.
        count: usize,
    },
    /// Slices are missing inside the series.
    #[error("{count} gaps between its slices, the largest of {largest_mm} mm")]
    Gaps {
        /// Number of gaps.
        count: usize,
        /// Largest distance, in mm, as text with one decimal.
        largest_mm: String,
    },
    /// A case has files, but no usable CT series among them.
    #[error("it has no axial CT series of at least {n_min} slices ({why})")]
    NoSeries {
        /// Fewest slices.
        n_min: usize,
        /// What was there instead.
        why: String,
    },
    /// A case has several axial CT series, and none was preferred.
    #[error("it has {count} axial CT series, and --series only allows one")]
    SeveralSeries {
        /// Number of series.
        count: usize,
    },
    /// No lung was found in any slice.
    #[error("no lung was found in any of its slices")]
    NoLung,
    /// An archive or one of its entries is not read.
    #[error("the archive cannot be used: {why}")]
    Archive {
        /// What is wrong.
        why: String,
    },
    /// A contact sheet cannot be written.
    #[error("its preview cannot be written: {why}")]
    Preview {
        /// What is wrong.
        why: String,
    },
    /// A volume is of a kind that is not read.
    #[error("it is not a usable volume: {why}")]
    Volume {
        /// What is wrong.
        why: String,
    },
    /// The numbers of a volume cannot be CT numbers.
    #[error("its values are no CT numbers: {why}")]
    NotHu {
        /// What is wrong.
        why: String,
    },
    /// A picture of 16 bits holds stored values of CT, not grey levels.
    #[error("its 16 bits hold values from {lowest} to {highest}, as stored CT values do, not grey levels")]
    StoredValues {
        /// Lowest value.
        lowest: i32,
        /// Highest value.
        highest: i32,
    },
    /// An image is not of a kind that can be a CT slice.
    #[error("it is not a usable image: {why}")]
    Image {
        /// What is wrong.
        why: String,
    },
}

impl Fault {
    /// Short fixed name, for scripts.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "unreadable",
            Self::NotDicom { .. } => "not-dicom",
            Self::Truncated => "truncated",
            Self::Malformed { .. } => "malformed",
            Self::TooDeep { .. } => "too-deep",
            Self::TooLarge { .. } => "too-large",
            Self::TransferSyntax { .. } => "transfer-syntax",
            Self::Attribute { .. } => "attribute",
            Self::Rescale { .. } => "rescale",
            Self::Pixels { .. } => "pixels",
            Self::BurnedIn => "burned-in",
            Self::MixedOrigin => "mixed-origin",
            Self::SamePosition { .. } => "same-position",
            Self::SeveralPatients { .. } => "several-patients",
            Self::Gaps { .. } => "gaps",
            Self::NoSeries { .. } => "no-series",
            Self::SeveralSeries { .. } => "several-series",
            Self::NoLung => "no-lung",
            Self::Archive { .. } => "archive",
            Self::Preview { .. } => "preview",
            Self::Volume { .. } => "volume",
            Self::NotHu { .. } => "not-hu",
            Self::StoredValues { .. } => "stored-values",
            Self::Image { .. } => "image",
        }
    }

    /// What the user can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Unreadable { .. } => "check the file's permissions and its disk".into(),
            Self::NotDicom { .. } => "remove the file, or export it again as DICOM".into(),
            Self::Truncated => "copy or export the file again; it was cut".into(),
            Self::Malformed { .. } | Self::TooDeep { .. } | Self::TooLarge { .. } => {
                "export the file again from its source".into()
            }
            Self::TransferSyntax { .. } => {
                "convert it to an uncompressed transfer syntax, for example with gdcmconv --raw".into()
            }
            Self::Attribute { .. } => "correct the attribute at its source and export again".into(),
            Self::Rescale { .. } => {
                "export the series with its Rescale Slope and Intercept; they are not guessed".into()
            }
            Self::Pixels { .. } => "export the file again; its pixels do not match its header".into(),
            Self::BurnedIn => "remove the text from the pixels, and set BurnedInAnnotation to NO".into(),
            Self::MixedOrigin => "keep synthetic and other images in cohorts of their own".into(),
            Self::SamePosition { .. } => "keep one of the acquisitions, in a folder of its own".into(),
            Self::SeveralPatients { .. } => {
                "give each patient a folder and a line of the label table of its own".into()
            }
            Self::Gaps { .. } => "export the whole series, or run without --strict".into(),
            Self::NoSeries { .. } => "export the axial CT series of this case".into(),
            Self::SeveralSeries { .. } => {
                "keep one series, or choose with --series most-slices or --series thickest".into()
            }
            Self::NoLung => "check that it is a chest CT with the whole body in the image".into(),
            Self::Archive { .. } => {
                "unpack it with the program that made it, and check what comes out".into()
            }
            Self::Preview { .. } => "check the folder of --preview, its permissions and its disk".into(),
            Self::Volume { .. } => "convert it again from its DICOM series, for example with dcm2niix".into(),
            Self::NotHu { .. } => {
                "give the series in Hounsfield units, as the scanner made it; scaled, shifted or windowed \
                 values cannot be turned back with certainty"
                    .into()
            }
            Self::StoredValues { .. } => {
                "give --hu-slope and --hu-intercept, by which stored values become HU (often 1 and -1024)"
                    .into()
            }
            Self::Image { .. } => "convert the image to 8- or 16-bit grey PNG".into(),
        }
    }
}
