//! How files of volumes are named.

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

#[cfg(test)]
mod tests {
    use super::stem;

    #[test]
    fn a_volume_has_a_name_without_its_extension() {
        assert_eq!(stem("a/b.c.nii.gz"), Some("a/b.c"));
        assert_eq!(stem("B.NRRD"), Some("B"));
        assert_eq!(stem("a.nii/b.raw"), None);
    }
}
