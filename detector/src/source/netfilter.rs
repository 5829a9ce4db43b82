//! How netfilter is asked, and the names that it tells.

/// Bytes of `struct nfgenmsg`: the family, a version, a resource.
pub(super) const HEADER: usize = 4;

/// What follows the netlink header in a question: for a family, with these attributes.
pub(super) fn question(family: u8, attributes: &[u8]) -> Vec<u8> {
    [&[family, 0, 0, 0], attributes].concat()
}

/// An attribute with a text, which ends with a zero.
pub(super) fn text(kind: u16, value: &str) -> Vec<u8> {
    let mut bytes = u16::try_from(value.len() + 5).unwrap_or(0).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value.as_bytes());
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A name as the kernel has it, up to its first zero. Names of tables and chains are anybody's who may
/// write rules: nothing of a terminal's in them.
pub(super) fn printable(bytes: &[u8]) -> Option<String> {
    let text = bytes.split(|byte| *byte == 0).next()?;
    let text = std::str::from_utf8(text).ok()?;
    Some(text.chars().map(|c| if c.is_control() { '?' } else { c }).collect())
}
