//! Plain files, the only ones that are opened: a FIFO, socket or device may be waited for
//! without end.

use std::fs::File;
use std::path::Path;

use diag_data::files;

use crate::fault::Fault;

/// Opens a plain file for reading.
///
/// # Errors
/// [`Fault::Unreadable`] when the system refuses, or it is another kind of file.
pub(super) fn open_plain(path: &Path) -> Result<File, Fault> {
    files::open_plain(path).map_err(|err| Fault::Unreadable {
        why: match err.kind() {
            std::io::ErrorKind::InvalidInput => err.to_string(),
            // Not the whole message: it may name the path.
            kind => kind.to_string(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn a_fifo_is_refused_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("1.dcm");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        for path in [&fifo, Path::new("/dev/zero"), folder.path()] {
            let fault = open_plain(path).unwrap_err();
            assert_eq!(
                fault,
                Fault::Unreadable { why: "it is not a plain file".into() },
                "{}",
                path.display()
            );
        }
        assert!(matches!(open_plain(&folder.path().join("2.dcm")), Err(Fault::Unreadable { .. })));
    }
}
