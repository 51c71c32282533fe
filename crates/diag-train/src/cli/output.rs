//! What a command returns to `main`.

/// Text for standard output, and whether everything was done.
pub struct Output {
    pub text: String,
    /// `false`: exit code 3.
    pub complete: bool,
}

impl Output {
    /// Everything was done.
    pub fn complete(text: String) -> Self {
        Self { text, complete: true }
    }
}

/// Files of a run that are uploaded last: a checkpoint in an object store is then never newer
/// than the logs beside it, and a resume truncates the logs to it.
pub const UPLOADED_LAST: [&str; 3] = ["epochs.jsonl", "steps.jsonl", "run.json"];
