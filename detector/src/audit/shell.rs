//! Commands for people to read and type.
//!
//! Names of roles, users and groups may hold almost anything: what is not plain is quoted, and what
//! cannot be shown safely is in no command at all.

use detector_core::workload::PodKey;

/// `word` as a shell takes it for one word; `None` where it holds what no terminal should be shown.
pub(super) fn word(word: &str) -> Option<String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._:/=@,-+".contains(&b);
    if word.is_empty() || !word.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
        return None;
    }
    if word.bytes().all(plain) && !word.starts_with('-') {
        return Some(word.to_owned());
    }
    Some(format!("'{}'", word.replace('\'', r"'\''")))
}

/// Takes an annotation away from a pod.
pub(super) fn remove_annotation(pod: &PodKey, key: &str) -> String {
    format!("kubectl annotate --namespace {} pod/{} {key}-", pod.namespace(), pod.name())
}

/// Shows a pod with those who wrote its fields.
pub(super) fn show_pod(pod: &PodKey) -> String {
    format!(
        "kubectl get --namespace {} pod/{} --output yaml --show-managed-fields",
        pod.namespace(),
        pod.name()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stays_one_word() {
        assert_eq!(word("system:masters").unwrap(), "system:masters");
        assert_eq!(word("my role").unwrap(), "'my role'");
        assert_eq!(word("-n").unwrap(), "'-n'");
        assert_eq!(word("$(reboot)").unwrap(), "'$(reboot)'");
        assert_eq!(word("it's").unwrap(), r"'it'\''s'");
        for odd in ["", "a\nb", "\u{1b}[2J", "caf\u{e9}"] {
            assert_eq!(word(odd), None, "{odd:?}");
        }
    }
}
