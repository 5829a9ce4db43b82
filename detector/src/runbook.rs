//! The runbook, as it was when this version was made: so that it is there when nothing else is.

macro_rules! pages {
    ($($name:literal),+ $(,)?) => {
        &[$(($name, include_str!(concat!("../../docs/runbook/", $name, ".md")))),+]
    };
}

const PAGES: &[(&str, &str)] = pages![
    "README",
    "route",
    "nexthop",
    "rule",
    "dnat",
    "neighbour",
    "spoof",
    "claim",
    "flood",
    "degraded",
];

/// A page by its name, in Markdown.
pub fn page(name: &str) -> Option<&'static str> {
    let name = name.strip_suffix(".md").unwrap_or(name);
    PAGES.iter().find(|(page, _)| *page == name).map(|(_, text)| *text)
}

/// The names of all pages.
pub fn names() -> Vec<&'static str> {
    PAGES.iter().map(|(name, _)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::report::MEANS;

    #[test]
    fn every_kind_of_finding_has_a_page() {
        for means in MEANS {
            let page = page(means.as_str()).unwrap_or_else(|| panic!("no page {means:?}"));
            for heading in
                ["## What it means", "## Check it by hand", "## Contain it", "## Close the hole"]
            {
                assert!(page.contains(heading), "{means:?} has no {heading:?}");
            }
        }
        assert!(page("flood").is_some() && page("degraded.md").is_some());
    }
}
