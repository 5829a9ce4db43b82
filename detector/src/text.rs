//! Text from elsewhere, made fit for one line of a log or a terminal.

/// `text` with everything but printable ASCII escaped, at most `most` characters of it.
///
/// What others wrote may hold line breaks (a forged log line), terminal sequences, or letters that
/// turn the direction of writing; none of them gets through.
pub(crate) fn printable(text: &str, most: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(most));
    for (count, character) in text.chars().enumerate() {
        if count == most {
            shown.push_str("...");
            break;
        }
        if character == ' ' || character.is_ascii_graphic() {
            shown.push(character);
        } else {
            shown.extend(character.escape_default());
        }
    }
    shown
}

/// The entry of `known` that is most like `typed`, where one is like enough to be what was meant.
pub(crate) fn nearest<'a>(
    typed: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let typed = typed.to_ascii_lowercase();
    known
        .into_iter()
        .map(|candidate| (distance(&typed, &candidate.to_ascii_lowercase()), candidate))
        .filter(|&(distance, candidate)| distance <= 1 + candidate.len() / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance, byte by byte. What is typed is cut, so that its cost is bounded.
fn distance(typed: &str, candidate: &str) -> usize {
    let typed = &typed.as_bytes()[..typed.len().min(64)];
    let mut row: Vec<usize> = (0..=candidate.len()).collect();
    for (i, a) in typed.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in candidate.bytes().enumerate() {
            let substituted = diagonal + usize::from(*a != b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[candidate.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_printable_ascii_gets_through() {
        assert_eq!(printable("10.0.0.1", 64), "10.0.0.1");
        assert_eq!(printable("a\nb\u{1b}[2J\u{202e}", 64), "a\\nb\\u{1b}[2J\\u{202e}");
        assert_eq!(printable("abcdef", 3), "abc...");
        assert_eq!(printable("abc", 3), "abc");
    }

    #[test]
    fn the_nearest_is_near() {
        let known = ["nodeName", "kubeconfig", "output", "grace"];
        assert_eq!(nearest("nodename", known), Some("nodeName"));
        assert_eq!(nearest("kubeConfg", known), Some("kubeconfig"));
        assert_eq!(nearest("outptu", known), Some("output"));
        assert_eq!(nearest("verbosity", known), None);
        assert_eq!(nearest("", known), None);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
