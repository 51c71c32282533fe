//! Text from outside as a terminal may have it: control characters, which could move its
//! cursor or turn its line around, are escaped.

/// The text on one line.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if is_control(c) { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// Indented JSON, which says the same: its own escapes leave some control characters out.
pub fn printable_json(json: &str) -> String {
    let escaped = |c: char| match c {
        '\n' => c.to_string(),
        // They stand inside texts only, and all of them have four digits.
        c if is_control(c) => format!("\\u{:04x}", u32::from(c)),
        c => c.to_string(),
    };
    json.chars().map(escaped).collect()
}

/// Control characters, and those that change the direction of text.
fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_others_are_not() {
        assert_eq!(
            printable("a\u{1b}[2Jb\nc\u{7f}\u{9b}\u{202e}"),
            "a\\u{1b}[2Jb\\nc\\u{7f}\\u{9b}\\u{202e}"
        );
        assert_eq!(printable("Łódź 王芳 مريم"), "Łódź 王芳 مريم");
    }

    #[test]
    fn json_keeps_its_lines_and_loses_its_control_characters() {
        let json = "{\n  \"a\u{9b}\": \"\\u001b\u{202e}王\"\n}";
        assert_eq!(printable_json(json), "{\n  \"a\\u009b\": \"\\u001b\\u202e王\"\n}");
    }
}
