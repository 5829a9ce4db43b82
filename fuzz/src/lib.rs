//! What must hold of all that is read, whatever was written.

use detector::source::cluster::Rejection;

/// No list is longer, of what was taken and of what was not (`parse`).
pub const MOST: usize = 256;

/// One line of a log: nothing that could end it, colour it or turn it around.
///
/// # Panics
///
/// Where the text is not such a line.
pub fn check_line(line: &str) {
    let printable = line.chars().all(|c| c == ' ' || c.is_ascii_graphic());
    assert!(printable, "not printable: {line:?}");
    assert!(line.len() < 8192, "{} bytes", line.len());
}

/// What was not taken is bounded, and can be said.
///
/// # Panics
///
/// Where it is not.
pub fn check_rejections(rejections: &[Rejection]) {
    assert!(rejections.len() <= MOST, "{} rejections", rejections.len());
    for rejection in rejections {
        check_line(&rejection.to_string());
    }
}
