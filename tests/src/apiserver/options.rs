//! The query of a request: `ListOptions`, and the little that other verbs have.

use std::collections::HashMap;
use std::str::FromStr;

use super::kind::Kind;
use super::refusal::Refusal;
use super::selector::FieldSelector;

/// The parameters of a list or a watch, checked against each other as a real server does
/// (`ValidateListOptions` of apimachinery).
#[derive(Debug)]
pub(super) struct Options {
    pub(super) selector: FieldSelector,
    pub(super) version: Version,
    /// How many objects a page may hold.
    pub(super) limit: Option<usize>,
    pub(super) continued: Option<Continue>,
    pub(super) bookmarks: bool,
    /// Seconds after which a watch ends.
    pub(super) timeout: Option<u64>,
    pub(super) initial_events: bool,
}

/// Which state is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// Nothing said: the newest.
    Newest,
    /// `0`: any, from the server's cache.
    Any,
    NotOlderThan(u64),
    Exact(u64),
}

/// Where the next page begins: opaque to clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Continue {
    pub(super) version: u64,
    /// The last object of the page before.
    pub(super) namespace: String,
    pub(super) name: String,
}

/// The pairs of a query; of a parameter that comes twice, the first counts.
pub(super) struct Query(HashMap<String, String>);

// === impl Query ===

impl Query {
    pub(super) fn new(query: Option<&str>) -> Self {
        let mut pairs = HashMap::new();
        for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            pairs.entry(name.into_owned()).or_insert_with(|| value.into_owned());
        }
        Self(pairs)
    }

    /// A parameter that is there and not empty.
    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(super) fn flag(&self, name: &str) -> Result<bool, Refusal> {
        match self.text(name) {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1") => Ok(true),
            Some(other) => Err(malformed(name, other)),
        }
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, Refusal> {
        self.parse(name)
    }

    fn integer(&self, name: &str) -> Result<Option<i64>, Refusal> {
        self.parse(name)
    }

    fn parse<T: FromStr>(&self, name: &str) -> Result<Option<T>, Refusal> {
        let parse = |text: &str| text.parse().map_err(|_| malformed(name, text));
        self.text(name).map(parse).transpose()
    }

    /// Refuses what would change the meaning of a request and is not emulated.
    pub(super) fn refuse_unserved(&self) -> Result<(), Refusal> {
        match ["labelSelector", "dryRun"].into_iter().find(|name| self.text(name).is_some()) {
            Some(name) => {
                let message = format!("this server does not serve {name}; leave it away");
                Err(Refusal::bad_request(message))
            }
            None => Ok(()),
        }
    }
}

// === impl Options ===

impl Options {
    pub(super) fn parse(kind: &Kind, query: &Query, watch: bool) -> Result<Self, Refusal> {
        let initial_events = query.flag("sendInitialEvents")?;
        let how = query.text("resourceVersionMatch");
        let told = query.number("resourceVersion")?;
        let continued = query.text("continue").map(Continue::parse).transpose()?;
        let forbidden = |why: &str| {
            Err(Refusal::invalid_options(&format!("resourceVersionMatch: Forbidden: {why}")))
        };
        let version = match (how, told) {
            (Some(_), _) if watch && !initial_events => {
                return forbidden("it may not be set for a watch without sendInitialEvents");
            }
            (Some(_), _) if continued.is_some() => {
                return forbidden("it may not be set together with continue");
            }
            (Some("NotOlderThan"), None) if initial_events => Version::Newest,
            (Some(_), None) => return forbidden("it may not be set without resourceVersion"),
            (Some("Exact"), Some(0)) => {
                return forbidden("Exact may not be set for resourceVersion 0");
            }
            (Some("Exact"), Some(version)) => Version::Exact(version),
            (None | Some("NotOlderThan"), Some(0)) => Version::Any,
            (None | Some("NotOlderThan"), Some(version)) => Version::NotOlderThan(version),
            (None, None) => Version::Newest,
            (Some(other), _) => {
                let why = format!("resourceVersionMatch: Unsupported value: {other:?}");
                return Err(Refusal::invalid_options(&why));
            }
        };
        if initial_events && how != Some("NotOlderThan") {
            return forbidden("sendInitialEvents needs NotOlderThan");
        }
        Ok(Self {
            selector: FieldSelector::parse(kind, query.text("fieldSelector").unwrap_or_default())?,
            version,
            limit: query
                .integer("limit")?
                // Less than one is no limit.
                .and_then(|limit| usize::try_from(limit).ok())
                .filter(|limit| *limit > 0),
            continued,
            bookmarks: query.flag("allowWatchBookmarks")?,
            timeout: query.number("timeoutSeconds")?,
            initial_events,
        })
    }
}

// === impl Continue ===

impl Continue {
    /// Reads the token that [`Continue::to_token`] wrote.
    fn parse(token: &str) -> Result<Self, Refusal> {
        let mut parts = token.splitn(3, '/');
        let version = parts.next().and_then(|version| version.parse().ok());
        match (version, parts.next(), parts.next()) {
            (Some(version), Some(namespace), Some(name)) => {
                Ok(Self { version, namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(Refusal::bad_request("continue key is not valid")),
        }
    }

    pub(super) fn to_token(&self) -> String {
        format!("{}/{}/{}", self.version, self.namespace, self.name)
    }
}

fn malformed(name: &str, value: &str) -> Refusal {
    Refusal::bad_request(format!("invalid value {value:?} of the parameter {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(query: &str, watch: bool) -> Result<Options, Refusal> {
        Options::parse(Kind::of_plural("pods").unwrap(), &Query::new(Some(query)), watch)
    }

    #[test]
    fn versions_mean_what_their_match_says() {
        let version = |query| options(query, false).unwrap().version;
        assert_eq!(version(""), Version::Newest);
        assert_eq!(version("resourceVersion="), Version::Newest);
        assert_eq!(version("resourceVersion=0"), Version::Any);
        assert_eq!(version("resourceVersion=7"), Version::NotOlderThan(7));
        assert_eq!(version("resourceVersion=7&resourceVersionMatch=Exact"), Version::Exact(7));
    }

    #[test]
    fn options_that_do_not_go_together_are_refused() {
        for (query, watch, code) in [
            ("resourceVersionMatch=Exact", false, 422),
            ("resourceVersion=0&resourceVersionMatch=Exact", false, 422),
            ("resourceVersion=1&resourceVersionMatch=NotOlderThan&continue=1//a", false, 422),
            ("resourceVersion=1&resourceVersionMatch=NotOlderThan", true, 422),
            ("sendInitialEvents=true", true, 422),
            ("resourceVersion=1&resourceVersionMatch=Newer", false, 422),
            ("resourceVersion=one", false, 400),
            ("continue=nonsense", false, 400),
            ("limit=some", false, 400),
            ("allowWatchBookmarks=maybe", true, 400),
            ("fieldSelector=spec.nodename%3Dn1", true, 400),
        ] {
            assert_eq!(options(query, watch).unwrap_err().code, code, "{query}");
        }
    }
}
