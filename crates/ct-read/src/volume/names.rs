//! Which files hold a volume, by their names.

/// Names of files that hold a volume, or the header of one.
const EXTENSIONS: [&str; 8] = [".nii", ".nii.gz", ".hdr", ".hdr.gz", ".mha", ".mhd", ".nrrd", ".nhdr"];

/// The name of a volume without its extension; `None` where it has none of a volume.
pub fn stem(relative: &str) -> Option<&str> {
    let name = relative.to_ascii_lowercase();
    let extension = EXTENSIONS.into_iter().find(|extension| name.ends_with(extension))?;
    Some(&relative[..relative.len() - extension.len()])
}

/// Whether a file name has an extension of a volume.
pub fn is_named_as_volume(relative: &str) -> bool {
    stem(relative).is_some()
}
